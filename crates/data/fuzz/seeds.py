"""Writes the files that the fuzz targets start from into `corpus/`, from `../tests/fixtures`."""

import gzip
import io
import os
import struct
import tarfile

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURES = os.path.join(HERE, "../tests/fixtures")
PIXELS = 3 * 32 * 32


def seed(target, name, content):
    folder = os.path.join(HERE, "corpus", target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(content)


def fixture(name):
    with open(os.path.join(FIXTURES, name), "rb") as file:
        return file.read()


for name in sorted(os.listdir(FIXTURES)):
    if name.endswith((".jpg", ".png", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tif", ".webp")):
        content = fixture(name)
        if len(content) < 10_000:
            seed("pictures", name, b"\0" + content)  # 0: it begins as it is
    elif name.startswith("pickle-"):
        for choice in b"\2\3":
            seed("cifar", f"{name}-{choice}", bytes([choice]) + fixture(name))

for name, dims, body in [("images", [2, 28, 28], bytes(2 * 784)), ("labels", [3], b"\1\2\3")]:
    content = struct.pack(f">BBBB{len(dims)}I", 0, 0, 8, len(dims), *dims) + body
    for number in b"\0\1":
        seed("idx", f"{name}-{number}", bytes([number]) + content)
        seed("idx", f"{name}-{number}.gz", bytes([number]) + gzip.compress(content, mtime=0))

record = b"\3" + bytes(PIXELS)
seed("cifar", "records-10", b"\0" + 2 * record)
seed("cifar", "records-100", b"\1" + 2 * (b"\1" + record))
archive = io.BytesIO()
with tarfile.open(fileobj=archive, mode="w") as tar:
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
        entry.size = 2 * len(record)
        tar.addfile(entry, io.BytesIO(2 * record))
seed("cifar", "archive", b"\0" + archive.getvalue())
