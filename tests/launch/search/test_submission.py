"""What of a sweep goes to SLURM, what is refused before, and who may search at the same time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ien.errors import InputError
from ien.lock import InUseError
from launch import slurm
from launch import tune as command
from launch.search import sweep
from launch.search.job import held, refuse_sharing, report
from launch.search.submission import submission
from launch.sites import Site
from tests.launch.search.sweeps import written
from tests.launch.test_script import GOLDEN, SITE

LAUNCH = {"nodes": 2, "gpus_per_node": 4, "timeout_min": 600, "partition": "gpu", "snapshot": False}


@pytest.mark.parametrize(
    ("name", "elements", "launch"),
    [("sweep", 1, LAUNCH), ("sweep_array", 3, LAUNCH | {"nodes": 1, "cpus_per_task": 6, "array_parallel": 2})],
)
def test_the_script_to_the_letter(name: str, elements: int, launch: dict[str, Any], tmp_path: Path) -> None:
    file = written(tmp_path, launch=launch, resources={"cpus": 2, "gpus": 1}, set={"run": {"root": "/somewhere/runs"}})
    script = submission(file, [], SITE, elements, "")._order(snapshot=False).script
    script = script.replace(sys.executable, "PYTHON").replace(str(GOLDEN.parents[2]), "CODE")
    expected = GOLDEN / f"{name}.sbatch"
    assert script == expected.read_text(), f"if this is what you meant, write it into {expected}"
    checked = subprocess.run(["bash", "-n", expected], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_script_for_login_nodes_without_python_has_no_mistake() -> None:
    script = GOLDEN.parents[2] / "slurm/tune.sbatch"
    assert subprocess.run(["bash", "-n", script], capture_output=True, check=False).stderr == b""
    wrong = subprocess.run(["bash", script, "nothing"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "is no sweep" in wrong.stderr


def test_a_site_stands_below_the_sweep(tmp_path: Path) -> None:
    place = Site(launch=sweep.read(_file(tmp_path, "site.yaml", "launch: {partition: red, qos: long}"), {"launch"}))
    wanted = submission(written(tmp_path, launch={"partition": "blue"}), ["launch.mem_gb=3"], place, 1, "")
    asked = wanted.settings.launch
    assert (asked.partition, asked.qos, asked.mem_gb) == ("blue", "long", 3)


def _file(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_a_job_has_the_cores_of_one_trial_or_of_as_many_as_its_gpus_hold(tmp_path: Path) -> None:
    file = written(tmp_path, seeds="0-1", resources={"cpus": 1.5})
    assert submission(file, [], Site(), 1, "").settings.launch.cpus_per_task == 3
    words = ["launch.gpus_per_node=8", "resources.gpus=2"]
    assert submission(file, words, Site(), 1, "").settings.launch.cpus_per_task == 6


def test_a_job_does_not_see_later_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, set={"optimizer": {"name": "adamw"}, "tot_epochs": 2, "cyc_size": 2})
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nbeta_weight: 0.5\n")
    words = ["base=child.yaml", "set.optimizer.clip_norm=2", "set.data.val_split=0.2", "budget.trials=7"]
    asked = submission(file, words, Site(), 1, "")
    frozen = asked._frozen(write=True)
    (tmp_path / "base.yaml").write_text("dataset: no_such\n")
    again = sweep.load(frozen)
    assert (again.name, again.folder, again.file.budget.trials) == ("small", Path("runs/sweeps/small"), 7)
    assert again.base == asked.sweep.base
    assert (again.base.beta_weight, again.base.optimizer.clip_norm, again.base.data.val_split) == (0.5, 2, 0.2)
    assert again.space.axes == asked.sweep.space.axes
    assert frozen.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("changes", "words", "said"),
    [
        ({}, ["--array", "2"], "--array 2: is for SLURM; add --executor slurm"),
        ({"launch": {"nodes": 2}}, [], "launch.nodes: is for SLURM; add --executor slurm"),
        ({}, ["--cluster", "mars"], "--cluster: is for SLURM"),
        ({}, ["--executor", "slurm", "--cluster", "mars"], "--cluster mars: there is no such file"),
        ({}, ["--executor", "slurm", "--array", "0"], "--array 0: an array has elements"),
        ({"launch": {"nodes": 2}}, ["--executor", "slurm", "--array", "2"], "each element searches on one node"),
        ({"sampler": "tpe"}, ["--executor", "slurm", "--array", "2"], "tpe learns from all trials"),
        ({"scheduler": "pbt"}, ["--executor", "slurm", "--array", "2"], "pbt copies from all trials"),
        ({"launch": {"cpus_per_task": 1}}, ["--executor", "slurm", "resources.cpus=2"], "a trial needs 2 CPUs"),
        ({}, ["--executor", "slurm", "resources.gpus=1"], "a trial needs 1 GPUs"),
        ({"launch": {"partition": "a\nb"}}, ["--executor", "slurm"], "launch.partition: "),
        ({"launch": {"setup": ["rm"]}}, ["--executor", "slurm"], "launch.setup: unknown"),
    ],
)
def test_what_no_job_could_search_is_one_line(
    changes: dict[str, Any],
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "cluster_name", lambda: None)
    written(tmp_path, **changes)
    assert said in _refused(["--config", "small.yaml", *words], capsys)
    assert not (tmp_path / "runs").exists()


def test_without_slurm_it_cannot_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm, "available", lambda: False)
    said = _refused(["--config", str(written(tmp_path)), "--executor", "slurm"], capsys)
    assert "needs sbatch and srun on the PATH" in said


def _refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        command.main(words)
    assert left.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sweep.Sweep:
    monkeypatch.chdir(tmp_path)
    return sweep.load(written(tmp_path))


def test_elements_search_side_by_side_and_nobody_else_with_them(small: sweep.Sweep) -> None:
    with held(small, 0, "7_0", 0), held(small, 1, "7_1", 0):
        assert _in_use(lambda: held(small, 1, "8_1", 0))
        assert _in_use(lambda: held(small, None, "9", 0))
    with held(small, None, "9", 0):
        assert yaml.safe_load((small.folder / sweep.NAME).read_text())["budget"] == {"trials": 3, "hours": None}
        assert _in_use(lambda: held(small, None, "10", 0))
    with held(small, 1, "11_1", 0):
        pass


def _in_use(search: Callable[[], Any]) -> bool:
    """Asked in another process: within one, the kernel gives a lock twice."""
    import os

    child = os.fork()
    if not child:
        try:
            with search():
                os._exit(0)
        except InUseError:
            os._exit(3)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_a_sweep_of_which_nothing_has_begun_has_no_report(small: sweep.Sweep) -> None:
    with held(small, None, "7", 0):
        assert report(small) == ""


def test_asha_may_be_shared_out(tmp_path: Path) -> None:
    refuse_sharing(sweep.load(written(tmp_path, scheduler="asha")), 2)
    with pytest.raises(InputError, match="pbt"):
        refuse_sharing(sweep.load(written(tmp_path, scheduler="pbt")), 2)
