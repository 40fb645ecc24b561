"""A torchvision ResNet, its stages named: nothing of it is rewritten. Also compiled, or in bfloat16.

python examples/torchvision_resnet.py             # about a minute on two CPU cores
python examples/torchvision_resnet.py --compile   # the same with torch.compile: the first step takes longer
python examples/torchvision_resnet.py --bf16      # the same with autocast: slow on CPUs that have no bfloat16
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from digits import accuracy, batches, relative_error, steps_asked_for
from torch import nn
from torchvision.models import resnet18

from ien import EquivariantObjective, Group, Tapped


class Enlarged(nn.Module):
    """Grey digits (B, 1, 28, 28) as a network for photographs wants them: 3 channels, 33×33.

    33, because a stride of 2 keeps exact quarter turns on odd sides alone: 33, 17, 9, 5.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(F.interpolate(images, size=(33, 33), mode="bilinear").expand(-1, 3, -1, -1))


def main(arguments: list[str] | None = None) -> list[float]:
    arguments = sys.argv[1:] if arguments is None else arguments
    steps = steps_asked_for([word for word in arguments if word not in ("--compile", "--bf16")], __doc__, default=60)
    torch.manual_seed(0)
    model = Enlarged(resnet18(num_classes=10))
    keys = list(model.state_dict())
    tapped = Tapped(model, layers=["model.layer1", "model.layer2", "model.layer3"], pool="R4")
    network = torch.compile(tapped) if "--compile" in arguments else tapped
    objective = EquivariantObjective(Group.from_name("R4", reflection=True), beta_weight=1.0, loss="relative")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before, losses = relative_error(tapped, objective.group), []
    for step, (images, labels) in enumerate(batches(steps), start=1):
        with torch.autocast("cpu", torch.bfloat16, enabled="--bf16" in arguments):
            terms = objective.terms(network, images, labels)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        losses.append(terms.total.item())
        if step % 10 == 0 or step == steps:
            print(f"step {step:>3}  " + "  ".join(f"{name} {mean:.3f}" for name, mean in terms.means.items()))
    after = relative_error(tapped, objective.group)
    for name in tapped.layers:
        print(f"{name}: relative equivariance error {before[name]:.3f} untrained, {after[name]:.3f} trained")
    print(f"test accuracy {100 * accuracy(model):.1f} %; state_dict unchanged: {list(model.state_dict()) == keys}")
    return losses


if __name__ == "__main__":
    main()
