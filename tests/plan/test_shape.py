"""The launch layout of csrc/cuda/launch_layout.cpp: how tensors are cut into items, and which items blocks and warps step.

Nothing is allocated, so tensors may have any size and devices any properties."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from emulated_backend import emulated

F32, F64, BF16 = 0, 1, 2
LANES = {F32: 4, F64: 2, BF16: 4}
SHARED_STORAGE, BLOCK, WARP = (emulated.limits[name] for name in ("shared_storage", "block", "warp"))


class Device(NamedTuple):
    """Number of multiprocessors, shared memory of each, and the maximum per block."""

    multiprocessors: int
    shared: int
    per_block: int


DEVICES = {
    "A100": Device(108, 167936, 166912),
    "sm_86": Device(82, 102400, 101376),
    "sm_89": Device(128, 102400, 101376),
    "H100": Device(132, 233472, 232448),  # and H200
}


@pytest.fixture(params=DEVICES, autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    names = ("multiprocessors", "shared_per_multiprocessor", "shared_per_block")
    kept = [getattr(emulated.device, name) for name in names]
    chosen = DEVICES[request.param]
    for name, value in zip(names, chosen, strict=True):
        setattr(emulated.device, name, value)
    yield chosen
    for name, value in zip(names, kept, strict=True):
        setattr(emulated.device, name, value)


class Item(NamedTuple):
    tensor: int
    row: int
    rows: int
    begin: int
    end: int


class Tensor(NamedTuple):
    dtype: int
    shape: list[int]
    projected: bool = True
    packed: bool = True

    @property
    def rows(self) -> int:
        return self.shape[0] if self.projected else 1

    @property
    def length(self) -> int:
        return math.prod(self.shape) // self.rows


def laid_out(*tensors: Tensor) -> tuple[int, int, list[Item]]:
    room, block_items, items = emulated.launch_layout_of([tuple(t) for t in tensors])
    return room, block_items, [Item(*item) for item in items]


def slots(t: Tensor, room: int) -> int:
    """Vectors of p and of u per thread of a block in the row cache."""
    lanes = LANES[t.dtype] if t.packed else 1
    return room // (2 * (8 if t.dtype == F64 else 4) * lanes * BLOCK)


def kept(t: Tensor, room: int, threads: int) -> int:
    """Longest row that `threads` can cache at any alignment: one vector less than there are slots."""
    return (slots(t, room) * threads - 1) * (LANES[t.dtype] if t.packed else 1)


def assert_every_element_once(tensors: list[Tensor], items: list[Item]) -> None:
    """The items of a tensor are consecutive, row by row, and piece by piece within a row."""
    runs = [(tensor, list(run)) for tensor, run in itertools.groupby(items, lambda item: item.tensor)]
    by_tensor = dict(runs)
    assert len(by_tensor) == len(runs), "the items of a tensor lie side by side"
    for i, t in enumerate(tensors):
        row = begin = 0
        for item in by_tensor.get(i, []):
            assert (item.row, item.begin) == (row, begin)
            assert item.rows >= 1 and begin < item.end <= t.length
            assert item.rows == 1 or (item.begin, item.end) == (0, t.length), "a piece is of one row"
            begin = item.end % t.length
            row += 0 if begin else item.rows
        assert (row, begin) == (t.rows if math.prod(t.shape) else 0, 0)


MIXED = [
    Tensor(F32, [1024, 1024]),
    Tensor(F32, [64], projected=False),
    Tensor(F32, [0, 5], projected=False),
    Tensor(BF16, [3, 50_001]),
    Tensor(F64, [8, 8]),
    Tensor(F32, [1_000_003], projected=False),
    Tensor(F32, [512, 512, 3, 3]),
    Tensor(F32, [100_000, 9]),
    Tensor(F32, [30, 7], packed=False),
    Tensor(F64, [7, 3000]),
    Tensor(F32, [1, 1]),
    Tensor(BF16, [2049, 1]),
]


def test_every_element_is_in_one_item() -> None:
    assert_every_element_once(MIXED, laid_out(*MIXED)[2])
    for t in MIXED:
        assert_every_element_once([t], laid_out(t)[2])


@pytest.mark.parametrize("dtype", [F32, F64, BF16])
@pytest.mark.parametrize("packed", [True, False])
def test_rows_that_fit_stay_whole(dtype: int, packed: bool) -> None:
    """Longer rows are cut into pieces of the longest length that fits."""
    some = Tensor(dtype, [3, 1], packed=packed)
    lanes = LANES[dtype] if packed else 1
    for length in (1, 1000, kept(some, laid_out(some)[0], BLOCK)):
        t = Tensor(dtype, [3, length], packed=packed)
        assert {(item.begin, item.end) for item in laid_out(t)[2]} == {(0, length)}
    t = Tensor(dtype, [3, 10**6], packed=packed)
    room, _, items = laid_out(t)
    largest = max(item.end - item.begin for item in items)
    assert largest == kept(t, room, BLOCK)
    # With a partial vector at each end it takes all slots.
    assert -(-(largest + lanes - 1) // lanes) <= slots(t, room) * BLOCK


def cached_alone(t: Tensor, room: int) -> int:
    """Longest row of which u alone fits, at any alignment."""
    return (2 * slots(t, room) * BLOCK - 1) * LANES[t.dtype]


def resident(room: int, device: Device) -> int:
    """Blocks that share a multiprocessor. Static shared memory and the driver's reserve are included."""
    return device.shared // (room + SHARED_STORAGE + emulated.device.shared_reserved)


