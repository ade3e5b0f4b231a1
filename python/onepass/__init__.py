"""onepass: fused Adam, AdamProx, AdamP and SGDP steps for PyTorch, one pass over memory for all tensors of a model."""

from ._version import __version__
from .adam import Adam, AdamProx, AdamProxL2, AdamW
from .adamp import AdamP
from .backend.registry import backends
from .last_step import LastStep
from .optimizer import Optimizer
from .sgd import SGD, SGDP
from .verdict import GATES, Verdict

__all__ = [
    "GATES",
    "SGD",
    "SGDP",
    "Adam",
    "AdamP",
    "AdamProx",
    "AdamProxL2",
    "AdamW",
    "LastStep",
    "Optimizer",
    "Verdict",
    "__version__",
    "backends",
]
