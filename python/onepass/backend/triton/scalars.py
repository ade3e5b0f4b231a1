"""The scalars of tensors, by the host or from hyper-parameters that the device reads, and which tensors share them."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ...draws import MASK, step_key
from ...hyperparams import DeviceHyper, Hyper
from ...spec import OptimizerSpec
from . import upload
from .bound_param import BoundParam


class ScalarsUploader:
    """Splits tensors into buckets of equal scalars, and sends the scalars, or the hyper-parameters that they come from."""

    def __init__(self, spec: OptimizerSpec, indices: list[int], bound: list[BoundParam], device: torch.device):
        self.spec, self.indices, self.bound, self.device = spec, indices, bound, device
        self.hypers: list[Hyper] = []  # of the groups, at this step
        self.device_hypers_key: Any = None
        self.numbers: Tensor | None = None  # the device's copies of hyper-parameters that are not tensors
        self.groups: list[int] = []  # of the active tensors
        # Of each bucket of active tensors whose steps the host counts: its group, whether its buffers are new and its
        # gradients negated; and its step counts, in the memory of their tensors, as a call of torch takes longer for each
        # than all else.
        self.buckets: dict[int, tuple[tuple[int, bool, bool], list[ctypes.c_float]]] = {}
        self.counts: dict[int, float] = {}  # of each of these buckets, this step included

    def forget(self) -> None:
        """Has everything sent again, to tables that are new."""
        self.device_hypers_key = None

    # ------------------------------------------------------------------ buckets

    def keys(self) -> list[Any]:
        """What the scalars of each active tensor depend on beside its group's hyper-parameters: equal keys, equal scalars."""
        counted = {
            i: e.step
            for i, e in enumerate(self.bound)
            if e.operands and e.step is not None and not self.device_hyper(e)
        }
        counts = dict(zip(counted, torch.stack([*counted.values()]).tolist() if counted else (), strict=True))
        return [
            None
            if not e.operands
            else ("on device", i)
            if self.device_hyper(e)
            else (e.group, counts.get(i, 0.0) + 1, e.first_step, e.negative)
            for i, e in enumerate(self.bound)
        ]

    def device_hyper(self, e: BoundParam) -> DeviceHyper | None:
        return self.hypers[e.group].device_hyper

    def has_split(self, keys: list[Any]) -> bool:
        """Whether two tensors of one bucket have different scalars."""
        known: dict[int, Any] = {}
        return any(
            [
                key is not None and known.setdefault(e.bucket, key) != key
                for e, key in zip(self.bound, keys, strict=True)
            ]
        )

    def split(self, keys: list[Any]) -> None:
        """Splits the buckets whose tensors have different keys. They are never joined again, so that plans are made seldom."""
        for e, key in zip(self.bound, keys, strict=True):
            e.bucket = e.bucket if key is None and e.bucket is not None else (e.bucket, key)
        numbers: dict[Any, int] = {}
        for e in self.bound:
            e.bucket = numbers.setdefault(e.bucket, len(numbers))

    def look(self) -> None:
        """Looks at the tensors of every bucket, after a change of either."""
        self.groups = [*dict.fromkeys(e.group for e in self.bound if e.operands)]
        self.buckets = {}
        for e in self.bound:
            if e.operands and not self.device_hyper(e):
                _, counts = self.buckets.setdefault(e.bucket, ((e.group, e.first_step, e.negative), []))
                if e.step is not None:
                    counts.append(ctypes.c_float.from_address(e.step.data_ptr()))

    def read_counts(self) -> bool:
        """Reads the step counts; False if two in one bucket differ."""
        for bucket, (_, counts) in self.buckets.items():
            values = [count.value for count in counts] or [0.0]
            if values.count(values[0]) != len(values):
                return False
            self.counts[bucket] = values[0] + 1
        return True

    def count(self) -> None:
        """Counts the step where the host does."""
        for bucket, (_, counts) in self.buckets.items():
            for count in counts:
                count.value = self.counts[bucket]

    # ------------------------------------------------------------------ what is sent

    def send_scalars(self, sent: Any) -> None:
        """Sends the scalars of every bucket whose steps the host counts."""
        from ...triton_kernels.launch import scalars_of

        for group in self.groups if upload.capturing(self.device) else ():
            on_device = self.hypers[group].device_hyper
            if not (on_device and on_device.capturable):
                raise RuntimeError(
                    f"onepass: the stream is being captured into a CUDA graph, but param group {self.indices[group]} has "
                    "capturable=False: the step count and lr of this step would be replayed for ever; use capturable=True"
                )
        known = {}
        for bucket, ((group, first, negated), _) in self.buckets.items():
            h, t = self.hypers[group], self.counts[bucket]
            known[bucket] = scalars_of(h, self.spec.rule, t, first, negated, step_key(h.seed, int(t)))
        if known:
            buckets, width = sent.scalars_table.shape
            rows = [known.get(bucket, [0.0] * width) for bucket in range(buckets)]
            sent.scalars_table = upload.send(rows, torch.float64, width, self.device)

    def send_device_hypers(self, sent: Any) -> None:
        """Sends the addresses of the hyper-parameters of groups whose steps the device counts, if one has changed."""
        from ...triton_kernels.plan import DEVICE_HYPER, FIXED_HYPER

        given_hypers = [h.device_hyper for h in self.hypers]
        if not any(given_hypers):
            return
        given = [[getattr(group, name) if group else 0.0 for name in DEVICE_HYPER] for group in given_hypers]
        key = [self.hypers, [x.data_ptr() if isinstance(x, Tensor) else x for row in given for x in row]]
        if key == self.device_hypers_key:
            return
        upload.refuse_capture(self.device)
        numbers = upload.send(
            [[0.0 if isinstance(x, Tensor) else x for x in row] for row in given],
            torch.float64,
            len(DEVICE_HYPER),
            self.device,
        )
        addresses = [
            [(x.data_ptr(), x.dtype == torch.float64) if isinstance(x, Tensor) else (numbers[i, j].data_ptr(), True)]
            for i, row in enumerate(given)
            for j, x in enumerate(row)
        ]
        self.numbers = numbers
        sent.device_hypers = upload.send(addresses, torch.int64, 2 * len(DEVICE_HYPER), self.device)
        sent.fixed_hypers = upload.send(
            [self.fixed_hyper(h) for h in self.hypers], torch.float64, len(FIXED_HYPER), self.device
        )
        self.device_hypers_key = key

    def fixed_hyper(self, h: Hyper) -> list[float]:
        """The fields of FIXED_HYPER: the values that are constant."""
        group = h.device_hyper
        return [
            *(h.grad_scale, h.dampening, float(h.nesterov), h.eps, h.delta, h.wd_ratio, float(h.proximal)),
            *(float(h.project_momentum and not h.nesterov), float(h.fixed_gate), float(self.spec.rule == "momentum")),
            *(float(group is not None and group.decay == decay) for decay in ("l2", "metric")),
            float(group is not None and group.decouple_lr),
            float(group is not None and group.over_one_minus_momentum),
            *(float(h.seed & MASK), float(h.seed >> 32)),
        ]
