"""Another engine's side of `srigl bench`: `python -c SCRIPT ENGINE DEVICE THREADS`.

ENGINE is torch, onnxruntime or deepsparse; DEVICE is cpu, cuda or cuda:N, where only torch knows more than cpu. Requests
and answers are lines of JSON, one answer for each request:

    (at the start)                              {"version": "2.11.0"} or {"error": why}
    {"do": "layer", "file": F, "stride": 1,     {"contenders": [{"name": "torch f32", "engine": "F.linear"}, ...],
     "padding": 1, "half": false}                "skipped": [{"name": "torch condensed", "why": "out of memory"}]}
    {"do": "train_layer", ...}                  the same: forward and backward, where F also has the `gradient` by the
                                                result. torch only
    {"do": "model", "file": F, "onnx": O,       the same; torch has written O before
     "model": NAME, "half": false}
    {"do": "export", "file": F, "onnx": O,      {}: the network is in O, for the others. torch only
     "model": NAME}
    {"do": "train", "model": NAME, "batch": 64, as layer; the calls are training steps on random images. torch only
     "float": "f32", "image": [3, 224, 224]}
    {"do": "memory"}                            {"bytes": 1e9}: the most that training has taken so far
    {"do": "time", "name": N, "calls": 100}     {"seconds": 0.1}: of all calls, until the device is idle
    {"do": "device", "name": N}                 {"seconds": 1e-5}: of one call by the GPU's clock, its caches cold
    {"do": "read", "name": N, "file": F}        {}: the last result is in F, as float32

An answer {"error": why} ends the program; the end of the input does, too. With "half" there are contenders in bf16. Files
are safetensors: `weight`, `bias`, `input` of a layer; the tensors of a network of torchvision, and `input`.
"""

import copy
import importlib
import importlib.util
import json
import os
import resource
import struct
import sys
import tempfile
import time
import warnings

# Names in `srigl`: those in torchvision, and the oldest operator set of ONNX that can say them, as DeepSparse knows no
# recent ones.
MODELS = {
    "resnet18": ("resnet18", 13),
    "resnet50": ("resnet50", 13),
    "vit-b-16": ("vit_b_16", 14),
    "mobilenet-v3-large": ("mobilenet_v3_large", 14),
    "mobilenet-v3-small": ("mobilenet_v3_small", 14),
}


def wide_resnet():
    """A wide ResNet of 22 layers, twice as wide."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.norm, self.shortcut = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU()), None
            self.rest = nn.Sequential(
                *(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()),
                nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            )
            if inputs != outputs:
                self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

        def forward(self, x):
            normed = self.norm(x)
            return self.rest(normed) + (self.shortcut(normed) if self.shortcut else x)

    def stage(inputs, outputs, stride):
        return Block(inputs, outputs, stride), Block(outputs, outputs, 1), Block(outputs, outputs, 1)

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        *(*stage(16, 32, 1), *stage(32, 64, 2), *stage(64, 128, 2)),
        *(nn.BatchNorm2d(128), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    )


def peak_memory():
    """The most bytes that this process has had in memory at once."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def words(error):
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def read_safetensors(path):
    """The float32 tensors of a file, by name. The format is a length, a JSON header and the numbers."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = bytearray(file.read())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            values = np.frombuffer(data, dtype="<f4", offset=begin, count=(end - begin) // 4)
            tensors[name] = values.reshape(entry["shape"])
    return tensors


class Contender:
    """Something that can be called many times."""

    def __init__(self, run, tf32=False):
        self.run, self.tf32, self.result = run, tf32, None

    def time(self, calls):
        """Seconds of so many calls."""
        begin = time.perf_counter()
        for _ in range(calls):
            self.result = self.run()
        return time.perf_counter() - begin

    def numbers(self):
        """The last result."""
        return np.asarray(self.result, dtype=np.float32)


class TorchContender(Contender):
    busy = None

    def allow(self):
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32

    def time(self, calls):
        self.allow()
        idle()
        begin = time.perf_counter()
        for _ in range(calls):
            self.result = self.run()
        idle()
        return time.perf_counter() - begin

    def device_time(self):
        """Seconds of a call by the GPU's clock. It waits behind a copy that is longer than the call takes to be made and
        that leaves nothing of the call's data in the caches."""
        self.allow()
        if TorchContender.busy is None:
            TorchContender.busy = [torch.zeros(2**26, device=DEVICE) for _ in range(2)]
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.add(self.busy[0], 1.0, out=self.busy[1])
        begin.record()
        self.result = self.run()
        end.record()
        idle()
        return begin.elapsed_time(end) / 1e3

    def numbers(self):
        return self.result.detach().float().cpu().contiguous().numpy()


