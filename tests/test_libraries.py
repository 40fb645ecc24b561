"""Networks of torchvision, of timm and of one's own: trained with the objective as they are, and built from YAML."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ien import build, config, train
from ien.alignment.__main__ import main as alignment
from ien.build import Parts
from ien.distributed import Processes, synchronised
from ien.errors import InputError
from ien.groups import Group
from ien.metrics import equivariance_sums, mean_errors, relative_errors
from ien.models import library_network
from ien.models.__main__ import main as list_layers
from ien.objective import EquivariantObjective
from ien.pooling import ChannelMaxPool
from ien.runs import Folder
from ien.taps import Tapped
from tests.symmetry.symmetric import average_kernels

CLASSES = 4
# Residual sums; branches side by side with in-place activations; depthwise kernels and layer norms; inverted residuals
# with squeeze and excitation.
NETWORKS = {
    "torchvision/resnet18": (["layer1", "layer2.0.conv2", "layer3"], 33),
    "torchvision/googlenet": (["inception3a.branch2.0.conv", "inception3b", "inception4b"], 33),
    "timm/convnext_atto": (["stem", "stages.0", "stages.1.blocks.0.conv_dw"], 32),
    "timm/mobilenetv3_small_050": (["blocks.0", "blocks.1.0.conv_pw", "blocks.2"], 33),
}


COMPILED = {"torchvision/squeezenet1_1": ["features.3", "features.4.expand1x1"], "timm/test_convnext": ["stages.0"]}


def tapped_network(name: str) -> tuple[Tapped, int]:
    layers, side = NETWORKS[name]
    torch.manual_seed(0)
    return Tapped(library_network(name, CLASSES), layers, pool="R4"), side


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_learns_and_stays_what_it_is(name: str) -> None:
    """A few steps on one batch: the loss and the equivariance error fall; its weights' names and outputs stay."""
    tapped, side = tapped_network(name)
    plain = copy.deepcopy(tapped)
    plain.close()
    images, labels = torch.rand(4, 3, side, side), torch.arange(4)
    objective = EquivariantObjective("R4", beta_weight=2.0, loss="relative")
    optimizer = torch.optim.Adam(tapped.parameters(), lr=2e-3)
    keys = list(tapped.model.state_dict())
    assert torch.equal(plain.eval().model(images), tapped.eval()(images)[0])
    tapped.train()
    terms = [step(tapped, objective, optimizer, images, labels) for _ in range(8)]
    assert terms[-1]["total"] < 0.8 * terms[0]["total"]
    assert terms[-1]["equivariance"] < 0.8 * terms[0]["equivariance"]
    assert list(tapped.model.state_dict()) == keys == list(plain.model.state_dict())
    tapped.close()
    assert not any(layer._forward_hooks for layer in tapped.modules())


