"""How is a command that the documentation shows tried? On small inputs, in a folder of its own, to its end.

What needs a cluster, or would search for hours, is tried as far as it goes without: its settings, its --dry-run.
"""

from __future__ import annotations

import configparser
import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import time_to_accuracy
from benchmarks.reproduce import __main__ as reproduce
from benchmarks.reproduce.tables import TABLES
from ien import build, config, evaluate, export, train
from ien.alignment import __main__ as aligned
from ien.config.__main__ import main as list_settings
from ien.data.__main__ import main as prepare
from ien.models import __main__ as models
from launch import doctor, jobs, rehearse, submit, tune
from launch.grid import overrides
from launch.search import sweep
from tests.data.inputs import jpeg, tiny_imagenet, write_mnist, write_tree, write_zip
from tests.finished_run import finished_run

ROOT = Path(__file__).parent.parent
FEW = {
    "batch_size": "8",
    "tot_epochs": "1",
    "cyc_size": "1",
    "data.val_split": "4",
    "data.workers": "0",
    "run.equivariance_images": "2",
    "run.device": "cpu",
}
LESS = {
    "rot_mnist": ("--train", "20", "--test", "10"),
    "scale_mnist": ("--train", "20", "--test", "10"),
    "rot_tim": ("--classes", "2"),
    "image_folder": (),
}


def prepare_place(place: Path) -> None:
    """What a stranger has: the repository's configs, the sources of its data and these prepared, runs/quickstart."""
    for name in ("configs", "slurm", "docs"):
        (place / name).symlink_to(ROOT / name)
    finished_run(place)
    write_mnist(place / "mnist")
    write_zip(place / "tiny-imagenet-200.zip", tiny_imagenet())
    tree = {f"{split}/{kind}/{k}.jpg": jpeg(40 * k) for split in ("train", "val") for kind in "ab" for k in range(4)}
    write_tree(place / "DIR", tree)
    for source, data in (("mnist", "rot_mnist"), ("mnist", "scale_mnist"), ("tiny-imagenet-200.zip", "rot_tim")):
        prepare([data, "--from", str(place / source), "--root", str(place / "data"), *LESS[data]])
    for form, out in (
        ("onnx", "runs/quickstart/network.onnx"),
        ("torchscript", "runs/quickstart/network.torchscript"),
        ("pt2", "served/digits.pt2"),
        ("safetensors", "runs/quickstart/network.safetensors"),
    ):
        export.main([str(place / "runs/quickstart"), "--format", form, "--out", str(place / out)])


def small(settings: Path, words: list[str]) -> list[str]:
    """The command's own `key=value`, and those that make its run one of seconds."""
    few = dict(FEW)
    wanted = config.load(settings, words)
    if wanted.dataset == "digits":
        few |= {"batch_size": "256", "data.val_split": "1000"}
    if "/" not in wanted.model:
        few["network.width"] = str(build.make_pool(wanted, build.make_group(wanted)).multiple)
    return [
        *(word for word in words if word.partition("=")[0] not in (*few, "data.name")),
        *(f"{key}={few[key]}" for key in few),
    ]


def _make(words: list[str], tmp_path: Path) -> None:
    for target in words:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def _pip(words: list[str], tmp_path: Path) -> None:
    parsed = configparser.ConfigParser()
    parsed.read(ROOT / "setup.cfg")
    assert words[:2] == ["install", "-e"]
    extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[2])
    assert extras
    assert set((extras[1] or "dev").split(",")) <= set(parsed["options.extras_require"])


def _cp(words: list[str], tmp_path: Path) -> None:
    assert (ROOT / words[0]).is_file()
    assert (ROOT / words[1]).parent.is_dir()


def _train(words: list[str], tmp_path: Path) -> None:
    option, settings, *given = words
    assert option == "--config"
    train.main([option, settings, *small(Path(settings), given), f"run.root={tmp_path}"])
    assert list(tmp_path.rglob("summary.json"))


def _submit(words: list[str], tmp_path: Path) -> None:
    """Trained in this process where it wants one or several; what needs SLURM is checked and shown."""
    given = submit._parser().parse_intermixed_args(words)
    for more in overrides(given.seeds, given.grid, "some"):
        settings = config.load(given.config, given.overrides + more)
    if given.executor == "slurm" or settings.launch.nodes > 1:
        return
    submit.main(words if given.dry_run else [*words, "--dry-run"])
    if not (given.dry_run or given.seeds or given.grid):
        few = [f"run.root={tmp_path}", "launch.tasks_per_node=1", "--executor", "inline"]
        submit.main(["--config", str(given.config), *small(given.config, given.overrides), *few])
        assert list(tmp_path.rglob("summary.json"))


