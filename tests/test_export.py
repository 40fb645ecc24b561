"""A network that has left the package answers as it did inside, and says what it is; or there is no file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, safe_open
from torch import Tensor, nn

from ien import build, checkpoint, config, export, trained
from ien.errors import InputError
from ien.formats import FORMATS
from ien.models import VGG, BasicCNN, Resnet18
from ien.pooling import ChannelMaxPool
from tests.finished_run import finished_run

# What a server of the file would do; TorchScript is deprecated there too.
pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.\w+` is deprecated")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("export"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that may be spoilt."""
    return shutil.copytree(finished, tmp_path / "run")


def network_of(run: Path) -> nn.Module:
    """Made by hand: the network of the run with its best weights, never tapped."""
    settings = config.load(run / "config.yaml")
    group = build.make_group(settings)
    network = BasicCNN(4, build.make_pool(settings, group), classes=10).eval()
    network.load_state_dict(checkpoint.load(run / "checkpoints" / "best.pt")["model"])
    return network


def served(path: Path, run: Path, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The logits and the facts that a stranger reads from a file."""
    names = ("classes", "input", "output", "model", "group", "test_accuracy", "data", "weights", "revision", "ien",
             "config")  # fmt: skip
    facts: dict[str, Any] = dict.fromkeys(names, "")
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        facts = session.get_modelmeta().custom_metadata_map
        logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    elif path.suffix == ".safetensors":
        network = BasicCNN(4, ChannelMaxPool([4]), classes=10).eval()
        network.load_state_dict(load_file(path))
        with safe_open(path, "pt") as file:
            facts = file.metadata()
        logits = network(images)
    elif path.suffix == ".pt2":
        logits = torch.export.load(path, extra_files=facts).module()(images)
    else:
        logits = torch.jit.load(path, _extra_files=facts)(images)
    assert set(facts) == set(names)
    return logits, {name: json.loads(fact) for name, fact in facts.items()}


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_answers_as_the_network_does_and_says_what_it_is(
    form: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export.main([str(run), "--format", form])
    path = run / f"network{FORMATS[form].suffix}"
    for number in (1, 3, 20):
        images = torch.rand(number, 1, 28, 28)
        logits, facts = served(path, run, images)
        torch.testing.assert_close(logits, network_of(run)(images), rtol=1e-4, atol=1e-5)
    summary = json.loads((run / "summary.json").read_text())
    assert facts["test_accuracy"] == summary["accuracy"]
    assert facts["data"] == {"name": "digits", "sha256": summary["data"]}
    assert facts["classes"] == list("0123456789")
    assert (facts["input"]["shape"], facts["output"]["shape"]) == (["batch", 1, 28, 28], ["batch", 10])
    assert (facts["group"], facts["model"], facts["weights"]) == ("C4", "BasicCNN", "best.pt")
    assert facts["config"]["network"]["width"] == 4
    assert "launch" not in facts["config"]
    if form != "torchscript":  # which keeps its sources' places
        assert str(Path(build.__file__).parent).encode() not in path.read_bytes()
    printed = capsys.readouterr().out
    assert hashlib.sha256(path.read_bytes()).hexdigest() in printed
    assert f"{100 * summary['accuracy']:.2f} %" in printed
    assert [entry for entry in run.iterdir() if entry.name.startswith(".network")] == []


def test_the_taps_are_gone(run: Path) -> None:
    found = trained.of_run(run)
    export.export(found, "onnx", run / "network.onnx")
    graph = onnx.load(run / "network.onnx").graph
    assert [output.name for output in graph.output] == ["logits"]
    assert not any(module._forward_hooks for module in found.tapped.model.modules())


def test_accuracy_is_told_of_the_weights_that_were_tested_alone(run: Path) -> None:
    assert trained.of_run(run, "best").test_accuracy is not None
    assert trained.of_run(run, "last").test_accuracy is None
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "split": "val"}))
    assert trained.of_run(run, "best").test_accuracy is None


@pytest.mark.parametrize(
    "network",
    [
        Resnet18(11, ChannelMaxPool.from_name("R4-2-1"), classes=3),
        VGG(22, ChannelMaxPool.from_name("R8-4-2"), classes=3, published_kernels=True),
    ],
    ids=["Resnet18", "VGG"],
)
def test_filter_groups_of_several_sizes_can_be_written(network: nn.Module, tmp_path: Path) -> None:
    network.eval()
    side = network.image_side
    path = tmp_path / "network.onnx"
    FORMATS["onnx"].write(network, torch.zeros(2, 3, side, side), path, {})
    answer = FORMATS["onnx"].answer(path, network)
    difference, largest, batches = export._compared(network, answer, torch.rand(4, 3, side, side))
    assert difference <= 1e-5 * max(1, largest)
    assert batches == (1, 2, 1)


@pytest.mark.parametrize("source", ["checkpoint", "state_dict", "safetensors"])
def test_bare_weights_are_exported_with_the_settings_that_fit_them(source: str, run: Path) -> None:
    weights = run / "checkpoints" / "best.pt"
    if source == "state_dict":
        torch.save(network_of(run).state_dict(), weights := run / "bare.pt")
    elif source == "safetensors":
        export.main([str(run), "--format", "safetensors", "--out", str(weights := run / "bare.safetensors")])
    out = run / "out" / "net.safetensors"
    words = ["--config", str(run / "config.yaml"), "--weights", str(weights), "--out", str(out)]
    export.main([*words, "--format", "safetensors"])
    images = torch.rand(2, 1, 28, 28)
    logits, facts = served(out, run, images)
    assert torch.equal(logits, network_of(run)(images))
    assert (facts["test_accuracy"], facts["data"]["sha256"], facts["revision"]) == (None, None, None)


class _Doubling(nn.Module):
    """Nothing is wrong with it but that its batch is fixed where it is traced."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(-2, -1)).reshape(len(images), -1)


class _Singular(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.linalg.svdvals(images.mean(dim=1))


class _Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        sums = images.sum(dim=(-2, -1))
        return sums if sums.sum() > 0 else -sums


@pytest.mark.parametrize(
    ("form", "network", "words"),
    [
        ("onnx", _Singular(), r"operator aten\.\w*svd\w* cannot be written in ONNX .* --format pt2 or torchscript"),
        ("pt2", _Branching(), "no fixed graph .* branch on values"),
    ],
)
def test_a_network_that_a_format_cannot_express_is_refused(
    form: str, network: nn.Module, words: str, tmp_path: Path
) -> None:
    path = tmp_path / f"network{FORMATS[form].suffix}"
    with pytest.raises(InputError, match=words) as refused:
        FORMATS[form].write(network.eval(), torch.zeros(2, 1, 8, 8), path, {})
    assert "\n" not in str(refused.value)
    assert not path.exists()


def test_a_trace_that_fixed_the_batch_is_caught_by_the_comparison(tmp_path: Path) -> None:
    network, path = _Doubling().eval(), tmp_path / "network.torchscript"
    FORMATS["torchscript"].write(network, torch.zeros(2, 1, 8, 8), path, {})
    with pytest.raises(InputError, match=r"does not take a batch of 1 images"):
        export._compared(network, FORMATS["torchscript"].answer(path, network), torch.rand(9, 1, 8, 8))


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_a_file_that_answers_otherwise_takes_no_place(
    wrong: float, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = FORMATS["safetensors"]

    def write(network: nn.Module, example: Tensor, path: Path, about: dict[str, str]) -> None:
        honest.write(_scaled(network, wrong), example, path, about)

    monkeypatch.setitem(FORMATS, "safetensors", dataclasses.replace(honest, write=write))
    before = sorted(run.iterdir())
    assert refused([str(run), "--format", "safetensors"], capsys).startswith("error: the file answers otherwise")
    assert sorted(run.iterdir()) == before


def _scaled(network: nn.Module, factor: float) -> nn.Module:
    other = BasicCNN(4, ChannelMaxPool([4]), classes=10)
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        other.head[3].weight.mul_(factor)
    return other


def test_a_file_is_replaced_with_force_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(run), "--format", "safetensors"]
    (run / "network.safetensors").write_text("mine")
    assert "is there already" in refused(words, capsys)
    assert (run / "network.safetensors").read_text() == "mine"
    export.main([*words, "--force"])
    assert load_file(run / "network.safetensors")


def test_what_cannot_be_exported_is_told_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(*words: str, form: str = "pt2") -> str:
        return refused([*words, "--format", form], capsys)

    settings, best, last = run / "config.yaml", run / "checkpoints" / "best.pt", run / "checkpoints" / "last.pt"
    assert "invalid choice: 'tflite'" in line(str(run), form="tflite")
    assert "0 runs are given" in line()
    assert "holds no run" in line(str(run / "nothing"))
    assert "--weights newest" in line(str(run), "--weights", "newest")
    assert "must end in .pt2; write --out net.pt2" in line(str(run), "--out", "net.onnx")
    assert "needs --weights FILE" in line("--config", str(settings))
    assert "there is no file none.pt" in line("--config", str(settings), "--weights", "none.pt")
    assert "cannot be read as weights" in line("--config", str(settings), "--weights", str(settings))
    assert "trained with other settings (network.width: 4 → 8)" in line(str(run), "network.width=8")
    best.write_bytes(b"PK" + best.read_bytes()[2:-200])
    assert f"{best}: truncated" in line(str(run))
    last.unlink()
    assert f"{last} is missing" in line(str(run), "--weights", "last")


def test_a_run_that_is_not_finished_is_told_how_to_go_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "summary.json").unlink()
    told = refused([str(run), "--format", "pt2"], capsys)
    assert f"is not finished; go on with it (python -m ien.train --config {run}/config.yaml)" in told
    assert f"--weights {run}/checkpoints/best.pt" in told


def test_weights_that_do_not_fit_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = network_of(run).state_dict()
    weights["neck.weight"] = weights.pop("head.3.weight")
    torch.save(weights, run / "other.pt")
    words = ["--config", str(run / "config.yaml"), "--weights", str(run / "other.pt"), "--format", "pt2"]
    told = refused(words, capsys)
    assert "lacks head.3.weight; has the unknown neck.weight; give the settings" in told
    told = refused([*words, "network.width=8"], capsys)
    assert "block1.0.weight is (4, 1, 7, 7) and not (8, 1, 7, 7)" in told
    assert told.count("\n") == 1


def test_other_data_than_the_run_was_trained_on_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["data"]["train_images"] = "0" * 64
    (run / "summary.json").write_text(json.dumps(summary))
    assert "was trained on other data than digits is now" in refused([str(run), "--format", "pt2"], capsys)


def test_a_package_that_is_not_there_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    told = refused([str(run), "--format", "onnx"], capsys)
    assert 'needs onnxruntime, which is not installed; type: pip install -e ".[export]"' in told


def test_a_folder_that_cannot_be_written_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run / "config.yaml" / "network.pt2"
    assert f"cannot write {out}" in refused([str(run), "--format", "pt2", "--out", str(out)], capsys)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        export.main(words)
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    return told
