"""Generated products, convolutions and attention on a device: emulated, and the real one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine.cuda.compile import compile_kernels
from engine.cuda.kernel import Compiled, DeviceKernel
from engine.ir.graph import Graph, Node
from engine.ir.types import DType
from engine.ops.expression import Expression, call, cast, load
from engine.ops.fused import FusedConv, FusedMatMul
from engine.ops.fused_attention import FusedAttention, HeadAccess
from engine.tactics.nvrtc_gemv import NvrtcGemv
from engine.tactics.nvrtc_plain import NvrtcPlain
from engine.tactics.tactic import Refusal, Tactic
from engine.target import describe
from tests import cuda_layer as layers
from tests.cuda_device_layer import run_on_device
from tests.emulated_device import EmulatedDevice, image_of

HALF, FULL = DType.FLOAT16, DType.FLOAT32
RNG = np.random.default_rng(5)
Layer = tuple[Graph, Node]


def random(*shape: int, dtype: DType = HALF) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32).astype(dtype.numpy)


def biased() -> Expression:
    return cast(call("add", load(0, FULL), cast(load(1, HALF), FULL)), HALF)


def product(m: int, n: int, k: int) -> Layer:
    return layers.layer(
        FusedMatMul(True, biased(), ("column",)),
        [
            layers.feed(random(m, k)),
            layers.constant(random(n, k) / np.float16(np.sqrt(k))),
            layers.constant(random(n)),
        ],
    )


def image(size: int, channels: int, filters: int, group: int = 1) -> Layer:
    weights = random(filters, channels // group, 3, 3) / np.float16(np.sqrt(9 * channels / group))
    return layers.layer(
        FusedConv(pads=(1, 1, 1, 1), group=group, epilogue=biased(), kinds=("column",)),
        [
            layers.feed(random(2, size, size, channels)),
            layers.constant(weights),
            layers.constant(random(filters)),
        ],
    )


def attention(heads: int, rows: int, size: int) -> Layer:
    width = 3 * heads * size
    packed = layers.feed(random(2, rows, width, dtype=FULL))
    access = [HeadAccess(i * heads * size, rows * width, size, width) for i in range(3)]
    operator = FusedAttention(
        head_size=size,
        scale=size**-0.5,
        sizes=(2, heads, rows, rows),
        query=access[0],
        key=access[1],
        value=access[2],
        out=HeadAccess(0, rows * heads * size, size, heads * size),
        shape=(2, rows, heads * size),
        operands=(packed.dims,) * 3,
        causal=True,
    )
    return layers.layer(operator, [packed, packed, packed])


def close(found: np.ndarray, expected: np.ndarray) -> None:
    wide = expected.astype(np.float32)
    error = np.abs(found.astype(np.float32) - wide).max()
    assert error <= 2e-3 * np.abs(wide).max(), error


@pytest.mark.parametrize(
    ("tactic", "layer"),
    [(NvrtcPlain(), product(5, 40, 64)), (NvrtcGemv(), product(3, 24, 256))],
    ids=["plain", "gemv"],
)
def test_an_emulated_device_gives_what_a_layer_means(tactic: Tactic, layer: Layer) -> None:
    def build(kernels: object) -> list[Compiled]:
        assert isinstance(kernels, list)
        return [Compiled(image_of(k), k.entry, k.threads, k.shared_nbytes) for k in kernels]

    graph, node = layer
    offered = tactic.offers(node, {}, describe("cuda:sm90"))
    assert not isinstance(offered, Refusal)
    for candidate in offered[:3]:
        device = EmulatedDevice()
        (found,), _ = run_on_device(graph, node, candidate, {}, device, build=build, times=3)
        close(found, layers.meaning(node)[0])


GPU_CASES: dict[str, tuple[Tactic, Callable[[], Layer]]] = {
    **{
        f"gemv {m}x{n}x{k}": (NvrtcGemv(), lambda m=m, n=n, k=k: product(m, n, k))
        for m, n, k in (
            *((1, 768, 768), (1, 2304, 768), (1, 3072, 768), (1, 768, 3072), (1, 50257, 768)),
            *((8, 2304, 768), (8, 768, 3072), (16, 3072, 768), (16, 50257, 768), (8, 1000, 2048)),
            (3, 77, 20),
        )
    },
    "plain product": (NvrtcPlain(), lambda: product(1024, 768, 768)),
    "plain convolution": (NvrtcPlain(), lambda: image(28, 64, 128)),
    "plain depthwise convolution": (NvrtcPlain(), lambda: image(28, 64, 64, 64)),
    "plain attention": (NvrtcPlain(), lambda: attention(12, 197, 64)),
    "plain attention of long heads": (NvrtcPlain(), lambda: attention(2, 33, 512)),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU_CASES)
def test_the_gpu_gives_what_a_layer_means(
    name: str, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    from engine.cuda.device import open_device

    tactic, make = GPU_CASES[name]
    graph, node = make()
    (expected,) = layers.meaning(node)
    device = open_device()
    offered = tactic.offers(node, {}, device.target)
    assert not isinstance(offered, Refusal)
    kernels: list[DeviceKernel] = []
    for candidate in offered:
        kernels += layers.emitted(graph, node, candidate).device_kernels
    compile_kernels(kernels, device.target.capability)  # all at once; the loop finds them kept
    for candidate in offered:
        (found,), time = run_on_device(graph, node, candidate, {}, device, times=50)
        close(found, expected)
        record_property(str(dict(candidate.choice)), time)
        with capsys.disabled():
            print(f"\n{name} {dict(candidate.choice)}: {time:.2f} us", end="")
