"""Measure the batch-norm statistics of the networks that have batch norms, and store them.

One pass over seeded images: each batch norm is replaced by its training form, which normalises by
the mean and variance of what arrives, so every later one sees normalised data. Run it again when
`benchmarks.weights` or the images change: ``python -m benchmarks.batch_norm``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

from benchmarks import models, weights

IMAGES = 8
SEED = 1_000_003


def measured(name: str) -> NDArray[np.float16]:
    """Means and population variances (2, channels): all batch norms, in graph order."""
    model = models.graph(name)
    models.set_batch(model, None)
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    _fill(name, model, norms)
    outputs = _train(model, norms)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(outputs, models.inputs(name, IMAGES, SEED))
    flat = [np.asarray(array, np.float32).ravel() for array in found]
    return np.stack([np.concatenate(flat[::2]), np.concatenate(flat[1::2])]).astype(np.float16)


def _fill(name: str, model: onnx.ModelProto, norms: list[onnx.NodeProto]) -> None:
    """Give every weight its values; the statistics, not known yet, are read by nothing."""
    absent = {name for node in norms for name in node.input[3:5]}
    reads = weights.readers(model.graph)
    for tensor in weights.weights(model.graph):
        zeros = {tensor.name: np.zeros(tuple(tensor.dims), np.float32)}
        array = weights.values(
            tensor,
            seed=name,
            gain=models.NETWORKS[name].gain,
            reads=reads,
            statistics=zeros if tensor.name in absent else {},
        )
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _train(model: onnx.ModelProto, norms: list[onnx.NodeProto]) -> list[str]:
    """Replace each batch norm by its training form; return the names of its mean and variance."""
    body = model.graph
    nodes: list[onnx.NodeProto] = []
    outputs: list[str] = []
    for node in body.node:
        if node.op_type != "BatchNormalization":
            nodes.append(node)
            continue
        nodes.extend(_training_form(node))
        outputs += [f"{node.output[0]}/mean", f"{node.output[0]}/variance"]
    body.initializer.append(numpy_helper.from_array(np.array([1, 2], np.int64), "spatial"))
    body.ClearField("node")
    body.node.extend(nodes)
    body.ClearField("output")
    body.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs
    )
    return outputs


def _training_form(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    x, scale, shift = node.input[:3]
    y = node.output[0]
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)

    def step(kind: str, sources: list[str], result: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, sources, [f"{y}/{result}" if result else y], **attributes)

    over = {"axes": [0, 2, 3], "keepdims": 1}
    return [
        step("ReduceMean", [x], "mean", **over),
        step("Sub", [x, f"{y}/mean"], "centred"),
        step("Mul", [f"{y}/centred", f"{y}/centred"], "squared"),
        step("ReduceMean", [f"{y}/squared"], "variance", **over),
        step(
            "Constant", [], "epsilon", value=numpy_helper.from_array(np.array(epsilon, np.float32))
        ),
        step("Add", [f"{y}/variance", f"{y}/epsilon"], "positive"),
        step("Sqrt", [f"{y}/positive"], "deviation"),
        step("Div", [f"{y}/centred", f"{y}/deviation"], "normal"),
        step("Unsqueeze", [scale], "scale", axes=[1, 2]),
        step("Mul", [f"{y}/normal", f"{y}/scale"], "scaled"),
        step("Unsqueeze", [shift], "shift", axes=[1, 2]),
        step("Add", [f"{y}/scaled", f"{y}/shift"], ""),
    ]


def main() -> None:
    for name in models.NAMES:
        if any(n.op_type == "BatchNormalization" for n in models.graph(name).graph.node):
            found = measured(name)
            np.save(models.FOLDER / f"{name}_batch_norm.npy", found)
            print(f"{name}: {found.shape[1]} channels, variances to {found[1].max():.3g}")


if __name__ == "__main__":
    main()
