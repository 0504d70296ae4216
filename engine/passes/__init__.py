"""Graph to graph, in a literal order: `PIPELINE` is the only place where order is written."""

from __future__ import annotations

from collections.abc import Callable

from engine.fusions import apply_fusions
from engine.ir.graph import Graph
from engine.ir.infer import infer
from engine.ir.verify import verify
from engine.passes.absorb_reads import absorb_reads
from engine.passes.choose_layout import choose_layout, read_planar_inputs
from engine.passes.drop_unit_axes import drop_unit_axes
from engine.passes.fold_constants import fold_constants
from engine.passes.lift_unit_axes import lift_unit_axes
from engine.passes.lift_views import lift_views
from engine.passes.lower_precision import lower_precision
from engine.passes.make_regions import make_regions
from engine.passes.make_views import make_views
from engine.passes.merge_equal import merge_equal
from engine.passes.merge_pointwise import merge_pointwise
from engine.passes.move_data import move_data
from engine.passes.move_row_transposes import move_row_transposes
from engine.passes.move_transposes import join_transposes, move_transposes
from engine.passes.remove_dead import remove_dead
from engine.passes.remove_identity import remove_identity
from engine.passes.spell_out import spell_out

__all__ = ["CANONICALISE", "canonicalise", "run_passes", "run_pipeline"]

Pass = Callable[[Graph], bool]

#: Repeated until none of them changes anything.
CANONICALISE: tuple[Pass, ...] = (
    fold_constants,
    remove_identity,
    remove_dead,
    merge_equal,
)
#: A rewrite that keeps undoing another would run for ever; real models settle within five rounds.
_MAX_ROUNDS = 20


def run_passes(graph: Graph, passes: tuple[Pass, ...], *, checked: bool = False) -> bool:
    """Run passes in order, once each; ``checked`` verifies the graph after every one of them."""
    changed = False
    for step in passes:
        if step(graph):
            changed = True
            if checked:
                verify(graph)
    return changed


def canonicalise(graph: Graph, *, checked: bool = False) -> None:
    """The graph without what its outputs do not need, shapes inferred anew."""
    for _ in range(_MAX_ROUNDS):
        if not run_passes(graph, CANONICALISE, checked=checked):
            break
        infer(graph)
    run_passes(graph, (make_views, remove_identity, remove_dead, merge_equal), checked=checked)


def run_pipeline(graph: Graph, *, precision: str = "fp32", checked: bool = False) -> None:
    """Everything between reading a model and lowering it."""
    canonicalise(graph, checked=checked)
    if spell_out(graph):
        canonicalise(graph, checked=checked)
    if precision == "fp16":
        lower_precision(graph)
        canonicalise(graph, checked=checked)
    for step in PIPELINE:
        step(graph)
        if checked:
            verify(graph)


def _until_settled(step: Pass) -> Pass:
    def repeat(graph: Graph) -> bool:
        changed = False
        for _ in range(_MAX_ROUNDS * 10):
            if not step(graph):
                break
            changed = True
        return changed

    return repeat


def _fuse(stage: str) -> Pass:
    return lambda graph: apply_fusions(graph, stage)


#: What follows the canonical form, in order.
PIPELINE: tuple[Pass, ...] = (
    _until_settled(move_row_transposes),
    _until_settled(join_transposes),
    make_views,
    _fuse("attention"),
    remove_dead,
    _fuse("projections"),
    remove_dead,
    _fuse("canonical"),
    remove_dead,
    choose_layout,
    _until_settled(move_transposes),
    make_views,
    _until_settled(lift_unit_axes),
    make_views,
    lift_views,
    make_views,
    drop_unit_axes,
    make_views,
    remove_identity,
    remove_dead,
    read_planar_inputs,
    _until_settled(merge_pointwise),
    _fuse("layout"),
    remove_dead,
    make_regions,
    move_data,
    _until_settled(absorb_reads),
    remove_dead,
)
