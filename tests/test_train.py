from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ien import checkpoint, config, train
from ien.build import make_network, open_data
from ien.errors import InputError
from tests.runs_compared import assert_equal_runs, lines

ROOT = Path(__file__).parent.parent
# 8 steps of 128 digits an epoch; a checkpoint at every reading of the losses
SMALL = """
dataset: digits
model: BasicCNN
network: {width: 4}
mode: R4
tot_epochs: 2
cyc_size: 2
batch_size: 128
max_lr: 0.01
run: {log_every: 3, checkpoint_minutes: 1.0e-9, equivariance_images: 32, device: cpu}
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "small.yaml"
    path.write_text(SMALL)
    return path


def start(settings: Path, root: Path, *overrides: str) -> dict[str, Any]:
    return train.run(config.load(settings, [f"run.root={root}", "save_dir=run", *overrides]))


@pytest.fixture(scope="module")
def whole(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    root = tmp_path_factory.mktemp("whole")
    start(settings, root)
    return root / "run"


def command(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=cwd, env=surroundings, capture_output=True, text=True, timeout=300
    )


def stop_after(epochs: int) -> Any:
    """A report that ends the attempt like a crash, once `epochs` epochs are saved."""

    def report(record: dict[str, Any]) -> None:
        if record["epoch"] == epochs:
            raise ConnectionError("the machine is gone")

    return report


def test_a_run_leaves_what_the_architecture_promises(whole: Path) -> None:
    files = {path.name for path in whole.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "summary.json", "checkpoints"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    records = lines(whole)
    splits = [(record["epoch"], record["split"]) for record in records[:-1]]
    assert splits == [(1, "train"), (1, "val"), (2, "train"), (2, "val")]
    assert (records[-1]["split"], records[-1]["step"]) in (("test", 8), ("test", 16))
    for record in records:
        assert set(record["equi_loss"]) == set(record["feature_norm"]) == {f"block{n}" for n in range(1, 7)}
        assert 0 <= record["accuracy"] <= 1
    assert not json.loads((whole / "environment.json").read_text())["variables"].keys() & {"HOME", "PATH"}


def test_training_learns_and_becomes_more_equivariant(whole: Path) -> None:
    result = json.loads((whole / "summary.json").read_text())
    for record in lines(whole):  # no tap weights: the sum that is minimised is that of the taps
        assert record["equivariance"] == pytest.approx(sum(record["equi_loss"].values()), rel=1e-5)
    train_losses = [record["class_loss"] for record in lines(whole) if record["split"] == "train"]
    assert train_losses[1] < train_losses[0]
    assert all(result["relative_equivariance_error"][tap] < before
               for tap, before in result["relative_equivariance_error_before"].items())  # fmt: skip


def test_the_test_set_is_seen_once_and_best_is_chosen_without_it(whole: Path) -> None:
    records = lines(whole)
    assert [record["split"] for record in records].count("test") == 1
    vals = [record for record in records if record["split"] == "val"]
    best = max(vals, key=lambda record: (record["accuracy"], -record["class_loss"]))
    assert checkpoint.load(whole / "checkpoints" / checkpoint.BEST)["record"]["epoch"] == best["epoch"]


def test_a_search_measures_held_out_images_and_never_the_test_set(settings: Path, tmp_path: Path) -> None:
    given: list[dict[str, Any]] = []
    words = [f"run.root={tmp_path}", "save_dir=run", "run.test=false", "run.equivariance_every=1"]
    train.run(config.load(settings, words), report=given.append)
    result = json.loads((tmp_path / "run" / "summary.json").read_text())
    best = max(given, key=lambda record: (record["accuracy"], -record["class_loss"]))
    assert (result["split"], result["accuracy"]) == ("val", pytest.approx(best["accuracy"]))
    assert best["relative_equivariance_error"] == pytest.approx(result["relative_equivariance_error"])
    assert {record["split"] for record in lines(tmp_path / "run")} == {"train", "val"}
    assert given == [record for record in lines(tmp_path / "run") if record["split"] == "val"]


def test_measuring_equivariance_on_the_way_changes_no_weight(settings: Path, whole: Path, tmp_path: Path) -> None:
    train.run(config.load(settings, [f"run.root={tmp_path}", "save_dir=run", "run.equivariance_every=2"]))
    measured = [set(line.get("relative_equivariance_error", ())) for line in lines(tmp_path / "run")]
    assert measured[:4] == [set(), set(), set(), {f"block{n}" for n in range(1, 7)}]
    states = [
        checkpoint.load(folder / "checkpoints" / checkpoint.LAST)["model"] for folder in (whole, tmp_path / "run")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_search_without_held_out_images_is_refused(settings: Path, tmp_path: Path) -> None:
    wanted = config.load(settings, [f"run.root={tmp_path}", "save_dir=run", "run.test=false", "data.val_split=0"])
    with pytest.raises(InputError, match=r"no images are held out.*data\.val_split=0\.1"):
        train.run(wanted)
    assert not (tmp_path / "run").exists()


def test_the_same_command_on_a_finished_run_changes_nothing(
    settings: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "checkpoints").iterdir()}
    result = start(settings, whole.parent)
    assert "is finished" in capsys.readouterr().err
    assert result == json.loads((whole / "summary.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in (whole / "checkpoints").iterdir()} == before


def test_a_run_of_other_settings_is_refused_and_named(settings: Path, whole: Path) -> None:
    with pytest.raises(InputError, match=r"other settings.*beta_weight.*1.*0\.5"):
        start(settings, whole.parent, "beta_weight=0.5")


def test_config_in_the_run_folder_repeats_the_run(whole: Path, tmp_path: Path) -> None:
    train.run(config.load(whole / "config.yaml", [f"run.root={tmp_path}", "save_dir=run"]))
    assert_equal_runs(whole, tmp_path / "run")


def test_stopped_between_epochs_it_goes_on_to_the_same_bits(settings: Path, whole: Path, tmp_path: Path) -> None:
    wanted = config.load(settings, [f"run.root={tmp_path}", "save_dir=run"])
    with pytest.raises(ConnectionError):
        train.run(wanted, report=stop_after(1))
    torch.rand(7)  # the next attempt starts with other random states
    train.run(wanted)
    assert_equal_runs(whole, tmp_path / "run")


def test_averaged_weights_are_judged_and_the_run_goes_on_with_its_own(settings: Path, tmp_path: Path) -> None:
    """What is validated, kept and tested is the mean; stopped between epochs, the run ends with the same bits."""
    words = ["optimizer.ema_decay=0.9", "network.width=8"]
    start(settings, tmp_path / "one", *words)
    with pytest.raises(ConnectionError):
        train.run(config.load(settings, [f"run.root={tmp_path}", "save_dir=run", *words]), report=stop_after(1))
    start(settings, tmp_path, *words)
    assert_equal_runs(tmp_path / "one" / "run", tmp_path / "run")
    plain = start(settings, tmp_path / "plain", "network.width=8")
    last, best = (
        checkpoint.load(tmp_path / "run" / "checkpoints" / name) for name in (checkpoint.LAST, checkpoint.BEST)
    )
    without = checkpoint.load(tmp_path / "plain" / "run" / "checkpoints" / checkpoint.LAST)["model"]
    assert all(torch.equal(last["model"][name], one) for name, one in without.items())  # training does not know
    assert best["record"]["epoch"] == 2
    average = last["engine"]["average"]
    assert all(torch.equal(best["model"][name], one) for name, one in average.items())
    assert not torch.equal(average["block1.0.weight"], last["model"]["block1.0.weight"])
    for name in ("train", "val"):
        averaged, own = (
            [one for one in lines(tmp_path / folder) if one["split"] == name] for folder in ("run", "plain/run")
        )
        assert (averaged == own) == (name == "train")
    (tmp_path / "run" / "checkpoints" / checkpoint.BEST).unlink()
    (tmp_path / "run" / "summary.json").unlink()
    again = start(settings, tmp_path, *words)
    assert again["weights"] == checkpoint.LAST
    assert again["accuracy"] == json.loads((tmp_path / "one/run/summary.json").read_text())["accuracy"]
    assert again["class_loss"] != plain["class_loss"]


def test_dropout_goes_on_where_it_was(settings: Path, tmp_path: Path) -> None:
    """VGG draws random numbers in every step: without the saved states a stopped run would end with other weights."""
    vgg = ["model=VGG", "data.image_size=32", "data.val_split=1000", "batch_size=16", "run.log_every=2", "save_dir=run"]
    for name in ("whole", "stopped"):
        wanted = config.load(settings, [*vgg, f"run.root={tmp_path / name}"])
        if name == "stopped":
            with pytest.raises(ConnectionError):
                train.run(wanted, report=stop_after(1))
        train.run(wanted)
    assert_equal_runs(tmp_path / "whole" / "run", tmp_path / "stopped" / "run")


def test_a_damaged_checkpoint_falls_back_to_its_predecessor(
    settings: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = config.load(settings, [f"run.root={tmp_path}", "save_dir=run"])
    with pytest.raises(ConnectionError):
        train.run(wanted, report=stop_after(1))
    last = tmp_path / "run" / "checkpoints" / checkpoint.LAST
    last.write_bytes(last.read_bytes()[:-500])
    train.run(wanted)
    said = capsys.readouterr().err
    assert f"passed over {last}: truncated" in said
    assert "going on from epoch 0, step 7" in said  # the last reading of the losses within the first epoch
    assert_equal_runs(whole, tmp_path / "run")


def test_a_disk_that_fills_up_elsewhere_is_one_line_too(settings: Path, tmp_path: Path) -> None:
    def full(record: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    wanted = config.load(settings, [f"run.root={tmp_path}", "save_dir=run"])
    with pytest.raises(InputError, match=r"run: No space left on device; its checkpoints are untouched"):
        train.run(wanted, report=full)
    assert checkpoint.newest(tmp_path / "run" / "checkpoints")[1] == []


def test_data_that_changed_since_the_checkpoint_are_refused(settings: Path, tmp_path: Path) -> None:
    wanted = config.load(settings, [f"run.root={tmp_path}", "save_dir=run"])
    with pytest.raises(ConnectionError):
        train.run(wanted, report=stop_after(1))
    folder = tmp_path / "run" / "checkpoints"
    state = checkpoint.load(folder / checkpoint.LAST)
    name = next(iter(state["data"]))
    state["data"][name] = "0" * 64  # as if the set had been prepared anew
    checkpoint.save_last(folder, state)
    with pytest.raises(InputError, match=f"was trained on other data .{name}"):
        train.run(wanted)


def test_killed_twenty_times_it_ends_with_the_same_bits(settings: Path, tmp_path: Path) -> None:
    longer = ["tot_epochs=20", "cyc_size=20", "batch_size=64", "save_dir=run"]
    once = command("tests.attempts", str(settings), "0", "0", f"run.root={tmp_path / 'once'}", *longer)
    assert once.returncode == 0, once.stdout + once.stderr
    often = command("tests.attempts", str(settings), "20", "1", f"run.root={tmp_path / 'often'}", *longer)
    assert often.returncode == 0, often.stdout + often.stderr
    assert "killed 20" in often.stdout
    assert often.stdout.count("going on from") >= 10
    assert "passed over" not in often.stdout  # no damaged file
    assert_equal_runs(tmp_path / "once" / "run", tmp_path / "often" / "run")


@pytest.mark.parametrize(("accumulate", "balance"), [(1, []), (2, []), (2, ["norm_ratio"]), (2, ["pcgrad"])], ids=str)
def test_two_processes_see_the_same_batches_and_end_within_rounding(
    accumulate: int, balance: list[str], tmp_path: Path
) -> None:
    torchrun = ["torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m"]
    for name, words in (("one", []), ("two", torchrun)):
        parts = "1" if name == "one" else str(accumulate)
        done = command(*words, "tests.two_processes", str(tmp_path / name), parts, *balance)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("one", "two"))
    for (images, labels), (same_images, same_labels) in zip(one["seen"], two["seen"], strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    for name, weight in one["weights"].items():
        assert (weight - two["weights"][name]).abs().max() < 1e-5, name
    for kind in ("losses", "val"):
        assert one[kind] == pytest.approx(two[kind], rel=1e-4), kind


def test_torchrun_trains_and_goes_on_to_the_same_bits(settings: Path, tmp_path: Path) -> None:
    """Two processes with BatchNorm: a run that lost its newest checkpoint ends like one that was left alone."""
    words = [
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        "-m",
        "ien.train",
        "--config",
        str(settings),
    ]
    for name in ("one", "other"):
        done = command(*words, f"run.root={tmp_path / name}", "save_dir=run")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("epoch 1/2") == 1  # the first process alone speaks
    folder = tmp_path / "other" / "run"
    (folder / "summary.json").unlink()
    (folder / "checkpoints" / checkpoint.PREVIOUS).replace(folder / "checkpoints" / checkpoint.LAST)
    done = command(*words, f"run.root={tmp_path / 'other'}", "save_dir=run")
    assert "going on from epoch 1, step 7" in done.stderr
    assert_equal_runs(tmp_path / "one" / "run", folder)


def test_training_false_tests_the_run_again(settings: Path, whole: Path) -> None:
    result = json.loads((whole / "summary.json").read_text())
    again = start(settings, whole.parent, "training=false")
    assert again == json.loads((whole / "evaluation.json").read_text())
    assert (again["accuracy"], again["class_loss"]) == (result["accuracy"], result["class_loss"])
    with pytest.raises(InputError, match=r"holds no run to test; train it first"):
        start(settings, whole.parent, "training=false", "save_dir=nowhere")
    assert not (whole.parent / "nowhere").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    settings: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConnectionError):
        train.run(config.load(settings, [f"run.root={tmp_path}", "save_dir=run"]), report=stop_after(1))
    folder = tmp_path / "run" / "checkpoints"
    state = checkpoint.load(folder / checkpoint.LAST)
    state["model"]["head.3.weight"] *= float("inf")
    checkpoint.save_last(folder, state)
    poisoned = (folder / checkpoint.LAST).read_bytes()
    done = command("ien.train", "--config", str(settings), f"run.root={tmp_path}", "save_dir=run")
    assert done.returncode == 2
    assert "error: the loss of step 8 is not finite" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / checkpoint.LAST).read_bytes() == poisoned  # nothing was saved after the bad step


def test_ruined_weights_are_never_saved(settings: Path, tmp_path: Path) -> None:
    """A step so large that the network is lost after it, in the last step before a checkpoint."""
    lost = ["max_lr=1e30", "low_lr=1e30", "batch_size=1000", "tot_epochs=1", "cyc_size=1", "save_dir=run"]
    with pytest.raises(InputError, match=r"the network after step 0 is not finite"):
        train.run(config.load(settings, [*lost, f"run.root={tmp_path}"]))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()  # nor written as a figure


def test_damaged_best_weights_are_replaced_by_the_last_and_said(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(settings, tmp_path)
    folder = tmp_path / "run"
    (folder / "summary.json").unlink()
    best = folder / "checkpoints" / checkpoint.BEST
    best.write_bytes(best.read_bytes()[:-7])
    result = start(settings, tmp_path)
    assert f"passed over {best}: truncated" in capsys.readouterr().err
    assert (result["weights"], result["tested_epoch"]) == ("last.pt", 2)  # and the figures do not pass for the best's


def test_a_run_in_use_refuses_a_second_process(settings: Path, tmp_path: Path) -> None:
    wanted = config.load(settings, [f"run.root={tmp_path}", "save_dir=run"])

    def second(record: dict[str, Any]) -> None:
        done = command("ien.train", "--config", str(settings), f"run.root={tmp_path}", "save_dir=run")
        assert done.returncode == 2
        assert f"run is in use by process {os.getpid()} on" in done.stderr
        raise ConnectionError

    with pytest.raises(ConnectionError):
        train.run(wanted, report=second)
    train.run(wanted)  # and is free again


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(settings: Path, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        train.run(config.load(settings, [f"run.root={tmp_path}", "save_dir=run"]), report=stop_after(1))
    folder = tmp_path / "run" / "checkpoints"
    good = (folder / checkpoint.LAST).read_bytes()
    (folder / ".last.pt.new").symlink_to("/dev/full")
    done = command("ien.train", "--config", str(settings), f"run.root={tmp_path}", "save_dir=run")
    assert done.returncode == 2
    assert f"error: cannot write {folder / checkpoint.LAST}" in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / checkpoint.LAST).read_bytes() == good


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["mode=R5x"], "R5x"),
        (["beta_wieght=1"], "beta_weight"),
        (["batch_size=40000"], "batch_size"),
        (["objective.second_views=0.001"], "write 0.00781 or more"),
        (["run.sync_batchnorm=yes"], "true or false"),
        (["optimizer.accumulate=3"], "batch_size"),
        (["--epochs=3"], "--help"),
        (["data.name=../other"], "data.name"),
        (["cyc_size=3"], "does not fit into tot_epochs 2"),
        (["data.image_size=7"], "images of 7×7 do not fit through BasicCNN"),
        (["network.published_kernels=true"], "VGG alone"),
        (["network.width=30", "heterogeneous=R4-2-1"], "nearest: 22 or 33"),
        (["dataset=rot_mnist", "data.root=nowhere"], "python -m ien.data rot_mnist"),
        (["objective.tap_weights={blok1: 2}"], "did you mean 'block1'"),
        (["run.device=cuda"], "sees no GPU") if not torch.cuda.is_available() else (["run.device=gpu"], "cuda"),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_bad_input_is_one_line_and_exit_status_2(
    settings: Path, tmp_path: Path, overrides: Sequence[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(settings), f"run.root={tmp_path}", "save_dir=run", *overrides]
    with pytest.raises(SystemExit) as exit:
        train.main(arguments)
    assert exit.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in error if line.startswith("error: ")]) == 1
    assert told in error[-1]
    assert not (tmp_path / "run").exists()


VARIANTS = {
    "R8 with reflections": ["mode=R8", "reflection=true", "network.width=8"],
    "nearest, no disc": ["mode=R8", "group.interpolation=nearest", "group.disc=false", "network.width=8"],
    "heterogeneous": ["heterogeneous=R4-2-1", "network.width=11"],
    "own filter groups": ["heterogeneous=true", "ratio=[1, 1]", "mplc_kernel_size=[4, 2]", "network.width=8"],
    "plain": ["beta_weight=0", "objective.augment=none"],
    "relative, warmed up": ["objective.loss=relative", "objective.warmup_epochs=1", "objective.stop_gradient=true"],
    "fewer second views": ["objective.second_views=0.25", "objective.tap_weights={block6: 0}"],
    "the whole orbit": ["objective.second_views=3", "optimizer.accumulate=2"],
    "parts without a second view": ["objective.second_views=0.25", "optimizer.accumulate=32"],
    "AdamW, clipped, accumulated": ["optimizer.name=adamw", "optimizer.clip_norm=1", "optimizer.accumulate=4"],
    "balanced norms, fp16": ["objective.balance=norm_ratio", "run.precision=fp16", "objective.warmup_epochs=0.1"],
    "no conflict": ["objective.balance=pcgrad", "optimizer.accumulate=2", "symmetry.weight_penalty=0.1"],
    "averaged weights, fp16": ["optimizer.ema_decay=0.99", "run.precision=fp16"],
    "bf16, channels last": ["run.precision=bf16", "run.channels_last=true"],
    "all training images": ["data.val_split=0"],
    "turned by any angle, smoothed": ["data.random_rotation=true", "objective.label_smoothing=0.1"],
    "streamed": ["data.resident=never", "data.workers=1"],
    "Resnet18": ["model=Resnet18", "data.image_size=17"],
    "VGG": ["model=VGG", "data.image_size=32"],
}


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_every_setting_trains(settings: Path, tmp_path: Path, overrides: Sequence[str]) -> None:
    small = ["tot_epochs=1", "cyc_size=1", "batch_size=64", "data.val_split=900", *overrides]
    wanted = [setting for setting in small if setting.split("=")[0] not in {o.split("=")[0] for o in overrides}]
    result = start(settings, tmp_path, *wanted, *overrides)
    assert 0 <= result["accuracy"] <= 1
    records = lines(tmp_path / "run")
    assert records[0]["split"] == "train"
    assert bool(records[0]["equi_loss"]) == (overrides != VARIANTS["plain"])
    assert records[-1]["equi_loss"]  # measured in every case


def test_streamed_and_resident_data_train_the_same_bits(settings: Path, whole: Path, tmp_path: Path) -> None:
    start(settings, tmp_path, "data.resident=never", "data.workers=2")
    first, second = (
        checkpoint.load(folder / "checkpoints" / checkpoint.LAST)["model"] for folder in (whole, tmp_path / "run")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_compiled_steps_have_the_same_loss(settings: Path, tmp_path: Path) -> None:
    one_step = ["tot_epochs=1", "cyc_size=1", "batch_size=64", "data.val_split=1200", "run.eval_batch_size=64"]
    start(settings, tmp_path / "eager", *one_step)
    start(settings, tmp_path / "compiled", *one_step, "run.compile=true")
    eager, compiled = (lines(tmp_path / kind / "run")[0] for kind in ("eager", "compiled"))
    assert eager["class_loss"] == pytest.approx(compiled["class_loss"], rel=1e-5)
    assert eager["equi_loss"] == pytest.approx(compiled["equi_loss"], rel=1e-4)


def test_initial_weights_depend_on_the_seed_alone(settings: Path) -> None:
    wanted = config.load(settings, [])
    dataset, group = open_data(wanted), train.build.make_group(wanted)
    first = make_network(wanted, group, dataset).model.state_dict()
    torch.rand(3)
    again = make_network(wanted, group, dataset).model.state_dict()
    other = make_network(config.load(settings, ["run.seed=1"]), group, dataset).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["block1.0.weight"], other["block1.0.weight"])
