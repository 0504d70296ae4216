"""Attention by Triton on a GPU: every candidate is right; what each takes is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from engine.cuda.kernel import Failure
from engine.ir.graph import Node
from engine.ir.sizes import symbol
from engine.ir.types import DType
from engine.lower.builder import ProgramBuilder
from engine.ops.fused_attention import HeadAccess
from engine.ops.operator import Operator
from engine.tactics.tactic import Candidate, Refusal
from engine.tactics.triton_attention import TritonAttention
from tests.cuda_layer import emitted, feed, layer
from tests.engine.tactics.test_triton_attention import cached, decoding, packed, random

pytestmark = pytest.mark.gpu


def in_place(candidate: Candidate) -> Candidate:
    """With the caches' results in the memory of the caches, as a program declares them."""

    def emit(builder: ProgramBuilder, node: Node, index: int) -> None:
        for value, source in zip(node.outputs[1:], node.inputs[1:3]):
            assert source is not None
            builder.set_slot(value, builder.slot(source))
        candidate.emit(builder, node, index)

    return replace(candidate, emit=emit)


def measured(
    op: Operator,
    feeds: Sequence[Any],
    name: str,
    *,
    dims: Sequence[Any] = (),
    point: Mapping[str, int] | None = None,
    limit: float = 4e-3,
) -> None:
    """Every candidate against the meaning; the times of all, best first."""
    from engine.cuda.compile import compile_kernels
    from engine.cuda.hardware import CudaDevice
    from tests.cuda_device_layer import run_on_device

    device = CudaDevice(0)
    shapes = list(dims) or [array.shape for array in feeds]
    graph, node = layer(op, [feed(array, shape) for array, shape in zip(feeds, shapes)])
    wanted = op.meaning(*feeds)
    results = list(wanted) if isinstance(wanted, tuple) else [wanted]
    found = TritonAttention().offers(node, point or {}, device.target)
    assert not isinstance(found, Refusal)
    tried = [in_place(item) for item in found] if len(results) > 1 else list(found)
    kernels = [emitted(graph, node, item).device_kernels for item in tried]
    compiled = iter(
        compile_kernels([k for each in kernels for k in each], device.target.capability)
    )
    times, wrong = [], []
    for candidate, each in zip(tried, kernels):
        images = [next(compiled) for _ in each]
        failures = [item.reason for item in images if isinstance(item, Failure)]
        if failures:
            wrong += [f"{candidate.choice}: {r}" for r in failures if "spill" not in r]
            continue
        outputs, microseconds = run_on_device(
            graph, node, candidate, point or {}, device, build=lambda _, one=images: one, times=20
        )
        times.append((microseconds, str(dict(candidate.choice))))
        for output, result in zip(outputs, results):
            difference = output.astype(np.float64) - result.astype(np.float64)
            error = np.abs(difference).max() / np.abs(result.astype(np.float64)).max()
            if not error < limit:
                wrong.append(f"{candidate.choice}: off by {error}")
    for microseconds, choice in sorted(times):
        print(f"{name}: {microseconds:8.2f} us  {choice}")
    assert times and not wrong, "\n".join(wrong)


@pytest.mark.parametrize("batch", [1, 8, 32, 128])
@pytest.mark.parametrize("kind", ["key", "causal", "none"])
def test_attention_of_usual_models(batch: int, kind: str) -> None:
    """BERT (128 tokens, keys hidden), GPT-2 (128 tokens, causal), ViT (197 tokens)."""
    rows = 197 if kind == "none" else 128
    x = random(batch, rows, 2304)
    details: dict[str, Any] = {"causal": kind == "causal"}
    feeds = [x, x, x]
    if kind == "key":
        details = {"mask": "key", "mask_shape": (batch, 1, 1, rows)}
        details["mask_access"] = HeadAccess(0, rows, 0, 0)
        mask = np.where(np.arange(rows) < 100, 0, -65504).astype(np.float16)
        feeds.append(np.broadcast_to(mask, (batch, 1, 1, rows)).copy())
    measured(packed(batch, 12, rows, 64, **details), feeds, f"{kind} b{batch}")


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_a_decoding_step_in_place(batch: int) -> None:
    op, feeds = cached(batch, 12, 512, 64, "one")
    feeds[5] = feeds[6] = np.array([511])
    measured(op, feeds, f"decode b{batch}")


def test_other_types_heads_groups_and_long_sequences() -> None:
    for dtype, limit in ((DType.BFLOAT16, 2e-2), (DType.FLOAT32, 1e-4)):
        x = random(2, 70, 8 * 80, dtype=dtype.numpy)
        op = packed(2, 4, 70, 80, group=2, dtype=dtype, causal=True, past=3)
        measured(op, [x, x, x], dtype.value, limit=limit)
    x = random(1, 1111, 3 * 4 * 128)
    measured(packed(1, 4, 1111, 128, causal=True), [x, x, x], "long")
    q, k = random(2, 3, 8, 64), random(2, 2, 700, 64)
    op = decoding(2, 8, 3, 700, 64, 4, position="batch", causal=True, shapes=[(2,)])
    measured(op, [q, k, random(2, 2, 700, 64, seed=1), np.array([600, 3])], "few queries")


def test_open_sizes() -> None:
    batch, rows = symbol("batch"), symbol("rows")
    op = packed(batch, 12, rows, 64, causal=True)
    x = random(3, 61, 2304)
    dims = [(batch, rows, 2304)] * 3
    measured(op, [x, x, x], "open", dims=dims, point={"batch": 3, "rows": 61})
