"""Sparse training in PyTorch: two lines, and the loop stays as it is.

>>> import torch, srigl.torch
>>> model = torch.nn.Sequential(torch.nn.Linear(784, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
>>> sparse = srigl.torch.sparsify(model, optimizer, sparsity=0.9, method="srigl", gamma_sal=0.3, end_step=7500)
>>> for _ in range(3):  # unchanged
...     loss = model(torch.randn(32, 784)).square().mean()
...     optimizer.zero_grad()
...     loss.backward()
...     optimizer.step()
>>> round(sparse.sparsity(), 2)
0.9

Masks are applied by hooks: to gradients as they arrive, and to weights after each step of the optimizer. Every ``delta_t`` steps the
topology is updated on the CPU, from the weights and the dense gradients of that step.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import torch
from torch import nn

from srigl import _native, core
from srigl.core import AnyMethod, Error, LayerSpec, UpdateSchedule

__all__ = ["Sparse", "SparseLayer", "sparse_layers", "sparsify"]

_SPARSE: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()
"""Weights that a :class:`Sparse` keeps sparse, by identity."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a number."""


class Found(NamedTuple):
    """A weight that can be sparse."""

    name: str
    """The module's path, such as ``encoder.fc1``."""
    parameter_name: str
    """Such as ``encoder.fc1.weight``."""
    parameter: nn.Parameter
    transposed: bool
    """Whether it is stored as ``[in, out]``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``[out, in, ...]``."""
        shape = tuple(self.parameter.shape)
        return shape[::-1] if self.transposed else shape

    def rows(self, tensor: torch.Tensor) -> np.ndarray[Any, Any]:
        """Values of the parameter's shape as ``[out, in, ...]``."""
        tensor = tensor.detach()
        tensor = (tensor.t() if self.transposed else tensor).cpu().contiguous()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

    def tensor(self, rows: np.ndarray[Any, Any]) -> torch.Tensor:
        """The way back, on the parameter's device."""
        tensor = torch.from_numpy(np.ascontiguousarray(rows.T if self.transposed else rows))
        return tensor.to(self.parameter.device)


def sparse_layers(model: nn.Module) -> list[Found]:
    """The weights of linear layers, convolutions and attention in the order of the model's modules, each once.

    Embeddings, norms, biases and transposed convolutions are not among them, nor is a weight that one of these shares, such as the
    head of a language model that is its embedding.
    """
    holders: dict[int, set[str]] = {}
    for prefix, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and key not in _weights(module):
                holders.setdefault(id(parameter), set()).add(f"{prefix}.{key}")
    found: dict[int, Found] = {}
    for prefix, module in model.named_modules():
        for key, transposed in _weights(module).items():
            parameter = module._parameters.get(key)
            if parameter is None or id(parameter) in found or id(parameter) in holders:
                continue
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise Error(
                    f"layer `{prefix}` has no shape yet: run a batch through the model before it is made sparse"
                )
            name = f"{prefix}.{key}".strip(".")
            layer = name.removesuffix("_weight") if name.endswith("_weight") else name.removesuffix(".weight")
            found[id(parameter)] = Found(layer, name, parameter, transposed)
    return list(found.values())


def _weights(module: nn.Module) -> dict[str, bool]:
    """Which parameters of a module can be sparse, and whether they are stored as ``[in, out]``."""
    if isinstance(module, nn.MultiheadAttention):
        return dict.fromkeys(["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"], False)
    is_conv = isinstance(module, nn.modules.conv._ConvNd) and not module.transposed
    if is_conv or isinstance(module, nn.Linear):
        return {"weight": False}
    if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers."):
        return {"weight": True}
    return {}


