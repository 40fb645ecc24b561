"""The objective in a LightningModule: `training_step` returns the total, every term is logged under its own name.

pip install -e ".[lightning]"
python examples/lightning_module.py   # half a minute on two CPU cores
"""

from __future__ import annotations

import lightning
import torch
from digits import accuracy, data, small_network, steps_asked_for
from torch import nn
from torch.utils.data import DataLoader

from ien import EquivariantObjective, Tapped


class Equivariant(lightning.LightningModule):
    """Any network of images (B, C, S, S) → logits (B, K), its `layers` made equivariant."""

    def __init__(self, model: nn.Module, layers: list[str], group: str = "R4", beta_weight: float = 1.0):
        super().__init__()
        self.tapped = Tapped(model, layers, pool=group)
        self.objective = EquivariantObjective(group, beta_weight)

    def training_step(self, batch, _number):
        terms = self.objective.terms(self.tapped, *batch)
        self.log_dict({f"train/{name}": mean.float() for name, mean in terms.means.items()})
        self.log("train/total", terms.total, prog_bar=True)
        return terms.total

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main(arguments: list[str] | None = None) -> list[float]:
    steps = steps_asked_for(arguments, __doc__, default=300)
    lightning.seed_everything(0, verbose=False)
    model = small_network()
    losses = Losses()
    trainer = lightning.Trainer(
        callbacks=[losses],
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        Equivariant(model, layers=["0", "1", "2"]),
        DataLoader(data("train"), batch_size=32, shuffle=True, drop_last=True),
    )
    logged = ", ".join(f"{name} {value:.3f}" for name, value in sorted(trainer.callback_metrics.items()))
    print(f"after {trainer.global_step} steps: {logged}")
    print(f"test accuracy {100 * accuracy(model):.1f} %")
    return losses.seen


class Losses(lightning.Callback):
    """The total of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, _trainer, _module, outputs, _batch, _number):
        self.seen.append(float(outputs["loss"]))


if __name__ == "__main__":
    main()
