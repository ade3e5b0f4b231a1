"""Reads of tensors past DLPack's exchange table, which takes ten times as long: what csrc/direct_reads.h reads with.

A Python object of torch.Tensor holds an at::Tensor, and a pointer to one is the handle that torch's stable C interface takes.
Its place in the object is found by comparing with a handle that torch makes. Such a handle would do for a step too, but as an
owner: torch then refuses `torch.utils.swap_tensors`, and the memory outlives the tensor.

Nothing is taken for granted: where a function is missing, or says anything else than torch of some tensor, the table is used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..torch_compat import TENSOR_READS, handle_of, torch_library

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int16)
CPU = 0  # the number of torch's CPU
_RESULTS: dict[str, Any] = {
    "data_ptr": ctypes.c_void_p,
    "dim": ctypes.c_int64,
    "sizes": ctypes.POINTER(ctypes.c_int64),
    "strides": ctypes.POINTER(ctypes.c_int64),
    "dtype": ctypes.c_int32,
    "device_type": ctypes.c_int32,
    "device_index": ctypes.c_int32,
}


def find() -> dict[str, int]:
    """The offset in an object, the addresses of the functions, torch's numbers of dtypes; empty if the proof fails."""
    try:
        library = torch_library()
        functions: dict[str, Any] = {name: library[symbol] for name, symbol in TENSOR_READS.items()}
        functions["is_neg"].restype = ctypes.c_bool
        offset = _offset()
        dtypes = {
            dtype: _read(functions, offset, torch.empty(1, dtype=dtype, device="cpu"))["dtype"] for dtype in DTYPES
        }
        for t in _examples():
            if _read(functions, offset, t) != _expected(t, dtypes):
                return {}
    except Exception:  # whatever it is that this torch has otherwise
        return {}
    addresses = {name: ctypes.cast(function, ctypes.c_void_p).value or 0 for name, function in functions.items()}
    numbers = {str(dtype).removeprefix("torch."): number for dtype, number in dtypes.items()}
    return {"offset": offset, **addresses, **numbers}


def _offset() -> int:
    """Where in the object of a tensor its at::Tensor is, which is one pointer."""
    t = torch.empty(1, device="cpu")
    with handle_of(t) as handle:
        held = _word(handle)
    size = ctypes.sizeof(ctypes.c_void_p)
    (offset,) = [i for i in range(0, torch.Tensor.__basicsize__, size) if _word(id(t) + i) == held]
    return offset


def _word(address: int) -> int | None:
    return ctypes.c_void_p.from_address(address).value


def _read(functions: dict[str, Any], offset: int, t: Tensor) -> dict[str, Any]:
    """What the functions say of a tensor."""
    tensor = ctypes.c_void_p(id(t) + offset)
    said: dict[str, Any] = {}
    for name, kind in _RESULTS.items():
        out = kind()
        if functions[name](tensor, ctypes.byref(out)) != 0:
            raise RuntimeError(name)
        said[name] = out[: said["dim"]] if name in ("sizes", "strides") else out.value
    del said["device_index"]  # of the CPU it means nothing
    return {**said, "is_neg": functions["is_neg"](tensor)}


def _expected(t: Tensor, dtypes: dict[torch.dtype, int]) -> dict[str, Any]:
    """What torch says of a tensor of the CPU."""
    return {
        "data_ptr": t.data_ptr(),
        "dim": t.dim(),
        "sizes": [*t.shape],
        "strides": [*t.stride()],
        "dtype": dtypes[t.dtype],
        "device_type": CPU,
        "is_neg": t.is_neg(),
    }


def _examples() -> Iterator[Tensor]:
    """Tensors of all kinds, and one to which everything happens that a step has to see."""
    for dtype in DTYPES:
        yield torch.empty(2, 3, dtype=dtype, device="cpu")
    yield torch.tensor(1.0, device="cpu")
    yield torch.nn.Parameter(torch.empty(3, 2, 4, device="cpu").permute(2, 0, 1))
    complex_numbers = torch.zeros(4, dtype=torch.complex64, device="cpu")
    yield complex_numbers.conj().imag
    t = torch.empty(6, device="cpu")
    yield t
    t.data = torch.empty(2, 3, 2, device="cpu")[1:]
    yield t
    t.data = complex_numbers.conj().imag
    yield t
    t.data = complex_numbers.imag
    yield t
    t.set_(torch.empty(4, 2, device="cpu"))  # type: ignore[call-overload]
    yield t
    t.t_()
    yield t
    other = torch.empty(5, dtype=torch.float64, device="cpu")
    torch.utils.swap_tensors(t, other)  # type: ignore[no-untyped-call]
    yield t
    yield other


FOUND = find()
