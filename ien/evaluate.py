"""What did a finished run learn, in figures?"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ien.build import Parts, make_network
from ien.metrics import mean_errors, relative_errors
from ien.tracking import table

Record = dict[str, Any]


def evaluation_record(split: str, epoch: int, step: int, means: dict[str, float | None]) -> Record:
    """One line of `metrics.jsonl`: losses and feature norms by tap, accuracies on the images and on second views."""

    def by_tap(kind: str) -> dict[str, float]:
        return {
            name.split("/", 1)[1]: mean for name, mean in means.items() if name.startswith(kind) and mean is not None
        }

    return {
        "epoch": epoch,
        "step": step,
        "split": split,
        "class_loss": means["classification"],
        "equivariance": means.get("equivariance"),  # the weighted sum over taps, as it is minimised
        "equi_loss": by_tap("equivariance/"),
        "accuracy": means["accuracy"],
        "accuracy_second_view": means.get("accuracy_second_view"),
        "feature_norm": {name: power**0.5 for name, power in by_tap("power/").items()},
    }


def test(parts: Parts, weights: dict[str, Tensor], epoch: int, step: int) -> Record:
    """Accuracy and losses on the test set, and the relative equivariance error before and after training."""
    parts.tapped.model.load_state_dict(weights)
    group, settings = parts.engine.objective.group, parts.settings
    record = evaluation_record("test", epoch, step, parts.test())
    untrained = make_network(settings, group, parts.data).to(parts.processes.device)
    images = min(settings.run.equivariance_images, len(parts.data.test))
    for name, tapped in (("", parts.tapped), ("_before", untrained)):
        errors = relative_errors(parts.engine.equivariance(tapped, parts.in_order(parts.data.test, images)), group)
        record[f"relative_equivariance_error{name}"] = mean_errors(errors)
        if tapped is parts.tapped:
            record["relative_equivariance_error_by_element"] = errors
    record["equivariance_images"] = images
    return record


def report_table(record: Record) -> str:
    """The figures of a test as a small table for the screen."""
    before, after = record["relative_equivariance_error_before"], record["relative_equivariance_error"]
    rows = [[name, _number(before[name]), _number(after[name])] for name in after]
    return "\n".join(
        [
            f"test accuracy {100 * record['accuracy']:.2f} %"
            f" ({100 * record['accuracy_second_view']:.2f} % on transformed copies)",
            "",
            table(["relative equivariance error", "untrained", "trained"], rows),
        ]
    )


def _number(value: float | None) -> str:
    return "not measurable" if value is None else f"{value:.3f}"
