"""PyTorch's side of `srigl bench --torch`: `python -c SCRIPT DEVICE THREADS`, with DEVICE cpu, cuda or cuda:N.

Requests and answers are lines of JSON, one answer for each request:

    (at the start)                              {"torch": "2.11.0"} or {"error": why}
    {"do": "layer", "file": F, "stride": 1,     {"contenders": [{"name": "torch f32", "engine": "F.linear"}, ...]}
     "padding": 1}
    {"do": "model", "file": F, "model": NAME}   the same
    {"do": "train", "model": NAME, "batch": 64, the same; the calls of these are training steps on random images
     "float": "f32", "image": [3, 224, 224]}
    {"do": "time", "name": N, "calls": 100}     {"seconds": 0.1}: of all calls, until the device is idle
    {"do": "device", "name": N}                 {"seconds": 1e-5}: of one call by the GPU's clock, its caches cold
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


class Contender:
    """Something that can be called many times."""

    def __init__(self, run, tf32=False):
        self.run, self.tf32, self.result = run, tf32, None

    def allow(self):
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.allow_tf32 = self.tf32

    def device_time(self):
        """Seconds of a call by the GPU's clock. It waits behind a copy that is longer than the call takes to be made and
        that leaves nothing of the call's data in the caches."""
        global BUSY
        self.allow()
        if BUSY is None:
            BUSY = torch.zeros(2**26, device=DEVICE), torch.zeros(2**26, device=DEVICE)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.add(BUSY[0], 1.0, out=BUSY[1])
        begin.record()
        self.result = self.run()
        end.record()
        idle()
        return begin.elapsed_time(end) / 1e3

    def time(self, calls):
        """Seconds of so many calls, until the device is idle."""
        self.allow()
        idle()
        begin = time.perf_counter()
        for _ in range(calls):
            self.result = self.run()
        idle()
        return time.perf_counter() - begin


BUSY = None


def fastest(contenders):
    """Of several ways to the same result the one that is fastest here, after a warm-up."""

    def seconds(contender):
        contender.time(3)
        return min(contender.time(10) for _ in range(3))

    return min(contenders, key=seconds)


def idle():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)


def formats(tensor):
    """An image tensor in the memory formats that are worth a try: tensor cores want channels last, others may not."""
    yield tensor.contiguous()
    if DEVICE.type == "cuda":
        yield tensor.contiguous(memory_format=torch.channels_last)


def layer(request):
    """A linear layer or convolution: {name: (engine, contender)}."""
    tensors = {name: tensor.to(DEVICE) for name, tensor in read_safetensors(request["file"]).items()}
    weight, bias, x = tensors["weight"], tensors["bias"], tensors["input"]
    half = [tensor.bfloat16() for tensor in (x, weight, bias)]
    if weight.ndim == 4:
        options = {"stride": request["stride"], "padding": request["padding"]}
        name = "F.conv2d"

        def dense(x, weight, bias, tf32):
            pairs = zip(formats(x), formats(weight))
            runs = [lambda x=x, w=w: functional.conv2d(x, w, bias, **options) for x, w in pairs]
            return fastest([Contender(run, tf32) for run in runs])

    else:
        name = "F.linear"

        def dense(x, weight, bias, tf32):
            return Contender(lambda: functional.linear(x, weight, bias), tf32)

    contenders = {"torch f32": (name, dense(x, weight, bias, False))}
    if DEVICE.type == "cuda":
        contenders["torch tf32"] = (name + ", TF32", dense(x, weight, bias, True))
    contenders["torch bf16"] = (name + ", bf16", dense(*half, False))
    if weight.ndim == 2:
        sparse = weight.to_sparse_csr()
        # PyTorch makes 64-bit indices; 32 bits are enough and never slower.
        indices = sparse.crow_indices().int(), sparse.col_indices().int()
        sparse = torch.sparse_csr_tensor(*indices, sparse.values(), sparse.shape)
        # Which is faster depends on the batch.
        ways = {
            "linear": ("F.linear(x, csr, bias)", lambda: functional.linear(x, sparse, bias)),
            "product": ("(csr @ x.t()).t() + bias", lambda: (sparse @ x.t()).t() + bias),
        }
        if x.shape[0] == 1:
            ways["vector"] = ("csr @ x[0] + bias", lambda: (sparse @ x[0] + bias)[None])
        for way, (engine, run) in ways.items():
            contenders[f"torch csr {way}"] = (engine, Contender(run))
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
    net = net.eval().to(DEVICE)

    def contender(net, x, tf32):
        nets = [net]
        if DEVICE.type == "cuda":
            nets.append(copy.deepcopy(net).to(memory_format=torch.channels_last))
        runs = [lambda net=net, x=x: net(x) for net, x in zip(nets, formats(x))]
        return fastest([Contender(run, tf32) for run in runs])

    contenders = {"torch f32": ("torchvision", contender(net, x, False))}
    if DEVICE.type == "cuda":
        contenders["torch tf32"] = ("torchvision, TF32", contender(net, x, True))
    half = copy.deepcopy(net).bfloat16()
    contenders["torch bf16"] = ("torchvision, bf16", contender(half, x.bfloat16(), False))
    return contenders


def train(request):
    """Training steps of a network, with the optimizer of the paper's recipe: {name: (engine, contender)}."""
    torch.set_grad_enabled(True)
    images = torch.rand(request["batch"], *request["image"], device=DEVICE)
    labels = torch.full((request["batch"],), 3, device=DEVICE)

    def step_of(half, autocast, x):
        net = network(request["model"]).train().to(DEVICE)
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
        return fastest([Contender(step_of(half, autocast, x), tf32) for x in formats(images)])

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
        elif todo == "device":
            answer({"seconds": runs[request["name"]].device_time()})
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
    torch.set_num_threads(int(sys.argv[2]))
    # Without gradients, as one runs a trained network.
    torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = True
    torch.zeros(1, device=DEVICE)
    answer({"torch": torch.__version__})
    main(answer)
except Exception as error:
    answer({"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]})
