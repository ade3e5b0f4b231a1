"""The plan of the Triton backend, without kernels: every element is in one row, every row in one program."""

from __future__ import annotations

import pytest
import torch
from onepass.triton_kernels.plan import (
    KernelKey,
    Plan,
    TensorDesc,
    config_of,
    itemsize,
    longest,
    plan_of,
)

import onepass
from onepass.backend.triton.bound_param import packs

LENGTHS = [1, 3, 4, 15, 16, 17, 64, 65, 255, 256, 1023, 1024, 1025, 2048, 4096, 4097, 8192, 8193, 20000, 33000]
DTYPES = ["float32", "float64", "bfloat16", "float16"]


def shape(
    dtype: str, rows: int, length: int, projected: bool, aligned: bool = True, bucket: int = 0, moment: str = ""
) -> TensorDesc:
    return TensorDesc(
        KernelKey(dtype, moment or ("float64" if dtype == "float64" else "float32"), "adam"),
        rows,
        length,
        projected,
        projected,
        aligned,
        bucket,
    )


def many(dtype: str) -> list[TensorDesc]:
    """Tensors of every length, projected and not, aligned and not, in two buckets; one without elements."""
    shapes = [
        shape(dtype, rows, length, projected, aligned, bucket)
        for length in LENGTHS
        for rows in (1, 5)
        for projected in (False, True)
        for aligned in (False, True)
        for bucket in (0, 1)
    ]
    return [*shapes, shape(dtype, 1, 0, False)]


def rows_of_tensor(plan: Plan, tensor: int) -> list[tuple[int, int]]:
    """First element and length of every row with elements."""
    owner, start, length, _ = plan.row_table
    mine = (owner == tensor) & (length > 0)
    return list(zip(start[mine].tolist(), length[mine].tolist(), strict=True))


