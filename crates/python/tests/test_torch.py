"""`srigl.torch`: two lines in a training loop of any kind."""

import copy
import os
import warnings

import numpy as np
import pytest
import srigl

torch = pytest.importorskip("torch")
import srigl.torch  # noqa: E402
from srigl import core  # noqa: E402
from torch import nn  # noqa: E402

METHODS = [name for name in core.methods() if name != "dense"]


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 24),
        nn.ReLU(),
        nn.Linear(24, 10),
    )


def batch(i, n=16):
    generator = torch.Generator().manual_seed(i)
    return torch.randn(n, 3, 12, 12, generator=generator), torch.randint(0, 10, (n,), generator=generator)


def loss_of(net, i):
    x, y = batch(i)
    return nn.functional.cross_entropy(net(x), y)


def train(net, optimizer, steps, check=lambda: None):
    for i in steps:
        optimizer.zero_grad()
        loss_of(net, i).backward()
        optimizer.step()
        check()


def closure_of(net, optimizer, i):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(net, i)
        loss.backward()
        return loss

    return closure


def sparsified(method, optimizer=None, net=None, **options):
    net = net or model()
    optimizer = optimizer or torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    if method == "snip":
        loss_of(net, 0).backward()
    options = {"end_step": 40, "delta_t": 5, "seed": 1, **options}
    sparsity = {} if method == "sr-ste" else {"sparsity": 0.8}
    return net, optimizer, srigl.torch.sparsify(net, optimizer, method=method, **sparsity, **options)


@pytest.mark.parametrize("method", METHODS)
def test_inactive_weights_and_moments_are_zero_after_each_step(method):
    net, optimizer, sparse = sparsified(method)
    lives = method in ("top-kast", "sr-ste")

    def check():
        for layer in sparse.layers:
            inactive = ~sparse.masks()[layer.parameter_name]
            assert (layer.parameter[inactive] == 0).all(), layer.name
            for moment in optimizer.state[layer.parameter].values():
                if not lives and moment.shape == layer.parameter.shape:
                    assert (moment[inactive] == 0).all(), layer.name

    train(net, optimizer, range(30), check)
    if method not in ("sr-ste", "gmp"):
        assert abs(sparse.sparsity() - 0.8) < 0.03
    changes = method not in ("static", "structured-static", "magnitude", "global-magnitude", "snip")
    assert bool(sparse.reports) == changes
    if method in ("srigl", "structured-set", "structured-static"):
        assert all(layer.stats()["fan_in"] for layer in sparse.layers)
    sparse.remove()
    train(net, optimizer, range(3))
    assert sparse.step == 30, "hooks are off"


@pytest.mark.parametrize("method", ["srigl", "set", "snfs", "mest", "gmp", "top-kast", "sr-ste"])
def test_a_state_goes_on_bit_for_bit(method):
    options = {"grad_accumulation": 2} if method == "srigl" else {}
    net, optimizer, _ = sparsified(method, **options)
    train(net, optimizer, range(23))

    half, half_optimizer, sparse = sparsified(method, **options)
    train(half, half_optimizer, range(14))
    saved = copy.deepcopy((half.state_dict(), half_optimizer.state_dict(), sparse.state_dict()))
    # Into another, that has been sparsified with another seed; and into a fresh one.
    for fresh in [False, True]:
        other, state = model(5), copy.deepcopy(saved)
        other_optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.1)
        if fresh:
            other.load_state_dict(state[0])
            other_optimizer.load_state_dict(state[1])
            sparsified(method, other_optimizer, other, state=state[2], **options)
        else:
            _, _, of_other = sparsified(method, other_optimizer, other, **{**options, "seed": 9})
            other.load_state_dict(state[0])
            other_optimizer.load_state_dict(state[1])
            of_other.load_state_dict(state[2])
        train(other, other_optimizer, range(14, 23))
        for (name, expected), got in zip(net.named_parameters(), other.parameters()):
            assert torch.equal(expected, got), (name, fresh)


