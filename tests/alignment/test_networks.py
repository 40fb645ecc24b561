"""Whole networks: layers are named, sizes that are proposed are exact, and what cannot be judged is not passed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as stock

from ien.alignment import exact_sizes, prove, trace
from ien.alignment.tracing import is_exact, without_weights
from ien.errors import InputError
from ien.models import MODELS, VGG
from ien.pooling import ChannelMaxPool
from tests.alignment.verdicts import agreed, verdicts


def layers(network: nn.Module, side: int, channels: int = 3) -> list[str]:
    return [step.layer for step in trace(network, side, channels).broken]


def narrow(model: str, **more: Any) -> nn.Module:
    return MODELS[model].build(4, ChannelMaxPool([4]), 10, 3, **more)


def narrow_resnet18() -> nn.Module:
    """torchvision's, but of 8 channels: the layers' kernels, strides and padding are its own."""
    torch.manual_seed(0)
    network = stock.ResNet(stock.resnet.BasicBlock, [2, 2, 2, 2], num_classes=5)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.in_channels, layer.out_channels = min(8, layer.in_channels), 8
            layer.weight = nn.Parameter(torch.empty(8, layer.in_channels, *layer.kernel_size))
        elif isinstance(layer, nn.BatchNorm2d):
            norm = nn.BatchNorm2d(8)
            layer.weight, layer.bias = norm.weight, norm.bias
            layer.running_mean, layer.running_var = norm.running_mean, norm.running_var
    network.fc = nn.Linear(8, 5)
    return network


@pytest.mark.parametrize(("model", "exact", "not_exact"), [("BasicCNN", 28, 29), ("Resnet18", 65, 64), ("VGG", 64, 62)])
def test_the_papers_networks_are_exact_at_their_own_sizes(model: str, exact: int, not_exact: int) -> None:
    network = narrow(model)
    found, proof = trace(network, exact), prove(network, trace(network, exact))
    assert not found.broken
    assert proof.error < 1e-12
    assert set(proof.outputs) == {"output"}
    assert layers(network, not_exact)
    assert not prove(network, trace(network, not_exact)).exact


def test_vgg_with_the_published_kernels() -> None:
    """Its even kernels give odd maps of 33 and 17 pixels, which 2×2 pools then cut."""
    found = trace(VGG(4, ChannelMaxPool([4]), 10, published_kernels=True), 64)
    assert [(step.layer, step.operation, step.before) for step in found.broken] == [
        ("halve", "2×2 max-pool, stride 2", (33, 33)),
        ("halve", "2×2 max-pool, stride 2", (17, 17)),
    ]


def test_resnet18_at_the_size_that_everyone_uses() -> None:
    network = narrow_resnet18()
    strided = ["conv1", "maxpool"]
    strided += [f"layer{n}.0.{layer}" for n in (2, 3, 4) for layer in ("conv1", "downsample.0")]
    found = trace(network, 224)
    assert [step.layer for step in found.broken] == strided == layers(stock.resnet18(), 224)
    assert [step.shift for step in found.broken] == [(-0.5, -0.5)] * 8
    assert exact_sizes(network, found, count=1) == [193, 225]
    assert prove(network, trace(network, 225)).error < 1e-12
    found = trace(network, 96)
    proof = prove(network, found)
    alone = {step.layer: errors for step, errors in zip(found.steps, proof.alone, strict=True)}
    assert all((alone[layer] or {})["90°"] > 0.01 for layer in strided)  # type: ignore[operator]
    assert all((alone[layer] or {})["90°"] < 1e-12 for layer in ("layer1.0.conv1", "layer4.1.conv2"))  # type: ignore[operator]
    assert not proof.exact


def test_sizes_that_are_proposed_are_exact_and_those_between_are_not() -> None:
    network = narrow("Resnet18")
    found = trace(network, 64)
    sizes = exact_sizes(network, found)
    assert sizes == [49, 57, 65, 73]
    assert all(prove(network, trace(network, side)).exact == (side in sizes) for side in (57, 61, 64, 65))
    assert exact_sizes(network, found, reach=4) == [65]


def test_no_size_is_proposed_where_there_is_none() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 2, padding="same"))
    assert exact_sizes(network, trace(network, 32, channels=2)) == []


class Branches(nn.Module):
    """Rows and columns come through everything that networks do with channels, and through branches."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 8)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.down = nn.Conv2d(8, 8, 3, stride, padding=1, groups=8)
        self.group, self.act = nn.GroupNorm(2, 8), nn.PReLU(8)
        self.head = nn.Linear(24, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = nn.functional.relu_(self.stem(images))
        maps = maps + self.mix(self.norm(maps.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        maps = self.down(maps * self.gate(maps))
        one, other = self.act(self.group(maps)).chunk(2, dim=1)
        maps = torch.cat([other, one, nn.functional.hardswish(maps)], dim=1)
        shuffled = maps.view(len(maps), 2, 8, *maps.shape[2:]).transpose(1, 2).flatten(1, 2)
        maps = torch.stack([maps, shuffled], dim=1).amax(dim=1)
        maps = nn.functional.normalize(maps) + maps.softmax(dim=1) + maps.mean(dim=(2, 3), keepdim=True).expand_as(maps)
        pooled = torch.cat([maps.mean((2, 3)), maps.flatten(2).std(dim=2)[:, :8]], dim=1)
        return self.head(pooled)


def test_channels_may_be_treated_in_any_way() -> None:
    network = Branches()
    found = trace(network, 12)
    assert not found.broken
    assert [step.unjudged for step in found.unjudged] == ["makes one axis of the 12×12 pixels"]  # flatten(2), for std
    assert prove(network, found).error < 1e-12
    assert layers(Branches(stride=2), 12) == ["down"]


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda maps: maps.flatten(1), "makes one axis of the 9×9 pixels"),
        (lambda maps: maps @ maps, "is not known to keep rows and columns apart"),
        (lambda maps: torch.roll(maps, 1, 2), "is not known to keep rows and columns apart"),
        (lambda maps: maps + torch.linspace(0, 1, 9), "depends on the position"),
        (lambda maps: maps.mean(dim=2), "reduces rows or columns alone"),
        (lambda maps: maps.softmax(dim=-1), "works along rows or columns"),
        (lambda maps: maps + maps.transpose(2, 3), "combines maps whose rows and columns lie apart"),
        (lambda maps: torch.cat([maps, maps], dim=3), "puts maps side by side"),
        (lambda maps: maps.select(2, 0), "takes one row or column"),
        (nn.LayerNorm((2, 9, 9)), "depend on the position"),
        (nn.Linear(9, 9), "mixes the pixels of a row"),
        (nn.PixelShuffle(1), "is not known"),
    ],
)
def test_what_cannot_be_judged_is_named(function: Any, why: str) -> None:
    found, proof = verdicts(function, 9)
    assert not found.broken
    assert why in found.unjudged[0].unjudged
    assert not proof.exact or isinstance(function, nn.PixelShuffle)


