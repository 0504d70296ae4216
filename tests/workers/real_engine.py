"""The command line with the real compiler, a small model, and a plan of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import engine
from storage.records import Json
from tests.workers.conftest import CommandLine


class RealLine(CommandLine):
    """`enginefarm` with the real compiler, on a home of its own."""

    def variables(self, null: str) -> dict[str, str]:
        return {**super().variables(null), "ENGINEFARM_COMPILER": "engine"}

    @property
    def network(self) -> Path:
        """A small convnet with a symbolic batch."""
        path = self.folder / "net.onnx"
        if not path.exists():
            path.write_bytes(convnet().SerializeToString())
        return path

    @property
    def plan(self) -> Path:
        """A plan of it for 1 to 4 images, made without measuring anything."""
        path = self.folder / "net.engine"
        if not path.exists():
            shapes = {"x": ("batch=1..2..4", 3, 16, 16)}
            engine.build(self.network, shapes=shapes, level=0).save(path)
        return path

    def feeds(self, batch: int = 2) -> dict[str, np.ndarray]:
        random = np.random.default_rng(batch)
        return {"x": random.standard_normal((batch, 3, 16, 16)).astype(np.float32)}

    def refused(self, *words: object, code: int) -> str:
        """What stderr says about a refusal: one line, after what was announced."""
        _, err = self.run(*words, code=code)
        assert "Traceback" not in err
        return err.strip().splitlines()[-1]

    def outcome(self, *words: object, code: int = 0) -> Json:
        return self.json(*words, code=code)


def convnet() -> helper.ModelProto:
    """Convolution, Relu, a second one with a residual, mean over the image, product, Softmax."""
    random = np.random.default_rng(7)

    def weight(name: str, *shape: int) -> TensorProto:
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["a2"], "add2"),
        helper.make_node("GlobalAveragePool", ["a2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "w3"], ["m"], "product"),
        helper.make_node("Softmax", ["m"], ["y"], "softmax"),
    ]
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "convnet",
        [helper.make_tensor_value_info("x", float32, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", float32, ["batch", 5])],
        [weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("w2", 8, 8, 3, 3), weight("w3", 8, 5)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
