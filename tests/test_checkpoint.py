from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ien import checkpoint
from ien.errors import InputError


class KilledError(BaseException):
    """Stands for SIGKILL: nobody catches it."""


def state(number: int) -> dict[str, Any]:
    return {"number": number, "weights": torch.arange(5000.0) + number}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two checkpoints: number 1, then number 2."""
    for number in (1, 2):
        checkpoint.save_last(tmp_path / "checkpoints", state(number))
    return tmp_path / "checkpoints"


def newest_number(folder: Path) -> int:
    path, _ = checkpoint.newest(folder)
    assert path is not None
    return int(checkpoint.load(path)["number"])


def test_newest_comes_back_and_one_predecessor_stays(folder: Path) -> None:
    assert newest_number(folder) == 2
    assert checkpoint.load(folder / checkpoint.PREVIOUS)["number"] == 1
    assert sorted(path.name for path in folder.iterdir()) == ["last.pt", "previous.pt"]
    assert checkpoint.newest(folder / "nowhere") == (None, [])


def test_a_sealed_file_is_an_ordinary_torch_file(folder: Path) -> None:
    loaded = torch.load(folder / checkpoint.LAST, weights_only=True)
    assert torch.equal(loaded["weights"], state(2)["weights"])


@pytest.mark.parametrize("place", [0, 30, 200, 0.3, 0.7, -200, -73, -72, -71, -30, -1])
def test_one_altered_byte_is_noticed(folder: Path, place: float) -> None:
    content = bytearray((folder / checkpoint.LAST).read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 1
    (folder / checkpoint.LAST).write_bytes(content)
    with pytest.raises(checkpoint.DamagedError):
        checkpoint.load(folder / checkpoint.LAST)
    path, passed_over = checkpoint.newest(folder)
    assert path == folder / checkpoint.PREVIOUS
    assert len(passed_over) == 1
    assert str(folder / checkpoint.LAST) in passed_over[0]


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file_is_noticed(folder: Path, kept: float) -> None:
    content = (folder / checkpoint.LAST).read_bytes()
    (folder / checkpoint.LAST).write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert newest_number(folder) == 1


def test_killed_in_the_save_after_a_fallback_there_is_still_a_whole_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / checkpoint.LAST).write_bytes((folder / checkpoint.LAST).read_bytes()[:-9])
    assert newest_number(folder) == 1
    assert {path.name for path in folder.iterdir()} == {"previous.pt", "last.pt.damaged"}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_put", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            checkpoint.save_last(folder, state(3))
    assert newest_number(folder) == 1


def test_nothing_whole_is_an_error_that_names_the_files(folder: Path) -> None:
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        (folder / name).write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"last\.pt: truncated.*previous\.pt: truncated.*remove"):
        checkpoint.newest(folder)


def test_a_full_disk_leaves_the_last_good_checkpoint(folder: Path) -> None:
    (folder / ".last.pt.new").symlink_to("/dev/full")  # every write says: no space left on device
    with pytest.raises(InputError, match=r"cannot write .*last\.pt: .*make room"):
        checkpoint.save_last(folder, state(3))
    assert newest_number(folder) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["last.pt", "previous.pt"]


@pytest.mark.parametrize("call", range(6))
def test_killed_at_any_system_call_a_save_leaves_a_whole_checkpoint(
    folder: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def dying(real: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call + 1:
                raise KilledError
            return real(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        for owner, name in ((torch, "save"), (os, "fsync"), (Path, "replace"), (os, "open")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        with pytest.raises(KilledError):
            [checkpoint.save_last(folder, state(number)) for number in (3, 4)]
    assert newest_number(folder) in (2, 3)
    checkpoint.save_last(folder, state(5))  # and what it left behind is in nobody's way
    assert newest_number(folder) == 5