def fastest(contenders):
    """Of several ways to the same result the one that is fastest here, after a warm-up."""

    def seconds(contender):
        contender.time(3)
        return min(contender.time(10) for _ in range(3))

    return contenders[0] if len(contenders) == 1 else min(contenders, key=seconds)


def idle():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)


class Torch:
    """PyTorch. Each method returns {name: maker}; a maker returns words and a contender."""

    def __init__(self, device, threads):
        global torch, functional, DEVICE
        import torch
        from torch.nn import functional

        DEVICE = torch.device(device)
        torch.set_num_threads(threads)
        # Without gradients, as one runs a trained network.
        torch.set_grad_enabled(False)
        torch.backends.cudnn.benchmark = True
        torch.zeros(1, device=DEVICE)
        self.version, self.name = torch.__version__, "PyTorch"

    @staticmethod
    def tensors(request):
        # Copies: PyTorch wants writable memory of its own.
        return {name: torch.tensor(values).to(DEVICE) for name, values in read_safetensors(request["file"]).items()}

    @staticmethod
    def formats(tensor):
        """An image tensor in the memory formats that are worth a try: tensor cores want channels last, others may not."""
        yield tensor.contiguous()
        if DEVICE.type == "cuda":
            yield tensor.contiguous(memory_format=torch.channels_last)

    def layer(self, request):
        tensors = self.tensors(request)
        weight, bias, x = tensors["weight"], tensors["bias"], tensors["input"]
        if weight.ndim == 4:
            options = {"stride": request["stride"], "padding": request["padding"]}
            name = "F.conv2d"

            def dense(x, weight, bias, tf32=False):
                pairs = zip(self.formats(x), self.formats(weight))
                runs = [lambda x=x, w=w: functional.conv2d(x, w, bias, **options) for x, w in pairs]
                return fastest([TorchContender(run, tf32) for run in runs])

        else:
            name = "F.linear"

            def dense(x, weight, bias, tf32=False):
                return TorchContender(lambda: functional.linear(x, weight, bias), tf32)

        makers = {"torch f32": lambda: (name, dense(x, weight, bias))}
        if DEVICE.type == "cuda":
            makers["torch tf32"] = lambda: (name + ", TF32", dense(x, weight, bias, True))
        if request["half"]:
            half = [tensor.bfloat16() for tensor in (x, weight, bias)]
            makers["torch bf16"] = lambda: (name + ", bf16", dense(*half))
        if weight.ndim == 2:
            # Which of the two is faster depends on the batch, by up to five times, so both are timed.
            makers["torch csr linear"] = lambda: self.csr_linear(weight, bias, x)
            makers["torch csr product"] = lambda: self.csr_product(weight, bias, x)
            if DEVICE.type == "cpu":
                makers["torch condensed"] = lambda: self.condensed(weight, bias, x)
        return makers

    def train_layer(self, request):
        """Forward and backward through a layer: PyTorch's, and SparseProp's if it is there."""
        torch.set_grad_enabled(True)
        tensors = self.tensors(request)
        weight, bias, gradient = tensors["weight"], tensors["bias"], tensors["gradient"]
        x = tensors["input"].requires_grad_()
        is_conv, active = weight.ndim == 4, weight != 0
        if is_conv:
            options = {"stride": request["stride"], "padding": request["padding"]}
            dense = torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], **options)
        else:
            dense = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            dense.weight.copy_(weight)
            dense.bias.copy_(bias)

        class Step(TorchContender):
            def __init__(self, layer, of_active):
                self.of_active = of_active

                def run():
                    x.grad = None
                    layer.zero_grad(set_to_none=True)
                    y = layer(x)
                    y.backward(gradient)
                    # The gradients are taken along: another contender has the same input.
                    return y, x.grad, layer.weight.grad, layer.bias.grad

                super().__init__(run)

            def numbers(self):
                y, of_input, of_weight, of_bias = self.result
                parts = [y.detach(), of_input, self.of_active(of_weight), of_bias]
                return torch.cat([part.flatten() for part in parts]).numpy()

        def sparse():
            from sparseprop import modules
            from sparseprop.modules import utils

            if not is_conv:
                return "SparseProp's SparseLinear", Step(modules.SparseLinear.from_dense(dense), lambda values: values)
            layers = [modules.SparseConv2d.from_dense(dense, over_width) for over_width in (False, True)]

            def of_active(layer):
                return lambda values: utils.from_sparse_format_conv2d(values, layer.W_idx, weight.shape)[active]

            return "SparseProp's SparseConv2d", fastest([Step(layer, of_active(layer)) for layer in layers])

        makers = {"torch f32": lambda: (type(dense).__name__, Step(dense, lambda whole: whole[active]))}
        if importlib.util.find_spec("sparseprop"):
            makers["sparseprop"] = sparse
        return makers

    @staticmethod
    def csr(weight):
        sparse = weight.to_sparse_csr()
        # PyTorch makes 64-bit indices; 32 bits are enough and never slower.
        indices = sparse.crow_indices().int(), sparse.col_indices().int()
        return torch.sparse_csr_tensor(*indices, sparse.values(), sparse.shape)

    def csr_linear(self, weight, bias, x):
        sparse = self.csr(weight)
        return "F.linear(x, csr, bias)", TorchContender(lambda: functional.linear(x, sparse, bias))

    def csr_product(self, weight, bias, x):
        sparse = self.csr(weight)
        ways = [TorchContender(lambda: (sparse @ x.t()).t() + bias)]
        if x.shape[0] == 1:
            ways.append(TorchContender(lambda: (sparse @ x[0] + bias)[None]))
        return "csr @ x", fastest(ways)

    @staticmethod
    def condensed(weight, bias, x):
        fan_in = int((weight != 0).sum(1).max())
        # The active inputs of each neuron first, in order; a neuron with fewer is filled up with zero weights.
        index = torch.argsort((weight == 0).to(torch.int8), dim=1, stable=True)[:, :fan_in].contiguous()
        values = torch.gather(weight, 1, index).contiguous()
        return "(x[:, index] * values).sum(-1) + bias", TorchContender(lambda: (x[:, index] * values).sum(-1) + bias)

    @staticmethod
    def empty_network(name):
        """A network of torchvision with its usual initial weights, or one of `srigl`'s own that is as simple."""
        from torch import nn

        if name == "mlp":
            return nn.Sequential(
                nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
            )
        if name == "mnist-cnn":
            return nn.Sequential(
                *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Dropout(0.25), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5)),
                nn.Linear(128, 10),
            )
        if name == "wrn-22-2":
            return wide_resnet()
        import torchvision

        if name == "vit-tiny":
            return torchvision.models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10)
        if name in ("resnet18-small", "resnet8"):
            net = torchvision.models.resnet18(weights=None, num_classes=10)
            net.maxpool = nn.Identity()
            if name == "resnet18-small":
                net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
                return net
            net.conv1, net.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
            net.inplanes, block = 16, torchvision.models.resnet.BasicBlock
            net.layer1 = net._make_layer(block, 16, 1)
            net.layer2, net.layer3 = net._make_layer(block, 32, 1, 2), net._make_layer(block, 64, 1, 2)
            net.layer4, net.fc = nn.Identity(), nn.Linear(64, 10)
            return net
        if name not in MODELS:
            raise ValueError(f"there is no {name} in torchvision, which has {', '.join(MODELS)}")
        return getattr(torchvision.models, MODELS[name][0])(weights=None)

    def network(self, request):
        """A network with weights, and its input."""
        tensors = self.tensors(request)
        x = tensors.pop("input")
        net = self.empty_network(request["model"])
        missing, unexpected = net.load_state_dict(tensors, strict=False)
        # PyTorch counts batches, which matters for nothing here.
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise ValueError(f"missing: {missing}, unexpected: {unexpected}")
        return net.eval().to(DEVICE), x

    def export(self, request):
        net, x = self.network(request)
        # The older exporter, since the newer one writes operators that DeepSparse does not know. Without gradients,
        # attention would be one operator that ONNX has not.
        with torch.enable_grad():
            torch.onnx.export(
                net.cpu(),
                (x.cpu(),),
                request["onnx"],
                input_names=["input"],
                output_names=["output"],
                opset_version=MODELS[request["model"]][1],
                dynamo=False,
            )

    def model(self, request):
        net, x = self.network(request)

        def contender(net, x, tf32=False):
            nets = [net]
            if DEVICE.type == "cuda":
                nets.append(copy.deepcopy(net).to(memory_format=torch.channels_last))
            runs = [lambda net=net, x=x: net(x) for net, x in zip(nets, self.formats(x))]
            return fastest([TorchContender(run, tf32) for run in runs])

        makers = {"torch f32": lambda: ("torchvision", contender(net, x))}
        if DEVICE.type == "cuda":
            makers["torch tf32"] = lambda: ("torchvision, TF32", contender(net, x, True))
        if request["half"]:
            half = copy.deepcopy(net).bfloat16()
            makers["torch bf16"] = lambda: ("torchvision, bf16", contender(half, x.bfloat16()))
        return makers

    def train(self, request):
        """Training steps of a network, with the optimizer of the paper's recipe."""
        torch.set_grad_enabled(True)
        self.before = peak_memory()
        images = torch.rand(request["batch"], *request["image"], device=DEVICE)
        labels = torch.full((request["batch"],), 3, device=DEVICE)

        def step_of(half, autocast, x):
            net = self.empty_network(request["model"]).train().to(DEVICE)
            if half:
                net, x = net.bfloat16(), x.bfloat16()
            if not x.is_contiguous():
                net = net.to(memory_format=torch.channels_last)
            fused = DEVICE.type == "cuda"
            if request["model"].startswith("vit"):
                optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused)
            else:
                optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=fused)

            def step():
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
                    loss = functional.cross_entropy(net(x), labels)
                loss.backward()
                optimizer.step()

            return step

        def contender(half, autocast, tf32):
            return fastest([TorchContender(step_of(half, autocast, x), tf32) for x in self.formats(images)])

        if request["float"] == "bf16":
            return {
                "torch bf16": lambda: ("weights in bf16", contender(True, False, False)),
                "torch autocast": lambda: ("weights in f32, bf16 by autocast", contender(False, True, False)),
            }
        makers = {"torch f32": lambda: ("f32", contender(False, False, False))}
        if DEVICE.type == "cuda":
            makers["torch tf32"] = lambda: ("f32, TF32 allowed", contender(False, False, True))
        return makers


