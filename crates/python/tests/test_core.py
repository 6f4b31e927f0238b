"""`srigl.core` against the authors' code, the command `srigl`, and its own promises."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import srigl
from safetensors.numpy import load_file, save_file
from srigl import core


def cases(folder):
    return sorted(folder.glob("*.json"))


def test_single_updates_match_the_authors_code(golden):
    assert len(cases(golden)) == 11
    for path in cases(golden):
        settings = json.loads(path.read_text())
        given, want = load_file(path.with_suffix(".in.safetensors")), load_file(path.with_suffix(".want.safetensors"))
        names = sorted(name.removesuffix(".mask") for name in want if name.endswith(".mask"))
        gamma = {"gamma_sal": settings.get("gamma_sal", 0.0)} if settings["method"] == "srigl" else {}
        method = core.Method(settings["method"], **gamma)
        spared = settings.get("no_ablate", [])
        layers = [
            core.Layer(
                name,
                given[f"{name}.weight"],
                given[f"{name}.grad"],
                given[f"{name}.mask"],
                settings["sparsity"],
                name not in spared,
            )
            for name in names
        ]
        updates = core.update_topology(method, layers, drop_fraction=settings["drop_fraction"])
        for name, update in zip(names, updates):
            assert np.array_equal(update.mask, want[f"{name}.mask"] != 0), (path.name, name)
            before = given[f"{name}.mask"] != 0
            weight = given[f"{name}.weight"] * before * update.mask
            assert np.array_equal(weight, want[f"{name}.weight"]), (path.name, name)


ALL = [name for name in core.methods() if name not in ("dense", "sr-ste", "snip")]


@pytest.mark.parametrize("name", ALL)
def test_masks_are_those_of_the_command(name, srigl_command, tmp_path):
    rng = np.random.default_rng(3)
    shapes = {"a": (24, 40), "b": (16, 24, 3, 3), "c": (10, 16)}
    tensors = {f"{key}.weight": rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    init = tmp_path / "init.safetensors"
    srigl_command(
        *("mask", "init", tmp_path / "model.safetensors", "-o", init, "--method", name),
        *("--sparsity", 0.8, "--seed", 7),
        *([] if "magnitude" in name or name == "gmp" else ["--initial-mask", "random"]),
    )
    method = core.Method(name)
    specs = [core.LayerSpec(key, shape) for key, shape in shapes.items()]
    weights = [tensors[f"{key}.weight"] for key in shapes]
    initial = "random" if "magnitude" not in name else name
    sparsities, masks = core.initial_masks(
        method, specs, 0.8, seed=7, weights=None if initial == "random" else weights, initial_mask=initial
    )
    started = load_file(init)
    for key, mask in zip(shapes, masks):
        assert np.array_equal(mask, started[f"{key}.mask"] != 0), key

    grads = {f"{key}.grad": rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    save_file({**started, **grads}, tmp_path / "now.safetensors")
    srigl_command(
        *("mask", "step", tmp_path / "now.safetensors", "-o", tmp_path / "next.safetensors", "--method", name),
        *("--sparsity", 0.8, "--drop-fraction", 0.3, "--seed", 7, "--step", 100, "--no-ablate", "c"),
    )
    stepped = load_file(tmp_path / "next.safetensors")
    layers = [
        core.Layer(key, started[f"{key}.weight"], grads[f"{key}.grad"], started[f"{key}.mask"], sparsity, key != "c")
        for key, sparsity in zip(shapes, core.layer_sparsities(specs, 0.8))
    ]
    updates = core.update_topology(method, layers, drop_fraction=0.3, seed=7, step=100)
    for key, update in zip(shapes, updates):
        assert np.array_equal(update.mask, stepped[f"{key}.mask"] != 0), key


def test_arrays_of_any_kind_give_the_same_masks():
    jax = pytest.importorskip("jax")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    weights, grads = rng.normal(size=(2, 8, 16)).astype(np.float32)
    mask = core.initial_masks(core.Method("rigl"), [("fc", (8, 16))], 0.75)[1][0]

    def updated(convert):
        layer = core.Layer("fc", convert(weights), convert(grads), convert(mask), 0.75)
        return core.update_layer(core.Method("rigl"), layer, drop_fraction=0.5).mask

    expected = updated(lambda x: x)
    assert not np.array_equal(expected, mask)
    for convert in [
        lambda x: x.tolist(),
        lambda x: x.astype(np.float64) if x.dtype != bool else x.astype(np.uint8),
        np.asfortranarray,
        torch.tensor,
        lambda x: torch.tensor(x, dtype=torch.float32, requires_grad=x.dtype != bool),
        lambda x: torch.tensor(x).t().contiguous().t(),
        jax.numpy.asarray,
    ]:
        assert np.array_equal(updated(convert), expected)
    # Not copied on the way.
    from srigl._arrays import floats

    tensor = torch.zeros(8, 16)
    assert floats(tensor, "x").__array_interface__["data"][0] == tensor.data_ptr()


def test_what_does_not_fit_is_refused_by_name():
    method = core.Method("rigl")
    full = np.ones((2, 3))
    layer = core.Layer("fc1", full, full, full, 0.5)
    for wrong, message in [
        (layer._replace(weights=np.full((2, 3), np.nan)), "layer `fc1`: weight is NaN at neuron 0"),
        (layer._replace(grads=np.full((2, 3), np.inf)), "layer `fc1`: gradient is inf"),
        (layer._replace(grads=np.ones((2, 2))), "layer `fc1`: grads \\[2, 2\\] do not fit \\[2, 3\\]"),
        (layer._replace(grads=None), "layer `fc1`: method `rigl` looks at gradients"),
        (layer._replace(mask=np.full((2, 3), 0.5)), "booleans, or numbers 0 and 1"),
        (layer._replace(mask=np.ones(6)), "is not a weight"),
        (layer._replace(weights=np.array([["a"] * 3] * 2)), "array of numbers"),
        (layer._replace(sparsity=1.5), "sparsity 1.5 is outside"),
    ]:
        with pytest.raises(srigl.Error, match=message):
            core.update_layer(method, wrong, drop_fraction=0.3)
    for call, message in [
        (lambda: core.Method("magic"), "no method `magic`; known are dense"),
        (lambda: core.Method("srigl", gamma_sal=-1.0), "gamma_sal is -1"),
        (lambda: core.Method("rigl", gamma_sal=0.3), "has no setting `gamma_sal`"),
        (lambda: core.layer_sparsities([("fc", (2, 3))], 1.5), "outside"),
        (lambda: core.layer_sparsities([("fc", (2,))], 0.5), "is not a weight"),
        (
            lambda: core.layer_sparsities([("fc", (2, 3))], 0.5, distribution="odd"),
            "no distribution `odd`; known are erk",
        ),
        (lambda: core.initial_masks(method, [("fc", (2, 3))], 0.5, initial_mask="magnitude"), "need weights"),
        (lambda: core.initial_weights([[1, 0]], "keep"), "no weights to keep"),
        (lambda: core.UpdateSchedule(10, drop_fraction=2.0), "drop_fraction is 2"),
        (lambda: core.initial_masks(method, [("fc", (2, 3))], 0.5, seed=-1), "seed is -1"),
        (lambda: core.initial_masks(3, [("fc", (2, 3))], 0.5), "a method is a name"),
        (lambda: core.initial_weights(full, weights=full.T, init="keep"), "weights \\[3, 2\\] do not fit \\[2, 3\\]"),
    ]:
        with pytest.raises(srigl.Error, match=message):
            call()
    assert issubclass(srigl.Error, ValueError)


def test_custom_methods_start_and_change_as_they_say():
    class Rotating(core.CustomMethod):
        constant_fan_in = True

        def update(self, weights, grads, mask, *, sparsity, drop_fraction, ablate, rng):
            assert weights.shape == grads.shape == mask.shape == (4, 6)
            return np.roll(mask, rng.integers(1, 3), axis=1)

    method = Rotating()
    sparsities, [mask] = core.initial_masks(method, [("fc", (4, 2, 3))], 0.5, seed=1)
    assert sparsities == [0.5] and mask.shape == (4, 2, 3) and (mask.reshape(4, -1).sum(1) == 3).all()
    layer = core.Layer("fc", np.ones((4, 2, 3)), np.ones((4, 2, 3)), mask, 0.5)
    first = core.update_layer(method, layer, drop_fraction=0.3, seed=1, step=5)
    assert first.mask.shape == mask.shape and not np.array_equal(first.mask, mask)
    assert first.report["grown"] == first.report["pruned"] > 0
    again = core.update_layer(method, layer, drop_fraction=0.3, seed=1, step=5)
    assert np.array_equal(first.mask, again.mask)

    class Wrong(core.CustomMethod):
        def update(self, weights, grads, mask, **_):
            return np.ones((1, 1))

    class Writing(core.CustomMethod):
        def update(self, weights, grads, mask, **_):
            mask[:] = True
            return mask

    with pytest.raises(ValueError, match="read-only"):
        core.update_layer(Writing(), layer, drop_fraction=0.3)
    with pytest.raises(srigl.Error, match="layer `fc`: method `custom` made a mask"):
        core.update_layer(Wrong(), layer, drop_fraction=0.3)
    with pytest.raises(srigl.Error, match="a gradient is not finite"):
        core.update_layer(method, layer._replace(grads=np.full((4, 2, 3), np.nan)), drop_fraction=0.3)


def test_costs_are_the_published_rules():
    cost = core.inference_cost([((64, 3, 7, 7), 112 * 112), ((10, 64), 1)], [0.0, 0.5])
    # (147 + 1) multiplications and 147 additions for each output of the convolution, 32 of each for the classifier's.
    assert cost.flops == 64 * 112 * 112 * (147 + 1 + 147) + 10 * (32 + 32)
    assert core.training_flops(10.0, 1.0, delta_t=99, images=100.0) == 3 * 99 + 4 + 10
    assert core.itop_rate([[True, False]]) == 0.5
    stats = core.layer_stats(np.array([[1, 0, 1, 0], [1, 0, 1, 0]]))
    assert (stats["fan_in"], stats["group"], stats["nm"]) == (2, 2, "1:2")


def test_schedules_count_steps_from_one():
    schedule = core.UpdateSchedule(300, delta_t=100, grad_accumulation=2)
    assert [step for step in range(1, 401) if schedule.is_update(step)] == [100, 200]
    assert [step for step in range(1, 401) if schedule.gathers_gradient(step)] == [99, 100, 199, 200]
    assert schedule.last_update() == 200 and schedule.drop_fraction_at(0) == 0.3


def test_methods_and_schedules_can_be_pickled():
    method = core.Method("rigl", nm="2:4")
    schedule = core.UpdateSchedule(30, delta_t=5, drop_schedule="linear")
    same, again = pickle.loads(pickle.dumps((method, schedule)))
    assert same == method and [again.drop_fraction_at(t) for t in range(40)] == [
        schedule.drop_fraction_at(t) for t in range(40)
    ]


FORKING = """
import os
import numpy as np
from srigl import core

def updated():
    rng = np.random.default_rng(1)
    weights, grads = rng.normal(size=(2, 64, 128))
    mask = core.initial_masks("rigl", [("fc", (64, 128))], 0.75)[1][0]
    return core.update_layer("rigl", core.Layer("fc", weights, grads, mask, 0.75), drop_fraction=0.5).mask

expected = updated()
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(updated(), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_children_of_a_process_compute_too():
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
