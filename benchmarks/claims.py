"""What is claimed of speed, and how is each row of it measured?"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cost import against_classification, against_default, against_per_image, against_plain, against_published
from benchmarks.hardware import matrix_peak, starting, waiting_for_data
from benchmarks.processes import several
from benchmarks.steerable import against_steerable
from benchmarks.timing import Measure
from benchmarks.training import PLAIN


@dataclass(frozen=True)
class Row:
    """One row: its name, and what measures it on a device. A small one tries the harness, and means nothing."""

    name: str
    measure: Measure


@dataclass(frozen=True)
class Claim:
    """A goal in words, and the rows that say how far it is met."""

    question: str
    goal: str
    rows: tuple[Row, ...]


LAST = "run.channels_last=true"
BF16 = ("run.precision=bf16", LAST)
GRAPHS = "run.cuda_graphs=true"
FIRST_STEP = (
    "import torch; from benchmarks import training; training.step(torch.device('{device}'), 'network.width=8')()"
)
NARROW, WIDER = ("network.width=8",), ("network.width=16",)
CLAIMS: dict[str, Claim] = {
    "step": Claim(
        "What does a training step cost beside the same network on the same 2B images, cross-entropy alone?",
        "R4, D4: ≤ 1.03× time, ≤ 1.10× memory; R8, D8: ≤ 1.08× time",
        (
            Row("BasicCNN R4", against_classification("BasicCNN", "mode=R4", small=NARROW)),
            Row("BasicCNN R8", against_classification("BasicCNN", "mode=R8", small=NARROW)),
            Row("BasicCNN D4", against_classification("BasicCNN", "mode=R4", "reflection=true", small=NARROW)),
            Row("BasicCNN D8", against_classification("BasicCNN", "mode=R8", "reflection=true", small=WIDER)),
            Row("Resnet18 R8", against_classification("Resnet18", "mode=R8", batch=32, on_cpu=2, small=NARROW)),
        ),
    ),
    "per_image": Claim(
        "How much faster is it than the published formulation, image by image?",
        "same batch of 32: never slower on a CPU, ≥ 5× images/s (R8) on a data-centre GPU",
        (
            Row("BasicCNN R8", against_per_image("R8")),
            Row("BasicCNN R4", against_per_image("R4")),
            Row("BasicCNN R4, its own code", against_published("BasicCNN", "R4")),
            Row("Resnet18 R8, its own code", against_published("Resnet18", "R8")),
        ),
    ),
    "plain": Claim(
        "What does the method cost beside the plain network on B images?",
        "≤ 1.3× at no loss of accuracy and equivariance",
        (
            Row("all second views", against_plain()),
            Row("a quarter of second views", against_plain("objective.second_views=0.25")),
            Row("tied, no second view", against_plain("symmetry.tied=true", *PLAIN)),
        ),
    ),
    "peak": Claim(
        "Which share of the measured matrix peak do a step's convolutions reach?",
        "ResNet-18 (R8, bf16): ≥ 60 %",
        (
            Row("Resnet18 R8", matrix_peak("Resnet18", "R8", on_cpu=2)),
            Row("BasicCNN R4", matrix_peak("BasicCNN", "R4")),
        ),
    ),
    "steerable": Claim(
        "How fast is a tied network beside a steerable one of escnn, of the same channels?",
        "training ≥ 1.1× images/s on a CPU, ≥ 2× on a GPU; construction ≥ 20× faster",
        (Row("C4", against_steerable),),
    ),
    "data": Claim(
        "Does a step wait for data?",
        "≥ 0.98 of the images/s with data on the device",
        (
            Row("digits", waiting_for_data()),
            Row("digits, read by a worker", waiting_for_data("data.resident=never", "data.workers=1")),
        ),
    ),
    "settings": Claim(
        "Which settings make a step faster? (R4; on a CPU BasicCNN at width 24, Resnet18 and VGG at 8)",
        "found by measuring; those that pay are in configs/fast/",
        (
            Row("BasicCNN, bf16, channels_last, CUDA graphs", against_default("BasicCNN", *BF16, GRAPHS)),
            Row("BasicCNN, channels_last", against_default("BasicCNN", LAST)),
            Row("BasicCNN, bf16, channels_last", against_default("BasicCNN", *BF16)),
            Row("BasicCNN, compiled", against_default("BasicCNN", "run.compile=true")),
            Row("Resnet18, channels_last", against_default("Resnet18", LAST, on_cpu="network.width=8")),
            Row("Resnet18, bf16, channels_last", against_default("Resnet18", *BF16, on_cpu="network.width=8")),
            Row("VGG, channels_last", against_default("VGG", LAST, on_cpu="network.width=8")),
            Row("VGG, bf16, channels_last", against_default("VGG", *BF16, on_cpu="network.width=8")),
            Row("BasicCNN at width 128, channels_last", against_default("BasicCNN", LAST, on_cpu="network.width=128")),
        ),
    ),
    "processes": Claim(
        "How much of p times one process do p processes reach, each with as many images a step?",
        "≥ 0.95",
        (Row("BasicCNN R4", several("BasicCNN")),),
    ),
    "start": Claim(
        "How long is the start?",
        "import of ien ≤ 0.5 s over torch's own; the first step as soon as it goes",
        (
            Row("import", starting("torch and ien.train", "import torch, ien.train")),
            Row("first step, digits", starting("until the first step has ended", FIRST_STEP)),
        ),
    ),
}  # fmt: skip
