"""What became of one trial?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["finished", "stopped", "failed", "unfinished"]  # stopped: by the scheduler


@dataclass(frozen=True)
class Outcome:
    """What became of one trial."""

    number: int
    settings: dict[str, Any]  # the point that was tried: dotted config key → value; inactive keys are absent
    state: State
    curve: list[dict[str, float]]  # metrics epoch by epoch, means over its seeds; index 0 is epoch 1
    spread: dict[str, float]  # standard deviation over seeds (n - 1) at the last epoch; {} for one seed
    seconds: float  # of training, summed over its seeds
    cause: str | None  # of a failure
    folders: tuple[Path, ...]  # run folders, one per seed

    @property
    def epoch(self) -> int:
        """The last epoch that it reached; 0 before the first one has ended."""
        return len(self.curve)

    @property
    def metrics(self) -> dict[str, float]:
        """Those of its last epoch."""
        return self.curve[-1] if self.curve else {}

    @property
    def seeds(self) -> int:
        return max(1, len(self.folders))

    @property
    def epochs_trained(self) -> int:
        """Of all its seeds together."""
        return self.epoch * self.seeds

    @property
    def written(self) -> dict[str, str]:
        """Its settings as a config has them: `0.1`, `false`, `null`, `[8, 2, 1]`, `R8-4-2-1`."""
        return {
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            for key, value in self.settings.items()
        }