def step(
    tapped: Tapped, objective: EquivariantObjective, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> dict[str, float]:
    terms = objective.terms(tapped, images, labels)
    optimizer.zero_grad()
    terms.total.backward()
    optimizer.step()
    return {"total": float(terms.total.detach()), "equivariance": float(terms.means["equivariance"])}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_network_has_the_same_loss_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    tapped = Tapped(library_network(name, CLASSES), COMPILED[name], pool="R4")
    for layer in tapped.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    images, labels = torch.rand(3, 3, 33, 33), torch.arange(3)
    objective, copied = EquivariantObjective("R4"), copy.deepcopy(tapped)
    expected = objective.terms(tapped, images, labels).total
    found = objective.terms(torch.compile(copied), images, labels).total
    assert torch.allclose(found, expected, rtol=1e-4)
    found.backward()
    expected.backward()
    for compiled, plain in zip(copied.parameters(), tapped.parameters(), strict=True):
        if plain.grad is not None:
            assert (compiled.grad - plain.grad).norm() <= 1e-3 * plain.grad.norm() + 1e-6


def test_a_stock_resnet_is_exact_at_the_size_of_its_configs() -> None:
    """With averaged kernels its maps turn along at 33 and 65 pixels and not at 64: the header says so for a reason."""
    group, errors = Group(4), {}
    for side in (33, 65, 64):
        tapped = Tapped(library_network("torchvision/resnet18", CLASSES), ["layer1", "layer4"], 4).double().eval()
        average_kernels(tapped, group)
        sums = equivariance_sums(tapped, [torch.rand(1, 3, side, side, dtype=torch.float64)], group)
        errors[side] = max(error or 0.0 for error in mean_errors(relative_errors(sums, group)).values())
    assert max(errors[33], errors[65]) < 1e-12
    assert errors[64] > 0.05


def test_a_grey_stem_sees_a_grey_image_as_the_colour_stem_sees_it_thrice() -> None:
    networks = []
    for channels in (3, 1):
        torch.manual_seed(0)
        networks.append(library_network("torchvision/resnet18", CLASSES, channels).double().eval())
    grey = torch.rand(2, 1, 33, 33, dtype=torch.float64)
    assert torch.allclose(networks[1](grey), networks[0](grey.expand(-1, 3, -1, -1)))
    assert library_network("timm/test_resnet", CLASSES, 1)(grey.float()).shape == (2, CLASSES)
    with pytest.raises(InputError, match="sees images of 3 channels or 1, and these have 2"):
        library_network("torchvision/resnet18", CLASSES, 2)


class Own(nn.Module):
    """What a user's module may hold."""

    taps = ("first",)

    def __init__(self, classes: int, in_channels: int, width: int = 4):
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.first(images).mean(dim=(-2, -1)))


