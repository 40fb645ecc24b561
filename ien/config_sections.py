"""What can be set besides what the published code has? One class per section, one line per setting."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1, strict=False)]  # YAML has lists only
Weight = Annotated[float, Field(ge=0)]


class Settings(BaseModel):
    """Unknown names are refused, nothing is converted but 1 to 1.0, and what was checked stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class GroupSettings(Settings):
    interpolation: Literal["bilinear", "nearest"] = Field(
        default="bilinear", description="at angles other than multiples of 90°"
    )
    disc: bool = Field(default=True, description="compare inside the inscribed disc at such angles")


class NetworkSettings(Settings):
    width: Count | None = Field(default=None, description="base channels; null: as published for the mode or preset")
    published_kernels: bool = Field(default=False, description="VGG: the published kernels 3 2 3 2 3 3 2 3")


class ObjectiveSettings(Settings):
    loss: Literal["mse", "relative"] = Field(default="mse", description="mse: as published; relative: scale-free")
    augment: Literal["group", "none"] = Field(default="group", description="none: no second view")
    second_views: float = Field(default=1.0, gt=0, le=1, description="share of the batch that gets a second view")
    stop_gradient: bool = Field(default=False, description="no gradient through the reference view's feature maps")
    warmup_epochs: float = Field(default=0.0, ge=0, description="epochs in which beta grows to beta_weight")
    tap_weights: dict[str, Weight] = Field(default={}, description="tap name → weight; those not named weigh 1")


class OptimizerSettings(Settings):
    name: Literal["adam", "adamw"] = Field(default="adam", description="adamw: weight decay apart")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(default=None, description="largest gradient norm")
    accumulate: int = Field(default=1, ge=1, description="passes that a process divides its share of a batch into")


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
    workers: int = Field(default=2, ge=0, description="processes that read a data set which is not resident")
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
    sync_batchnorm: bool = Field(default=False, description="BatchNorm statistics over all processes")
    log_every: int = Field(default=50, ge=1, description="steps between readings of the losses")
    eval_batch_size: int = Field(default=256, ge=1, description="images at once in evaluation, over all processes")
    equivariance_images: int = Field(
        default=512, ge=1, description="test images on which the equivariance error is measured"
    )
    checkpoint_minutes: float = Field(
        default=10.0, gt=0, description="between checkpoints, besides those at epoch ends"
    )
    root: str = Field(default="runs", min_length=1, description="folder of all runs")


class LaunchSettings(Settings):
    executor: Literal["auto", "slurm", "local", "inline"] = Field(
        default="auto", description="who starts the processes"
    )
    nodes: int = Field(default=1, ge=1, description="machines")
    tasks_per_node: int = Field(default=1, ge=1, description="processes on each machine, one per GPU")
    cpus_per_task: Count | None = Field(default=None, description="CPU cores of a process; null: the cluster's default")
    gpus_per_node: int = Field(default=0, ge=0, description="GPUs asked for on each machine")
    mem_gb: Annotated[float, Field(gt=0)] | None = Field(default=None, description="memory of a machine; null: default")
    timeout_min: int = Field(default=1440, ge=1, description="minutes after which the job is ended")
