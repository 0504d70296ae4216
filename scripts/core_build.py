"""Build a small CPU engine and save it beside one input and the output expected for it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import engine


def small_model(*, seed: int) -> onnx.ModelProto:
    """A convolution, a rectifier, a mean and a product; x is (batch, 3, 16, 16) float32."""
    rng = np.random.default_rng(seed)
    weights = {
        "kernel": rng.standard_normal((8, 3, 3, 3)) / 5,
        "bias": rng.standard_normal(8),
        "head": rng.standard_normal((8, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "head"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "core_check",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def expected(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """The answer of onnx's own reference evaluator, which shares no code with the engine."""
    from onnx.reference import ReferenceEvaluator

    (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    return np.asarray(y)


def main() -> None:
    folder = Path(sys.argv[1])
    model = small_model(seed=0)
    onnx.save(model, folder / "model.onnx")
    engine.build(str(folder / "model.onnx"), target="cpu").save(folder / "model.engine")
    x = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    np.savez(folder / "case.npz", x=x, y=expected(model, x))


if __name__ == "__main__":
    main()
