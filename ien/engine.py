"""What happens to one batch, and to one pass?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ien import optim
from ien.balance import BALANCES
from ien.distributed import Processes
from ien.graphs import Graphs
from ien.groups import Element
from ien.metrics import Sums, add_up, equivariance_sums
from ien.objective import EquivariantObjective, Terms, Views
from ien.stopping import Stopped, StopRequest
from ien.taps import Tapped

ASYMMETRY = "asymmetry"  # the penalty's name
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
Batch = tuple[Tensor, Tensor]  # images (B, C, S, S) in [0, 1], labels (B,)


@dataclass
class Engine:
    """Takes one process's share of a batch through the network, the objective and the optimizer.

    `batch_size` is global; `second_views` is the share of it that is seen twice in training, `moves` are the elements
    that these views take (None: all); `lr` and `beta` give their values at a step of the run; `stop` breaks off a pass
    without training. `balance` is one of `BALANCES`, or None: the gradients are those of the sum. `penalty` is a term
    of the weights alone, times `penalty_weight`; `before_step` is called when the gradients are there, `after_step`
    when the weights have moved; with `ema_decay` a running mean of the weights is what the network has in
    `averaged()`. Losses stay on the device until `read` asks.
    """

    tapped: Tapped
    objective: EquivariantObjective
    optimizer: Optimizer
    processes: Processes
    batch_size: int
    lr: Callable[[int], float]
    beta: Callable[[int], float]
    second_views: float = 1.0
    moves: Sequence[Element] | None = None
    balance: str | None = None
    penalty: Callable[[], Tensor] | None = None
    penalty_weight: float = 0.0
    before_step: Callable[[], None] | None = None
    after_step: Callable[[], None] | None = None
    accumulate: int = 1
    precision: str = "fp32"
    clip_norm: float | None = None
    ema_decay: float | None = None
    channels_last: bool = False
    sync_batchnorm: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    stop: StopRequest = field(default_factory=StopRequest)
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        device = self.processes.device
        if self.channels_last:
            self.tapped.to(memory_format=torch.channels_last)
        if self.compile:  # shapes that an earlier run of this process had (a trial's) are none that vary
            torch.compiler.reset()
        # Training alone: shapes are fixed there, and a pass in eval mode is not worth compiling for.
        module = cast(nn.Module, torch.compile(self.tapped)) if self.compile else self.tapped
        self.network = self.processes.wrap(module, self.sync_batchnorm)
        if self.sync_batchnorm:
            self.tapped.attach()  # the tapped layer may have been a BatchNorm
        self.average = None if self.ema_decay is None else optim.WeightAverage(self.tapped.model, self.ema_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.names = quantities(self.tapped.layers) + ([ASYMMETRY] if self.penalty else [])
        self._sums = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        self._steps = 0
        self._read = ([0.0] * len(self.names), 0)  # totals over all processes, and steps, when they were last read
        self._not_finite = torch.full((), _NEVER, dtype=torch.int64, device=device)
        self._step = torch.zeros_like(self._not_finite)
        self._beta = torch.zeros((), device=device)
        # Scaling decides on the host, and processes wait for one another: such steps are launched kernel by kernel.
        alone = self.cuda_graphs and device.type == "cuda" and self.processes.count == 1 and self.balance is None
        self.graphs = Graphs() if alone and self.precision != "fp16" else None
        if self.graphs:
            optim.replayable(self.optimizer, device)

    def train_step(self, images: Tensor, labels: Tensor, step: int) -> None:
        """One update from this process's share of global batch `step`: images (B / processes, C, S, S)."""
        self.network.train()
        optim.set_lr(self.optimizer, self.lr(step))
        beta, plan = self.beta(step), self._plan(step)
        self.tapped.differentiable = bool(beta)
        self._step.fill_(step)
        if self.graphs:
            self._beta.fill_(beta)
            weight = self._beta if beta else 0.0
            self.graphs.run((plan, bool(beta)), partial(self._update, plan, weight), images, labels)
        else:
            self._update(plan, beta, images, labels)
        if self.average:
            self.average.update(step)
        self._steps += 1

    def averaged(self) -> AbstractContextManager[None]:
        """In this block the network has the weights that are to be judged: the running mean, or its own."""
        return self.average.in_place() if self.average else contextlib.nullcontext()

    def read(self) -> tuple[dict[str, float], int | None]:
        """The means over all processes since the last reading, and the first step whose loss was not finite.

        This is where the host waits for the device; every process must call it at the same step.
        """
        totals: list[float] = self.processes.sum(self._sums).tolist()
        before, steps = self._read
        means = self._means([total - old for total, old in zip(totals, before, strict=True)], self._steps - steps)
        self._read = totals, self._steps
        worst = int(self.processes.min(self._not_finite))
        return means, None if worst == _NEVER else worst

    def close_epoch(self) -> dict[str, float]:
        """The means over all processes and all steps since the last such call."""
        means = self._means(self.processes.sum(self._sums).tolist(), self._steps)
        self._sums.zero_()
        self._steps, self._read = 0, ([0.0] * len(self.names), 0)
        return means

    def state(self) -> dict[str, Any]:
        """Everything but the weights that a training step changes; every process must call it at the same step.

        The sums are those of each process, in the order in which they were added up: what is measured after they are
        restored is the same to the bit, wherever the run was cut.
        """
        sums = self.processes.gather(self._sums)
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": [one.cpu() for one in sums],
            "steps": self._steps,
            "average": self.average.state() if self.average else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; another number of processes shares the sums evenly."""
        optim.load(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.restore(state["average"])
        sums = state["sums"]
        mine = sums[self.processes.rank] if len(sums) == self.processes.count else torch.stack(sums).mean(dim=0)
        self._sums.copy_(mine)
        self._steps = state["steps"]
        self._read = self.processes.sum(self._sums).tolist(), self._steps

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], total: int, batch_size: int) -> dict[str, float | None]:
        """The means over a pass over `total` images in global batches of `batch_size`, both views shown.

        `batches` is this process's share. Every image counts once over all processes; None stands for an empty mean.
        """
        self.processes.share_buffers(self.tapped)
        self.tapped.eval()
        sums = torch.zeros(2, len(self.names), dtype=torch.float64, device=self.processes.device)
        for number, (images, labels) in enumerate(self._until_asked(batches)):
            seen = number * batch_size
            rank, count = self.processes.rank, self.processes.count
            views = Views.plan(self.objective.group, min(batch_size, total - seen), 1.0, seen, rank, count).alone()
            with self._autocast():
                logits, maps = self.tapped(self._laid_out(self.objective.both_views(images, views)))
            terms = self.objective(logits, maps, labels, views, beta=0.0)
            counts = torch.tensor([terms.counts.get(name, 0) for name in self.names]).to(sums.device, non_blocking=True)
            sums += torch.stack((self._stacked(terms) * counts, counts))
        self._leave_if_asked()
        totals, counted = self.processes.sum(sums).tolist()
        return {
            name: whole / count if count else None
            for name, whole, count in zip(self.names, totals, counted, strict=True)
        }

    def equivariance(self, tapped: Tapped, batches: Iterable[Batch]) -> Sums:
        """The sums of `metrics.equivariance_sums` over all processes, in full precision."""
        self.processes.share_buffers(tapped)
        tapped.eval()
        with full_precision():
            seen = (images for images, _ in self._until_asked(batches))
            sums = equivariance_sums(tapped, seen, self.objective.group)
        self._leave_if_asked()
        return add_up(sums, self.processes.sum)

    def _until_asked(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """A pass without training is broken off at once: nothing of it would be saved."""
        for batch in batches:
            if self.stop.asked():
                return
            yield batch

    def _leave_if_asked(self) -> None:
        if self.processes.any(self.stop.asked()):
            raise Stopped

    def _means(self, totals: list[float], steps: int) -> dict[str, float]:
        divisor = max(1, steps * self.accumulate * self.processes.count)
        seen = self.names if self.second_views else [n for n in self.names if not _needs_second_view(n)]
        return {name: total / divisor for name, total in zip(self.names, totals, strict=True) if name in seen}

    def _plan(self, step: int) -> tuple[Views, ...]:
        """The second views of each accumulated part of this process's share of global batch `step`."""
        shares = self.processes.count * self.accumulate
        start = step * round(self.second_views * self.batch_size)
        ranks = range(self.processes.rank, shares, self.processes.count)
        group, size = self.objective.group, self.batch_size
        return tuple(Views.plan(group, size, self.second_views, start, share, shares, self.moves) for share in ranks)

    def _update(self, plan: tuple[Views, ...], beta: float | Tensor, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        balances = self.balance and beta and any(views.whole_second for views in plan)
        pulls: list[Tensor] = []  # the penalty's gradients, where they are balanced
        for part, views in enumerate(plan):
            last = part == self.accumulate - 1
            mine = slice(part, None, self.accumulate)
            with contextlib.nullcontext() if last else self._without_sync():
                terms = self._penalised(self._forward(images[mine], labels[mine], views, beta))
                if balances:
                    pulls.append(self._pull(terms.penalty))
                loss = cast(Tensor, terms.task) if balances else terms.total
                self.scaler.scale(loss / self.accumulate).backward()
            self._note(terms)
        if pulls:
            self._balance(sum(pulls[1:], pulls[0]), beta)
        if self.before_step:
            self.before_step()
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.tapped.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.after_step:
            self.after_step()

    def _pull(self, penalty: Tensor) -> Tensor:
        """The gradient of this part's penalty as one vector, scaled like the others, of this process alone."""
        learned = self._learned()
        if not penalty.requires_grad:  # this share has no second view
            return torch.cat([torch.zeros_like(one).flatten() for one in learned])
        scaled = self.scaler.scale(penalty / self.accumulate)
        gradients = torch.autograd.grad(scaled, learned, retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([one.flatten() for one in gradients])

    def _balance(self, pull: Tensor, beta: float | Tensor) -> None:
        learned, pull = self._learned(), self.processes.sum(pull) / self.processes.count
        task = torch.cat([(torch.zeros_like(one) if one.grad is None else one.grad).flatten() for one in learned])
        step = BALANCES[cast(str, self.balance)](task, pull, beta)
        for one, gradient in zip(learned, step.split([one.numel() for one in learned]), strict=True):
            one.grad = gradient.view_as(one)

    def _learned(self) -> list[nn.Parameter]:
        return [one for one in self.tapped.parameters() if one.requires_grad]

    def _forward(self, images: Tensor, labels: Tensor, views: Views, beta: float | Tensor) -> Terms:
        seen = self._laid_out(self.objective.both_views(images, views))
        with self._autocast():
            logits, maps = self.network(seen)
        return self.objective(logits, maps, labels, views, beta)

    def _penalised(self, terms: Terms) -> Terms:
        if self.penalty is None:
            return terms
        penalty = self.penalty()
        means = {**terms.means, ASYMMETRY: penalty.detach()}
        return Terms(cast(Tensor, terms.task) + self.penalty_weight * penalty, terms.penalty, means, terms.counts)

    def _note(self, terms: Terms) -> None:
        self._sums += self._stacked(terms)
        bad = self._step.masked_fill(torch.isfinite(terms.total.detach()), _NEVER)
        torch.minimum(self._not_finite, bad, out=self._not_finite)

    def _stacked(self, terms: Terms) -> Tensor:
        zero = terms.total.new_zeros(())
        return torch.stack([terms.means.get(name, zero) for name in self.names]).double()

    def _without_sync(self) -> AbstractContextManager[None]:
        """Gradients of this part stay here; the last part of a batch averages them all."""
        no_sync = getattr(self.network, "no_sync", contextlib.nullcontext)
        return no_sync()

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def _autocast(self) -> AbstractContextManager[None]:
        if self.precision not in AUTOCAST:
            return contextlib.nullcontext()
        return torch.autocast(self.processes.device.type, dtype=AUTOCAST[self.precision])


def quantities(taps: Iterable[str]) -> list[str]:
    """The names of all that is measured on a batch."""
    taps = list(taps)
    return [
        "classification",
        "accuracy",
        "accuracy_second_view",
        "equivariance",
        *(f"equivariance/{name}" for name in taps),
        *(f"power/{name}" for name in taps),
    ]


def set_precision(precision: str) -> None:
    """Allow or forbid the tensor cores' 19-bit floats in float32 arithmetic (`tf32`), on the GPUs that have them."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Float32 that is float32, whatever training uses."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_precision("fp32")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


_NEVER = torch.iinfo(torch.int64).max


def _needs_second_view(name: str) -> bool:
    return name.startswith("equivariance") or name == "accuracy_second_view"
