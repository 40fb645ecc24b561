"""Does a feature map say anything? (its size, how much of it varies, its dead channels, and a verdict)

A layer that answers the same to everything commutes with every transformation. Its error is no merit, so beside each
error stand these figures, and a verdict by a rule that is written down:

    collapsed   at least 90 % of the channels are dead, or less than 1e-4 of the mean square varies
    flat        it varies from image to image, but less than 1e-4 of the mean square within an image: every turn leaves
                such maps as they are
    alive       anything else

A channel is dead if its largest and its smallest value over all images and pixels are the same to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ien.taps import Tapped

DEAD_SHARE, VARYING_SHARE, ROUNDING = 0.9, 1e-4, 1e-6
LOGITS = "logits"


@dataclass
class Activity:
    """Sums over the images of one tap with C channels, float64, on the device."""

    sums: Tensor  # (4, C): values, their squares, the variance within each image's map, images
    low: Tensor  # (C,) the smallest value
    high: Tensor  # (C,) the largest
    pixels: int
    side: int


@torch.no_grad()
def activity(tapped: Tapped, batches: Iterable[Tensor]) -> dict[str, dict[str, Any]]:
    """The figures of every tap, and of the logits under `LOGITS`, over images (B, C, S, S).

    Call it in eval mode and in full precision.
    """
    seen: dict[str, Activity] = {}
    for images in batches:
        logits, maps = tapped(images)
        for name, values in {**maps, LOGITS: logits[..., None, None]}.items():
            here = observed(values)
            seen[name] = _joined(seen[name], here) if name in seen else here
    return {name: figures(one) for name, one in seen.items()}


def observed(maps: Tensor) -> Activity:
    """What one batch of maps (B, C, S, S) adds."""
    values = maps.double().flatten(2)
    images = values.new_full((values.shape[1],), len(values))
    sums = (
        values.sum(dim=(0, 2)),
        values.square().sum(dim=(0, 2)),
        values.var(dim=2, correction=0).sum(dim=0),
        images,
    )
    low, high = values.amin(dim=(0, 2)), values.amax(dim=(0, 2))
    return Activity(torch.stack(sums), low, high, values.shape[2], maps.shape[-1])


def figures(one: Activity) -> dict[str, Any]:
    """side, channels; rms; spatial_variance (mean over images and channels of the variance within a map) and its share
    of the mean square; varying (the share of the mean square that is not the channels' constant means); dead_channels
    (a share); verdict."""
    total, squares, within, images = one.sums
    count = images * one.pixels
    power = squares / count
    mean_square, variance = float(power.mean()), float((power - (total / count).square()).clamp_min(0).mean())
    spatial = float((within / images).mean())
    size = torch.maximum(one.high.abs(), one.low.abs())
    found = {
        "side": one.side,
        "channels": len(one.low),
        "rms": mean_square**0.5,
        "spatial_variance": spatial,
        "spatial_share": spatial / mean_square if mean_square else 0.0,
        "varying": variance / mean_square if mean_square else 0.0,
        "dead_channels": float((one.high - one.low <= ROUNDING * size).double().mean()),
    }
    return found | {"verdict": verdict(found)}


def verdict(found: Mapping[str, Any]) -> str:
    """`collapsed`, `flat` or `alive`, by the rule above; logits and other single pixels cannot be flat."""
    if found["dead_channels"] >= DEAD_SHARE or found["varying"] < VARYING_SHARE:
        return "collapsed"
    return "flat" if found["spatial_share"] < VARYING_SHARE and found["side"] > 1 else "alive"


def _joined(a: Activity, b: Activity) -> Activity:
    return Activity(a.sums + b.sums, torch.minimum(a.low, b.low), torch.maximum(a.high, b.high), a.pixels, a.side)
