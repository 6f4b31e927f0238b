"""Layers of which only the active weights exist, trained by our kernels."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from srigl import _native
from srigl._arrays import as_numpy, bits, floats
from srigl._native import Error

Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]
"""Kernel, stride, padding and dilation, each vertical and horizontal."""


class _Product(torch.autograd.Function):
    """``W x + b`` by the kernels, on flat batches."""

    @staticmethod
    def forward(ctx: Any, x: Any, values: Any, bias: Any, layer: _native.TrainingLayer, shape: list[int]) -> Any:
        ctx.save_for_backward(x, values)
        ctx.layer, ctx.has_bias = layer, bias is not None
        bias = None if bias is None else floats(bias, "bias")
        result = layer.forward(floats(values, "values"), bias, x.shape[0], floats(x, "x"))
        return torch.from_numpy(result).reshape(x.shape[0], *shape)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator, unused-ignore]
    def backward(ctx: Any, dy: Any) -> Any:
        x, values = ctx.saved_tensors
        dy = dy.contiguous()
        dx, dvalues = ctx.layer.backward(
            floats(values, "values"), x.shape[0], floats(x, "x"), floats(dy, "dy"), ctx.needs_input_grad[0]
        )
        dbias = dy.sum(dim=[0, *range(2, dy.dim())]) if ctx.has_bias else None
        return (
            None if dx is None else torch.from_numpy(dx).reshape(x.shape),
            torch.from_numpy(dvalues),
            dbias,
            None,
            None,
        )


class _Condensed(nn.Module):
    """What both layers share: values of active weights, a mask, and kernels made of it when they are first needed."""

    mask: torch.Tensor
    """``[out, in, ...]``, a buffer."""
    values: nn.Parameter
    """The active weights, one neuron after the other."""
    bias: Optional[nn.Parameter]

    def __init__(self, weight: torch.Tensor, bias: Optional[torch.Tensor], mask: Optional[Any]) -> None:
        super().__init__()
        if mask is not None and tuple(as_numpy(mask).shape) != tuple(weight.shape):
            raise Error(f"a mask {list(as_numpy(mask).shape)} for a weight {list(weight.shape)}")
        active = as_numpy(weight) != 0 if mask is None else bits(mask).view(np.bool_)
        active = torch.from_numpy(np.ascontiguousarray(active).reshape(-1).copy())
        if not bool(active.any()):
            raise Error("the layer has no active weight")
        self.register_buffer("mask", active.reshape(weight.shape))
        self.values = nn.Parameter(weight.detach().float().reshape(-1)[active].clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone())
        self._kernels: dict[tuple[int, ...], _native.TrainingLayer] = {}

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight, zeros where none is active; a copy."""
        dense = torch.zeros(self.mask.shape, dtype=self.values.dtype)
        dense[self.mask] = self.values.detach()
        return dense

    def _kernel(self, size: tuple[int, ...]) -> _native.TrainingLayer:
        if size not in self._kernels:
            self._kernels[size] = self._make(bits(self.mask), size)
        return self._kernels[size]

    def _make(self, mask: np.ndarray[Any, Any], size: tuple[int, ...]) -> _native.TrainingLayer:
        raise NotImplementedError

    def _apply_kernel(self, x: torch.Tensor, kernel: _native.TrainingLayer, shape: list[int]) -> torch.Tensor:
        if x.dtype in (torch.bfloat16, torch.float16):
            # As under autocast.
            x = x.float()
        if x.device.type != "cpu" or x.dtype != torch.float32:
            raise Error(f"condensed layers take float32 on the CPU, not {x.dtype} on {x.device}")
        result: torch.Tensor = _Product.apply(x.contiguous(), self.values, self.bias, kernel, shape)  # type: ignore[no-untyped-call, unused-ignore]
        return result

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # Another mask has other values, and other kernels.
        state, prefix = args[0], args[1]
        mask = state.get(prefix + "mask")
        has_both = mask is not None and prefix + "values" in state
        if has_both and mask.shape == self.mask.shape and not torch.equal(mask, self.mask):
            # The parameter itself stays: an optimizer may have it.
            self.values.data = self.values.data.new_zeros(int(mask.sum()))
            self.values.grad = None
        super()._load_from_state_dict(*args, **kwargs)
        self._kernels = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernels": {}}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        import copy

        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return new


