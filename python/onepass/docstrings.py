"""The arguments that several classes take, documented once and added to the docstring of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T", bound=type)

ADAM = """

    Args:
        params: tensors of float16, bfloat16, float32 or float64, any dense layout; pairs of a name and a tensor
            (`model.named_parameters()`), which messages then name; or param groups (dicts).
        lr: learning rate, a number or a tensor of one number.
        betas: decay rates of m and v, each in [0, 1).
        eps: added to the denominator, after the bias correction. With 0, a coordinate whose v is 0 is left alone.
        weight_decay: wd, at least 0."""

AMSGRAD = """
        amsgrad: False; the maximum of v is not implemented."""

DECOUPLED = """
        decoupled_weight_decay: False; True is `onepass.AdamW`."""

COMMON = """
        maximize: ascend instead of descend.
        foreach, fused: None, True or False, as torch takes them; they change nothing, since every step is fused.
        differentiable: False; a step that autograd records is not implemented.
        decouple_lr: the convention of wd of arXiv 2202.00089: the decay is multiplied by lr/initial_lr instead of lr,
            initial_lr being the group's lr when it was added. A wd of this convention is initial_lr times one of
            torch's. It changes nothing where the decay enters the gradient (Adam, SGD).
        master_weights: step bfloat16 parameters as exact float32 weights: the parameter is the nearest bfloat16, and an int16
            remainder in the state, `master_param`, holds the rest; see `master` and `set_master`. Parameters of float32
            and float64 are exact anyway; those of float16 are refused.
        state_dtype: the dtype of the moments: None or torch.float32, or torch.bfloat16, in which the first is rounded to
            nearest and the second stochastically; or for Adam and its kin "8bit", which rounds likewise, relative to an exponent
            of 256 elements: torch.uint8 with scales in `exp_avg_scale` and `exp_avg_sq_scale`, but float32 for tensors of fewer
            than 4096 elements and vectors of fewer than 65536, and torch.bfloat16 where rows, the indices of dim 0, have fewer
            than 64. float64 parameters have moments of float64, and take None alone; those of float16 take None and
            torch.float32.
        stochastic_rounding: round bfloat16 parameters up or down at random, so that on average no update is lost. Not with
            master_weights, and not for parameters of float16.
        seed: of the random bits, an int from 0 to 2**64 - 1. They are a hash of it, the parameter's step count and number and
            the element's place; no generator of torch is touched.
        capturable: keep step counts on the device and read lr, weight_decay, betas and momentum there where they are
            tensors on it, so that replaying a captured CUDA graph uses their current values.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; see `onepass.backends()`.

    Raises TypeError on an argument that the class does not have,
    and ValueError, TypeError or RuntimeError, naming the group and the argument or parameter, on anything it cannot
    step, before anything is written. Warns of keys of param groups that it does not read."""

EXAMPLE = """

    Example:
        >>> import torch
        >>> import onepass
        >>> model = torch.nn.Linear(8, 2)
        >>> opt = onepass.{name}(model.parameters(), lr=1e-3)
        >>> model(torch.ones(4, 8)).square().mean().backward()
        >>> opt.step()
        >>> opt.zero_grad()
"""


def documented(*sections: str) -> Callable[[T], T]:
    """Adds sections and an example to the docstring of a class, which ends with its own arguments."""

    def add(cls: T) -> T:
        cls.__doc__ = f"{(cls.__doc__ or '').rstrip()}{''.join(sections)}{EXAMPLE.format(name=cls.__name__)}"
        return cls

    return add
