"""Which cells has each table, and in which order do they tell most? (a cell: a variant and a seed)

A table is a config and settings that all of its cells share; a variant says what differs. Protocol of Rot-MNIST
(Larochelle et al. 2007; E(2)-CNN, arXiv 1911.08251): settings are chosen on 10,000 training and 2,000 held-out images
(`data.val_split` at its default), the cells of a table train on all 12,000 (`data.val_split=0`: nothing is selected,
the last weights are tested, once, on all 50,000).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """What one row of a table says, and which settings (or which other config) make it.

    `needs` is a package that not every environment has: where it is missing, the variant's cells are left. `against` is
    the variant whose channels and weights it saves some of.
    """

    label: str
    settings: tuple[str, ...] = ()
    config: str | None = None
    needs: str | None = None
    against: str | None = None


@dataclass(frozen=True)
class Table:
    """Variants in the order in which they tell most, each over `seeds`; `images` is how many a report looks at."""

    title: str
    config: str
    settings: tuple[str, ...]
    variants: Mapping[str, Variant]
    seeds: int = 3
    images: int = 2000

    def cells(self) -> Iterator[tuple[str, int]]:
        """(variant, seed): all variants with one seed before any has a second."""
        yield from ((variant, seed) for seed in range(self.seeds) for variant in self.variants)


PLAIN = ("objective.augment=none", "beta_weight=0")
TIED = ("symmetry.tied=true", *PLAIN)
# Tied for the quarter turns; second views take the odd multiples of 45°, which the grid does not do exactly.
TIED_AND_ODD = (
    "symmetry.tied=true", "mode=R8", "symmetry.mode=R4", "mplc_kernel_size=4", "objective.elements=resampled",
)  # fmt: skip
OBJECTIVES = {
    "augmented": Variant("augmented (beta 0)", ("beta_weight=0",)),
    "beta_1": Variant("published loss, beta 1", ("beta_weight=1",)),
    "tied": Variant("tied weights, no second view", TIED),
    "beta_0.1": Variant("published loss, beta 0.1", ("beta_weight=0.1",)),
    "plain": Variant("plain: no second view", PLAIN),
    "tied_augmented_45": Variant("tied weights, second view at odd 45°, beta 0", (*TIED_AND_ODD, "beta_weight=0")),
    "tied_learned_45": Variant("tied weights, odd 45° learned, beta 0.1", (*TIED_AND_ODD, "beta_weight=0.1")),
    "tied_any_angle": Variant(
        "tied weights, images turned by any angle, no second view", (*TIED, "data.random_rotation=true")
    ),
    "start_0.1": Variant("equivariant start, beta 0.1", ("symmetry.start=equivariant", "beta_weight=0.1")),
    "start_penalty_0.1": Variant(
        "equivariant start, weight penalty 1, beta 0.1",
        ("symmetry.start=equivariant", "symmetry.weight_penalty=1", "beta_weight=0.1"),
    ),
    "penalty": Variant("weight penalty 1, no second view", ("symmetry.weight_penalty=1", *PLAIN)),
    "start_1": Variant("equivariant start, beta 1", ("symmetry.start=equivariant", "beta_weight=1")),
    "start_0": Variant("equivariant start, beta 0", ("symmetry.start=equivariant", "beta_weight=0")),
    "rising_1": Variant("beta 1, rising linearly from 0", ("beta_weight=1", "objective.warmup_epochs=9")),
    "relative_0.1": Variant("relative loss, beta 0.1", ("objective.loss=relative", "beta_weight=0.1")),
    "first_taps_1": Variant(
        "beta 1, first four taps alone", ("beta_weight=1", "objective.tap_weights={block5: 0, block6: 0}")
    ),
    "any_angle": Variant(
        "images turned by any angle, no second view", (*PLAIN, "data.random_rotation=true")
    ),
    "tied_augmented_45_averaged": Variant(
        "tied, second view at odd 45°, beta 0, weights averaged",
        (*TIED_AND_ODD, "beta_weight=0", "optimizer.ema_decay=0.99"),
    ),
    "tied_augmented_45_any_angle": Variant(
        "tied, second view at odd 45°, beta 0, images turned by any angle",
        (*TIED_AND_ODD, "beta_weight=0", "data.random_rotation=true"),
    ),
    "tied_augmented_45_smoothed": Variant(
        "tied, second view at odd 45°, beta 0, labels smoothed",
        (*TIED_AND_ODD, "beta_weight=0", "objective.label_smoothing=0.1"),
    ),
    "averaged_0.1": Variant("beta 0.1, weights averaged", ("beta_weight=0.1", "optimizer.ema_decay=0.99")),
    "pcgrad_1": Variant("beta 1, PCGrad", ("beta_weight=1", "objective.balance=pcgrad")),
    "norm_ratio_0.1": Variant(
        "gradients' norms in the ratio 0.1", ("beta_weight=0.1", "objective.balance=norm_ratio")
    ),
    "stop_gradient_1": Variant("beta 1, stop-gradient", ("beta_weight=1", "objective.stop_gradient=true")),
    "whole_orbit_0.1": Variant(
        "beta 0.1, whole orbits of 64 images a step", ("beta_weight=0.1", "objective.second_views=3", "batch_size=64")
    ),
    "batch_64_0.1": Variant("beta 0.1, 64 images a step", ("beta_weight=0.1", "batch_size=64")),
    "quarter_0.1": Variant("beta 0.1, a quarter of second views", ("beta_weight=0.1", "objective.second_views=0.25")),
}  # fmt: skip
# The settings of configs/fast/, beside their slow twin "beta_0.1".
FAST_TWINS = {
    "channels_last_0.1": Variant("beta 0.1, channels_last", ("beta_weight=0.1", "run.channels_last=true")),
    "bf16_0.1": Variant(
        "beta 0.1, bf16 and channels_last", ("beta_weight=0.1", "run.precision=bf16", "run.channels_last=true")
    ),
}
# Beside 0, 0.1 and 1, which stand among the objectives.
BETAS = {
    f"beta_{beta}": Variant(f"published loss, beta {beta}", (f"beta_weight={beta}",))
    for beta in (10, 0.01, 3, 0.3, 0.03)
}


def steerable(width: int) -> dict[str, Variant]:
    """The baseline of explicit equivariance: escnn's network of the same blocks and as many channels."""
    words = ("model=ien.report.peer:SteerableCNN", f"network.arguments={{width: {width}}}", "network.width=null")
    return {"escnn": Variant("steerable network (escnn), no second view", (*words, *PLAIN), needs="escnn")}


