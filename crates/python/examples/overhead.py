"""What sparse training costs beside dense training in PyTorch: of a step, and of an update of the topology.

    python examples/overhead.py
    python examples/overhead.py --authors condensed-sparsity   # beside the authors' scheduler, from a clone of their repository

The contenders take turns, step by step. A step is forward, backward and optimizer; an update is what a step with one takes longer.
With SRigL, 90 %, SGD with momentum.
"""

import argparse
import copy
import statistics
import sys
import time
import types

import srigl.torch
import torch
import torchvision
from torch import nn

DELTA_T = 10


class Dense:
    def __init__(self, net):
        self.net, self.optimizer = net, torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def step(self, x, y):
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.net(x), y).backward()
        self.optimizer.step()


class Ours(Dense):
    def __init__(self, net, sparsity):
        super().__init__(net)
        self.sparse = srigl.torch.sparsify(net, self.optimizer, sparsity, end_step=10**6, delta_t=DELTA_T)


class Authors(Dense):
    def __init__(self, net, sparsity):
        super().__init__(net)
        from rigl_torch.rigl_constant_fan import RigLConstFanScheduler

        self.scheduler = RigLConstFanScheduler(
            net,
            self.optimizer,
            dense_allocation=1 - sparsity,
            T_end=10**6,
            sparsity_distribution="erk",
            delta=DELTA_T,
            alpha=0.3,
            dynamic_ablation=True,
            min_salient_weights_per_neuron=0.3,
        )

    def step(self, x, y):
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.net(x), y).backward()
        if self.scheduler():
            self.optimizer.step()


def networks():
    mlp = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    yield "mlp", mlp, (128, 1, 28, 28), 200
    yield "resnet18 at 32×32", torchvision.models.resnet18(num_classes=10), (32, 3, 32, 32), 40
    yield "vit_b_16", torchvision.models.vit_b_16(num_classes=10), (1, 3, 224, 224), 20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--authors", metavar="FOLDER", help="a clone of calgaryml/condensed-sparsity")
    parser.add_argument("--networks", nargs="*", help="only these")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    kinds = {"dense": lambda net: Dense(net), "srigl": lambda net: Ours(net, args.sparsity)}
    if args.authors:
        sys.path.insert(0, f"{args.authors}/src")
        # What it imports for its own logs.
        sys.modules.setdefault("wandb", types.ModuleType("wandb"))
        config = types.ModuleType("omegaconf")
        config.DictConfig = dict
        sys.modules.setdefault("omegaconf", config)
        kinds["authors"] = lambda net: Authors(net, args.sparsity)
    print(
        "| network | contender | step ms | over dense | update ms | of 100 steps and an update |\n|---|---|---|---|---|---|"
    )
    for name, net, shape, steps in networks():
        if args.networks and name.split()[0] not in args.networks:
            continue
        contenders = {kind: make(copy.deepcopy(net)) for kind, make in kinds.items()}
        times = {kind: ([], []) for kind in kinds}
        for i in range(1, steps + 1):
            x, y = torch.randn(shape), torch.randint(0, 10, shape[:1])
            for kind, contender in contenders.items():
                began = time.perf_counter()
                contender.step(x, y)
                times[kind][i % DELTA_T == 0].append(1e3 * (time.perf_counter() - began))
        dense = statistics.median(times["dense"][0][2:])
        for kind, (plain, updates) in times.items():
            step = statistics.median(plain[2:])
            cells = [f"{step:.2f}", f"{step / dense:.2f}"]
            if kind == "dense":
                cells += ["", ""]
            else:
                update = statistics.median(updates) - step
                cells += [f"{update:.1f}", f"{100 * update / (100 * step + update):.2f} %"]
            print(f"| {name} | {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
