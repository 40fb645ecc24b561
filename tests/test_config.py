"""Settings: the published names and defaults, who wins over whom, and one clear line for what is not allowed."""

from __future__ import annotations

import inspect
import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ien import config
from ien.config import Config, load, load_with_origins, resolved
from ien.errors import InputError

CONFIGS = Path(__file__).parent.parent / "configs"
SMALLEST = {"dataset": "digits", "model": "BasicCNN"}

# The dictionary of the published main.py, as its users have it.
PUBLISHED = """
weight_decay_rate: 1e-7
cyc_size: 70
max_lr: 5e-3
low_lr: 1e-5
dec_scale: 1
batch_size: 32
tot_epochs: 90
beta_weight: 1
heterogeneous: False
reflection: True
mode: R4
ratio: [32,8,2,1]
mplc_kernel_size: [8,4,2,1]
dataset: rot_tim
model: Resnet18
training: True
save_dir: ien_training
"""


def written(folder: Path, text: str, name: str = "x.yaml") -> Path:
    path = folder / name
    path.write_text(inspect.cleandoc(text) + "\n")
    return path


def refusal(folder: Path, text: str, *overrides: str, smallest: bool = True) -> str:
    """The one line with which settings are refused, its file's folder left out."""
    whole = "dataset: digits\nmodel: BasicCNN\n" if smallest else ""
    with pytest.raises(InputError) as caught:
        load(written(folder, whole + inspect.cleandoc(text)), overrides)
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(f"{folder}/", "")


def test_the_defaults_are_the_published_ones() -> None:
    plain = Config.model_validate(SMALLEST)
    assert {name: value for name, value in plain.model_dump().items() if name not in config.SECTIONS} == {
        "dataset": "digits",
        "model": "BasicCNN",
        "taps": None,  # new, beside the model that they belong to
        "pretrained": None,
        "reflection": False,
        "heterogeneous": False,
        "mode": "R4",
        "ratio": None,
        "mplc_kernel_size": None,
        "save_dir": "ien_training",
        "training": True,
        "beta_weight": 1.0,
        "tot_epochs": 90,
        "batch_size": 32,
        "weight_decay_rate": 1e-7,
        "max_lr": 5e-3,
        "low_lr": 1e-5,
        "cyc_size": 70,
        "dec_scale": 1.0,
    }


def test_published_params_work_unchanged(tmp_path: Path) -> None:
    params = load(written(tmp_path, PUBLISHED))
    assert params == Config.model_validate(
        {"dataset": "rot_tim", "model": "Resnet18", "reflection": True}
        | {"ratio": [32, 8, 2, 1], "mplc_kernel_size": (8, 4, 2, 1)}  # ignored: not heterogeneous
    )
    assert load(written(tmp_path, PUBLISHED.replace("False", "True"))).mplc_kernel_size == (8, 4, 2, 1)


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({"heterogeneous": "R8-4-2-1"}, "R8"),
        ({"heterogeneous": "R8-4-2"}, "R8"),
        ({"heterogeneous": "R4-2-1"}, "R4"),
        ({"heterogeneous": True, "ratio": [1, 1], "mplc_kernel_size": [8, 2]}, "R8"),
        ({"heterogeneous": True, "ratio": [1, 1], "mplc_kernel_size": [4, 8]}, "R4"),
        ({"heterogeneous": "R8-4-2-1", "mode": "R4"}, "R4"),
        ({"heterogeneous": "R8-4-2-1", "reflection": True}, "R4"),
        ({"heterogeneous": False, "mplc_kernel_size": [8, 4]}, "R4"),
        ({"mode": "R360"}, "R360"),
    ],
)
def test_the_mode_follows_the_filter_groups_unless_it_is_given(given: dict[str, Any], mode: str) -> None:
    assert Config.model_validate(SMALLEST | given).mode == mode


def test_a_presets_name_brings_its_filter_groups() -> None:
    assert {
        name: (made.ratio, made.mplc_kernel_size)
        for name in config.PRESETS
        for made in [Config.model_validate(SMALLEST | {"heterogeneous": name})]
    } == {
        "R8-4-2-1": ((32, 8, 2, 1), (8, 4, 2, 1)),
        "R8-4-2": ((8, 2, 1), (8, 4, 2)),
        "R4-2-1": ((8, 2, 1), (4, 2, 1)),
    }


