from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ien.data import open_dataset
from ien.data.rot_mnist import plan
from ien.data.writing import Plan, write_prepared
from ien.errors import InputError
from tests.data.inputs import idx_bytes

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def made(plan: Plan, split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*plan.blocks(split), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_plain_mnist_is_pooled_shuffled_and_turned(mnist: Path) -> None:
    small = plan(mnist, seed=1, train=25, test=15)
    (train, train_labels), (test, test_labels) = made(small, "train"), made(small, "test")
    # The block of image k has the brightness 100 + k, and its label is k % 10.
    numbers = np.concatenate([train, test]).max(axis=(1, 2, 3)).astype(int) - 100
    assert sorted(numbers) == list(range(40))
    assert (numbers % 10 == np.concatenate([train_labels, test_labels])).all()
    assert set(numbers[:25]) & set(range(30, 40))  # from both parts
    assert len({image.tobytes() for image in (train > 0)}) == 25  # each has its own angle


def test_the_seed_and_nothing_else_decides(mnist: Path) -> None:
    once, again, other = (made(plan(mnist, seed=seed, train=20, test=20), "test")[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()
    assert plan(mnist, seed=1, train=20, test=20).recipe != plan(mnist, seed=2, train=20, test=20).recipe


def test_nearest_invents_no_grey(mnist: Path) -> None:
    images, _ = made(plan(mnist, train=20, test=20, interpolation="nearest"), "train")
    assert all(len(np.unique(image)) == 2 for image in images)


@pytest.mark.parametrize("place", ["MNIST/raw", "raw", "."])
def test_torchvisions_folder_and_unpacked_files(mnist: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "other" / place).mkdir(parents=True)
    for path in mnist.iterdir():
        (tmp_path / "other" / place / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    expected, found = (made(plan(folder, train=9, test=9), "train") for folder in (mnist, tmp_path / "other"))
    np.testing.assert_array_equal(expected[0], found[0])


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def shorter(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content)[:-1])


def longer(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content) + b"0")


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (TRAIN_IMAGES, cut, "cannot be read"),
        (TRAIN_IMAGES, lambda content: b"nothing", "cannot be read"),
        (TRAIN_IMAGES, shorter, "says 30x28x28 but holds 23519 bytes"),
        (TRAIN_IMAGES, longer, "says 30x28x28 but holds 23521 bytes"),
        (TRAIN_IMAGES, lambda _: gzip.compress(b""), "no IDX file of images"),
        (TRAIN_IMAGES, lambda _: gzip.compress(idx_bytes(np.zeros(30))), "no IDX file of images"),
        (TRAIN_IMAGES, lambda _: gzip.compress(idx_bytes(np.zeros((30, 28, 27)))), "must be square"),
        (TRAIN_LABELS, lambda _: gzip.compress(idx_bytes(np.full(30, 10))), "the label 10"),
        (TRAIN_LABELS, lambda _: gzip.compress(idx_bytes(np.zeros(29))), "29 labels for 30 images"),
    ],
)
def test_a_damaged_idx_file_is_named(mnist: Path, file: str, damage: Callable[[bytes], bytes], message: str) -> None:
    (mnist / file).write_bytes(damage((mnist / file).read_bytes()))
    with pytest.raises(InputError, match=message) as raised:
        plan(mnist, train=10, test=10)
    assert file in str(raised.value)


def test_a_source_that_is_not_whole_or_nothing(mnist: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"12000 \+ 50000 images are wanted, MNIST here has 40"):
        plan(mnist)
    (mnist / TRAIN_LABELS).unlink()
    with pytest.raises(InputError, match="missing: train-labels-idx1-ubyte"):
        plan(mnist)
    with pytest.raises(InputError, match=r"neither \.amat files nor"):
        plan(tmp_path)
    with pytest.raises(InputError, match="nowhere does not exist"):
        plan(tmp_path / "nowhere")


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    return folder.with_suffix(".zip")


@pytest.mark.parametrize("packed", [False, True])
def test_the_official_rows_are_kept_as_they_stand(official: Path, tmp_path: Path, packed: bool) -> None:
    source = zipped(official) if packed else official
    write_prepared(plan(source, train=12, test=8), tmp_path, "rot_mnist")
    data = open_dataset("rot_mnist", root=tmp_path, val_split=4)
    assert (len(data.train), len(data.val), len(data.test)) == (8, 4, 8)
    expected = np.zeros((8, 28 * 28), np.uint8)
    expected[np.arange(8), np.arange(8)] = 20 * np.arange(8)
    np.testing.assert_array_equal(np.asarray(data.test.images).reshape(8, -1), expected)
    assert data.test.labels.tolist() == list(range(8))


def test_other_numbers_of_rows_are_refused(official: Path) -> None:
    for train in (11, 13):
        with pytest.raises(InputError, match=f"train rows, expected {train}"):
            made(plan(official, train=train, test=8), "train")


def changed(path: Path, row: int, change: Callable[[list[str]], list[str]]) -> None:
    lines = path.read_text().splitlines()
    lines[row] = " ".join(change(lines[row].split()))
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda words: words[:-1],
        lambda words: [*words, "0"],
        lambda words: ["x", *words[1:]],
        lambda words: [*words[:-1], "10"],
        lambda words: [*words[:-1], "2.5"],
        lambda words: ["1.5", *words[1:]],
        lambda words: ["-0.5", *words[1:]],
        lambda words: ["nan", *words[1:]],
    ],
)
def test_a_wrong_row_is_named(official: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = next(official.glob("*_test.amat"))
    changed(path, 5, change)
    with pytest.raises(InputError, match=rf"{path.name} row 6\b"):
        made(plan(official, train=12, test=8), "test")


def test_two_wrong_rows_do_not_make_up_for_each_other(official: Path) -> None:
    path = next(official.glob("*_test.amat"))
    changed(path, 2, lambda words: words[:-1])
    changed(path, 3, lambda words: ["0", *words])
    with pytest.raises(InputError, match=r"row 3\b"):
        made(plan(official, train=12, test=8), "test")


def test_a_damaged_official_zip(official: Path) -> None:
    source = zipped(official)
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"official\.zip is damaged or truncated"):
        made(plan(source, train=12, test=8), "train")
    middle = len(content) // 4
    source.write_bytes(content[:middle] + bytes(20) + content[middle + 20 :])
    with pytest.raises(InputError, match=r"official\.zip is damaged"):
        [made(plan(source, train=12, test=8), split) for split in ("train", "test")]


def test_a_zip_without_the_rows(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "")
    with pytest.raises(InputError, match=r"holds 0 files that end in _train_valid\.amat"):
        made(plan(tmp_path / "other.zip"), "train")
