"""What is written down of a pass, and of a finished run?"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ien.build import Parts, make_network
from ien.engine import ASYMMETRY
from ien.metrics import mean_errors, relative_errors
from ien.taps import Tapped
from ien.tracking import table

Record = dict[str, Any]


def evaluation_record(split: str, epoch: int, step: int, means: dict[str, float | None]) -> Record:
    """One line of `metrics.jsonl`: losses and feature norms by tap, accuracies on the images and on second views."""

    def by_tap(kind: str) -> dict[str, float]:
        return {
            name.split("/", 1)[1]: mean for name, mean in means.items() if name.startswith(kind) and mean is not None
        }

    record = {
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
    if means.get(ASYMMETRY) is not None:
        record[ASYMMETRY] = means[ASYMMETRY]  # of the steps, where it is minimised
    return record


def test(parts: Parts, weights: dict[str, Tensor], epoch: int, step: int, split: str) -> Record:
    """Accuracy and losses on the test set (`split`: "test") or the held-out images ("val"), and the relative
    equivariance error before and after training."""
    parts.tapped.model.load_state_dict(weights)
    group, settings = parts.engine.objective.group, parts.settings
    record = evaluation_record(split, epoch, step, parts.test() if split == "test" else parts.validate())
    untrained = make_network(settings, group, parts.data).to(parts.processes.device)
    errors = equivariance_by_element(parts, parts.tapped, split)
    record["relative_equivariance_error"] = mean_errors(errors)
    record["relative_equivariance_error_by_element"] = errors
    record["relative_equivariance_error_before"] = mean_errors(equivariance_by_element(parts, untrained, split))
    record["equivariance_images"] = _measured(parts, split)
    if parts.symmetry:
        record["weight_distance"] = float(parts.symmetry.distance())
    return record


def equivariance_by_element(parts: Parts, tapped: Tapped, split: str) -> dict[str, dict[str, dict[str, float | None]]]:
    """`metrics.relative_errors` on up to `run.equivariance_images` images of the test set, or held-out ones (`val`)."""
    images = parts.in_order(parts.data.test if split == "test" else parts.data.val, _measured(parts, split))
    return relative_errors(parts.engine.equivariance(tapped, images), parts.engine.objective.group)


def _measured(parts: Parts, split: str) -> int:
    return min(parts.settings.run.equivariance_images, len(parts.data.test if split == "test" else parts.data.val))


def report_table(record: Record) -> str:
    """The figures of a test as a small table for the screen."""
    before, after = record["relative_equivariance_error_before"], record["relative_equivariance_error"]
    rows = [[name, _number(before[name]), _number(after[name])] for name in after]
    distance = record.get("weight_distance")
    return "\n".join(
        [
            f"{'test' if record['split'] == 'test' else 'validation'} accuracy {100 * record['accuracy']:.2f} %"
            f" ({100 * record['accuracy_second_view']:.2f} % on transformed copies)",
            "",
            table(["relative equivariance error", "untrained", "trained"], rows),
            *([] if distance is None else ["", f"distance of the weights to equivariant ones {distance:.3g}"]),
        ]
    )


def _number(value: float | None) -> str:
    return "not measurable" if value is None else f"{value:.3f}"
