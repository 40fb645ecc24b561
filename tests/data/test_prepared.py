from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ien.data import open_dataset
from ien.data.prepared import Rows, hold_out, open_prepared
from ien.data.writing import Plan, write_prepared
from ien.errors import InputError
from tests.data.inputs import numbered


@pytest.fixture
def numbers(tmp_path: Path, plan_of: Callable[..., Plan]) -> Path:
    write_prepared(plan_of(), tmp_path, "numbers")
    return tmp_path / "numbers"


def test_what_was_written_is_opened(numbers: Path) -> None:
    data = open_prepared(numbers.parent, "numbers", val_split=0, seed=0)
    assert (data.name, data.channels, data.side, len(data.train), len(data.val), len(data.test)) == (
        ("numbers", 1, 4, 10, 0, 6)
    )
    assert np.asarray(data.train.images)[:, 0, 0, 0].tolist() == list(range(10))
    assert data.test.labels.tolist() == list(range(6))
    assert isinstance(data.train.images.stored, np.memmap)


@pytest.mark.parametrize(("val_split", "held"), [(3, 3), (0.25, 5), (0, 0), (0.0, 0)])
def test_held_out_images_and_the_others_make_the_whole(val_split: float, held: int) -> None:
    train, val = hold_out(numbered(20), val_split, seed=1)
    assert len(val) == held
    values = [np.asarray(part.images)[:, 0, 0, 0] for part in (train, val)]
    assert sorted(np.concatenate(values)) == list(range(20))
    for part, value in zip((train, val), values, strict=True):
        np.testing.assert_array_equal(part.labels, value % 10)


def test_which_images_are_held_out_depends_on_the_seed_alone() -> None:
    once, again, other = (hold_out(numbered(100), 20, seed)[1].images.chosen for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert set(once) != set(other)


@pytest.mark.parametrize("val_split", [20, 21, -1, 1.0, 0.99, 2.5, -0.1, True, "3", float("nan")])
def test_a_validation_split_that_cannot_be(val_split: object) -> None:
    with pytest.raises(InputError, match="val_split"):
        hold_out(numbered(20), val_split, seed=0)  # type: ignore[arg-type]


def test_own_validation_images_are_used(tmp_path: Path, plan_of: Callable[..., Plan]) -> None:
    write_prepared(plan_of(train=10, val=5, test=6), tmp_path, "three")
    data = open_prepared(tmp_path, "three", val_split=0.1, seed=0)
    assert (len(data.train), len(data.val), len(data.test)) == (10, 5, 6)
    assert len(open_prepared(tmp_path, "three", val_split=0, seed=0).val) == 0


def test_every_byte_of_every_file_is_watched(numbers: Path) -> None:
    for path in sorted(numbers.glob("*.npy")):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(InputError, match=rf"{path.name} .*--force"):
            open_prepared(numbers.parent, "numbers", 0, 0)
        path.write_bytes(content)
    open_prepared(numbers.parent, "numbers", 0, 0)


@pytest.mark.parametrize("kept", [0, 20, 130, -1])
def test_a_truncated_file_is_found_without_reading_it_all(numbers: Path, kept: int) -> None:
    path = numbers / "test_images.npy"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"test_images\.npy .*--force"):
        open_prepared(numbers.parent, "numbers", 0, 0, verify=False)


def test_files_of_another_set_are_found(numbers: Path) -> None:
    np.save(numbers / "train_images.npy", np.zeros((10, 1, 5, 5), np.uint8))
    with pytest.raises(InputError, match=r"train_images\.npy holds uint8 \(10, 1, 5, 5\)"):
        open_prepared(numbers.parent, "numbers", 0, 0, verify=False)
    np.save(numbers / "train_labels.npy", np.full(10, 10))
    (numbers / "train_images.npy").unlink()
    with pytest.raises(InputError, match=r"train_images\.npy is missing"):
        open_prepared(numbers.parent, "numbers", 0, 0, verify=False)


def test_a_label_without_a_class(numbers: Path) -> None:
    np.save(numbers / "train_labels.npy", np.full(10, 10))
    with pytest.raises(InputError, match=r"labels outside 0\.\.9"):
        open_prepared(numbers.parent, "numbers", 0, 0, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta | {"format": 2}, "format 2, this version reads 1"),
        (lambda meta: {key: meta[key] for key in meta if key != "classes"}, "lacks classes"),
        (lambda meta: meta | {"counts": {"train": 10}}, "no test images"),
        (lambda meta: [1], "format None"),
    ],
)
def test_another_meta(numbers: Path, change: Callable, message: str) -> None:
    path = numbers / "meta.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=message):
        open_prepared(numbers.parent, "numbers", 0, 0)
    path.write_text("{")
    with pytest.raises(InputError, match=r"meta\.json cannot be read"):
        open_prepared(numbers.parent, "numbers", 0, 0)


def test_an_unprepared_set_is_told_with_its_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"run: python -m ien.data rot_mnist --from \S+ --root {tmp_path}"):
        open_dataset("rot_mnist", root=tmp_path)
    with pytest.raises(InputError, match=r"rot_tim --from tiny-imagenet-200\.zip --reflection .* --name r2_tim"):
        open_dataset("rot_tim", root=tmp_path, reflection=True)
    with pytest.raises(InputError, match="needs the name"):
        open_dataset("image_folder", root=tmp_path)
    with pytest.raises(InputError, match="'mnist' is unknown; allowed are digits, rot_mnist, scale_mnist, rot_tim"):
        open_dataset("mnist", root=tmp_path)


def test_rows_of_a_file_travel_without_its_images(numbers: Path) -> None:
    rows = Rows(np.load(numbers / "train_images.npy", mmap_mode="r"), np.array([7, 3]))
    there = pickle.loads(pickle.dumps(rows))
    assert isinstance(there.stored, np.memmap)
    assert np.asarray(there)[:, 0, 0, 0].tolist() == [7, 3]


def test_the_embedded_digits(tmp_path: Path) -> None:
    data = open_dataset("digits", root=tmp_path, seed=5)
    assert (len(data.train), len(data.val), len(data.test), data.channels, data.side) == (1097, 200, 500, 1, 28)
    assert set(data.test.labels) == set(range(10))
    assert open_dataset("digits", root=tmp_path, seed=6).fingerprint == data.fingerprint
    images = np.asarray(data.test.images)
    assert images.max() > 200
    assert images[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]].max() == 0  # no digit is cut off at a corner
    assert not list(tmp_path.iterdir())
