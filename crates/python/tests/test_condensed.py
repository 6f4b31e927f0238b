"""The engine and the condensed layers beside PyTorch."""

import copy

import numpy as np
import pytest
import srigl

torch = pytest.importorskip("torch")
pytest.importorskip("torch.nn.utils.prune")
import srigl.condensed  # noqa: E402
import srigl.torch  # noqa: E402
from torch import nn  # noqa: E402


def pruned(net, sparsity=0.9):
    """Constant fan-in in all larger weights, and statistics that are not those of the start."""
    torch.manual_seed(1)
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1 and parameter.numel() > 1000 and "embed" not in name and "token" not in name:
            rows = parameter.data.reshape(parameter.shape[0], -1)
            if not rows.any():
                rows.normal_(0, 0.1)
            k = max(1, round(rows.shape[1] * (1 - sparsity)))
            mask = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.abs().topk(k, 1).indices, True)
            # Sums stay as large as they were.
            rows.mul_(mask).mul_((rows.shape[1] / k) ** 0.5)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return net.eval()


def agree(net, shape, **options):
    engine = srigl.condensed.condense(net, shape, **options)
    x = torch.randn(3, *shape)
    with torch.no_grad():
        expected = net.eval()(x)
    got = engine.run(x)
    # One position is none.
    assert got.shape == expected.shape or expected.shape == (*got.shape, 1, 1)
    got = got.reshape(expected.shape)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6
    return engine


@pytest.mark.parametrize(
    "name, shape",
    [
        ("resnet18", (3, 64, 64)),
        ("resnet50", (3, 64, 64)),
        ("mobilenet_v3_large", (3, 64, 64)),
        ("vit_b_16", (3, 224, 224)),
    ],
)
def test_torchvisions_networks(name, shape, tmp_path):
    models = pytest.importorskip("torchvision").models
    net = pruned(getattr(models, name)())
    engine = agree(net, shape)
    layers = engine.layers()
    assert sum(layer["condensed"] for layer in layers) > 0.6 * len(layers)
    assert engine.input_shape == shape and engine.output_shape == (1000,)
    engine.save(tmp_path / "model.safetensors")
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    loaded = srigl.condensed.load(tmp_path / "model.safetensors", threads=1)
    assert np.array_equal(loaded.run(x), engine.run(x)), "whatever the threads"


class Functional(nn.Module):
    """Functions and methods in place of modules."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.side = nn.Conv2d(8, 8, (1, 3), padding=(0, 2), dilation=(1, 2), groups=2)
        self.fc = nn.Linear(8 * 36, 16)
        self.out = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        factors = nn.functional.adaptive_avg_pool2d(x, 1)
        factors = nn.functional.hardsigmoid(self.excite(self.squeeze(factors).relu()))
        x = factors * x
        x = x + nn.functional.hardswish(self.side(x))
        x = nn.functional.max_pool2d(x, 2)
        x = nn.functional.dropout(x, 0.5, self.training)
        x = nn.functional.gelu(self.fc(x.reshape(x.shape[0], -1)))
        return self.out(x)


class Tokens(nn.Module):
    """Attention, with a mean instead of a class token."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 10, 16))
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head(x.mean(dim=1))


def test_functions_and_methods():
    agree(pruned(Functional()), (3, 12, 12))
    agree(pruned(Tokens(), 0.5), (3, 12, 12))
    agree(pruned(nn.Sequential(nn.Linear(64, 40), nn.BatchNorm1d(40), nn.Hardswish(), nn.Linear(40, 3))), (64,))
    # An image as the result.
    engine = agree(pruned(nn.Sequential(nn.Conv2d(3, 40, 3), nn.ReLU(), nn.AvgPool2d(6))), (3, 8, 8))
    assert engine.output_shape == (40,)
    engine = agree(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 8, 8))
    assert engine.output_shape == (4, 6, 6)


