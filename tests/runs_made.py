"""Finished runs without training: a folder as the trainer leaves it, with weights of one's choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ien import checkpoint, config
from ien.build import make_group, make_network, open_data

SMALL = """
dataset: digits
model: BasicCNN
network: {width: 4}
mode: R4
tot_epochs: 1
cyc_size: 1
run: {device: cpu}
"""


def finished_run(
    root: Path, name: str, *overrides: str, change: Callable[[nn.Module], object] = lambda _: None
) -> Path:
    """The folder `root/name` of a run of SMALL with these settings, whose initial network was changed by `change`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "small.yaml").write_text(SMALL)
    settings = config.load(root / "small.yaml", [f"run.root={root}", f"save_dir={name}", *overrides])
    data = open_data(settings)
    network = make_network(settings, make_group(settings), data).model
    change(network)
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.resolved(settings))
    checkpoint.save_best(folder / "checkpoints", {"format": 2, "model": network.state_dict(), "record": {}})
    (folder / "summary.json").write_text(json.dumps({"weights": "best.pt", "data": data.fingerprint}))
    return folder