class SparseLayer:
    """One layer of :class:`Sparse`."""

    def __init__(
        self, found: Found, index: int, sparsity: float, ablate: bool, mask: np.ndarray[Any, Any], method: AnyMethod
    ) -> None:
        self.name = found.name
        self.parameter_name = found.parameter_name
        self.index = index
        self.sparsity = sparsity
        """The share of zeros that it is to have; 0 for a layer that stays dense."""
        self.ablate = ablate
        self.mask = mask
        """The present mask ``[out, in, ...]``."""
        self.ever_active = mask.copy()
        self._found = found
        self._method = method
        self._hidden: Optional[torch.Tensor] = None
        self._gathered: Optional[torch.Tensor] = None
        self._fresh: Optional[torch.Tensor] = None
        self._is_masked = False
        self._version = -1
        self._moments: list[Any] = []
        self._warned = False
        self._inactive: torch.Tensor = torch.empty(0)
        self._frozen: Optional[torch.Tensor] = None
        self._bits: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    @property
    def parameter(self) -> nn.Parameter:
        """The weight."""
        return self._found.parameter

    def stats(self) -> dict[str, Any]:
        """Counts of the mask (see :func:`srigl.core.layer_stats`), and the ``itop`` rate."""
        return {**core.layer_stats(self.mask), "itop": core.itop_rate(self.ever_active)}

    def _target(self) -> float:
        return _native.target_sparsity(self.mask.size, self.sparsity)

    def _inactive_weights_live(self) -> bool:
        return self._method._native.keeps_inactive_weights

    def _set_mask(self, mask: np.ndarray[Any, Any], weights: Optional[np.ndarray[Any, Any]]) -> None:
        """Takes a mask; ``weights`` are those with what is hidden."""
        self.mask = mask
        self._bits = {}
        self.ever_active |= mask
        self._inactive = self._found.tensor(~mask)
        self._frozen = self._inactive
        if weights is not None:
            kind, positions = self._method._native.gradient_positions(
                mask.reshape(-1).view(np.uint8), mask.shape[0], self.sparsity, weights.reshape(-1)
            )
            if kind == "all":
                self._frozen = None
            elif positions is not None:
                self._frozen = self._found.tensor(~positions.view(np.bool_).reshape(mask.shape))

    def _to_device(self) -> None:
        """Follows a parameter that was moved."""
        device = self.parameter.device
        if self._inactive.device != device:
            self._bits = {}
            self._inactive = self._inactive.to(device)
            self._frozen = None if self._frozen is None else self._frozen.to(device)
            self._hidden = None if self._hidden is None else self._hidden.to(device)
            self._gathered = None if self._gathered is None else self._gathered.to(device)

    def _mask_gradient(self) -> None:
        grad = self.parameter.grad
        if grad is None or self._frozen is None:
            return
        try:
            self._clear(grad, "frozen")
        except RuntimeError:
            # Several of its numbers are one in memory.
            self.parameter.grad = grad.masked_fill(self._frozen, 0.0)

    def _clear(self, tensor: torch.Tensor, where: str) -> None:
        """Sets numbers to 0 where they are inactive, or get no gradient: by all bits or none, which is many times as fast as filling, and
        makes 0 of NaN, too, as multiplying would not."""
        off = self._frozen if where == "frozen" else self._inactive
        if off is None:
            return
        key = ("inactive" if off is self._inactive else where, tensor.dtype)
        if key not in self._bits:
            self._bits[key] = (~off).to(_INTEGERS[tensor.element_size()]).neg_()
        tensor.view(self._bits[key].dtype).bitwise_and_(self._bits[key])

    def _clear_moments(self) -> None:
        """Zeros in the moments of optimizers where the weight gets no gradient."""
        for key, moment in (item for state in self._moments for item in (state or {}).items()):
            is_moment = isinstance(moment, torch.Tensor) and moment.shape == self.parameter.shape
            # Rprop's step sizes are no moments.
            if is_moment and moment.is_floating_point() and key != "step_size" and self._frozen is not None:
                moment.masked_fill_(self._frozen.to(moment.device), 0.0)

    def _take_up(self) -> None:
        """Masks what somebody else has written to the weight since the last step."""
        if not self._inactive_weights_live():
            self._clear(self.parameter.data, "inactive")
        elif self._has_inactive_weights():
            # Weights of another moment, all of them.
            self._hide()

    def _has_inactive_weights(self) -> bool:
        return bool((self.parameter.data.masked_fill(~self._inactive, 0.0) != 0).any())

    def _hide(self) -> None:
        """Leaves zeros in the place of inactive weights, and keeps what was there if the method wants that."""
        weight = self.parameter.data
        if self._inactive_weights_live():
            self._hidden = weight.masked_fill(~self._inactive, 0.0)
        self._clear(weight, "inactive")


