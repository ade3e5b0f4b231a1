"""Instructions of the kernels' loops, traced through their machine code, equal those of rounds.csv, which the model of
bench/predict.py reads. After a change that is meant: compile for every architecture, and `tests/support/rounds.py --write`.
"""

from __future__ import annotations

from dataclasses import astuple, fields

import pytest

import rounds
from onepass.backend import compiled
from rounds import Flow, Instruction, Round, parse, read_table, rounds_of

CODE = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;              /* 0x00000a00ff017b82 */
        /*0010*/                   LDG.E.NA.128 R4, desc[UR4][R2.64] ; /* 0x0 */
        /*0020*/                   FSETP.GT.AND P0, PT, R4, RZ, PT ;   /* 0x0 */
        /*0030*/              @!P0 BRA 0x80 ;                          /* 0x0 */
        /*0040*/                   MUFU.RCP R5, R4 ;                   /* 0x0 */
        /*0050*/                   MUFU.RCP R6, R4 ;                   /* 0x0 */
        /*0060*/                   FMUL R5, R5, R6 ;                   /* 0x0 */
        /*0070*/                   BRA 0xa0 ;                          /* 0x0 */
        /*0080*/               @P1 BRA P2, 0xa0 ;                      /* 0x0 */
        /*0090*/                   CALL.REL.NOINC 0x100 ;              /* 0x0 */
        /*00a0*/                   STG.E.EF.128 desc[UR4][R2.64], R4 ; /* 0x0 */
        /*00b0*/                   IADD3 R2, R2, 0x10, RZ ;            /* 0x0 */
        /*00c0*/               @P3 BRA 0x10 ;                          /* 0x0 */
        /*00d0*/                   EXIT ;                              /* 0x0 */
        /*0100*/                   RET.REL.NODEC R2 0x0 ;              /* 0x0 */
"""


@pytest.fixture(scope="module")
def found() -> list[Round]:
    assert compiled._C is not None
    if "nvcc" not in compiled._C.build_flags:
        pytest.skip("onepass is built without the CUDA kernels")
    return rounds_of(compiled._C.__file__)


def flow_of(code: str) -> Flow:
    return Flow([found for line in code.splitlines() if (found := parse(line))])


def test_a_round_takes_the_quotients_side_by_side() -> None:
    """The zeros' way round them is shorter, and that by the call has fewer instructions than either."""
    (circuit,) = flow_of(CODE).loops("LDG")
    names = [i.opcode for i in flow_of(CODE).instructions(circuit)]
    assert names.count("MUFU.RCP") == 2 and len(names) == 10 and "CALL.REL.NOINC" not in names
    assert flow_of(CODE).counts(circuit) == {"memory": 2, "float32": 2, "control": 3, "special": 2, "integer": 1}


def test_without_them_a_round_is_the_shortest_circuit() -> None:
    alone = CODE.replace("MUFU.RCP R6, R4", "FMUL R6, R4, R4")
    (circuit,) = flow_of(alone).loops("LDG")
    assert len(flow_of(alone).instructions(circuit)) == 7


def test_no_circuit_where_nothing_leads_back() -> None:
    assert not list(flow_of(CODE.replace("@P3 BRA 0x10", "@P3 BRA 0xd0")).loops("LDG"))


def test_a_guarded_call_is_a_branch() -> None:
    """As nvcc leaves a loop on sm_8x."""
    left = CODE.replace("@P3 BRA 0x10", "@P3 CALL.REL.NOINC 0xd0").replace(
        "/*00d0*/                   EXIT", "/*00d0*/                   BRA 0x10"
    )
    (circuit,) = flow_of(left).loops("LDG")
    assert len(flow_of(left).instructions(circuit)) == 11


def test_operands_of_branches() -> None:
    targets = {text: Instruction(0, "", "BRA", text).target for text in ("0x10", "P0, 0x20", "UR4, 0x30", "R2")}
    assert targets == {"0x10": 16, "P0, 0x20": 32, "UR4, 0x30": 48, "R2": None}
    assert Instruction(0, "", "LDG.E.NA.128", "").access_bytes == 16
    assert Instruction(0, "", "STG.E.EF.64", "").access_bytes == 8


def test_counts_are_those_of_the_table(found: list[Round]) -> None:
    """Instructions within 3%, or 4; the classes that a compiler has no choice in, and bytes, exactly."""
    archs = {r.arch for r in found}
    kept = {(r.arch, r.kernel, r.part): r for r in read_table() if r.arch in archs}
    now = {(r.arch, r.kernel, r.part): r for r in found if r.kernel in {name for _, name, _ in kept}}
    assert now.keys() == kept.keys() and len(kept) > 20
    differing = {key: (astuple(now[key])[3:], astuple(kept[key])[3:]) for key in kept if differ(now[key], kept[key])}
    assert differing == {}, [field.name for field in fields(Round)][3:]


def differ(now: Round, kept: Round) -> bool:
    exact = ("float64", "conversions", "special", "shuffles", "loaded", "stored")
    return any(getattr(now, name) != getattr(kept, name) for name in exact) or any(
        abs(getattr(now, name) - getattr(kept, name)) > max(4, 0.03 * kept.instructions)
        for name in ("instructions", "control")
    )


def test_the_table_has_every_architecture_of_the_wheel() -> None:
    rounds_by_arch = {r.arch: 0 for r in read_table()}
    assert set(rounds_by_arch) == {"sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"}
    assert len({(r.kernel, r.part) for r in read_table()}) * len(rounds_by_arch) == len(read_table())


@pytest.mark.parametrize(
    ("kernel", "most"), [("step<float, float, Adam<float>>", 425), ("update<float, float, Adam<float>>", 490)]
)
def test_instructions_to_reach(kernel: str, most: int) -> None:
    """Of a round of 256 elements."""
    own = [r for r in read_table() if (r.kernel, r.part) == (kernel, "round") and r.arch != "sm_120"]
    assert len(own) == 5 and all(r.instructions <= most and r.control <= 32 for r in own)


def test_a_step_does_nothing_in_double() -> None:
    own = [r for r in read_table() if r.kernel.startswith("step<") and "double" not in r.kernel]
    assert own and all(r.float64 == 0 for r in own)


def test_writing_and_reading_the_table(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rounds, "TABLE", tmp_path / "rounds.csv")
    some = [Round("sm_90", f"step<{n}, float>", "round", *range(n, n + 11)) for n in range(3)]
    rounds.write_table(reversed(some))
    assert read_table() == some