class CondensedLinear(_Condensed):
    """A linear layer ``[..., M] -> [..., N]`` of which only the active weights exist: as parameters, and forward and backward.

    Made of a dense one; its mask is ``mask`` ``[N, M]``, or where the weight is not 0. Runs on the CPU in float32, by kernels for batches
    of vectors. The mask stays as it is.
    """

    def __init__(self, dense: nn.Linear, mask: Optional[Any] = None) -> None:
        if not isinstance(dense, nn.Linear):
            raise Error(f"a CondensedLinear is made of an nn.Linear, not of {type(dense).__name__}")
        super().__init__(dense.weight, dense.bias, mask)
        self.in_features, self.out_features = dense.in_features, dense.out_features

    def _make(self, mask: np.ndarray[Any, Any], size: tuple[int, ...]) -> _native.TrainingLayer:
        return _native.TrainingLayer.linear(mask, self.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The results."""
        if x.shape[-1] != self.in_features:
            raise Error(f"{self.in_features} features are expected, not {list(x.shape)}")
        rows = x.reshape(-1, self.in_features)
        result = self._apply_kernel(rows, self._kernel(()), [self.out_features])
        return result.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"{self.in_features}, {self.out_features}, weights={self.values.numel()}"


class CondensedConv2d(_Condensed):
    """A convolution ``[batch, C, H, W] -> [batch, N, H', W']`` of which only the active weights exist, as :class:`CondensedLinear`.

    Kernels are made for each size of images when it is first seen.
    """

    def __init__(self, dense: nn.Conv2d, mask: Optional[Any] = None) -> None:
        if not isinstance(dense, nn.Conv2d):
            raise Error(f"a CondensedConv2d is made of an nn.Conv2d, not of {type(dense).__name__}")
        super().__init__(dense.weight, dense.bias, mask)
        if dense.padding_mode != "zeros":
            raise Error(f"padding is by zeros, not `{dense.padding_mode}`")
        self.in_channels, self.out_channels, self.groups = dense.in_channels, dense.out_channels, dense.groups
        self._window = window(dense)

    def _make(self, mask: np.ndarray[Any, Any], size: tuple[int, ...]) -> _native.TrainingLayer:
        height, width = size
        shape = (self.in_channels, height, width)
        return _native.TrainingLayer.conv2d(mask, self.out_channels, self._window, self.groups, shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The results."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise Error(f"images [batch, {self.in_channels}, H, W] are expected, not {list(x.shape)}")
        kernel = self._kernel((int(x.shape[2]), int(x.shape[3])))
        return self._apply_kernel(x, kernel, list(kernel.output_shape))

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"{self.in_channels}, {self.out_channels}, weights={self.values.numel()}"


def pair(value: Any) -> tuple[int, int]:
    """Two sizes from one or two."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def window(conv: nn.Conv2d) -> Window:
    """Kernel, stride, padding and dilation of a convolution."""
    kernel, stride, dilation = pair(conv.kernel_size), pair(conv.stride), pair(conv.dilation)
    if conv.padding == "valid":
        return kernel, stride, (0, 0), dilation
    if conv.padding == "same":
        reach = [(k - 1) * d for k, d in zip(kernel, dilation)]
        if any(r % 2 for r in reach):
            raise Error("padding `same` of a window of even size differs from side to side, which the engine has not")
        return kernel, stride, (reach[0] // 2, reach[1] // 2), dilation
    return kernel, stride, pair(conv.padding), dilation
