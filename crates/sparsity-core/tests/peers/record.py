#!/usr/bin/env python3
"""Records reference values by running other projects' own code.

The peers' code is imported from checkouts beside this repository and is no part of it. Each file written
here holds small inputs and what the peer made of them. Nothing depends on chance: inputs come from fixed
seeds, and random growth is not recorded.

Checkouts, all in one folder, each named as on GitHub (the commit used is written into each file):

    git clone https://github.com/google-research/jaxpruner
    git clone https://github.com/NM-sparsity/NM-sparsity
    git clone https://github.com/TimDettmers/sparse_learning
    git clone https://github.com/A-Klass/torch_topkast
    git clone https://github.com/boone891214/MEST
    git clone https://github.com/mil-ad/snip

JaxPruner needs a JAX of its time, the others run on any PyTorch, so there are two environments:

    python3.11 -m venv jax && jax/bin/pip install jax==0.4.26 jaxlib==0.4.26 flax==0.8.2 optax==0.2.2 \\
        chex==0.1.86 ml_collections==0.1.1 numpy==1.26.4 scipy==1.12.0
    python3.11 -m venv torch && torch/bin/pip install torch numpy

    jax/bin/python record.py jax CHECKOUTS      # masks, schedules, nm, ste, dynamic
    torch/bin/python record.py torch CHECKOUTS  # sr_ste, snfs, top_kast, mest, snip

Files: `masks` magnitude and |weight * gradient|, per layer and over all layers; `schedules` gradual pruning and
the drop fraction; `nm` N:M masks; `ste` straight-through steps; `dynamic` one RigL or SET update; `sr_ste`
SR-STE steps; `snfs` drop, redistribution and regrowth over three layers; `top_kast` forward and backward sets;
`mest` what one mutation keeps; `snip` a mask from one batch. Each has `peer` (repository, commit) and `cases`.

Arrays are flat and row-major, [neurons, inputs] for linear layers and [out, in, kh, kw] for convolutions.
Inputs are multiples of 0.001 with different magnitudes, so no order depends on how ties are broken.
"""

import argparse
import collections.abc
import contextlib
import importlib.util
import io
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


# Common to both halves


def draw(seed, *shapes, scale=1.0):
    """Arrays with different magnitudes across all of them, multiples of 0.001 times `scale`."""
    rng = np.random.RandomState(seed)
    sizes = [int(np.prod(s)) for s in shapes]
    numbers = rng.choice(np.arange(1, 1000), sum(sizes), replace=False) / 1000
    numbers = numbers * rng.choice([-1, 1], sum(sizes)) * scale
    parts = np.split(numbers.astype(np.float32), np.cumsum(sizes)[:-1])
    return [p.reshape(s) for p, s in zip(parts, shapes)]


def random_mask(seed, shape, count):
    mask = np.zeros(int(np.prod(shape)), dtype=np.float32)
    mask[np.random.RandomState(seed).permutation(mask.size)[:count]] = 1
    return mask.reshape(shape)


def assert_clear(scores, masks):
    """What is kept must not depend on ties or rounding errors."""
    scores, masks = [np.concatenate([np.asarray(a).ravel() for a in arrays]) for arrays in (scores, masks)]
    assert scores[masks == 1].min() > scores[masks == 0].max() * (1 + 1e-5), "close to a tie"


def assert_floor_is_round(counts):
    """Peers round where this library floors: only cases in which both give the same number are recorded."""
    for count in counts:
        assert count - np.floor(count + 1e-6) < 0.45, counts


def floats(array):
    return [float(str(x)) for x in np.asarray(array, dtype=np.float32).ravel()]  # shortest that reads back the same


def bits(array):
    return [int(x) for x in np.asarray(array).ravel()]


def write(name, repository, checkout, cases, **shared):
    commit = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    content = {"peer": [{"repository": repository, "commit": commit.stdout.strip()}], **shared, "cases": cases}
    parts = []
    for key, rows in content.items():  # one row a line
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        parts.append(f'"{key}":{lines}' if key == "peer" else f'"{key}":[\n{lines}\n]')
    (HERE / f"{name}.json").write_text("{" + ",\n".join(parts) + "}\n")
    print(f"{name}.json: {len(cases)} cases")


