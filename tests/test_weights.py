"""Weights from a file: the same numbers, or one line that says which do not fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ien.errors import InputError
from ien.models.weights import load_weights


def network(classes: int = 10, channels: int = 3, width: int = 8) -> nn.Sequential:
    layers = {"stem": nn.Conv2d(channels, width, 3), "norm": nn.BatchNorm2d(width), "pool": nn.AdaptiveAvgPool2d(1)}
    layers |= {"flat": nn.Flatten(), "head": nn.Linear(width, classes)}
    made = nn.Sequential()
    for name, layer in layers.items():
        made.add_module(name, layer)
    return made


def saved(folder: Path, weights: dict[str, Any], name: str = "weights.pt") -> Path:
    torch.save(weights, folder / name)
    return folder / name


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("wrapped", ["", "model", "state_dict", "safetensors"])
def test_weights_come_back_from_every_kind_of_file(tmp_path: Path, wrapped: str) -> None:
    weights = network().state_dict()
    path = saved(tmp_path, {wrapped: weights, "epoch": 3} if wrapped else weights, "weights.pth")
    if wrapped == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(weights, path)
    other = network()
    assert load_weights(other, path, classes=10) == ()
    assert same(other.state_dict(), weights)


def test_a_classifier_of_other_classes_starts_anew(tmp_path: Path) -> None:
    path, other = saved(tmp_path, network(1000).state_dict()), network(10)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert load_weights(other, path, classes=10) == ("head.weight", "head.bias")
    after = other.state_dict()
    assert torch.equal(after["head.weight"], before["head.weight"])
    assert torch.equal(after["stem.weight"], torch.load(path)["stem.weight"])


def test_a_colour_stem_is_summed_for_grey_images(tmp_path: Path) -> None:
    colour, grey = network().eval(), network(channels=1).eval()
    load_weights(grey, saved(tmp_path, colour.state_dict()), classes=10)
    images = torch.rand(2, 1, 9, 9)
    assert torch.allclose(grey(images), colour(images.expand(-1, 3, -1, -1)), atol=1e-6)


def test_a_file_without_the_count_of_batches_fits(tmp_path: Path) -> None:
    weights = network().state_dict()
    del weights["norm.num_batches_tracked"]
    assert load_weights(network(), saved(tmp_path, weights), classes=10) == ()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"stem.bias": None}, "it lacks stem.bias; take weights of this very network"),
        ({"extra.weight": torch.zeros(1)}, "it has the unknown extra.weight; take weights"),
        ({"stem.weight": torch.zeros(8, 3, 5, 5)}, "it stem.weight is (8, 3, 5, 5) and not (8, 3, 3, 3)"),
        ({"head.weight": torch.zeros(1000, 9)}, "it head.weight is (1000, 9) and not (10, 8)"),
        ({"norm.weight": torch.zeros(9)}, "it norm.weight is (9,) and not (8,)"),
        (
            {"stem.bias": None, "stem.weight": None, "norm.weight": None, "norm.bias": None, "a": torch.zeros(1)},
            "it lacks stem.weight, stem.bias, norm.weight and 1 more; has the unknown a; take",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    weights = network().state_dict() | change
    path = saved(tmp_path, {name: value for name, value in weights.items() if value is not None})
    other = network()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(other, path, classes=10)
    assert f"{path} does not fit the network: " in str(caught.value)
    assert line in str(caught.value)
    assert same(other.state_dict(), before)


class Touch:
    """What runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": Touch(tmp_path / "harm")})
    with pytest.raises(InputError, match="it holds more than tensors, or is damaged"):
        load_weights(network(), path, classes=10)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.pt", b"not torch", "cannot be read"),
        ("a.pt", b"", "cannot be read"),
        ("a.safetensors", b"not safe", "cannot be read"),
        ("b.pt", None, "there is no file"),
    ],
)
def test_files_that_hold_no_weights_are_refused(tmp_path: Path, name: str, content: bytes | None, line: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=line):
        load_weights(network(), tmp_path / name, classes=10)
    with pytest.raises(InputError, match="holds no weights by name"):
        load_weights(network(), saved(tmp_path, {"epoch": 3}, "c.pt"), classes=10)
