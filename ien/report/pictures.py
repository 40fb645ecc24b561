"""What do feature maps and filters look like? (pictures, from the arrays of `gallery`)"""

from __future__ import annotations

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from ien.report.gallery import Stabilised, View
from ien.report.plots import GREY, STYLE, canvas, png

STABILISED = (
    "the image through the orbit, and below it one pooled channel of some layers, turned back. An equivariant layer "
    "shows the same map in every column. The errors are of this image, over all channels of the layer."
)
FILTERS = (
    "the first layer's kernels. The members of a filter group are pooled together; in an equivariant network they are "
    "turns of one another."
)
MAPS, DIFFERENCES, KERNELS = "viridis", "inferno", "PuOr"  # all three readable without colours
_GROUPS, _ROWS = 24, 8  # filter groups in one picture; and below one another


def draw_stabilised(name: str, seen: Stabilised) -> bytes:
    """PNG: the image through the orbit; below, for each tap, its map turned back, and where it differs from the first.

    A tap's maps share one scale, and its differences are drawn on the same one, from 0 to the whole range of its map.
    """
    with style.context(["default", STYLE, {"axes.grid": False}]):
        across, down = len(seen.elements), 1 + 2 * len(seen.views)
        title = f"{name}: an image through the orbit,\nits feature maps turned back"
        figure = canvas(title, 1.4 + 1.2 * across, 0.7 + 1.27 * down)
        grid = figure.subplots(down, across + 1, squeeze=False, width_ratios=[1.0] * across + [0.07])
        grid[0, across].axis("off")
        for column, element in enumerate(seen.elements):
            _picture(grid[0, column], seen.images[column], "gray", 0, 1)
            grid[0, column].set_title(f"{element}" if column else "0°", fontsize=9)
        _name(grid[0, 0], "image")
        for place, view in enumerate(seen.views):
            _draw_view(grid[1 + 2 * place], grid[2 + 2 * place], view)
        return png(figure)


def draw_filters(name: str, kernels: np.ndarray) -> bytes:
    """PNG: the kernels (groups, members, k, k) or (…, k, k, 3) of the first layer, one filter group in each row."""
    with style.context(["default", STYLE, {"axes.grid": False}]):
        shown = kernels[:_GROUPS]
        columns = -(-len(shown) // _ROWS)
        rows, members = min(_ROWS, len(shown)), shown.shape[1]
        left_out = f", the first {len(shown)} of {len(kernels)} groups" if len(kernels) > len(shown) else ""
        title = f"{name}:\nfirst-layer filters, a filter group in each row{left_out}"
        figure = canvas(title, max(4.4, 1.2 + columns * (0.4 + 0.6 * members)), 0.8 + 0.6 * rows)
        panels = figure.subplots(1, columns, squeeze=False)[0]
        limit = float(np.nanmax(np.abs(shown))) or 1.0
        for column, axes in enumerate(panels):
            part = shown[column * rows : (column + 1) * rows]
            _picture(axes, _sheet(part, limit), KERNELS, -limit, limit)
            places = (shown.shape[2] + 1) * np.arange(len(part)) + (shown.shape[2] - 1) / 2
            axes.set_yticks(places, [str(column * rows + row + 1) for row in range(len(part))])
            axes.tick_params(length=0)
        if shown.ndim == 4:
            scale = ScalarMappable(Normalize(-limit, limit), KERNELS)
            figure.colorbar(scale, ax=list(panels), location="right", shrink=0.7, label="weight", aspect=25)
        return png(figure)


def _sheet(kernels: np.ndarray, limit: float) -> np.ndarray:
    """The kernels of some groups on one sheet, a pixel apart; colours from [-limit, limit] to [0, 1]."""
    groups, members, high, wide = kernels.shape[:4]
    paper = np.full((groups * (high + 1) - 1, members * (wide + 1) - 1, *kernels.shape[4:]), np.nan)
    for group in range(groups):
        for member in range(members):
            top, left = group * (high + 1), member * (wide + 1)
            paper[top : top + high, left : left + wide] = kernels[group, member]
    return np.nan_to_num((paper / limit + 1) / 2, nan=1.0) if kernels.ndim == 5 else paper


def _draw_view(above: np.ndarray, below: np.ndarray, view: View) -> None:
    """Two rows of axes, the last of each for its colour bar."""
    first = view.maps[0]
    low, high = float(np.nanmin(view.maps)), float(np.nanmax(view.maps))
    high = high if high > low else low + 1
    below[0].axis("off")
    for column, (back, error) in enumerate(zip(view.maps, view.errors, strict=True)):
        _picture(above[column], back, MAPS, low, high)
        if column:
            _picture(below[column], np.abs(back - first), DIFFERENCES, 0, high - low)
            told = "not measurable" if error is None else f"error {error:.2f}"
            below[column].set_xlabel(told, fontsize=8, color=GREY)
    _name(above[0], f"{view.tap}\nturned back")
    _name(below[0], "difference\nfrom 0°")
    _scale(above[-1], MAPS, low, high)
    _scale(below[-1], DIFFERENCES, 0.0, high - low)


def _scale(axes: Axes, cmap: str, low: float, high: float) -> None:
    """A colour bar with its two ends named."""
    axes.imshow(np.linspace(1, 0, 64)[:, None], cmap=cmap, aspect="auto", extent=(0, 1, low, high))
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks([low, high], [f"{end:.2g}".replace("-", "−") for end in (low, high)], fontsize=7)
    axes.spines[:].set_visible(False)


def _picture(axes: Axes, picture: np.ndarray, cmap: str, low: float, high: float) -> None:
    axes.imshow(picture, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _name(axes: Axes, text: str) -> None:
    axes.text(-0.08, 0.5, text, transform=axes.transAxes, ha="right", va="center", fontsize=8.5)