class Sparse:
    """What :func:`sparsify` returns: keeps a model sparse while its optimizer trains it."""

    layers: list[SparseLayer]
    """All layers that count towards the global sparsity, in the order of the model."""
    step: int
    """Steps of the optimizer so far."""
    reports: dict[str, dict[str, Any]]
    """What the last update changed in each layer, by name: see :class:`srigl.core.Update`."""

    def __init__(
        self,
        optimizers: list[torch.optim.Optimizer],
        method: AnyMethod,
        schedule: UpdateSchedule,
        layers: list[SparseLayer],
        seed: int,
    ) -> None:
        self.method = method
        self.schedule = schedule
        self.seed = seed
        self.step = 0
        self.layers = layers
        self.reports = {}
        self._optimizers = optimizers
        self._sparse = [layer for layer in layers if layer.sparsity > 0.0]
        self._pending = self._skipped = self._in_closure = False
        self._gathers = self._gathers_at(1)
        handles: list[Any] = [optimizer.register_step_pre_hook(self._before) for optimizer in optimizers]
        handles += [optimizer.register_step_post_hook(self._after) for optimizer in optimizers]
        for layer in self._sparse:
            parameter: Any = layer.parameter
            _SPARSE[id(parameter)] = parameter
            handles.append(parameter.register_post_accumulate_grad_hook(self._arrived(layer)))
        self._handles = handles

    def masks(self) -> dict[str, torch.Tensor]:
        """The present masks as boolean tensors of the parameters' shapes and devices, by the parameters' names."""
        return {layer.parameter_name: layer._found.tensor(layer.mask.copy()) for layer in self.layers}

    def sparsity(self) -> float:
        """The share of zeros over all layers."""
        total = sum(layer.mask.size for layer in self.layers)
        return sum(int((~layer.mask).sum()) for layer in self.layers) / max(total, 1)

    def stats(self) -> dict[str, dict[str, Any]]:
        """Counts of each layer's mask, by name."""
        return {layer.name: layer.stats() for layer in self.layers}

    def remove(self) -> None:
        """Takes all hooks off. The model keeps the zeros that it has; what trains it from then on is the optimizer alone."""
        for layer in self._sparse if self._handles else []:
            _SPARSE.pop(id(layer.parameter), None)
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly here, together with the states of model and optimizer."""

        def state(layer: SparseLayer) -> dict[str, Any]:
            tensor = layer._found.tensor
            return {
                "mask": tensor(layer.mask).clone(),
                "ever_active": tensor(layer.ever_active).clone(),
                "sparsity": layer.sparsity,
                "gets_gradient": None if layer._frozen is None else ~layer._frozen,
                "hidden": None if layer._hidden is None else layer._hidden.clone(),
                "gathered": None if layer._gathered is None else layer._gathered.clone(),
            }

        return {
            "version": 1,
            "method": self.method.name,
            "settings": dict(self.method.settings),
            "seed": self.seed,
            "step": self.step,
            "layers": {layer.parameter_name: state(layer) for layer in self._sparse},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a :meth:`state_dict` was taken; load those of model and optimizer, too, in any order. Sparsities, step and seed are
        the state's; the schedule is the one given to :func:`sparsify`.

        Raises :class:`srigl.Error` if it is of other layers or another method.
        """
        if not isinstance(state, Mapping) or state.get("version") != 1:
            raise Error("this is no state of srigl.torch")
        named = [(state["method"], state["settings"]), (self.method.name, self.method.settings)]
        if named[0] != named[1]:
            theirs, ours = (f"`{name}` {settings or ''}".strip() for name, settings in named)
            raise Error(f"the state is of method {theirs}, not of {ours}")
        layers, names = state["layers"], {layer.parameter_name for layer in self._sparse}
        if set(layers) != names:
            odd = sorted(set(layers) ^ names)
            raise Error(f"the state is of other sparse layers: {', '.join(odd)} only there or only here")
        keys = {"mask", "ever_active", "sparsity", "gets_gradient", "hidden", "gathered"}
        for layer in self._sparse:
            of = layers[layer.parameter_name]
            if not keys <= set(of):
                raise Error(f"layer `{layer.name}`: the state lacks {', '.join(sorted(keys - set(of)))}")
            expected = tuple(layer.parameter.shape)
            for key in keys - {"sparsity"}:
                if of[key] is not None and tuple(of[key].shape) != expected:
                    got = list(of[key].shape)
                    raise Error(f"layer `{layer.name}`: the state has a {key} {got} for a weight {list(expected)}")
        for layer in self._sparse:
            of, found = layers[layer.parameter_name], layer._found
            layer._set_mask(found.rows(of["mask"]).copy(), None)
            layer.ever_active = found.rows(of["ever_active"]).copy()
            layer.sparsity = float(of["sparsity"])
            device = layer.parameter.device
            moved = {
                key: None if of[key] is None else of[key].to(device) for key in ["gets_gradient", "hidden", "gathered"]
            }
            layer._frozen, layer._bits = None if moved["gets_gradient"] is None else ~moved["gets_gradient"], {}
            layer._hidden = None if moved["hidden"] is None else moved["hidden"].clone()
            layer._gathered = None if moved["gathered"] is None else moved["gathered"].clone()
            layer._version = -1
        self.step, self.seed = int(state["step"]), int(state["seed"])
        self._gathers = self._gathers_at(self.step + 1)

    # What happens in a step.

    def _gathers_at(self, step: int) -> bool:
        """Whether the gradient of a step is needed at every position."""
        gradients = self.method._native.gradients
        return gradients == "momentum" or gradients != "none" and self.schedule.gathers_gradient(step)

    def _arrived(self, layer: SparseLayer) -> Any:
        def hook(_: torch.Tensor) -> None:
            if self._pending and not self._in_closure:
                self._abandon()
            layer._to_device()
            if not self._gathers:
                layer._mask_gradient()
            layer._is_masked = not self._gathers

        return hook

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Optional[tuple[Any, Any]]:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._prepare()
            return None
        if isinstance(optimizer, torch.optim.LBFGS):
            raise Error("LBFGS computes gradients several times in a step; sparse training needs another optimizer")

        def prepared() -> Any:
            self._in_closure = True
            try:
                loss = closure()
            finally:
                self._in_closure = False
            self._prepare()
            return loss

        if len(args) > 1:
            return (args[0], prepared, *args[2:]), kwargs
        return args, {**kwargs, "closure": prepared}

    @torch.no_grad()
    def _prepare(self) -> None:
        """Between the gradients and the optimizer. Optimizers that call the step of another come here several times, and those that compute
        gradients several times in a step, too: of these the first count."""
        is_first, self._pending = not self._pending, True
        # A fused optimizer leaves unscaling, and skipping, to its own kernels.
        found_inf: Any = getattr(self._optimizers[-1], "found_inf", None)
        scale: Any = getattr(self._optimizers[-1], "grad_scale", None)
        self._skipped = found_inf is not None and float(found_inf) > 0.0
        scale = 1.0 if scale is None else float(scale)
        for layer in self._sparse:
            layer._to_device()
            if is_first and layer.parameter._version != layer._version:
                layer._take_up()
            grad = layer.parameter.grad
            if grad is None:
                continue
            if is_first and self._gathers and not self._skipped:
                layer._fresh = (grad if scale == 1.0 else grad / scale).detach().to(torch.float32, copy=True)
            if not layer._is_masked:
                layer._mask_gradient()
            layer._is_masked = False
            if is_first and layer._hidden is not None:
                self._decay(layer, scale)
        for layer in self._sparse:
            if is_first and layer._hidden is not None:
                layer.parameter.data.add_(layer._hidden)
                self._park(layer)

    @torch.no_grad()
    def _abandon(self) -> None:
        """After a step that has failed between its two hooks."""
        self._pending = False
        for layer in self._sparse:
            layer._fresh = None
            self._unpark(layer)
            layer._hide()

    def _gather(self, layer: SparseLayer) -> None:
        """Adds the gradient of a step to what the next update looks at."""
        kept = self.method._native.momentum
        fresh, layer._fresh = layer._fresh, None
        if layer._gathered is None or fresh is None:
            layer._gathered = layer._gathered if fresh is None else fresh
        elif kept > 0.0:
            layer._gathered.mul_(kept).add_(fresh)
        else:
            layer._gathered.add_(fresh)

    def _decay(self, layer: SparseLayer, scale: float) -> None:
        """Adds ``λW`` of the inactive weights that get gradient, which masking may have replaced."""
        grad, decay = layer.parameter.grad, self.method._native.inactive_decay(layer._target())
        assert grad is not None and layer._hidden is not None
        if decay > 0.0:
            hidden = layer._hidden if layer._frozen is None else layer._hidden.masked_fill(layer._frozen, 0.0)
            try:
                grad.add_(hidden, alpha=decay * scale)
            except RuntimeError:
                # Several of its numbers are one in memory.
                layer.parameter.grad = grad.add(hidden, alpha=decay * scale)

    def _park(self, layer: SparseLayer) -> None:
        """Weight decay would move values that get no gradient: the optimizer sees zeros in their place."""
        weight = layer.parameter.data
        if layer._frozen is not None:
            layer._hidden = weight.masked_fill(~layer._frozen, 0.0)
            weight.masked_fill_(layer._frozen, 0.0)
        else:
            layer._hidden = torch.zeros_like(weight)

    def _unpark(self, layer: SparseLayer) -> None:
        """What was parked beside what the optimizer has moved."""
        if layer._hidden is not None:
            frozen, weight = layer._frozen, layer.parameter.data
            (weight if frozen is None else weight.masked_fill_(frozen, 0.0)).add_(layer._hidden)

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """After the optimizer."""
        if not self._pending:
            # An optimizer around another, whose step this was; it may have added something.
            for layer in self._sparse:
                layer._clear(layer.parameter.data, "inactive")
                layer._version = layer.parameter._version
            return
        self._pending = False
        self.step += 0 if self._skipped else 1
        for layer in self._sparse:
            self._gather(layer)
            self._unpark(layer)
            states = [optimizer.state.get(layer.parameter) for optimizer in self._optimizers]
            if len(states) != len(layer._moments) or any(a is not b for a, b in zip(states, layer._moments)):
                # Of before this training, or of a checkpoint.
                layer._moments = states
                layer._clear_moments()
        updates = self._updates() and not self._skipped
        if updates:
            self._update()
        for layer in self._sparse:
            if not updates:
                layer._hide()
            layer._version = layer.parameter._version
        self._gathers = self._gathers_at(self.step + 1)

    def _updates(self) -> bool:
        """Whether the topology changes after this step."""
        when = self.method._native.updates
        return when == "each-step" or when == "scheduled" and self.schedule.is_update(self.step)

    def _update(self) -> None:
        alpha = self.schedule.drop_fraction_at(self.step)
        gathered = min(self.schedule.grad_accumulation, self.step)
        needs_gradient = self.method._native.gradients != "none"
        is_momentum = self.method._native.gradients == "momentum"
        states, weights = [], {}
        for layer in self._sparse:
            if not layer.parameter.requires_grad:
                continue
            rows = layer._found.rows
            grads = None
            if needs_gradient:
                if layer._gathered is None:
                    self._keeps(layer, f"layer `{layer.name}`: no gradient was gathered for this update")
                    continue
                grads = rows(layer._gathered if is_momentum else layer._gathered / gathered)
                layer._gathered = layer._gathered if is_momentum else None
            weights[layer.index] = rows(layer.parameter)
            sparsity = core._sparsity_now(self.method, layer.sparsity, layer.mask.size, self.schedule, self.step)
            states.append(
                (layer, core.Layer(layer.name, weights[layer.index], grads, layer.mask, sparsity, layer.ablate))
            )
        inputs = [(layer.index, state) for layer, state in states]
        for (layer, _), result in zip(states, core._update_or_errors(self.method, inputs, alpha, self.seed, self.step)):
            if isinstance(result, Error):
                self._keeps(layer, str(result))
            else:
                layer._set_mask(result.mask, weights[layer.index])
                self.reports[layer.name] = result.report
        for layer in self._sparse:
            layer._hide()
            layer._clear_moments()

    def _keeps(self, layer: SparseLayer, why: str) -> None:
        if not layer._warned:
            layer._warned = True
            warnings.warn(f"step {self.step}: {why}; the layer keeps its mask", RuntimeWarning, stacklevel=2)


