"""How does a network become a file that others can serve, and how does that file answer?

Four formats, each a line in `FORMATS`. All of them hold the plain network in evaluation mode, images (B, C, S, S) →
logits (B, K) for any B, and a few texts by name (`about`).
"""

from __future__ import annotations

import copy
import importlib
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError

from ien.errors import InputError

Answer = Callable[[Tensor], Tensor]  # images → logits, on the CPU
OPSET = 18  # of ONNX: the oldest that torch's exporter writes without converting, so the oldest runtimes read it


@dataclass(frozen=True)
class Format:
    """`write(network, example, path, about)` makes the file, `answer(path, network)` is what it says once it is loaded.

    `example` are images of the right shape, two or more. `write` raises `InputError` for a network that the format
    cannot express. `load` are the lines that a person types, with `{file}` for the path.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, Path, dict[str, str]], None]
    answer: Callable[[Path, nn.Module], Answer]
    load: tuple[str, ...]

    def need_packages(self) -> None:
        """Raises `InputError` if one is not installed."""
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise InputError(
                    f'this format needs {package}, which is not installed; type: pip install -e ".[export]"'
                ) from error


def _write_onnx(network: nn.Module, example: Tensor, path: Path, about: dict[str, str]) -> None:
    import onnx

    exported = _exported(network, example)
    try:
        program = torch.onnx.export(
            exported,
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    except OnnxExporterError as error:
        raise InputError(
            f"{_culprit(error)} cannot be written in ONNX (opset {OPSET}); replace it in the network, or take "
            "--format pt2 or torchscript"
        ) from error
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, about)
    onnx.save(model, path)


def _answer_onnx(path: Path, network: nn.Module) -> Answer:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_pt2(network: nn.Module, example: Tensor, path: Path, about: dict[str, str]) -> None:
    torch.export.save(_exported(network, example), path, extra_files=dict(about))


def _answer_pt2(path: Path, network: nn.Module) -> Answer:
    module: Answer = torch.export.load(path).module()
    return module


def _write_torchscript(network: nn.Module, example: Tensor, path: Path, about: dict[str, str]) -> None:
    with _torchscript(), torch.no_grad():
        try:
            traced = torch.jit.trace(network, (example,), check_trace=False)  # compared on real images afterwards
        except RuntimeError as error:
            raise InputError(
                f"the network cannot be traced ({_first_line(error)}); its forward must give one tensor, or take "
                "--format safetensors"
            ) from error
        torch.jit.save(traced, path, _extra_files=about)


def _answer_torchscript(path: Path, network: nn.Module) -> Answer:
    with _torchscript():
        module: Answer = torch.jit.load(path, map_location="cpu")
    return module


def _write_safetensors(network: nn.Module, example: Tensor, path: Path, about: dict[str, str]) -> None:
    from safetensors.torch import save_file

    # Copies: the format refuses tensors that share memory, as tied weights do.
    weights = {name: weight.detach().clone().contiguous() for name, weight in network.state_dict().items()}
    save_file(weights, path, metadata=about)


def _answer_safetensors(path: Path, network: nn.Module) -> Answer:
    from safetensors.torch import load_file

    blank = copy.deepcopy(network)
    for weight in blank.state_dict().values():
        weight.zero_()  # so that nothing but the file can answer
    blank.load_state_dict(load_file(path))
    return blank


FORMATS = {
    "onnx": Format(
        ".onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        _write_onnx,
        _answer_onnx,
        (
            "import onnxruntime",
            'session = onnxruntime.InferenceSession("{file}")',
            '(logits,) = session.run(["logits"], {{"images": images}})',
        ),
    ),
    "torchscript": Format(
        ".torchscript",
        (),
        _write_torchscript,
        _answer_torchscript,
        ("import torch", 'network = torch.jit.load("{file}", map_location="cpu")', "logits = network(images)"),
    ),
    "pt2": Format(
        ".pt2",
        (),
        _write_pt2,
        _answer_pt2,
        ("import torch", 'network = torch.export.load("{file}").module()', "logits = network(images)"),
    ),
    "safetensors": Format(
        ".safetensors",
        ("safetensors",),
        _write_safetensors,
        _answer_safetensors,
        (
            "from safetensors.torch import load_file",
            'network.load_state_dict(load_file("{file}"))  # a network that you make: here are the weights alone',
        ),
    ),
}


def _exported(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The network's graph for any number of images, without the paths of this machine."""
    batch = torch.export.Dim("batch")
    try:
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # of many kinds, by what it met
        raise InputError(
            f"the network has no fixed graph ({_first_line(error)}); its forward must not branch on values or on the "
            "number of images (len(images) does: write images.shape[0]), or take --format torchscript or safetensors"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


@contextmanager
def _torchscript() -> Iterator[None]:
    """Newer versions of torch call all of it deprecated; and where a trace may have fixed a number, the comparison on
    batches of several sizes decides."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`?torch\.jit\.\w+`? is (deprecated|not supported)")
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


def _culprit(error: BaseException) -> str:
    """The operator at the end of a chain of causes."""
    text: list[Any] = []
    link: BaseException | None = error
    while link is not None:
        text, link = [str(link), *text], link.__cause__
    for words in text:
        if found := re.search(r"op='([\w.:]+)'|ops\.([\w.]+)\]", words):
            return f"the operator {found[1] or found[2]}"
    return f"the network ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
