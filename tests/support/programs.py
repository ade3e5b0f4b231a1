"""Instructions that a warp issues in one program of a Triton kernel, traced through its machine code.

A program has no loop over elements: its way is the shortest one from the entry through every access of elements to the end.
Calls, for operands out of the window of division or root, are longer, and so are the terms of options that are off. Of a
kernel that may have nothing to do, "idle" is the shortest way of all. The part "row" of a way begins at its first shuffle,
"elements" is what comes before; "loop" is a round of the loop of `decide`, over the statistics of 1,024 rows.

    python tests/support/programs.py [--write] FOLDER

prints those of the kernels in a folder that triton_code.py has filled, or writes them into tests/builds/programs.csv, from
which bench/predict_triton.py has them. `python tests/support/triton_code.py --predicted FOLDER sm_80 sm_90 sm_100` fills it
with those of all models of the prediction.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from machine_code import lines_of, resources_of
from rounds import Circuit, Flow, Instruction, class_of, parse

TABLE = Path(__file__).resolve().parents[1] / "builds/programs.csv"


@dataclass(frozen=True, order=True)
class Program:
    """A part of a program. width 0: `decide`, or "decide before" the update."""

    arch: str
    kernel: str
    param: str
    width: int
    rows: int
    aligned: int
    part: str
    threads: int
    registers: int
    shared: int
    instructions: int
    float64: int
    conversions: int
    special: int
    barriers: int
    stored: int  # bytes of a lane

    @property
    def key(self) -> tuple[str | int, ...]:
        return astuple(self)[:7]


def flow_of(binary: Path) -> Flow:
    return Flow([i for _, line in lines_of(binary, "-sass") if (i := parse(line))])


def through(flow: Flow, stops: Iterable[int]) -> list[Instruction]:
    """The instructions of the shortest way from the entry through some blocks to the end."""
    way: Circuit = [0]
    ends = [n for n, block in enumerate(flow.blocks) if block[-1].name == "EXIT"]
    for stop in [*(stop for stop in stops if stop), None]:
        ways = [flow.way(way[-1], to) for to in (ends if stop is None else [stop]) if to != way[-1]]
        if stop is None and way[-1] in ends:
            break
        way += min((found for found in ways if found), key=lambda found: sum(flow.cost[n] for n in found))
    return flow.instructions(way)


def counts(instructions: list[Instruction]) -> dict[str, int]:
    classes = Counter(class_of(i.opcode) for i in instructions)
    return {
        "instructions": len(instructions),
        **{name: classes[name] for name in ("float64", "conversions", "special")},
        "barriers": sum(i.name == "BAR" for i in instructions),
        "stored": sum(i.access_bytes for i in instructions if i.name == "STG" and "128" in i.opcode),
    }


def parts_of(kernel: str, flow: Flow) -> Iterator[tuple[str, list[Instruction]]]:
    if kernel == "decide":
        (loop,) = outer_loops(flow)
        yield "loop", flow.instructions(loop)
    if kernel in ("gate_stats", "correct"):
        yield "idle", through(flow, [])
    if kernel != "correct":
        stores = [n for n, block in enumerate(flow.blocks) if any(i.name == "STG" for i in block)]
        way = through(flow, stores)
        if kernel == "decide":
            yield "row", way
            return
        first = next((at for at, i in enumerate(way) if i.name == "SHFL"), len(way))
        yield "elements", way[:first]
        if way[first:]:
            yield "row", way[first:]


def outer_loops(flow: Flow) -> list[Circuit]:
    """The circuit through the loads of row statistics that divides for a cosine."""
    loads = [n for n, block in enumerate(flow.blocks) if sum(i.name == "LDG" for i in block) >= 4]
    found = [c for n in loads for d in flow.in_double if (c := flow.circuit([n, d]))]
    return [min(found, key=lambda c: sum(flow.cost[n] for n in c))] if found else []


def programs_of(folder: Path, target: str) -> list[Program]:
    """Those of AdamW and AdamP."""
    found = set()
    for kernel in json.loads((folder / f"{target}.json").read_text())["kernels"]:
        constants: dict[str, Any] = kernel["constants"]
        if kernel["kernel"] not in ("step", "gate_stats", "update", "correct", "decide"):
            continue
        if constants.get("RULE", "0") != "0" or kernel["run"].split(", ")[2] not in ("AdamW", "AdamP"):
            continue
        binary = folder / f"{kernel['name']}.cubin"
        ((registers, _, _, shared, _),) = resources_of(binary).values()
        for part, way in parts_of(kernel["kernel"], flow_of(binary)):
            where = [int(constants.get(name, 0)) for name in ("WIDTH", "ROWS", "ALIGNED")]
            own = (
                constants.get("PARAM", constants.get("GRADIENT", "")),
                *where,
                part,
                kernel["threads"],
                registers,
                shared,
            )
            name = kernel["kernel"] + " before" * (constants.get("BEFORE_UPDATE") == "True")
            found.add(Program(target, name, *own, **counts(way)))
    return sorted(found)


def read_table() -> list[Program]:
    with TABLE.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [Program(*row[:3], *map(int, row[3:6]), row[6], *map(int, row[7:])) for row in rows]


def write_table(programs: Iterable[Program]) -> None:
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Program))
        writer.writerows(map(astuple, sorted(programs)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="write tests/builds/programs.csv")
    args = parser.parse_args()
    programs = [p for path in sorted(args.folder.glob("sm_*.json")) for p in programs_of(args.folder, path.stem)]
    if args.write:
        write_table(programs)
    for p in programs:
        print(*astuple(p))


if __name__ == "__main__":
    main()
