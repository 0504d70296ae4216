"""What a tactic is, and the registry of all of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Protocol

from engine.ir.graph import Node, Value
from engine.ir.types import TensorType, is_bound
from engine.plan.structure import Guard
from engine.plugins import load_plugins
from engine.target import CudaTarget, Target

if TYPE_CHECKING:
    from engine.lower.builder import ProgramBuilder

__all__ = [
    "Candidate",
    "Refusal",
    "Tactic",
    "candidates",
    "is_last_resort",
    "register",
    "restore",
]

Emit = Callable[["ProgramBuilder", Node, int], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run one layer: a tactic with its choices made.

    ``emit`` writes the steps into a program. ``strided`` says that it asks the builder where its
    first input, its full operands and its output lie, so that they may be slices of wider tensors.
    ``holds`` are conditions over sizes without which it would be wrong; none for one that is right
    at every size.
    """

    tactic: str
    choice: Mapping[str, Any]
    emit: Emit
    strided: bool = False
    holds: tuple[Guard, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a tactic does not serve a layer."""

    tactic: str
    reason: str


class Tactic(Protocol):
    """A way to run layers of some kinds."""

    @property
    def name(self) -> str:
        """Source and how, as "c.gemm"."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """The operators it may serve; empty for any."""
        ...

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """Candidates for a node, the likeliest first, or the reason why there are none.

        ``point`` gives the sizes for which the layer is tuned, ``target`` the device.
        """
        ...


_TACTICS: dict[str, Tactic] = {}


def register(tactic: Tactic) -> Tactic:
    """Make a tactic known; ValueError when its name is taken."""
    if tactic.name in _TACTICS:
        raise ValueError(f"two tactics are called {tactic.name!r}")
    _TACTICS[tactic.name] = tactic
    return tactic


@cache
def _discover() -> None:
    package = importlib.import_module("engine.tactics")
    for module in sorted(item.name for item in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"engine.tactics.{module}")
    load_plugins()


def candidates(
    node: Node, sources: Sequence[str], point: Mapping[str, int], target: Target
) -> tuple[list[Candidate], list[Refusal]]:
    """Every candidate of the given sources ("c", "numpy", ...), and the refusals with reasons.

    The tactics of one source take turns, so that a search of any breadth tries them all; one with
    a true attribute ``specialised`` begins, one with a true ``last_resort`` ends.
    """
    _discover()
    if not all(_is_settled(value) for value in (*node.inputs, *node.outputs)):
        return [], [Refusal("c", "a size is known only when the model runs")]
    offered: dict[str, list[Sequence[Candidate]]] = {}
    refused: list[Refusal] = []
    for name in sorted(_TACTICS, key=lambda name: (not _is_specialised(_TACTICS[name]), name)):
        tactic, source = _TACTICS[name], name.split(".")[0]
        if source not in sources or (tactic.kinds and node.kind not in tactic.kinds):
            continue
        answer = tactic.offers(node, point, target)
        if isinstance(answer, Refusal):
            refused.append(answer)
        else:
            offered.setdefault(source, []).append(answer)
    found = [
        candidate
        for source in sorted(offered, key=_preference)
        for turn in zip_longest(*offered[source])
        for candidate in turn
        if candidate is not None
    ]
    return sorted(found, key=lambda item: is_last_resort(item, target)), refused


def restore(node: Node, tactic: str, choice: Mapping[str, Any], target: Target) -> Candidate | None:
    """A candidate that was measured, where its tactic does not list it now.

    Libraries list their algorithms only where the device is; a tactic with a method ``restore``
    makes the candidate from the recorded choice alone. None when it cannot.
    """
    _discover()
    maker = getattr(_TACTICS.get(tactic), "restore", None)
    found: Candidate | None = None if maker is None else maker(node, choice, target)
    return found


def is_last_resort(candidate: Candidate, target: Target) -> bool:
    """Whether a candidate serves only where nothing made for the layer does.

    Those are tactics that say so by a true ``last_resort``, and for a GPU every meaning.
    """
    _discover()
    if isinstance(target, CudaTarget) and candidate.tactic.split(".")[0] in ("numpy", "cupy"):
        return True
    return bool(getattr(_TACTICS.get(candidate.tactic), "last_resort", False))


def _preference(source: str) -> tuple[int, str]:
    """What a user brought comes first, then sources by how likely they win, NumPy last."""
    order = ("plugin", "c", "triton", "cublaslt", "cudnn", "nvrtc", "cupy", "numpy")
    return (order.index(source) if source in order else 1), source


def _is_settled(value: Value | None) -> bool:
    return value is None or not isinstance(value.type, TensorType) or is_bound(value.type)


def _is_specialised(tactic: Tactic) -> bool:
    """Whether a tactic serves few layers and those well, so that its candidates come first."""
    return bool(getattr(tactic, "specialised", False))
