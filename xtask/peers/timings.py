"""Times PyTorch, ONNX Runtime and DeepSparse on layers and models that `srigl bench` has saved.

`cargo xtask reproduce timings --peers` starts this once per Python environment as `timings.py ENGINE...`, with
ENGINE one of torch, onnxruntime, deepsparse, and talks to it in lines of JSON, one answer per request:

    (at the start)                                     {"versions": {"torch": "2.1"}, "missing": {"deepsparse": "why"}}
    {"do": "prepare", "weights": FILE, "threads": 1,   {"peers": [{"name": "torch-dense", "engine": "PyTorch 2.1, F.linear",
     "model": null, "stride": 1, "padding": 1}                     "relative_error": 1e-7, "once_ms": 0.4}]}
    {"do": "time", "peer": "torch-dense",              {"median_ms": 0.41, "p10_ms": 0.40, "p90_ms": 0.43, "samples": 500}
     "repetitions": 500}

With "model" a name of `MODELS`, the weights are those of that network. PyTorch then writes it as an ONNX file beside
them, which the others read; so the environment with PyTorch has to be asked first.

A peer that cannot run a case answers {"name": ..., "skipped": "why"} in its place. Requests end with the input.
"""

import importlib
import json
import os
import struct
import sys
import tempfile
import time
import warnings

import numpy as np

# Seconds of warm-up when a case is prepared, and before the timed repetitions of each round.
PREPARE_WARM_UP = 0.1
ROUND_WARM_UP = 0.02


