"""Masks, layer sparsities, schedules and topology updates of sparse training, on arrays of any framework.

A weight is an array ``[out, in, ...]`` as PyTorch stores it, whose rows ``[out, in * ...]`` are neurons: ``[N, M]``. A mask is a
boolean array of the same shape. What is computed is pinned by tests against the authors' code (Lasby et al., ICLR 2024), and a pure
function of its arguments: equal weights, gradients, masks and seeds give equal masks, on any machine and any number of threads.

>>> import numpy as np
>>> from srigl import core
>>> layers = [core.LayerSpec("fc1", (64, 256)), core.LayerSpec("fc2", (10, 64))]
>>> method = core.Method("srigl", gamma_sal=0.3)
>>> sparsities, masks = core.initial_masks(method, layers, 0.9, seed=1)
>>> weights = [core.initial_weights(mask, seed=1, layer=i) for i, mask in enumerate(masks)]
>>> grads = [np.random.default_rng(i).normal(size=w.shape) for i, w in enumerate(weights)]
>>> schedule = core.UpdateSchedule(end_step=7500)
>>> updates = core.update_topology(
...     method,
...     [core.Layer(s.name, w, g, m, p) for s, w, g, m, p in zip(layers, weights, grads, masks, sparsities)],
...     drop_fraction=schedule.drop_fraction_at(100),
...     seed=1,
...     step=100,
... )
>>> updates[0].report["nnz"] == int(updates[0].mask.sum())
True
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import numpy.typing as npt

from srigl import _native
from srigl._arrays import as_numpy, bits, floats
from srigl._native import Error, UpdateSchedule

__all__ = [
    "Cost",
    "CustomMethod",
    "Error",
    "Layer",
    "LayerSpec",
    "Method",
    "Update",
    "UpdateSchedule",
    "inference_cost",
    "initial_masks",
    "initial_weights",
    "itop_rate",
    "layer_sparsities",
    "layer_stats",
    "methods",
    "training_flops",
    "update_layer",
    "update_topology",
]

Mask = npt.NDArray[np.bool_]


class LayerSpec(NamedTuple):
    """A weight as far as masks depend on it."""

    name: str
    """For errors and patterns."""
    shape: tuple[int, ...]
    """``[out, in, ...]``."""
    keep_dense: bool = False
    """Whether it stays dense; the others make up for it."""


class Layer(NamedTuple):
    """A layer as an update sees it. Arrays have the shape ``[out, in, ...]``."""

    name: str
    """For errors."""
    weights: Any
    """``W``; values outside the mask do not count."""
    grads: Any
    """The gradient of the loss at every position, active or not; ``None`` for methods that look at none."""
    mask: Any
    """The present topology."""
    sparsity: float
    """The share of zeros that it shall have after the update; a layer with 0 is dense and never changes."""
    ablate: bool = True
    """Whether its neurons may be ablated; ``False`` for the classifier."""


class Update(NamedTuple):
    """A new topology of one layer."""

    mask: Mask
    """``[out, in, ...]``."""
    report: dict[str, Any]
    """``nnz``, ``sparsity``, ``neurons``, ``active`` ones, those ``ablated``, ``fan_in`` if all active ones share it, ``fan_in_min``,
    ``fan_in_max``, weights ``pruned`` and ``grown``."""


class Cost(NamedTuple):
    """What one example costs, by the rule behind the published tables of SRigL."""

    multiplications: float
    additions: float
    parameters: float
    """Active weights, biases, and bit masks in words of 32 bits."""

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return self.multiplications + self.additions


class Method:
    """A sparse training method: how masks start and change.

    ``name`` is one of :func:`methods`; settings are the method's own, and ``nm="2:4"`` (of 4 consecutive inputs a neuron reads at most
    2) or ``group=4`` (so many neurons in a row share their inputs) where it takes these.

    >>> Method("srigl", gamma_sal=0.3).label
    'SRigL with ablation'
    >>> Method("rigl", nm="2:4").label
    'RigL 2:4'
    """

    def __init__(self, name: str = "srigl", /, **settings: Union[float, str]) -> None:
        self._native = _native.Method(name, settings)

    @property
    def name(self) -> str:
        """The name, such as ``srigl``."""
        return self._native.name

    @property
    def label(self) -> str:
        """The name for people."""
        return self._native.label

    @property
    def settings(self) -> dict[str, Union[float, str]]:
        """All settings."""
        return self._native.settings

    def __reduce__(self) -> Any:
        return _method_of, (self.name, self.settings)

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"Method({self.name!r}{settings})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Method) and (self.name, self.settings) == (other.name, other.settings)

    def __hash__(self) -> int:
        return hash((self.name, tuple(sorted(self.settings.items()))))


class _CustomTraits:
    """What adapters ask of a method's ``_native``, for methods of one's own: they look at dense gradients at scheduled updates, and keep active
    weights alone."""

    sparse = True
    updates = "scheduled"
    gradients = "dense"
    momentum = 0.0
    keeps_inactive_weights = False
    starts_from_dense_weights = False
    starts_dense = False

    def initial_with(self, init: str) -> str:
        """Masks are the method's own, whatever the weights."""
        return "random"

    def sparsity_at(self, sparsity: float, progress: float) -> float:
        """The same at any time."""
        return sparsity

    def inactive_decay(self, sparsity: float) -> float:
        """Inactive weights do not live."""
        return 0.0

    def gradient_positions(
        self, mask: Any, neurons: int, sparsity: float, weights: Any
    ) -> tuple[str, Optional[npt.NDArray[np.uint8]]]:
        """Those of the mask."""
        return "active", None


