"""A tiny network that needs no model file, for trying a machine out."""

from __future__ import annotations

import numpy as np

from engine.building import BuildOptions, assemble_plan, optimise
from engine.ir.graph import Graph, Node
from engine.ir.infer import infer
from engine.ir.types import DType, TensorType
from engine.ops.operator import find
from engine.plan.plan import Plan

__all__ = ["tiny_graph", "tiny_model"]

OPSET = 17


def tiny_graph() -> tuple[Graph, Plan]:
    """Two matrix products with a bias, Relu and Softmax (x [3, 16] to y [3, 8]), and its plan.

    The graph is the one before any pass; nothing is measured.
    """
    plan = assemble_plan(optimise(tiny_model()), BuildOptions(level=0), ())
    return tiny_model(), plan


def tiny_model() -> Graph:
    """The network alone, before any pass."""
    random = np.random.default_rng(0)
    graph = Graph("tiny")
    x = graph.value("x", TensorType(DType.FLOAT32, (3, 16)))
    graph.inputs = [x]
    for index, (rows, columns) in enumerate(((16, 32), (32, 8))):
        w = random.standard_normal((rows, columns)).astype(np.float32)
        b = random.standard_normal(columns).astype(np.float32)
        for kind, operands in (("MatMul", (w,)), ("Add", (b,)), (("Relu", "Softmax")[index], ())):
            constants = [graph.constant(f"{kind}{index}.w", operand) for operand in operands]
            op = find("", kind, OPSET).from_attributes({})
            y = graph.value(f"{kind}{index}", TensorType(DType.FLOAT32, None))
            graph.append(Node(op, [x, *constants], [y], name=f"{kind.lower()}{index}"))
            x = y
    graph.outputs, graph.output_names = [x], ["y"]
    infer(graph)
    return graph
