"""The shipped configs: every one can be loaded, says what it says, and costs what its header states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ien import build, models
from ien.config import Config, load

CONFIGS = sorted(path for path in (Path(__file__).parent.parent / "configs").glob("*.yaml"))
FAST = sorted((CONFIGS[0].parent / "fast").glob("*.yaml"))
COSTED = [path for path in CONFIGS if load(path).dataset != "digits"]
IMAGES = {
    "rot_mnist": (10_000, 10, 1),
    "scale_mnist": (10_000, 10, 1),
    "rot_tim": (45_000, 100, 3),
}  # to train on, classes, channels


def by_stem(path: Path) -> str:
    return path.stem


def network(settings: Config) -> torch.nn.Module:
    """The network without its numbers: nothing is allocated."""
    _, classes, channels = IMAGES[settings.dataset]
    pool = build.make_pool(settings, build.make_group(settings))
    with torch.device("meta"):
        if models.of_library(settings.model):
            return models.library_network(settings.model, classes, channels).eval()
        entry = models.MODELS[settings.model]
        return entry.build(
            models.default_width(settings.model, build.make_group(settings), pool), pool, classes, channels
        ).eval()


def test_every_dataset_and_mode_of_the_published_code_is_there() -> None:
    modes = ("r4", "r8", "r4-2-1", "r8-4-2", "r8-4-2-1")
    wanted = {f"{data}_{mode}" for data in ("rot_mnist", "rot_tim", "rot_tim_vgg") for mode in modes}
    wanted |= {f"{data}_{mode}" for data in ("r2_tim", "r2_tim_vgg") for mode in ("r4", "r8-4-2", "r8-4-2-1")}
    assert {path.stem for path in CONFIGS} >= wanted | {"quickstart", "scale_mnist", "scale_mnist_r4"}


@pytest.mark.parametrize("path", CONFIGS, ids=by_stem)
def test_a_config_is_what_its_name_says(path: Path) -> None:
    settings = load(path)
    pattern = r"(quickstart|digits|rot_mnist|scale_mnist|rot_tim|r2_tim)(?:_(vgg|torchvision_[^_]+))?_?(.*)"
    data, network, groups = re.fullmatch(pattern, path.stem).groups()  # type: ignore[union-attr]
    assert settings.save_dir == path.stem
    assert settings.dataset == {"quickstart": "digits", "r2_tim": "rot_tim"}.get(data, data)
    assert settings.reflection == (data == "r2_tim")
    named = "VGG" if network == "vgg" else (network or "").replace("_", "/")
    assert settings.model == (named or ("Resnet18" if "tim" in data else "BasicCNN"))
    assert settings.heterogeneous == (groups.upper() if "-" in groups else False)
    turns = "R1" if (data, groups) == ("scale_mnist", "") else "R4"
    assert settings.mode == ("R8" if groups.startswith("r8") and not settings.reflection else turns)
    assert settings.group.scales == ((0.8, 1.25) if data == "scale_mnist" else ())


@pytest.mark.parametrize("path", CONFIGS, ids=by_stem)
def test_a_header_gives_the_schema_and_the_commands(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=schema.json"
    assert f"# train: python launch/submit.py --config configs/{path.name}" in lines
    prepare = next(line for line in lines if line.startswith("# data: "))
    settings = load(path)
    if settings.dataset != "digits":
        assert f"python -m ien.data {settings.dataset} --from " in prepare
        assert prepare.endswith(" --reflection") == settings.reflection


@pytest.mark.parametrize("path", COSTED, ids=by_stem)
def test_a_header_states_the_true_cost(path: Path) -> None:
    settings, header = load(path), path.read_text()
    model, images = network(settings), IMAGES[settings.dataset][0]
    side, channels = build.image_side(settings), IMAGES[settings.dataset][2]
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, channels, side, side, device="meta"))
    parameters = sum(weights.numel() for weights in model.parameters())
    flops = counter.get_total_flops()
    assert f"{parameters:,} parameters; {flops / 1e9:.2f} GFLOP" in header
    views = 2 if settings.objective.augment == "group" else 1
    stated = re.search(rf"an epoch is ([\d.]+) PFLOP:\n#\s+([\d,]+) images × {views} views? × 3 ", header)
    assert stated is not None
    assert stated[2] == f"{images:,}"
    assert float(stated[1]) == pytest.approx(images * views * 3 * flops / 1e15, abs=0.02)


@pytest.mark.parametrize("path", FAST, ids=by_stem)
def test_a_fast_config_learns_what_its_slow_twin_does(path: Path) -> None:
    """It says how a step is computed, not what is minimised; on a CPU of a narrow network."""
    twin, _, device = path.stem.rpartition("_")
    slow, fast = (load(one).model_dump() for one in (path.parent.parent / f"{twin}.yaml", path))
    assert fast.pop("save_dir") == f"fast_{path.stem}"
    slow.pop("save_dir")
    assert (fast["run"].pop("device") == "cpu") == (device == "cpu")
    assert fast["run"].pop("channels_last")
    assert fast["run"].pop("precision") == {"cpu": "fp32", "gpu": "bf16"}[device]
    assert fast["run"]["cuda_graphs"]
    for name in ("device", "channels_last", "precision"):
        slow["run"].pop(name)
    if device == "cpu":
        assert (fast["network"].pop("width"), slow["network"].pop("width")) == (24, None)
    assert fast == slow
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../schema.json"
    assert f"# train: python launch/submit.py --config configs/fast/{path.name}" in lines
