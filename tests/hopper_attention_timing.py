"""Attention on a Hopper GPU, in a process that may be ended at any time.

    python -m tests.hopper_attention_timing CASE...

Prints a line of JSON before each candidate of each case, and one after it with its greatest error
relative to the greatest result and its time in microseconds. Whoever started the process knows by
the last line what hung.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.cuda.device import Device, open_device
from engine.ir.graph import Graph, Node
from engine.ir.sizes import symbol
from engine.ops.fused_attention import FusedAttention, HeadAccess
from engine.tactics.nvrtc_hopper_attention import NvrtcHopperAttention
from engine.tactics.tactic import Candidate, Refusal
from engine.tactics.triton_attention import TritonAttention
from tests.cuda_device_layer import run_on_device
from tests.cuda_layer import feed, layer, meaning
from tests.engine.tactics.test_nvrtc_hopper_attention import BRAIN, packed, random

#: BERT (128 tokens, keys hidden), GPT-2 (128 tokens, causal), ViT (197 tokens), by batch; the same
#: with 512, 1024 and 577 tokens.
TIMED = [f"{kind} {batch}" for kind in ("none", "key", "causal") for batch in (1, 8, 32, 128)]
TIMED += ["long 8", "long causal 8", "long key 8"]
#: Everything else that differs in the machine: types, heads, groups, open sizes, 256 keys and more.
EDGES = ["bfloat16", "head 32", "head 128", "grouped", "past", "both", "open", "wide", "not finite"]
EDGES += ["many", "many causal", "many both", "many head", "many open"]
_TIMES = 20


def case_of(name: str) -> tuple[FusedAttention, list[Any], dict[str, Any]]:
    """The operator of a case, its data, and what `offers` and the run want to know."""
    kind, _, number = name.rpartition(" ") if name[-1].isdigit() else (name, "", "")
    details: dict[str, Any] = {}
    batch, heads, rows, head = 3, 4, 197, 64
    if name in TIMED:
        batch, heads, rows = int(number), 12, 197 if kind == "none" else 128
    if kind.startswith("long"):
        rows = {"long": 577, "long causal": 1024, "long key": 512}[kind]
    if kind.startswith("many"):
        rows = 700
    if kind in ("head", "many head"):
        head, rows = int(number or 128), rows - 47
    if kind == "wide":
        rows = 256
    words = kind.split()
    if {"causal", "past", "both"} & set(words):
        details["causal"] = True
    if kind == "past":
        details["past"] = 5
    if kind == "grouped":
        details["group"] = 2
    dtype = BRAIN if kind == "bfloat16" else packed(1, 1, 1, 8).dtype
    width = (heads + 2 * heads // details.get("group", 1)) * head
    x = random(batch, rows, width, dtype=dtype)
    if name == "not finite":
        x[1] = np.nan
    feeds: list[Any] = [x, x, x]
    if {"key", "both"} & set(words):
        mask = np.where(np.arange(rows) < rows - 28, 0, -65504).astype(np.float16)
        feeds.append(np.broadcast_to(mask, (batch, 1, 1, rows)).copy())
        details |= {"mask": "key", "mask_shape": feeds[3].shape}
        details["mask_access"] = HeadAccess(0, rows, 0, 0)
    if "open" in words:
        point = {"batch": batch, "rows": rows}
        sizes = (symbol("batch"), symbol("rows"))
        op = packed(sizes[0], heads, sizes[1], head, causal=True)
        return op, feeds, {"point": point, "dims": [(*sizes, width)] * 3}
    return packed(batch, heads, rows, head, dtype=dtype, **details), feeds, {"point": {}}


def listed(
    name: str, node: Node, point: Mapping[str, int], device: Device
) -> list[tuple[str, Candidate]]:
    """All candidates of ours, and Triton's likeliest where times are asked for."""
    ours = NvrtcHopperAttention().offers(node, point, device.target)
    assert not isinstance(ours, Refusal), ours.reason
    found = [("nvrtc.hopper_attention", item) for item in ours]
    if name in TIMED:
        others = TritonAttention().offers(node, point, device.target)
        assert not isinstance(others, Refusal), others.reason
        found += [("triton.attention", item) for item in others[:3]]
    return found


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """The greatest difference by the greatest result; infinite where finite numbers differ."""
    one, two = found.astype(np.float32), expected.astype(np.float32)
    finite = np.isfinite(two)
    if (np.isfinite(one) != finite).any():
        return float("inf")
    return float(np.abs(one[finite] - two[finite]).max() / np.abs(two[finite]).max())


def _run(name: str, device: Device) -> None:
    op, feeds, how = case_of(name)
    dims = how.get("dims") or [array.shape for array in feeds]
    graph: Graph
    graph, node = layer(op, [feed(array, sizes) for array, sizes in zip(feeds, dims)])
    with np.errstate(invalid="ignore"):
        (expected,) = meaning(node)
    for tactic, candidate in listed(name, node, how["point"], device):
        line: dict[str, Any] = {"case": name, "tactic": tactic, "choice": dict(candidate.choice)}
        print(json.dumps(line), flush=True)
        times = _TIMES if name in TIMED else 0
        try:
            (found,), time = run_on_device(
                graph, node, candidate, how["point"], device, times=times
            )
            line |= {"error": _error(found, expected), "microseconds": time}
        except AssertionError as error:
            line["failed"] = str(error)[:300]
        print(json.dumps(line), flush=True)


def main(names: list[str]) -> None:
    """Run the candidates of cases."""
    device = open_device()
    device.use()
    for name in names:
        _run(name, device)


if __name__ == "__main__":
    main(sys.argv[1:])