def read_safetensors(path):
    """The float32 tensors of a file, by name. The format is a length, a JSON header and the numbers."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(data[begin:end], dtype="<f4").reshape(entry["shape"])
    return tensors


class LayerCase:
    """One layer: `weight` [out, in] or [out, in, k, k], `bias` [out], `input` [batch, in] or [batch, in, h, w]."""

    def __init__(self, request):
        tensors = read_safetensors(request["weights"])
        self.weight = tensors["weight"]
        self.bias = tensors["bias"]
        self.input = tensors["input"]
        self.threads = request["threads"]
        self.stride = request["stride"]
        self.padding = request["padding"]
        self.is_conv = self.weight.ndim == 4
        self.node = "Conv" if self.is_conv else "Gemm"

    def expected(self):
        """The plain product in double precision: what every peer must compute."""
        weight, x = self.weight.astype(np.float64), self.input.astype(np.float64)
        if not self.is_conv:
            return x @ weight.T + self.bias
        pad = self.padding
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, self.weight.shape[2:], axis=(2, 3))
        windows = windows[:, :, :: self.stride, :: self.stride]
        # [batch, in, h, w, k, k] with [out, in, k, k] over in, k, k: [batch, h, w, out].
        product = np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3)))
        return product.transpose(0, 3, 1, 2) + self.bias[:, None, None]

    def onnx_model(self):
        """The layer as an ONNX model with one Gemm or Conv, as bytes."""
        from onnx import TensorProto, helper, numpy_helper

        if self.is_conv:
            shape = list(self.weight.shape[2:])
            attributes = {"kernel_shape": shape, "strides": [self.stride] * 2, "pads": [self.padding] * 4}
            node = helper.make_node("Conv", ["input", "weight", "bias"], ["output"], **attributes)
        else:
            node = helper.make_node("Gemm", ["input", "weight", "bias"], ["output"], transB=1)
        inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(self.input.shape))]
        outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, list(self.expected().shape))]
        weights = [numpy_helper.from_array(np.ascontiguousarray(getattr(self, name)), name) for name in ("weight", "bias")]
        graph = helper.make_graph([node], "layer", inputs, outputs, initializer=weights)
        # Old enough for DeepSparse, new enough for ONNX Runtime.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        return model.SerializeToString()


# Networks of torchvision by their names in `srigl`, with the oldest ONNX operator set that can express them:
# DeepSparse knows no recent ones.
MODELS = {"resnet50": ("resnet50", 13), "vit-b-16": ("vit_b_16", 14)}


class ModelCase:
    """A network of torchvision with the saved weights, on one random image `input` [1, 3, 224, 224]."""

    node = "the whole model"

    def __init__(self, request):
        self.name, self.opset = MODELS[request["model"]]
        self.weights = request["weights"]
        self.threads = request["threads"]
        self.onnx, self.result = self.weights + ".onnx", self.weights + ".npy"
        self.input = np.random.default_rng(0).uniform(-1, 1, (1, 3, 224, 224)).astype(np.float32)
        if "torch" in sys.modules:
            self.write()

    def torch_model(self):
        """The network in PyTorch, ready to be run."""
        import torch
        import torchvision

        model = getattr(torchvision.models, self.name)(weights=None)
        tensors = read_safetensors(self.weights)
        missing, unexpected = model.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, strict=False)
        # PyTorch counts batches, which matters for nothing here.
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise ValueError(f"missing: {missing}, unexpected: {unexpected}")
        return model.eval()

    def write(self):
        """The network as an ONNX file, and what it computes in double precision, for all engines."""
        import torch

        # Those of the case before, should this one fail.
        for path in (self.onnx, self.result):
            if os.path.exists(path):
                os.remove(path)
        model = self.torch_model()
        # The older exporter, since the newer one writes operators that DeepSparse does not know. Without gradients,
        # attention would be one operator that ONNX has not.
        with torch.enable_grad():
            torch.onnx.export(
                model,
                (torch.tensor(self.input),),
                self.onnx,
                input_names=["input"],
                output_names=["output"],
                opset_version=self.opset,
                dynamo=False,
            )
        np.save(self.result, model.double()(torch.tensor(self.input, dtype=torch.float64)).numpy())

    def expected(self):
        """What every peer must compute."""
        return np.load(self.result)

    def onnx_model(self):
        """The network as an ONNX model, as bytes."""
        with open(self.onnx, "rb") as file:
            return file.read()


def torch_peers(case):
    """(name, maker) for PyTorch; a maker returns a function that runs the case once, and a description of it."""
    import torch

    torch.set_num_threads(case.threads)
    version = f"PyTorch {torch.__version__}"
    if isinstance(case, LayerCase):
        return torch_layer_peers(case, version)

    def dense():
        import torchvision

        model, x = case.torch_model(), torch.tensor(case.input)
        return lambda: model(x), f"{version}, torchvision {torchvision.__version__}"

    return [("torch-dense", dense)]


def torch_layer_peers(case, version):
    """The same for one layer."""
    import torch
    from torch.nn import functional as F

    # Copies: PyTorch wants writable memory of its own.
    weight, bias, x = (torch.tensor(array) for array in (case.weight, case.bias, case.input))

    def conv():
        return lambda: F.conv2d(x, weight, bias, stride=case.stride, padding=case.padding), f"{version}, F.conv2d"

    def dense():
        return lambda: F.linear(x, weight, bias), f"{version}, F.linear"

    def csr_weight():
        sparse = weight.to_sparse_csr()
        # PyTorch makes 64-bit indices; 32 bits are enough and never slower.
        indices = sparse.crow_indices().int(), sparse.col_indices().int()
        return torch.sparse_csr_tensor(*indices, sparse.values(), sparse.shape)

    # Which of the two is faster depends on the batch, by up to five times, so both are timed.
    def csr_linear():
        sparse = csr_weight()
        return lambda: F.linear(x, sparse, bias), f"{version}, F.linear(x, csr, bias)"

    def csr_product():
        sparse = csr_weight()
        return lambda: (sparse @ x.t()).t() + bias, f"{version}, (csr @ x.t()).t() + bias"

    def condensed():
        fan_in = int((weight != 0).sum(1).max())
        # The active inputs of each neuron first, in order; a neuron with fewer is filled up with zero weights.
        index = torch.argsort((weight == 0).to(torch.int8), dim=1, stable=True)[:, :fan_in].contiguous()
        values = torch.gather(weight, 1, index).contiguous()
        return lambda: (x[:, index] * values).sum(-1) + bias, f"{version}, (x[:, index] * values).sum(-1) + bias"

    if case.is_conv:
        return [("torch-dense", conv)]
    csr = [("torch-csr-linear", csr_linear), ("torch-csr-product", csr_product)]
    return [("torch-dense", dense), *csr, ("torch-condensed", condensed)]


def onnxruntime_peers(case):
    """The same for ONNX Runtime, on the CPU."""
    import onnxruntime

    def session():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case.threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(case.onnx_model(), options, providers=["CPUExecutionProvider"])
        feed = {"input": case.input}
        return lambda: session.run(None, feed)[0], f"ONNX Runtime {onnxruntime.__version__}, {case.node}"

    return [("onnx-runtime", session)]


def deepsparse_peers(case):
    """The same for DeepSparse, which finds the zeros of the weights by itself."""
    import deepsparse

    def engine():
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "case.onnx")
            with open(path, "wb") as file:
                file.write(case.onnx_model())
            batch = case.input.shape[0]
            engine = deepsparse.compile_model(path, batch_size=batch, num_cores=case.threads)
        inputs = [np.ascontiguousarray(case.input)]
        return lambda: engine.run(inputs)[0], f"DeepSparse {deepsparse.__version__}"

    return [("deepsparse", engine)]


PEERS = {"torch": torch_peers, "onnxruntime": onnxruntime_peers, "deepsparse": deepsparse_peers}
# Which peer speaks for an engine that can run none.
NAMES = {"torch": "torch-dense", "onnxruntime": "onnx-runtime", "deepsparse": "deepsparse"}


def warm_up(run, seconds):
    """Runs at least twice and for some time; returns the time of the fastest run but the first, in milliseconds."""
    stop = time.perf_counter() + seconds
    run()
    fastest = float("inf")
    while True:
        begin = time.perf_counter()
        run()
        end = time.perf_counter()
        fastest = min(fastest, end - begin)
        if end >= stop:
            return 1e3 * fastest


def prepare(case, expected, engines):
    """Builds every peer of a case and compares its result with the expected one: answers, and the functions."""
    answers, runs = [], {}
    for engine in engines:
        for name, make in PEERS[engine](case):
            try:
                run, description = make()
                result = np.asarray(run(), dtype=np.float64)
            except Exception as error:
                # One that cannot run this case must not keep the others from it.
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                answers.append({"name": name, "skipped": reason[:300]})
                continue
            same_shape = result.shape == expected.shape
            error = np.linalg.norm(result - expected) / np.linalg.norm(expected) if same_shape else np.inf
            # JSON has no infinity; 1 says wrong as well.
            error = float(error) if np.isfinite(error) else 1.0
            runs[name] = run
            once = warm_up(run, PREPARE_WARM_UP)
            answers.append({"name": name, "engine": description, "relative_error": error, "once_ms": once})
    return answers, runs


def measure(run, repetitions):
    """Median and deciles of so many runs, in milliseconds."""
    warm_up(run, ROUND_WARM_UP)
    samples = np.empty(repetitions)
    for index in range(repetitions):
        begin = time.perf_counter_ns()
        run()
        samples[index] = time.perf_counter_ns() - begin
    p10, median, p90 = np.percentile(samples / 1e6, [10, 50, 90])
    return {"median_ms": median, "p10_ms": p10, "p90_ms": p90, "samples": repetitions}


def main():
    # Engines may print; only answers may reach the pipe that is standard output now.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")

    def answer(value):
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    versions, missing = {}, {}
    for engine in sys.argv[1:]:
        try:
            # All but PyTorch read an ONNX model.
            if engine != "torch":
                importlib.import_module("onnx")
            versions[engine] = importlib.import_module(engine).__version__
        except Exception as error:
            missing[engine] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    answer({"versions": versions, "missing": missing})

    runs = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            # Sessions of the case before give back their threads before new ones start.
            runs.clear()
            try:
                case = (ModelCase if request["model"] else LayerCase)(request)
                expected = case.expected()
            except Exception as error:
                reason = f"cannot read the case: {type(error).__name__}: {error}"
                answer({"peers": [{"name": NAMES[engine], "skipped": " ".join(reason.split())[:300]} for engine in versions]})
                continue
            peers, runs = prepare(case, expected, versions)
            answer({"peers": peers})
        else:
            answer(measure(runs[request["peer"]], request["repetitions"]))


if __name__ == "__main__":
    # Without gradients, as one runs a trained network.
    if "torch" in sys.argv[1:]:
        try:
            import torch

            torch.set_grad_enabled(False)
        except ImportError:
            pass
    main()