def test_row_cache_of_four_blocks_or_fewer(device: Device) -> None:
    """Four resident blocks; fewer if that keeps more rows on the chip, whole or their u. A room is as large as they allow."""
    one = Tensor(F32, [1, 1])
    quarter, _, _ = laid_out(Tensor(F32, [3, 1000]))
    assert quarter > 0 and quarter % 4096 == 0
    assert resident(quarter, device) == 4 and resident(quarter + 4096, device) == 3

    # A little fewer resident blocks cost less than to read p again; half as many more.
    third, _, items = laid_out(Tensor(F32, [3, kept(one, quarter, BLOCK) + 1]))
    assert resident(third, device) == 3 and {(item.begin, item.rows) for item in items} <= {(0, 1), (0, 2), (0, 3)}
    room, _, items = laid_out(Tensor(F32, [3, cached_alone(one, third)]))
    assert resident(room, device) == 3 and all(item.begin == 0 for item in items)
    half, _, items = laid_out(Tensor(F32, [3, cached_alone(one, third) + 1]))
    assert resident(half, device) == 2 and all(item.begin == 0 for item in items)
    assert half + SHARED_STORAGE <= device.per_block

    # Four for a row that would be cut anyway, and for one without row sums.
    for t in (Tensor(F32, [3, cached_alone(one, half) + 1]), Tensor(F32, [100_000], False)):
        assert laid_out(t)[0] == quarter


@pytest.mark.parametrize("device", ["H100"], indirect=True)
@pytest.mark.parametrize("length", [11_008, 14_336, 18_944])
def test_down_projections_of_llama_stay_whole(length: int) -> None:
    _, _, items = laid_out(Tensor(F32, [4096, length]))
    assert {(item.begin, item.end) for item in items} == {(0, length)}


def test_small_tensors_go_to_warps() -> None:
    """Packed tensors of up to 2,048 elements whose rows fit a warp's share of the row cache. Their items come last."""
    small = [Tensor(F32, [64], False), Tensor(F32, [8, 8]), Tensor(F32, [2048], False), Tensor(BF16, [32, 64])]
    large = [Tensor(F32, [2049], False), Tensor(F32, [33, 64]), Tensor(F32, [8, 8], packed=False)]
    _, block_items, items = laid_out(*small, *large, *small)
    assert {item.tensor for item in items[:block_items]} == {4, 5, 6}
    assert {item.tensor for item in items[block_items:]} == {0, 1, 2, 3, 7, 8, 9, 10}


def test_rows_too_long_for_a_warp_go_to_blocks() -> None:
    room, _, _ = laid_out(Tensor(F64, [1, 1]))
    most = kept(Tensor(F64, [1, 1]), room, WARP)
    assert laid_out(Tensor(F64, [1, min(most, 2048)]))[1] == 0
    if most < 2048:
        assert laid_out(Tensor(F64, [1, most + 1]))[1] == 1


def test_blocks_are_fewer_where_their_lanes_would_be_idle(device: Device) -> None:
    """A row of 768 would leave a quarter of a block without a vector, and fills a warp that keeps six vectors a lane."""
    room, _, _ = laid_out(Tensor(F32, [5000, 768]))
    assert slots(Tensor(F32, [1, 1]), room) >= 6
    assert device.shared // (room + SHARED_STORAGE + 1024) == (3 if device.shared < 110_000 else 4)


def test_item_sizes_of_blocks() -> None:
    """About 8,192 elements; rows too long for a warp as many as come closest; short rows a multiple of the number of warps."""
    for t in (
        Tensor(F32, [10**7], False),
        Tensor(F32, [5000, 1024]),
        Tensor(F32, [10**6, 9]),
        Tensor(F32, [500, 2500]),
    ):
        room, _, items = laid_out(t)
        sizes = [item.rows * (item.end - item.begin) for item in items]
        if t.projected and t.length > kept(t, room, WARP):
            assert all(abs(size - 8192) <= t.length / 2 for size in sizes[:-1])
        else:
            assert all(4096 < size <= 8192 for size in sizes[:-1])
    _, _, items = laid_out(Tensor(F32, [10**6, 9]))
    assert all(item.rows % (BLOCK // WARP) == 0 for item in items[:-1])


# ------------------------------------------------------------------ tensors larger than memory


@pytest.mark.parametrize("shape", [[100_000_000], [1, 100_000_000], [2, 100_000_000]])
def test_rows_of_a_hundred_million(shape: list[int]) -> None:
    t = Tensor(F32, shape, projected=len(shape) > 1)
    room, _, items = laid_out(t)
    assert_every_element_once([t], items)
    assert len(items) > 1000
    assert max(item.end - item.begin for item in items) <= max(8192, kept(t, room, BLOCK))


@pytest.mark.parametrize("device", ["H100"], indirect=True)
@pytest.mark.parametrize("shape", [[3, 2**30 + 7], [400_000, 8191], [2**31 + 5]])
def test_more_than_2_to_the_31_elements(shape: list[int]) -> None:
    t = Tensor(BF16, shape, projected=len(shape) > 1)
    _, _, items = laid_out(t)
    assert_every_element_once([t], items)
    assert items[-1].row * t.length + items[-1].end > 2**31