TEN_CLASSES = ("tot_epochs=6", "cyc_size=6", "data.val_split=0", "run.channels_last=true")


def narrow(data: str, networks: Sequence[str]) -> dict[str, Variant]:
    """Photographs on two cores: the published loss, its baseline, and tied weights."""
    made = {"vgg": ("VGG", "vgg_r4", 8), "resnet18": ("Resnet18", "r4", 4)}
    return {
        f"{network}_{kind}": Variant(
            f"{label}, {what}", (f"network.width={width}", *settings), f"configs/{data}_{config}.yaml"
        )
        for network in networks
        for label, config, width in (made[network],)
        for kind, what, settings in (
            ("beta_1", "published loss, beta 1", ("beta_weight=1",)),
            ("augmented", "augmented (beta 0)", ("beta_weight=0",)),
            ("tied", "tied weights, no second view", TIED),
        )
    }


HOMOGENEOUS = {"R8-4-2-1": "R8", "R8-4-2": "R8", "R4-2-1": "R4"}
ROT_MNIST = ("batch_size=128", "tot_epochs=9", "cyc_size=9", "max_lr=5e-3", "data.val_split=0")
FAST = ("run.precision=bf16", "run.channels_last=true")

TABLES: dict[str, Table] = {
    "smoke": Table(
        "Digits: the harness, tried",
        "configs/quickstart.yaml",
        ("network.width=8", "tot_epochs=3", "cyc_size=3", "run.device=cpu"),
        {name: OBJECTIVES[name] for name in ("beta_1", "tied")},
        seeds=1,
        images=100,
    ),
    "rot_mnist_w8": Table(
        "Rot-MNIST, BasicCNN at width 8, R4",
        "configs/rot_mnist_r4.yaml",
        ("network.width=8", *ROT_MNIST),
        {**OBJECTIVES, **steerable(8), **BETAS, **FAST_TWINS},
    ),
    "rot_mnist_w24": Table(
        "Rot-MNIST, BasicCNN at width 24, R4",
        "configs/rot_mnist_r4.yaml",
        ("network.width=24", *ROT_MNIST),
        {**OBJECTIVES, **steerable(24), **BETAS},
    ),
    "rot_mnist": Table(
        "Rot-MNIST, BasicCNN at the published width 128, R4",
        "configs/rot_mnist_r4.yaml",
        (*ROT_MNIST, *FAST),
        {**OBJECTIVES, **steerable(128)},
    ),
    "rot_mnist_beta": Table(
        "Rot-MNIST, BasicCNN at the published width 128, R4: beta from 0 to 10",
        "configs/rot_mnist_r4.yaml",
        (*ROT_MNIST, *FAST),
        {
            f"beta_{beta}": Variant(f"beta {beta}", (f"beta_weight={beta}",))
            for beta in (1, 0, 0.1, 10, 0.01, 3, 0.3, 0.03)
        },
    ),
    "rot_mnist_presets": Table(
        "Rot-MNIST, BasicCNN: heterogeneous filter groups against homogeneous ones",
        "configs/rot_mnist_r8.yaml",
        (*ROT_MNIST, *FAST),
        {
            name: Variant(name, config=f"configs/rot_mnist_{name.lower()}.yaml", against=HOMOGENEOUS.get(name))
            for name in ("R8", "R8-4-2-1", "R4", "R4-2-1", "R8-4-2")
        },
    ),
    # Of the presets R4-2-1 alone can be this narrow: R8-4-2 has multiples of 22 channels, R8-4-2-1 of 43.
    "rot_mnist_presets_narrow": Table(
        "Rot-MNIST, narrow BasicCNN: heterogeneous filter groups against homogeneous ones",
        "configs/rot_mnist_r4.yaml",
        ROT_MNIST,
        {
            f"{name}_beta_1": Variant(
                f"{name} at width {width}",
                (f"network.width={width}", "beta_weight=1"),
                f"configs/rot_mnist_{name.lower()}.yaml",
                against=f"{HOMOGENEOUS[name]}_beta_1" if name in HOMOGENEOUS else None,
            )
            for name, width in (("R4", 16), ("R4-2-1", 11))
        },
    ),
    "rot_tim": Table(
        "Rot-TIM, Resnet18 and VGG, as published",
        "configs/rot_tim_r8.yaml",
        FAST,
        {
            f"{name}_{kind}": Variant(
                f"{label}, {what}",
                settings,
                f"configs/rot_tim_{name}.yaml",
                against={"r8-4-2-1": f"r8_{kind}"}.get(name),
            )
            for kind, what, settings in (
                ("beta_1", "beta 1", ()),
                ("augmented", "augmented (beta 0)", ("beta_weight=0",)),
                ("plain", "plain", PLAIN),
            )
            for name, label in (
                ("r4", "Resnet18, R4"),
                ("r8", "Resnet18, R8"),
                ("r8-4-2-1", "Resnet18, R8-4-2-1"),
                ("vgg_r4", "VGG, R4"),
                ("vgg_r8-4-2-1", "VGG, R8-4-2-1"),
            )
        },
    ),
    "r2_tim": Table(
        "R2-TIM (turns and mirrors), Resnet18 and VGG, as published",
        "configs/r2_tim_r4.yaml",
        FAST,
        {
            f"{name}_{kind}": Variant(f"{label}, {what}", settings, f"configs/r2_tim_{name}.yaml")
            for kind, what, settings in (
                ("beta_1", "beta 1", ()),
                ("augmented", "augmented (beta 0)", ("beta_weight=0",)),
                ("plain", "plain", PLAIN),
            )
            for name, label in (
                ("r4", "Resnet18, R4"),
                ("r8-4-2-1", "Resnet18, R8-4-2-1"),
                ("vgg_r4", "VGG, R4"),
                ("vgg_r8-4-2-1", "VGG, R8-4-2-1"),
            )
        },
    ),
    "rot_tim_narrow": Table(
        "Rot-TIM, ten classes: Resnet18 at width 4 and VGG at width 8, R4",
        "configs/rot_tim_r4.yaml",
        (*TEN_CLASSES, "data.name=rot_tim_10"),
        narrow("rot_tim", ("vgg", "resnet18")),
        images=500,
    ),
    "r2_tim_narrow": Table(
        "R2-TIM (turns and mirrors), ten classes: VGG at width 8, R4",
        "configs/r2_tim_r4.yaml",
        (*TEN_CLASSES, "data.name=r2_tim_10"),
        narrow("r2_tim", ("vgg",)),
        images=500,
    ),
}