def test_the_names_are_those_of_the_tables() -> None:
    from ien import data, models, pooling

    choices = config.by_dotted_key(Config)
    assert choices["model"]["anyOf"][0]["enum"] == list(models.MODELS)
    assert ", ".join(models.MODELS) == config.PAPER_MODELS
    assert all(re.match(choices["model"]["anyOf"][1]["pattern"], f"{name}/x") for name in models.LIBRARIES)
    assert set(choices["dataset"]["enum"]) == set(data.DATASETS)
    assert config.PRESETS == pooling.PRESETS
    assert [member["enum"] for member in choices["heterogeneous"]["anyOf"][1:]] == [list(pooling.PRESETS)]


def test_scales_are_sorted_and_each_is_there_once() -> None:
    made = Config.model_validate(SMALLEST | {"mode": "R1", "group": {"scales": [2, 0.5, 2.0]}})
    assert made.group.scales == (0.5, 2.0)


def test_settings_cannot_be_written_into() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config.model_validate(SMALLEST).run.seed = 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("+1.5E+3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -float("inf")),
        ("012", 12),
        ("-7", -7),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("on", "on"),
        ("No", "No"),
        ("True", True),
        ("FALSE", False),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("'1'", "1"),
        ("[1, 2e1, x]", [1, 20.0, "x"]),
        ("{block1: 0.5}", {"block1": 0.5}),
        ("a=b", "a=b"),
    ],
)
def test_yaml_means_what_it_looks_like(text: str, value: object) -> None:
    setting = config.from_command_line([f"key={text}"], ())["key"].value
    assert setting == value
    assert type(setting) is type(value)


def test_sections_merge_and_values_replace(tmp_path: Path) -> None:
    written(tmp_path, "dataset: digits\nmodel: BasicCNN\nbatch_size: 8\nmax_lr: 0.1", "base.yaml")
    written(
        tmp_path,
        """
        extends: base.yaml
        batch_size: 16
        objective:
          loss: relative
          stop_gradient: true
          tap_weights: {block1: 2, block2: 3}
        run:
        """,
        "parent.yaml",
    )
    (tmp_path / "deep").mkdir()
    child = "extends: [../base.yaml, ../parent.yaml]\nobjective:\n  loss: mse\n  tap_weights: {block3: 4}\n"
    made, origins = load_with_origins(
        written(tmp_path / "deep", child), ["objective.stop_gradient=false", "run.seed=1", "run={seed: 2}"]
    )
    assert made.objective.model_dump(include={"loss", "stop_gradient", "tap_weights"}) == {
        "loss": "mse",
        "stop_gradient": False,
        "tap_weights": {"block3": 4.0},
    }
    assert (made.batch_size, made.run.seed) == (16, 2)
    where = {"dataset": "base.yaml:1", "batch_size": "parent.yaml:2", "max_lr": "base.yaml:4"}
    where |= {"objective.loss": "deep/x.yaml:3", "objective.tap_weights": "deep/x.yaml:4"}
    assert {key: origins[key] for key in where} == {key: f"{tmp_path}/{place}" for key, place in where.items()}
    assert origins["run.seed"] == origins["objective.stop_gradient"] == "command line"
    assert origins["run.precision"] == "default"


def test_what_a_preset_brings_says_so(tmp_path: Path) -> None:
    _, origins = load_with_origins(written(tmp_path, "heterogeneous: R8-4-2"), ["dataset=digits", "model=VGG"])
    assert {origins[key] for key in ("mode", "ratio", "mplc_kernel_size")} == {"heterogeneous"}


def test_every_setting_has_an_origin_and_a_meaning(tmp_path: Path) -> None:
    made, origins = load_with_origins(written(tmp_path, "dataset: digits\nmodel: VGG"))
    assert origins.keys() == config.flat(made).keys() == config.by_dotted_key(Config).keys()
    assert all(schema["description"] for schema in config.by_dotted_key(Config).values())