class Stubborn(Own):
    """Makes a tensor on a device of its own choice, so that it cannot be tried without computing."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + torch.zeros(1, device="cpu")


class Nameless(Own):
    taps = ()


def not_a_network() -> None:
    raise AssertionError("a settings file must not be able to call this")


def parts_of(**settings: Any) -> Parts:
    whole = {"dataset": "digits", "tot_epochs": 1, "cyc_size": 1} | settings
    return build.parts(config.Config.model_validate(whole), Processes(0, 1, torch.device("cpu")))


def test_yaml_names_a_network_its_taps_and_its_filter_groups() -> None:
    parts = parts_of(model="torchvision/resnet18", taps=["layer1.1.bn2", "layer2"], data={"image_size": 33})
    assert parts.tapped.layers == ("layer1.1.bn2", "layer2")
    assert parts.tapped.pool.sizes == (4,)
    assert parts.tapped.model.fc.out_features == 10
    images, labels = next(iter(parts.batches.epoch(0)))
    assert images.shape == (32, 1, 33, 33)
    parts.engine.train_step(images[:4].repeat(8, 1, 1, 1), labels, 0)
    assert parts.engine.read()[1] is None
    groups = parts_of(
        model="timm/test_resnet", taps=["layer1"], heterogeneous=True, ratio=[1, 1], mplc_kernel_size=[4, 2]
    )
    assert (groups.tapped.pool.ratio, groups.tapped.pool.sizes) == ((1, 1), (4, 2))
    assert next(iter(groups.batches.epoch(0)))[0].shape[-1] == 28  # the data's own side
    fewer = parts_of(model="BasicCNN", taps=["block2"], network={"width": 4})
    assert fewer.tapped.layers == ("block2",)


def test_yaml_names_a_class_of_ones_own() -> None:
    here = "tests.test_libraries"
    parts = parts_of(model=f"{here}:Own", network={"arguments": {"width": 8}})
    assert (parts.tapped.layers, parts.tapped.model.first.out_channels) == (("first",), 8)
    for settings, line in (
        ({"model": f"{here}:not_a_network"}, "tests.test_libraries has no nn.Module called 'not_a_network'"),
        ({"model": f"{here}:Path"}, "tests.test_libraries has no nn.Module called 'Path'"),
        ({"model": "os:system"}, "os has no nn.Module called 'system'"),
        ({"model": "nowhere.at_all:Net"}, r"cannot be imported \(No module named 'nowhere'\); put the folder"),
        ({"model": f"{here}:Nameless"}, "taps: is required, because tests.test_libraries:Nameless has no attribute"),
        (
            {"model": f"{here}:Own", "network": {"arguments": {"widht": 8}}},
            r"Own\(classes=10, in_channels=1, widht=8\): .*unexpected keyword argument 'widht'; write in network",
        ),
    ):
        with pytest.raises(InputError, match=line):
            parts_of(**settings)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"taps": ["lyer1"]}, "taps: the network has no layer 'lyer1' to tap; did you mean 'layer1'?"),
        ({"taps": ["layer1", "fc"]}, "taps: layer 'fc' gives shape (1, 10), no feature map (B, C, S, S); tap another"),
        ({"taps": ["layer1.0.relu"]}, "taps: layer 'layer1.0.relu' runs more than once in a forward"),
        (
            {"heterogeneous": "R8-4-2-1"},
            "taps: layer 'layer1': 64 channels cannot be shared as 32:8:2:1 in filter groups of 8, 4, 2, 1 "
            "(they must be a multiple of 43; nearest: 43 or 86); tap another layer, or take other filter groups",
        ),
        ({"model": "torchvision/resnet81"}, "torchvision has no network 'resnet81'; did you mean torchvision/resnet18"),
        ({"model": "timm/resnet10"}, "timm has no network 'resnet10'; did you mean timm/resnet10t or"),
        (
            {"model": "timm/test_vit", "taps": ["blocks.0"]},
            "data.image_size: images of 28×28 do not fit through VisionTransformer (Input height",
        ),
        (
            {"model": "timm/test_vit", "taps": ["blocks.0"], "data": {"image_size": 160}},
            "taps: layer 'blocks.0' gives shape (1, 101, 64), no feature map (B, C, S, S); tap another layer, "
            "or say that these are tokens (network.tap_layout: NLC",
        ),
        (
            {"pretrained": "nowhere.pt"},
            "pretrained: there is no file nowhere.pt; give a .pt, .pth or .safe",
        ),
        ({"objective": {"tap_weights": {"layr1": 2}}}, "tap_weights names 'layr1', but the taps are layer1; did you"),
    ],
)
def test_what_does_not_go_together_is_told_before_training(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as caught:
        parts_of(**({"model": "torchvision/resnet18", "taps": ["layer1"]} | settings))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_that_makes_tensors_on_its_own_device_is_no_refusal_of_the_images() -> None:
    parts = parts_of(model=f"{__name__}:Stubborn")
    assert parts.tapped(torch.rand(2, 1, 28, 28))[0].shape == (2, 10)


def test_the_command_lists_what_can_be_tapped(capsys: pytest.CaptureFixture[str]) -> None:
    list_layers(["torchvision/resnet18", "--side", "33", "--depth", "1", "--pool", "R8-4-2-1"])
    lines = capsys.readouterr().out.splitlines()
    stages = [f"layer{number}" for number in (1, 2, 3, 4)]
    assert [line.split()[0] for line in lines] == ["conv1", "bn1", "relu", "maxpool", *stages, "avgpool"]
    assert " ".join(lines[4].split()) == "layer1 64 × 9 × 9 cannot be pooled: 64 is no multiple of 43"
    list_layers(["BasicCNN", "--side", "28", "--channels", "1"])
    assert "block6 16 × 2 × 2 pooled 4" in " ".join(capsys.readouterr().out.split())
    list_layers(["timm/test_vit", "--side", "160", "--layout", "NLC"])
    assert "blocks.0 64 × 10 × 10 pooled 16" in " ".join(capsys.readouterr().out.split())
    list_layers([f"{__name__}:Stubborn", "--side", "28", "--channels", "1"])
    assert "first 4 × 28 × 28 pooled 1" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        list_layers(["timm/test_vit", "--side", "65"])
    assert "images of 65×65 do not fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "layer", "layout", "side"),
    [("timm/test_vit", "blocks.0", "NLC", 160), ("torchvision/swin_t", "features.1", "NHWC", 32)],
)
def test_the_layout_of_a_transformers_maps_is_a_setting(model: str, layer: str, layout: str, side: int) -> None:
    parts = parts_of(model=model, taps=[layer], network={"tap_layout": layout}, data={"image_size": side})
    _, maps = parts.tapped(torch.rand(1, 1, side, side))
    assert maps[layer].shape[2] == maps[layer].shape[3] == {"NLC": 10, "NHWC": 8}[layout]


def test_a_run_from_one_weights_file_to_the_next(tmp_path: Path) -> None:
    """What a run leaves (`best.pt`) is what `pretrained` of another takes; without a seed in common."""
    first = parts_of(model="torchvision/squeezenet1_1", taps=["features.3"])
    torch.save({"format": 2, "model": first.tapped.model.state_dict(), "record": {}}, tmp_path / "best.pt")
    second = parts_of(
        model="torchvision/squeezenet1_1", taps=["features.4"], pretrained=str(tmp_path / "best.pt"), run={"seed": 5}
    )
    assert second.anew == ()
    for name, weights in first.tapped.model.state_dict().items():
        assert torch.equal(weights, second.tapped.model.state_dict()[name])


def test_the_pool_acts_in_the_loss_alone() -> None:
    """A network of a library keeps its head: what the classifier sees is not pooled."""
    tapped, side = tapped_network("torchvision/resnet18")
    assert tapped.model.fc.in_features == 512
    assert ChannelMaxPool.of("R4").width(64) == tapped(torch.rand(2, 3, side, side))[1]["layer1"].shape[1]


def test_a_tapped_batchnorm_is_still_tapped_once_it_is_synchronised(monkeypatch: pytest.MonkeyPatch) -> None:
    """As over several GPUs; in eval mode SyncBatchNorm runs on a CPU too."""
    monkeypatch.setattr(Processes, "wrap", lambda _self, module, sync: synchronised(module) if sync else module)
    wanted: dict[str, Any] = {"model": "torchvision/resnet18", "taps": ["bn1", "layer1"], "data": {"image_size": 33}}
    plain, synced = parts_of(**wanted), parts_of(**wanted, run={"sync_batchnorm": True})
    assert isinstance(synced.tapped.model.bn1, nn.SyncBatchNorm)
    images = torch.rand(2, 1, 33, 33)
    with torch.no_grad():
        maps, expected = synced.tapped.eval()(images)[1], plain.tapped.eval()(images)[1]
    assert all(torch.equal(maps[name], expected[name]) for name in ("bn1", "layer1"))


def test_a_batchnorm_that_activates_too_is_not_made_a_plain_one() -> None:
    with pytest.raises(InputError, match=r"layer bn1 is a BatchNormAct2d, which torch cannot synchronise; write run"):
        synchronised(library_network("timm/efficientnet_lite0", 10))


@pytest.mark.parametrize("words", [{}, {"beta_weight": 0.0, "symmetry": {"weight_penalty": 1.0}}])
def test_the_command_that_a_run_names_at_its_start_works(words: dict[str, Any], tmp_path: Path) -> None:
    """Images of their own size, which strides of 2 do not divide; the run's folder does not say how large they are."""
    parts = parts_of(model="torchvision/resnet18", taps=["layer1"], data={"image_size": None}, **words)
    (tmp_path / "config.yaml").write_text(config.resolved(parts.settings))
    line = train._described(parts, Folder(tmp_path), [train._described_process(parts.processes)]).splitlines()[-1]
    assert line.startswith("warning: at 28×28 conv1 (7×7 convolution, stride 2")
    assert alignment(line.partition("(python -m ien.alignment ")[2].rstrip(")").split()) == 1


def test_a_network_that_cannot_be_symmetric_names_the_setting_and_the_layer() -> None:
    with pytest.raises(InputError, match=r"^symmetry: classifier.0: sees 25088 numbers"):
        parts_of(model="torchvision/vgg11", taps=["features.0"], symmetry={"tied": True})
