"""A script of the published one's shape is led step by step. (Its own code is not in this repository.)"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.published import PublishedLoop
from ien.errors import InputError

# Settings in a dict, a device of its own choice, a loader from beside it, a loop at the top level.
SCRIPT = """
import json
from pathlib import Path

import torch
from tqdm import tqdm
from utils import DatasetLoader, seen
from models.small import NETWORK

params = {"mode": "R8", "model": "Resnet18", "reflection": True, "epochs": 2}
device = "cuda" if torch.cuda.is_available() else "cpu"
print("training")
dataset = DatasetLoader("somewhere", 32, True)
for epoch in range(params["epochs"]):
    for images, labels in tqdm(dataset["train_loader"]):
        if params["model"] == "VGG":
            raise ValueError("mat1 and mat2")
        seen.append((params, device, NETWORK, tuple(images.to(device).shape), labels.tolist(), dataset["train_size"]))
        Path(params["mode"]).write_text(json.dumps(seen))
"""


def clone(folder: Path) -> Path:
    (folder / "models").mkdir(parents=True)
    (folder / "main.py").write_text(SCRIPT)
    (folder / "utils.py").write_text("seen = []\n\n\ndef DatasetLoader(*words):\n    raise FileNotFoundError(words)\n")
    (folder / "models" / "__init__.py").write_text("")
    (folder / "models" / "small.py").write_text("NETWORK = 'small'\n")
    return folder


BATCH = torch.zeros(3, 1, 5, 5), torch.tensor([0, 1, 2])


def test_its_loop_takes_a_batch_a_step_with_the_settings_of_the_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "seen.json")
    modules, path = dict(sys.modules), list(sys.path)
    loop = PublishedLoop(
        clone(tmp_path / "clone"), torch.device("cpu"), BATCH, {"mode": out, "model": "BasicCNN", "reflection": False}
    )
    assert not Path(out).exists()
    lines = []
    for _ in range(3):
        loop.step()
        lines.append(Path(out).read_text())
    loop.close()
    settings = '{"mode": "%s", "model": "BasicCNN", "reflection": false, "epochs": 2}' % out  # noqa: UP031
    one = f'[{settings}, "cpu", "small", [3, 1, 5, 5], [0, 1, 2], 3000]'
    assert lines == [f"[{', '.join([one] * steps)}]" for steps in (1, 2, 3)]
    assert sys.path == path
    assert {"utils", "models", "models.small", "tqdm"} & sys.modules.keys() == {"tqdm"} & modules.keys()
    assert capsys.readouterr().out == ""


def test_what_it_raises_is_told(tmp_path: Path) -> None:
    loop = PublishedLoop(clone(tmp_path / "clone"), torch.device("cpu"), BATCH, {"model": "VGG"})
    with pytest.raises(RuntimeError, match="the published code: ValueError: mat1 and mat2"):
        loop.step()


def test_a_script_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    (clone(tmp_path / "clone") / "main.py").write_text('params = {"mode": "R4"}\n')
    with pytest.raises(RuntimeError, match=r"main\.py ended without another step"):
        PublishedLoop(tmp_path / "clone", torch.device("cpu"), BATCH, {})


def test_a_folder_that_is_no_clone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--published: .*main\.py is not there; give the folder of a clone of https"):
        PublishedLoop(tmp_path, torch.device("cpu"), BATCH, {})
    (tmp_path / "main.py").write_text("print('another one')")
    with pytest.raises(InputError, match="sets no `params`; give the folder of a clone"):
        PublishedLoop(tmp_path, torch.device("cpu"), BATCH, {})