def test_masks_say_what_is_sparse():
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparse = srigl.torch.sparsify(net, optimizer, 0.4, end_step=9, keep_dense=["2"])
    assert [layer["condensed"] for layer in agree(net, (16,)).layers()] == [True, False]
    net[0].weight.data[0, torch.from_numpy(sparse.layers[0].mask[0])] = 0.0
    [first, _] = agree(net, (16,), masks={"0.weight": sparse.masks()["0.weight"]}).layers()
    assert first["fan_in"] == int(sparse.layers[0].mask[1].sum()), "weights of 0 are weights"
    torch.nn.utils.prune.random_unstructured(net[2], "weight", 0.3)
    assert agree(net, (16,)).layers()[1]["condensed"], "the mask of torch.nn.utils.prune"
    for masks, message in [
        ({"3.weight": np.ones((2, 2))}, "parameters that the model has not: 3.weight"),
        ({"0.weight": np.zeros((8, 16))}, "`0.weight` has weights that are not 0 outside its mask"),
        ({"0.weight": np.ones((2, 2))}, "`0.weight`: a mask \\[2, 2\\] for a weight \\[8, 16\\]"),
    ]:
        with pytest.raises(srigl.Error, match=message):
            srigl.condensed.condense(net, (16,), masks=masks)


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class Halves(nn.Module):
    def forward(self, x):
        return torch.chunk(x, 2, dim=1)[0]


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_the_engine_has_not_is_named():
    for net, shape, message in [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU()), (3, 8, 8), "`1`: the engine has no SiLU"),
        (nn.Sequential(nn.Linear(8, 4), nn.GELU(approximate="tanh")), (8,), "GELU by `tanh`"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2)), (3, 8, 8), "average pooling to 2"),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), (3, 8, 8), "max pooling with ceil_mode"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")), (3, 8, 8), "padding `reflect`"),
        (nn.Sequential(nn.Linear(8, 4), nn.Softmax(1)), (8,), "`1`: the engine has no Softmax"),
        (TwoInputs(), (8,), "one input is expected, and TwoInputs has 2"),
        (nn.Linear(8, 4), (9,), "does not run on samples of \\[9\\]"),
        (Branches(), (8,), "torch.fx cannot trace Branches"),
        (Halves(), (8,), "`chunk`: the engine has no chunk"),
        (nn.Linear(8, 4), (8, 2), "input_shape is \\(features,\\) or \\(C, H, W\\)"),
    ]:
        with pytest.raises(srigl.Error, match=message):
            srigl.condensed.condense(net, shape)
        assert net.training, "the model is as it was"
    net = nn.Linear(8, 4)
    net.weight.data[0, 0] = float("nan")
    with pytest.raises(srigl.Error, match="weight"):
        srigl.condensed.condense(net, (8,))


class Merging(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Conv2d(3, 4, 3), how

    def forward(self, x):
        return self.how(self.layer(x))


def test_shapes_are_the_models():
    for how in [lambda x: x.reshape(1, -1), lambda x: x.flatten(2), lambda x: nn.functional.dropout(x, 1e-4)]:
        with pytest.raises(srigl.Error):
            srigl.condensed.condense(Merging(how), (3, 6, 6))
    pooled = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1))
    assert srigl.condensed.condense(pooled, (3, 6, 6)).run(torch.randn(2, 3, 6, 6)).shape == (2, 4)
    engine = srigl.condensed.condense(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), (3, 1, 1))
    assert engine.run(torch.randn(2, 3, 1, 1)).shape == engine.run(torch.randn(2, 3)).shape == (2, 4)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(input=torch.relu(self.layer(x)))


def test_models_of_other_kinds():
    agree(Twice(), (8,))
    assert srigl.condensed.condense(Twice(), 8).run([[0.0] * 8]).shape == (1, 8)
    double = nn.Sequential(nn.Linear(8, 4), nn.ReLU()).double()
    engine, x = srigl.condensed.condense(double, (8,)), torch.randn(3, 8)
    assert torch.allclose(engine.run(x), double(x.double()).float(), atol=1e-5)
    compiled = torch.compile(nn.Sequential(nn.Linear(8, 4)), backend="aot_eager")
    assert srigl.condensed.condense(compiled, (8,)).output_shape == (4,)
    # Each module's mode is its own.
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net[1].eval()
    srigl.condensed.condense(net, (3, 6, 6))
    assert net.training and net[0].training and not net[1].training


def test_layers_that_were_kept_dense_stay_dense():
    net = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sparse = srigl.torch.sparsify(net, optimizer, 0.5, end_step=9, keep_dense="1")
    engine = srigl.condensed.condense(net, (16,), masks=sparse.masks())
    assert [layer["condensed"] for layer in engine.layers()] == [True, False]


def test_results_are_of_the_kind_that_was_given():
    engine = srigl.condensed.condense(pruned(nn.Linear(64, 40)), (64,), threads=2)
    x = torch.randn(5, 64)
    result = engine.run(x)
    assert isinstance(result, torch.Tensor)
    for other in [x.numpy(), x.numpy().astype(np.float64), np.asfortranarray(x.numpy())]:
        assert isinstance(engine.run(other), np.ndarray) and np.array_equal(engine.run(other), result.numpy())
    jax = pytest.importorskip("jax")
    assert isinstance(engine.run(jax.numpy.asarray(x.numpy())), jax.Array)
    assert engine.run(x[:0]).shape == (0, 40)
    for wrong in [x[0], x[:, :3], x[None]]:
        with pytest.raises(srigl.Error, match="the engine takes batches \\[batch, 64\\]"):
            engine.run(wrong)
    with pytest.raises(srigl.Error, match="threads must be"):
        srigl.condensed.condense(nn.Linear(8, 4), (8,), threads=0)


