"""Tactics of a GPU: every kind of layer has kernels on every architecture, and no tactic is idle.

What the kernels compute is tested in the files of their own beside this one.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest

from engine.ir.graph import Graph
from engine.onnx_io import read
from engine.passes import run_pipeline
from engine.tactics import candidates
from engine.tactics.tactic import _TACTICS, _discover
from engine.target import describe
from tests.engine.small_models import model

RNG = np.random.default_rng(3)
#: Sources whose kernels are made and compiled anywhere.
SOURCES = ("triton", "nvrtc")
TARGETS = ("cuda:sm80", "cuda:sm90", "cuda:sm100")
POINT = {"N": 4}
#: Tactics that no model below reaches, with the test in which they serve.
ELSEWHERE = {
    "nvrtc.reduction": "test_nvrtc_reduction.py",
    "nvrtc.indexing": "test_nvrtc_indexing.py",
    "nvrtc.narrow_gemm": "test_nvrtc_narrow_gemm.py",
    "nvrtc.scalar": "test_nvrtc_reduction.py",
    "nvrtc.scan": "test_nvrtc_scan.py",
    "nvrtc.top_k": "test_nvrtc_scan.py",
    "nvrtc.resize": "test_nvrtc_resize.py",
    "triton.cache_update": "test_triton_attention.py",
}


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "a product": (
        "(float[N, 128, 64] x, float[N, 128, 96] r) => (float[] y) {"
        "a = MatMul (x, w) b = Add (a, c) d = Relu (b) y = Add (d, r) }",
        {"w": weight(64, 96), "c": weight(96)},
    ),
    "a product of few rows": (
        "(float[1, 512] x) => (float[] y) { a = MatMul (x, w) y = Add (a, c) }",
        {"w": weight(512, 256), "c": weight(256)},
    ),
    "a product of two inputs": (
        "(float[N, 32, 64] x, float[N, 64, 48] z) => (float[] y) { y = MatMul (x, z) }",
        {},
    ),
    "convolutions": (
        "(float[N, 3, 32, 32] x) => (float[] y) {"
        "a = Conv <pads = [3, 3, 3, 3], strides = [2, 2]> (x, stem) b = Relu (a)"
        "c = Conv <pads = [1, 1, 1, 1]> (b, w) d = Add (c, b) e = Relu (d)"
        "f = Conv <group = 64, pads = [1, 1, 1, 1]> (e, deep) y = Relu (f) }",
        {"stem": weight(64, 3, 7, 7), "w": weight(64, 64, 3, 3), "deep": weight(64, 1, 3, 3)},
    ),
    "pooling": (
        "(float[N, 32, 16, 16] x) => (float[] y, float[] z) {"
        "c = Conv <pads = [1, 1, 1, 1]> (x, w)"
        "a = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (c)"
        "y = Conv (a, w) z = GlobalAveragePool (c) }",
        {"w": weight(32, 32, 3, 3)},
    ),
    "attention": (
        "(float[N, 2, 64, 64] q, float[N, 2, 64, 64] k, float[N, 2, 64, 64] v) => (float[] y) {"
        "t = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, t)"
        "p = Softmax <axis = -1> (s) y = MatMul (p, v) }",
        {},
    ),
    "normalisation": (
        "(float[N, 128, 64] x, float[N, 128, 64] r) => (float[] y) {"
        "a = Add (x, r) y = LayerNormalization <axis = -1> (a, one, zero) }",
        {"one": np.ones(64, np.float32), "zero": np.zeros(64, np.float32)},
    ),
    "branches that are joined": (
        "(float[N, 32, 16, 16] x) => (float[] y) {"
        "a = Conv <pads = [1, 1, 1, 1]> (x, w) b = Conv <pads = [1, 1, 1, 1]> (x, v)"
        "c = Concat <axis = 1> (a, b) y = Conv (c, u) }",
        {"w": weight(32, 32, 3, 3), "v": weight(16, 32, 3, 3), "u": weight(32, 48, 1, 1)},
    ),
    "transposition and concatenation": (
        "(float[N, 48, 33] x, float[N, 33, 16] z) => (float[] y) {"
        "a = Transpose <perm = [0, 2, 1]> (x) y = Concat <axis = 2> (a, z) }",
        {},
    ),
}


@cache
def optimised(name: str) -> Graph:
    body, weights = MODELS[name]
    graph = read(model(body, opset=17, weights=weights))
    run_pipeline(graph, precision="fp16")
    return graph


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_has_a_kernel_of_ours(name: str, target: str) -> None:
    for node in optimised(name).nodes:
        if node.kind == "View":
            continue
        offered, refused = candidates(node, SOURCES, POINT, describe(target))
        reasons = [f"{item.tactic}: {item.reason}" for item in refused]
        assert offered, f"{node.kind} {node.name} on {target}: {reasons}"
        assert all(item.reason for item in refused)
        keys = [(c.tactic, json.dumps(dict(c.choice), sort_keys=True)) for c in offered]
        assert len(set(keys)) == len(keys)


def test_every_tactic_of_a_gpu_serves_somewhere() -> None:
    _discover()
    served = {
        candidate.tactic
        for name in MODELS
        for node in optimised(name).nodes
        for target in TARGETS
        for candidate in candidates(node, SOURCES, POINT, describe(target))[0]
    }
    own = {name for name in _TACTICS if name.partition(".")[0] in SOURCES}
    assert own - served == set(ELSEWHERE)


def test_sources_of_a_gpu_offer_nothing_to_a_cpu_and_say_why() -> None:
    for name in MODELS:
        for node in optimised(name).nodes:
            offered, refused = candidates(node, (*SOURCES, "cublaslt", "cudnn"), POINT, describe())
            assert not offered
            assert all(item.reason for item in refused)
