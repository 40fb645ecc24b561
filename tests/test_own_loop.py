"""The objective in a loop of one's own: one call is what the engine does in four."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ien.errors import InputError
from ien.groups import Group
from ien.objective import EquivariantObjective, Views
from ien.taps import Tapped


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).double()


def batch(images: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    return torch.rand(images, 1, 7, 7, dtype=torch.float64), torch.randint(5, (images,))


def test_one_call_is_plan_views_forward_and_terms() -> None:
    tapped, (images, labels) = Tapped(network(), ["0", "1"], 4), batch()
    terms = EquivariantObjective("R8", 0.5).terms(tapped, images, labels, second_views=0.5)
    objective, views = EquivariantObjective(Group(8), 0.5), Views.plan(Group(8), 8, 0.5)
    by_hand = objective(*tapped(objective.both_views(images, views)), labels, views)
    assert torch.equal(terms.total, by_hand.total)
    assert terms.means.keys() == by_hand.means.keys()
    assert terms.counts == by_hand.counts
    assert terms.counts["equivariance"] == 4
    augmented = objective.terms(tapped, images, labels, beta=0.0)
    assert torch.equal(augmented.total.detach(), augmented.means["classification"])


def test_over_many_batches_every_element_is_met_equally_often() -> None:
    objective, met = EquivariantObjective("R8"), dict.fromkeys(Group(8).moves, 0)
    for _ in range(7):
        for element, count in objective.views(4).runs:
            met[element] += count
    assert set(met.values()) == {4}


def test_a_task_with_a_loss_of_its_own_adds_the_penalty() -> None:
    tapped, (images, labels) = Tapped(network(), ["0", "1"], 4), batch()
    whole = EquivariantObjective("R4", 0.5).terms(tapped, images, labels)
    objective = EquivariantObjective("R4", 0.5)
    views = objective.views(len(images))
    logits, maps = tapped(objective.both_views(images, views))
    penalty = objective.penalty(maps, views)
    own = F.cross_entropy(logits.float(), torch.cat((labels, labels)))
    assert torch.allclose(own + penalty.total, whole.total, rtol=1e-6)
    assert penalty.means.keys() == whole.means.keys() - {"classification", "accuracy", "accuracy_second_view"}
    assert torch.equal(objective.penalty(maps, views, beta=0.0).total, torch.tensor(0.0))


def test_a_network_without_logits_is_told_of_the_penalty() -> None:
    images, labels = batch()
    maps = Tapped(nn.Sequential(network()[0]), ["0"], 4)
    with pytest.raises(InputError, match=r"gives shape \(16, 8, 5, 5\), no logits \(B, K\); .* or take `penalty`"):
        EquivariantObjective("R4").terms(maps, images, labels)
    with pytest.raises(InputError, match="'R1' is no group"):
        EquivariantObjective("R1")


def train_share(rank: int, folder: str) -> None:
    """One of two processes: the gradient after its half of the batch, averaged by DistributedDataParallel."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    images, labels = batch()
    tapped = DistributedDataParallel(Tapped(network(), ["0", "1"], 4))
    objective = EquivariantObjective("R4", 0.5)
    objective.terms(tapped, images[4 * rank : 4 * rank + 4], labels[4 * rank : 4 * rank + 4]).total.backward()
    torch.save([p.grad for p in tapped.parameters()], f"{folder}/{rank}.pt")
    dist.barrier()  # a thread of gloo that still held a gradient while Python ends would abort the process
    dist.destroy_process_group()


def test_two_processes_have_the_mean_of_their_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    mp.start_processes(train_share, (str(tmp_path),), nprocs=2, start_method="spawn")
    tapped, (images, labels) = Tapped(network(), ["0", "1"], 4), batch()
    for half in (slice(0, 4), slice(4, 8)):
        (EquivariantObjective("R4", 0.5).terms(tapped, images[half], labels[half]).total / 2).backward()
    for rank in (0, 1):
        for seen, expected in zip(torch.load(tmp_path / f"{rank}.pt"), tapped.parameters(), strict=True):
            assert torch.allclose(seen, expected.grad, atol=1e-12)