def test_an_update_is_the_cores():
    net, optimizer, sparse = sparsified("srigl", gamma_sal=0.5, delta_t=4, grad_accumulation=2)
    train(net, optimizer, range(2))
    sums = {}
    for i in range(2, 4):
        optimizer.zero_grad()
        loss_of(net, i).backward()
        for layer in sparse.layers:
            sums[layer.name] = sums.get(layer.name, 0) + layer.parameter.grad.clone()
        before = {layer.name: layer.mask for layer in sparse.layers}
        # The weights that the update sees are those after the optimizer's step.
        other = copy.deepcopy(net)
        twin = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.1)
        twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for layer, (name, parameter) in zip(net.parameters(), other.named_parameters()):
            mask = next((of.mask for of in sparse.layers if of.parameter_name == name), None)
            parameter.grad = layer.grad * (1 if mask is None else torch.from_numpy(mask))
        twin.step()
        optimizer.step()
    weights = dict(other.named_parameters())
    layers = [
        core.Layer(of.name, weights[of.parameter_name], sums[of.name] / 2, before[of.name], of.sparsity, of.ablate)
        for of in sparse.layers
    ]
    alpha = core.UpdateSchedule(40, delta_t=4).drop_fraction_at(4)
    method = core.Method("srigl", gamma_sal=0.5)
    for of, update in zip(sparse.layers, core.update_topology(method, layers, drop_fraction=alpha, seed=1, step=4)):
        assert np.array_equal(of.mask, update.mask), of.name
        assert sparse.reports[of.name] == update.report


def test_first_masks_and_weights_are_those_of_the_core():
    net, _, sparse = sparsified("rigl", keep_dense=["0"])
    specs = [core.LayerSpec(of.name, tuple(of.parameter.shape), of.name == "0") for of in sparse.layers]
    sparsities, masks = core.initial_masks(core.Method("rigl"), specs, 0.8, seed=1)
    for index, (of, sparsity, mask) in enumerate(zip(sparse.layers, sparsities, masks)):
        assert of.sparsity == sparsity and np.array_equal(of.mask, mask)
        if sparsity > 0:
            weights = core.initial_weights(mask, seed=1, layer=index)
            assert np.array_equal(of.parameter.detach().numpy(), weights)
    assert sparse.masks()["0.weight"].all() and torch.equal(net[0].weight, model()[0].weight)
    assert [of.ablate for of in sparse.layers] == [True, True, True, False], "the last is taken for the classifier"


def test_weights_that_are_kept_are_the_largest():
    before = model()
    net, _, sparse = sparsified("rigl", weight_init="keep")
    for of, weight in zip(sparse.layers, [before[0], before[3], before[7], before[9]]):
        mask = torch.from_numpy(of.mask)
        assert torch.equal(of.parameter, weight.weight * mask)
        assert weight.weight[mask].abs().min() >= weight.weight[~mask].abs().max()


