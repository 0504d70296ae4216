"""Kernels over many rows on a GPU: each candidate gives the meaning, and says how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from engine.ir.graph import Graph, Node
from engine.tactics.nvrtc_narrow_gemm import NvrtcNarrowGemm
from engine.tactics.nvrtc_region import NvrtcRegion
from engine.tactics.tactic import Refusal, Tactic
from tests.cuda_device_layer import run_on_device
from tests.cuda_layer import meaning
from tests.engine.tactics.test_nvrtc_narrow_gemm import convolution
from tests.engine.tactics.test_nvrtc_regions import norm_layer

pytestmark = pytest.mark.gpu

CASES: dict[str, tuple[Tactic, str, int, Callable[[], tuple[Graph, Node]]]] = {
    f"normalise {rows}x768": (NvrtcRegion(), "T", rows, partial(norm_layer, rows, 768))
    for rows in (128, 4096, 16384)
}
for images, side, k, n, kinds in (
    (8, 112, 16, 96, ("column",)),
    (8, 112, 32, 16, ("column",)),
    (8, 56, 24, 144, ("column",)),
    (8, 56, 144, 24, ("column", "full")),
    (8, 28, 192, 32, ("column", "full")),
):
    CASES[f"product {images}x{side}x{side} {k} to {n}"] = (
        NvrtcNarrowGemm(),
        "N",
        images,
        partial(convolution, images, side, k, n, kinds),
    )


@pytest.mark.parametrize("name", CASES)
def test_the_gpu_gives_what_rows_mean(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from engine.cuda.device import open_device

    tactic, symbol, size, make = CASES[name]
    graph, node = make()
    point = {symbol: size}
    expected = meaning(node)
    device = open_device()
    offered = tactic.offers(node, point, device.target)
    assert not isinstance(offered, Refusal), offered.reason
    given = [value.content for value in node.inputs if value is not None]
    nbytes = sum(item.nbytes for item in (*given, *expected) if item is not None)
    for candidate in offered:
        outputs, time = run_on_device(graph, node, candidate, point, device, times=20)
        for found, one in zip(outputs, expected, strict=True):
            wanted = one.astype(np.float32)
            worst = np.abs(found.astype(np.float32) - wanted).max()
            assert worst <= 4e-3 * np.abs(wanted).max(), dict(candidate.choice)
        with capsys.disabled():
            rate = nbytes / time / 1e6 if time else np.nan
            print(f"\n{name} {dict(candidate.choice)}: {time:.2f} us, {rate:.2f} TB/s", end="")
