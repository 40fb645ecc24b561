from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ien.optim import CyclicLR, WeightAverage, optimizer, set_lr

SPE = 375  # 12,000 images in batches of 32


def published(iteration: int, total: int, high: float = 5e-3, low: float = 1e-5) -> float:
    """The published schedule, from its formula: a quarter up, the rest down, both half-cosines."""
    rise = total // 4
    if iteration > rise:
        ratio = (iteration - rise) / (total - rise)
        return low + 0.5 * (high - low) * (1 + math.cos(math.pi * ratio))
    return high - 0.5 * (high - low) * (1 + math.cos(math.pi * iteration / rise))


def test_defaults_are_the_published_schedule_at_every_iteration() -> None:
    schedule = CyclicLR(low_lr=1e-5, max_lr=5e-3, cyc_size=70, dec_scale=1, tot_epochs=90, steps_per_epoch=SPE)
    last = 0.0
    for step in range(90 * SPE):
        if step < 70 * SPE:
            last = published(step, 70 * SPE)
            assert math.isclose(schedule(step), last, rel_tol=1e-9, abs_tol=1e-15), step
        else:
            assert schedule(step) == 1e-5
            assert abs(last - 1e-5) < 1e-10  # where the published loop stays


def test_peak_and_ends() -> None:
    schedule = CyclicLR(low_lr=1e-5, max_lr=5e-3, cyc_size=8, dec_scale=2, tot_epochs=20, steps_per_epoch=10)
    assert [schedule(step) for step in (0, 80, 160, 199)] == [1e-5] * 4
    assert math.isclose(schedule(20), 5e-3)
    assert math.isclose(schedule(100), 2.5e-3)
    rates = [schedule(step) for step in range(200)]
    assert sum(a < b > c for a, b, c in zip(rates, rates[1:], rates[2:], strict=False)) == 2  # two whole cycles fit
    assert max(rates) == rates[20]


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimizer_moves_by_the_given_rate(name: str, kind: type) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    chosen = optimizer(name, [weight], weight_decay_rate=0.0)
    assert type(chosen) is kind
    weight.grad = torch.tensor([1.0, -2.0, 0.5])
    set_lr(chosen, 0.01)
    chosen.step()
    assert torch.allclose(weight.detach(), 1 - 0.01 * weight.grad.sign(), atol=1e-6)  # Adam's first step is the rate


def test_the_average_of_weights_is_its_formula() -> None:
    """Also of BatchNorm's statistics; the first steps forget the initial weights, whatever the decay."""
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)).double()
    average = WeightAverage(network, decay=0.5)
    expected = {name: one.clone() for name, one in network.state_dict().items() if one.is_floating_point()}
    assert len(expected) == 6
    for step in range(12):
        with torch.no_grad():
            for number, one in enumerate(network.state_dict().values()):
                one.copy_(torch.full_like(one, 3 * step + number))
        average.update(step)
        decay = (0.1, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5, 0.5, 0.5)[step]
        for number, name in enumerate(network.state_dict()):
            if name in expected:
                expected[name] = decay * expected[name] + (1 - decay) * (3 * step + number)
    own = {name: one.clone() for name, one in network.state_dict().items()}
    with average.in_place():
        for name, one in expected.items():
            torch.testing.assert_close(network.state_dict()[name], one, rtol=1e-12, atol=0)
    assert all(torch.equal(own[name], one) for name, one in network.state_dict().items())
