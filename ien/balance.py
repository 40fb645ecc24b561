"""How do the gradients of two objectives become one step?

c is the gradient of the task (classification), e that of the penalty, both as one vector over all weights, averaged
over all processes. Without balance the step follows c + e, with beta in e.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def norm_ratio(task: Tensor, penalty: Tensor, beta: float | Tensor) -> Tensor:
    """c + beta · ‖c‖ · e / ‖e‖: beta is the ratio of the two norms, in every step, whatever the scale of the features.

    With beta 1 it is where GradNorm (Chen et al. 2018, arXiv 1711.02257) without asymmetry (α = 0) settles for two
    losses; nothing is learned for it, and all weights take part instead of the last shared layer's.
    """
    return task + beta * task.norm() / penalty.norm().clamp_min(_TINY) * penalty


def pcgrad(task: Tensor, penalty: Tensor, _beta: float | Tensor) -> Tensor:
    """Where c and e point away from one another, each loses what is against the other (PCGrad, Yu et al. 2020, arXiv
    2001.06782); elsewhere c + e."""
    against = torch.dot(task, penalty).clamp_max(0)
    off_penalty = task - against / penalty.square().sum().clamp_min(_TINY) * penalty
    off_task = penalty - against / task.square().sum().clamp_min(_TINY) * task
    return off_penalty + off_task


BALANCES: dict[str, Callable[[Tensor, Tensor, float | Tensor], Tensor]] = {"norm_ratio": norm_ratio, "pcgrad": pcgrad}
_TINY = torch.finfo(torch.float32).tiny
