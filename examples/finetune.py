"""A trained ordinary network, fine-tuned into an equivariant one: accuracy and equivariance error before and after.

python examples/finetune.py           # about half a minute on two CPU cores
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from digits import accuracy, batches, relative_error, shown, small_network, steps_asked_for
from torch import nn

from ien import EquivariantObjective, Tapped

LAYERS = ["0", "1", "2"]


def main(arguments: list[str] | None = None) -> list[float]:
    steps = steps_asked_for(arguments, __doc__, default=300)
    torch.manual_seed(0)
    model = small_network()
    train_ordinarily(model, steps)
    objective = EquivariantObjective("R4", beta_weight=1.0, loss="relative")
    with Tapped(model, LAYERS, pool="R4") as tapped:
        tell("ordinary network", tapped, objective)
        losses = fine_tune(tapped, objective, steps)
        tell("after fine-tuning", tapped, objective)
    return losses


def train_ordinarily(model: nn.Module, steps: int) -> None:
    """No second view, no equivariance: what anybody's trained network is."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for images, labels in batches(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def fine_tune(tapped: Tapped, objective: EquivariantObjective, steps: int) -> list[float]:
    """A smaller learning rate, and beta that rises: the network keeps what it knows."""
    optimizer, losses = torch.optim.Adam(tapped.parameters(), lr=1e-3), []
    for step, (images, labels) in enumerate(batches(steps)):
        terms = objective.terms(tapped, images, labels, beta=objective.beta_weight * min(1.0, 4 * step / steps))
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        losses.append(terms.means["equivariance"].item())
    return losses


def tell(when: str, tapped: Tapped, objective: EquivariantObjective) -> None:
    errors = relative_error(tapped, objective.group)
    print(f"{when}: test accuracy {100 * accuracy(tapped.model):.1f} %, relative equivariance error {shown(errors)}")


if __name__ == "__main__":
    main()
