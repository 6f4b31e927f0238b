"""The same network with a dense output layer in PyTorch, with the recipe of `srigl xmc train`.

Reads one JSON object on standard input and prints one. With `test` it trains `epochs` epochs and measures P@1, 3 and 5;
without, it takes `steps` steps.
"""

import json
import resource
import sys
import time

import torch
from torch import nn


def read(path):
    """Labels, features and values of each point, and how many features and labels there may be."""
    with open(path) as file:
        _, features, labels = map(int, file.readline().split())
        points = []
        for line in file:
            words = line.split(" ")
            pairs = [word.split(":") for word in words[1:]]
            points.append((
                torch.tensor([int(label) for label in words[0].split(",")]),
                torch.tensor([int(feature) for feature, _ in pairs]),
                torch.tensor([float(value) for _, value in pairs]),
            ))
    return points, features, labels


class Network(nn.Module):
    def __init__(self, features, hidden, labels, dropout, counts, points):
        super().__init__()
        self.embedding = nn.EmbeddingBag(features, hidden, mode="sum", sparse=True)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, labels)
        with torch.no_grad():
            self.embedding.weight.normal_(0.0, 0.01)
            share = (counts + 0.5) / (points + 1.0)
            self.output.bias.copy_((share / (1.0 - share)).log())

    def forward(self, batch):
        sizes = torch.tensor([0] + [len(features) for _, features, _ in batch]).cumsum(0)[:-1]
        features = torch.cat([features for _, features, _ in batch])
        values = torch.cat([values for _, _, values in batch])
        hidden = torch.relu(self.embedding(features, sizes, per_sample_weights=values) + self.bias)
        return self.output(self.dropout(hidden))


def loss_of(logits, batch, name):
    """The sum over labels, the mean over points. Labels that points have are few: no matrix of targets is made."""
    rows = torch.cat([torch.full_like(has, row) for row, (has, _, _) in enumerate(batch)])
    present = logits[rows, torch.cat([has for has, _, _ in batch])]
    if name == "bce":
        return (nn.functional.softplus(logits).sum() - present.sum()) / len(batch)
    absent = torch.relu(1.0 + logits).square().sum() - torch.relu(1.0 + present).square().sum()
    return (absent + torch.relu(1.0 - present).square().sum()) / len(batch)


def main():
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    torch.manual_seed(task["seed"])
    train, features, labels = read(task["train"])
    counts = torch.zeros(labels)
    for has, _, _ in train:
        counts[has] += 1.0
    network = Network(features, task["hidden"], labels, task["dropout"], counts, len(train))
    dense = [network.bias, *network.output.parameters()]
    optimizers = [torch.optim.SparseAdam(list(network.embedding.parameters())), torch.optim.Adam(dense, fused=True)]
    size = task["batch_size"]
    per_epoch = -(-len(train) // size)
    steps = task.get("steps") or task["epochs"] * per_epoch
    step, seconds, first_step = 0, 0.0, 0.0
    while step < steps:
        order = torch.randperm(len(train)).tolist()
        for first in range(0, len(train), size):
            if step == steps:
                break
            batch = [train[point] for point in order[first : first + size]]
            start = time.perf_counter()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = task["lr"] * (1.0 - step / steps)
                optimizer.zero_grad()
            loss_of(network(batch), batch, task["loss"]).backward()
            for optimizer in optimizers:
                optimizer.step()
            seconds += time.perf_counter() - start
            first_step = first_step or seconds
            step += 1
        print(f"PyTorch, dense: {step} of {steps} steps, {seconds:.1f} s", file=sys.stderr)
    result = {
        "torch": torch.__version__,
        # Without the first, which pays for memory that is used again.
        "seconds_per_step": (seconds - first_step) / (steps - 1),
        "seconds_per_epoch": seconds / steps * per_epoch,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }
    if "test" in task:
        network.eval()
        test, _, _ = read(task["test"])
        hits = [0, 0, 0]
        with torch.no_grad():
            for first in range(0, len(test), size):
                batch = test[first : first + size]
                best = network(batch).topk(5).indices.tolist()
                for (has, _, _), ranked in zip(batch, best):
                    has = set(has.tolist())
                    for at, k in enumerate((1, 3, 5)):
                        hits[at] += sum(label in has for label in ranked[:k])
        for hit, k in zip(hits, (1, 3, 5)):
            result[f"p_at_{k}"] = hit / k / len(test)
    print(json.dumps(result))


main()