class Odd(nn.Module):
    """Layers of all kinds."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.other = nn.MultiheadAttention(16, 2, kdim=8, vdim=8)
        self.norm = nn.LayerNorm(16)
        self.conv1d = nn.Conv1d(16, 16, 3)
        self.up = nn.ConvTranspose1d(16, 16, 3)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.head = nn.Linear(16, 20)
        self.head.weight = self.embedding.weight


def test_layers_are_found_each_once():
    net = Odd()
    names = [found.name for found in srigl.torch.sparse_layers(net)]
    attention = ["attention.in_proj", "attention.out_proj"]
    other = ["other.q_proj", "other.k_proj", "other.v_proj", "other.out_proj"]
    assert names == [*attention, *other, "conv1d", "frozen", "first"]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparse = srigl.torch.sparsify(net, optimizer, 0.5, end_step=9, exclude=["other*"], distribution="uniform")
    assert [of.name for of in sparse.layers] == [*attention, "conv1d", "first"]
    assert set(sparse.masks()) == {
        *("attention.in_proj_weight", "attention.out_proj.weight"),
        *("conv1d.weight", "first.weight"),
    }
    assert net.second.weight.eq(0).float().mean() == 0.5
    bare = nn.Linear(8, 4)
    assert [found.name for found in srigl.torch.sparse_layers(bare)] == ["weight"]


def test_patterns_and_settings_that_fit_nothing_are_refused():
    for options, message in [
        ({"exclude": ["fc*"]}, "exclude: `fc\\*` matches no layer; there are 0, 3, 7, 9"),
        ({"keep_dense": ["*"]}, "no layer is left"),
        ({"method": "magic"}, "no method `magic`"),
        ({"gamma_sal": 2.0, "method": core.Method("rigl")}, "go with its name: gamma_sal"),
        ({"sparsity": 0.9999}, "layer"),
        ({"delta_t": 0}, "delta_t is 0"),
        ({"method": "gmp", "end_step": 3}, "becomes sparse by its updates"),
        ({"method": "snip"}, "has no gradient: run loss.backward"),
        ({"weight_init": "odd"}, "no weight init `odd`"),
        ({"sparsity": None}, "say how sparse"),
        ({"nm": "2:4"}, "the sparsity is that of 2:4"),
        ({"end_step": -1}, "end_step is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"exclude": "fc1"}, "`fc1` matches no layer"),
    ]:
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with pytest.raises(srigl.Error, match=message):
            srigl.torch.sparsify(net, optimizer, **{"sparsity": 0.8, "end_step": 40, **options})
    stranger = torch.optim.SGD(model().parameters(), lr=0.1)
    with pytest.raises(srigl.Error, match="trained by this optimizer"):
        srigl.torch.sparsify(model(), stranger, 0.8, end_step=40)
    _, _, sparse = sparsified("rigl")
    for state, message in [
        ({}, "no state"),
        ([], "no state"),
        ({**sparse.state_dict(), "method": "set"}, "of method `set`, not of `rigl`"),
        ({**sparse.state_dict(), "settings": {"group": 4.0}}, "of method `rigl` {'group': 4.0}, not of `rigl`"),
        (
            {**sparse.state_dict(), "layers": {name: {} for name in sparse.state_dict()["layers"]}},
            "layer `0`: the state lacks",
        ),
        ({**sparse.state_dict(), "layers": {}}, "of other sparse layers"),
    ]:
        with pytest.raises(srigl.Error, match=message):
            sparse.load_state_dict(state)


def test_gradients_are_masked_when_they_are_clipped():
    net, optimizer, sparse = sparsified("rigl")
    loss_of(net, 0).backward()
    for of in sparse.layers:
        assert (of.parameter.grad[~torch.from_numpy(of.mask)] == 0).all()
    # Accumulated, and set by hand.
    loss_of(net, 1).backward()
    optimizer.step()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for of in sparse.layers:
        assert (of.parameter[~torch.from_numpy(of.mask)] == 0).all()


@pytest.mark.parametrize("method", ["rigl", "top-kast", "sr-ste"])
def test_gradients_whose_numbers_share_memory(method):
    def weights(expanded):
        net, optimizer, sparse = sparsified(method)
        train(net, optimizer, range(2))
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
            if expanded:
                parameter.grad = torch.tensor(0.5).expand(parameter.shape)
        optimizer.step()
        return [of.parameter.detach() for of in sparse.layers]

    for shared, apart in zip(weights(True), weights(False)):
        assert torch.equal(shared, apart)


def test_gradients_that_are_not_finite_do_not_leak():
    net, optimizer, sparse = sparsified("rigl")
    for of in sparse.layers:
        inactive = ~torch.from_numpy(of.mask)
        of.parameter.register_hook(lambda grad, inactive=inactive: grad.masked_fill(inactive, float("nan")))
    train(net, optimizer, range(3))
    assert all(of.parameter.isfinite().all() for of in sparse.layers)


def test_closures_and_accumulated_gradients():
    net, optimizer, sparse = sparsified("rigl")
    other, other_optimizer, _ = sparsified("rigl")
    for i in range(8):
        optimizer.step(closure_of(net, optimizer, i))
        other_optimizer.zero_grad()
        for _ in range(2):
            (loss_of(other, i) / 2).backward()
        other_optimizer.step()
    for a, b in zip(net.parameters(), other.parameters()):
        assert torch.allclose(a, b, atol=1e-4)
    net, optimizer, _ = sparsified("rigl", torch.optim.LBFGS((net := model()).parameters()), net)
    with pytest.raises(srigl.Error, match="LBFGS"):
        optimizer.step(lambda: loss_of(net, 0))


def test_mixed_precision_skips_what_the_scaler_skips():
    net, optimizer, sparse = sparsified("rigl")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i in range(12):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(net, i)
        loss = loss * float("inf") if i == 4 else loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert sparse.step == 11 and sparse.reports
    for of in sparse.layers:
        assert (of.parameter[~torch.from_numpy(of.mask)] == 0).all() and of.parameter.isfinite().all()


@pytest.mark.parametrize("method", ["rigl", "snfs"])
def test_a_layer_with_nan_keeps_its_mask_and_says_so_once(method):
    net, optimizer, sparse = sparsified(method, delta_t=1)
    before = sparse.layers[0].mask
    with pytest.warns(RuntimeWarning, match="step 1: layer `0`: gradient is NaN.*keeps its mask") as told:
        for i in range(2):
            optimizer.zero_grad()
            loss_of(net, i).backward()
            net[0].weight.grad[0, 0, 0, 0] = float("nan")
            optimizer.step()
    # SNFS moves weights between layers: all of them keep their masks.
    assert len(told) == (4 if method == "snfs" else 1)
    assert np.array_equal(sparse.layers[0].mask, before)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_optimizers_that_mix_positions_revive_nothing():
    net = nn.Sequential(nn.Linear(12, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
    optimizer = torch.optim.Muon(net.parameters(), lr=0.1)
    sparse = srigl.torch.sparsify(net, optimizer, 0.5, end_step=9, delta_t=2)
    for _ in range(6):
        optimizer.zero_grad()
        net(torch.randn(8, 12)).square().mean().backward()
        optimizer.step()
        for of in sparse.layers:
            assert (of.parameter[~torch.from_numpy(of.mask)] == 0).all()


def test_weights_that_somebody_writes_are_masked_in_the_next_step():
    net, optimizer, sparse = sparsified("static")
    train(net, optimizer, range(2))
    net.load_state_dict(model(3).state_dict())
    train(net, optimizer, range(1))
    for of in sparse.layers:
        assert (of.parameter[~torch.from_numpy(of.mask)] == 0).all()


def masked(sparse):
    return all((of.parameter[~torch.from_numpy(of.mask)] == 0).all() for of in sparse.layers)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)])
def test_moments_of_a_dense_training_revive_nothing(optimizer):
    net = model()
    optimizer = optimizer(net.parameters(), lr=1e-3)
    train(net, optimizer, range(5))
    _, _, sparse = sparsified("static", optimizer, net, weight_init="keep")
    before = copy.deepcopy(optimizer.state_dict())
    train(net, optimizer, range(5), lambda: masked(sparse) or pytest.fail("revived"))
    optimizer.load_state_dict(before)
    train(net, optimizer, range(5), lambda: masked(sparse) or pytest.fail("revived"))
    for of in sparse.layers:
        for moment in optimizer.state[of.parameter].values():
            assert moment.shape != of.parameter.shape or (moment[~torch.from_numpy(of.mask)] == 0).all()


def test_writes_past_autograd_are_masked():
    net, optimizer, sparse = sparsified("static")
    train(net, optimizer, range(2))
    vector = nn.utils.parameters_to_vector(model(3).parameters())
    nn.utils.vector_to_parameters(vector.detach(), net.parameters())
    train(net, optimizer, range(1))
    assert masked(sparse)


class Around(torch.optim.SGD):
    """Calls the step of another, and adds noise."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(torch.randn_like(parameter), alpha=1e-3)
        return loss