# JaxPruner

# With these, ERK at 75 % and at 50 % (layer c stays dense) gives numbers of weights that round down.
SHAPES = {"a": (6, 16), "b": (8, 24), "c": (4, 7), "d": (10, 22)}


def kernels(arrays):
    """[neurons, inputs] to flax's tree of [inputs, neurons] kernels."""
    return {name: {"kernel": np.ascontiguousarray(a.T)} for name, a in arrays.items()}


def record_masks(jaxpruner, checkout):
    from functools import partial
    from jaxpruner import sparsity_distributions as distributions

    weight = dict(zip(SHAPES, draw(1, *SHAPES.values())))
    grad = dict(zip(SHAPES, draw(4, *SHAPES.values())))
    params, grads = kernels(weight), kernels(grad)
    cases = []

    def case(method, updater, sparsity, **settings):
        _, masks = updater.instant_sparsify(params, grads=grads)
        masks = {k: np.asarray(m["kernel"]).T for k, m in masks.items()}
        score = {k: np.abs(weight[k] * grad[k] if "saliency" in method else weight[k]) for k in SHAPES}
        if settings.get("normalised"):
            score = {k: s / np.linalg.norm(s) for k, s in score.items()}
        for group in [SHAPES] if "global" in method else [[k] for k in SHAPES if masks[k].min() == 0]:
            assert_clear([score[k] for k in group], [masks[k] for k in group])
        cases.append({"method": method, "sparsity": sparsity, **settings, "masks": [bits(masks[k]) for k in SHAPES]})

    for method, kind in [("magnitude", jaxpruner.MagnitudePruning), ("saliency", jaxpruner.SaliencyPruning)]:
        for distribution, sparsity in [("uniform", 0.75), ("erk", 0.75), ("erk", 0.5)]:
            spread = partial(getattr(distributions, distribution), sparsity=sparsity)
            each = [float(v["kernel"]) for v in spread(params).values()]
            assert_floor_is_round([(1 - s) * np.prod(shape) for s, shape in zip(each, SHAPES.values())])
            case(method, kind(sparsity_distribution_fn=spread), sparsity, distribution=distribution, sparsities=each)
    for method, kind in [("global_magnitude", jaxpruner.GlobalMagnitudePruning),
                         ("global_saliency", jaxpruner.GlobalSaliencyPruning)]:
        for normalised in [False, True]:  # divide each layer's scores by their L2 norm first
            case(method, kind(sparsity=0.75, use_normalization=normalised), 0.75, normalised=normalised)
    layers = [{"name": k, "shape": SHAPES[k], "weight": floats(weight[k]), "grad": floats(grad[k])} for k in SHAPES]
    write("masks", "google-research/jaxpruner", checkout, cases, layers=layers)


def record_schedules(jaxpruner, checkout):
    import optax

    cases = []
    for target, every, start, end in [(0.9, 10, 20, 120), (0.75, 5, 0, 40)]:
        schedule = jaxpruner.PolynomialSchedule(update_freq=every, update_start_step=start, update_end_step=end)
        steps = list(range(0, end + 21, 5)) + [start - 1 if start else 1, start + 1, end - 1]
        cases.append({
            "schedule": "polynomial", "sparsity": target, "every": every, "start": start, "end": end, "power": 3,
            "steps": steps, "values": floats([schedule.get_sparsity_at_step(target, s) for s in steps]),
            "updates": bits([schedule.is_mask_update_iter(s) for s in steps]),
        })
    drop = optax.cosine_decay_schedule(0.3, 100)
    steps = list(range(0, 121, 10))
    cases.append({"schedule": "cosine drop", "alpha": 0.3, "end": 100, "steps": steps,
                  "values": floats([drop(s) for s in steps])})
    write("schedules", "google-research/jaxpruner", checkout, cases)


