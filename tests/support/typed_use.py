"""User code for mypy --strict (`make lint`), which is not run. A `type: ignore` that is not needed is an error."""

import torch
from torch import Tensor
from typing_extensions import assert_type

import onepass

model = torch.nn.Linear(2, 2)
everything: list[onepass.Optimizer] = [
    onepass.Adam(model.parameters(), 1e-3, (0.9, 0.99), 1e-8, 0.0, False, fused=True, decoupled_weight_decay=False),
    onepass.AdamW(model.named_parameters(), lr=torch.tensor(1e-3), betas=(torch.tensor(0.9), 0.99), foreach=None),
    onepass.AdamProx([{"params": model.parameters(), "lr": 0.1}], differentiable=False, decouple_lr=True),
    onepass.AdamProxL2(list(model.parameters()), backend="reference", capturable=True),
    onepass.AdamP(model.parameters(), decay="proximal", amsgrad=False, speculate=False),
    onepass.SGD(model.parameters(), momentum=0.9, nesterov=True, backend="triton"),
    onepass.SGDP([{"params": model.parameters(), "lr": 0.1}], decay="decoupled", project_momentum=True),
]
theirs: torch.optim.Optimizer = everything[0]
opt = onepass.AdamP(model.parameters())


def loss() -> Tensor:
    return model(torch.ones(2)).sum()  # type: ignore[no-any-return]


def number() -> float:
    return 1.0


assert_type(opt.step(loss), Tensor)
assert_type(opt.step(number), float)
assert_type(opt.clip_grad_norm_(1.0), Tensor)
assert_type(opt.last_step()[model.weight].gate, str)
assert_type(onepass.backends(), dict[str, str | None])
torch.optim.lr_scheduler.StepLR(opt, 1)

onepass.AdamP(model.parameters(), decay="foo")  # type: ignore[arg-type]
onepass.SGDP(model.parameters(), decay="l2")  # type: ignore[arg-type]
onepass.AdamW(model.parameters(), backend="gpu")  # type: ignore[arg-type]
onepass.AdamW(model.parameters(), decay="proximal")  # type: ignore[call-arg]
onepass.AdamW(model.parameters(), amsgrad=True)  # type: ignore[arg-type]
onepass.Adam(model.parameters(), decoupled_weight_decay=True)  # type: ignore[arg-type]
onepass.SGD(model.parameters(), differentiable=True)  # type: ignore[arg-type]
onepass.SGD(model.parameters(), fused="yes")  # type: ignore[arg-type]
onepass.SGD(model.parameters(), maximize="no")  # type: ignore[arg-type]
onepass.AdamProx(model.parameters(), lr="1e-3")  # type: ignore[arg-type]
onepass.AdamProxL2(model.parameters(), 1e-3, (0.9, 0.999), 1e-8, 0.0, False, True)  # type: ignore[call-arg]
opt.step(3)  # type: ignore[call-overload]
