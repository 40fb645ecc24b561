"""`python -m ien.data …`, as it is typed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ien.data import open_dataset
from ien.data.__main__ import main
from ien.errors import InputError


def test_prepare_again_force(mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["rot_mnist", "--from", str(mnist), "--train", "20", "--test", "10", "--root", str(tmp_path / "data")]
    main(command)
    first, last = capsys.readouterr().out.splitlines()
    assert first.endswith("20 train + 10 test images of 1x28x28, 10 classes")
    digest = open_dataset("rot_mnist", root=tmp_path / "data", val_split=2).fingerprint["train_images.npy"]
    assert f"data/rot_mnist: 20 train + 10 test images, train_images sha256 {digest[:12]}" in last
    main(command)
    assert "already prepared with this recipe: nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"differs in: seed.*--force"):
        main([*command, "--seed", "1"])
    main([*command, "--seed", "1", "--force"])
    main([*command, "--seed", "2", "--name", "other"])
    digests = [
        open_dataset("rot_mnist", root=tmp_path / "data", name=name, val_split=2).fingerprint
        for name in (None, "other")
    ]
    assert len({digest, *(found["train_images.npy"] for found in digests)}) == 3


def test_reflection_has_its_own_folder(tiny_files: dict, packed: Callable[..., Path], tmp_path: Path) -> None:
    command = ["rot_tim", "--from", str(packed(tiny_files)), "--classes", "3", "--root", str(tmp_path)]
    main(command)
    main([*command, "--reflection", "--workers", "2"])
    assert len(open_dataset("rot_tim", root=tmp_path).test) == 6
    assert len(open_dataset("rot_tim", root=tmp_path, reflection=True).test) == 6
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["r2_tim", "rot_tim"]


def test_the_embedded_set(capsys: pytest.CaptureFixture[str]) -> None:
    main(["digits"])
    assert capsys.readouterr().out == "digits is embedded: nothing to prepare, use it with dataset=digits\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required"),
        (["mnist"], "invalid choice: 'mnist'"),
        (["rot_mnist"], "--from --download"),
        (["rot_mnist", "--from", "nowhere"], "--from nowhere does not exist"),
        (["rot_mnist", "--from", ".", "--seed", "-1"], "--seed: '-1' is no whole number from 0"),
        (["rot_mnist", "--from", ".", "--train", "0"], "--train: '0' is no whole number from 1"),
        (["image_folder", "--from", "."], "needs --name NAME"),
        (["image_folder", "--from", ".", "--name", "x", "--test-split", "1"], "'1' is no share between 0 and 1"),
    ],
)
def test_what_cannot_be_is_told(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(words)


def test_exit_status_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "damaged.zip").write_bytes(b"PK")
    done = subprocess.run(
        [sys.executable, "-m", "ien.data", "rot_tim", "--from", "damaged.zip"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: damaged.zip is no zip, or a truncated one")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.zip"]