class Onnx:
    """An engine that reads ONNX: a layer is a model of one node."""

    def __init__(self, device, threads):
        if device != "cpu":
            raise ValueError(f"it runs on cpu, not on {device}")
        importlib.import_module("onnx")
        self.engine, self.threads = importlib.import_module(ENGINE), threads
        self.version = self.engine.__version__

    def layer(self, request):
        from onnx import TensorProto, helper, numpy_helper

        tensors = read_safetensors(request["file"])
        weight, x = tensors["weight"], np.ascontiguousarray(tensors["input"])
        if weight.ndim == 4:
            attributes = {"strides": [request["stride"]] * 2, "pads": [request["padding"]] * 4}
            node = helper.make_node(
                "Conv", ["input", "weight", "bias"], ["output"], kernel_shape=list(weight.shape[2:]), **attributes
            )
            sides = [
                (size + 2 * request["padding"] - kernel) // request["stride"] + 1
                for size, kernel in zip(x.shape[2:], weight.shape[2:])
            ]
        else:
            node = helper.make_node("Gemm", ["input", "weight", "bias"], ["output"], transB=1)
            sides = []
        inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(x.shape))]
        shape = [x.shape[0], weight.shape[0], *sides]
        outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)]
        weights = [numpy_helper.from_array(np.ascontiguousarray(tensors[name]), name) for name in ("weight", "bias")]
        graph = helper.make_graph([node], "layer", inputs, outputs, initializer=weights)
        # Old enough for DeepSparse, new enough for ONNX Runtime.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        return {ENGINE: lambda: self.contender(model.SerializeToString(), x, node.op_type)}

    def model(self, request):
        x = np.ascontiguousarray(read_safetensors(request["file"])["input"])
        with open(request["onnx"], "rb") as file:
            model = file.read()
        return {ENGINE: lambda: self.contender(model, x, "the whole model")}


