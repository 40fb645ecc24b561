"""A run comes to its processes as it was asked for, is left alone by who submitted it, and tells how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import submitit

from ien.config import Config, resolved
from launch import handover, submit
from launch.detached import alive

SCRIPT = Path(submit.__file__)
TINY = """
dataset: digits
model: BasicCNN
tot_epochs: 1
cyc_size: 1
save_dir: tiny
network: {width: 8}
run: {equivariance_images: 16}
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory away from the sources, with `tiny.yaml` in it; no sbatch on the PATH."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.delenv("PYTHONPATH", raising=False)


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--config", "tiny.yaml", *arguments]


def submitted(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, check=False)


def settings(**launch: object) -> Config:
    return Config.model_validate({"dataset": "digits", "model": "BasicCNN", "save_dir": "a/b", "launch": launch})


def test_auto_takes_slurm_then_processes_then_this_process() -> None:
    assert submit.executor_for(settings(), slurm_here=False)[0] == "inline"
    assert submit.executor_for(settings(tasks_per_node=2), slurm_here=False)[0] == "local"
    assert submit.executor_for(settings(), slurm_here=True) == ("slurm", "sbatch is on the PATH")
    assert submit.executor_for(settings(executor="inline"), slurm_here=True) == ("inline", "as launch.executor says")


@pytest.mark.parametrize(
    ("launch", "line"),
    [
        ({"executor": "slurm"}, "launch.executor: slurm needs sbatch and srun on the PATH"),
        ({"executor": "local", "nodes": 2}, "launch.nodes: 2 machines need SLURM"),
        ({"nodes": 2}, "launch.nodes: 2 machines need SLURM"),
        ({"executor": "inline", "tasks_per_node": 4}, "inline is one process, but 1 × 4 are asked for"),
    ],
)
def test_an_executor_that_cannot_be_used_is_refused(launch: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        submit.executor_for(settings(**launch), slurm_here=False)


def test_processes_are_one_for_each_gpu() -> None:
    assert settings().launch.processes == 1
    assert settings(nodes=2, gpus_per_node=4).launch.processes == 8
    assert settings(nodes=2, gpus_per_node=4, tasks_per_node=1).launch.processes == 2


def test_a_dry_run_tells_all_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    given = ["--dry-run", "optimizer.accumulate=4", "--executor", "local", "launch.tasks_per_node=2", "run.seed=3"]
    submit.main(["--config", "tiny.yaml", *given])
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert sorted(tmp_path.rglob("*")) == before
    for line in (
        "tot_epochs 1 tiny.yaml:4",
        "run.seed 3 command line",
        "max_lr 0.005 default",
        "executor local: as launch.executor says",
        "processes 1 × 2, 16 images of a step in each in 4 passes of 4",
        "run folder runs/tiny (new)",
    ):
        assert line in shown


def test_a_dry_run_knows_how_far_the_run_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True, mode=0o700)
    for name, state in (("jobs", "new"), ("config.yaml", "unfinished"), ("summary.json", "finished")):
        (folder / name).write_text(TINY)
        submit.main(["--config", "tiny.yaml", "--dry-run"])
        assert f"run folder  runs/tiny ({state})" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["beta_wieght=1"], "error: command line: beta_wieght: unknown setting; did you mean beta_weight?"),
        (["training=false"], "error: runs/tiny holds no run to test; train it first with training=true"),
        (["--executor", "slurm"], "error: launch.executor: slurm needs sbatch and srun on the PATH"),
        (["launch.tasks_per_node=3"], "error: tiny.yaml: batch_size: 32 does not divide by 3"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        submit.main(["--config", "tiny.yaml", *arguments])
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.err.startswith(line)
    assert shown.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_folder_of_other_settings_is_refused_before_a_job_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "config.yaml").write_text(TINY)
    ended = submitted("--executor", "local", "beta_weight=0.5")
    assert ended.returncode == 2
    assert "beta_weight: 1.0 → 0.5" in ended.stderr
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_each_process_is_given_torchruns_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"EXECUTOR": "local", "LOCAL_JOB_ID": "77", "LOCAL_NTASKS": "4", "LOCAL_JOB_NUM_NODES": "1"}
    for name, value in (there | {"LOCAL_GLOBALID": "3", "LOCAL_LOCALID": "3"}).items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    assert handover.process_variables(submitit.JobEnvironment(), tmp_path) == {
        "MASTER_ADDR": "127.0.0.1",
        "IEN_RENDEZVOUS": str(tmp_path / f"rendezvous-local-{os.getppid()}-0.json"),
        "IEN_JOB": f"local-{os.getppid()}",
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "3",
        "LOCAL_WORLD_SIZE": "4",
    }


