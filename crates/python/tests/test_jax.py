"""`srigl.jax` on a small model of plain JAX."""

import numpy as np
import pytest
import srigl

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
jnp = jax.numpy

import srigl.jax  # noqa: E402


def model():
    key = jax.random.PRNGKey(0)
    return {
        "conv": {"kernel": jax.random.normal(key, (3, 3, 1, 8)) * 0.3, "bias": jnp.zeros(8)},
        "embedding": {"table": jnp.ones((5, 4))},
        "fc1": {"kernel": jax.random.normal(key, (8 * 36, 24)) * 0.1, "bias": jnp.zeros(24)},
        "fc2": {"kernel": jax.random.normal(key, (24, 4)) * 0.1, "bias": jnp.zeros(4)},
    }


def loss(params, x, y):
    x = jax.lax.conv_general_dilated(
        x, params["conv"]["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x + params["conv"]["bias"]).reshape(x.shape[0], -1)
    x = jax.nn.relu(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    x = x @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()


def train(params, optimizer, steps, state=None, first=0):
    state = optimizer.init(params) if state is None else state

    @jax.jit
    def step(params, state, x, y):
        grads = jax.grad(loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    losses = []
    for i in range(first, first + steps):
        rng = np.random.default_rng(i)
        y = rng.integers(0, 4, 32)
        x = rng.normal(size=(32, 8, 8, 1)).astype(np.float32)
        x[np.arange(32), y * 2, y * 2] += 5
        losses.append(float(loss(params, x, y)))
        params, state = step(params, state, x, y)
        for name in ["conv", "fc1", "fc2"]:
            mask = np.asarray(state.masks[name]["kernel"])
            assert (np.asarray(params[name]["kernel"])[~mask] == 0).all(), (i, name)
            for moments in jax.tree.leaves(state.inner, is_leaf=lambda s: isinstance(s, dict)):
                if isinstance(moments, dict):
                    assert (np.asarray(moments[name]["kernel"])[~mask] == 0).all(), (i, name)
    return params, state, losses


@pytest.mark.parametrize("method", ["srigl", "rigl", "set", "structured-set", "static", "gmp", "snfs", "mest"])
def test_training_is_sparse_and_learns(method):
    params, optimizer = srigl.jax.sparsify(
        model(), optax.adamw(1e-2), 0.8, method=method, end_step=60, delta_t=10, keep_dense=["conv*"], seed=1
    )
    assert (np.asarray(params["embedding"]["table"]) == 1).all()
    params, state, losses = train(params, optimizer, 70)
    assert np.mean(losses[-10:]) < 0.6 * losses[0], losses
    masks = srigl.jax.masks(state)
    assert masks["embedding"]["table"].shape == () and masks["conv"]["kernel"].shape == ()
    kernels = [params[name]["kernel"] for name in ["conv", "fc1", "fc2"]]
    active = sum(int((np.asarray(kernel) != 0).sum()) for kernel in kernels)
    assert abs(active / sum(kernel.size for kernel in kernels) - 0.2) < 0.01
    if method == "srigl":
        fan_ins = np.asarray(masks["fc1"]["kernel"]).sum(0)
        assert len(set(fan_ins[fan_ins > 0])) == 1


def test_a_state_goes_on_where_it_stopped():
    def start():
        return srigl.jax.sparsify(
            model(),
            optax.sgd(0.05, momentum=0.9),
            0.8,
            method="set",
            end_step=60,
            delta_t=5,
            grad_accumulation=2,
            seed=2,
        )

    params, optimizer = start()
    whole, _, _ = train(params, optimizer, 24)
    params, optimizer = start()
    params, state, _ = train(params, optimizer, 13)
    saved = jax.tree.map(np.asarray, (params, state))
    _, optimizer = start()
    parts, _, _ = train(saved[0], optimizer, 11, saved[1], 13)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), whole, parts)))


