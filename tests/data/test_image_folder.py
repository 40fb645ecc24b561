from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ien.data import open_dataset
from ien.data.image_folder import plan
from ien.data.writing import write_prepared
from ien.errors import InputError
from tests.data.inputs import jpeg

Maker = Callable[..., Path]


def in_classes(prefix: str = "", count: int = 5) -> dict[str, bytes]:
    return {f"{prefix}{name}/{k}.jpg": jpeg(60 * number) for number, name in enumerate("abc") for k in range(count)}


def prepared(source: Path, root: Path, **options: object) -> Path:
    write_prepared(plan(source, name="photos", **options), root, "photos")  # type: ignore[arg-type]
    return root


def test_a_seeded_share_is_the_test_set(unpacked: Maker, tmp_path: Path) -> None:
    source = unpacked(in_classes(count=10))
    tests = []
    for number, seed in enumerate((1, 1, 2)):
        root = prepared(source, tmp_path / str(number), seed=seed, side=8)
        data = open_dataset("image_folder", root=root, name="photos", val_split=0)
        assert (len(data.train), len(data.test), data.side, data.channels) == (24, 6, 8, 3)
        for split in (data.train, data.test):  # the brightness of an image tells its class
            assert np.abs(np.asarray(split.images).mean(axis=(1, 2, 3)) - 60 * split.labels).max() < 2
        tests.append(data.test.labels.tolist())
    assert tests[0] == tests[1]
    one, other = (plan(source, name="photos", seed=seed).recipe for seed in (1, 2))
    assert one != other


@pytest.mark.parametrize(
    ("splits", "found"),
    [(("train", "test"), (13, 2, 15)), (("train", "val"), (13, 2, 15)), (("train", "val", "test"), (15, 15, 15))],
)
def test_given_splits(unpacked: Maker, tmp_path: Path, splits: tuple[str, ...], found: tuple[int, ...]) -> None:
    files: dict[str, bytes] = {}
    for split in splits:
        files |= in_classes(f"{split}/")
    root = prepared(unpacked(files), tmp_path, side=8, grey=True)
    data = open_dataset("image_folder", root=root, name="photos")
    assert (len(data.train), len(data.val), len(data.test), data.channels) == (*found, 1)
    assert data.classes == ("a", "b", "c")


def test_the_centre_square_is_resized(unpacked: Maker) -> None:
    wide = np.full((16, 64, 3), 255, np.uint8)
    wide[:, 16:32], wide[:, 32:48] = 100, 200  # the centre square is half of either, with a margin for the filter
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "PNG")
    source = unpacked({f"{name}/{k}.png": file.getvalue() for name in "ab" for k in range(2)})
    image = next(plan(source, name="photos", side=4).blocks("train"))[0][0]
    assert image.shape == (3, 4, 4)
    assert (np.abs(image[:, :, 0].astype(int) - 100) <= 1).all()
    assert (np.abs(image[:, :, 3].astype(int) - 200) <= 1).all()


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "LA", "1"])
def test_every_kind_of_picture_becomes_rgb(unpacked: Maker, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(file, "TIFF" if suffix == "tif" else "PNG")
    source = unpacked({f"{name}/{k}.{suffix}": file.getvalue() for name in "ab" for k in range(3)})
    images, _ = next(plan(source, name="photos", side=8).blocks("train"))
    assert images.shape[1:] == (3, 8, 8)
    assert (images == 255).all()


def test_sixteen_bits_are_refused(unpacked: Maker) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(file, "PNG")
    source = unpacked({f"{name}/{k}.png": file.getvalue() for name in "ab" for k in range(3)})
    with pytest.raises(InputError, match=r"a/\d\.png has more than 8 bits"):
        next(plan(source, name="photos").blocks("train"))


def test_other_files_are_left_out_and_told(unpacked: Maker) -> None:
    made = plan(unpacked(in_classes() | {"a/notes.txt": b"", "a/._1.jpg": b"no image"}), name="photos")
    assert made.counts == {"train": 12, "test": 3}
    assert made.notes == ("left out 2 files that are no images (the first: a/._1.jpg)",)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"a/notes.txt": b""}, {}, "holds no image"),
        (in_classes() | {"x.jpg": jpeg(0)}, {}, r"x\.jpg lies in no class; expected <class>/<image>"),
        (in_classes("train/") | {"other/a/x.jpg": jpeg(0)}, {}, "lies in no class; expected {train,test}/<class>"),
        (in_classes("train/") | {"test/x.jpg": jpeg(0)}, {}, "lies in no class"),
        (in_classes("train/") | in_classes("test/"), {"test_split": 0.5}, "--test-split has no meaning"),
        (in_classes("train/") | {"test/d/x.jpg": jpeg(0)}, {}, "class 'd' of the test images has no training image"),
        (in_classes("train/") | {"test/readme": b""}, {}, "no images in test/ or val/"),
        (in_classes(), {"test_split": 0.01}, "leaves none"),
        ({f"x/a/{k}.jpg": jpeg(0) for k in range(5)}, {}, "holds 1 class"),
    ],
)
def test_other_layouts_are_refused(unpacked: Maker, files: dict, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(unpacked(files), name="photos", **options)
