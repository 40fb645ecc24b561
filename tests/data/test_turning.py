from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from ien.data.turning import disc, draws, flipped, rotated


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("side", [8, 9])
def test_quarter_turns_are_exact_and_counter_clockwise(interpolation: str, side: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, side, side), dtype=np.uint8)
    turned = rotated(images, np.arange(4) * math.pi / 2, interpolation)
    for k in range(4):
        np.testing.assert_array_equal(turned[k], np.rot90(images[k], k, axes=(1, 2)))


def test_any_angle_agrees_with_pillow() -> None:
    y, x = np.mgrid[:65, :65] / 64
    image = (127 + 60 * np.sin(5 * x) + 60 * np.cos(3 * y + x)).astype(np.uint8)
    for degrees in (10, 45, 200.5):
        ours = rotated(image[None, None], np.array([math.radians(degrees)]))[0, 0].astype(int)
        theirs = np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR)).astype(int)
        inside = disc(65) == 1
        assert np.abs(ours - theirs)[inside].max() <= 1


@pytest.mark.parametrize("side", [8, 28, 64, 65])
def test_inside_the_disc_nothing_is_mixed_with_the_outside(side: int) -> None:
    white = np.full((50, 1, side, side), 255, dtype=np.uint8)
    turned = rotated(white, np.random.default_rng(0).uniform(0, 2 * math.pi, 50))
    assert (turned[:, 0][:, disc(side) == 1] == 255).all()
    assert (turned[0, 0] != 255).any()  # the corners did leave the frame


def test_a_disc_of_five() -> None:
    expected = ["00100", "01110", "11111", "01110", "00100"]
    assert ["".join(map(str, row)) for row in disc(5)] == expected


def test_flips() -> None:
    image = np.array([[1, 2], [3, 4]], dtype=np.uint8)
    done = flipped(np.stack([image[None]] * 3), np.array([0, 1, 2]))
    assert done[:, 0].tolist() == [[[1, 2], [3, 4]], [[2, 1], [4, 3]], [[3, 4], [1, 2]]]


def test_draws_belong_to_the_image_and_not_to_its_block() -> None:
    angles, flips = draws(3, "train", np.arange(20))
    for block in (np.arange(5, 9), np.array([19, 2])):
        some_angles, some_flips = draws(3, "train", block)
        np.testing.assert_array_equal(some_angles, angles[block])
        np.testing.assert_array_equal(some_flips, flips[block])
    for seed, split in ((4, "train"), (3, "test")):
        assert not np.isin(draws(seed, split, np.arange(20))[0], angles).any()


def test_draws_are_uniform() -> None:
    angles, flips = draws(0, "train", np.arange(4000))
    counts = np.histogram(angles, 16, (0, 2 * math.pi))[0]
    assert counts.sum() == 4000
    assert ((counts - 250) ** 2 / 250).sum() < 45  # chi-square of 15 degrees of freedom, p = 1e-4
    assert ((np.bincount(flips, minlength=3) - 4000 / 3) ** 2 / (4000 / 3)).sum() < 19


def test_every_machine_rounds_a_turned_pixel_alike() -> None:
    """Against the formula, in float64 and without torch: float32 gets some of these pixels wrong by one."""
    side, angles = 28, np.linspace(0.1, 6.2, 400)
    images = np.random.default_rng(0).integers(0, 256, (len(angles), 1, side, side), dtype=np.uint8)
    offset = np.arange(side) - (side - 1) / 2
    y, x = np.meshgrid(offset, offset, indexing="ij")
    for image, angle, turned in zip(images[:, 0], angles, rotated(images, angles)[:, 0], strict=True):
        from_x = np.cos(angle) * x - np.sin(angle) * y + (side - 1) / 2
        from_y = np.sin(angle) * x + np.cos(angle) * y + (side - 1) / 2
        left, top = np.floor(from_x).astype(int), np.floor(from_y).astype(int)
        padded = np.pad(image.astype(np.float64), side)
        value = np.zeros((side, side))
        for row, by_row in ((top, 1 - (from_y - top)), (top + 1, from_y - top)):
            for column, by_column in ((left, 1 - (from_x - left)), (left + 1, from_x - left)):
                value += padded[row + side, column + side] * by_row * by_column
        assert np.array_equal(np.round(value).astype(np.uint8), turned)
