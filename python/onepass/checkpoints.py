"""State dicts, copies and pickles of an optimizer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch

from .blocks import SCALE, decoded, has_scales
from .checkpoint_state import prepare
from .execution_state import ExecutionState
from .forks import one_thread_after_fork
from .masters import MASTER
from .spec import OptimizerSpec
from .torch_compat import TorchOptimizer, like_local, local_of


class Checkpointed(TorchOptimizer):
    """The part of an optimizer that saves and restores it."""

    spec: ClassVar[OptimizerSpec]
    _execution: ExecutionState

    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim, without momentum buffers of SGD with which no step was taken. The groups of the Adam family
        have torch's flag of decoupled weight decay, so that Adam and AdamW refuse each other's. A state_dtype is there by its name:
        torch.distributed.checkpoint gathers and offloads no groups with dtypes in them."""
        self._drop_unstepped()
        saved = super().state_dict()
        for group in saved["param_groups"]:
            if isinstance(group.get("state_dtype"), torch.dtype):
                group["state_dtype"] = str(group["state_dtype"]).removeprefix("torch.")
            if self.spec.rule == "adam":
                group["decoupled_weight_decay"] = self.spec.decoupled
        return saved

    def state_dict_for(self, library: Literal["torch"]) -> dict[str, Any]:
        """The state dict that the class of torch.optim of the same name, or of the same rule, loads: `state_dict()` without the entries that torch
        would cast to the parameter's dtype, which are the remainders of `master_weights` and the gate counters, and with moments of 8
        bits as float32.

        Raises ValueError for another library.
        """
        if library != "torch":
            raise ValueError(f"library must be 'torch', got {library!r}")
        saved = self.state_dict()
        saved["state"] = {
            number: self._state_for_torch(entries) if isinstance(entries, dict) else entries
            for number, entries in saved["state"].items()
        }
        return saved

    def _state_for_torch(self, entries: dict[str, Any]) -> dict[str, Any]:
        scales = {key + SCALE: key for key in self.spec.moments if has_scales(entries.get(key))}
        own = (MASTER, "gate_counter", *scales, *([] if self.spec.counted else ["step"]))
        kept = {key: value for key, value in entries.items() if key not in own}
        for scale, key in scales.items():
            number = decoded(local_of(entries[key]), local_of(entries[scale]), signed=key != "exp_avg_sq")
            kept[key] = like_local(number, entries[key])
        return kept

    def _drop_unstepped(self) -> None:
        """Drops the lazy buffers with which no step was taken, as when a gradient scaler has skipped the first one on a
        device: loaded, they would not be new any more, and the first gradient would be dampened."""
        unstepped = self._execution.unstepped(self.state)
        for p in unstepped:
            own = self.state[p]
            for key in self.spec.moments:
                own.pop(key, None)
            if not own:
                self.state.pop(p)
        if unstepped:
            self._execution.forget()

    def __getstate__(self) -> dict[str, Any]:
        self._drop_unstepped()
        return {
            "defaults": self.defaults,
            "state": self.state,
            "param_groups": self.param_groups,
            "counts_on_device": self._execution.counts_on_device,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not hasattr(self, "_execution"):
            self._execution = ExecutionState()
        execution = self._execution
        state = dict(state)
        execution.counts_on_device = state.pop("counts_on_device", execution.counts_on_device)
        if execution.loading is not None:
            state["state"] = execution.loading.state
            with torch.no_grad():
                for p, x in execution.loading.parameters:
                    local_of(p).copy_(x)
        defaults = dict(state.get("defaults") or self.defaults)
        super().__setstate__(state)
        self.defaults = defaults  # torch adds an argument of its own
        execution.forget()
        for group in self.param_groups:
            for name, value in defaults.items():
                group.setdefault(name, value)

    @one_thread_after_fork
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class, of the torch.optim class of the same name, or of the adamp package's.

        Unlike torch's base class, which casts moments to the parameter's dtype, this keeps them in the dtype of arithmetic,
        so that they are restored bit for bit.

        As in torch, the values of a group in the state dict replace those of the group here, except backend, capturable,
        master_weights, state_dtype and stochastic_rounding: what is stored otherwise is converted.
        Values that it lacks stay, except decouple_lr: a state dict of torch's or adamp's has its weight_decay in torch's
        convention, and so decouple_lr becomes False.

        The exact weights of a state dict, `master_param`, are the remainders of parameters, int16,
        or the weights, float32, which are written to the parameters too; without master_weights they are dropped, and parameters
        stay as they are.

        Raises ValueError or TypeError, before anything has changed, if the state dict has an option that this class does not
        implement (`amsgrad=True`, say, or the decay of Adam in AdamW), if a state does not have the parameter's shape, or
        if the state or the arguments are not those of such an optimizer.
        """

        def prepared(_: Any, final: dict[str, Any]) -> dict[str, Any] | None:
            execution = self._execution
            with torch.inference_mode(False):  # or no later step could write to the state
                execution.loading = prepare(
                    self.spec, type(self).__name__, self.param_groups, self.defaults, execution.counts_on_device, final
                )
            if execution.loading is None:
                return None
            return {**final, "state": {}, "param_groups": execution.loading.groups}

        # Registered last, so that it gets the state dict from all other pre-hooks.
        handle = self.register_load_state_dict_pre_hook(prepared)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._execution.loading = None