def sparsify(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sparsity: Optional[float] = None,
    *,
    end_step: float,
    method: Union[str, AnyMethod] = "srigl",
    distribution: str = "erk",
    delta_t: int = 100,
    drop_fraction: float = 0.3,
    drop_schedule: str = "cosine",
    grad_accumulation: int = 1,
    weight_init: str = "kaiming-normal",
    initial_mask: Optional[str] = None,
    seed: int = 0,
    include: Union[str, Sequence[str]] = (),
    exclude: Union[str, Sequence[str]] = (),
    keep_dense: Union[str, Sequence[str]] = (),
    no_ablation: Union[str, Sequence[str], None] = None,
    state: Optional[Mapping[str, Any]] = None,
    **settings: Union[float, str],
) -> Sparse:
    """Makes a model sparse, and keeps it so while ``optimizer`` trains it.

    **The weights are drawn anew**, as sparse layers want them, unless ``weight_init="keep"``: then the model keeps those that it has, and
    its masks the largest of them. Defaults are the SRigL paper's.

    ``sparsity`` is the share of zeros over all linear and convolution weights; it follows from ``nm``, if that is given.
    ``end_step``: the topology stays fixed from this step of the optimizer on; the paper's is 75 % of all.
    ``method``: a name of :func:`srigl.core.methods`, whose ``settings`` (``gamma_sal``, ``nm``, ``group``, ...) follow; or a method.
    ``delta_t``: steps between updates; ``drop_fraction``, ``drop_schedule``: how much of a layer is dropped and grown.
    ``grad_accumulation``: the dense gradient of an update is the mean over so many last steps.
    ``weight_init`` and ``initial_mask``: see :func:`srigl.core.initial_weights` and :func:`srigl.core.initial_masks`. With
    ``method="snip"`` run ``loss.backward()`` on a first batch before.

    Patterns (globs; ``*`` crosses dots) are over names of modules, such as ``encoder.layers.0.fc1``; attention's joint projection is
    ``NAME.in_proj``. ``include``: only these are touched; ``exclude``: these are not, and do not count; ``keep_dense``: the others make up
    for these; ``no_ablation``: no neuron is ablated there (default: the last layer, which is taken for the classifier).

    ``state``: a :meth:`Sparse.state_dict` to go on from; the model's weights are then left as they are, which are to be those of the same
    moment.

    Frozen parameters, and those that the optimizer does not have, are left alone. With DistributedDataParallel every rank calls this
    with equal arguments, before or after it wraps the model.

    Raises :class:`srigl.Error` for settings out of range, patterns that match nothing, or a layer that would be left without weights.
    """
    optimizers = _all_of(optimizer)
    if not isinstance(model, nn.Module) or not optimizers:
        raise Error(
            f"sparsify takes a module and an optimizer, not {type(model).__name__} and {type(optimizer).__name__}"
        )
    method = core._as_method(method, settings)
    schedule = core._schedule(method, end_step, delta_t, drop_fraction, drop_schedule, grad_accumulation)
    seed = core._whole("seed", seed)
    if state is None:
        sparsity = core._sparsity_for(method, sparsity)
    if not method._native.sparse:
        return Sparse(optimizers, method, schedule, [], seed)
    found = _chosen(_unwrapped(model), optimizers, include, exclude)
    names = [layer.name for layer in found]
    dense = core._matching("keep_dense", keep_dense, names)
    if all(dense):
        raise Error("no layer is left that could be sparse")
    spared = core._spared(no_ablation, names, sparse_layers(_unwrapped(model))[-1].name)
    if state is not None:
        return _resumed(optimizers, method, schedule, found, spared, state)
    specs = [LayerSpec(layer.name, layer.shape, is_dense) for layer, is_dense in zip(found, dense)]
    draw = _Draw(method, weight_init, seed)
    initial = initial_mask or method._native.initial_with(weight_init)
    weights = draw.dense_weights(found, specs, initial)
    sparsities, masks = core.initial_masks(
        method,
        specs,
        sparsity or 0.0,
        distribution=distribution,
        seed=seed,
        weights=None if initial == "random" else weights,
        initial_mask=initial,
    )
    layers = []
    for index, (layer, own, mask, spare) in enumerate(zip(found, sparsities, masks, spared)):
        sparse = SparseLayer(layer, index, own, not spare, mask, method)
        if own > 0.0:
            draw.initialise(sparse)
        layers.append(sparse)
    return Sparse(optimizers, method, schedule, layers, seed)


