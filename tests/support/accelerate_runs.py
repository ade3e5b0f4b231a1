"""Training runs on two processes with Accelerate's FSDP2, and with Hugging Face's Trainer on top of it, for
test_accelerate_sharded.py.

Accelerate shards on accelerators alone. All that keeps it from sharding on a CPU is the distributed type that it has found, which is
set here; the rest is its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from processes import Result, run_all

WORLD = 2
OPTIMIZERS = ("AdamP", "AdamW", "SGDP")


# Of Accelerate, and of Trainer, which hands them on.
FSDP2 = {"auto_wrap_policy": "NO_WRAP", "cpu_ram_efficient_loading": False, "state_dict_type": "SHARDED_STATE_DICT"}


def sharding_on_a_cpu(init: Callable[..., None]) -> Callable[..., None]:
    def changed(self: Any, *args: Any, fsdp_plugin: Any = None, **arguments: Any) -> None:
        init(self, *args, fsdp_plugin=fsdp_plugin, **arguments)
        self.state.__dict__.update(distributed_type=DistributedType.FSDP, fsdp_plugin=fsdp_plugin)
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    return changed


def steps(accelerator: Any, net: Any, opt: Any, count: int) -> list[float]:
    x, y = toy.data().tensors
    losses = []
    for _ in range(count):
        loss = torch.nn.functional.mse_loss(net(x), y)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return losses


def accelerated(name: str) -> Result:
    """An optimizer of the whole net, whose parameters Accelerate swaps for DTensors; a checkpoint in the middle."""
    folder = Path(sys.argv[2]) / name

    def made() -> Any:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True, fsdp_plugin=FullyShardedDataParallelPlugin(fsdp_version=2, **FSDP2))
        assert accelerator.is_fsdp2
        net = toy.net()
        opt = getattr(onepass, name)(net.parameters(), lr=1e-2, weight_decay=1e-2)
        return accelerator, *accelerator.prepare(net, opt)

    accelerator, net, opt = made()
    losses = steps(accelerator, net, opt, 5)
    accelerator.save_state(folder)
    accelerator, net, opt = made()
    accelerator.load_state(folder)
    losses += steps(accelerator, net, opt, 5)
    return {
        "losses": losses,
        "gates": [verdict.gate for verdict in opt.optimizer.last_step().values()],
        "weights": [p.detach().full_tensor() for p in net.parameters()],
        "sharded": all(isinstance(p, DTensor) for group in opt.param_groups for p in group["params"]),
    }


def trainer() -> Result:
    """Trainer's groups, clipping and schedule; and resumed from its checkpoint."""
    folder = Path(sys.argv[2]) / "trainer"
    AcceleratorState._reset_state(reset_partial_state=True)

    def trained(resume: Any = None, **saving: Any) -> Any:
        settings = TrainingArguments(
            str(folder),
            learning_rate=1e-2,
            weight_decay=0.1,
            max_steps=6,
            max_grad_norm=0.5,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            fsdp=True,
            fsdp_config={"version": 2, **FSDP2},
            **saving,
        )
        made = hf_trainer.with_a_class(settings)
        made.train(resume_from_checkpoint=resume)
        return made

    def weights(made: Any) -> list[torch.Tensor]:
        return [p.detach().full_tensor() for p in made.model.parameters()]

    whole = trained(save_strategy="steps", save_steps=3)
    resumed = trained(str(folder / "checkpoint-3"), save_strategy="no")
    opt = whole.optimizer.optimizer
    return {
        "apart": max(float((p - q).abs().max()) for p, q in zip(weights(whole), weights(resumed), strict=True)),
        "sharded": all(isinstance(p, DTensor) for group in opt.param_groups for p in group["params"]),
        "projected": [len(opt.last_step()), len(opt.param_groups[0]["params"])],
        "class": type(opt).__name__,
        "loss": whole.state.log_history[-1]["train_loss"],
    }


RUNS: dict[str, Callable[[], Result]] = {
    **{f"accelerate {name}": lambda name=name: accelerated(name) for name in OPTIMIZERS},
    "trainer": trainer,
}


if __name__ == "__main__":
    from paths import ROOT, TESTS

    sys.path += [str(TESTS), str(ROOT / "examples/tools")]
    import conftest  # noqa: F401  Triton's interpreter

    rank = sys.argv[1]
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(WORLD), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    os.environ.update(ACCELERATE_USE_CPU="1", HF_HUB_OFFLINE="1")
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.tensor import DTensor
    from transformers import TrainingArguments

    import hf_trainer
    import onepass
    import toy
    from processor import THREADS

    Accelerator.__init__ = sharding_on_a_cpu(Accelerator.__init__)
    run_all(RUNS, WORLD, THREADS)
