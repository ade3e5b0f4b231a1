"""Training runs on two processes with DeepSpeed's ZeRO, for test_deepspeed.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from processes import Result, run_all

WORLD = 2
OPTIMIZERS = {1: ("AdamW", "Adam", "SGD"), 2: ("AdamW", "AdamProx", "AdamProxL2")}
REFUSED = [(stage, name) for stage in (1, 2) for name in ("AdamP", "SGDP")]


def trained(stage: int, name: str, bf16: bool) -> Result:
    """The weights of 10 steps, with a checkpoint after 5."""
    folder = Path(sys.argv[2]) / f"{stage}{name}{bf16}"
    net, losses = deepspeed_zero.main(folder, getattr(onepass, name), stage, bf16)
    return {"losses": losses, "weights": [p.detach().float() for p in net.parameters()]}


def refused(stage: int, name: str) -> Result:
    engine = deepspeed_zero.made(getattr(onepass, name), stage, False)
    try:
        deepspeed_zero.train(engine, 1)
    except ValueError as error:
        return {"said": str(error)}
    return {"said": "accepted"}


RUNS: dict[str, Callable[[], Result]] = {
    **{
        f"zero {stage} {name}": lambda stage=stage, name=name: trained(stage, name, False)
        for stage, names in OPTIMIZERS.items()
        for name in names
    },
    **{f"zero {stage} AdamW bf16": lambda stage=stage: trained(stage, "AdamW", True) for stage in OPTIMIZERS},
    **{f"refused {stage} {name}": lambda stage=stage, name=name: refused(stage, name) for stage, name in REFUSED},
}


if __name__ == "__main__":
    from paths import ROOT, TESTS

    sys.path += [str(TESTS), str(ROOT / "examples/tools")]
    import conftest  # noqa: F401  Triton's interpreter

    rank = sys.argv[1]
    os.environ.update(DS_ACCELERATOR="cpu", RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(WORLD), LOCAL_SIZE=str(WORLD))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
        False  # it would be compiled here, for sums in shared memory
    )

    import deepspeed_zero
    import onepass
    from processor import THREADS

    torch.set_grad_enabled(True)
    assert not dist.is_initialized()
    run_all(RUNS, WORLD, THREADS)