class OnnxRuntime(Onnx):
    name = "ONNX Runtime"

    def contender(self, model, x, what):
        options = self.engine.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        session = self.engine.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = {"input": x}
        return what, Contender(lambda: session.run(None, feed)[0])


class DeepSparse(Onnx):
    """It finds the zeros of the weights by itself."""

    name = "DeepSparse"

    def contender(self, model, x, what):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "case.onnx")
            with open(path, "wb") as file:
                file.write(model)
            engine = self.engine.compile_model(path, batch_size=x.shape[0], num_cores=self.threads)
        inputs = [x]
        return what, Contender(lambda: engine.run(inputs)[0])


def main(engine, answer):
    runs = {}
    for line in sys.stdin:
        request = json.loads(line)
        todo = request["do"]
        if todo == "memory":
            answer({"bytes": peak_memory() - engine.before})
        elif todo == "time":
            answer({"seconds": runs[request["name"]].time(request["calls"])})
        elif todo == "device":
            answer({"seconds": runs[request["name"]].device_time()})
        elif todo == "read":
            with open(request["file"], "wb") as file:
                file.write(runs[request["name"]].numbers().tobytes())
            answer({})
        elif todo == "export":
            engine.export(request)
            answer({})
        else:
            contenders, skipped = [], []
            for name, make in getattr(engine, todo)(request).items():
                # One that cannot run this must not keep the others from it.
                try:
                    what, contender = make()
                    contender.time(1)
                except Exception as error:
                    skipped.append({"name": name, "why": words(error)})
                    continue
                runs[name] = contender
                contenders.append({"name": name, "engine": f"{engine.name} {engine.version}, {what}"})
            answer({"contenders": contenders, "skipped": skipped})


# Engines may print; only answers may reach the pipe that is standard output now.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
warnings.simplefilter("ignore")


def answer(value):
    answers.write(json.dumps(value) + "\n")
    answers.flush()


try:
    import numpy as np

    ENGINE = sys.argv[1]
    kind = {"torch": Torch, "onnxruntime": OnnxRuntime, "deepsparse": DeepSparse}[ENGINE]
    engine = kind(sys.argv[2], int(sys.argv[3]))
    answer({"version": engine.version})
    main(engine, answer)
except Exception as error:
    answer({"error": words(error)})
