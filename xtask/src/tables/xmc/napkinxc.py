"""napkinxc's probabilistic label tree with linear nodes: reads one JSON object on standard input and prints one."""

import json
import resource
import sys
import tempfile
import time

from napkinxc.datasets import load_libsvm_file
from napkinxc.metrics import precision_at_k
from napkinxc.models import PLT

task = json.load(sys.stdin)
x, y = load_libsvm_file(task["train"])
x_test, y_test = load_libsvm_file(task["test"])
with tempfile.TemporaryDirectory() as folder:
    tree = PLT(folder, threads=task["threads"], seed=task["seed"])
    start = time.perf_counter()
    tree.fit(x, y)
    seconds = time.perf_counter() - start
    precision = precision_at_k(y_test, tree.predict(x_test, top_k=5), k=5)
print(json.dumps({
    "seconds": seconds,
    "p_at_1": precision[0],
    "p_at_3": precision[2],
    "p_at_5": precision[4],
    "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
}))