@pytest.mark.parametrize("with_closure", [False, True])
def test_an_optimizer_around_another_counts_each_step_once(with_closure):
    net = model()
    optimizer = Around(net.parameters(), lr=0.01)
    _, _, sparse = sparsified("rigl", optimizer, net)
    for i in range(11):
        closure = closure_of(net, optimizer, i)
        if with_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        assert masked(sparse) and sparse.step == i + 1
    assert len(sparse.reports) == 4


class Failing(torch.optim.SGD):
    """Fails once, in the middle of a step."""

    fails = False

    def step(self, closure=None):
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        return super().step(closure)


@pytest.mark.parametrize("method", ["rigl", "snfs", "top-kast", "sr-ste", "gmp"])
def test_a_step_that_failed_is_no_step(method):
    def start():
        net = model()
        return sparsified(method, Failing(net.parameters(), lr=0.01, momentum=0.9), net, delta_t=3)

    net, optimizer, sparse = start()
    train(net, optimizer, range(10))
    other, other_optimizer, other_sparse = start()
    train(other, other_optimizer, range(5))
    for i in [5, 6]:
        # The batch of a step, that fails after the update's gradient has been looked at, and again.
        other_optimizer.fails = True
        with pytest.raises(RuntimeError, match="out of memory"):
            train(other, other_optimizer, [i])
        train(other, other_optimizer, [i], lambda: masked(other_sparse) or pytest.fail("revived"))
    train(other, other_optimizer, range(7, 10))
    assert other_sparse.step == sparse.step == 10
    # Where inactive weights live, the first gradient after a failure is that of all: nobody tells that a step has failed.
    if method not in ("top-kast", "sr-ste"):
        for (name, expected), got in zip(net.named_parameters(), other.parameters()):
            assert torch.allclose(expected, got, atol=1e-6), name


