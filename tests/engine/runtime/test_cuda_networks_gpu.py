"""Small networks of every kind on a GPU, as every set of tactics builds them first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import engine
from engine.building import optimise
from engine.debug.compare import error
from engine.debug.interpret import interpret
from engine.debug.layers import compare_layers
from engine.onnx_io import read
from engine.runtime.cuda_engine import CudaEngine
from tests.engine.runtime.test_cuda_networks import NETWORKS, feeds_of

pytestmark = pytest.mark.gpu
SOURCES = {"nvrtc": ("nvrtc",), "compiled": ("triton", "nvrtc"), "all": ()}
CASES = [(name, which) for name in NETWORKS for which in SOURCES]


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case) for case in CASES])
def built(request: pytest.FixtureRequest) -> Iterator[tuple[str, CudaEngine]]:
    """A network's name and its engine, nothing measured."""
    name, which = request.param
    plan = engine.build(NETWORKS[name](), target="cuda", tactics=SOURCES[which], level=0)
    net = engine.load(plan)
    assert isinstance(net, CudaEngine)
    yield name, net
    net.close()


def test_the_network_computes_what_it_means(built: tuple[str, CudaEngine]) -> None:
    """At batches for which it was not made too: launched, captured, as a graph, without overlap."""
    name, net = built
    model = NETWORKS[name]()
    for batch in (1, 4, 7):
        samples = [feeds_of(model, batch, seed) for seed in range(4)]
        wanted = [interpret(read(model), feeds)["y"] for feeds in samples]
        for programmatic in (True, False):
            with net.create_context() as context:
                context.programmatic = programmatic
                found = [context.run(feeds)["y"] for feeds in samples]
            assert error(found, wanted) < 0.03, (batch, programmatic)


def test_every_layer_agrees_with_its_node(built: tuple[str, CudaEngine]) -> None:
    """What nobody wrote is not-a-number here, so reading it shows as well."""
    name, net = built
    model = NETWORKS[name]()
    found = list(compare_layers(net, optimise(read(model)), feeds_of(model, 3, 5)))
    wrong = [(x.layer, x.tactic, x.difference) for x in found if not x.difference.error < 0.02]
    assert found and not wrong
    assert np.isfinite([item.difference.error for item in found]).all()
