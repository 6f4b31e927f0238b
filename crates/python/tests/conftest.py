"""What several tests share."""

import os
import pathlib
import struct
import subprocess

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="session")
def golden():
    """The folder of updates made with the authors' code."""
    return ROOT / "crates/sparsity-core/tests/golden"


@pytest.fixture(scope="session")
def srigl_command():
    """Runs the command `srigl`, as built by the workspace's tests."""
    path = pathlib.Path(os.environ.get("SRIGL_BIN", ROOT / "target/debug/srigl"))
    if not path.exists():
        if os.environ.get("SRIGL_REQUIRE_BIN"):
            pytest.fail(f"{path} is not built")
        pytest.skip(f"{path} is not built")

    def run(*arguments):
        done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run


def _idx(name):
    data = (FASHION_MNIST / name).read_bytes() if (FASHION_MNIST / name).exists() else None
    if data is None:
        import gzip

        data = gzip.decompress((FASHION_MNIST / f"{name}.gz").read_bytes())
    rank = data[3]
    shape = struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank])
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


@pytest.fixture(scope="session")
def fashion_mnist():
    """Images `[n, 784]`, normalised, and labels: training and test."""
    if not FASHION_MNIST.exists():
        if os.environ.get("SRIGL_REQUIRE_DATA"):
            pytest.fail("the data set is missing: apt-get install dataset-fashion-mnist")
        pytest.skip("the data set is missing: apt-get install dataset-fashion-mnist")
    parts = []
    for part in ["train", "t10k"]:
        images = _idx(f"{part}-images-idx3-ubyte").reshape(-1, 784).astype(np.float32) / 255
        parts += [(images - 0.2860) / 0.3530, _idx(f"{part}-labels-idx1-ubyte").astype(np.int64)]
    return parts
