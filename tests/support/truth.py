"""Every rule a second time, from the papers' formulas, in NumPy and in the precision of its input.

Independent of onepass.reference: long double in, long double out. Beside the new parameter it returns the magnitude of its
terms, to which rounding errors are relative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass
class Step:
    """p: after the step. size: magnitude of its terms. u_size: magnitude of the terms of its direction.

    Both magnitudes include the projected part of any gate, since a wrong prediction steps through it.
    gate, cosine: as in onepass.Verdict.
    """

    p: Array
    size: Array
    u_size: Array
    gate: str
    cosine: float


def wide(t: Any, dtype: Any = np.longdouble) -> Array:
    return t.detach().double().numpy().astype(dtype)


def step(name: str, group: dict[str, Any], p: Array, g: Array, state: dict[str, Any]) -> Step:
    """One step of optimizer `name`; `state` holds arrays under torch's keys (and "step"), and is updated."""
    wd, lr = float(group["weight_decay"]), float(group["lr"])
    g = -g if group["maximize"] else g
    raw, g_size = g, np.abs(g)
    if name in ("Adam", "SGD"):
        g, g_size = g + wd * p, g_size + wd * np.abs(p)

    adam = name.startswith("Adam")
    u, u_size, s, D = (_adam if adam else _sgd)(name, group, g, g_size, state)

    if name == "AdamProxL2":
        q = wd * (lr / group["initial_lr"] if group["decouple_lr"] else lr)
        with np.errstate(divide="ignore", invalid="ignore"):
            new = np.where(D == 0, p, (p - s * u) / (1 + q / D))
            terms = np.where(D == 0, 0, (s * u_size + q * np.abs(p) / D) / (1 + q / D))
        return Step(new, np.abs(p) + terms, u_size, "none", np.nan)

    ratio, gate, cosine = 1.0, "none", np.nan
    if name in ("AdamP", "SGDP") and p.ndim > 1 and p.size:
        gate, cosine = _gate(p, raw, group["delta"], group["eps"])
        gate = gate if group["projection"] == "auto" else group["projection"]
        radials = {view: _radial(p, u, u_size, view, group["eps"]) for view, _ in _views(p)}
        largest = np.maximum(radials["channel"][1], radials["layer"][1])
        u_size = u_size + np.where(np.isfinite(largest), largest, 0)
        if gate != "none":
            ratio = group["wd_ratio"]
            u = u - radials[gate][0]
            if group.get("project_momentum") and not group["nesterov"]:
                state["momentum"] = u

    proximal, full = _proximal(name, group), _decay(name, group, wd, lr)
    q = full * ratio
    new = (p - s * u) / (1 + q) if proximal else (1 - q) * p - s * u
    most = max(full, full * group.get("wd_ratio", 1.0))
    shrunk = most / (1 + most) if proximal else most
    return Step(new, (1 + shrunk) * np.abs(p) + s * u_size, u_size, gate, cosine)


def _proximal(name: str, group: dict[str, Any]) -> bool:
    return name == "AdamProx" or group.get("decay") == "proximal"


def _decay(name: str, group: dict[str, Any], wd: float, lr: float) -> float:
    if name in ("Adam", "SGD") or wd == 0:
        return 0.0
    q = wd * (lr / group["initial_lr"] if group["decouple_lr"] else lr)
    return q / (1 - group["momentum"]) if name == "SGDP" else q


def _adam(name: str, group: dict[str, Any], g: Array, g_size: Array, state: dict[str, Any]) -> Any:
    b1, b2 = (g.dtype.type(b) for b in group["betas"])
    t = state["step"] = state["step"] + 1
    # In double, as in every backend: 1 - b2^t cancels, so that more digits give another number.
    bc1, bc2 = (1 - float(b) ** t for b in group["betas"])
    m_size = b1 * np.abs(state["exp_avg"]) + (1 - b1) * g_size
    m = state["exp_avg"] = b1 * state["exp_avg"] + (1 - b1) * g
    v = state["exp_avg_sq"] = b2 * state["exp_avg_sq"] + (1 - b2) * g**2
    if group.get("nesterov"):
        m, m_size = b1 * m + (1 - b1) * g, b1 * m_size + (1 - b1) * g_size
    D = np.sqrt(v) / np.sqrt(g.dtype.type(bc2)) + group["eps"]
    known = np.where(D == 0, np.inf, D)  # 0/0 := 0
    return m / known, m_size / known, float(group["lr"]) / bc1, D


def _sgd(name: str, group: dict[str, Any], g: Array, g_size: Array, state: dict[str, Any]) -> Any:
    lr, momentum = float(group["lr"]), group["momentum"]
    if name == "SGD" and momentum == 0:
        return g, g_size, lr, None
    key = "momentum" if name == "SGDP" else "momentum_buffer"
    b = state.get(key)
    if b is None:
        b = 0 * g if name == "SGDP" else None
    enters = 1.0 if b is None else 1.0 - group["dampening"]
    b = 0 * g if b is None else b
    b_size = momentum * np.abs(b) + enters * g_size
    b = state[key] = momentum * b + enters * g
    if group["nesterov"]:
        return g + momentum * b, g_size + momentum * b_size, lr, None
    return b, b_size, lr, None


def _views(p: Array) -> Any:
    return (("channel", p.shape[0]), ("layer", 1))


def _gate(p: Array, g: Array, delta: float, eps: float) -> tuple[str, float]:
    gate, cosine = "none", np.nan
    for view, rows in _views(p):
        a, b = p.reshape(rows, -1), g.reshape(rows, -1)
        norms = np.maximum(_norm(a), eps) * np.maximum(_norm(b), eps)
        cosines = np.abs((a * b).sum(1)) / np.where(norms == 0, np.inf, norms)
        scaled = cosines.max() * np.sqrt(p.dtype.type(a.shape[1]))
        cosine = float(scaled) if view == "channel" else cosine
        if scaled < delta:
            gate = view
            break
    return gate, cosine


def _norm(rows: Array) -> Array:
    return np.sqrt((rows * rows).sum(1))


def _radial(p: Array, u: Array, u_size: Array, gate: str, eps: float) -> tuple[Array, Array]:
    """p_r * <p_r,u_r>/(|p_r|+eps)^2 of every row, and the magnitude of its terms."""
    rows = dict(_views(p))[gate]
    a, b, b_size = p.reshape(rows, -1), u.reshape(rows, -1), u_size.reshape(rows, -1)
    squares = (_norm(a) + eps)[:, None] ** 2
    squares = np.where(squares == 0, np.inf, squares)
    radial = a * ((a * b).sum(1, keepdims=True) / squares)
    size = np.abs(a) * ((np.abs(a) * b_size).sum(1, keepdims=True) / squares)
    return radial.reshape(p.shape), size.reshape(p.shape)
