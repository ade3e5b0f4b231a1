"""SGD as torch has it, and SGDP: SGD whose update is projected off scale-invariant weights."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from .backend.registry import BackendName
from .docstrings import COMMON, documented
from .hyperparams import Decay, Projection
from .optimizer import Optimizer, ParamsT
from .precision import StateDtype
from .spec import OptimizerSpec


@documented(COMMON)
class SGD(Optimizer):
    """SGD with momentum and coupled weight decay.

        g = g + wd*p
        b = g at the first step, then momentum*b + (1-dampening)*g
        u = b, or g + momentum*b with nesterov;   p = p - lr*u

    With momentum 0 there is no buffer and u = g. The same as torch.optim.SGD.

    Args:
        params: tensors of float16, bfloat16, float32 or float64, any dense layout; pairs of a name and a tensor
            (`model.named_parameters()`), which messages then name; or param groups (dicts).
        lr: learning rate, a number or a tensor of one number.
        momentum: at least 0.
        dampening: of the gradient that enters the buffer.
        weight_decay: wd, at least 0; not multiplied by lr.
        nesterov: takes a momentum above 0 and a dampening of 0.
    """

    spec = OptimizerSpec(rule="momentum", moments=("momentum_buffer",), decay="l2", counted=False, lazy_buffer=True)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float | Tensor = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
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
                momentum=momentum,
                dampening=dampening,
                weight_decay=weight_decay,
                nesterov=nesterov,
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


@documented(COMMON)
class SGDP(Optimizer):
    """SGD with decoupled or proximal weight decay and AdamP's projection.

        b = momentum*b + (1-dampening)*g, from b = 0
        u = b, or g + momentum*b with nesterov
        u, ratio = the projection of `onepass.AdamP`
        decay="decoupled":  p = (1 - lr*wd*ratio/(1-momentum))*p - lr*u
        decay="proximal":   p = (p - lr*u) / (1 + lr*wd*ratio/(1-momentum))

    Source: "AdamP", ICLR 2021, arXiv 2006.08217, Alg. 1 and eq. 12. The paper projects the update and leaves the
    buffer alone. The adamp package, without nesterov, projects the buffer as well: project_momentum=True.

    Args:
        params: tensors of float16, bfloat16, float32 or float64, any dense layout; pairs of a name and a tensor
            (`model.named_parameters()`), which messages then name; or param groups (dicts).
        lr: learning rate, a number or a tensor of one number. It may be left out if every group has its own.
        momentum: at least 0, and below 1 with a weight decay.
        dampening: of the gradient that enters the buffer.
        weight_decay: wd, at least 0.
        nesterov: use the Nesterov direction.
        eps: added to |p|, and the least norm in the cosine.
        delta: threshold of the cosine, times sqrt(row length).
        wd_ratio: what the decay of a projected parameter is multiplied by.
        decay: "decoupled" or "proximal".
        projection: "auto", "channel", "layer" or "none", as in `onepass.AdamP`.
        project_momentum: project the buffer too, as the adamp package does; no effect with nesterov, as there.
        speculate: see `onepass.AdamP`.
    """

    spec = OptimizerSpec(rule="momentum", moments=("momentum",), decay="group", projected=True, counted=False)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor | None = None,
        momentum: float | Tensor = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        *,
        decay: Decay = "decoupled",
        projection: Projection = "auto",
        project_momentum: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: Literal[False] = False,
        decouple_lr: bool = False,
        speculate: bool = True,
        master_weights: bool = False,
        state_dtype: StateDtype = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        capturable: bool = False,
        backend: BackendName = "auto",
    ):
        defaults: dict[str, Any] = dict(
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            eps=eps,
            delta=delta,
            wd_ratio=wd_ratio,
            decay=decay,
            projection=projection,
            project_momentum=project_momentum,
            maximize=maximize,
            foreach=foreach,
            fused=fused,
            differentiable=differentiable,
            decouple_lr=decouple_lr,
            speculate=speculate,
            master_weights=master_weights,
            state_dtype=state_dtype,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
            capturable=capturable,
            backend=backend,
        )
        if lr is not None:
            defaults["lr"] = lr
        super().__init__(params, defaults)
