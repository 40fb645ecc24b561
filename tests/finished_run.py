"""A run that is finished after a few seconds, for tests of what comes after training."""

from __future__ import annotations

from pathlib import Path

from ien import config, train

SETTINGS = """
dataset: digits
model: BasicCNN
network: {width: 4}
tot_epochs: 1
cyc_size: 1
batch_size: 256
max_lr: 0.01
run: {equivariance_images: 8, device: cpu}
"""


def finished_run(place: Path, save_dir: str = "quickstart") -> Path:
    """Train it in `place`/runs; returns its folder."""
    (place / "settings.yaml").write_text(SETTINGS)
    settings = config.load(place / "settings.yaml", [f"run.root={place / 'runs'}", f"save_dir={save_dir}"])
    train.run(settings)
    return config.run_dir(settings)
