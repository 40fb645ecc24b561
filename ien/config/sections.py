"""What can be set besides what the published code has? One class per section, one line per setting."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1, strict=False)]  # YAML has lists only
Weight = Annotated[float, Field(ge=0)]
Scales = Annotated[tuple[Annotated[float, Field(ge=0.25, le=4)], ...], Field(strict=False)]
LayerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")]
LibraryModel = Annotated[
    str,
    Field(pattern=r"^(torchvision/[a-z0-9_]+|timm/[A-Za-z0-9_.-]+|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*)$"),
]


class Settings(BaseModel):
    """Unknown names are refused, nothing is converted but 1 to 1.0, and what was checked stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class GroupSettings(Settings):
    interpolation: Literal["bilinear", "nearest"] = Field(
        default="bilinear", description="at angles other than multiples of 90°"
    )
    disc: bool = Field(default=True, description="compare inside the inscribed disc at such angles")
    scales: Scales = Field(
        default=(), description="factors beside 1: each element also at each of them (0.8: smaller, 1.25: larger)"
    )

    @field_validator("scales", mode="after")
    @classmethod
    def _in_order(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted({float(f"{scale:g}") for scale in scales}))


class NetworkSettings(Settings):
    width: Count | None = Field(default=None, description="base channels; null: as published for the mode or preset")
    published_kernels: bool = Field(default=False, description="VGG: the published kernels 3 2 3 2 3 3 2 3")
    tap_layout: Literal["NCHW", "NHWC", "NLC"] = Field(
        default="NCHW", description="what tapped layers give: maps, maps with channels last, or a transformer's tokens"
    )
    arguments: dict[str, bool | int | float | str | list[bool | int | float | str]] = Field(
        default={},
        description="package.module:Class: what its __init__ takes besides classes and in_channels",
        json_schema_extra={"allowed": "a mapping of names, each to a number, text, true, false or a list of these"},
    )


class ObjectiveSettings(Settings):
    loss: Literal["mse", "relative"] = Field(default="mse", description="mse: as published; relative: scale-free")
    augment: Literal["group", "none"] = Field(default="group", description="none: no second view")
    second_views: float = Field(
        default=1.0,
        gt=0,
        description="share of the batch that gets a second view; 2, 3, …: as many of each image",
        json_schema_extra={"allowed": "a share > 0 and ≤ 1, or a whole number"},
    )
    stop_gradient: bool = Field(default=False, description="no gradient through the reference view's feature maps")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the target that is spread evenly over all classes"
    )
    warmup_epochs: float = Field(default=0.0, ge=0, description="epochs in which beta grows to beta_weight")
    balance: Literal["none", "norm_ratio", "pcgrad"] = Field(
        default="none",
        description="of the two gradients; norm_ratio: beta_weight is the ratio of their norms; pcgrad: no conflict",
    )
    tap_weights: dict[str, Weight] = Field(default={}, description="tap name → weight; those not named weigh 1")
    elements: Literal["all", "exact", "resampled"] = Field(
        default="all", description="which elements second views take in training; exact: multiples of 90° and mirrors"
    )

    @field_validator("second_views", mode="after")
    @classmethod
    def _whole_beyond_one(cls, views: float) -> float:
        if views > 1 and not views.is_integer():
            raise ValueError("neither a share nor a whole number")
        return views


class SymmetrySettings(Settings):
    start: Literal["free", "equivariant"] = Field(
        default="free", description="equivariant: the initial weights are projected onto the equivariant ones"
    )
    weight_penalty: float = Field(
        default=0.0, ge=0, description="weight of the weights' relative distance to the equivariant ones"
    )
    tied: bool = Field(default=False, description="weights are projected at every step: exact for exact elements")
    mode: Annotated[str, Field(pattern=r"^R([2-9]|[1-9][0-9]+)$")] | None = Field(
        default=None, description="R<N>, the rotations that permute a filter group's channels; null: those of mode"
    )


class OptimizerSettings(Settings):
    name: Literal["adam", "adamw"] = Field(default="adam", description="adamw: weight decay apart")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(default=None, description="largest gradient norm")
    accumulate: int = Field(default=1, ge=1, description="passes that a process divides its share of a batch into")
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="validate, keep and test the running mean of the weights: decay a step, as in 0.99"
    )


class DataSettings(Settings):
    root: str = Field(default="data", min_length=1, description="folder of the prepared data sets")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")] | None = Field(
        default=None, description="folder under root; null: the data set's own (rot_mnist, r2_tim …)"
    )
    val_split: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="images held out for validation: a number, or a share; null: the data set's default"
    )
    image_size: Annotated[int, Field(ge=1, le=2048)] | None = Field(
        default=None, description="side to which images are resized; null: the one that the network was made for"
    )
    random_rotation: bool = Field(
        default=False, description="each training image is turned by an angle of its own, anew in each epoch"
    )
    workers: int = Field(default=2, ge=0, description="processes that read a data set which is not resident")
    start_method: Literal["fork", "spawn", "forkserver"] | None = Field(
        default=None, description="how those processes are started; null: Python's default"
    )
    resident: Literal["auto", "always", "never"] = Field(default="auto", description="whole data set on the device")
    verify: bool = Field(default=True, description="compare the files' sha256 before a run")


