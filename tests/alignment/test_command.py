"""`python -m ien.alignment` and the trainer's line say what was found, and the exit status says whether it is exact."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ien import config
from ien.alignment.__main__ import main
from ien.alignment.warning import alignment_warning
from ien.errors import InputError
from ien.groups import Group
from ien.models import VGG, Resnet18
from ien.pooling import ChannelMaxPool

CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_config_is_exact_at_its_own_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CONFIGS / "rot_mnist_r4.yaml"), "--all"]) == 0
    told = capsys.readouterr().out
    assert "rot_mnist_r4.yaml at 28×28: quarter turns and mirrors are exact" in told
    assert "block1.0  7×7 convolution         28 → 24" in told


def test_at_another_size_it_is_said_what_breaks_and_which_sizes_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CONFIGS / "rot_mnist_r4.yaml"), "--size", "30"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("at 30×30: 1 operation breaks exact quarter turns")
    assert told[4].split()[:5] == ["halve", "2×2", "max-pool,", "stride", "2"]
    assert told[4].endswith("its middle lies 0.5 pixels off")
    assert "nothing breaks them at 24×24, 28×28, 32×32, 36×36" in told
    assert [line.split(",")[0] for line in told[-2:]] == ["measured at 28×28: exact", "measured at 32×32: exact"]


def test_everything_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["VGG", "--size", "30", "--channels", "1", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["size"], told["channels"], told["aligned"]) == (30, 1, False)
    broken = [step for step in told["steps"] if step["problem"]]
    assert [step["before"] for step in broken] == [[15, 15], [7, 7], [3, 3]][: len(broken)]
    assert all(step["error_alone"]["90°"] > 1e-3 for step in broken)
    assert {one["size"]: one["error"] and one["error"] < 1e-12 for one in told["exact_sizes"]}[32] is True


def test_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config.load(CONFIGS / "quickstart.yaml", ["data.image_size=29"])
    (tmp_path / "config.yaml").write_text(config.resolved(settings))
    assert main([str(tmp_path)]) == 1
    assert "at 29×29" in capsys.readouterr().out


def test_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n\ndef small():\n    return nn.Conv2d(1, 2, 3, stride=2, padding=1)\n\nnumber = int\n"
        "class Net(nn.Conv2d):\n    def __init__(self, classes, in_channels):\n"
        "        super().__init__(in_channels, classes, 3, stride=2, padding=1)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["my_networks:small", "--size", "9", "--channels", "1"]) == 0
    assert main(["my_networks:small", "--size", "8", "--channels", "1"]) == 1
    assert main(["my_networks:Net", "--size", "9", "--channels", "1"]) == 0
    capsys.readouterr()
    with pytest.raises(InputError, match=r"torch\.nn:Linear: .* missing 2 required"):
        main(["torch.nn:Linear", "--size", "9"])
    with pytest.raises(InputError, match="my_networks has no 'large'"):
        main(["my_networks:large", "--size", "9"])
    with pytest.raises(InputError, match=r"gives int, no torch\.nn\.Module"):
        main(["my_networks:number", "--size", "9"])
    sys.modules.pop("my_networks")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Resnt18", "did you mean Resnet18"),
        ("torchvision/resnet19 --size 9", "did you mean torchvision/resnet18"),
        ("torchvision/resnet18", "write which: --size 224"),
        ("torchvision/resnet18 --size 64 --channels 2", "sees images of 3 channels or 1"),
        ("configs/none.yaml", "configs/none.yaml"),
        ("tests", "no run folder"),
        ("nothing:here --size 9", "No module named 'nothing'"),
        ("VGG --size 0", "no whole number from 1"),
        ("BasicCNN --size 5", "do not fit through BasicCNN"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(line: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        main(line.split())
    assert "\n" not in str(refusal.value)


def test_the_trainers_line() -> None:
    network = Resnet18(4, ChannelMaxPool([4]), 10).train()
    state = torch.get_rng_state()
    line = alignment_warning(network, 64, 3, Group(4), "runs/x")
    assert line == (
        "warning: at 64×64 stage2.0.conv2 (3×3 convolution, stride 2, on a map of 64×64) and 5 more break "
        "exact quarter turns; 65×65 is exact (python -m ien.alignment runs/x)"
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert alignment_warning(network, 65, 3, Group(4), "runs/x") is None


def test_the_trainers_line_where_no_size_helps_and_where_no_turn_is_exact() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 2, padding="same"))
    line = alignment_warning(network, 9, 3, Group(2), "x")
    assert line is not None
    assert "breaks exact half turns; no size within 16 pixels is exact" in line
    assert alignment_warning(network, 9, 3, Group(3, reflection=True), "x") is None
    assert alignment_warning(VGG(4, ChannelMaxPool([4]), 10), 62, 3, Group(8), "x") is not None
