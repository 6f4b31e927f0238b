"""Sparse training and sparse inference: masks that evolve (SRigL, RigL, SET and others), and an engine that runs what they leave.

- :mod:`srigl.core`: masks, layer sparsities, schedules and topology updates for any framework, on NumPy arrays.
- :mod:`srigl.torch`: two lines that make a PyTorch training sparse.
- :mod:`srigl.condensed`: sparse PyTorch models several times as fast as dense ones on CPUs; sparse layers to train with.
- :mod:`srigl.jax`: the same for Optax.
- :mod:`srigl.transformers`, :mod:`srigl.lightning`: callbacks for their trainers.

All but the first import their framework, and are imported when they are first used.
"""

import importlib
from types import ModuleType

from srigl import core
from srigl._native import Error

__all__ = ["Error", "condensed", "core", "jax", "lightning", "torch", "transformers"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"srigl.{name}")
    raise AttributeError(f"module 'srigl' has no attribute {name!r}")
