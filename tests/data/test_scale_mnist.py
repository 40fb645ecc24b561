from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ien.data import open_dataset
from ien.data.__main__ import main
from ien.data.scale_mnist import plan, shrunk
from ien.data.writing import Plan
from ien.errors import InputError


def made(plan: Plan, split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*plan.blocks(split), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_each_image_is_shrunk_by_a_factor_of_its_own(mnist: Path) -> None:
    """The mass goes with the square of the factor: for one uniform in [0.3, 1) it becomes 0.09 to 1 times as much."""
    small = plan(mnist, seed=1, train=25, test=15)
    (train, train_labels), (test, test_labels) = made(small, "train"), made(small, "test")
    images, labels = np.concatenate([train, test]), np.concatenate([train_labels, test_labels])
    assert sorted(labels) == sorted(np.arange(40) % 10)  # pooled from both parts, each image once
    # The block of image k, 8 × 12 pixels, has the brightness 100 + k, and its label is k % 10.
    masses = images.sum(axis=(1, 2, 3)) / (96 * 100)
    assert 0.09 * 0.9 < masses.min() < 0.25
    assert 0.7 < masses.max() < 1.4
    assert len(set(masses)) == 40


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.77, 1.0])
def test_the_factor_is_kept_exactly_and_so_is_the_centre(factor: float) -> None:
    """Mass and moments of a square: a factor rounded to whole pixels, or a centre half a pixel off, would show."""
    image = np.zeros((28, 28), np.uint8)
    image[4:14, 12:22] = 200
    place = np.arange(28) - 13.5
    for turned in (image, image[::-1, ::-1]):
        small = shrunk(turned, factor).astype(float)
        assert small.sum() == pytest.approx(factor**2 * 200 * 100, rel=0.05)
        for axis, mean in ((0, -5.0), (1, 3.0)):
            moment = (small.sum(axis=1 - axis) * place).sum() / small.sum()
            assert moment == pytest.approx(factor * (mean if turned is image else -mean), abs=0.05)
    assert (shrunk(image, 1.0) == image).all()


def test_fine_stripes_become_grey() -> None:
    stripes = np.zeros((28, 28), np.uint8)
    stripes[:, ::2] = 200
    inside = shrunk(stripes, 0.4)[11:17, 11:17].astype(float)
    assert abs(inside.mean() - 100) < 5
    assert inside.std() < 15  # 100 before


def test_the_seed_and_nothing_else_decides(mnist: Path) -> None:
    once, again, other = (made(plan(mnist, seed=seed, train=20, test=20), "test")[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()


def test_prepared_and_opened(mnist: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    command = ["scale_mnist", "--from", str(mnist), "--train", "25", "--test", "15", "--root", str(root)]
    main([*command, "--smallest", "0.5"])
    recipe = json.loads((root / "scale_mnist" / "meta.json").read_text())["recipe"]
    assert recipe["factor"] == "uniform in [0.5, 1), zero outside"
    assert set(recipe["sha256"]) >= {"train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"}
    data = open_dataset("scale_mnist", root=root, val_split=5)
    assert (len(data.train), len(data.val), len(data.test), len(data.classes)) == (20, 5, 15, 10)


def test_what_cannot_be_is_told(mnist: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"12000 \+ 50000 images are wanted, MNIST here has 40"):
        plan(mnist)
    with pytest.raises(InputError, match="nowhere does not exist; give a folder of MNIST's IDX files"):
        plan(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is no folder of MNIST's IDX files"):
        plan(tmp_path / "empty")
    with pytest.raises(InputError, match=r"python -m ien\.data scale_mnist --from mnist/"):
        open_dataset("scale_mnist", root=tmp_path)