def _resumed(
    optimizers: list[torch.optim.Optimizer],
    method: AnyMethod,
    schedule: UpdateSchedule,
    found: Sequence[Found],
    spared: Sequence[bool],
    state: Mapping[str, Any],
) -> Sparse:
    """Goes on from a state, which has masks and sparsities."""
    known = state.get("layers", {})
    layers = []
    for index, (layer, spare) in enumerate(zip(found, spared)):
        sparsity = float(known[layer.parameter_name]["sparsity"]) if layer.parameter_name in known else 0.0
        layers.append(SparseLayer(layer, index, sparsity, not spare, np.ones(layer.shape, dtype=np.bool_), method))
    sparse = Sparse(optimizers, method, schedule, layers, 0)
    try:
        sparse.load_state_dict(state)
        for of in sparse._sparse:
            if of._has_inactive_weights():
                raise Error(
                    f"layer `{of.name}` has weights where the state's mask has none: they are of another moment"
                )
    except Error:
        sparse.remove()
        raise
    return sparse


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model that another wraps: DistributedDataParallel, DataParallel, torch.compile."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    inner: Any = model
    while isinstance(inner, wrappers) or hasattr(inner, "_orig_mod"):
        inner = inner.module if isinstance(inner, wrappers) else inner._orig_mod
    unwrapped: nn.Module = inner
    return unwrapped


