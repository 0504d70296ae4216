"""cuDNN's graphs out of the cache on a GPU: they compute what they did when they were built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.cuda import cudnn_cache, cudnn_graph
from engine.cuda.cudnn_graph import CudnnGraphs
from engine.cuda.device import Device, open_device
from engine.tactics.cudnn_attention import CudnnAttention
from engine.tactics.cudnn_convolution import CudnnConvolution
from tests.engine.tactics.test_libraries import attention, convolution
from tests.engine.tactics.test_libraries_gpu import _run

pytestmark = pytest.mark.gpu


class WithLibrary:
    """A device with a library of its own, as another process would have."""

    def __init__(self, device: Device, library: CudnnGraphs) -> None:
        self._device, self._library = device, library

    def library(self, name: str) -> CudnnGraphs:
        return self._library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


@pytest.mark.parametrize("kind", ["convolution", "attention"])
def test_a_graph_out_of_the_cache_computes_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEFARM_CACHE", str(tmp_path))
    monkeypatch.setattr(cudnn_graph, "SLOW_BUILD_S", 0.0)
    device = open_device()
    device.use()
    tactic: Any = CudnnConvolution() if kind == "convolution" else CudnnAttention()
    node = (
        convolution("relu")
        if kind == "convolution"
        else attention("none", False, 1, head=64, rows=128)
    )
    offered = tactic.offers(node, {}, device.target)
    assert isinstance(offered, list), offered.reason
    candidate: Any = offered[0]
    first = CudnnGraphs()
    _run(WithLibrary(device, first), candidate, node)  # type: ignore[arg-type]
    kept = list(cudnn_cache.cache_folder("cudnn").glob("*.plan"))
    assert len(kept) == 1, "the library did not write its graph down"
    first.close()

    def built(*_: Any, **__: Any) -> Any:
        raise AssertionError("built again, though it was in the cache")

    monkeypatch.setattr(cudnn_graph, "build_graph", built)
    second = CudnnGraphs()
    _run(WithLibrary(device, second), candidate, node)  # type: ignore[arg-type]
    second.close()


def test_a_stream_that_is_gone_leaves_no_error_to_others() -> None:
    torch = pytest.importorskip("torch")
    device = open_device()
    device.use()
    node = convolution("relu")
    offered = CudnnConvolution().offers(node, {}, device.target)
    assert isinstance(offered, list), offered.reason
    for _ in range(3):
        _run(device, offered[0], node)
        made = torch.arange(8, device="cuda")  # raises for an error that another left behind
        assert int((made + 1).sum()) == 36
