"""Small models in ONNX's own text, random feeds for them, and running them in every way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import engine
from engine.debug.interpret import interpret
from engine.ir.graph import Graph
from engine.ir.sizes import evaluate, symbols
from engine.ir.types import Array, TensorType
from engine.onnx_io import read
from engine.tune.isolation import random_array


def model(
    body: str,
    *,
    opset: int = 21,
    functions: str = "",
    weights: Mapping[str, Array] | None = None,
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model from ``(float[N, 4] x) => (float[] y) { y = Relu(x) }``; ``[]`` is any shape."""
    imports = {"": opset, "local": 1, "ai.onnx.ml": 5, **(domains or {})}
    written = ", ".join(f'"{name}" : {version}' for name, version in imports.items())
    text = f"<ir_version: 10, opset_import: [{written}]>\nsmall {body}\n{functions}"
    proto = onnx.parser.parse_model(text)
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def graph_of(body: str, **details: Any) -> Graph:
    """The graph of a model given as for `model`."""
    return read(model(body, **details))


def random_feeds(graph: Graph, *, seed: int = 0, **sizes: int) -> dict[str, Any]:
    """Random data for every tensor input; a symbolic size that is not given is 3."""
    feeds: dict[str, Any] = {}
    for place, value in enumerate(graph.inputs):
        kind = value.tensor
        point = {name: sizes.get(name, 3) for dim in kind.dims for name in symbols(dim)}
        fixed = TensorType(kind.dtype, tuple(evaluate(dim, point) for dim in kind.dims))
        feeds[value.name] = random_array(fixed, seed + place)
    return feeds


def assert_close(found: Mapping[str, Any], expected: Mapping[str, Any], rtol: float = 2e-4) -> None:
    """The same names, and values that differ by rounding alone."""
    assert list(found) == list(expected)
    for name, wanted in expected.items():
        _assert_value(found[name], wanted, name, rtol)


def _assert_value(found: Any, wanted: Any, name: str, rtol: float) -> None:
    if isinstance(wanted, list):
        assert isinstance(found, list) and len(found) == len(wanted), name
        for index, (one, other) in enumerate(zip(found, wanted)):
            _assert_value(one, other, f"{name}[{index}]", rtol)
        return
    if wanted is None:
        assert found is None, name
        return
    assert found.dtype == wanted.dtype and found.shape == wanted.shape, (
        f"{name} is {found.dtype}{found.shape}, expected {wanted.dtype}{wanted.shape}"
    )
    if found.dtype.kind in "fc":
        scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-6))
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol * scale, err_msg=name)
    else:
        assert found.tolist() == wanted.tolist(), name


def built(proto: onnx.ModelProto, *, compile: str = "wait", **options: Any) -> engine.Engine:
    """An engine of a model, not tuned unless a level is given."""
    options.setdefault("level", 0)
    return engine.load(engine.build(proto, **options), compile=compile)  # type: ignore[arg-type]


def check(
    body: str,
    feeds: Mapping[str, Any] | None = None,
    *,
    sizes: Mapping[str, int] | None = None,
    **details: Any,
) -> dict[str, Any]:
    """Compiled, as NumPy twins and by its meaning a model gives the same; returns what it gives."""
    proto = model(body, **details)
    graph = read(proto)
    given = dict(feeds) if feeds is not None else random_feeds(graph, **(sizes or {}))
    expected = interpret(graph, given)
    for mode in ("wait", "never"):
        net = built(proto, compile=mode)
        for _ in range(2):  # the second time everything is bound
            assert_close(net(given), expected)
    return expected