@pytest.mark.parametrize(
    ("text", "overrides", "line"),
    [
        ("beta_wieght: 1", [], "x.yaml:3: beta_wieght: unknown setting; did you mean beta_weight?"),
        ("loss: mse", [], "x.yaml:3: loss: unknown setting; did you mean objective.loss?"),
        ("run: {los: mse}", [], "x.yaml:3: run.los: unknown setting; did you mean objective.loss?"),
        ("optimiser:\n  name: adam", [], "x.yaml:3: optimiser: unknown setting; did you mean optimizer.name?"),
        ("xyzzy: 1", [], "x.yaml:3: xyzzy: unknown setting; `python -m ien.config` lists all settings"),
        ("1: 2", [], "x.yaml:3: 1: unknown setting; `python -m ien.config` lists all settings"),
        ("objective.loss: mse", [], "x.yaml:3: objective.loss: has a dot; in a file write loss inside `objective:`"),
        ("objective: relative", [], "x.yaml:3: objective: is a section; write its settings below it, indented"),
        ("mode: R5x", [], "x.yaml:3: mode: 'R5x' is no group; write R4, R8 or R<N> with N ≥ 2"),
        ("mode: 8", [], "x.yaml:3: mode: 8 is no group; write R4, R8 or R<N> with N ≥ 2"),
        ("mode: R1", [], "x.yaml:3: mode: 'R1' is no group; write R4, R8 or R<N> with N ≥ 2, or R1 with group.scales"),
        (
            "mode: R1",
            ["group.scales=[0.8]", "symmetry.tied=true"],
            "x.yaml: symmetry.mode: is needed where mode is R1, which does not turn; write R4, or no symmetry",
        ),
        (
            "group: {scales: [0.8, 1]}",
            [],
            "x.yaml:3: group.scales: 1 is always among them; leave it out, as in [0.8, 1.25]",
        ),
        (
            "",
            ["group.scales=[0]"],
            "command line: group.scales: [0] is not allowed; write a list of numbers ≥ 0.25 and ≤ 4",
        ),
        ("tot_epochs: 9.5", [], "x.yaml:3: tot_epochs: 9.5 is not allowed; write a whole number ≥ 1"),
        ("tot_epochs: true", [], "x.yaml:3: tot_epochs: true is not allowed; write a whole number ≥ 1"),
        ("beta_weight: -1", [], "x.yaml:3: beta_weight: -1 is not allowed; write a number ≥ 0"),
        ("max_lr: .nan", [], "x.yaml:3: max_lr: NaN is not allowed; write a number > 0"),
        ("training: yes", [], "x.yaml:3: training: 'yes' is not allowed; write true or false"),
        ("dec_scale:", [], "x.yaml:3: dec_scale: null is not allowed; write a number > 0"),
        ("save_dir: 12", [], "x.yaml:3: save_dir: 12 is no folder under run.root; write a relative path of at most"),
        ("save_dir: /tmp/a", [], "x.yaml:3: save_dir: '/tmp/a' is no folder under run.root"),
        ("save_dir: a/../..", [], "x.yaml:3: save_dir: 'a/../..' must not hold . or ..; write the folder's name alone"),
        ("save_dir: a b", [], "x.yaml:3: save_dir: 'a b' is no folder"),
        (f"save_dir: {'a' * 201}", [], "x.yaml:3: save_dir: 'aaaa"),
        (
            "data: {val_split: 1.5}",
            [],
            "x.yaml:3: data.val_split: 1.5 is not allowed; write a whole number ≥ 0 or a number > 0 and < 1 or null",
        ),
        (
            "ratio: [1, a]",
            [],
            'x.yaml:3: ratio: [1, "a"] is not allowed; write a list of whole numbers ≥ 1 or null',
        ),
        (
            "objective: {tap_weights: {block1: -1}}",
            [],
            'objective.tap_weights: {"block1": -1} is not allowed; write a mapping of names, each to a number ≥ 0',
        ),
        (
            "",
            ["objective.tap_weights.block1=2"],
            "command line: objective.tap_weights.block1: unknown setting; did you mean objective.tap_weights?",
        ),
        (
            "",
            ["dataset=rot-mnist"],
            "command line: dataset: 'rot-mnist' is not allowed; "
            "write digits, rot_mnist, scale_mnist, rot_tim, image_folder; did you mean rot_mnist?",
        ),
        ("tot_epochs: 9", [], "cyc_size: a cycle of 70 epochs does not fit into tot_epochs 9; write 9 or fewer"),
        ("low_lr: 1", [], "x.yaml:3: low_lr: 1 is above max_lr 0.005; write one that is not"),
        (
            "",
            ["objective.augment=none"],
            "x.yaml: beta_weight: 1 needs a second view, but augment is none; write beta_weight: 0, or",
        ),
        (
            "launch: {nodes: 2, tasks_per_node: 3}",
            ["optimizer.accumulate=4"],
            "batch_size: 32 does not divide by 24 "
            "(launch.nodes × launch.tasks_per_node × optimizer.accumulate = 2 × 3 × 4); write 24 or 48",
        ),
        (
            "",
            ["model=resnet18"],
            "command line: model: 'resnet18' is not allowed; write BasicCNN, Resnet18, VGG, torchvision/NAME, "
            "timm/NAME or package.module:Class; did you mean Resnet18?",
        ),
        (
            "",
            ["model=timm/convnext_atto"],
            "x.yaml: taps: is required for timm/convnext_atto; write names of its layers as a list "
            "(`python -m ien.models timm/convnext_atto` lists them)",
        ),
        ("taps: block1", [], "x.yaml:3: taps: 'block1' is not allowed; write a list of names of layers, as in [layer1"),
        (
            "taps: []",
            [],
            "x.yaml:3: taps: [] is not allowed; write a list of names of layers, as in [layer1, layer2], ",
        ),
        (
            "network: {width: 8}\ntaps: [layer1]",
            ["model=torchvision/resnet18"],
            "x.yaml:3: network.width: is of BasicCNN, Resnet18, VGG, and model is torchvision/resnet18; remove it",
        ),
        ("network: {arguments: {a: 1}}", [], "network.arguments: is for package.module:Class, and model is BasicCNN; "),
        ("heterogeneous: true", [], "x.yaml:3: heterogeneous: needs ratio as a list; write ratio: [32, 8, 2, 1] and"),
        ("heterogeneous: true\nratio: [1]", [], "heterogeneous: needs mplc_kernel_size as a list; write"),
        (
            "heterogeneous: true\nratio: [1]\nmplc_kernel_size: [4, 2]",
            [],
            "x.yaml:4: ratio: has 1 shares for 2 mplc_kernel_size; write as many of each",
        ),
        (
            "heterogeneous: R4-2-1\nratio: [1, 1, 1]",
            [],
            "x.yaml:3: heterogeneous: R4-2-1 is (8, 2, 1) of (4, 2, 1); remove ratio and mplc_kernel_size, or write",
        ),
        ("heterogeneous: R4-2-2", [], "'R4-2-2' is not allowed; write true or false or R8-4-2-1, R8-4-2, R4-2-1"),
        ("heterogeneous: 1", [], "x.yaml:3: heterogeneous: 1 is not allowed; write true or false or R8-4-2-1"),
        ("mode: R0\nmax_lr: x\nfoo: 1", [], "(and 2 more)"),
        ("", ["beta_weight"], "command line: 'beta_weight' is no setting; write key=value, as in beta_weight=0.1"),
        ("", ["=1"], "command line: '=1' is no setting"),
        ("", ["beta_weight="], "command line: beta_weight= has no value; write beta_weight=null to unset it"),
        ("", ["ratio=[1, 2"], "command line: ratio=[1, 2:1: cannot be read as YAML: "),
        ("", ["objective=mse"], "command line: objective: is a section; write objective.NAME=VALUE"),
        ("", ["extends=y.yaml"], "command line: extends: stands in a file only"),
        ("mode: R4\nmode: R8", [], "x.yaml:4: cannot be read as YAML: mode is set twice; remove one"),
        ("run:\n  seed: 1\n  seed: 2", [], "x.yaml:5: cannot be read as YAML: seed is set twice"),
        ("objective: {tap_weights: {a: 1, a: 2}}", [], "x.yaml:3: cannot be read as YAML: a is set twice"),
        ("mode: [", [], "x.yaml:4: cannot be read as YAML: "),
        ("mode: !!python/name:os.system", [], "x.yaml:3: cannot be read as YAML: could not determine a constructor"),
        ("tot_epochs: !!int x", [], "x.yaml:3: cannot be read as YAML: 'x' is no int"),
        (f"tot_epochs: {'9' * 5000}", [], "is no int"),
        (f"max_lr: {'9' * 400}", [], "is not allowed; write a number > 0"),
        (f"ratio: {'[' * 5000}", [], "x.yaml: is nested too deeply"),
        ("extends: nowhere.yaml", [], "x.yaml:3: extends: nowhere.yaml: there is no file "),
        ("extends: 3", [], "x.yaml:3: extends: 3 is no file; write the path of a YAML file"),
        ("extends: ./x.yaml", [], "x.yaml:3: extends: goes in a circle (x.yaml → x.yaml); remove one of them"),
    ],
)
def test_what_is_not_allowed_is_told_in_one_line(tmp_path: Path, text: str, overrides: list[str], line: str) -> None:
    assert line in refusal(tmp_path, text, *overrides)


