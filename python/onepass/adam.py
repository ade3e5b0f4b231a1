"""The Adam family of "Understanding AdamW through Proximal Methods and Scale-Freeness" (TMLR 2022).

All of them, for a parameter p with gradient g and its own step count t:

    m = b1*m + (1-b1)*g            v = b2*v + (1-b2)*g^2
    D = sqrt(v)/sqrt(1-b2^t) + eps
    u = m/D                        s = lr/(1-b1^t)

and differ in where the weight decay wd enters.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .backend.registry import BackendName
from .docstrings import ADAM, AMSGRAD, COMMON, DECOUPLED, documented
from .optimizer import Optimizer, ParamsT
from .precision import StateDtype
from .spec import OptimizerSpec

MOMENTS = ("exp_avg", "exp_avg_sq")


@documented(ADAM, AMSGRAD, DECOUPLED, COMMON)
class Adam(Optimizer):
    """Adam with l2 regularization (Adam-l2): `g = g + wd*p` before the moments, then `p = p - s*u`.

    Source: Kingma and Ba, "Adam", arXiv 1412.6980; called Adam-l2 in arXiv 2202.00089, Alg. 1. The same as
    torch.optim.Adam. decouple_lr changes nothing here: this wd is not multiplied by lr.
    """

    spec = OptimizerSpec(rule="adam", moments=MOMENTS, decay="l2")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 0,
        amsgrad: Literal[False] = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: Literal[False] = False,
        decoupled_weight_decay: Literal[False] = False,
        decouple_lr: bool = False,
        master_weights: bool = False,
        state_dtype: StateDtype = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        capturable: bool = False,
        backend: BackendName = "auto",
    ):
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                amsgrad=amsgrad,
                maximize=maximize,
                foreach=foreach,
                fused=fused,
                differentiable=differentiable,
                decoupled_weight_decay=decoupled_weight_decay,
                decouple_lr=decouple_lr,
                master_weights=master_weights,
                state_dtype=state_dtype,
                stochastic_rounding=stochastic_rounding,
                seed=seed,
                capturable=capturable,
                backend=backend,
            ),
        )


@documented(ADAM, AMSGRAD, COMMON)
class AdamW(Optimizer):
    """Adam with decoupled weight decay: `p = (1 - lr*wd)*p - s*u`.

    Source: arXiv 1711.05101; arXiv 2202.00089, Alg. 1. The same as torch.optim.AdamW.
    """

    spec = OptimizerSpec(rule="adam", moments=MOMENTS, decay="decoupled")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        amsgrad: Literal[False] = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: Literal[False] = False,
        decouple_lr: bool = False,
        master_weights: bool = False,
        state_dtype: StateDtype = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        capturable: bool = False,
        backend: BackendName = "auto",
    ):
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                amsgrad=amsgrad,
                maximize=maximize,
                foreach=foreach,
                fused=fused,
                differentiable=differentiable,
                decouple_lr=decouple_lr,
                master_weights=master_weights,
                state_dtype=state_dtype,
                stochastic_rounding=stochastic_rounding,
                seed=seed,
                capturable=capturable,
                backend=backend,
            ),
        )


@documented(ADAM, AMSGRAD, COMMON)
class AdamProx(Optimizer):
    """Adam with proximal weight decay: `p = (p - s*u) / (1 + lr*wd)`.

    Source: arXiv 2202.00089, Alg. 2. Never overshoots zero, for any wd; AdamW is its first-order approximation.
    """

    spec = OptimizerSpec(rule="adam", moments=MOMENTS, decay="proximal")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        amsgrad: Literal[False] = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: Literal[False] = False,
        decouple_lr: bool = False,
        master_weights: bool = False,
        state_dtype: StateDtype = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        capturable: bool = False,
        backend: BackendName = "auto",
    ):
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                amsgrad=amsgrad,
                maximize=maximize,
                foreach=foreach,
                fused=fused,
                differentiable=differentiable,
                decouple_lr=decouple_lr,
                master_weights=master_weights,
                state_dtype=state_dtype,
                stochastic_rounding=stochastic_rounding,
                seed=seed,
                capturable=capturable,
                backend=backend,
            ),
        )


@documented(ADAM, AMSGRAD, COMMON)
class AdamProxL2(Optimizer):
    """Adam with the l2 prox in Adam's own metric: `p = (p - s*u) / (1 + lr*wd/D)`, elementwise.

    The minimum over x of `D*(x - y)^2/(2*lr) + wd*x^2/2` with `y = p - s*u`. Source: arXiv 2202.00089, section 3. Not
    scale-free. Computed as `p - (s*m + lr*wd*p)/(D + lr*wd)`, which is the same and takes one division.
    """

    spec = OptimizerSpec(rule="adam", moments=MOMENTS, decay="proximal_l2")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        amsgrad: Literal[False] = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: Literal[False] = False,
        decouple_lr: bool = False,
        master_weights: bool = False,
        state_dtype: StateDtype = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        capturable: bool = False,
        backend: BackendName = "auto",
    ):
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                amsgrad=amsgrad,
                maximize=maximize,
                foreach=foreach,
                fused=fused,
                differentiable=differentiable,
                decouple_lr=decouple_lr,
                master_weights=master_weights,
                state_dtype=state_dtype,
                stochastic_rounding=stochastic_rounding,
                seed=seed,
                capturable=capturable,
                backend=backend,
            ),
        )
