"""A model and a training loop of one's own, made equivariant to quarter turns by five lines, which end in a +.

python examples/own_loop.py           # half a minute on two CPU cores
"""

from __future__ import annotations

import torch
from digits import accuracy, batches, relative_error, shown, small_network, steps_asked_for

from ien import EquivariantObjective, Tapped  # +


def main(arguments: list[str] | None = None) -> list[float]:
    steps = steps_asked_for(arguments, __doc__, default=400)
    torch.manual_seed(0)
    model = small_network()  # any nn.Module
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    tapped = Tapped(model, layers=["0", "1", "2"], pool="R4")  # + filter groups of 4 channels
    objective = EquivariantObjective("R4", beta_weight=1.0)  # + quarter turns
    losses = []
    for step, (images, labels) in enumerate(batches(steps), start=1):
        terms = objective.terms(tapped, images, labels)  # + for cross_entropy(model(images), labels)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        losses.append(terms.total.item())
        if step % 50 == 0 or step == steps:
            class_loss, equi_loss = terms.means["classification"], terms.means["equivariance"]
            print(f"step {step:>3}  class {class_loss:.3f}  equivariance {equi_loss:.4f}")
    errors = relative_error(tapped, objective.group)
    tapped.close()  # + the model is what it was: an ordinary network
    print(f"test accuracy {100 * accuracy(model):.1f} %, relative equivariance error {shown(errors)}")
    return losses


if __name__ == "__main__":
    main()