class Sam(torch.optim.Optimizer):
    """Computes gradients twice in a step, around another optimizer."""

    def __init__(self, params, base):
        self.base_optimizer = base
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            closure()
        moved = []
        for group in self.param_groups:
            for parameter in group["params"]:
                moved.append((parameter, parameter.grad * 1e-3))
                parameter.add_(moved[-1][1])
        with torch.enable_grad():
            loss = closure()
        for parameter, by in moved:
            parameter.sub_(by)
        self.base_optimizer.step()
        return loss


class Lookahead(torch.optim.Optimizer):
    """Writes to the weights now and then, around another optimizer."""

    def __init__(self, params, base):
        self.optimizer, self.count = base, 0
        super().__init__(params, {})
        self.slow = [parameter.detach().clone() for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        self.count += 1
        if self.count % 3 == 0:
            parameters = [parameter for group in self.param_groups for parameter in group["params"]]
            for slow, parameter in zip(self.slow, parameters):
                slow.lerp_(parameter, 0.5)
                parameter.data.copy_(slow)
        return loss


@pytest.mark.parametrize("kind", [Sam, Lookahead])
@pytest.mark.parametrize("method", ["rigl", "set", "top-kast"])
def test_optimizers_around_others(kind, method):
    net = model()
    base = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    optimizer = kind(net.parameters(), base)
    _, _, sparse = sparsified(method, optimizer, net, delta_t=2)
    for i in range(7):
        optimizer.step(closure_of(net, optimizer, i))
        assert masked(sparse) and sparse.step == i + 1
    assert len(sparse.reports) == 4
    for of in sparse.layers:
        moments = base.state[of.parameter]["momentum_buffer"]
        assert method == "top-kast" or (moments[~torch.from_numpy(of.mask)] == 0).all()
        if method == "top-kast":
            assert of._hidden.abs().max() > 0.01, "hidden weights live"


@pytest.mark.parametrize("method", ["rigl", "snfs"])
def test_fused_optimizers_leave_scaling_to_us(method):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, fused=True)
    _, _, sparse = sparsified(method, optimizer, net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i in range(7):
        optimizer.zero_grad()
        loss = loss_of(net, i)
        loss = loss * float("inf") if i == 2 else loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert sparse.step == 6 and len(sparse.reports) == 4 and masked(sparse)
    if method == "snfs":
        assert all(of._gathered.abs().max() < 100 for of in sparse.layers)


def test_a_model_is_made_sparse_once():
    net, optimizer, sparse = sparsified("static")
    with pytest.raises(srigl.Error, match="layer `0` is sparse already: call remove"):
        sparsified("static", optimizer, net)
    sparse.remove()
    sparsified("static", optimizer, net)
    sparse.remove()
    with pytest.raises(srigl.Error, match="is sparse already"):
        sparsified("static", optimizer, net)
    sparsified("static", None, copy.deepcopy(net))


def test_computed_weights_are_named():
    net = model()
    nn.utils.parametrizations.spectral_norm(net[7])
    with pytest.warns(RuntimeWarning, match="the weights of 7 are computed from other parameters"):
        _, _, sparse = sparsified("static", None, net)
    assert [of.name for of in sparse.layers] == ["0", "3", "9"]
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)))
    with pytest.raises(srigl.Error, match="the weights of 0 are computed"):
        sparsified("static", None, net)


def test_a_state_is_of_the_weights():
    net, optimizer, sparse = sparsified("rigl")
    train(net, optimizer, range(3))
    other = model()
    with pytest.raises(srigl.Error, match="layer `0` has weights where the state's mask has none"):
        sparsified("rigl", None, other, state=sparse.state_dict())
    sparsified("rigl", None, other)


def test_layers_frozen_later_keep_their_masks():
    net, optimizer, sparse = sparsified("set")
    net[3].requires_grad_(False)
    before = [of.mask for of in sparse.layers]
    train(net, optimizer, range(6))
    assert [np.array_equal(of.mask, mask) for of, mask in zip(sparse.layers, before)] == [False, True, False, False]


