"""Sparse training in JAX: a wrapper around an Optax optimizer.

>>> import jax, jax.numpy as jnp, optax, srigl.jax
>>> params = {"fc1": {"kernel": jnp.ones((64, 32)), "bias": jnp.zeros(32)}, "fc2": {"kernel": jnp.ones((32, 10))}}
>>> params, optimizer = srigl.jax.sparsify(params, optax.adam(1e-3), sparsity=0.8, end_step=750)
>>> state = optimizer.init(params)
>>> grads = jax.tree.map(jnp.ones_like, params)
>>> updates, state = jax.jit(optimizer.update)(grads, state, params)  # as ever
>>> params = optax.apply_updates(params, updates)
>>> int((params["fc1"]["kernel"] != 0).sum()) == int(srigl.jax.masks(state)["fc1"]["kernel"].sum())
True

A step runs under ``jax.jit``; topologies are updated on the CPU by a callback, every ``delta_t`` steps. The state is a pytree with
masks, step and whatever else a run needs to go on exactly where it stopped.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import jax
import jax.numpy as jnp
import numpy as np
import optax

from srigl import core
from srigl.core import AnyMethod, Error, LayerSpec, UpdateSchedule

__all__ = ["SparseState", "masks", "sparsify"]


class SparseState(NamedTuple):
    """State of an optimizer by :func:`sparsify`."""

    step: Any
    """Steps so far."""
    masks: Any
    """Of the structure of the parameters: booleans, ``True`` alone where a parameter is not sparse."""
    gathered: Any
    """Sums of dense gradients for the next update, of sparse parameters alone."""
    inner: Any
    """State of the inner optimizer; moments are 0 where a mask is."""


@dataclass(frozen=True)
class _Sparse:
    """A sparse leaf among the parameters."""

    place: int
    name: str
    index: int
    sparsity: float
    ablate: bool

    def rows(self, leaf: Any) -> np.ndarray[Any, Any]:
        """``[..., in, out]`` as ``[out, in, ...]``."""
        array = np.asarray(leaf)
        return array.transpose(_order(array.ndim))

    def leaf(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The way back."""
        return rows.transpose(np.argsort(_order(rows.ndim)))


def _order(rank: int) -> tuple[int, ...]:
    return (rank - 1, rank - 2, *range(rank - 2))


def masks(state: SparseState) -> Any:
    """The present masks, a pytree of the parameters' structure; ``True`` alone where a parameter is not sparse."""
    return state.masks


def sparsify(
    params: Any,
    optimizer: optax.GradientTransformation,
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
    **settings: Union[float, str],
) -> tuple[Any, optax.GradientTransformation]:
    """Sparse parameters, and an optimizer that keeps them so.

    Parameters of two or more dimensions are weights ``[..., in, out]``, as JAX's libraries store them, but those with ``embed`` in their
    path. Names are paths with dots, such as ``Dense_0.kernel``. All else is as in :func:`srigl.torch.sparsify`: **weights are drawn
    anew** unless ``weight_init="keep"``. Methods that keep inactive weights (``top-kast``, ``sr-ste``) or choose by a first gradient
    (``snip``) are not there.
    """
    method = core._as_method(method, settings)
    schedule = core._schedule(method, end_step, delta_t, drop_fraction, drop_schedule, grad_accumulation)
    seed, target = core._whole("seed", seed), core._sparsity_for(method, sparsity)
    native = method._native
    initial = initial_mask or native.initial_with(weight_init)
    if not native.sparse:
        return params, _wrapped(optimizer, method, schedule, params, [], [], seed)
    if native.keeps_inactive_weights or native.updates == "each-step" or initial == "sensitivity":
        raise Error(f"method `{method.name}` is not there for JAX; see srigl.core for its masks")
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    leaves = [leaf for _, leaf in paths]
    names = [
        ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
        for path, _ in paths
    ]
    places = [
        place
        for place, (name, leaf) in enumerate(zip(names, leaves))
        if jnp.ndim(leaf) >= 2 and jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and "embed" not in name.lower()
    ]
    candidates = [names[place] for place in places]
    selected = core._selected(include, exclude, candidates)
    places = [place for place, is_ours in zip(places, selected) if is_ours]
    chosen = [names[place] for place in places]
    dense = core._matching("keep_dense", keep_dense, chosen)
    if all(dense):
        raise Error("no parameter is left that could be sparse")
    spared = core._spared(no_ablation, chosen, candidates[-1])
    rows = [_Sparse(place, "", 0, 0.0, True).rows(leaves[place]) for place in places]
    specs = [LayerSpec(name, tuple(row.shape), is_dense) for name, row, is_dense in zip(chosen, rows, dense)]
    rows = [core._dense_weights(method, row, weight_init, seed, index) for index, row in enumerate(rows)]
    sparsities, first = core.initial_masks(
        method,
        specs,
        target,
        distribution=distribution,
        seed=seed,
        weights=None if initial == "random" else rows,
        initial_mask=initial,
    )
    sparse = [
        _Sparse(place, name, index, own, not spare)
        for index, (place, name, own, spare) in enumerate(zip(places, chosen, sparsities, spared))
        if own > 0.0
    ]
    for of in sparse:
        init = "keep" if native.starts_from_dense_weights else weight_init
        drawn = core.initial_weights(first[of.index], init, seed=seed, layer=of.index, weights=rows[of.index])
        leaves[of.place] = jnp.asarray(of.leaf(drawn), dtype=leaves[of.place].dtype)
    start = [of.leaf(first[of.index]) for of in sparse]
    drawn_params = jax.tree_util.tree_unflatten(structure, leaves)
    return drawn_params, _wrapped(optimizer, method, schedule, params, sparse, start, seed)