class RunSettings(Settings):
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="of weights, image order, group elements and held-out images"
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(default="fp32", description="bf16 and fp16: autocast")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: a GPU where there is one")
    channels_last: bool = Field(default=False, description="memory layout of the network and its inputs")
    compile: bool = Field(default=False, description="torch.compile")
    cuda_graphs: bool = Field(
        default=True, description="one process on a GPU, not fp16: launch a training step's kernels as one"
    )
    sync_batchnorm: bool = Field(default=False, description="BatchNorm statistics over all processes")
    log_every: int = Field(default=50, ge=1, description="steps between readings of the losses")
    eval_batch_size: int = Field(default=256, ge=1, description="images at once in evaluation, over all processes")
    equivariance_images: int = Field(
        default=512, ge=1, description="images on which the relative equivariance error is measured"
    )
    equivariance_every: Count | None = Field(
        default=None, description="epochs between measurements of it on held-out images; null: at the end alone"
    )
    test: bool = Field(
        default=True, description="false: at the end held-out images are measured, while settings are searched"
    )
    checkpoint_minutes: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="between checkpoints, besides those at epoch ends; null: from the time that a save takes",
    )
    timeout_s: float = Field(default=600.0, ge=5, description="a process that does not answer for so long ends the run")
    root: str = Field(default="runs", min_length=1, description="folder of all runs")


def _words(more: str = "", length: int = 128) -> Any:
    """Text that can stand in a shell script and stays what it is: one line of a short alphabet."""
    signs = ". _ : = , @ + / - " + " ".join("a space" if sign == " " else sign for sign in more)
    said = f"1 to {length} characters from A-Z a-z 0-9 {signs}".strip()
    rule = f"^[A-Za-z0-9._:=,@+/{re.escape(more)}-]{{1,{length}}}$"
    return Field(pattern=rule, json_schema_extra={"allowed": said})


Word = Annotated[str, _words()]


class LaunchSettings(Settings):
    executor: Literal["auto", "slurm", "local", "inline"] = Field(
        default="auto", description="who starts the processes"
    )
    nodes: int = Field(default=1, ge=1, description="machines")
    gpus_per_node: int = Field(default=0, ge=0, description="GPUs asked for on each machine")
    tasks_per_node: Count | None = Field(
        default=None, description="processes on each machine; null: one per GPU, without GPUs one"
    )
    cpus_per_task: Count | None = Field(default=None, description="CPU cores of a process; null: the cluster's default")
    mem_gb: Annotated[float, Field(gt=0)] | None = Field(default=None, description="memory of a machine; null: default")
    timeout_min: int = Field(default=1440, ge=1, description="minutes after which a job is ended (and requeued)")
    partition: Word | None = Field(default=None, description="SLURM partition")
    account: Word | None = Field(default=None, description="SLURM account that pays")
    qos: Word | None = Field(default=None, description="SLURM quality of service")
    constraint: Annotated[str, _words("&|()[]*!")] | None = Field(
        default=None, description="features that a node must have"
    )
    gres: Annotated[str, _words("()[]")] | None = Field(default=None, description="generic resources beside GPUs")
    exclude: Annotated[str, _words("[]")] | None = Field(default=None, description="nodes to avoid")
    reservation: Word | None = Field(default=None, description="SLURM reservation")
    job_name: Word | None = Field(default=None, description="name of the job; null: from save_dir")
    comment: Annotated[str, _words(" ")] | None = Field(default=None, description="comment of the job")
    mail_user: Word | None = Field(default=None, description="who is written to")
    mail_type: Word | None = Field(default=None, description="when: BEGIN, END, FAIL, REQUEUE, ALL")
    container: Annotated[str, _words("#")] | None = Field(
        default=None, description="image, for clusters with the pyxis plugin"
    )
    array_parallel: Count | None = Field(default=None, description="jobs of an array that run at once; null: all")
    signal_delay_s: int = Field(
        default=120, ge=10, description="seconds before the end of its time at which a job is told to save"
    )
    requeue: bool = Field(default=True, description="queue a job again that was stopped before its end")
    max_timeouts: int = Field(default=50, ge=0, description="how often, after its time was over")
    max_failures: int = Field(default=2, ge=0, description="how often, after a crash; never twice at the same step")
    snapshot: bool = Field(default=True, description="SLURM: run a copy of the code as it was when submitted")

    @property
    def tasks(self) -> int:
        """Processes on each machine."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def processes(self) -> int:
        """Processes in all."""
        return self.nodes * self.tasks

    @property
    def latest_signal_s(self) -> int:
        """The largest `signal_delay_s`: SLURM may be a minute early, and a signal that comes long before the end of the
        time is taken for a preemption."""
        whole = 60 * self.timeout_min
        return int(max(0.2 * whole, 600) - 60) if whole > 720 else 3 * whole // 4

    @property
    def signal_s(self) -> int:
        """`signal_delay_s`, or less where the time is so short that the default does not fit."""
        return min(self.signal_delay_s, self.latest_signal_s)
