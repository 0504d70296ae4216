"""Write the files of `workers/demo`: graph, table of weights, batch-norm statistics, outputs.

``python -m benchmarks.export_demo`` needs the packages onnx and onnxruntime. Statistics come from
one pass over eight seeded images, as in `benchmarks.batch_norm`; the outputs from onnxruntime.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

from benchmarks import batch_norm, models, weights
from workers.demo import network

SOURCE = "shufflenet"
STATISTICS_IMAGES = 8


def rows(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """What `network.weight_values` needs to know of each weight."""
    reads = weights.readers(model.graph)
    found = []
    for tensor in weights.weights(model.graph):
        kind, reader = weights.kind_of(tensor, reads)
        shape = tuple(tensor.dims)
        row = {"name": tensor.name, "kind": kind, "shape": list(shape)}
        if kind == "kernel":
            row["fan_in"] = weights.fan_in(shape, reader)
        found.append(row)
    return found


def external(model: onnx.ModelProto) -> None:
    """Point every weight at its place in the file that `network.write_model` writes."""
    offset = 0
    for tensor in weights.weights(model.graph):
        length = 4 * int(np.prod(tensor.dims))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        facts = (("location", network.WEIGHTS_FILE), ("offset", offset), ("length", length))
        for key, value in facts:
            tensor.external_data.add(key=key, value=str(value))
        offset += -(-length // network.ALIGNMENT) * network.ALIGNMENT


def measured(table: list[dict[str, Any]]) -> NDArray[np.float16]:
    """Means and variances (2, channels) of all batch norms in the order of the table."""
    model = models.graph(SOURCE)
    models.set_batch(model, None)
    values = network.weight_values(table, None)
    for tensor, array in zip(weights.weights(model.graph), values, strict=True):
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    names = [tuple(node.input[3:5]) for node in norms]
    outputs = batch_norm._train(model, norms)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = np.concatenate(network.images(STATISTICS_IMAGES, "statistics"))
    found = [np.asarray(a, np.float32).ravel() for a in session.run(outputs, {network.INPUT: feed})]
    by_name = {}
    for index, (mean, variance) in enumerate(names):
        by_name[mean], by_name[variance] = found[2 * index], found[2 * index + 1]
    both = [
        np.concatenate([by_name[row["name"]] for row in table if row["kind"] == kind])
        for kind in ("mean", "variance")
    ]
    return np.stack(both).astype(np.float16)


def main() -> None:
    model = models.graph(SOURCE)
    models.set_batch(model, 1)
    table = rows(model)
    lines = ",\n".join(json.dumps(row) for row in table)
    (network.FOLDER / "weights.json").write_text(f"[\n{lines}\n]\n")
    np.save(network.FOLDER / "batch_norm.npy", measured(table))
    external(model)
    content = model.SerializeToString(deterministic=True)
    (network.FOLDER / "model.onnx").write_bytes(content)
    with tempfile.TemporaryDirectory() as folder:
        path = network.write_model(Path(folder))
        session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
        results = [session.run(None, {network.INPUT: x})[0] for x in network.images()]
    stacked = np.stack(results)
    np.save(network.FOLDER / "expected.npy", stacked)
    print(f"outputs vary by {stacked.std(axis=0).max():.3g} between {len(results)} images")


if __name__ == "__main__":
    main()
