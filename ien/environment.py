"""With what was this run made? (`environment.json`: revision, versions, devices; no secrets)"""

from __future__ import annotations

import os
import platform
import re
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ien.revision import revision

PACKAGES = ("ien", "torch", "torchvision", "numpy", "pydantic", "submitit", "tensorboard")
# Only variables that say how a run was started and on what: never a token, a key or a password.
VARIABLES = re.compile(
    r"SLURM_(JOB_ID|JOB_NAME|JOB_NUM_NODES|JOB_NODELIST|JOB_PARTITION|NTASKS|PROCID|LOCALID|RESTART_COUNT|CPUS_PER_TASK"
    r"|ARRAY_JOB_ID|ARRAY_TASK_ID|CLUSTER_NAME)|(RANK|LOCAL_RANK|WORLD_SIZE)|OMP_NUM_THREADS|CUDA_VISIBLE_DEVICES"
)


def describe(device: torch.device) -> dict[str, Any]:
    """The surroundings of this process, fit for JSON."""
    return {
        "git": revision(),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "variables": {name: value for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name)},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
