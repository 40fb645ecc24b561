from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ien import config
from ien.errors import InputError
from launch.search import sweep
from launch.search.book import Book, read
from tests.launch.search.sweeps import ROOT, written


@pytest.mark.parametrize("path", sorted((ROOT / "configs/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_of_the_project_can_be_searched(path: Path) -> None:
    found = sweep.load(path)
    points = found.space.points() if found.file.sampler == "grid" else [found.space.drawn(0, n) for n in range(50)]
    for number, point in enumerate(points):
        for seed in found.seeds:
            run = found.run(number, point, seed)
            assert (run.run.seed, run.run.test, run.launch.processes) == (seed, False, 1)
    assert path.name in path.read_text()  # its own command stands in it


def test_the_settings_of_a_trial_are_the_bases_under_the_sweeps_under_the_points(tmp_path: Path) -> None:
    path = written(
        tmp_path, set={"tot_epochs": 5, "network": {"width": 8}}, metrics={"relative_equivariance_error": "min"}
    )
    found = sweep.load(path, ["set.optimizer.clip_norm=1"])
    run = found.run(7, {"beta_weight": 0.25}, 0)
    assert (run.tot_epochs, run.network.width, run.optimizer.clip_norm, run.beta_weight) == (5, 8, 1.0, 0.25)
    assert run.run.equivariance_every == 1  # a metric that is measured only where it is wanted
    assert run.save_dir == "sweeps/small/007/seed-0"
    best = config.Config.model_validate(config.load(_saved(tmp_path, found.best({"beta_weight": 0.25}))).model_dump())
    assert (best.beta_weight, best.run.test, best.save_dir) == (0.25, True, "best/small")
    assert best.launch == config.load(tmp_path / "base.yaml").launch


def _saved(folder: Path, text: str) -> Path:
    path = folder / "best.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("given", "seeds"), [(3, (3,)), ("0-2", (0, 1, 2)), ([4, 1], (4, 1))])
def test_seeds_are_written_in_three_ways(given: Any, seeds: tuple[int, ...], tmp_path: Path) -> None:
    found = sweep.load(written(tmp_path, seeds=given), ["resources.processes=2", "resources.cpus=0.5"])
    assert found.seeds == seeds
    assert found.cpus == len(seeds) * 2 * 0.5


def test_grace_is_counted_in_the_longest_cycle_that_is_searched(tmp_path: Path) -> None:
    words = ["scheduler=asha", "asha.grace_cycles=2", "set.tot_epochs=30", "set.cyc_size=20"]
    fixed = sweep.load(written(tmp_path), words)
    assert (fixed.epochs, fixed.grace_epochs) == (30, 30)
    searched = sweep.load(written(tmp_path, space={"cyc_size": {"randint": [4, 7]}}), words)
    assert searched.grace_epochs == 14


def test_another_sweep_in_the_folder_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    root = f'set.run.root="{tmp_path}/runs"'
    found = sweep.load(path, [root])
    found.folder.mkdir(parents=True, mode=0o700)
    (found.folder / sweep.NAME).write_text(found.text)
    for words in ([], ["budget.trials=99"], ["resources.cpus=2"], ["max_failures=0"], ["asha.grace_cycles=3"]):
        sweep.load(path, [root, *words]).refuse_other()  # more of the same, or elsewhere
    for words, said in (
        (["set.batch_size=64"], "batch_size: 128 → 64"),
        (["space={beta_weight: {loguniform: [0.01, 20]}}"], "space"),
        (["metrics={class_loss: min}"], "metrics"),
        (["seeds=1"], "seeds"),
        (["seed=5"], "seed: 0 → 5"),
        (["scheduler=asha"], "scheduler: none → asha"),
    ):
        with pytest.raises(InputError, match="holds a sweep of another kind") as refused:
            sweep.load(path, [root, *words]).refuse_other()
        assert said in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampler": "bayes"}, "sampler: 'bayes' is not allowed; write grid, random, tpe"),
        ({"spaces": {}}, "spaces: unknown setting; did you mean space?"),
        ({"seeds": "2-1"}, "seeds:"),
        ({"seeds": [1, 1]}, "names none, or one twice"),
        ({"metrics": {"accuracy": "maximum"}}, "metrics"),
        ({"metrics": {"top5": "max"}}, "top5 is not measured; write accuracy"),
        ({"set": {"save_dir": "x"}}, "save_dir: is the sweep's to say"),
        ({"set": {"launch": {"nodes": 2}}}, "is the sweep's to say"),
        (
            {"scheduler": "pbt", "space": {"mode": {"choice": ["R4", "R8"]}}},
            "pbt changes settings on the way, and mode",
        ),
        ({"scheduler": "pbt", "sampler": "tpe"}, "pbt changes settings itself"),
        ({"sampler": "grid"}, "beta_weight: is a range"),
        ({"resources": {"gpus": 0.5, "processes": 2}}, "a share of a GPU is for a run of one process"),
        ({"name": "../up"}, "name:"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        sweep.load(written(tmp_path, **changes))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_book_remembers_through_half_a_line(tmp_path: Path) -> None:
    book = Book(tmp_path)
    book.proposed(0, {"beta_weight": 0.1})
    book.proposed(1, {"beta_weight": 0.2})
    book.failed(0, "killed by SIGKILL", given_up=False)
    book.stopped(1, 4)
    book.changed(0, {"beta_weight": 0.3}, generation=1)
    with book.path.open("a") as file:
        file.write('{"event": "stopped", "tri')
    book.failed(1, "status 1", given_up=True)
    Book(tmp_path, element=2).proposed(2, {"beta_weight": 0.4})
    zero, one, two = read(tmp_path).values()
    assert (zero.point, zero.generation, zero.failures, zero.given_up) == (
        {"beta_weight": 0.3},
        1,
        ["killed by SIGKILL"],
        False,
    )
    assert (one.failures, one.given_up) == (["status 1"], True)
    assert (one.stopped_at, two.point) == (4, {"beta_weight": 0.4})
