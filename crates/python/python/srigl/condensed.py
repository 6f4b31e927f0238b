"""Sparse PyTorch models in condensed form: an engine that runs them on CPUs several times as fast, and layers to train with.

>>> import torch.nn.utils.prune, srigl.condensed
>>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
>>> _ = torch.nn.utils.prune.random_unstructured(model[0], "weight", amount=0.9)
>>> engine = srigl.condensed.condense(model, input_shape=(64,))
>>> x = torch.randn(8, 64)
>>> torch.allclose(engine.run(x), model(x), atol=1e-5)
True
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

import numpy as np

from srigl import _native
from srigl._arrays import as_numpy, floats
from srigl._native import Error

if TYPE_CHECKING:
    import torch

    from srigl._layers import CondensedConv2d, CondensedLinear

__all__ = ["CondensedConv2d", "CondensedLinear", "Engine", "condense", "load"]


class Engine:
    """Runs a condensed network on the CPU. Made by :func:`condense` or :func:`load`."""

    def __init__(self, network: _native.Network, threads: Optional[int] = None) -> None:
        self._network = network
        self._engine = _native.Engine(network, threads)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample: ``(features,)`` or ``(C, H, W)``."""
        return _shape(self._engine.input_shape)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one result, likewise."""
        return _shape(self._engine.output_shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the weights take, as the kernels read them."""
        return self._engine.bytes

    @property
    def isa(self) -> str:
        """Instruction set of the kernels: ``avx512``, ``avx2``, ``neon`` or ``portable``."""
        return self._engine.isa

    def layers(self) -> list[dict[str, Any]]:
        """Layers with weights: ``name``, ``neurons`` that are left, ``weights``, their number in each neuron (``fan_in``) if it is
        constant, and whether the layer is ``condensed``; others stay dense."""
        names = ["name", "neurons", "weights", "fan_in", "condensed"]
        return [dict(zip(names, layer)) for layer in self._network.layers()]

    def run(self, x: Any) -> Any:
        """The results ``[batch, ...]`` of a batch ``[batch, ...]``: an array of the kind that was given (NumPy, PyTorch, JAX). Samples of one
        position are vectors, with or without their last two dimensions."""
        x = x if hasattr(x, "shape") else np.asarray(x)
        shape, expected = tuple(x.shape), self.input_shape
        if shape[1:] not in (expected, (*expected, 1, 1)):
            raise Error(f"the engine takes batches {['batch', *expected]}, not {list(shape)}".replace("'", ""))
        result = self._engine.run(shape[0], floats(x, "x")).reshape(shape[0], *self.output_shape)
        if hasattr(x, "detach"):
            import torch

            return torch.from_numpy(result).to(x.device)
        if type(x).__module__.split(".")[0] in ("jax", "jaxlib"):
            import jax.numpy

            return jax.numpy.asarray(result)
        return result

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Writes a file for :func:`load`, ``srigl predict`` and the Rust crate ``condensed``: whole or not at all."""
        self._network.save(os.fspath(path))

    def __repr__(self) -> str:
        return f"Engine({list(self.input_shape)} -> {list(self.output_shape)}, {self.isa})"


def _shape(sizes: Sequence[int]) -> tuple[int, ...]:
    features, height, width = sizes
    return (features,) if height == width == 1 else (features, height, width)


def load(path: Union[str, os.PathLike[str]], *, threads: Optional[int] = None) -> Engine:
    """The engine of a condensed file, as :meth:`Engine.save`, ``srigl condense`` and others write it.

    ``threads`` are its own; by default it shares those of the process, one for each core (``RAYON_NUM_THREADS`` says another number).
    """
    return Engine(_native.Network.load(os.fspath(path)), threads)


def condense(
    model: torch.nn.Module,
    input_shape: Union[int, Sequence[int]],
    *,
    masks: Optional[Mapping[str, Any]] = None,
    threads: Optional[int] = None,
) -> Engine:
    """The engine of a PyTorch model for samples of ``input_shape``: ``(features,)`` or ``(C, H, W)``.

    The model is traced with ``torch.fx`` in evaluation mode, and computes in float32. Layers are condensed where ``masks`` (parameter name to boolean array, as
    :meth:`srigl.torch.Sparse.masks` gives them) has one, or where at least half of a weight, but not all, is exactly 0; others stay
    dense. Batch normalisation is folded into the layer before it, and neurons without weights are removed. Before it is returned, the
    engine is run beside the model on random samples.

    There are linear layers, 2-d convolutions, batch and layer normalisation, ReLU, GELU, hard swish and hard sigmoid, max pooling, global
    average pooling, self-attention, sums, squeeze-and-excitation, class tokens and position embeddings: torchvision's ResNets, vision
    transformers and MobileNetV3, and whatever else is made of these. Raises :class:`srigl.Error` naming the first operation that there
    is not.
    """
    from srigl._lowering import lower

    shape = (input_shape,) if isinstance(input_shape, int) else tuple(int(size) for size in input_shape)
    return Engine(lower(model, shape, masks or {}), threads)


class _Weight(NamedTuple):
    """A weight on its way into the engine."""

    values: np.ndarray[Any, Any]
    mask: Optional[np.ndarray[Any, Any]]


def weight_and_mask(weight: Any, mask: Optional[Any], name: str) -> _Weight:
    """Values ``[N * M]`` and bytes of the mask, if the weight is sparse."""
    values = floats(weight, name)
    if mask is None:
        active = values != 0
        is_sparse = 2 * int(active.sum()) <= active.size and bool(active.any())
        return _Weight(values, active.view(np.uint8) if is_sparse else None)
    array = as_numpy(mask)
    if array.shape != tuple(weight.shape):
        raise Error(f"`{name}`: a mask {list(array.shape)} for a weight {list(weight.shape)}")
    active = np.ascontiguousarray(array != 0).reshape(-1)
    if bool((values[~active] != 0).any()):
        raise Error(f"`{name}` has weights that are not 0 outside its mask, which is of another moment")
    # Where all are active, a layer that was kept dense.
    return _Weight(values, None if bool(active.all()) else active.view(np.uint8))


def __getattr__(name: str) -> Any:
    if name in ("CondensedLinear", "CondensedConv2d"):
        from srigl import _layers

        return getattr(_layers, name)
    raise AttributeError(f"module 'srigl.condensed' has no attribute {name!r}")
