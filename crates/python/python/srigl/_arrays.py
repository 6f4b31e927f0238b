"""Arrays of any framework as flat NumPy arrays, without a copy where they are contiguous, on the CPU, and of the right type."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from srigl._native import Error

Array = npt.NDArray[Any]


def as_numpy(x: Any) -> Array:
    """An array of NumPy, PyTorch, JAX or whatever else speaks ``__array__`` or DLPack."""
    if hasattr(x, "detach"):  # PyTorch: NumPy knows neither gradients nor other devices, nor bfloat16.
        x = x.detach().cpu()
        x = x.float() if x.is_floating_point() else x
        return np.asarray(x.numpy())
    if not hasattr(x, "__array__") and hasattr(x, "__dlpack__"):
        return np.asarray(np.from_dlpack(x))
    return np.asarray(x)


def floats(x: Any, what: str) -> npt.NDArray[np.float32]:
    """Numbers, flat."""
    array = as_numpy(x)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise Error(f"{what} must be an array of numbers, not of {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.float32).reshape(-1)


def bits(mask: Any, what: str = "mask") -> npt.NDArray[np.uint8]:
    """A mask, flat, as bytes of 0 and 1."""
    array = as_numpy(mask)
    if array.dtype != np.bool_:
        as_bool = array != 0
        if not bool((as_bool == array).all()):
            raise Error(f"{what} must be booleans, or numbers 0 and 1")
        array = as_bool
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