@pytest.mark.parametrize("interpreted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_is_in_one_row(dtype: str, interpreted: bool) -> None:
    shapes = many(dtype)
    plan = plan_of(shapes, interpreted)
    for i, s in enumerate(shapes):
        end = 0
        for start, length in sorted(rows_of_tensor(plan, i)):
            assert start == end
            end += length
            if s.projected:
                assert start // s.length == (end - 1) // s.length, "a row of the table within a row of the tensor"
        assert end == s.rows * s.length


@pytest.mark.parametrize("interpreted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_is_in_one_program_of_its_configuration(dtype: str, interpreted: bool) -> None:
    shapes = many(dtype)
    plan = plan_of(shapes, interpreted)
    visited = torch.zeros(plan.row_table.size(1), dtype=torch.int64)
    for launch in plan.launches:
        width, vector = launch.config
        for first in range(launch.first, launch.first + launch.programs * launch.rows, launch.rows):
            visited[first : first + launch.rows] += 1
            owner, _, length, _ = rows = plan.row_table[:, first : first + launch.rows]
            assert length[0] > 0, "the first row of a program says which bucket it is of"
            there = length > 0
            assert {shapes[i].bucket for i in owner[there].tolist()} == {shapes[int(owner[0])].bucket}
            assert {shapes[i].projected for i in owner[there].tolist()} == {launch.projected}
            assert length.max() <= width
            if vector:
                assert all(shapes[i].aligned for i in owner[there].tolist())
                assert not (rows[1:] * itemsize(dtype) % 16).any()
    assert (visited == 1).all()


@pytest.mark.parametrize("projected", [False, True])
def test_wide_accesses_of_moments_that_are_shorter_than_parameters(projected: bool) -> None:
    """Rows must start and end at 16 bytes of the moments too: 8 elements, where 4 fill 16 bytes of the parameters."""
    for length, wide in ((68, False), (72, True), (1028, False), (1032, True)):
        (launch, *_) = plan_of([shape("float32", 3, length, projected, moment="bfloat16")]).launches
        rows = [3 * length] if not projected else [length]
        assert launch.config.vector == (wide or (not projected and rows[0] % 8 == 0)), length
        assert launch.key.vector == 8


def test_few_launches() -> None:
    """Each takes time of the host: one for tensors without a gate and with elements enough, two with small ones."""
    sizes = [64 * i for i in range(1, 100)]
    assert [x.config for x in plan_of([shape("float32", 1, 2048 * i, False) for i in sizes]).launches] == [(2048, True)]
    assert len(plan_of([shape("float32", 1, i, False) for i in sizes]).launches) == 2
    assert len(plan_of([shape("float32", 3, i, True) for i in sizes]).launches) == 6


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_projected_tensor_are_consecutive(dtype: str) -> None:
    """`decide` relies on this order: row by row, the pieces of a row in order."""
    shapes = many(dtype)
    plan = plan_of(shapes)
    for i, s in enumerate(shapes):
        if s.projected:
            pieces = plan.pieces[i]
            assert pieces == -(-s.length // longest(dtype))
            own = plan.row_table[:, plan.first_row[i] : plan.first_row[i] + s.rows * pieces]
            assert (own[0] == i).all()
            want = [row * s.length + piece * longest(dtype) for row in range(s.rows) for piece in range(pieces)]
            assert own[1].tolist() == want


def test_small_tensors_share_programs() -> None:
    plan = plan_of([shape("float32", 1, 64, False) for _ in range(1000)])
    assert [x.programs for x in plan.launches] == [63]
    assert [x.programs for x in plan_of([shape("float32", 8, 8, True) for _ in range(1000)]).launches] == [500]


def test_launches_have_disjoint_rows() -> None:
    shapes = [shape(dtype, 3, 100, True) for dtype in DTYPES]
    plan = plan_of(shapes)
    assert {x.key for x in plan.launches} == {s.key for s in shapes}
    ends = sorted((x.first, x.first + x.rows * x.programs) for x in plan.launches)
    assert [a for a, _ in ends[1:]] == [b for _, b in ends[:-1]]


def test_offsets_are_64_bits_wide() -> None:
    huge = shape("bfloat16", 3, 2**31 + 8, True)
    plan = plan_of([huge])
    assert int((plan.row_table[1] + plan.row_table[2]).max()) == huge.rows * huge.length
    flat = shape("float32", 1, 2**32 + 8, False)
    assert int((plan_of([flat]).row_table[:3].sum(0)).max()) == flat.length


@pytest.mark.parametrize("length", [length for length in LENGTHS if length <= 8192])
def test_width_of_a_configuration(length: int) -> None:
    for aligned in (False, True):
        width, vector = config_of(shape("float32", 1, length, True).key, length, True, aligned)
        assert length <= width <= max(16, 4 * length) and vector <= aligned


@pytest.mark.parametrize("operand", ["none", "p", "g", "exp_avg", "exp_avg_sq"])
def test_a_tensor_is_aligned_if_all_its_operands_are(operand: str) -> None:
    """A 16-byte access to an unaligned operand works in the interpreter and traps on a GPU."""

    def placed(offset: int) -> torch.Tensor:
        memory = torch.zeros(64 + 8)
        offset += -memory.data_ptr() // 4 % 4
        return memory[offset : offset + 64].view(4, 16)

    p = placed(int(operand == "p"))
    opt = onepass.AdamW([p], backend="triton")
    p.grad = placed(int(operand == "g"))
    opt.state[p] = {key: placed(int(operand == key)) for key in ("exp_avg", "exp_avg_sq")}
    opt.state[p]["step"] = torch.zeros(())
    opt.step()
    (shape_of_p,) = opt._execution.backends[0].tables.structure
    assert shape_of_p.aligned == (operand == "none")


@pytest.mark.parametrize(
    ("shape", "strides", "packed", "rows_outermost"),
    [
        ((4, 5), (5, 1), True, True),
        ((4, 5), (1, 4), True, False),
        ((4, 5), (6, 1), False, False),
        ((4, 5), (5, 2), False, False),
        ((4, 1, 5), (5, 77, 1), True, True),  # a dimension of one element may have any stride
        ((1, 5), (99, 1), True, True),
        ((1, 5), (1, 2), False, False),
        ((5, 1), (1, 3), True, True),
        ((4, 3, 2), (6, 1, 3), True, True),
        ((4, 3, 2), (1, 4, 12), True, False),
        ((), (), True, True),
    ],
)
def test_packs(shape, strides, packed, rows_outermost) -> None:
    """Other parameters are gathered and scattered at every step."""
    assert packs(shape, strides, projected=False) == packed
    if shape:
        assert packs(shape, strides, projected=True) == rows_outermost


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("length", [64, 300, 2049, 8192, 20000])
def test_blocks_are_not_cut(length: int, projected: bool) -> None:
    """Tensors with moments of 8 bits are cut by rows, in pieces of whole blocks of 256, whether they are projected or not."""
    plan = plan_of([shape("bfloat16", 5, length, projected, moment="uint8")])
    rows = rows_of_tensor(plan, 0)
    assert sum(own for _, own in rows) == 5 * length
    for start, own in rows:
        assert start % length % 256 == 0 and (own % 256 == 0 or (start + own) % length == 0)
        assert start // length == (start + own - 1) // length
    assert plan.pieces[0] == len(rows) // 5
    assert KernelKey("float32", "uint8", "adam").vector == 16
