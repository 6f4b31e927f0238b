"""From a traced PyTorch model to a condensed network."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from srigl import _native
from srigl._arrays import floats
from srigl._layers import Window, pair, window
from srigl._native import Error
from srigl.condensed import weight_and_mask
from srigl.torch import _unwrapped

Node = tuple[str, str, list[int], dict[str, Any]]


class Value(NamedTuple):
    """The result of a node of the network, and how PyTorch holds it."""

    node: int
    layout: str
    """``vector`` ``[batch, C]``, ``planes`` ``[batch, C, ...]``, or ``tokens`` ``[batch, positions, C]``."""
    class_token: Optional[torch.Tensor] = None
    """Of tokens that wait for their position embeddings: the one in front of them."""


def lower(model: nn.Module, input_shape: tuple[int, ...], masks: Mapping[str, Any]) -> _native.Network:
    """The network of a model."""
    if len(input_shape) not in (1, 3):
        raise Error(f"input_shape is (features,) or (C, H, W), not {input_shape}")
    model = _unwrapped(model)
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if isinstance(model, tuple(_MODULES)):
        # A layer alone has no name.
        model = nn.Sequential(OrderedDict(layer=model))
        masks = {f"layer.{name}": mask for name, mask in masks.items()}
        known = {f"layer.{name}" for name in known}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        try:
            traced = fx.GraphModule(model, _Tracer().trace(model))
        except Exception as error:
            raise Error(f"torch.fx cannot trace {type(model).__name__}: {error}") from error
        inputs = [node for node in traced.graph.nodes if node.op == "placeholder" and not node.args]
        if len(inputs) != 1:
            raise Error(f"a model of one input is expected, and {type(model).__name__} has {len(inputs)}")
        types = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]
        dtype = types[0] if types else torch.float32
        lowering = _Lowering(traced, input_shape, masks)
        with torch.no_grad():
            try:
                lowering.run(torch.zeros(1, *input_shape, dtype=dtype))
                network = lowering.network()
                _compare(model, network, input_shape, dtype)
            except Error:
                raise
            except RuntimeError as error:
                raise Error(f"the model does not run on samples of {list(input_shape)}: {error}") from error
    finally:
        for module, mode in modes:
            module.training = mode
    unknown = sorted(set(masks) - known - lowering.used)
    if unknown:
        raise Error(f"there are masks for parameters that the model has not: {', '.join(unknown)}")
    return network


def _compare(model: nn.Module, network: _native.Network, input_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Refuses a network that computes something else than the model."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, *input_shape), dtype=np.float32))
    result = model(x.to(dtype))
    engine = _native.Engine(network, 1)
    shape = (2, *engine.output_shape)
    if tuple(result.shape) not in (shape, shape[:2] if shape[2:] == (1, 1) else shape):
        raise Error(f"of two samples the model makes {list(result.shape)}, the engine {list(shape)}")
    expected, got = floats(result, "output"), engine.run(2, floats(x, "x"))
    error, size = float(np.abs(got - expected).max()), float(np.abs(expected).max())
    if not error <= 1e-3 * size + 1e-6:
        raise Error(f"the engine's results differ from the model's by {error:.3g}, of at most {size:.3g}")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers are leaves, with what pruning has hung on them."""
        return isinstance(m, tuple(_MODULES)) or super().is_leaf_module(m, module_qualified_name)


