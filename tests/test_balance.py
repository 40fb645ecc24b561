"""Two gradients, one step: known answers, and that the engine takes the two that it should."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ien.balance import BALANCES, norm_ratio, pcgrad
from ien.build import parts
from ien.config import load
from ien.distributed import Processes
from ien.errors import InputError

SMALL = """
dataset: digits
model: BasicCNN
network: {width: 4}
mode: R4
beta_weight: 0.5
tot_epochs: 1
cyc_size: 1
batch_size: 64
objective: {second_views: 0.25}
run: {device: cpu}
"""


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_the_ratio_of_the_norms_is_beta_whatever_the_scale() -> None:
    task, penalty = vector(3, 4, 0), vector(0, 0, 7)
    for scale in (1, 1e-6, 1e6):
        step = norm_ratio(task, scale * penalty, 0.2)
        torch.testing.assert_close(step, vector(3, 4, 1))
    assert torch.equal(norm_ratio(task, torch.zeros(3, dtype=torch.float64), 0.2), task)  # nothing to learn


def test_without_conflict_the_step_is_the_sum() -> None:
    task, penalty = vector(1, 2, 0), vector(1, -0.5, 3)  # at a right angle: the last one without
    torch.testing.assert_close(pcgrad(task, penalty, 1.0), task + penalty)
    torch.testing.assert_close(pcgrad(task, 2 * task, 1.0), 3 * task)


def test_in_conflict_neither_undoes_the_other() -> None:
    """At 120° unit vectors keep √3/2 of their length at a right angle to the other: 30° beside themselves."""
    task, penalty = vector(1, 0), vector(-0.5, math.sqrt(3) / 2)
    step = pcgrad(task, penalty, 1.0)
    torch.testing.assert_close(step, vector(0.75, math.sqrt(3) / 4) + vector(0, math.sqrt(3) / 2))
    assert torch.dot(step, task) > 0
    assert torch.dot(step, penalty) > 0
    assert torch.isfinite(pcgrad(task, -task, 1.0)).all()
    torch.testing.assert_close(pcgrad(task, -task, 1.0), vector(0, 0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("accumulate", [1, 32])
@pytest.mark.parametrize("balance", BALANCES)
def test_the_step_of_the_engine_is_the_balance_of_both_gradients(balance: str, accumulate: int, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    words = [f"optimizer.accumulate={accumulate}", "model=tests.test_balance:Plain", "taps=[tap]"]
    words += ["network.width=null", "mplc_kernel_size=4"]
    made = {
        name: parts(load(tmp_path / "small.yaml", words + more), Processes(0, 1, torch.device("cpu")))
        for name, more in (("sum", []), ("task", ["beta_weight=0"]), ("seen", [f"objective.balance={balance}"]))
    }
    gradients = {}
    for name, one in made.items():
        images, labels = next(iter(one.batches.epoch(0)))
        one.engine.train_step(images, labels, 0)
        gradients[name] = torch.cat(
            [weight.grad.flatten() for name, weight in one.tapped.named_parameters() if "unused" not in name]
        ).double()
    task, penalty = gradients["task"], gradients["sum"] - gradients["task"]
    expected = BALANCES[balance](task, penalty, 0.5)
    assert penalty.norm() > 1e-3 * task.norm()
    torch.testing.assert_close(gradients["seen"], expected, rtol=1e-4, atol=1e-6)


class Plain(torch.nn.Module):
    """Without BatchNorm: what a part of a batch gives does not hang on the others."""

    def __init__(self, classes: int, in_channels: int) -> None:
        super().__init__()
        self.tap = torch.nn.Conv2d(in_channels, 8, 3)
        self.out = torch.nn.Linear(8, classes)
        self.unused = torch.nn.Linear(2, 2)  # as the auxiliary heads of library networks in a forward without them

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.tap(images).relu().mean(dim=(-2, -1)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["beta_weight=0"], "objective.balance: pcgrad has nothing to balance: beta_weight is 0; write none"),
        (["run.compile=true"], "run.compile: keeps no graph for the second gradient of objective.balance"),
        (["objective.balance=gradnorm"], "objective.balance: 'gradnorm' .*none, norm_ratio, pcgrad"),
    ],
)
def test_what_cannot_be_balanced_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "small.yaml", ["objective.balance=pcgrad", *words])
