"""AdamP: Adam whose update is projected off the weight where the weight is scale-invariant."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .adam import MOMENTS
from .backend.registry import BackendName
from .docstrings import AMSGRAD, COMMON, documented
from .hyperparams import Decay, Projection
from .optimizer import Optimizer, ParamsT
from .precision import StateDtype
from .spec import OptimizerSpec


@documented(AMSGRAD, COMMON)
class AdamP(Optimizer):
    """Adam with decoupled or proximal weight decay and AdamP's projection.

    m, v, D, u and s are Adam's (see `onepass.Adam`), with nesterov `u = (b1*m + (1-b1)*g)/D`. A parameter of more
    than one dimension is then looked at as rows, first one for each channel (index of dim 0), then as a single one:

        cos_r = |<g_r, p_r>| / (max(|g_r|, eps) * max(|p_r|, eps))
        the view passes when max over its rows of cos_r < delta/sqrt(row length)

    For the first view that passes, every row loses its radial part, u_r = u_r - c_r*p_r with
    c_r = <p_r, u_r>/(|p_r| + eps)^2, and the decay is multiplied by wd_ratio. Then

        decay="decoupled":  p = (1 - lr*wd*ratio)*p - s*u
        decay="proximal":   p = (p - s*u) / (1 + lr*wd*ratio)

    Source: "AdamP", ICLR 2021, arXiv 2006.08217, Alg. 2 and eq. 12-13; the same as the adamp package's AdamP. The
    proximal decay is that of arXiv 2202.00089, Alg. 2.

    Args:
        params: tensors of float16, bfloat16, float32 or float64, any dense layout; pairs of a name and a tensor
            (`model.named_parameters()`), which messages then name; or param groups (dicts).
        lr: learning rate, a number or a tensor of one number.
        betas: decay rates of m and v, each in [0, 1).
        eps: added to D and to |p|, and the least norm in the cosine.
        weight_decay: wd, at least 0.
        delta: threshold of the cosine, times sqrt(row length).
        wd_ratio: what the decay of a projected parameter is multiplied by.
        nesterov: use the Nesterov direction.
        decay: "decoupled" or "proximal".
        projection: "auto": as above. "channel" or "layer": every parameter of more than one dimension is projected by that
            view at every step; "none": never, and wd_ratio does not apply.
        speculate: step under the gate that is expected and correct the parameter if the verdict differs: 28 bytes of
            traffic for a float32 parameter against 36. The result may differ in the last place between two histories
            of the predictor; False never predicts.
    """

    spec = OptimizerSpec(rule="adam", moments=MOMENTS, decay="group", projected=True)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        *,
        decay: Decay = "decoupled",
        projection: Projection = "auto",
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: Literal[False] = False,
        amsgrad: Literal[False] = False,
        decouple_lr: bool = False,
        speculate: bool = True,
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
                delta=delta,
                wd_ratio=wd_ratio,
                nesterov=nesterov,
                decay=decay,
                projection=projection,
                maximize=maximize,
                foreach=foreach,
                fused=fused,
                differentiable=differentiable,
                amsgrad=amsgrad,
                decouple_lr=decouple_lr,
                speculate=speculate,
                master_weights=master_weights,
                state_dtype=state_dtype,
                stochastic_rounding=stochastic_rounding,
                seed=seed,
                capturable=capturable,
                backend=backend,
            ),
        )
