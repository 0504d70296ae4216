"""Resized images as CUDA C: the meaning under the shim, and the pass that makes them NHWC."""

from __future__ import annotations

import pytest

from engine.cuda.nvrtc import compile_nvrtc
from engine.ir.types import DType
from engine.ops.resize_pixels import ResizePixels
from engine.tactics.nvrtc_resize import NvrtcResize
from engine.target import describe
from tests.cuda_layer import emitted, feed, layer
from tests.engine.tactics.test_nvrtc_windows import BRAIN, HALF, N, array, check, offered

SINGLE = DType.FLOAT32


@pytest.mark.parametrize(
    "op",
    [
        ResizePixels(scales=(2.0, 2.0)),
        ResizePixels("nearest", "half_pixel", "round_prefer_floor", (1.7, 0.6)),
        ResizePixels("nearest", "asymmetric", "before_11", (0.5, 3.0)),
        ResizePixels("nearest", "align_corners", "round_prefer_ceil", (11 / 6, 1.0), (11, 7)),
        ResizePixels("linear", "half_pixel", "floor", (2.0, 2.0)),
        ResizePixels("linear", "pytorch_half_pixel", "floor", (1 / 6, 2.5)),
        ResizePixels("linear", "align_corners", "floor", (13 / 6, 9 / 7), (13, 9)),
        ResizePixels("linear", "asymmetric", "before_11", (1.5, 1.0)),
    ],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "channels"), [(HALF, 24), (SINGLE, 5)])
def test_resized_images(op: ResizePixels, dtype: DType, channels: int) -> None:
    graph, node = layer(op, [feed(array(dtype, 2, 6, 7, channels), (N, 6, 7, channels))])
    check(graph, node, NvrtcResize(), {"N": 2}, most=2)


def test_nearest_reads_the_same_elements_everywhere() -> None:
    """Ratios whose positions fall on halves: rounding must agree to the last bit."""
    for scale in (0.6, 1.2, 2.5, 3.3, 0.2857142):
        for coordinates in ("half_pixel", "asymmetric"):
            op = ResizePixels("nearest", coordinates, "round_prefer_floor", (scale, scale))
            graph, node = layer(op, [feed(array(SINGLE, 1, 35, 21, 1))])
            check(graph, node, NvrtcResize(), most=1)


def test_kernels_compile() -> None:
    for name in ("cuda:sm80", "cuda:sm90", "cuda:sm100"):
        target = describe(name)
        for mode in ("nearest", "linear"):
            op = ResizePixels(mode, "half_pixel", "round_prefer_floor", (2.0, 2.0))
            graph, node = layer(op, [feed(array(BRAIN, 1, 8, 8, 32))])
            (kernel,) = emitted(graph, node, offered(NvrtcResize(), node)[0]).device_kernels
            assert compile_nvrtc(kernel, target.capability).spilled_nbytes == 0  # type: ignore[union-attr]
