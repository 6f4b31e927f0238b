"""Times sparse networks in the engine beside PyTorch (eager, torch.compile) and ONNX Runtime, all called from Python, taking turns.

    pip install torch torchvision onnxruntime onnx
    python examples/inference.py
    python examples/inference.py --models mobilenet_v3_large --threads 1 --batch 8

Weights are random, with constant fan-in; each contender's results are compared with PyTorch's.
"""

import argparse
import io
import statistics
import time

import numpy as np
import srigl.condensed
import torch
import torchvision


def pruned(net, sparsity):
    """The largest weights of each neuron, as many in each; the first and the last layer stay dense."""
    layers = [
        m for m in net.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear, torch.nn.MultiheadAttention))
    ]
    for module in layers[1:-1]:
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                rows = parameter.data.reshape(parameter.shape[0], -1)
                k = max(1, round(rows.shape[1] * (1 - sparsity)))
                mask = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.abs().topk(k, 1).indices, True)
                rows.mul_(mask).mul_((rows.shape[1] / k) ** 0.5)
    for parameter in layers[-1].parameters():
        parameter.data.normal_(0, 0.02)
    return net.eval()


def onnx_session(net, x, threads):
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(net, (x,), file, input_names=["x"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x.numpy()})[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vit_b_16", "mobilenet_v3_large"])
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--without", nargs="*", default=[], help="contenders to leave out: compile, onnx")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    print(
        f"sparsity {args.sparsity}, batch {args.batch}, {args.threads} threads, medians of {args.rounds} rounds in turns\n"
    )
    print(
        "| network | engine ms | PyTorch ms | torch.compile ms | ONNX Runtime ms | over PyTorch | over compile | over ONNX |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in args.models:
        net = pruned(getattr(torchvision.models, name)(), args.sparsity)
        x = torch.randn(args.batch, 3, 224, 224)
        contenders = {"engine": srigl.condensed.condense(net, (3, 224, 224), threads=args.threads).run, "eager": net}
        if "compile" not in args.without:
            contenders["compile"] = torch.compile(net)
        if "onnx" not in args.without:
            contenders["onnx"] = onnx_session(net, x, args.threads)
        times = {contender: [] for contender in contenders}
        with torch.inference_mode():
            expected = net(x).numpy()
            for contender, run in contenders.items():
                error = np.abs(np.asarray(run(x)) - expected).max()
                assert error < 1e-3 * np.abs(expected).max() + 1e-5, (name, contender, error)
            for _ in range(args.rounds):
                for contender, run in contenders.items():
                    began = time.perf_counter()
                    run(x)
                    times[contender].append(1e3 * (time.perf_counter() - began))
        medians = {contender: statistics.median(of) for contender, of in times.items()}
        cells = [f"{medians[c]:.1f}" if c in medians else "" for c in ["engine", "eager", "compile", "onnx"]]
        ratios = [f"{medians[c] / medians['engine']:.2f}" if c in medians else "" for c in ["eager", "compile", "onnx"]]
        print(f"| {name} | {' | '.join(cells + ratios)} |", flush=True)


if __name__ == "__main__":
    main()