def test_a_required_setting_is_asked_for(tmp_path: Path) -> None:
    wanted = "x.yaml: model: is required; write model: followed by one of BasicCNN, Resnet18, VGG, "
    wanted += "torchvision/NAME, timm/NAME or package.module:Class"
    assert refusal(tmp_path, "dataset: digits", smallest=False) == wanted


def test_a_longer_circle_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "extends: x.yaml", "y.yaml")
    assert "y.yaml:1: extends: goes in a circle (x.yaml → y.yaml → x.yaml)" in refusal(tmp_path, "extends: y.yaml")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \x00", b"[1, 2]", b"just text"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.yaml"):
        load(tmp_path / "x.yaml")


def test_a_missing_file_is_told_with_the_nearest_one(tmp_path: Path) -> None:
    written(tmp_path, "", "quickstart.yaml")
    with pytest.raises(InputError, match=r"there is no such file; did you mean .*/quickstart\.yaml\?"):
        load(tmp_path / "quikstart.yaml")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        load(tmp_path)


def any_settings(draw: random.Random) -> dict[str, Any]:
    """Allowed settings at random, with text that YAML 1.1 and 1.2 are prone to misread."""
    text = draw.choice(
        ["1e-3", "on", "012", "12:30", "2024-01-01", "null", "a: b", "# x", "~", "é", "", "x\ny", "\x00"]
    )
    return SMALLEST | {
        "max_lr": draw.uniform(1e-5, 1) * 10 ** draw.randrange(12),
        "heterogeneous": draw.choice([False, *config.PRESETS]),
        "data": {"root": text or "data", "val_split": draw.choice([None, 0, 3, 0.25])},
        "objective": {"tap_weights": {text: draw.random(), "block.1": 1}},
        "save_dir": draw.choice(["1e3", "a/b", "012", "on", "null", "-x"]),
        "optimizer": {"clip_norm": draw.choice([None, 1e-30, 1e30])},
    }