def record_nm(jaxpruner, checkout):
    from functools import partial
    from jaxpruner import sparsity_distributions, sparsity_types

    nonzero = partial(sparsity_distributions.uniform, sparsity=0.5)  # any sparsity but 0 switches N:M on
    cases = []
    for seed, (n, m) in enumerate([(2, 4), (1, 4), (4, 8)]):
        (weight,) = draw(10 + seed, (8, 24))
        updater = jaxpruner.MagnitudePruning(sparsity_type=sparsity_types.NByM(n, m, axis=0),
                                             sparsity_distribution_fn=nonzero)
        _, masks = updater.instant_sparsify(kernels({"a": weight}))
        cases.append({"n": n, "m": m, "shape": weight.shape, "grouped_axis": 1, "weight": floats(weight),
                      "mask": bits(np.asarray(masks["a"]["kernel"]).T)})
    (weight,) = draw(13, (2, 8, 3, 3))
    updater = jaxpruner.MagnitudePruning(sparsity_type=sparsity_types.NByM(2, 4, axis=2),
                                         sparsity_distribution_fn=nonzero)
    _, masks = updater.instant_sparsify({"a": {"kernel": weight.transpose(2, 3, 1, 0)}})  # [kh, kw, in, out]
    cases.append({"n": 2, "m": 4, "shape": weight.shape, "grouped_axis": 1, "weight": floats(weight),
                  "mask": bits(np.asarray(masks["a"]["kernel"]).transpose(3, 2, 0, 1))})
    write("nm", "google-research/jaxpruner", checkout, cases)


def record_ste(jaxpruner, checkout):
    import jax
    import optax
    from functools import partial
    from jaxpruner import sparsity_distributions, sparsity_types

    cases = []
    kinds = [("2:4", sparsity_types.NByM(2, 4, axis=0)), ("unstructured", sparsity_types.Unstructured())]
    for seed, (name, kind) in enumerate(kinds):
        (weight,) = draw(20 + seed, (6, 16))
        x, out_grad = draw(22 + seed, (5, 16), (5, 6))
        updater = jaxpruner.SteMagnitudePruning(
            sparsity_type=kind, sparsity_distribution_fn=partial(sparsity_distributions.uniform, sparsity=0.5))
        optimizer = updater.wrap_optax(optax.sgd(0.1))
        params = kernels({"a": weight})
        state = optimizer.init(params)
        steps = []
        for _ in range(2):
            used = updater.pre_forward_update(params, state)
            output, back = jax.vjp(lambda p: x @ p["a"]["kernel"], used)
            (grads,) = back(out_grad)
            updates, state = optimizer.update(grads, state, params)
            params = updater.post_gradient_update(optax.apply_updates(params, updates), state)
            transposed = [np.asarray(t["a"]["kernel"]).T for t in (used, grads, params)]
            steps.append({"forward_weight": floats(transposed[0]), "output": floats(output),
                          "weight_grad": floats(transposed[1]), "weight_after": floats(transposed[2])})
        cases.append({"pattern": name, "sparsity": 0.5, "shape": weight.shape, "lr": 0.1, "weight": floats(weight),
                      "input": floats(x), "output_grad": floats(out_grad), "steps": steps})
    write("ste", "google-research/jaxpruner", checkout, cases)


def record_dynamic(jaxpruner, checkout):
    import jax.numpy as jnp
    import optax

    cases = []
    for seed, (method, shape, count, drop) in enumerate([
            ("rigl", (6, 16), 48, 0.25), ("rigl", (8, 24), 40, 0.3), ("set", (6, 16), 48, 0.25),
            ("set", (8, 24), 40, 0.3)]):
        mask = random_mask(30 + seed, shape, count)
        weight, grad = [draw(40 + 2 * seed + i, shape)[0] for i in range(2)]
        weight = weight * mask
        kind = {"rigl": jaxpruner.RigL, "set": jaxpruner.SET}[method]
        updater = kind(drop_fraction_fn=lambda _, drop=drop: drop, is_debug=True)
        made = []  # the update asks for two masks: what it keeps, then what it keeps and grows
        choose = updater.topk_fn
        updater.topk_fn = lambda scores, sparsity: made.append(choose(scores, sparsity)) or made[-1]
        params = kernels({"a": weight})
        state = jaxpruner.SparseState(
            masks=jax_tree(jnp.asarray, kernels({"a": mask.astype(np.uint8)})), inner_state=optax.EmptyState(),
            count=jnp.zeros([], jnp.int32))
        after = updater.update_state(state, params, kernels({"a": grad}))
        kept = np.asarray(made[0]).T
        case = {"method": method, "shape": shape, "drop_fraction": drop, "weight": floats(weight), "mask": bits(mask),
                "kept": bits(kept)}
        mask_after = np.asarray(after.masks["a"]["kernel"]).T
        assert mask_after.sum() == count and kept.sum() == count - round(count * drop)
        if method == "rigl":  # SET grows at random
            case |= {"grad": floats(grad), "mask_after": bits(mask_after)}
        cases.append(case)
    write("dynamic", "google-research/jaxpruner", checkout, cases)


