"""Kernels over images on a GPU: each candidate gives the meaning, and says how long it takes.

The layers are those of MobileNetV2, EfficientNet-B0, ResNet-50 and a U-Net.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from engine.cuda.compile import compile_kernels
from engine.cuda.kernel import Failure
from engine.ir.graph import Graph, Node
from engine.ops.channels_last import Pool
from engine.ops.resize_pixels import ResizePixels
from engine.tactics.nvrtc_depthwise import NvrtcDepthwise
from engine.tactics.nvrtc_pool import NvrtcMapReduction, NvrtcPooling
from engine.tactics.nvrtc_resize import NvrtcResize
from engine.tactics.nvrtc_stem import NvrtcStem
from engine.tactics.tactic import Refusal
from tests.cuda_device_layer import run_on_device
from tests.cuda_layer import emitted, feed, layer, meaning
from tests.engine.tactics.test_nvrtc_stem import stem
from tests.engine.tactics.test_nvrtc_windows import HALF, array, depthwise

pytestmark = pytest.mark.gpu

Layer = tuple[Graph, Node]
#: Candidates of a layer that are run.
MOST = 6


def pooled(op: Pool, *shape: int) -> Layer:
    return layer(op, [feed(array(HALF, *shape))])


def filtered(images: int, size: int, channels: int, kernel: int, stride: int) -> Layer:
    pad = kernel // 2
    return depthwise(
        HALF,
        (images, size, size),
        channels,
        (kernel, kernel),
        strides=(stride, stride),
        pads=(pad, pad, pad, pad),
    )


def cases() -> dict[str, tuple[Any, Callable[[], Layer]]]:
    found: dict[str, tuple[Any, Callable[[], Layer]]] = {}
    for b in (1, 8):
        for size, channels, kernel, stride in (
            *((112, 32, 3, 1), (112, 96, 3, 2), (56, 144, 3, 1), (14, 576, 3, 1), (7, 960, 3, 1)),
            *((28, 240, 5, 2), (14, 480, 5, 1), (7, 1152, 5, 1)),
        ):
            found[f"depthwise {b}x{size}x{size}x{channels} {kernel}x{kernel} / {stride}"] = (
                NvrtcDepthwise(),
                partial(filtered, b, size, channels, kernel, stride),
            )
        found[f"maximum {b}x112x112x64 3x3 / 2"] = (
            NvrtcPooling(),
            partial(pooled, Pool("max", (3, 3), (2, 2), (1, 1, 1, 1)), b, 112, 112, 64),
        )
        for size, channels in ((7, 2048), (112, 32), (14, 480)):
            found[f"mean {b}x{size}x{size}x{channels}"] = (
                NvrtcMapReduction(),
                partial(pooled, Pool("average", (size, size)), b, size, size, channels),
            )
        found[f"stem {b}x3x224x224 7x7 / 2 to 64"] = (
            NvrtcStem(),
            partial(stem, (b, 224, 224), 64, (7, 7), (2, 2), (3, 3, 3, 3)),
        )
        found[f"stem {b}x3x224x224 3x3 / 2 to 32"] = (
            NvrtcStem(),
            partial(stem, (b, 224, 224), 32, (3, 3), (2, 2), (1, 1, 1, 1)),
        )
    found["stem 8x3x256x256 3x3 to 64"] = (
        NvrtcStem(),
        partial(stem, (8, 256, 256), 64, (3, 3), (1, 1), (1, 1, 1, 1)),
    )
    found["linear 8x64x64x64 twice"] = (
        NvrtcResize(),
        lambda: layer(
            ResizePixels("linear", "half_pixel", "floor", (2.0, 2.0)),
            [feed(array(HALF, 8, 64, 64, 64))],
        ),
    )
    return found


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_the_gpu_gives_what_a_layer_means(
    name: str, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    from engine.cuda.device import open_device

    tactic, make = CASES[name]
    graph, node = make()
    (expected,) = meaning(node)
    device = open_device()
    offered = tactic.offers(node, {}, device.target)
    assert not isinstance(offered, Refusal)
    kernels = [emitted(graph, node, candidate).device_kernels for candidate in offered[:MOST]]
    flat = [kernel for found in kernels for kernel in found]
    results = compile_kernels(flat, device.target.capability)  # at once; the loop finds them kept
    refused = {k.digest for k, r in zip(flat, results) if isinstance(r, Failure)}
    sound = [
        candidate
        for candidate, found in zip(offered, kernels)
        if not refused & {kernel.digest for kernel in found}
    ]
    assert len(sound) > min(len(offered), MOST) // 2, "most candidates do not compile"
    x = node.inputs[0]
    assert x is not None and x.content is not None
    nbytes = x.content.nbytes + expected.nbytes
    wanted = expected.astype(np.float32)
    limit = 2e-3 * np.abs(wanted).max()
    for candidate in sound:
        (found,), time = run_on_device(graph, node, candidate, {}, device, times=20)
        worst = np.abs(found.astype(np.float32) - wanted).max()
        assert worst <= limit, dict(candidate.choice)
        record_property(str(dict(candidate.choice)), time)
        with capsys.disabled():
            rate = nbytes / time / 1e6 if time else np.nan
            print(f"\n{name} {dict(candidate.choice)}: {time:.2f} us, {rate:.2f} TB/s", end="")
