"""Trains a perceptron on Fashion-MNIST with PyTorch, 784-300-100-10 as `srigl train --model mlp` does, and runs what is left.

python examples/fashion_mnist.py --sparsity 0.95
python examples/fashion_mnist.py --sparsity 0.99 --method rigl --epochs 5 --data DIR
"""

import argparse
import gzip
import pathlib
import struct

import numpy as np
import srigl.condensed
import srigl.torch
import torch
from torch import nn


def read(folder, name):
    path = pathlib.Path(folder) / name
    data = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(name + ".gz").read_bytes())
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape).copy())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--method", default="srigl")
    parser.add_argument("--gamma-sal", type=float, help="of srigl")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the four files")
    args = parser.parse_args()

    parts = []
    for part in ["train", "t10k"]:
        images = read(args.data, f"{part}-images-idx3-ubyte").reshape(-1, 784).float() / 255
        parts += [(images - 0.2860) / 0.3530, read(args.data, f"{part}-labels-idx1-ubyte").long()]
    x, y, test_x, test_y = parts

    torch.manual_seed(args.seed)
    model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    steps = args.epochs * (len(x) // 128 + 1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    settings = {} if args.gamma_sal is None else {"gamma_sal": args.gamma_sal}
    sparse = srigl.torch.sparsify(
        model, optimizer, args.sparsity, method=args.method, end_step=steps * 3 // 4, seed=args.seed, **settings
    )
    for epoch in range(args.epochs):
        for rows in torch.randperm(len(x)).split(128):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        with torch.no_grad():
            accuracy = 100 * (model(test_x).argmax(1) == test_y).float().mean().item()
        print(f"epoch {epoch + 1}/{args.epochs}: test accuracy {accuracy:.2f} %")

    for name, stats in sparse.stats().items():
        fan_in = stats["fan_in"] or f"{stats['fan_in_min']} to {stats['fan_in_max']}"
        print(f"layer {name}: {stats['active']} of {stats['neurons']} neurons, fan-in {fan_in}, {stats['nnz']} weights")
    engine = srigl.condensed.condense(model, (784,), masks=sparse.masks())
    hits = (engine.run(test_x).argmax(1) == test_y).float().mean().item()
    print(
        f"sparsity {100 * sparse.sparsity():.2f} %; in the engine: {100 * hits:.2f} %, {engine.nbytes} bytes of weights"
    )


if __name__ == "__main__":
    main()
