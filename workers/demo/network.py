"""A ShuffleNet with seeded weights, inputs for it, and its outputs as onnxruntime computes them.

The graph is the one of the ONNX backend suite. Kernels are He-normal (He et al., 2015), batch norms
hold the statistics of one pass over seeded images. Only `numpy.random.RandomState` is used, whose
numbers are the same in every version of NumPy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.disk import disk_errors, write_whole

__all__ = ["INPUT", "OUTPUT", "expected", "images", "weight_values", "write_model"]

Float32 = NDArray[np.float32]

FOLDER = Path(__file__).parent
NAME = "demo_shufflenet"
INPUT, OUTPUT = "gpu_0/data_0", "gpu_0/softmax_1"
WEIGHTS_FILE = "demo_shufflenet.weights"
ALIGNMENT = 64
IMAGES = 4


def write_model(folder: Path) -> Path:
    """Write the graph and its weights into a folder, unless they are there; the graph's path."""
    graph, weights = folder / f"{NAME}.onnx", folder / WEIGHTS_FILE
    content = (FOLDER / "model.onnx").read_bytes()
    with disk_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        if not weights.is_file() or weights.stat().st_size != weights_nbytes():
            write_whole(weights, _aligned())
        if not graph.is_file() or graph.read_bytes() != content:
            write_whole(graph, [content])
    return graph


def table() -> list[dict[str, Any]]:
    """Name, shape, kind and number of summed products of each weight, in file order."""
    found: list[dict[str, Any]] = json.loads((FOLDER / "weights.json").read_bytes())
    return found


def weights_nbytes() -> int:
    """The length of the weights' file."""
    return sum(_padded(4 * int(np.prod(row["shape"]))) for row in table())


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _aligned() -> Iterator[bytes]:
    statistics = np.load(FOLDER / "batch_norm.npy", allow_pickle=False)
    for array in weight_values(table(), statistics):
        content = array.tobytes()
        yield content + bytes(_padded(len(content)) - len(content))


def weight_values(rows: list[dict[str, Any]], statistics: NDArray[Any] | None) -> Iterator[Float32]:
    """The weights in order; ``statistics`` holds means and variances (2, channels) in order.

    Without statistics means are 0 and variances 1.
    """
    taken = {"mean": 0, "variance": 0}
    for row in rows:
        kind, shape = row["kind"], tuple(row["shape"])
        if kind in taken:
            begin = taken[kind]
            taken[kind] += shape[0]
            if statistics is None:
                yield np.full(shape, kind == "variance", np.float32)
            else:
                which = 0 if kind == "mean" else 1
                yield statistics[which, begin : taken[kind]].astype(np.float32)
            continue
        noise = generator(row["name"]).standard_normal(shape)
        if kind == "kernel":
            noise *= np.sqrt(2.0 / row["fan_in"])
        elif kind == "scale":
            noise = 1 + 0.1 * noise
        else:
            noise *= 0.05
        yield np.asarray(noise).astype(np.float32)


def generator(text: str) -> np.random.RandomState:
    """A generator seeded by a text; its stream never changes between versions of NumPy."""
    seed = hashlib.sha256(f"enginefarm demo/{text}".encode()).digest()
    return np.random.RandomState(list(seed))


def images(count: int = IMAGES, seed: str = "images") -> list[Float32]:
    """Images (1, 3, 224, 224) with the same power at each scale, as photographs have about."""
    random = generator(seed)
    found = []
    for _ in range(count):
        total = np.zeros((1, 3, 224, 224))
        for size in (1, 4, 14, 56, 224):
            coarse = random.standard_normal((1, 3, size, size))
            total += coarse.repeat(224 // size, axis=2).repeat(224 // size, axis=3)
        found.append((total / np.sqrt(5)).astype(np.float32))
    return found


def expected() -> list[Float32]:
    """The outputs (1, 1000) for `images`, computed once by onnxruntime."""
    return list(np.load(FOLDER / "expected.npy", allow_pickle=False))