def _chosen(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    include: Union[str, Sequence[str]],
    exclude: Union[str, Sequence[str]],
) -> list[Found]:
    """The layers that count."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    found = sparse_layers(model)
    moved = [name for name, module in model.named_modules() if _is_layer(module) and not _weights_of(module)]
    names = [*(layer.name for layer in found), *moved]
    selected = core._selected(include, exclude, names)
    chosen = []
    for layer, is_ours in zip(found, selected):
        if is_ours and layer.parameter.requires_grad and id(layer.parameter) in trained:
            chosen.append(layer)
    already = [layer.name for layer in chosen if id(layer.parameter) in _SPARSE]
    if already:
        raise Error(f"layer `{already[0]}` is sparse already: call remove() of what sparsify has returned before")
    moved = [name for name, is_ours in zip(moved, selected[len(found) :]) if is_ours]
    if moved:
        # By weight normalisation, say, or pruning.
        said = f"the weights of {', '.join(moved)} are computed from other parameters: these layers stay dense, and do not count"
        if not chosen:
            raise Error(f"no layer can be sparse: {said}")
        warnings.warn(said, RuntimeWarning, stacklevel=3)
    if not chosen:
        raise Error(
            "no layer can be sparse: the model has no linear layer or convolution whose weight is trained by this optimizer"
            if found
            else "no layer can be sparse: the model has no linear layer, convolution or attention"
        )
    return chosen


def _is_layer(module: nn.Module) -> bool:
    return bool(_weights(module)) and not isinstance(module, nn.MultiheadAttention)


def _weights_of(module: nn.Module) -> list[str]:
    return [key for key in _weights(module) if module._parameters.get(key) is not None]


def _all_of(optimizer: Any) -> list[torch.optim.Optimizer]:
    """An optimizer and those that it wraps, innermost last; without wrappers that only pass on, as Accelerate's."""
    chain = []
    while optimizer is not None:
        if isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "_optimizer_step_pre_hooks"):
            chain.append(optimizer)
        optimizer = getattr(optimizer, "optimizer", getattr(optimizer, "base_optimizer", None))
    return chain


