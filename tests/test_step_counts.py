"""What a training step asks of the machine, in counts: they do not depend on how busy it is.

Where a count is above its limit, a change made every step do more: take the work out again, or say in the commit why
it is worth its price and raise the limit. Where one is far below, lower the limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import memory, training
from ien import build, config
from ien.distributed import Processes

# Operators that only look at a tensor in another way.
LOOKS = (
    "view", "detach", "transpose", "slice", "expand", "alias", "select", "unsqueeze", "squeeze", "permute", "t",
    "as_strided", "split", "split_with_sizes", "empty", "empty_like", "_unsafe_view",
)  # fmt: skip
WAITS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "unique", "_unique2")
GATHERS = ("index", "gather", "index_select", "take", "masked_select", "randperm", "randint", "rand")
# settings → how many operators a step of BasicCNN may call at most; on a CPU a filter group of k channels takes 3k to
# pool, which are small and together faster than torch's one
LIMITS: dict[str, tuple[tuple[str, ...], int]] = {
    "R4": ((), 351),
    "D4": (("reflection=true",), 526),
    "R8": (("mode=R8",), 540),
    "augmented": (("beta_weight=0",), 193),
    "plain": (("beta_weight=0", "objective.augment=none"), 126),
    "tied": (("beta_weight=0", "objective.augment=none", "symmetry.tied=true"), 207),
}
# settings → all bytes that a step asks for, at most, of those of a bare loop of cross-entropy on as many images
MOST_BYTES = {"R4": 1.37, "D4": 1.28, "R8": 1.30, "augmented": 1.08, "plain": 1.05, "tied": 1.10}
MOST_AT_A_TIME = 1.12  # 1.10 for the same step seen again: what is freed late differs


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[operator.name().partition("::")[2].partition(".")[0]] += 1
        return operator(*args, **(kwargs or {}))


def calls(words: Sequence[str], batch: int = 32) -> Counter[str]:
    """How often each operator is called in a training step, the second one of a run."""
    given = ["network.width=16", f"batch_size={batch}", "run.device=cpu", *words]
    made = build.parts(config.load("configs/quickstart.yaml", given), Processes(0, 1, torch.device("cpu")))
    images, labels = next(iter(made.batches.epoch(0)))
    made.engine.train_step(images, labels, 0)
    with Counting() as counting:
        made.engine.train_step(images, labels, 1)
    return counting.calls


@pytest.mark.parametrize("name", LIMITS)
def test_a_step_calls_no_more_operators_than_it_needs(name: str) -> None:
    words, most = LIMITS[name]
    found = calls(words)
    working = {operator: count for operator, count in found.items() if operator not in LOOKS}
    assert most - 20 < sum(working.values()) <= most, Counter(working).most_common()


@pytest.mark.parametrize("name", LIMITS)
def test_a_step_neither_waits_nor_gathers(name: str) -> None:
    """But tied weights are put in another order by an index: weights, not images."""
    found, allowed = calls(LIMITS[name][0]), ["index"] if name == "tied" else []
    assert [operator for operator in found if operator in (*WAITS, *GATHERS)] == allowed


@pytest.mark.parametrize("name", ["R4", "D4", "R8"])
def test_no_gradient_is_first_a_tensor_of_zeros(name: str) -> None:
    """As that of a slice is: as large as what was sliced, once for each slice."""
    assert not calls(LIMITS[name][0])["slice_backward"]


@pytest.mark.parametrize("name", ["R4", "R8"])
def test_a_larger_batch_calls_no_more_operators(name: str) -> None:
    assert calls(LIMITS[name][0], batch=128) == calls(LIMITS[name][0], batch=32)


@pytest.mark.parametrize("name", ["R4", "R8"])
def test_the_network_runs_once(name: str) -> None:
    found = calls(LIMITS[name][0])
    assert found["convolution"] == found["convolution_backward"] == 6


@pytest.mark.parametrize("name", MOST_BYTES)
def test_a_step_takes_no_more_memory_than_its_images_need(name: str) -> None:
    """Beside a loop of torch's own, cross-entropy alone, on as many images: the most held at a time, and all bytes."""
    words, _ = LIMITS[name]
    images = 32 if "objective.augment=none" in words else 16
    device, common = torch.device("cpu"), ("network.width=16", *words)
    own = allocated(training.step(device, *common, f"batch_size={images}"))
    alone = allocated(training.bare_step(device, *common, "batch_size=32"))
    assert own.peak <= MOST_AT_A_TIME * alone.peak
    assert MOST_BYTES[name] - 0.03 < own.total / alone.total <= MOST_BYTES[name]


def allocated(step: Callable[[], object]) -> memory.Allocated:
    """What the second step takes."""
    step()
    return memory.on_cpu(step)
