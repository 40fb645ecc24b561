"""Train implicitly equivariant networks (arXiv 2111.14157). What may a user import? The names below.

They are loaded when they are first asked for: `import ien` and `ien.config` do not load torch, so that a login node
answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ien.downsampling import BlurPool2d as BlurPool2d
    from ien.downsampling import antialias as antialias
    from ien.errors import InputError as InputError
    from ien.groups import Element as Element
    from ien.groups import Group as Group
    from ien.metrics import equivariance_sums as equivariance_sums
    from ien.metrics import mean_errors as mean_errors
    from ien.metrics import relative_errors as relative_errors
    from ien.models import MODELS as MODELS
    from ien.models import VGG as VGG
    from ien.models import BasicCNN as BasicCNN
    from ien.models import Resnet18 as Resnet18
    from ien.models import library_network as library_network
    from ien.models import load_weights as load_weights
    from ien.objective import EquivariantObjective as EquivariantObjective
    from ien.objective import Terms as Terms
    from ien.objective import Views as Views
    from ien.optim import CyclicLR as CyclicLR
    from ien.pooling import ChannelMaxPool as ChannelMaxPool
    from ien.symmetry import Symmetry as Symmetry
    from ien.symmetry import project as project
    from ien.symmetry import weight_distance as weight_distance
    from ien.taps import Tapped as Tapped
    from ien.taps import channels_last_as_map as channels_last_as_map
    from ien.taps import tokens_as_map as tokens_as_map

__version__ = "0.1.0"

_HOME = {
    "BlurPool2d": "ien.downsampling",
    "antialias": "ien.downsampling",
    "InputError": "ien.errors",
    "Element": "ien.groups",
    "Group": "ien.groups",
    "equivariance_sums": "ien.metrics",
    "mean_errors": "ien.metrics",
    "relative_errors": "ien.metrics",
    "MODELS": "ien.models",
    "BasicCNN": "ien.models",
    "Resnet18": "ien.models",
    "VGG": "ien.models",
    "library_network": "ien.models",
    "load_weights": "ien.models",
    "EquivariantObjective": "ien.objective",
    "Terms": "ien.objective",
    "Views": "ien.objective",
    "CyclicLR": "ien.optim",
    "ChannelMaxPool": "ien.pooling",
    "Symmetry": "ien.symmetry",
    "project": "ien.symmetry",
    "weight_distance": "ien.symmetry",
    "Tapped": "ien.taps",
    "channels_last_as_map": "ien.taps",
    "tokens_as_map": "ien.taps",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ien' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