def _tune(words: list[str], tmp_path: Path) -> None:
    """All but the search: test_tune runs one."""
    given = tune._parser().parse_intermixed_args(words)
    assert sweep.load(given.config, given.overrides).space.axes
    if given.executor != "slurm":
        tune.main([*words, "--dry-run"])


def _data(words: list[str], tmp_path: Path) -> None:
    if "PATH" in words:
        words[words.index("PATH")] = "tiny-imagenet-200.zip" if words[0] == "rot_tim" else "mnist"
    prepare([*words, "--root", str(tmp_path), *LESS[words[0]]])
    assert list(tmp_path.rglob("*.npy"))


def _jobs(words: list[str], tmp_path: Path) -> None:
    if words[0] == "cancel":
        assert jobs._parser().parse_args(words).runs == ["quickstart"]
        return
    jobs.main(words)


def _doctor(words: list[str], tmp_path: Path) -> None:
    """Its options alone: test_doctor runs it."""
    assert doctor._parser().parse_args(words)


def _rehearse(words: list[str], tmp_path: Path) -> None:
    """Its settings alone: test_rehearse runs it."""
    given = rehearse._parser().parse_intermixed_args(words)
    assert config.load(given.config, given.overrides)


def _export(words: list[str], tmp_path: Path) -> None:
    given = export._parser().parse_args(words)
    suffix = export.FORMATS[given.format].suffix
    if given.format == "onnx":  # as the place was made, and slow
        assert Path("runs/quickstart/network.onnx").exists()
        return
    export.main([*words, "--out", str(tmp_path / f"network{suffix}")])


def _evaluate(words: list[str], tmp_path: Path) -> None:
    given = evaluate._parser().parse_args(words)
    for run in given.runs:
        if not Path(run).exists():
            shutil.copytree("runs/quickstart", run)
    words = [word.replace("FILE.pt", "runs/quickstart/checkpoints/best.pt") for word in words]
    words = [word.replace("FILE", "runs/quickstart/config.yaml") for word in words]
    evaluate.main([*words, "--images", "8", "--no-pictures", "--out", str(tmp_path / "report")])
    assert (tmp_path / "report" / "report.html").exists()


def _alignment(words: list[str], tmp_path: Path) -> None:
    assert aligned.main(words) in (0, 1)


def _models(words: list[str], tmp_path: Path) -> None:
    models.main(words)


def _example(words: list[str], tmp_path: Path) -> None:
    """test_examples runs it."""
    assert words == []


def _settings(words: list[str], tmp_path: Path) -> None:
    list_settings(words)


def _sbatch(words: list[str], tmp_path: Path) -> None:
    """Its settings alone: test_on_slurm and test_reproduce_on_slurm run it."""
    script, settings, *more = (word for word in words if not word.startswith("--"))
    assert (ROOT / script).is_file()
    assert settings in TABLES or config.load(settings, more)


def _reproduce(words: list[str], tmp_path: Path) -> None:
    """All but the training, for which it is given no time: test_reproduce does that."""
    words = ["-1" if word == "60" else word for word in words]
    if "--ship" in words:  # test_reproduce does that too
        words = ["smoke", "--list"]
    with pytest.raises(SystemExit) if "--list" not in words else contextlib.nullcontext():
        reproduce.main([*words, "--out", str(tmp_path), "--runs", str(tmp_path)])


def _benchmarks(words: list[str], tmp_path: Path) -> None:
    """All but the measuring: test_benchmarks does that, on small sizes."""
    with pytest.raises(SystemExit) if "--list" not in words else contextlib.nullcontext():
        benchmarks.main([*words, "--minutes", "-1", "--out", str(tmp_path)])


def _time_to_accuracy(words: list[str], tmp_path: Path) -> None:
    """Its options alone: test_benchmarks runs it."""
    assert time_to_accuracy._parser().parse_args(words).trials == 5


COMMANDS: dict[str, Callable[[list[str], Path], None]] = {
    "make": _make,
    "pip": _pip,
    "cp": _cp,
    "cd": lambda words, tmp_path: None,
    "sbatch": _sbatch,
    "launch/submit.py": _submit,
    "launch/tune.py": _tune,
    "launch.jobs": _jobs,
    "launch.doctor": _doctor,
    "launch.rehearse": _rehearse,
    "benchmarks": _benchmarks,
    "benchmarks.time_to_accuracy": _time_to_accuracy,
    "benchmarks.reproduce": _reproduce,
    "ien.train": _train,
    "ien.config": _settings,
    "ien.data": _data,
    "ien.export": _export,
    "ien.evaluate": _evaluate,
    "ien.alignment": _alignment,
    "ien.models": _models,
    **{f"examples/{path.name}": _example for path in (ROOT / "examples").glob("*.py") if path.stem != "digits"},
}
