"""Images per second of torchvision's loader: what `examples/loader.rs` measures, on the same folder.

    python torchvision_loader.py DIR [WORKERS]

Prints the second epoch's rate; the first one starts the workers. PIL decodes, as by default.
"""

import sys
import time

import torch
from torchvision import datasets, transforms


def main():
    folder = sys.argv[1]
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    torch.set_num_threads(1)
    transform = transforms.Compose([
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(folder + "/train", transform),
        batch_size=64,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
    )
    for _ in range(2):
        start, images = time.perf_counter(), 0
        for _, labels in loader:
            images += len(labels)
        rate = images / (time.perf_counter() - start)
    print(f"{rate:.1f} images/s")


if __name__ == "__main__":
    main()