class CustomMethod:
    """A method of your own, for experiments: override :meth:`update`, and :meth:`initial_mask` if it starts otherwise.

    >>> class Amnesia(CustomMethod):
    ...     '''Forgets all weights at each update, and grows where the gradient is largest.'''
    ...     def update(self, weights, grads, mask, *, sparsity, drop_fraction, ablate, rng):
    ...         n = mask.sum()
    ...         new = np.zeros(mask.size, dtype=bool)
    ...         new[np.argsort(-np.abs(grads).ravel())[:n]] = True
    ...         return new.reshape(mask.shape)
    >>> layer = Layer("fc", np.ones((2, 3)), np.arange(6.0).reshape(2, 3), [[1, 1, 0], [0, 0, 0]], 0.5)
    >>> update_layer(Amnesia(), layer, drop_fraction=0.3).mask.astype(int).tolist()
    [[0, 0, 0], [0, 1, 1]]
    """

    name: str = "custom"
    """For errors."""
    constant_fan_in: bool = False
    """Whether initial masks have the same number of weights in each neuron."""
    settings: dict[str, Union[float, str]] = {}
    """None; what a method is told goes into its own ``__init__``."""
    _native = _CustomTraits()

    def initial_mask(self, spec: LayerSpec, sparsity: float, *, mask: Mask, rng: np.random.Generator) -> Any:
        """The first mask of a layer that is to have this ``sparsity``; ``mask`` is one drawn at random."""
        return mask

    def update(
        self,
        weights: npt.NDArray[np.float32],
        grads: npt.NDArray[np.float32],
        mask: Mask,
        *,
        sparsity: float,
        drop_fraction: float,
        ablate: bool,
        rng: np.random.Generator,
    ) -> Any:
        """The new mask. Arrays are rows ``[N, M]``, and read-only; ``rng`` depends on seed, layer and step alone."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its masks change")


AnyMethod = Union[Method, CustomMethod]


def _method_of(name: str, settings: dict[str, Union[float, str]]) -> Method:
    return Method(name, **settings)


def _as_method(method: Union[str, AnyMethod], settings: Optional[dict[str, Any]] = None) -> AnyMethod:
    """A method by name and settings, or as it is."""
    if isinstance(method, str):
        return Method(method, **(settings or {}))
    if settings:
        raise Error(f"settings of a method go with its name: {', '.join(settings)}")
    if not isinstance(method, (Method, CustomMethod)):
        raise Error(f"a method is a name, a Method or a CustomMethod, not {type(method).__name__}")
    return method


def _sparsity_for(method: AnyMethod, sparsity: Optional[float]) -> float:
    """The global sparsity, which is given unless it follows from a pattern N:M."""
    pattern = method.settings.get("nm")
    if pattern is not None and sparsity is not None:
        raise Error(f"the sparsity is that of {pattern}: leave out `sparsity`")
    if sparsity is None and pattern is None and method._native.sparse:
        raise Error('say how sparse the model is to be: `sparsity`, such as 0.9, or a pattern, such as nm="2:4"')
    return float(sparsity or 0.0)


def _whole(name: str, number: Any) -> int:
    if number != number or number < 0 or number >= 2**63:
        raise Error(f"{name} is {number}, not a number of steps or a seed: 0 or more")
    return int(number)


def _schedule(
    method: AnyMethod,
    end_step: float,
    delta_t: int,
    drop_fraction: float,
    drop_schedule: str,
    grad_accumulation: int,
) -> UpdateSchedule:
    schedule = UpdateSchedule(
        _whole("end_step", end_step),
        delta_t=_whole("delta_t", delta_t),
        drop_fraction=float(drop_fraction),
        drop_schedule=drop_schedule,
        grad_accumulation=_whole("grad_accumulation", grad_accumulation),
    )
    if method._native.starts_dense and schedule.last_update() is None:
        raise Error(f"method `{method.name}` becomes sparse by its updates, and there is none before step {end_step}")
    return schedule


def _sparsity_now(method: AnyMethod, sparsity: float, positions: int, schedule: UpdateSchedule, step: int) -> float:
    """The sparsity that a layer of so many positions, and this sparsity in the end, shall have after the update of a step."""
    if not method._native.starts_dense:
        return sparsity
    target = _native.target_sparsity(positions, sparsity)
    return method._native.sparsity_at(target, schedule.progress_at(step))


_Patterns = Union[str, Sequence[str], None]


def _matching(option: str, patterns: _Patterns, names: list[str]) -> list[bool]:
    """Which names match."""
    return _native.matching(option, [patterns] if isinstance(patterns, str) else list(patterns or ()), names)


def _selected(include: _Patterns, exclude: _Patterns, names: list[str]) -> list[bool]:
    """Which names are included, all of them if no pattern says otherwise, and not excluded."""
    included = _matching("include", include, names) if include else [True] * len(names)
    return [is_in and not is_out for is_in, is_out in zip(included, _matching("exclude", exclude, names))]


def _spared(no_ablation: _Patterns, names: list[str], last: str) -> list[bool]:
    """In which layers no neuron is ablated: by default in the last of the model, which is taken for the classifier."""
    return [name == last for name in names] if no_ablation is None else _matching("no_ablation", no_ablation, names)


def _dense_weights(method: AnyMethod, rows: npt.NDArray[Any], init: str, seed: int, layer: int) -> npt.NDArray[Any]:
    """All weights of a layer that some are chosen of: those that it has, or drawn as those of a dense layer."""
    if not method._native.starts_from_dense_weights or init == "keep":
        return rows
    return initial_weights(np.ones(rows.shape, dtype=np.bool_), init, seed=seed, layer=layer)


def _of_shape(x: Any, shape: Sequence[int], what: str) -> npt.NDArray[np.float32]:
    """Numbers of a shape, flat."""
    array = as_numpy(x)
    if tuple(array.shape) != tuple(shape):
        raise Error(f"{what} {list(array.shape)} do not fit {list(shape)}")
    return floats(array, what)


def methods() -> dict[str, dict[str, Any]]:
    """All methods by name: what each does (``about``), and its ``settings`` with their defaults.

    >>> methods()["srigl"]["settings"]["gamma_sal"]["default"]
    0.3
    """
    return {
        name: {"about": about, "settings": {s: {"about": a, "default": d} for s, a, d in settings}}
        for name, about, settings in _native.methods()
    }


def _specs(layers: Sequence[Union[LayerSpec, tuple[Any, ...]]]) -> list[tuple[str, list[int], bool]]:
    specs = [LayerSpec(*layer) for layer in layers]
    return [(spec.name, [int(size) for size in spec.shape], spec.keep_dense) for spec in specs]


def layer_sparsities(
    layers: Sequence[Union[LayerSpec, tuple[Any, ...]]], sparsity: float, *, distribution: str = "erk"
) -> list[float]:
    """The sparsity of every layer such that all together have the global ``sparsity``.

    ``distribution``: ``erk`` (Erdős-Rényi kernel, Evci et al. 2020), ``er`` or ``uniform``.

    >>> [round(s, 3) for s in layer_sparsities([("fc1", (300, 784)), ("fc2", (10, 300))], 0.9)]
    [0.911, 0.0]
    """
    return _native.layer_sparsities(_specs(layers), sparsity, distribution)


def initial_masks(
    method: Union[str, AnyMethod],
    layers: Sequence[Union[LayerSpec, tuple[Any, ...]]],
    sparsity: float = 0.0,
    *,
    distribution: str = "erk",
    seed: int = 0,
    weights: Optional[Sequence[Any]] = None,
    initial_mask: Optional[str] = None,
) -> tuple[list[float], list[Mask]]:
    """Sparsity and first mask of every layer.

    Masks are drawn at random, or, given ``weights`` ``[out, in, ...]``, keep the largest: of each neuron for methods with constant
    fan-in, of each layer for others. ``initial_mask`` says ``random``, ``magnitude``, ``global-magnitude`` (over all layers) or
    ``sensitivity`` (the same; ``weights`` are then the products of weights and gradients). With a pattern N:M the sparsity follows from
    that.
    """
    method = _as_method(method)
    specs = _specs(layers)
    initial = initial_mask or ("random" if weights is None else "magnitude")
    if initial != "random" and weights is None:
        raise Error(f"initial masks by {initial} need weights")
    if isinstance(method, CustomMethod) and initial != "random":
        raise Error("methods of your own choose their initial masks themselves: override initial_mask")
    native = method._native if isinstance(method, Method) else _stand_in(method)
    values: list[Optional[npt.NDArray[np.float32]]] = [None] * len(specs)
    if initial != "random" and weights is not None:
        if len(weights) != len(specs):
            raise Error(f"weights of {len(weights)} layers for {len(specs)}")
        values = [
            None if keep_dense else _of_shape(w, shape, f"layer `{name}`: weights")
            for (name, shape, keep_dense), w in zip(specs, weights)
        ]
    made = _native.initial_masks(native, specs, values, initial, sparsity, distribution, _whole("seed", seed))
    masks = [mask.view(np.bool_).reshape(shape) for (_, shape, _), (_, mask) in zip(specs, made)]
    sparsities = [sparsity for sparsity, _ in made]
    if isinstance(method, CustomMethod):
        for index, (layer, own) in enumerate(zip(layers, sparsities)):
            spec, rng = LayerSpec(*layer), np.random.default_rng([seed, index, 0])
            if own > 0.0:
                mask = method.initial_mask(spec, own, mask=masks[index], rng=rng)
                masks[index] = _checked(method, spec.name, mask, tuple(spec.shape))
    return sparsities, masks


def _stand_in(method: CustomMethod) -> _native.Method:
    """The method that draws its masks."""
    return _native.Method("structured-static" if method.constant_fan_in else "static", {})


def initial_weights(
    mask: Any, init: str = "kaiming-normal", *, seed: int = 0, layer: int = 0, weights: Optional[Any] = None
) -> npt.NDArray[np.float32]:
    """Weights that know about sparsity, of the shape of ``mask``: ``k`` is a neuron's own number of active weights.

    ``kaiming-normal`` (standard deviation ``sqrt(2/k)``), ``kaiming-uniform`` (``±sqrt(6/k)``), ``torch-default`` (``±sqrt(1/k)``),
    ``grad-flow-as-coded`` (standard deviation ``2/k``, as in the authors' sweeps), or ``keep``: the given ``weights``, masked.
    """
    array = as_numpy(mask)
    if init == "keep" and weights is None:
        raise Error("there are no weights to keep")
    values = np.zeros(array.size, dtype=np.float32) if weights is None else _of_shape(weights, array.shape, "weights")
    drawn = _native.initial_weights(bits(array), _neurons(array), values, init, _whole("seed", seed), layer)
    return drawn.reshape(array.shape)


def update_topology(
    method: Union[str, AnyMethod],
    layers: Sequence[Layer],
    *,
    drop_fraction: float,
    seed: int = 0,
    step: int = 1,
) -> list[Update]:
    """One topology update of all layers, in parallel: weights and dense gradients in, masks out.

    Nothing is written to the arrays: afterwards set to 0 what is outside the new mask, or was outside the old one, in weights and
    optimizer moments. ``seed`` and ``step`` choose the random growth of methods that have such.

    Raises :class:`Error` for the first layer that does not fit, or whose values are not finite.
    """
    updates = []
    for result in _update(
        _as_method(method), [(index, layer) for index, layer in enumerate(layers)], drop_fraction, seed, step
    ):
        if isinstance(result, Error):
            raise result
        updates.append(result)
    return updates


def update_layer(
    method: Union[str, AnyMethod], layer: Layer, *, drop_fraction: float, seed: int = 0, index: int = 0, step: int = 1
) -> Update:
    """:func:`update_topology` of one layer, the ``index``-th of its model."""
    [result] = _update(_as_method(method), [(index, layer)], drop_fraction, seed, step)
    if isinstance(result, Error):
        raise result
    return result


def _update(
    method: AnyMethod, layers: Sequence[tuple[int, Layer]], drop_fraction: float, seed: int, step: int
) -> list[Union[Update, Error]]:
    """New masks, each layer's own error where there is none."""
    if isinstance(method, CustomMethod):
        return [_update_custom(method, index, layer, drop_fraction, seed, step) for index, layer in layers]
    states = []
    for index, layer in layers:
        mask = as_numpy(layer.mask)
        neurons, grads = _neurons(mask), None
        if method._native.gradients != "none":
            if layer.grads is None:
                raise Error(f"layer `{layer.name}`: method `{method.name}` looks at gradients, and there are none")
            grads = _of_shape(layer.grads, mask.shape, f"layer `{layer.name}`: grads")
        states.append(
            _State(
                index=index,
                name=layer.name,
                neurons=neurons,
                weights=_of_shape(layer.weights, mask.shape, f"layer `{layer.name}`: weights"),
                grads=grads,
                mask=bits(mask),
                sparsity=float(layer.sparsity),
                ablate=bool(layer.ablate),
            )
        )
    results: list[Union[Update, Error]] = []
    for (_, layer), (new, text) in zip(layers, _native.update(method._native, drop_fraction, states, seed, step)):
        if new is None:
            results.append(Error(text))
        else:
            results.append(Update(new.view(np.bool_).reshape(as_numpy(layer.mask).shape), json.loads(text)))
    return results


def _update_or_errors(
    method: AnyMethod, layers: Sequence[tuple[int, Layer]], drop_fraction: float, seed: int, step: int
) -> list[Union[Update, Error]]:
    """The same in the middle of a training, that has to go on: where layers depend on one another, an error is everybody's."""
    try:
        return _update(method, layers, drop_fraction, seed, step)
    except Error as error:
        return [error] * len(layers)


@dataclass
class _State:
    """A layer on its way into the library."""

    index: int
    name: str
    neurons: int
    weights: npt.NDArray[np.float32]
    grads: Optional[npt.NDArray[np.float32]]
    mask: npt.NDArray[np.uint8]
    sparsity: float
    ablate: bool


def _update_custom(
    method: CustomMethod, index: int, layer: Layer, drop_fraction: float, seed: int, step: int
) -> Union[Update, Error]:
    shape = as_numpy(layer.mask).shape
    before = bits(layer.mask).view(np.bool_).reshape(_neurons(as_numpy(layer.mask)), -1)
    after = before
    if layer.sparsity > 0.0:
        weights = _of_shape(layer.weights, shape, f"layer `{layer.name}`: weights").reshape(before.shape)
        grads = np.zeros_like(weights)
        if layer.grads is not None:
            grads = _of_shape(layer.grads, shape, f"layer `{layer.name}`: grads").reshape(before.shape)
        for what, values in [("weight", weights), ("gradient", grads)]:
            if not np.isfinite(values).all():
                return Error(f"layer `{layer.name}`: a {what} is not finite; masks need finite values")
        rng = np.random.default_rng([seed, index, step])
        new = method.update(
            _read_only(weights),
            _read_only(grads),
            _read_only(before),
            sparsity=layer.sparsity,
            drop_fraction=drop_fraction,
            ablate=layer.ablate,
            rng=rng,
        )
        after = _checked(method, layer.name, new, before.shape)
    report = layer_stats(after)
    report["pruned"], report["grown"] = int((before & ~after).sum()), int((after & ~before).sum())
    return Update(after.reshape(shape), report)


def _read_only(array: Any) -> Any:
    """What belongs to the caller is not a method's to write to."""
    view = array.view()
    view.flags.writeable = False
    return view


def _checked(method: CustomMethod, name: str, mask: Any, shape: tuple[int, ...]) -> Mask:
    array = bits(mask, f"layer `{name}`: a mask of method `{method.name}`").view(np.bool_)
    if as_numpy(mask).shape != shape:
        raise Error(
            f"layer `{name}`: method `{method.name}` made a mask {list(as_numpy(mask).shape)} for weights {list(shape)}"
        )
    # The method may keep what it has returned.
    return array.reshape(shape).copy()


def _neurons(array: npt.NDArray[Any]) -> int:
    if array.ndim < 2 or array.size == 0:
        raise Error(f"shape {list(array.shape)} is not a weight [out, in, ...] with non-zero dimensions")
    return int(array.shape[0])


def layer_stats(mask: Any) -> dict[str, Any]:
    """Counts of a mask ``[out, in, ...]``: what :class:`Update` reports, the pattern ``nm`` that it has, and the ``group`` of neurons that
    share their inputs.

    >>> layer_stats([[1, 0, 1], [0, 0, 0]])["ablated"]
    [1]
    """
    array = as_numpy(mask)
    stats: dict[str, Any] = json.loads(_native.layer_stats(bits(array), _neurons(array)))
    return stats


def itop_rate(ever_active: Any) -> float:
    """The share of positions that have been active at least once, given the union of all masks (Liu et al. 2021)."""
    return float(bits(ever_active).mean())


def inference_cost(layers: Sequence[tuple[Sequence[int], int]], sparsities: Sequence[float]) -> Cost:
    """The cost of one forward pass of one example, of layers (shape, positions of the output).

    ``H' * W'`` positions for a convolution ``[out, in, kh, kw]``, 1 for a linear layer ``[out, in]``.

    >>> inference_cost([((300, 784), 1), ((10, 300), 1)], [0.0, 0.0]).flops
    476400.0
    """
    if len(layers) != len(sparsities):
        raise Error(f"{len(sparsities)} sparsities for {len(layers)} layers")
    counted = [([int(n) for n in shape], int(positions), float(s)) for (shape, positions), s in zip(layers, sparsities)]
    return Cost(*_native.inference_cost(counted))


def training_flops(dense: float, sparse: float, *, delta_t: int = 100, images: float = 1.0) -> float:
    """Floating-point operations of a sparse training on so many ``images``, from those of one forward pass, dense and sparse:
    ``images * (3 * sparse * delta_t + 4 * sparse + dense) / (delta_t + 1)``."""
    return _native.training_flops(dense, sparse, delta_t, images)