def _wrapped(
    optimizer: optax.GradientTransformation,
    method: AnyMethod,
    schedule: UpdateSchedule,
    params: Any,
    sparse: list[_Sparse],
    start: list[np.ndarray[Any, Any]],
    seed: int,
) -> optax.GradientTransformation:
    optimizer = optax.with_extra_args_support(optimizer)
    # Steps are counted in 32 bits.
    end_step, delta_t = (min(number, 2**31 - 1) for number in (schedule.end_step, schedule.delta_t))
    accumulation = min(schedule.grad_accumulation, delta_t)
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    warned: set[str] = set()
    changes = method._native.updates == "scheduled"
    momentum = method._native.momentum
    needs_gradient = changes and method._native.gradients != "none"

    def mask_tree(tree: Any, found: Sequence[Any]) -> Any:
        leaves, structure = jax.tree_util.tree_flatten(tree)
        everywhere: list[Any] = [jnp.ones((), dtype=jnp.bool_)] * len(leaves)
        for of, mask in zip(sparse, found):
            everywhere[of.place] = mask
        return jax.tree_util.tree_unflatten(structure, everywhere)

    def of_sparse(tree: Any) -> list[Any]:
        leaves = jax.tree_util.tree_leaves(tree)
        return [leaves[of.place] for of in sparse]

    def new_masks(step: Any, weights: Any, grads: Any, now: Any) -> Any:
        """On the CPU: one update of all layers."""
        step = int(step)
        layers = []
        for i, of in enumerate(sparse):
            own = core._sparsity_now(method, of.sparsity, int(np.asarray(now[i]).size), schedule, step)
            grad = of.rows(grads[i]) if needs_gradient else None
            layers.append((of.index, core.Layer(of.name, of.rows(weights[i]), grad, of.rows(now[i]), own, of.ablate)))
        alpha = schedule.drop_fraction_at(step)
        results = []
        for i, (of, result) in enumerate(zip(sparse, core._update_or_errors(method, layers, alpha, seed, step))):
            if isinstance(result, Error):
                if of.name not in warned:
                    warned.add(of.name)
                    warnings.warn(f"step {step}: {result}; the layer keeps its mask", RuntimeWarning, stacklevel=2)
                results.append(np.asarray(now[i]))
            else:
                results.append(np.ascontiguousarray(of.leaf(result.mask)))
        return results

    def init(params: Any) -> SparseState:
        found = [jnp.asarray(mask) for mask in start]
        gathered = [jnp.zeros(mask.shape, dtype=jnp.float32) for mask in start] if needs_gradient else []
        return SparseState(jnp.zeros((), dtype=jnp.int32), mask_tree(params, found), gathered, optimizer.init(params))

    def clear_moments(inner: Any, found: Sequence[Any]) -> Any:
        """Zeros in what the optimizer keeps for each weight, wherever it keeps it: under the weight's own path, in its shape."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(inner)
        cleared = []
        by_place = {of.place: mask for of, mask in zip(sparse, found)}
        for path, leaf in leaves:
            # The whole path of one parameter may be the end of another's.
            ends = [place for place, own in enumerate(paths) if path[len(path) - len(own) :] == own]
            mask = by_place.get(max(ends, key=lambda place: len(paths[place]), default=-1))
            if mask is not None and jnp.shape(leaf) == mask.shape:
                leaf = jnp.where(mask, leaf, 0).astype(leaf.dtype)
            cleared.append(leaf)
        return jax.tree_util.tree_unflatten(structure, cleared)

    def update(grads: Any, state: SparseState, params: Any = None, **extra: Any) -> tuple[Any, SparseState]:
        if params is None:
            raise Error("sparse training needs the parameters: optimizer.update(grads, state, params)")
        step = state.step + 1
        masked = jax.tree.map(lambda g, mask: jnp.where(mask, g, 0).astype(g.dtype), grads, state.masks)
        updates, inner = optimizer.update(masked, state.inner, params, **extra)
        gathered = state.gathered
        if needs_gradient:
            dense = [g.astype(jnp.float32) for g in of_sparse(grads)]
            if momentum > 0.0:
                gathered = [momentum * old + g for old, g in zip(gathered, dense)]
            else:
                ahead = -step % delta_t
                counts = (ahead < accumulation) & (step + ahead < end_step)
                gathered = [jnp.where(counts, old + g, old) for old, g in zip(gathered, dense)]
        if not changes:
            return _settled(updates, params, state.masks), SparseState(step, state.masks, gathered, inner)
        now = of_sparse(state.masks)

        def change(of: Any) -> Any:
            inner, gathered = of
            moved = optax.apply_updates(params, _settled(updates, params, state.masks))
            scale = 1.0 if momentum > 0.0 else 1.0 / jnp.minimum(accumulation, step)
            shapes: Any = [jnp.zeros_like(mask) for mask in now]
            mean = [g * scale for g in gathered]
            found = jax.pure_callback(new_masks, shapes, step, of_sparse(moved), mean, now)
            inner = clear_moments(inner, found)
            return found, inner, gathered if momentum > 0.0 else [jnp.zeros_like(g) for g in gathered]

        is_update = (step % delta_t == 0) & (step < end_step)
        found, inner, gathered = jax.lax.cond(is_update, change, lambda of: (now, *of), (inner, gathered))
        tree = mask_tree(params, found)
        return _settled(updates, params, tree), SparseState(step, tree, gathered, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _settled(updates: Any, params: Any, tree: Any) -> Any:
    """Updates after which parameters are exactly 0 where a mask is."""
    return jax.tree.map(lambda u, p, mask: jnp.where(mask, u, -p).astype(u.dtype), updates, params, tree)