def test_attention_and_positions_are_named() -> None:
    network = stock.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=4)
    nn.init.normal_(network.heads[0].weight)
    found = trace(network, 32)
    assert not found.broken
    told = " ".join(step.unjudged for step in found.unjudged)
    assert "makes one axis of the 4×4 pixels" in told
    assert "adds a parameter of shape (1, 17, 16)" in told
    assert not prove(network, found).exact


def test_a_norm_over_all_pixels_without_weights_is_exact() -> None:
    assert agreed(nn.LayerNorm((2, 9, 9), elementwise_affine=False), 9)
    assert agreed(nn.InstanceNorm2d(2, affine=True), 9)


def test_a_filter_that_is_not_learned_is_not_averaged() -> None:
    """The proof must see that a fixed filter is not symmetric; a standardised kernel is a learned one."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("taps", torch.tensor([[1.0, 2.0, 0.0]] * 3))

        def forward(self, maps: Tensor) -> Tensor:
            return nn.functional.conv2d(maps, self.taps.expand(2, 1, 3, 3), groups=2)

    class Standardised(nn.Conv2d):
        def forward(self, maps: Tensor) -> Tensor:
            return nn.functional.conv2d(maps, (self.weight - self.weight.mean()) / self.weight.std(), self.bias)

    assert not verdicts(Fixed(), 9)[1].exact
    assert agreed(Standardised(2, 2, 3), 9)


def test_nothing_of_the_network_is_changed() -> None:
    network = narrow("VGG").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    found = trace(network, 64)
    prove(network, found)
    exact_sizes(network, found)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(layer.training for layer in network.modules())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules())


def test_a_network_that_looks_at_the_image_is_refused() -> None:
    class Looks(nn.Conv2d):
        def forward(self, maps: Tensor) -> Tensor:
            maps = super().forward(maps)
            return maps if len(maps) == 1 else nn.functional.max_pool2d(maps, 1)

    with pytest.raises(InputError, match=r"something else with other images \(2 operations on pixels, not 1"):
        verdicts(Looks(2, 2, 3), 9)


def test_a_network_that_needs_real_numbers_is_traced_on_the_cpu() -> None:
    class Asks(nn.Conv2d):
        def forward(self, maps: Tensor) -> Tensor:
            return super().forward(maps) * (1 if float(maps.sum()) >= 0 else 2)

    network = Asks(2, 2, 3, 2, 1)
    found = trace(network, 8, channels=2)
    assert (found.device, [step.layer for step in found.broken]) == ("cpu", ["Asks"])
    assert exact_sizes(network, found, count=1) == [7, 9]


def test_a_copy_without_weights_takes_no_memory() -> None:
    bare = without_weights(narrow("Resnet18"))
    assert all(tensor.is_meta for tensor in bare.state_dict().values())
    assert is_exact(bare, 65, 3, "meta")
    assert not is_exact(bare, 64, 3, "meta")
