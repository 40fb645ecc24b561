"""Draws `docs/method.png` from two finished runs: python docs/draw_method.py RUN_BETA_0 RUN_BETA_1 [tap] [image]

A row for each run: a test image, the same turned by 90°, the strongest pooled channel of a tap for the first, for the
second turned back, and where the two differ. Both maps and their difference share one scale.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ien import build, checkpoint, config, distributed
from ien.groups import Element

SIDE, GAP, HEAD, MARGIN = 168, 14, 30, 150
COLUMNS = ("image x", "turned g·x", "feature map f(x)", "f(g·x) turned back", "difference")


@torch.no_grad()
def panels(run: Path, tap: str, index: int) -> tuple[str, list[np.ndarray]]:
    """The five pictures of one run, as (S, S, 3) in [0, 1], and its name."""
    settings = config.load(run / "config.yaml", ["run.device=cpu"])
    with distributed.processes("cpu") as processes:
        parts = build.parts(settings, processes)
    best = checkpoint.load(run / "checkpoints" / checkpoint.BEST)
    parts.tapped.model.load_state_dict(best["model"])
    parts.tapped.eval()
    group, turn = parts.engine.objective.group, Element(1, 4)
    image = next(iter(parts.in_order(parts.data.test.take(np.array([index])))))[0]
    moved = group.act(image, turn)
    here, there = parts.tapped(image)[1][tap], group.act(parts.tapped(moved)[1][tap], turn.inverse)
    channel = int(here.std(dim=(-2, -1)).argmax())
    first, second = here[0, channel], there[0, channel]
    low, high = float(torch.minimum(first, second).min()), float(torch.maximum(first, second).max())
    maps = [coloured((part - low) / (high - low)) for part in (first, second)]
    grey = [part[0].movedim(0, -1).expand(-1, -1, 3).numpy() for part in (image, moved)]
    return f"beta {settings.beta_weight:g}", [*grey, *maps, coloured((first - second).abs() / (high - low))]


def coloured(values: Tensor) -> np.ndarray:
    """(S, S) in [0, 1] from dark blue over violet and orange to pale yellow."""
    stops = np.array([[12, 8, 38], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]) / 255
    place = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values.numpy(), place, stops[:, part]) for part in range(3)], axis=-1)


def main() -> None:
    runs = [Path(word) for word in sys.argv[1:3]]
    tap = sys.argv[3] if len(sys.argv) > 3 else "block2"
    index = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    width = MARGIN + len(COLUMNS) * (SIDE + GAP)
    sheet = Image.new("RGB", (width, HEAD + len(runs) * (SIDE + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for column, title in enumerate(COLUMNS):
        draw.text((MARGIN + column * (SIDE + GAP), 6), title, "black", font)
    for row, run in enumerate(runs):
        name, pictures = panels(run, tap, index)
        top = HEAD + row * (SIDE + GAP)
        draw.text((8, top + SIDE // 2 - 10), name, "black", font)
        for column, picture in enumerate(pictures):
            shown = Image.fromarray((picture * 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(shown, (MARGIN + column * (SIDE + GAP), top))
    sheet.save(Path(__file__).parent / "method.png", optimize=True)


if __name__ == "__main__":
    main()