def test_resolved_settings_are_read_back_equal(tmp_path: Path) -> None:
    draw = random.Random(0)
    for _ in range(100):
        made = Config.model_validate(any_settings(draw))
        (tmp_path / "config.yaml").write_text(resolved(made), encoding="utf-8")
        assert load(tmp_path / "config.yaml") == made


def test_differences_name_what_makes_another_run() -> None:
    a = Config.model_validate(SMALLEST)
    free = {"training": False, "launch": {"nodes": 4, "timeout_min": 5}, "run": {"root": "elsewhere"}}
    free["data"] = {"root": "d", "workers": 0, "resident": "never", "verify": False}
    assert config.differences(a, Config.model_validate(SMALLEST | free)) == []
    other = Config.model_validate(SMALLEST | {"beta_weight": 0.1, "run": {"log_every": 7, "device": "cpu"}})
    assert config.differences(a, other) == [
        "beta_weight: 1.0 → 0.1",
        "run.device: 'auto' → 'cpu'",
        "run.log_every: 50 → 7",
    ]


def test_a_run_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    mine = Config.model_validate(SMALLEST | {"save_dir": "a/b", "run": {"root": str(tmp_path)}})
    config.refuse_other_settings(mine)
    config.run_dir(mine).mkdir(parents=True)
    (tmp_path / "a/b/config.yaml").write_text(resolved(mine))
    config.refuse_other_settings(mine)
    with pytest.raises(InputError, match=r"other settings \(mode: 'R4' → 'R8'\)"):
        config.refuse_other_settings(mine.model_copy(update={"mode": "R8"}))


def test_the_schema_for_editors_is_up_to_date() -> None:
    shown = subprocess.run([sys.executable, "-m", "ien.config", "--schema"], capture_output=True, text=True, check=True)
    assert shown.stdout == (CONFIGS / "schema.json").read_text(), (
        "run `python -m ien.config --schema > configs/schema.json`"
    )
    assert json.loads(shown.stdout)["properties"]["extends"]


def test_reading_settings_does_not_load_torch() -> None:
    code = "import sys, ien.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pyyaml_alone_reads_resolved_text_as_it_was_meant() -> None:
    made = Config.model_validate(SMALLEST | {"save_dir": "012", "data": {"name": "on"}})
    plain = yaml.safe_load(resolved(made))
    assert (plain["save_dir"], plain["data"]["name"], plain["weight_decay_rate"]) == ("012", "on", 1e-7)