class _Draw:
    """Draws first weights."""

    def __init__(self, method: AnyMethod, init: str, seed: int) -> None:
        self.method, self.init, self.seed = method, init, seed

    def dense_weights(
        self, found: Sequence[Found], specs: Sequence[LayerSpec], initial: str
    ) -> list[np.ndarray[Any, Any]]:
        """The weights that masks are chosen by."""
        if initial == "random":
            return []
        if initial == "sensitivity":
            # As SNIP wants it, by gradients of the weights that the model has.
            self.init = "keep"
        weights = []
        for index, (layer, spec) in enumerate(zip(found, specs)):
            _same_on_all_ranks(layer.parameter.data)
            rows = self.all_weights(layer, index)
            if initial == "sensitivity" and not spec.keep_dense:
                grad = layer.parameter.grad
                if grad is None:
                    raise Error(f"layer `{layer.name}` has no gradient: run loss.backward() on a first batch before")
                rows = rows * layer.rows(grad)
            weights.append(rows)
        return weights

    def all_weights(self, layer: Found, index: int) -> np.ndarray[Any, Any]:
        """Those that it has, or drawn as those of a dense layer."""
        return core._dense_weights(self.method, layer.rows(layer.parameter), self.init, self.seed, index)

    def initialise(self, layer: SparseLayer) -> None:
        """Gives a sparse layer its first weights."""
        found = layer._found
        if self.init == "keep":
            layer._set_mask(layer.mask, found.rows(found.parameter))
            layer._hide()
            return
        if self.method._native.starts_from_dense_weights:
            rows = self.all_weights(found, layer.index)
        else:
            rows = core.initial_weights(
                layer.mask, self.init, seed=self.seed, layer=layer.index, weights=found.rows(found.parameter)
            )
        with torch.no_grad():
            found.parameter.data.copy_(found.tensor(rows))
            layer._set_mask(layer.mask, rows)
            layer._hide()


def _same_on_all_ranks(tensor: torch.Tensor) -> None:
    """Gives all ranks the values of the first, by which masks are chosen."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.broadcast(tensor, 0)