def test_processes_of_another_job_or_start_meet_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = set()
    for variables in (
        {"SLURM_JOB_ID": "5"},
        {"SLURM_JOB_ID": "6"},
        {"SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": "1"},
        {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"},
    ):
        common = {
            "SUBMITIT_EXECUTOR": "slurm",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": "1",
        }
        with monkeypatch.context() as patch:
            for name, value in (common | variables).items():
                patch.setenv(name, value)
            found = handover.process_variables(submitit.JobEnvironment(), tmp_path)
        assert (found["MASTER_ADDR"], "MASTER_PORT" in found) == ("n1", False)
        places.add(found["IEN_RENDEZVOUS"])
    assert len(places) == 4


def test_inline_runs_from_any_working_directory(tmp_path: Path) -> None:
    ended = submitted("batch_size=128")
    assert (ended.returncode, ended.stdout) == (0, "executor inline: one process, and no sbatch on the PATH\n")
    assert (tmp_path / "runs/tiny/summary.json").exists()


def test_local_runs_as_many_processes_and_shows_the_log(tmp_path: Path) -> None:
    ended = submitted("batch_size=128", "launch.tasks_per_node=2", "--wait")
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "runs/tiny/summary.json").read_text())["processes"] == 2
    assert "epoch 1/1" in ended.stdout
    assert "submitit INFO" not in ended.stdout
    again = submitted("batch_size=128", "--executor", "local")
    assert "runs/tiny is finished" in again.stdout


def test_a_failed_job_is_told_by_the_end_of_its_error() -> None:
    ended = submitted("--executor", "local", "--wait", "dataset=rot_mnist")
    assert ended.returncode == 1
    *_, first, last = ended.stderr.splitlines()
    assert "failed (all of it: runs/tiny/jobs/" in first
    assert "data set 'rot_mnist' is not prepared" in last
    assert "Traceback" not in ended.stdout + ended.stderr


def test_ctrl_c_leaves_the_job_running_and_the_told_command_stops_it() -> None:
    watcher = subprocess.Popen(
        command("--executor", "local", "--wait", "tot_epochs=1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert watcher.stdout is not None
    lines = dict(line.split(maxsplit=1) for line in (watcher.stdout.readline() for _ in range(6)))
    number = int(lines["job"].split()[0])
    try:
        os.killpg(watcher.pid, signal.SIGINT)  # what Ctrl-C in a terminal sends, and to whom
        _, said = watcher.communicate(timeout=20)
        assert watcher.returncode == 130
        assert f"job {number} goes on unwatched; stop it with: kill -INT {number}" in said
        time.sleep(1)
        assert alive(number)
    finally:
        os.kill(number, signal.SIGINT)
    deadline = time.monotonic() + 20
    while alive(number) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(number)


def test_the_gpus_of_the_shell_stay_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell in ("1,3", None):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # what submitit's local executor leaves
        handover.Job({}, visible_gpus=shell)._see_the_shells_gpus()
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == shell


def test_a_job_travels_as_plain_data() -> None:
    job = handover.Job(settings().model_dump(mode="json"))
    assert resolved(Config.model_validate(json.loads(json.dumps(job.settings)))) == resolved(settings())


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    for executor in ("inline", "local"):
        with pytest.raises(SystemExit) as ended:
            submit.main(["--config", "tiny.yaml", "--executor", executor])
        assert ended.value.code == 2
        assert (
            "runs/tiny can be written by other users (mode 0777); type: chmod go-w runs/tiny" in capsys.readouterr().err
        )
    assert list(folder.iterdir()) == []


def test_a_run_folder_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert submitted("batch_size=128").returncode == 0
    finally:
        os.umask(before)
    assert (tmp_path / "runs" / "tiny").stat().st_mode & 0o777 == 0o700


def test_seeds_run_one_after_the_other_and_finished_ones_are_skipped(tmp_path: Path) -> None:
    both = submitted("batch_size=128", "--seeds", "0-1", "--executor", "inline")
    assert both.returncode == 0, both.stderr
    runs = [tmp_path / "runs" / "tiny" / f"seed_{seed}" for seed in (0, 1)]
    assert [json.loads((run / "summary.json").read_text())["epochs"] for run in runs] == [1, 1]
    (runs[1] / "summary.json").unlink()
    again = submitted("batch_size=128", "--seeds", "0-1", "--executor", "inline")
    assert "runs/tiny/seed_0 is finished" in again.stdout
    assert "runs/tiny/seed_1 is finished" not in again.stdout
    assert (runs[1] / "summary.json").exists()