def test_files_are_not_trusted(tmp_path):
    with pytest.raises(OSError, match="cannot read"):
        srigl.condensed.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense" * 9)
    with pytest.raises(srigl.Error, match="bad.safetensors"):
        srigl.condensed.load(tmp_path / "bad.safetensors")
    engine = srigl.condensed.condense(nn.Linear(8, 4), (8,))
    with pytest.raises(OSError, match="cannot write"):
        engine.save(tmp_path / "no" / "folder.safetensors")
    assert not (tmp_path / "no").exists()


def test_files_of_the_command(srigl_command, tmp_path):
    models = pytest.importorskip("torchvision").models
    net = pruned(models.resnet18(num_classes=10))
    torch.save(net.state_dict(), tmp_path / "net.pth")
    srigl_command(
        "condense", tmp_path / "net.pth", "--model", "resnet18", "--image", "64x64", "-o", tmp_path / "net.cond"
    )
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = net(x)
    got = srigl.condensed.load(tmp_path / "net.cond").run(x)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_have_pytorchs_gradients(bias):
    dense = pruned(nn.Linear(64, 40, bias=bias), 0.8)
    layer = srigl.condensed.CondensedLinear(dense)
    assert layer.values.numel() == int((dense.weight != 0).sum()) and torch.equal(layer.weight, dense.weight)
    for shape in [(7, 64), (2, 3, 64), (64,), (0, 64)]:
        same_gradients(layer, dense, torch.randn(*shape))
    assert "weights=" in repr(layer)


@pytest.mark.parametrize(
    "options, size",
    [
        ({"kernel_size": 3, "padding": 1}, (9, 7)),
        ({"kernel_size": (3, 5), "stride": 2, "padding": "valid"}, (12, 12)),
        ({"kernel_size": 3, "padding": "same", "dilation": 2, "groups": 4, "bias": False}, (8, 8)),
        ({"kernel_size": 1}, (6, 6)),
    ],
)
def test_convolutions_have_pytorchs_gradients(options, size):
    dense = nn.Conv2d(16, 24, **options)
    dense.weight.data *= torch.rand_like(dense.weight) < 0.3
    layer = srigl.condensed.CondensedConv2d(dense)
    same_gradients(layer, dense, torch.randn(3, 16, *size))
    same_gradients(layer, dense, torch.randn(2, 16, size[1], size[0]))


def same_gradients(layer, dense, x):
    layer.zero_grad()
    dense.zero_grad()
    results = []
    for module in [layer, dense]:
        inputs = x.clone().requires_grad_()
        y = module(inputs)
        (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
        results.append((y, inputs.grad))
    [(y, dx), (expected, expected_dx)] = results

    def close(a, b):
        size = float(b.detach().abs().max()) if b.numel() else 0.0
        return torch.allclose(a, b, rtol=1e-4, atol=1e-4 * (1 + size))

    assert close(y, expected) and close(dx, expected_dx)
    assert close(layer.values.grad, dense.weight.grad[layer.mask])
    assert (layer.bias is None) == (dense.bias is None)
    if layer.bias is not None:
        assert close(layer.bias.grad, dense.bias.grad)


def test_condensed_layers_train_copy_and_load():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 3))
    net[0] = srigl.condensed.CondensedLinear(pruned(net[0], 0.8))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    x, y = torch.randn(32, 64), torch.randint(0, 3, (32,))
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x), net(x))
    other = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 3))
    other[0] = srigl.condensed.CondensedLinear(pruned(other[0], 0.5))
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x)), "another mask"
    before = other[0].values.clone()
    other(x).sum().backward()
    optimizer.step()
    assert not torch.equal(other[0].values, before), "the optimizer has the parameter still"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(x).isfinite().all()
    dense = nn.Linear(4, 4)
    for wrong, message in [
        (lambda: srigl.condensed.CondensedLinear(dense, torch.zeros(4, 4)), "no active weight"),
        (lambda: srigl.condensed.CondensedLinear(dense, torch.ones(3, 4)), "a mask \\[3, 4\\] for a weight \\[4, 4\\]"),
        (
            lambda: srigl.condensed.CondensedConv2d(nn.ConvTranspose2d(4, 4, 3)),
            "made of an nn.Conv2d, not of ConvTranspose2d",
        ),
        (lambda: net[0](torch.randn(2, 63)), "64 features are expected"),
        (lambda: net[0](torch.randn(2, 64).double()), "float32 on the CPU"),
    ]:
        with pytest.raises(srigl.Error, match=message):
            wrong()
