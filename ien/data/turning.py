"""How is a stored image rotated, flipped and masked, the same way on every machine?

Every image has a draw of its own, from (seed, split, index): the number of workers does not matter.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SPLIT_NUMBERS = {"train": 1, "test": 2, "val": 3}
FLIPS = ("none", "horizontal", "vertical")


def draws(seed: int, split: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angles (radians, uniform in [0, 2π)) and flips (indices into `FLIPS`, uniform), one of each per image."""
    generators = [np.random.default_rng([seed, SPLIT_NUMBERS[split], int(i) + 1]) for i in indices]
    angles = np.array([generator.uniform(0, 2 * math.pi) for generator in generators])
    flips = np.array([generator.integers(len(FLIPS)) for generator in generators])
    return angles, flips


def rotated(images: np.ndarray, angles: np.ndarray, interpolation: str = "bilinear") -> np.ndarray:
    """Images uint8 (B, C, S, S) turned counter-clockwise about their centre by angles (B,) in radians; zero outside.

    In float64: in float32 processors differ in the last digits, and one pixel in some 70,000 is then rounded otherwise.
    """
    angle = torch.from_numpy(np.asarray(angles, dtype=np.float64))
    seen = turned(torch.from_numpy(images).double(), angle, interpolation)
    return seen.round_().clamp_(0, 255).to(torch.uint8).numpy()


def turned(images: Tensor, angles: Tensor, interpolation: str = "bilinear") -> Tensor:
    """Images (B, C, S, S) turned counter-clockwise about their centre by angles (B,) in radians; zero outside.

    On the images' device and in their precision, which the angles share; one resampling for the whole batch.
    """
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # grid_sample asks for the source of every target pixel; x points right and y down.
    matrix = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=interpolation, padding_mode="zeros", align_corners=False)


def flipped(images: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Images (B, C, S, S), flipped as `FLIPS[flips[i]]` says: horizontal swaps left and right, vertical up and down."""
    result = images.copy()
    for number, axis in ((1, 3), (2, 2)):
        result[flips == number] = np.flip(images[flips == number], axis=axis)
    return result


def disc(side: int) -> np.ndarray:
    """Mask uint8 (S, S): 1 where a pixel's centre lies within (S-1)/2 of the image's centre.

    Whatever the angle, such a pixel is interpolated between pixels of the image alone, never with the outside.
    """
    offset = np.arange(side) - (side - 1) / 2
    radius = (side - 1) / 2
    return (offset[:, None] ** 2 + offset[None, :] ** 2 <= radius**2 + 1e-9).astype(np.uint8)
