"""What each layer of an engine costs: measured time, and the work that its kernels declare."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storage.records import Json

if TYPE_CHECKING:
    from engine.plan.structure import Program
    from engine.runtime.engine import Engine

__all__ = ["LayerCost", "layer_costs"]


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One layer: its median time in seconds and its share of all layers' time.

    ``flops`` and ``nbytes`` are what its kernels declare for these sizes, None where the layer runs
    on the host.
    """

    name: str
    kind: str
    tactic: str
    choice: Mapping[str, Any]
    seconds: float
    share: float
    flops: float | None
    nbytes: float | None

    def to_json(self) -> Json:
        """The cost as JSON."""
        return {
            "layer": self.name,
            "kind": self.kind,
            "tactic": self.tactic,
            "choice": dict(self.choice),
            "seconds": self.seconds,
            "share": self.share,
            "flops": self.flops,
            "nbytes": self.nbytes,
        }


def layer_costs(engine: Engine, feeds: Mapping[str, Any], runs: int) -> list[LayerCost]:
    """The cost of every layer that these inputs reach, the median of several runs."""
    from engine.runtime.feeds import bind_symbols, check_feeds

    with engine.create_context() as context:
        context.run(feeds)
        profiles = [context.profile(feeds) for _ in range(runs)]
    sizes = bind_symbols(engine.program, check_feeds(engine.program, feeds))
    work = declared_work(engine.program, sizes)
    seconds = {
        index: statistics.median(profile.get(index, 0) for profile in profiles) / 1e9
        for index in sorted(set().union(*profiles))
    }
    total = sum(seconds.values()) or 1.0
    found = []
    for index, spent in seconds.items():
        layer = engine.program.layers[index]
        flops, nbytes = work.get(index, (None, None))
        found.append(
            LayerCost(
                name=layer.name,
                kind=layer.kind,
                tactic=layer.tactic,
                choice=layer.choice,
                seconds=spent,
                share=spent / total,
                flops=flops,
                nbytes=nbytes,
            )
        )
    return found


def declared_work(program: Program, sizes: Mapping[str, int]) -> dict[int, tuple[float, float]]:
    """Floating-point operations and bytes of each layer that runs kernels, by its index.

    A layer whose kernels' sizes depend on data is left out.
    """
    from engine.ir.sizes import evaluate, symbols
    from engine.plan.structure import KernelStep
    from engine.runtime.binding import flat_steps

    work: dict[int, tuple[float, float]] = {}
    unknown: set[int] = set()
    for step in flat_steps(program.steps, sizes):
        if not isinstance(step, KernelStep):
            continue
        if not all(symbols(size) <= set(sizes) for size in step.sizes):
            unknown.add(step.layer)
            continue
        kernel = program.kernels[step.kernel]
        flops, nbytes = kernel.cost([evaluate(size, sizes) for size in step.sizes])
        known = work.get(step.layer, (0.0, 0.0))
        work[step.layer] = known[0] + flops, known[1] + nbytes
    return {index: value for index, value in work.items() if index not in unknown}