class _Lowering(fx.Interpreter):
    """Runs a traced model on one sample, and writes down what it does."""

    def __init__(self, traced: fx.GraphModule, input_shape: tuple[int, ...], masks: Mapping[str, Any]) -> None:
        super().__init__(traced)
        # What an error says is enough.
        self.extra_traceback = False
        self.masks = masks
        self.used: set[str] = set()
        self.nodes: list[Node] = []
        self.values: dict[fx.Node, Value] = {}
        self.results: dict[fx.Node, Any] = {}
        self.input_shape = input_shape
        self.at: Optional[fx.Node] = None
        self.last: Optional[Value] = None

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node, and lowers it."""
        result = super().run_node(n)
        self.at, self.results[n] = n, result
        if n.op == "placeholder" and not self.nodes:
            sizes = (*self.input_shape, 1, 1)[:3]
            self.nodes.append(("input", "input", [], {"shape": list(sizes)}))
            self.values[n] = Value(0, "vector" if len(self.input_shape) == 1 else "planes")
        elif n.op == "output":
            [output] = _args(n)
            if not isinstance(output, fx.Node) or output not in self.values:
                raise Error("a model with one tensor as its result is expected")
            self.last = self.values[output]
        elif n.op != "get_attr" and any(arg in self.values for arg in n.all_input_nodes):
            value = self._lower(n, result)
            if value is not None:
                self.values[n] = value
        return result

    def network(self) -> _native.Network:
        """What was written down, without what nobody reads."""
        last = self.last
        if last is None or last.layout == "tokens" or last.class_token is not None:
            raise Error("the result must be a vector or an image")
        needed = {last.node}
        for index in range(last.node, -1, -1):
            if index in needed:
                needed.update(self.nodes[index][2])
        if 0 not in needed:
            raise Error("the result does not depend on the input")
        place = {old: new for new, old in enumerate(sorted(needed))}
        nodes = [self.nodes[old] for old in sorted(needed)]
        return _native.Network([(name, op, [place[i] for i in inputs], args) for name, op, inputs, args in nodes])

    # Helpers.

    def _lower(self, n: fx.Node, result: Any) -> Optional[Value]:
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            for kind, rule in _MODULES.items():
                if isinstance(module, kind):
                    return rule(self, n, module)
            raise self.refused(type(module).__name__, str(n.target))
        if isinstance(result, (tuple, list)) and any(isinstance(part, torch.Tensor) for part in result):
            raise self.refused(getattr(n.target, "__name__", str(n.target)), n.name)
        if not isinstance(result, torch.Tensor):
            # Sizes, and comparisons of them.
            return None
        if n.op == "call_method":
            method = _METHODS.get(str(n.target))
            if method is None:
                raise self.refused(f"Tensor.{n.target}", n.name)
            return method(self, n)
        function = _FUNCTIONS.get(n.target) or _NAMED.get(getattr(n.target, "__name__", ""))
        if function is None:
            raise self.refused(getattr(n.target, "__name__", str(n.target)), n.name)
        return function(self, n)

    def refused(self, what: str, where: str, why: str = "") -> Error:
        """An error that names an operation."""
        return Error(f"`{where}`: the engine has no {what}{f' {why}' if why else ''}")

    def value(self, n: fx.Node, index: int = 0) -> Value:
        """An argument that is a result of the network."""
        value = self.values.get(_args(n)[index]) if index < len(_args(n)) else None
        if value is None:
            raise self.refused(str(n.target), n.name, "of constants")
        if value.class_token is not None:
            raise self.refused(str(n.target), n.name, "of tokens without position embeddings")
        return value

    def shape(self, n: Any) -> list[int]:
        """The shape of a tensor of the trace."""
        return list(self.results[n].shape)

    def unused(self, name: str) -> str:
        """A name that no node has: of a layer that is run several times, say."""
        taken = {node[0] for node in self.nodes}
        names = [name, *(f"{name}#{i}" for i in range(2, len(taken) + 3))]
        return next(name for name in names if name not in taken)

    def add(self, name: str, op: str, inputs: list[Value], layout: str, **args: Any) -> Value:
        """Writes an operation down."""
        self.nodes.append((self.unused(name), op, [value.node for value in inputs], args))
        return Value(len(self.nodes) - 1, layout)

    def weight(self, module: nn.Module, name: str, key: str = "weight") -> dict[str, Any]:
        """Values and mask of a weight."""
        parameter = f"{name}.{key}"
        mask = self.masks.get(parameter)
        self.used.add(parameter)
        if mask is None:
            mask = getattr(module, f"{key}_mask", None)
        values, mask = weight_and_mask(getattr(module, key), mask, parameter)
        return {"weight": values, "mask": mask}

    def constant(self, arg: Any) -> Optional[torch.Tensor]:
        """An argument that does not depend on the input."""
        if isinstance(arg, fx.Node) and arg not in self.values and isinstance(self.results[arg], torch.Tensor):
            tensor: torch.Tensor = self.results[arg]
            return tensor
        return None


def _args(n: fx.Node) -> list[Any]:
    """Arguments by position, the input among them if it was given by name."""
    named = n.kwargs.get("input", n.kwargs.get("x"))
    return list(n.args) if n.args or named is None else [named]


def _bias(bias: Optional[torch.Tensor], neurons: int) -> np.ndarray[Any, Any]:
    return np.zeros(neurons, dtype=np.float32) if bias is None else floats(bias, "bias")


# Modules.


def _linear(low: _Lowering, n: fx.Node, m: Any) -> Value:
    x, name = low.value(n), str(n.target)
    if x.layout == "planes":
        raise low.refused("linear layer over positions", name)
    return low.add(name, "linear", [x], x.layout, bias=_bias(m.bias, m.out_features), **low.weight(m, name))


def _conv2d(low: _Lowering, n: fx.Node, m: Any) -> Value:
    x, name = low.value(n), str(n.target)
    if m.padding_mode != "zeros" or x.layout != "planes":
        raise low.refused(f"convolution with padding `{m.padding_mode}` of {x.layout}", name)
    bias = _bias(m.bias, m.out_channels)
    return low.add(name, "conv2d", [x], "planes", bias=bias, window=window(m), groups=m.groups, **low.weight(m, name))


def _batch_norm(low: _Lowering, n: fx.Node, m: Any) -> Value:
    x, name = low.value(n), str(n.target)
    if m.running_mean is None:
        raise low.refused("batch normalisation without running statistics", name)
    if x.layout == "tokens":
        raise low.refused("batch normalisation over tokens", name)
    mean, variance = m.running_mean.double(), m.running_var.double()
    gamma = torch.ones_like(mean) if m.weight is None else m.weight.double()
    beta = torch.zeros_like(mean) if m.bias is None else m.bias.double()
    scale = gamma / torch.sqrt(variance + m.eps)
    shift = beta - mean * scale
    return low.add(name, "affine", [x], x.layout, scale=floats(scale, name), shift=floats(shift, name))


def _layer_norm(low: _Lowering, n: fx.Node, m: Any) -> Value:
    x, name = low.value(n), str(n.target)
    if len(m.normalized_shape) != 1 or x.layout == "planes":
        raise low.refused(f"layer normalisation over {list(m.normalized_shape)}", name)
    size = m.normalized_shape[0]
    scale = np.ones(size, dtype=np.float32) if m.weight is None else floats(m.weight, name)
    return low.add(name, "layer_norm", [x], x.layout, scale=scale, shift=_bias(m.bias, size), epsilon=m.eps)


def _attention(low: _Lowering, n: fx.Node, m: Any) -> Optional[Value]:
    x, name = low.value(n), str(n.target)
    plain = (
        m.batch_first
        and m.in_proj_weight is not None
        and m.bias_k is None
        and not m.add_zero_attn
        and _args(n)[:3] == [_args(n)[0]] * 3
        and not any(n.kwargs.get(key) is not None for key in ["key_padding_mask", "attn_mask"])
        and not n.kwargs.get("is_causal")
        and len(_args(n)) == 3
    )
    if not plain or x.layout != "tokens":
        raise low.refused("attention", name, "but self-attention of batches first, without masks")
    size = m.embed_dim
    joint = low.weight(m, name, "in_proj_weight")
    x = low.add(f"{name}.in_proj", "linear", [x], "tokens", bias=_bias(m.in_proj_bias, 3 * size), **joint)
    x = low.add(name, "attention", [x], "tokens", heads=m.num_heads)
    out = low.weight(m.out_proj, f"{name}.out_proj")
    return low.add(f"{name}.out_proj", "linear", [x], "tokens", bias=_bias(m.out_proj.bias, size), **out)


def _max_pool(low: _Lowering, n: fx.Node, m: Any) -> Value:
    if m.ceil_mode or m.return_indices:
        raise low.refused("max pooling with ceil_mode or indices", str(n.target))
    stride = m.kernel_size if m.stride is None else m.stride
    sizes = (pair(m.kernel_size), pair(stride), pair(m.padding), pair(m.dilation))
    return _pooled(low, n, sizes)


def _pooled(low: _Lowering, n: fx.Node, sizes: Window) -> Value:
    x = low.value(n)
    if x.layout != "planes" or len(low.shape(_args(n)[0])) != 4:
        raise low.refused(f"max pooling of {x.layout}", n.name)
    return low.add(n.name, "max_pool", [x], "planes", window=sizes)


def _adaptive_pool(low: _Lowering, n: fx.Node, m: Any) -> Value:
    return _average(low, n, m.output_size)


def _average(low: _Lowering, n: fx.Node, size: Any) -> Value:
    x = low.value(n)
    if low.shape(n) == low.shape(_args(n)[0]):
        return x
    if x.layout != "planes" or low.shape(n)[2:] != [1, 1]:
        raise low.refused(f"average pooling to {size}", n.name, "but to one position")
    return low.add(n.name, "global_avg_pool", [x], "planes")


def _avg_pool(low: _Lowering, n: fx.Node, m: Any) -> Value:
    whole = tuple(low.shape(_args(n)[0])[2:]) == pair(m.kernel_size) and pair(m.padding) == (0, 0)
    return _average(low, n, 1 if whole else m.kernel_size)


def _flatten_module(low: _Lowering, n: fx.Node, m: Any) -> Value:
    return _reshaped(low, n)


def _gelu_module(low: _Lowering, n: fx.Node, m: Any) -> Value:
    return _gelu_of(low, n, m.approximate)


def _gelu_of(low: _Lowering, n: fx.Node, approximate: Any) -> Value:
    if approximate != "none":
        raise low.refused(f"GELU by `{approximate}`", n.name)
    x = low.value(n)
    return low.add(n.name, "gelu", [x], x.layout)


def _plain(op: str) -> Callable[..., Value]:
    """An operation on each number."""

    def rule(low: _Lowering, n: fx.Node, _: Any = None) -> Value:
        x = low.value(n)
        return low.add(n.name, op, [x], x.layout)

    return rule


def _dropout(low: _Lowering, n: fx.Node) -> Value:
    share, training = [*_args(n)[1:], 0.5, True][:2] if len(_args(n)) > 1 else (0.5, True)
    share, training = n.kwargs.get("p", share), n.kwargs.get("training", training)
    if training and share != 0:
        raise low.refused("dropout", n.name, "that is on in evaluation: give it training=self.training")
    return _same(low, n)


def _same(low: _Lowering, n: fx.Node, _: Any = None) -> Value:
    """Nothing, in evaluation mode."""
    value: Value = low.values[_args(n)[0]]
    return value


_MODULES: dict[type[nn.Module], Callable[[_Lowering, fx.Node, Any], Optional[Value]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.MultiheadAttention: _attention,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.AvgPool2d: _avg_pool,
    nn.Flatten: _flatten_module,
    nn.ReLU: _plain("relu"),
    nn.GELU: _gelu_module,
    nn.Hardswish: _plain("hard_swish"),
    nn.Hardsigmoid: _plain("hard_sigmoid"),
    nn.Identity: _same,
    nn.Dropout: _same,
    nn.Dropout1d: _same,
    nn.Dropout2d: _same,
}


# Functions and methods.


def _add(low: _Lowering, n: fx.Node) -> Value:
    if n.kwargs.get("alpha", 1) != 1:
        raise low.refused("sum with a factor", n.name)
    first, second = _args(n)[:2]
    for one, other in [(first, second), (second, first)]:
        constant = low.constant(other)
        if constant is not None and isinstance(one, fx.Node):
            value = low.values[one]
            if value.class_token is None or constant.shape != low.results[one].shape:
                raise low.refused("sum with constants", n.name, "but position embeddings after a class token")
            tokens = {"class": floats(value.class_token, "class token"), "positions": floats(constant, "positions")}
            return low.add(n.name, "tokens", [value], "tokens", **tokens)
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        raise low.refused("sum with a number", n.name)
    x, y = low.value(n, 0), low.value(n, 1)
    if low.shape(first) != low.shape(second) or x.layout != y.layout:
        raise low.refused(f"sum of {low.shape(first)} and {low.shape(second)}", n.name)
    return low.add(n.name, "add", [x, y], x.layout)


def _mul(low: _Lowering, n: fx.Node) -> Value:
    first, second = _args(n)[:2]
    both = isinstance(first, fx.Node) and isinstance(second, fx.Node) and first in low.values and second in low.values
    if both:
        x, factors = low.value(n, 0), low.value(n, 1)
        if low.shape(first)[2:] == [1, 1] and low.shape(second)[2:] != [1, 1]:
            x, factors, first, second = factors, x, second, first
        shapes = low.shape(first), low.shape(second)
        if len(shapes[0]) == 4 and shapes[1] == [*shapes[0][:2], 1, 1]:
            return low.add(n.name, "scale", [x, factors], "planes")
    raise low.refused("product", n.name, "but of planes and a number for each")


def _cat(low: _Lowering, n: fx.Node) -> Value:
    parts = list(_args(n)[0]) if isinstance(_args(n)[0], (list, tuple)) else []
    dim = _args(n)[1] if len(_args(n)) > 1 else n.kwargs.get("dim", 0)
    if len(parts) == 2 and dim == 1:
        token, x = low.constant(parts[0]), low.values.get(parts[1])
        if token is not None and x is not None and x.layout == "tokens" and list(token.shape[:2]) == [1, 1]:
            return x._replace(class_token=token.reshape(-1))
    raise low.refused("concatenation", n.name, "but of a class token and others")


def _getitem(low: _Lowering, n: fx.Node) -> Value:
    source, index = _args(n)[0], _args(n)[1]
    if isinstance(low.results.get(source), tuple) and index == 0:
        return _same(low, n)
    x = low.value(n)
    everything = slice(None)
    if x.layout == "tokens" and index in ((everything, 0), (everything, 0, everything)):
        return low.add(n.name, "class_token", [x], "vector")
    raise low.refused(f"part {index} of a result", n.name, "but the first token")


def _mean(low: _Lowering, n: fx.Node) -> Value:
    x, before, after = low.value(n), low.shape(_args(n)[0]), low.shape(n)
    dim: Any = _args(n)[1] if len(_args(n)) > 1 else n.kwargs.get("dim")
    dims = {d % len(before) for d in ([dim] if isinstance(dim, int) else dim or [])}
    positions = {1} if x.layout == "tokens" else set(range(2, len(before)))
    if x.layout == "vector" or dims != positions:
        raise low.refused(f"mean over {dim}", n.name, "but over all positions")
    if x.layout == "tokens" and len(after) != 2:
        raise low.refused("mean over tokens that keeps its dimension", n.name)
    return low.add(n.name, "global_avg_pool", [x], "vector" if len(after) == 2 else "planes")


def _reshaped(low: _Lowering, n: fx.Node) -> Value:
    """Another shape of the same numbers in the same order."""
    x, before, after = low.value(n), low.shape(_args(n)[0]), low.shape(n)
    if before == after:
        return x
    if x.layout == "vector" and len(after) == 4 and after[1:] == [before[1], 1, 1]:
        return x._replace(layout="planes")
    if x.layout == "planes" and after[0] == before[0]:
        if len(after) == 2:
            return low.add(n.name, "flatten", [x], "vector")
        if len(after) == 3 and after[1] == before[1]:
            return x
    raise low.refused(f"way from {before} to {after}", n.name)


def _permuted(low: _Lowering, n: fx.Node) -> Value:
    order = _args(n)[1:] if len(_args(n)) > 2 else _args(n)[1]
    if list(order) == [0, 2, 1]:
        return _swapped(low, n)
    raise low.refused(f"order {list(order)} of dimensions", n.name)


def _transposed(low: _Lowering, n: fx.Node) -> Value:
    if {int(d) % 3 for d in _args(n)[1:3]} == {1, 2} and len(low.shape(n)) == 3:
        return _swapped(low, n)
    raise low.refused("order of dimensions", n.name)


def _swapped(low: _Lowering, n: fx.Node) -> Value:
    x = low.value(n)
    return x._replace(layout={"planes": "tokens", "tokens": "planes"}[x.layout])


def _gelu(low: _Lowering, n: fx.Node) -> Value:
    return _gelu_of(low, n, n.kwargs.get("approximate", "none"))


def _adaptive(low: _Lowering, n: fx.Node) -> Value:
    return _average(low, n, _args(n)[1] if len(_args(n)) > 1 else n.kwargs.get("output_size"))


def _max_pool_function(low: _Lowering, n: fx.Node) -> Value:
    names = ["kernel_size", "stride", "padding", "dilation"]
    given = {**dict(zip(names, _args(n)[1:])), **n.kwargs}
    if given.get("ceil_mode") or given.get("return_indices") or len(_args(n)) > 5:
        raise low.refused("max pooling with ceil_mode or indices", n.name)
    kernel = pair(given["kernel_size"])
    stride = kernel if given.get("stride") in (None, []) else pair(given["stride"])
    return _pooled(low, n, (kernel, stride, pair(given.get("padding", 0)), pair(given.get("dilation", 1))))


_FUNCTIONS: dict[Any, Callable[[_Lowering, fx.Node], Value]] = {
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    operator.mul: _mul,
    operator.imul: _mul,
    torch.mul: _mul,
    torch.cat: _cat,
    operator.getitem: _getitem,
    torch.mean: _mean,
    torch.flatten: _reshaped,
    torch.reshape: _reshaped,
    torch.permute: _permuted,
    torch.transpose: _transposed,
    torch.relu: _plain("relu"),
    F.relu: _plain("relu"),
    F.gelu: _gelu,
    F.hardswish: _plain("hard_swish"),
    F.hardsigmoid: _plain("hard_sigmoid"),
    F.dropout: _dropout,
    F.adaptive_avg_pool2d: _adaptive,
    F.max_pool2d: _max_pool_function,
}

_NAMED: dict[str, Callable[[_Lowering, fx.Node], Value]] = {
    # Of torchvision, which need not be there; nothing in evaluation mode. PyTorch wraps the other.
    "stochastic_depth": _same,
    "max_pool2d": _max_pool_function,
    "_max_pool2d": _max_pool_function,
}

_METHODS: dict[str, Callable[[_Lowering, fx.Node], Value]] = {
    "add": _add,
    "add_": _add,
    "mul": _mul,
    "mul_": _mul,
    "flatten": _reshaped,
    "reshape": _reshaped,
    "view": _reshaped,
    "squeeze": _reshaped,
    "unsqueeze": _reshaped,
    "permute": _permuted,
    "transpose": _transposed,
    "mean": _mean,
    "relu": _plain("relu"),
    "relu_": _plain("relu"),
    "contiguous": _same,
}
