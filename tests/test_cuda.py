"""On a GPU a run is what it is on a CPU, and the host never waits for the device in a step.

Skipped where there is no GPU; where IEN_TEST_CUDA is set they fail instead.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from ien import build, checkpoint, config, distributed, train
from ien.build import Parts
from ien.distributed import Processes
from ien.engine import set_precision
from tests.runs_compared import lines, tensors
from tests.test_train import SMALL, stop_after

pytestmark = [
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),  # that it is a prototype
    pytest.mark.skipif(not torch.cuda.is_available() and "IEN_TEST_CUDA" not in os.environ, reason="there is no GPU"),
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "small.yaml"
    path.write_text(SMALL.replace("device: cpu", "device: cuda").replace("width: 4", "width: 8"))
    return path


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that add up in the same order each time."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


def run(settings: Path, root: Path, *words: str, report: Any = None) -> Path:
    train.run(config.load(settings, [f"run.root={root}", "save_dir=run", *words]), report)
    return root / "run"


def losses(folder: Path) -> list[float]:
    return [line["class_loss"] for line in lines(folder)] + [line["equivariance"] for line in lines(folder)]


def test_it_trains_as_on_a_cpu(settings: Path, tmp_path: Path) -> None:
    there = run(settings, tmp_path / "cuda", "tot_epochs=1", "cyc_size=1")
    here = run(settings, tmp_path / "cpu", "tot_epochs=1", "cyc_size=1", "run.device=cpu")
    assert losses(there) == pytest.approx(losses(here), rel=2e-2)
    assert json.loads((there / "environment.json").read_text())["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("mode", ["R4", "R8"])
@pytest.mark.parametrize(
    "words",
    [
        ["run.precision=fp32"],
        ["run.precision=fp32", "run.cuda_graphs=false"],
        ["run.precision=tf32"],
        ["run.precision=bf16", "run.channels_last=true"],
        ["run.precision=fp16", "optimizer.clip_norm=1.0"],
        ["run.precision=bf16", "optimizer.accumulate=2"],
        ["run.precision=bf16", "objective.loss=relative", "objective.second_views=0.5", "optimizer.name=adamw"],
        ["symmetry.tied=true", "objective.augment=none", "beta_weight=0"],
        ["symmetry.weight_penalty=1", "run.precision=bf16"],
    ],
    ids=" ".join,
)
def test_in_a_step_the_host_does_not_wait(settings: Path, words: list[str], mode: str) -> None:
    """Also not for the next batch, its second views, the schedule, or what is measured on the way."""
    with distributed.processes("cuda", 60.0) as processes:
        parts = build.parts(config.load(settings, [*words, f"mode={mode}"]), processes)
        waits_nowhere(parts)


def test_over_nccl_the_host_does_not_wait_either(settings: Path, tmp_path: Path) -> None:
    """Half of a run of two processes, whose NCCL group is this one alone: one GPU takes no second."""
    wanted = config.load(settings, ["run.sync_batchnorm=true", "optimizer.accumulate=2"])
    device = torch.device("cuda", 0)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=device)
    try:
        parts = build.parts(wanted, Processes(rank=0, count=2, device=device))
        assert isinstance(parts.engine.network, DistributedDataParallel)
        assert any(isinstance(layer, torch.nn.SyncBatchNorm) for layer in parts.engine.network.modules())
        waits_nowhere(parts)
    finally:
        torch.distributed.destroy_process_group()


def waits_nowhere(parts: Parts) -> None:
    set_precision(parts.settings.run.precision)
    batches = (batch for epoch in itertools.count() for batch in parts.batches.epoch(epoch))
    for step in range(14):  # then kernels, grids and discs are there, and each of seven plans has its graph
        parts.engine.train_step(*next(batches), step)
    given = [next(batches) for _ in range(8)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, batch in enumerate(given, start=14):
            parts.engine.train_step(*batch, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        set_precision("fp32")
    means, bad = parts.engine.read()
    assert bad is None
    assert 0 < means["classification"] < 10


@pytest.mark.parametrize("mode", ["R4", "R8"])
def test_replayed_steps_are_those_that_they_replay(settings: Path, tmp_path: Path, mode: str) -> None:
    words = [f"mode={mode}", "optimizer.accumulate=2", "objective.warmup_epochs=1"]
    replayed = run(settings, tmp_path / "replayed", *words)
    launched = run(settings, tmp_path / "launched", *words, "run.cuda_graphs=false")
    assert losses(replayed)[:2] == pytest.approx(losses(launched)[:2], rel=2e-2)


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # torch 2.11's own, under Python 3.12
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # fp32 is what was asked for
def test_compiled_it_gives_the_same_losses(settings: Path, tmp_path: Path) -> None:
    plain = run(settings, tmp_path / "plain", "tot_epochs=1", "cyc_size=1")
    compiled = run(settings, tmp_path / "compiled", "tot_epochs=1", "cyc_size=1", "run.compile=true")
    assert losses(compiled) == pytest.approx(losses(plain), rel=2e-2)


def test_a_run_cut_in_two_ends_like_the_whole(settings: Path, tmp_path: Path, deterministic: None) -> None:
    whole = run(settings, tmp_path / "whole")
    with pytest.raises(ConnectionError):
        run(settings, tmp_path / "cut", report=stop_after(1))
    cut = run(settings, tmp_path / "cut")
    states = [tensors(checkpoint.load(folder / "checkpoints" / checkpoint.LAST)) for folder in (whole, cut)]
    assert len(states[0]) == len(states[1]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert lines(whole) == lines(cut)


def test_streamed_images_train_as_resident_ones(settings: Path, tmp_path: Path, deterministic: None) -> None:
    resident = run(settings, tmp_path / "resident", "tot_epochs=1", "cyc_size=1", "data.resident=always")
    streamed = run(
        settings, tmp_path / "streamed", "tot_epochs=1", "cyc_size=1", "data.resident=never", "data.workers=2"
    )
    assert losses(streamed) == losses(resident)
