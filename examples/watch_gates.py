"""What AdamP's gates see over a training run: reads `last_step()` of every step, and plots it.

python examples/watch_gates.py [PNG]
"""

import sys

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import cross_entropy

import onepass
from demo_data import conv_net, digits

torch.manual_seed(0)
net, data = conv_net(), digits(torch.device("cpu"))
opt = onepass.AdamP(net.named_parameters(), lr=3e-3, weight_decay=1e-2)
steps = []
for images, labels in data.batches(epochs=10, seed=0, shift=True):
    opt.zero_grad()
    cross_entropy(net(images), labels, label_smoothing=0.1).backward()
    opt.step()
    steps.append(opt.last_step())  # tensors on the device: the training does not wait

figure, (cosines, norms) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
names = [name.removesuffix("/gate") for name in steps[0].flat() if name.endswith("/gate")]
for i, name in enumerate(names):
    cosines.plot(torch.stack([step.cosine[i] for step in steps]), label=name, linewidth=1)
    norms.plot(torch.stack([step.p_norm[i] / steps[0].p_norm[i] for step in steps]), label=name)
cosines.axhline(opt.defaults["delta"], color="black", linestyle=":", label="delta")
cosines.set(title="max |cos(g, p)| * sqrt(row length): projected below delta", xlabel="step", yscale="log")
norms.set(title="|p| / |p at the start|", xlabel="step")
cosines.legend(frameon=False, ncols=2)
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "gates.png", dpi=130)
