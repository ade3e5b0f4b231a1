"""The Adam family of "Understanding AdamW through Proximal Methods and Scale-Freeness" (TMLR 2022).

All of them, for a parameter p with gradient g and its own step count t:

    m = b1*m + (1-b1)*g            v = b2*v + (1-b2)*g^2
    D = sqrt(v)/sqrt(1-b2^t) + eps
    u = m/D                        s = lr/(1-b1^t)

and differ in where the weight decay wd enters.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .hyper import Rule
from .optimizer import Optimizer, ParamsT

MOMENTS = ("exp_avg", "exp_avg_sq")


class _AdamLike(Optimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        decouple_lr: bool = False,
        capturable: bool = False,
        backend: str = "auto",
    ):
        defaults: dict[str, Any] = dict(
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            decouple_lr=decouple_lr,
            capturable=capturable,
            backend=backend,
        )
        super().__init__(params, defaults)


_ARGUMENTS = """
    Args:
        params: tensors of float16, bfloat16, float32 or float64, any dense layout, or param groups (dicts).
        lr: learning rate, a number or a tensor of one number.
        betas: decay rates of m and v, each in [0, 1).
        eps: added to the denominator, after the bias correction. With 0, a coordinate whose v is 0 is left alone.
        weight_decay: wd, at least 0.
        maximize: ascend instead of descend.
        decouple_lr: the paper's convention of wd: the decay is (lr/initial_lr)*wd instead of lr*wd, initial_lr being
            the group's lr when it was added. A wd of this convention is initial_lr times one of torch's.
        capturable: keep step counts on the device and read lr, weight_decay, betas and momentum there where they are
            tensors on it, so that a step captured into a CUDA graph replays with their values of the day.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; see `onepass.backends()`.

    Moments are float32, and float64 for float64 parameters. Raises ValueError, TypeError or RuntimeError, naming the
    group and the argument or parameter, on anything it cannot step; nothing has been written then."""


class Adam(_AdamLike):
    """Adam with l2 regularization (Adam-l2): `g = g + wd*p` before the moments, then `p = p - s*u`.

    Source: Kingma and Ba, "Adam", arXiv 1412.6980; called Adam-l2 in arXiv 2202.00089, Alg. 1. The same as
    torch.optim.Adam. decouple_lr changes nothing here: this wd is not multiplied by lr.
    """

    rule = Rule(family="adam", moments=MOMENTS, decay="l2")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        **options: Any,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, **options)


class AdamW(_AdamLike):
    """Adam with decoupled weight decay: `p = (1 - lr*wd)*p - s*u`.

    Source: arXiv 1711.05101; arXiv 2202.00089, Alg. 1. The same as torch.optim.AdamW.
    """

    rule = Rule(family="adam", moments=MOMENTS, decay="decoupled")


class AdamProx(_AdamLike):
    """Adam with proximal weight decay: `p = (p - s*u) / (1 + lr*wd)`.

    Source: arXiv 2202.00089, Alg. 2. Never overshoots zero, for any wd; AdamW is its first-order approximation.
    """

    rule = Rule(family="adam", moments=MOMENTS, decay="proximal")


class AdamProxL2(_AdamLike):
    """Adam with the l2 prox in Adam's own metric: `p = (p - s*u) / (1 + lr*wd/D)`, elementwise.

    The minimum over x of `D*(x - y)^2/(2*lr) + wd*x^2/2` with `y = p - s*u`. Source: arXiv 2202.00089, section 3. Not
    scale-free. Computed as `p - (s*m + lr*wd*p)/(D + lr*wd)`, which is the same and takes one division.
    """

    rule = Rule(family="adam", moments=MOMENTS, decay="proximal_l2")


for _class in (Adam, AdamW, AdamProx, AdamProxL2):
    _class.__doc__ = f"{_class.__doc__ or ''}{_ARGUMENTS}"
