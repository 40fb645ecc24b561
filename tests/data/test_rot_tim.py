from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ien.data import open_dataset
from ien.data.rot_tim import plan
from ien.data.turning import disc, draws, flipped, rotated
from ien.data.writing import Plan, write_prepared
from ien.errors import InputError
from tests.data.inputs import COLOURS, jpeg

Files = dict[str, bytes]
Maker = Callable[..., Path]


def made(plan: Plan, split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*plan.blocks(split), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_from_the_official_zip(tiny_files: Files, packed: Maker, tmp_path: Path) -> None:
    write_prepared(plan(packed(tiny_files), classes=3), tmp_path, "rot_tim")
    data = open_dataset("rot_tim", root=tmp_path, val_split=0)
    assert data.classes == ("n01", "n02", "n03")
    assert (len(data.train), len(data.test), data.channels, data.side) == (18, 6, 3, 64)
    assert data.test.labels.tolist() == [2, 0, 1, 0, 1, 2]  # the order of val_annotations.txt
    for split in (data.train, data.test):
        for image, label in zip(np.asarray(split.images), split.labels, strict=True):
            colour = np.broadcast_to(COLOURS[data.classes[label]], 3)
            inside = image[:, disc(64) == 1].astype(int)
            assert np.abs(inside - colour[:, None]).max() <= 3  # JPEG is not exact
            assert (image[:, disc(64) == 0] == 0).all()


def test_folder_and_zip_with_and_without_the_outer_folder_are_the_same(
    tiny_files: Files, packed: Maker, unpacked: Maker
) -> None:
    sources = [packed(tiny_files), packed(tiny_files, "flat.zip", ""), unpacked(tiny_files)]
    plans = [plan(source, classes=3) for source in sources]
    assert plans[0].recipe == plans[1].recipe == plans[2].recipe
    for other in plans[1:]:
        np.testing.assert_array_equal(made(plans[0], "train")[0], made(other, "train")[0])


def asymmetric(size: int = 64) -> Files:
    """Two classes of 150 equal images each, bright in the lower right quarter only."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    file = io.BytesIO()
    Image.fromarray(np.where((x > 2) & (y > 2), 255, 40).astype(np.uint8)).save(file, "PNG")
    files = {f"train/n0{c}/images/{k}.png": file.getvalue() for c in (1, 2) for k in range(150)}
    files |= {f"val/images/{k}.png": file.getvalue() for k in range(2)}
    files["val/val_annotations.txt"] = b"0.png\tn01\n1.png\tn02\n"
    return files


def test_angles_and_flips_are_those_that_were_drawn(packed: Maker) -> None:
    source = packed(asymmetric())
    angles, flips = draws(7, "train", np.arange(300))
    plain, reflected = (made(plan(source, classes=2, seed=7, reflection=r), "train")[0] for r in (False, True))
    assert len({image.tobytes() for image in plain}) == 300
    np.testing.assert_array_equal(flipped(plain, flips), reflected)  # the disc does not mind
    same = (plain == reflected).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(same, flips == 0)
    back = rotated(plain[:1], -angles[:1])
    assert back[0, 0, 40:50, 40:50].mean() > 230 > 60 > back[0, 0, 12:28, 12:28].mean()


@pytest.mark.parametrize("workers", [2, 5])
def test_the_number_of_workers_does_not_matter(packed: Maker, workers: int) -> None:
    source = packed(asymmetric())
    one, many = (made(plan(source, classes=2, workers=w), "train") for w in (1, workers))
    np.testing.assert_array_equal(one[0], many[0])
    np.testing.assert_array_equal(one[1], many[1])


def test_the_first_classes_keep_their_images(tiny_files: Files, packed: Maker) -> None:
    source = packed(tiny_files)
    two, three = made(plan(source, classes=2), "train"), made(plan(source, classes=3), "train")
    assert plan(source, classes=2).counts == {"train": 12, "test": 4}
    np.testing.assert_array_equal(two[0], three[0][:12])
    with pytest.raises(InputError, match="holds 3 classes; say --classes N with N from 1 to 3"):
        plan(source)


def test_published_folders_are_taken_as_they_are(unpacked: Maker) -> None:
    files = {f"{split}/{name}/{k}.JPEG": jpeg(255) for split in ("train", "val") for name in "ab" for k in range(2)}
    read = plan(unpacked(files, "ImageNet-rot-masked"), classes=2)
    assert read.counts == {"train": 4, "test": 4}
    images, labels = made(read, "test")
    assert (images == 255).all()  # neither turned nor masked
    assert labels.tolist() == [0, 0, 1, 1]
    assert "seed" not in read.recipe


def test_an_image_that_cannot_be_decoded_is_named(tiny_files: Files, packed: Maker) -> None:
    path = "train/n02/images/n02_3.JPEG"
    for content in (b"", b"no image", tiny_files[path][:300]):
        with pytest.raises(InputError, match=rf"{path} cannot be decoded"):
            made(plan(packed(tiny_files | {path: content}), classes=3), "train")
    with pytest.raises(InputError, match=rf"{path} is 60x64 pixels"):
        made(plan(packed(tiny_files | {path: jpeg(0, (60, 64))}), classes=3), "train")


@pytest.mark.parametrize("member", ["/etc/x.JPEG", "../x.JPEG", "a/../../x.JPEG", "..\\x.JPEG", "C:\\x.JPEG"])
def test_a_zip_that_leaves_its_folder_is_refused(tiny_files: Files, packed: Maker, member: str) -> None:
    with pytest.raises(InputError, match="a path that leaves its folder"):
        plan(packed(tiny_files | {member: b""}, outer=""), classes=3)


def test_a_damaged_zip(tiny_files: Files, packed: Maker) -> None:
    source = packed(tiny_files)
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"tiny-imagenet-200\.zip is no zip, or a truncated one"):
        plan(source, classes=3)
    at = content.index(tiny_files["train/n01/images/n01_4.JPEG"], content.index(b"n01_4.JPEG")) + 100
    source.write_bytes(content[:at] + b"damage" + content[at + 6 :])
    with pytest.raises(InputError, match=r"n01_4\.JPEG cannot be read \(Bad CRC"):
        made(plan(source, classes=3), "train")


def test_missing_parts_are_named(tiny_files: Files, packed: Maker) -> None:
    missing = {path: content for path, content in tiny_files.items() if path != "val/images/val_3.JPEG"}
    with pytest.raises(InputError, match=r"lacks val/images/val_3\.JPEG"):
        made(plan(packed(missing), classes=3), "test")
    with pytest.raises(InputError, match="line 1 is no image, tab, class"):
        plan(packed(tiny_files | {"val/val_annotations.txt": b"nonsense\n"}), classes=3)
    with pytest.raises(InputError, match="names no image of n02, n03"):
        plan(packed(tiny_files | {"val/val_annotations.txt": b"val_1.JPEG\tn01\n"}), classes=3)
    with pytest.raises(InputError, match="neither Tiny-ImageNet in its official layout"):
        plan(packed({"a/x.JPEG": jpeg(0), "b/x.JPEG": jpeg(0)}), classes=2)
    with pytest.raises(InputError, match="does not exist"):
        plan(Path("nowhere.zip"))
