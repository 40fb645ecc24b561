"""What SLURM is given is what was asked for, to the letter, and nothing that a name could smuggle in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ien.config import Config, load_with_origins
from ien.errors import InputError
from launch.handover import order
from launch.sites import Site, site

GOLDEN = Path(__file__).parent / "golden"
BASE = {"dataset": "digits", "model": "BasicCNN", "save_dir": "a/b", "batch_size": 96}
SITE = Site(
    "somewhere",
    setup=("module load cuda", "source ~/venv/bin/activate"),
    python="singularity exec --nv image.sif python",
    environment={"NCCL_SOCKET_IFNAME": "ib0"},
)
EVERYTHING = {
    "nodes": 3,
    "gpus_per_node": 4,
    "cpus_per_task": 7,
    "mem_gb": 1.5,
    "timeout_min": 600,
    "partition": "gpu,low",
    "account": "science",
    "qos": "long",
    "constraint": "(a100|h100)&ib",
    "gres": "lscratch:100",
    "exclude": "n[1-3],n7",
    "reservation": "school",
    "job_name": "mine",
    "comment": "for the paper",
    "mail_user": "me@uni.org",
    "mail_type": "END,FAIL",
    "container": "nvcr.io#nvidia/pytorch:26.10-py3",
    "signal_delay_s": 300,
    "array_parallel": 2,
}


def settings(**launch: Any) -> Config:
    given = {"snapshot": False} | launch
    return Config.model_validate(BASE | {"run": {"root": "/somewhere/runs"}, "launch": given})


def script(runs: list[Config], place: Site = SITE) -> str:
    """The script, with the two paths that differ from machine to machine replaced."""
    text = order(runs, place, Path("/somewhere/runs/a/b/jobs"), snapshot=False).script
    return text.replace(sys.executable, "PYTHON").replace(str(Path(__file__).resolve().parents[2]), "CODE")


@pytest.mark.parametrize(
    ("name", "runs", "place"),
    [
        ("plain", [settings()], Site()),
        ("everything", [settings(**EVERYTHING)], SITE),
        ("array", [settings(**EVERYTHING)] * 5, SITE),
        ("not_again", [settings(requeue=False, timeout_min=1)], Site()),
    ],
)
def test_the_script_to_the_letter(name: str, runs: list[Config], place: Site) -> None:
    expected = GOLDEN / f"{name}.sbatch"
    assert script(runs, place) == expected.read_text(), f"if this is what you meant, write it into {expected}"
    checked = subprocess.run(["bash", "-n", expected], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


HOSTILE = ["a\nrm -rf x\n#", "a'b", 'a"b', "$(id)", "`id`", "a;b", "ä", "", "a" * 300, "a\\b", "a>b", "a\tb", "a\0b"]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("key", ["job_name", "comment", "partition", "account", "constraint", "exclude", "gres"])
def test_a_hostile_word_is_refused_in_one_line(tmp_path: Path, key: str, value: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("dataset: digits\nmodel: BasicCNN\n")
    quoted = "'" + value.replace("'", "''") + "'"
    words = [f"launch.{key}={quoted}"] if not set("\n\t\0") & set(value) else [f'launch.{key}="{_escaped(value)}"']
    with pytest.raises(InputError) as refused:
        load_with_origins(file, words)
    assert "\n" not in str(refused.value)
    assert f"launch.{key}: " in str(refused.value)
    assert "write 1 to 128 characters from A-Z a-z 0-9" in str(refused.value)


def _escaped(value: str) -> str:
    return value.replace("\n", "\\n").replace("\t", "\\t").replace("\0", "\\0")


@pytest.mark.parametrize("root", ["/a b", "/a'b", "/a\nb", "/$(id)", "/a;b", "/" + "a" * 300, "/a%jb"])
def test_a_hostile_path_is_refused(root: str) -> None:
    run = settings().model_copy(update={"run": settings().run.model_copy(update={"root": root})})
    with pytest.raises(InputError, match=r"^run\.root: .* cannot stand in a job's script; write a path of at most 255"):
        order([run], Site(), Path(root) / "a" / "jobs", snapshot=False)


def written(folder: Path, text: str) -> str:
    (folder / "here.yaml").write_text(text)
    return str(folder / "here.yaml")


def test_a_site_stands_below_the_experiment_and_above_the_defaults(tmp_path: Path) -> None:
    place, why = site(written(tmp_path, "launch: {partition: gpu, nodes: 2}\nsetup: [module load a]\n"), None)
    (tmp_path / "run.yaml").write_text("dataset: digits\nmodel: BasicCNN\nlaunch: {nodes: 4}\n")
    config, origins = load_with_origins(tmp_path / "run.yaml", ["launch.cpus_per_task=3"], place.launch)
    assert why == "as --cluster says"
    assert (config.launch.partition, config.launch.nodes, config.launch.cpus_per_task) == ("gpu", 4, 3)
    assert origins["launch.partition"] == f"{tmp_path}/here.yaml:1"
    assert origins["launch.nodes"] == f"{tmp_path}/run.yaml:3"
    assert place.lines == ["module load a"]


def test_a_site_is_found_by_the_clusters_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "clusters").mkdir(parents=True)
    (tmp_path / "configs" / "clusters" / "mars.yaml").write_text("launch: {partition: red}\n")
    assert site(None, "mars")[0].launch["launch.partition"].value == "red"
    unknown, why = site(None, "venus")
    assert unknown.launch == {}
    assert "configs/clusters/venus.yaml" in why
    with pytest.raises(InputError, match=r"--cluster venus: there is no such file .*; there are: .*mars"):
        site("venus", None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("beta_weight: 1\n", r"here.yaml:1: beta_weight: is no cluster's"),
        ("setup: module load a\n", "setup: is a list of shell lines"),
        ("environment: {A: 'b; c'}\n", "environment: write NAME: value"),
        ("environment: {A B: c}\n", "environment: write NAME: value"),
        ("python: [a]\n", "python: is the command"),
    ],
)
def test_a_site_that_cannot_be_used_is_told(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(InputError, match=line):
        site(written(tmp_path, text), None)


@pytest.mark.parametrize("key", ["setup", "python", "launch.setup"])
def test_no_experiment_brings_shell_lines(tmp_path: Path, key: str) -> None:
    (tmp_path / "run.yaml").write_text("dataset: digits\nmodel: BasicCNN\n")
    with pytest.raises(InputError, match="unknown setting"):
        load_with_origins(tmp_path / "run.yaml", [f"{key}=[rm]"])


def test_the_shipped_example_of_a_site_can_be_used() -> None:
    example = GOLDEN.parents[2] / "configs" / "clusters" / "example.yaml"
    place, _ = site(str(example), None)
    file = GOLDEN.parents[2] / "configs" / "rot_tim_r8.yaml"
    config, _ = load_with_origins(file, [], place.launch)
    assert config.launch.processes == 4
    assert "export NCCL_SOCKET_IFNAME=ib0" in place.lines