def test_updates_are_those_of_the_core():
    params, optimizer = srigl.jax.sparsify(
        model(),
        optax.sgd(0.0),
        0.8,
        method="srigl",
        gamma_sal=0.5,
        end_step=9,
        delta_t=1,
        seed=1,
        include=["fc*"],
        distribution="uniform",
    )
    state = optimizer.init(params)
    grads = jax.tree.map(
        lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).normal(size=leaf.shape), jnp.float32), params
    )
    _, after = optimizer.update(grads, state, params)
    rows = lambda tree, name: np.asarray(tree[name]["kernel"]).T  # noqa: E731
    specs = [srigl.core.LayerSpec(name, rows(params, name).shape) for name in ["fc1", "fc2"]]
    sparsities = srigl.core.layer_sparsities(specs, 0.8, distribution="uniform")
    method, schedule = srigl.core.Method("srigl", gamma_sal=0.5), srigl.core.UpdateSchedule(9, delta_t=1)
    layers = [
        srigl.core.Layer(name, rows(params, name), rows(grads, name), rows(state.masks, name), sparsity, name != "fc2")
        for name, sparsity in zip(["fc1", "fc2"], sparsities)
    ]
    updates = srigl.core.update_topology(method, layers, drop_fraction=schedule.drop_fraction_at(1), seed=1, step=1)
    for name, update in zip(["fc1", "fc2"], updates):
        assert np.array_equal(rows(after.masks, name), update.mask)


@pytest.mark.parametrize("kind", ["masked", "multi", "adafactor", "plateau", "dense"])
def test_optimizers_of_other_kinds(kind):
    labels = lambda tree: jax.tree.map(lambda leaf: "w" if leaf.ndim > 1 else "b", tree)  # noqa: E731
    optimizer = {
        "masked": lambda: optax.chain(
            optax.masked(optax.trace(0.9), lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
            optax.scale(-0.01),
        ),
        "multi": lambda: optax.multi_transform({"w": optax.adam(1e-3), "b": optax.sgd(1e-2)}, labels),
        "adafactor": lambda: optax.adafactor(1e-3),
        "plateau": lambda: optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau()),
        "dense": lambda: optax.adam(1e-3),
    }[kind]()
    method = {"method": "dense"} if kind == "dense" else {"method": "rigl", "sparsity": 0.8}
    params, optimizer = srigl.jax.sparsify(model(), optimizer, end_step=2**40, delta_t=2, **method)
    state = optimizer.init(params)
    extra = {"value": 1.0} if kind == "plateau" else {}
    for i in range(4):
        grads = jax.tree.map(
            lambda leaf: jnp.asarray(np.random.default_rng(i).normal(size=leaf.shape), jnp.float32), params
        )
        updates, state = jax.jit(optimizer.update)(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
    mask = np.broadcast_to(np.asarray(srigl.jax.masks(state)["fc1"]["kernel"]), (288, 24))
    assert (np.asarray(params["fc1"]["kernel"])[~mask] == 0).all() and mask.all() == (kind == "dense")
    if kind in ("masked", "multi"):
        held = [leaf for leaf in jax.tree.leaves(state.inner) if jnp.shape(leaf) == mask.shape]
        assert held and all((np.asarray(leaf)[~mask] == 0).all() for leaf in held)


def test_moments_belong_to_one_parameter():
    params = {"a": {"kernel": jnp.ones((16, 16))}, "kernel": jnp.ones((16, 16)), "z": {"kernel": jnp.ones((16, 8))}}
    params, optimizer = srigl.jax.sparsify(params, optax.adam(1e-3), 0.7, method="set", end_step=20, delta_t=2)
    state = optimizer.init(params)
    for i in range(2):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        before, params = params, optax.apply_updates(params, updates)
    kept = np.asarray(srigl.jax.masks(state)["a"]["kernel"]) & (np.asarray(before["a"]["kernel"]) != 0)
    assert kept.any() and (np.asarray(state.inner[0].mu["a"]["kernel"])[kept] != 0).all()


def test_what_does_not_fit_is_refused():
    for call, message in [
        (lambda: srigl.jax.sparsify(model(), optax.sgd(0.1), method="sr-ste", end_step=9), "not there for JAX"),
        (
            lambda: srigl.jax.sparsify(model(), optax.sgd(0.1), 0.8, end_step=9, exclude=["fc3"]),
            "`fc3` matches no layer",
        ),
        (lambda: srigl.jax.sparsify({"b": jnp.ones(3)}, optax.sgd(0.1), 0.8, end_step=9), "no parameter is left"),
    ]:
        with pytest.raises(srigl.Error, match=message):
            call()
    params, optimizer = srigl.jax.sparsify(model(), optax.sgd(0.1), 0.8, end_step=9)
    with pytest.raises(srigl.Error, match="needs the parameters"):
        optimizer.update(params, optimizer.init(params))