def test_kept_weights_keep_their_bits():
    net = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4)).double()
    before = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparse = srigl.torch.sparsify(net, optimizer, 0.5, end_step=9.0, weight_init="keep")
    for of, layer in zip(sparse.layers, before):
        assert torch.equal(of.parameter, layer.weight * torch.from_numpy(of.mask))


def test_dense_training_is_dense():
    net, optimizer = model(), None
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparse = srigl.torch.sparsify(net, optimizer, method="dense", end_step=9)
    assert sparse.sparsity() == 0.0 and sparse.masks() == {}


def test_compiled_models_train_alike():
    net, optimizer, _ = sparsified("srigl")
    train(net, optimizer, range(7))
    plain, other_optimizer, sparse = sparsified("srigl")
    compiled = torch.compile(plain, backend="aot_eager")
    train(compiled, other_optimizer, range(7))
    for a, b in zip(net.parameters(), plain.parameters()):
        assert torch.allclose(a, b, atol=1e-5)
    # Also when it was compiled before.
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparse = srigl.torch.sparsify(torch.compile(net, backend="aot_eager"), optimizer, 0.8, end_step=9)
    assert sparse.layers[0].name == "0"


def test_half_precision_models():
    net = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4)).to(torch.bfloat16)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    sparse = srigl.torch.sparsify(net, optimizer, 0.5, end_step=9, delta_t=2, method="rigl")
    for _ in range(5):
        optimizer.zero_grad()
        net(torch.randn(4, 16, dtype=torch.bfloat16)).square().mean().backward()
        optimizer.step()
    assert abs(sparse.sparsity() - 0.5) < 0.02 and net[0].weight.dtype == torch.bfloat16
    for of in sparse.layers:
        assert (of.parameter[~torch.from_numpy(of.mask)] == 0).all()


def test_custom_methods_train():
    class Rotating(core.CustomMethod):
        def update(self, weights, grads, mask, *, rng, **_):
            return np.roll(mask, 1, axis=1)

    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    sparse = srigl.torch.sparsify(net, optimizer, 0.8, method=Rotating(), end_step=9, delta_t=2)
    before = sparse.layers[0].mask.reshape(8, -1)
    train(net, optimizer, range(3))
    assert np.array_equal(sparse.layers[0].mask.reshape(8, -1), np.roll(before, 1, axis=1))


def _rank(rank, folder, method):
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    # Different weights on each rank, by which masks would differ.
    net = model(rank)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    kept = {"weight_init": "keep"} if method == "srigl" else {}
    sparse = srigl.torch.sparsify(net, optimizer, 0.8, method=method, end_step=40, delta_t=3, seed=4, **kept)
    parallel = nn.parallel.DistributedDataParallel(net)
    for i in range(8):
        optimizer.zero_grad()
        loss_of(parallel, 2 * i + rank).backward()
        optimizer.step()
    torch.save((sparse.masks(), net.state_dict()), os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["srigl", "set"])
def test_ranks_have_the_same_masks(method, tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path), method), nprocs=2)
    (masks, weights), (other, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(masks[name], other[name]) for name in masks)
    for name, weight in weights.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(weight, others[name]), name
            if name in masks:
                assert (weight[~masks[name]] == 0).all()


