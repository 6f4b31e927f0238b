"""PyTorch's side of `srigl bench --torch`: `python -c SCRIPT DEVICE THREADS`, with DEVICE cpu, cuda or cuda:N.

Requests and answers are lines of JSON, one answer for each request:

    (at the start)                              {"torch": "2.11.0"} or {"error": why}
    {"do": "layer", "file": F, "stride": 1,     {"contenders": [{"name": "torch f32", "engine": "F.linear"}, ...]}
     "padding": 1}
    {"do": "model", "file": F, "model": NAME}   the same
    {"do": "train", "model": NAME, "batch": 64, the same; the calls of these are training steps on random images
     "float": "f32", "image": [3, 224, 224]}
    {"do": "time", "name": N, "calls": 100}     {"seconds": 0.1}: of all calls, until the device is idle
    {"do": "read", "name": N, "file": F}        {}: the last result is in F, as float32

An answer {"error": why} ends the program. Files are safetensors: `weight`, `bias`, `input` of a layer; the tensors of a
network of torchvision, and `input`.
"""

import json
import os
import struct
import sys
import time
import warnings

# Names in `srigl` and in torchvision.
MODELS = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "vit-b-16": "vit_b_16",
    "mobilenet-v3-large": "mobilenet_v3_large",
    "mobilenet-v3-small": "mobilenet_v3_small",
}


def read_safetensors(path):
    """The float32 tensors of a file, by name. The format is a length, a JSON header and the numbers."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = bytearray(file.read())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = torch.frombuffer(data, dtype=torch.float32, offset=begin, count=(end - begin) // 4)
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def f32(run):
    """`run` with products that are exact to float32."""
    return Contender(run, tf32=False)


def tf32(run):
    """`run` with products on tensor cores, whose inputs are rounded to 10 bits."""
    return Contender(run, tf32=True)


class Contender:
    """Something that can be called many times."""

    def __init__(self, run, tf32=False):
        self.run, self.tf32, self.result = run, tf32, None

    def time(self, calls):
        """Seconds of so many calls, until the device is idle."""
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32
        idle()
        begin = time.perf_counter()
        for _ in range(calls):
            self.result = self.run()
        idle()
        return time.perf_counter() - begin


def idle():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)


def layer(request):
    """A linear layer or convolution: {name: (engine, contender)}."""
    tensors = {name: tensor.to(DEVICE) for name, tensor in read_safetensors(request["file"]).items()}
    weight, bias, x = tensors["weight"], tensors["bias"], tensors["input"]
    half = [tensor.bfloat16() for tensor in (x, weight, bias)]
    if weight.ndim == 4:
        options = {"stride": request["stride"], "padding": request["padding"]}
        name = "F.conv2d"

        def product(x, weight, bias):
            return lambda: functional.conv2d(x, weight, bias, **options)

    else:
        name = "F.linear"

        def product(x, weight, bias):
            return lambda: functional.linear(x, weight, bias)

    contenders = {"torch f32": (name, f32(product(x, weight, bias)))}
    if DEVICE.type == "cuda":
        contenders["torch tf32"] = (name + ", TF32", tf32(product(x, weight, bias)))
    contenders["torch bf16"] = (name + ", bf16", f32(product(*half)))
    if weight.ndim == 2:
        sparse = weight.to_sparse_csr()
        # PyTorch makes 64-bit indices; 32 bits are enough and never slower.
        indices = sparse.crow_indices().int(), sparse.col_indices().int()
        sparse = torch.sparse_csr_tensor(*indices, sparse.values(), sparse.shape)
        # Which of the two is faster depends on the batch.
        contenders["torch csr linear"] = ("F.linear(x, csr, bias)", f32(lambda: functional.linear(x, sparse, bias)))
        contenders["torch csr product"] = ("(csr @ x.t()).t() + bias", f32(lambda: (sparse @ x.t()).t() + bias))
    return contenders


def network(name):
    """A network of torchvision with its usual initial weights."""
    import torchvision

    if name not in MODELS:
        raise ValueError(f"torchvision has no {name}: it has {', '.join(MODELS)}")
    return getattr(torchvision.models, MODELS[name])(weights=None)


def model(request):
    """A network with weights: {name: (engine, contender)}."""
    tensors = read_safetensors(request["file"])
    x = tensors.pop("input").to(DEVICE)
    net = network(request["model"])
    missing, unexpected = net.load_state_dict(tensors, strict=False)
    # PyTorch counts batches, which matters for nothing here.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"missing: {missing}, unexpected: {unexpected}")
    net = net.eval().to(DEVICE, memory_format=FORMAT)
    x = x.contiguous(memory_format=FORMAT)
    contenders = {"torch f32": ("torchvision", f32(lambda: net(x)))}
    if DEVICE.type == "cuda":
        contenders["torch tf32"] = ("torchvision, TF32", tf32(lambda: net(x)))
    half = copy.deepcopy(net).bfloat16()
    also = x.bfloat16()
    contenders["torch bf16"] = ("torchvision, bf16", f32(lambda: half(also)))
    return contenders


def train(request):
    """Training steps of a network, with the optimizer of the paper's recipe: {name: (engine, contender)}."""
    torch.set_grad_enabled(True)
    images = torch.rand(request["batch"], *request["image"], device=DEVICE).contiguous(memory_format=FORMAT)
    labels = torch.full((request["batch"],), 3, device=DEVICE)

    def contender(half, autocast, tf32):
        net = network(request["model"]).train().to(DEVICE, memory_format=FORMAT)
        x = images
        if half:
            net, x = net.bfloat16(), x.bfloat16()
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

        return Contender(step, tf32)

    if request["float"] == "bf16":
        return {
            "torch bf16": ("weights in bf16", contender(True, False, False)),
            "torch autocast": ("weights in f32, bf16 by autocast", contender(False, True, False)),
        }
    contenders = {"torch f32": ("f32", contender(False, False, False))}
    if DEVICE.type == "cuda":
        contenders["torch tf32"] = ("f32, TF32 allowed", contender(False, False, True))
    return contenders


def main(answer):
    runs = {}
    for line in sys.stdin:
        request = json.loads(line)
        todo = request["do"]
        if todo == "time":
            answer({"seconds": runs[request["name"]].time(request["calls"])})
        elif todo == "read":
            with open(request["file"], "wb") as file:
                file.write(runs[request["name"]].result.detach().float().cpu().contiguous().numpy().tobytes())
            answer({})
        else:
            contenders = {"layer": layer, "model": model, "train": train}[todo](request)
            runs.update({name: contender for name, (_, contender) in contenders.items()})
            version = f"PyTorch {torch.__version__}"
            answer({"contenders": [{"name": n, "engine": f"{version}, {e}"} for n, (e, _) in contenders.items()]})


# Libraries may print; only answers may reach the pipe that is standard output now.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
warnings.simplefilter("ignore")


def answer(value):
    answers.write(json.dumps(value) + "\n")
    answers.flush()


try:
    import copy

    import torch
    from torch.nn import functional

    DEVICE = torch.device(sys.argv[1])
    # As one trains and runs networks of convolutions on GPUs with tensor cores.
    FORMAT = torch.channels_last if DEVICE.type == "cuda" else torch.contiguous_format
    torch.set_num_threads(int(sys.argv[2]))
    # Without gradients, as one runs a trained network.
    torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = True
    torch.zeros(1, device=DEVICE)
    answer({"torch": torch.__version__})
    main(answer)
except Exception as error:
    answer({"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]})
