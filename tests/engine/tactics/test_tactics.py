"""Every tactic of a CPU: each candidate computes what its node means, at sizes of all kinds.

A tactic without a case here fails `test_every_tactic_serves_a_case`. Those of a GPU have files of
their own beside this one; `test_gpu_tactics.py` counts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import engine
from engine.debug.interpret import interpret
from engine.errors import EngineError
from engine.ir.graph import Graph, Node
from engine.lower.lowering import lower
from engine.onnx_io import read
from engine.passes import run_pipeline
from engine.plan.plan import Plan
from engine.profile import Profile, profile_symbols
from engine.runtime.compilation import find_compiler
from engine.tactics import (
    Candidate,
    Refusal,
    c_attention,
    c_concat,
    c_convolution,
    c_gemm,
    c_region,
    c_transpose,
    c_windows,
    candidates,
    numpy_meaning,
    register,
)
from engine.tactics.tactic import _TACTICS, _discover
from engine.target import CPU_SOURCES, describe
from tests.engine.small_models import assert_close, model, random_feeds

_discover()
MODULES = [
    *(c_attention, c_concat, c_convolution, c_gemm),
    *(c_region, c_transpose, c_windows, numpy_meaning),
]
RNG = np.random.default_rng(2)


def weight(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:] or (1,)))).astype(np.float32)


@dataclass
class Case:
    """A model and the sizes at which its layers run; tails of all tiles among them."""

    body: str
    points: list[dict[str, int]]
    weights: dict[str, Any] = field(default_factory=dict)


ROWS = [{"N": n} for n in (0, 1, 2, 5, 17, 70)]
IMAGES = [{"N": n, "H": h} for n, h in ((1, 3), (2, 7), (1, 12), (0, 6), (3, 5))]
CASES = {
    "product with packed filters": Case(
        "(float[N, 19] x) => (float[] y) { y = MatMul (x, w) }", ROWS, {"w": weight(19, 37)}
    ),
    "product with a transposed filter, bias and residual": Case(
        """(float[N, 40] x, float[N, 33] r) => (float[] y) {
        a = Gemm <transB = 1, alpha = 0.5> (x, w, c) b = Add (a, r) y = Tanh (b) }""",
        ROWS,
        {"w": weight(33, 40), "c": weight(33)},
    ),
    "product of two inputs in batches": Case(
        "(float[B, 3, N, 9] x, float[B, 3, 9, M] z) => (float[] y) { y = MatMul (x, z) }",
        [{"B": b, "N": n, "M": m} for b, n, m in ((1, 1, 1), (2, 5, 17), (3, 16, 33), (0, 4, 4))],
    ),
    "product whose batch is broadcast": Case(
        "(float[B, 1, N, 6] x, float[3, 6, 11] z) => (float[] y) { y = MatMul (x, z) }",
        [{"B": 1, "N": 4}, {"B": 2, "N": 9}],
    ),
    "convolution": Case(
        """(float[N, 8, H, 9] x) => (float[] y) {
        a = Conv <strides = [2, 1], pads = [1, 2, 0, 1]> (x, w, b) y = Relu (a) }""",
        IMAGES,
        {"w": weight(21, 8, 3, 2), "b": weight(21)},
    ),
    "convolution of an image": Case(
        "(float[N, 3, H, 11] x) => (float[] y) { y = Conv <pads = [3, 3, 3, 3]> (x, w) }",
        IMAGES,
        {"w": weight(16, 3, 7, 7)},
    ),
    "convolution in groups with holes": Case(
        """(float[N, 12, H, 13] x) => (float[] y) {
        y = Conv <group = 3, dilations = [1, 3], pads = [1, 1, 1, 1]> (x, w, b) }""",
        IMAGES,
        {"w": weight(15, 4, 3, 3), "b": weight(15)},
    ),
    "convolution 3x3 with residual": Case(
        """(float[N, 10, H, 10] x) => (float[] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b) c = Add (a, x) y = Sigmoid (c) }""",
        IMAGES,
        {"w": weight(10, 10, 3, 3), "b": weight(10)},
    ),
    "convolution 3x3 in groups": Case(
        "(float[N, 8, H, 6] x) => (float[] y) { y = Conv <group = 2, pads = [1, 0, 1, 0]> (x, w) }",
        IMAGES,
        {"w": weight(12, 4, 3, 3)},
    ),
    "depthwise convolution": Case(
        """(float[N, 19, H, 8] x) => (float[] y) {
        a = Conv <group = 19, pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b) y = Relu (a) }""",
        IMAGES,
        {"w": weight(19, 1, 3, 3), "b": weight(19)},
    ),
    "pooling": Case(
        """(float[N, 18, H, 9] x) => (float[] a, float[] b, float[] c) {
        a = MaxPool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 1],
            ceil_mode = 1> (x)
        b = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)
        c = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1],
            count_include_pad = 1> (x) }""",
        IMAGES,
    ),
    "concatenation": Case(
        """(float[N, 3, H] x, float[N, 2, H] z, float[N, 3, H] v) => (float[] a, float[] b) {
        a = Concat <axis = 1> (x, z, v) b = Concat <axis = 2> (x, v) }""",
        IMAGES,
    ),
    "transposes": Case(
        """(float[N, 5, H, 7] x, int8[H, 33] z) => (float[] a, float[] b, int8[] c) {
        a = Transpose <perm = [3, 1, 0, 2]> (x) b = Transpose <perm = [0, 2, 3, 1]> (x)
        c = Transpose (z) }""",
        IMAGES,
    ),
    "regions": Case(
        """(float[N, 1, H] x, float[N, 4, 1] z, int64[H] i) => (float[] y, float[] l, int64[] k) {
        a = Add (x, z) b = Softmax <axis = -1> (a) y = Mul (b, a)
        l = LayerNormalization <axis = -1> (y, one) k = Mul (i, i) }""",
        IMAGES[:2],
        {"one": np.ones(1, np.float32)},
    ),
    "attention": Case(
        """(float[B, 2, L, 12] q, float[B, 2, M, 12] k, float[B, 2, M, 12] v, float[B, 1, L, M] m)
        => (float[] y) {
        t = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, t) a = Add (s, m)
        p = Softmax <axis = -1> (a) y = MatMul (p, v) }""",
        [{"B": b, "L": n, "M": m} for b, n, m in ((1, 1, 1), (2, 5, 9), (1, 33, 70), (1, 64, 64))],
    ),
    "causal attention with grouped heads": Case(
        """(float[B, L, 64] q, float[B, L, 32] k) => (float[] y) {
        y = Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, k) }""",
        [{"B": 1, "L": 1}, {"B": 2, "L": 17}, {"B": 1, "L": 50}],
    ),
    "on the host": Case(
        "(float[N, 6] x) => (float[] y, int64[] i) { y, i = TopK <axis = -1> (x, k) }",
        ROWS[1:3],
        {"k": np.array([2], np.int64)},
    ),
}
GRAPHS: dict[str, Graph] = {}


def optimised(name: str) -> Graph:
    if name not in GRAPHS:
        graph = read(model(CASES[name].body, opset=23, weights=CASES[name].weights))
        run_pipeline(graph, checked=True)
        GRAPHS[name] = graph
    return GRAPHS[name]


def layers(name: str) -> Iterator[tuple[Node, dict[str, int], list[Candidate]]]:
    """Every layer with each point and all candidates offered there."""
    for node in optimised(name).nodes:
        for point in CASES[name].points:
            offered, refused = candidates(node, ("c", "numpy"), point, describe())
            assert all(item.reason for item in refused)
            yield node, point, offered


def test_every_tactic_serves_a_case() -> None:
    served = {c.tactic for name in CASES for _, _, offered in layers(name) for c in offered}
    own = {name: type(item).__module__ for name, item in _TACTICS.items()}
    sources = {name: name.partition(".")[0] for name in own}
    own = {
        name: home
        for name, home in own.items()
        if home.startswith("engine.tactics.") and sources[name] in CPU_SOURCES
    }
    assert served >= set(own)
    assert set(own.values()) == {module.__name__ for module in MODULES}


def variants(name: str) -> Iterator[dict[str, tuple[Candidate, int]]]:
    """Choices for all layers, until every candidate of every layer was chosen once."""
    offers: dict[str, dict[str, Candidate]] = {}
    for node, _, offered in layers(name):
        for candidate in offered:
            offers.setdefault(node.name, {}).setdefault(identity(candidate), candidate)
    for turn in range(max(map(len, offers.values()))):
        lists = {layer: list(found.values()) for layer, found in offers.items()}
        yield {layer: (found[turn % len(found)], 0) for layer, found in lists.items()}


def identity(candidate: Candidate) -> str:
    return f"{candidate.tactic} {json.dumps(dict(candidate.choice), sort_keys=True)}"


@pytest.mark.skipif(find_compiler() is None, reason="no C compiler")
@pytest.mark.parametrize("name", CASES)
def test_every_candidate_is_right_at_every_size(name: str) -> None:
    """One engine with sizes as arguments, whatever the size for which a candidate was offered."""
    graph = optimised(name)
    samples = [random_feeds(graph, seed=3, **point) for point in CASES[name].points]
    wanted = [interpret(graph, feeds) for feeds in samples]
    symbols = profile_symbols(graph, Profile({}, {}))
    for choices in variants(name):
        lowered = lower(graph, symbols, choices)
        plan = Plan(lowered.program, lowered.packed, describe().to_json())
        net = engine.load(plan, compile="wait")
        for feeds, expected in zip(samples, wanted):
            try:
                with net.create_context() as context:
                    poisoned = {
                        key: np.full(item.shape, 77, item.dtype) for key, item in expected.items()
                    }
                    found = context.run(feeds, outputs=poisoned)
                    assert_close(found, expected, rtol=2e-3)
            except (AssertionError, EngineError) as error:
                chosen = {layer: identity(item) for layer, (item, _) in choices.items()}
                raise AssertionError(f"{chosen}: {error}") from error


@pytest.mark.parametrize("name", CASES)
def test_candidates_come_in_the_same_order_and_differ(name: str) -> None:
    for node, point, offered in layers(name):
        again, _ = candidates(node, ("c", "numpy"), point, describe())
        keys = [identity(candidate) for candidate in offered]
        assert keys == [identity(candidate) for candidate in again]
        assert len(set(keys)) == len(keys)


def test_only_allowed_sources_offer() -> None:
    node = optimised("convolution").each("FusedConv")[0]
    point = {"N": 1, "H": 4}
    assert candidates(node, (), point, describe()) == ([], [])
    assert {c.tactic for c in candidates(node, ("numpy",), point, describe())[0]} == {
        "numpy.meaning"
    }
    assert all(c.tactic.startswith("c.") for c in candidates(node, ("c",), point, describe())[0])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "(float[N, K] x) => (float[] y) { y = MatMul (x, w) }",
            "the inner sizes are not known to agree",
        ),
        (
            "(float[N, 3, 5, 5] x, float[4, 3, 3, 3] w) => (float[] y) { y = Conv (x, w) }",
            "the filters are not constant",
        ),
        (
            "(complex128[N, 3] x) => (complex128[] y) { y = Transpose (x) }",
            "complex128",
        ),
    ],
)
def test_a_tactic_that_does_not_serve_says_why(body: str, reason: str) -> None:
    graph = read(model(body, weights={} if "] w" in body else {"w": weight(6, 4)}))
    run_pipeline(graph)
    refused: list[Refusal] = []
    for node in graph.nodes:
        refused += candidates(node, ("c",), {"N": 2, "K": 6}, describe())[1]
    assert any(reason in item.reason for item in refused), [item.reason for item in refused]


def test_two_tactics_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match=r"two tactics are called 'c\.gemm'"):
        register(_TACTICS["c.gemm"])