def test_transformers_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from srigl.transformers import SparsityCallback

    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=20, n_positions=8)
    data = [{"input_ids": torch.randint(0, 20, (8,)), "labels": torch.randint(0, 20, (8,))} for _ in range(32)]

    def trainer(callback, steps, folder=tmp_path):
        torch.manual_seed(0)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=4,
            save_steps=4,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            lr_scheduler_type="constant",
        )
        return transformers.Trainer(
            transformers.GPT2LMHeadModel(config), arguments, train_dataset=data, callbacks=[callback]
        )

    callback = SparsityCallback(0.5, delta_t=2, end_step=20)
    trainer(callback, 4).train()
    sparse = callback.sparse
    assert [of.name.split(".")[-1] for of in sparse.layers] == ["c_attn", "c_proj", "c_fc", "c_proj"]
    assert sparse.layers[0].mask.shape == (48, 16) and sparse.step == 4 and sparse.reports
    for of in sparse.layers:
        assert (of.parameter.T[~torch.from_numpy(of.mask)] == 0).all()
    # Goes on from the checkpoint with its masks.
    callback = SparsityCallback(0.5, delta_t=100, end_step=200)
    trainer(callback, 6).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert callback.sparse.step == 6
    for of, other in zip(sparse.layers, callback.sparse.layers):
        assert np.array_equal(of.mask, other.mask)
        assert (other.parameter.T[~torch.from_numpy(of.mask)] == 0).all() and other.parameter.abs().sum() > 0
    # A second training goes on with the model's weights and masks; a checkpoint from elsewhere needs its masks.
    before = copy.deepcopy(callback.sparse.layers[0].mask)
    with pytest.raises(srigl.Error, match="have no srigl.pt"):
        trainer(SparsityCallback(0.5, end_step=200), 6, tmp_path / "c").train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-4")
        )
    saved = torch.load(tmp_path / "checkpoint-4" / "srigl.pt")
    callback = SparsityCallback(0.5, delta_t=100, end_step=200, state=saved)
    of = trainer(callback, 6, tmp_path / "d")
    of.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert np.array_equal(callback.sparse.layers[0].mask, before)
    weight = callback.sparse.layers[0].parameter.detach().clone()
    of.args.max_steps, of.args.learning_rate = 2, 0.0
    of.train()
    assert callback.sparse.step == 2 and np.array_equal(callback.sparse.layers[0].mask, before)
    assert torch.equal((callback.sparse.layers[0].parameter != 0), weight != 0)


def test_lightning_trainer(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from srigl.lightning import SparsityCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model()

        def training_step(self, of, _):
            x, y = of
            return nn.functional.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    x, y = batch(0, 64)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)

    def fit(steps, path=None, **options):
        callback = SparsityCallback(0.8, method="rigl", delta_t=2, **options)
        module = Module()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(
            max_steps=steps, callbacks=[callback], accelerator="cpu", default_root_dir=tmp_path, **quiet
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, loader, ckpt_path=path)
        trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
        for of in callback.sparse.layers:
            assert (of.parameter[~torch.from_numpy(of.mask)] == 0).all()
        return callback.sparse

    sparse = fit(5)
    assert sparse.step == 5 and sparse.reports and sparse.schedule.end_step == 3
    plain = lightning.Trainer(
        max_steps=2, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False
    )
    plain.fit(Module(), loader)
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(srigl.Error, match="plain.ckpt` has no masks"):
        fit(4, tmp_path / "plain.ckpt")
    again = fit(7, tmp_path / "last.ckpt", end_step=20)
    assert again.step == 7 and not np.array_equal(sparse.layers[1].mask, again.layers[1].mask)


INTERVALS = {
    # `cargo xtask reproduce fashion-mnist`, five seeds: mean, and half of the 95 % interval of the mean.
    ("srigl", 0.95): (88.19, 0.29),
    ("srigl", 0.99): (86.10, 0.55),
    ("rigl", 0.95): (88.38, 0.13),
    ("rigl", 0.99): (85.81, 0.20),
}


@pytest.mark.parametrize("method, sparsity", INTERVALS)
def test_fashion_mnist_reaches_the_accuracy_of_the_command(method, sparsity, fashion_mnist):
    x, y, test_x, test_y = map(torch.from_numpy, fashion_mnist)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    epochs, per_epoch = 15, len(x) // 128 + 1
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
    gamma = {"gamma_sal": 6.0 if sparsity == 0.99 else 0.3} if method == "srigl" else {}
    sparse = srigl.torch.sparsify(
        net, optimizer, sparsity, method=method, end_step=epochs * per_epoch * 3 // 4, **gamma
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(128):
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        accuracy = 100 * (net(test_x).argmax(1) == test_y).float().mean().item()
    mean, half = INTERVALS[method, sparsity]
    # The interval of one more run: of five runs, Student's t. Five runs may lie close together by chance, so the deviation is at least
    # that of all rows together.
    own = half * 5**0.5 / 2.776
    pooled = np.mean([(half * 5**0.5 / 2.776) ** 2 for _, half in INTERVALS.values()]) ** 0.5
    margin = 2.776 * max(own, pooled) * (1 + 1 / 5) ** 0.5
    print(f"{method} {sparsity}: {accuracy:.2f}, {mean} ± {margin:.2f}")
    assert accuracy >= mean - margin and abs(sparse.sparsity() - sparsity) < 1e-3