def jax_tree(function, tree):
    import jax

    return jax.tree_util.tree_map(function, tree)


def record_jax(checkouts):
    checkout = checkouts / "jaxpruner"
    sys.path.insert(0, str(checkout))
    import jaxpruner

    for record in [record_masks, record_schedules, record_nm, record_ste, record_dynamic]:
        record(jaxpruner, checkout)


# PyTorch projects


def load(path, name):
    """Imports one file, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in(name, **attributes):
    """A module that a peer imports but that this script has no need of."""
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules.setdefault(name, module)


def tensor(array):
    import torch

    return torch.tensor(np.asarray(array))


def record_sr_ste(checkout):
    import torch

    stand_in("torch._six", container_abcs=collections.abc)
    ops = load(checkout / "devkit/sparse_ops/sparse_ops.py", "sparse_ops")
    cases = []
    for seed, (n, m, updates) in enumerate([(2, 4, 5), (1, 4, 2)]):
        (weight,) = draw(50 + seed, (6, 16))
        x, out_grad = draw(52 + seed, (5, 16), (5, 6))
        layer = ops.SparseLinear(16, 6, bias=False, N=n, M=m)
        layer.weight.data = tensor(weight)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        steps = []
        for _ in range(updates):
            optimizer.zero_grad()
            used, inputs = layer.get_sparse_weights().detach(), tensor(x).requires_grad_()
            output = layer(inputs)
            output.backward(tensor(out_grad))
            step = {"mask": bits(used != 0)}
            if not steps:
                step |= {"output": floats(output.detach()), "weight_grad": floats(layer.weight.grad),
                         "input_grad": floats(inputs.grad)}
            optimizer.step()
            steps.append(step | {"weight_after": floats(layer.weight.detach())})
        cases.append({"layer": "linear", "n": n, "m": m, "decay": 2e-4, "shape": weight.shape, "lr": 0.1,
                      "momentum": 0.9, "weight_decay": 1e-4, "weight": floats(weight), "input": floats(x),
                      "output_grad": floats(out_grad), "steps": steps})
    (weight,) = draw(54, (2, 8, 3, 3))
    (out_grad,) = draw(55, (2, 8, 3, 3))  # gradient of the loss by the projected weights
    layer = ops.SparseConv(8, 2, 3, bias=False, N=2, M=4)
    layer.weight.data = tensor(weight)
    used = layer.get_sparse_weights()
    used.backward(tensor(out_grad))
    cases.append({"layer": "convolution", "n": 2, "m": 4, "decay": 2e-4, "shape": weight.shape,
                  "weight": floats(weight), "projected_grad": floats(out_grad), "mask": bits(used.detach() != 0),
                  "weight_grad": floats(layer.weight.grad)})
    write("sr_ste", "NM-sparsity/NM-sparsity", checkout, cases)


def record_snfs(checkout):
    import torch

    stand_in("matplotlib", pyplot=None)
    sys.path.insert(0, str(checkout))
    from sparselearning.core import CosineDecay, Masking

    shapes = {"a": (8, 12), "b": (6, 8), "c": (4, 8)}
    every = {"a": 24, "b": 12, "c": 8}
    # Scale of each layer's momentum, active weights, prune rate and how many updates follow each other.
    settings = {
        "plain": ((1, 1, 1), every, 0.5, 1),
        "shares differ": ((0.2, 0.5, 1), every, 0.3, 1),
        "a layer is full": ((0.1, 0.1, 5), every, 0.8, 1),
        "a dense layer grows": ((0.3, 0.3, 1), {"a": 24, "b": 12, "c": 28}, 0.5, 1),
        "three updates": ((0.5, 1, 0.7), every, 0.4, 3),
    }
    cases = []
    for seed, (name, (scales, counts, rate, updates)) in enumerate(settings.items()):
        model = torch.nn.ModuleDict({k: torch.nn.Linear(s[1], s[0], bias=False) for k, s in shapes.items()})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        masking = Masking(optimizer, CosineDecay(rate, 100), prune_rate=rate)
        masking.add_module(model, density=0.25)
        for k, shape in shapes.items():
            masking.masks[f"{k}.weight"] = tensor(random_mask(60 + 10 * seed + ord(k), shape, counts[k]))
        masking.baseline_nonzero = sum(counts.values())
        regrowth = []
        share = masking.calc_growth_redistribution
        masking.calc_growth_redistribution = lambda: regrowth.append(share()) or regrowth[-1]
        steps = []
        for update in range(updates):
            weights = draw(700 + 10 * seed + update, *shapes.values())
            momenta = draw(800 + 10 * seed + update, *shapes.values())
            layers = []
            for k, weight, momentum, scale in zip(shapes, weights, momenta, scales):
                mask = masking.masks[f"{k}.weight"]
                momentum = np.round(momentum * np.float32(scale), 6)
                parameter = model[k].weight
                parameter.data = tensor(weight) * mask
                optimizer.state[parameter]["momentum_buffer"] = tensor(momentum)
                layers.append({"name": k, "shape": shapes[k], "weight": floats(parameter.data),
                               "momentum": floats(momentum), "mask": bits(mask)})
            adjusted = masking.adjusted_growth
            masking.truncate_weights()
            for layer in layers:
                key = f"{layer['name']}.weight"
                raw = masking.name2variance[key] * (masking.total_removed + adjusted)
                assert abs(raw - round(raw)) > 1e-4, "the ceiling must not depend on rounding errors"
                layer |= {"share": masking.name2variance[key], "removed": masking.name2removed[key],
                          "prune_rate": masking.name2prune_rate[key], "regrowth": regrowth[-1][key],
                          "mask_after": bits(masking.masks[key])}
            steps.append({"adjusted_growth": float(adjusted), "layers": layers})
        cases.append({"case": name, "prune_rate": rate, "baseline": masking.baseline_nonzero, "steps": steps})
    write("snfs", "TimDettmers/sparse_learning", checkout, cases)


def record_top_kast(checkout):
    import torch

    def spmm(index, value, m, n, matrix):  # torch_sparse's product, done densely
        return torch.zeros(m, n).index_put((index[0], index[1]), value) @ matrix

    stand_in("torch_sparse", spmm=spmm)
    sys.path.insert(0, str(checkout))
    from torch_topkast.topkast_linear import TopKastLinear
    from torch_topkast.topkast_loss import TopKastLoss

    (weight,) = draw(90, (6, 16))
    x, out_grad = draw(91, (5, 16), (5, 6))
    layer = TopKastLinear(16, 6, p_forward=0.75, p_backward=0.5)
    layer.weight, layer.active_fwd_weights = tensor(weight), None
    layer.bias.data.zero_()

    def mask_of(index):
        mask = torch.zeros(6, 16)
        mask[index] = 1
        return bits(mask)

    def on_weights(values):
        dense = torch.zeros(6, 16)
        dense[layer.indices[0], layer.indices[1]] = values
        return floats(dense)

    steps = []
    for _ in range(4):
        layer.update_active_param_set()
        step = {"weight": floats(layer.weight), "forward_mask": mask_of(layer.idx_fwd),
                "backward_mask": mask_of(layer.idx_bwd)}
        if not steps:
            penalty = TopKastLoss(torch.nn.MSELoss, torch.nn.Sequential(layer)).compute_norm_active_set()
            penalty.backward()
            step |= {"penalty": penalty.item(), "penalty_grad": on_weights(layer.active_fwd_weights.grad)}
        optimizer = torch.optim.SGD([layer.active_fwd_weights], lr=0.2)
        optimizer.zero_grad()
        output = layer(tensor(x))
        output.backward(tensor(out_grad))
        step |= {"output": floats(output.detach()), "weight_grad": on_weights(layer.active_fwd_weights.grad)}
        optimizer.step()
        layer.reset_justbwd_weights()
        steps.append(step)
    case = {"shape": weight.shape, "forward_sparsity": 0.75, "backward_sparsity": 0.5, "lr": 0.2, "input": floats(x),
            "output_grad": floats(out_grad), "steps": steps}
    write("top_kast", "A-Klass/torch_topkast", checkout, [case])


def record_mest(checkout):
    import torch

    stand_in("yaml")
    prune = load(checkout / "prune_utils/utils_pr.py", "utils_pr")
    size, shape = 96, (6, 16)
    cases = []
    # Sparsities before, after dropping and after growing: elastic mutation, then with a soft memory bound.
    for seed, (before, lower, upper) in enumerate([(72, 78, 72), (60, 72, 60)]):
        for decay in [0.0, 2.0]:
            mask = random_mask(100 + seed, shape, size - before)
            weight, grad = [draw(102 + 2 * seed + i, shape)[0] * mask for i in range(2)]
            parameter = torch.nn.Parameter(tensor(weight))
            parameter.grad = tensor(grad)
            args = argparse.Namespace(sp_admm_sparsity_type="irregular", sp_lmd=decay, sp_global_magnitude=False)
            kept, pruned = prune.weight_pruning(args, {}, "a", parameter, lower / size)
            assert_clear([np.abs(weight) + decay * np.abs(grad)], [kept])
            grown = prune.weight_growing(args, "a", pruned.numpy().copy(), lower / size, upper / size, "zero")
            assert ((grown.numpy() == 1) | (kept.numpy() == 0)).all()
            cases.append({"shape": shape, "lambda": decay, "lower_sparsity": lower / size,
                          "upper_sparsity": upper / size, "weight": floats(weight), "grad": floats(grad),
                          "mask": bits(mask), "kept": bits(kept), "grown": int(grown.sum() - kept.sum())})
    write("mest", "boone891214/MEST", checkout, cases)


def record_snip(checkout):
    import torch
    from torch import nn

    snip = load(checkout / "snip.py", "snip")
    nn.init.xavier_normal_ = lambda weight: weight  # it would draw new weights; keep ours
    shapes = {"a": (8, 16), "b": (4, 8)}
    weights = draw(110, *shapes.values())
    (x,) = draw(111, (12, 16))
    target = torch.arange(12) % 4
    cases = []
    for keep in [0.25, 0.5]:
        net = nn.Sequential(nn.Linear(16, 8, bias=False), nn.Tanh(), nn.Linear(8, 4, bias=False),
                            nn.LogSoftmax(dim=1))
        for layer, weight in zip([net[0], net[2]], weights):
            layer.weight.data = tensor(weight)
        nn.functional.nll_loss(net(tensor(x)), target).backward()
        grads = [layer.weight.grad.numpy() for layer in (net[0], net[2])]
        masks = snip.SNIP(net, keep, [(tensor(x), target)], "cpu")
        assert_clear([np.abs(w * g) for w, g in zip(weights, grads)], masks)
        layers = [{"name": k, "shape": s, "weight": floats(w), "grad": floats(g), "mask": bits(m)}
                  for (k, s), w, g, m in zip(shapes.items(), weights, grads, masks)]
        cases.append({"sparsity": 1 - keep, "layers": layers})
    write("snip", "mil-ad/snip", checkout, cases)


def record_torch(checkouts):
    import torch

    torch.Tensor.cuda = lambda self, *_, **__: self  # two peers move masks to a GPU
    torch.manual_seed(0)
    records = [(record_sr_ste, "NM-sparsity"), (record_snfs, "sparse_learning"), (record_top_kast, "torch_topkast"),
               (record_mest, "MEST"), (record_snip, "snip")]
    for record, folder in records:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            record(checkouts / folder)
        print(said.getvalue().splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("half", choices=["jax", "torch"])
    parser.add_argument("checkouts", type=Path, help="folder that holds the peers' repositories")
    arguments = parser.parse_args()
    {"jax": record_jax, "torch": record_torch}[arguments.half](arguments.checkouts)
