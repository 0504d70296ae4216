"""Calls of cuDNN as a plan stores them: what is computed, and which engine with which knobs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.plan.fields import brief, choice, entries, integer, items, refuse, text

__all__ = [
    "ACTIVATIONS",
    "AttentionCall",
    "Call",
    "ConvolutionCall",
    "DTYPES",
    "EngineChoice",
    "MOST_ENGINE",
    "read_call",
]

_WHERE = "a call of cudnn"
_MOST = 1 << 40
_MOST_WORKSPACE = 1 << 31
_MOST_OPERANDS = 8
#: Engines of the backend itself; larger numbers are code of the frontend.
MOST_ENGINE = 9_999
DTYPES = ("float16", "bfloat16")
_OPERAND_DTYPES = (*DTYPES, "float32")
ACTIVATIONS = ("none", "relu", "clip", "sigmoid", "tanh", "silu", "gelu", "gelu_tanh")
_KINDS = ("column", "full")
_NBYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The library's words for one kernel: an engine's number and its knobs by name.

    They mean something to ``version`` of the backend only.
    """

    engine: int = 0
    knobs: Mapping[str, int] = field(default_factory=dict)
    workspace_nbytes: int = 0
    version: int = 0

    def to_json(self) -> dict[str, Any]:
        """The choice as JSON."""
        return {**asdict(self), "knobs": dict(sorted(self.knobs.items()))}

    @staticmethod
    def from_json(value: Any) -> EngineChoice:
        """Read and check; PlanCorruptError says what is wrong."""
        names = ("engine", "knobs", "workspace_nbytes", "version")
        engine, knobs, workspace, version = entries(value, f"{_WHERE}.choice", names)
        if not isinstance(knobs, dict) or len(knobs) > 64:
            refuse(f"{_WHERE}.knobs", f"found {brief(knobs)}, expected at most 64 knobs")
        for name, number in knobs.items():
            text(name, f"{_WHERE}.knobs")
            integer(number, f"{_WHERE}.knobs.{name[:40]}", -(1 << 31), 1 << 31)
        return EngineChoice(
            integer(engine, f"{_WHERE}.engine", 0, MOST_ENGINE),
            knobs,
            integer(workspace, f"{_WHERE}.workspace_nbytes", 0, _MOST_WORKSPACE),
            integer(version, f"{_WHERE}.version", 0, 1 << 31),
        )


@dataclass(frozen=True, slots=True)
class ConvolutionCall:
    """y = activation(convolution(x) + operands before) + operands after, all packed NHWC.

    Operands are x, filters as [K, R, S, C / group], then those of ``before`` and ``after`` as
    (kind, element type), then y. A "column" operand is [K], a "full" one has y's shape.
    """

    dtype: str
    result: str
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    before: tuple[tuple[str, str], ...] = ()
    activation: str = "none"
    low: float = 0.0
    high: float = 0.0
    after: tuple[tuple[str, str], ...] = ()

    #: Images, height, width, channels of x; channels, height, width of filters; of y.
    SIZES = ("n", "h", "w", "c", "filter_c", "r", "s", "p", "q", "k")

    def to_json(self) -> dict[str, Any]:
        """The call as JSON without the choice of an engine."""
        return {
            "operation": "convolution",
            **asdict(self),
            "strides": list(self.strides),
            "pads": list(self.pads),
            "dilations": list(self.dilations),
            "before": [list(item) for item in self.before],
            "after": [list(item) for item in self.after],
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ConvolutionCall:
        """Read and check; PlanCorruptError says what is wrong."""
        names = [*ConvolutionCall.__dataclass_fields__]
        f = dict(zip(names, entries(dict(value), _WHERE, names)))
        numbers = {
            name: _integers(f[name], f"{_WHERE}.{name}", count, least)
            for name, count, least in (("strides", 2, 1), ("pads", 4, 0), ("dilations", 2, 1))
        }
        return ConvolutionCall(
            choice(f["dtype"], f"{_WHERE}.dtype", DTYPES),
            choice(f["result"], f"{_WHERE}.result", _OPERAND_DTYPES),
            numbers["strides"],  # type: ignore[arg-type]
            numbers["pads"],  # type: ignore[arg-type]
            numbers["dilations"],  # type: ignore[arg-type]
            _operands(f["before"], f"{_WHERE}.before"),
            choice(f["activation"], f"{_WHERE}.activation", ACTIVATIONS),
            _number(f["low"], f"{_WHERE}.low"),
            _number(f["high"], f"{_WHERE}.high"),
            _operands(f["after"], f"{_WHERE}.after"),
        )

    def operand_nbytes(self, z: Mapping[str, int]) -> tuple[int, ...]:
        """How far each operand reaches from its address, in bytes."""
        result = z["n"] * z["p"] * z["q"] * z["k"]
        extra = [
            (z["k"] if kind == "column" else result) * _NBYTES[dtype]
            for kind, dtype in (*self.before, *self.after)
        ]
        return (
            z["n"] * z["h"] * z["w"] * z["c"] * _NBYTES[self.dtype],
            z["k"] * z["r"] * z["s"] * z["filter_c"] * _NBYTES[self.dtype],
            *extra,
            result * _NBYTES[self.result],
        )


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """o = softmax(scale Q K^T + mask) V over strided operands; softmax and sums in float32.

    Operands are q, k, v, the mask when there is one, o; each begins at its first element. The mask
    is added and has one value per query and key; ``causal`` lets query i see keys 0 to i.
    """

    dtype: str
    head_size: int
    scale: float
    causal: bool = False
    mask: str = ""

    #: Elements between batches, heads and rows of q, k, v, o and of the mask (0: shared).
    SIZES = (
        *("batch", "heads", "shared", "queries", "keys"),
        *(f"{name}_{axis}" for name in "qkvom" for axis in ("batch", "head", "row")),
    )

    def to_json(self) -> dict[str, Any]:
        """The call as JSON without the choice of an engine."""
        return {"operation": "attention", **asdict(self)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> AttentionCall:
        """Read and check; PlanCorruptError says what is wrong."""
        names = [*AttentionCall.__dataclass_fields__]
        dtype, head_size, scale, causal, mask = entries(dict(value), _WHERE, names)
        if not isinstance(causal, bool):
            refuse(f"{_WHERE}.causal", f"found {brief(causal)}, expected true or false")
        return AttentionCall(
            choice(dtype, f"{_WHERE}.dtype", DTYPES),
            integer(head_size, f"{_WHERE}.head_size", 8, 256),
            _number(scale, f"{_WHERE}.scale"),
            causal,
            choice(mask, f"{_WHERE}.mask", ("", *_OPERAND_DTYPES)),
        )

    def operand_nbytes(self, z: Mapping[str, int]) -> tuple[int, ...]:
        """How far each operand reaches from its address, in bytes."""

        def reach(name: str, heads: str, rows: str, columns: int, dtype: str) -> int:
            last = sum(
                (z[axis] - 1) * z[f"{name}_{step}"]
                for axis, step in (("batch", "batch"), (heads, "head"), (rows, "row"))
            )
            return (last + columns) * _NBYTES[dtype]

        masks = [reach("m", "heads", "queries", z["keys"], self.mask)] if self.mask else []
        return (
            reach("q", "heads", "queries", self.head_size, self.dtype),
            reach("k", "shared", "keys", self.head_size, self.dtype),
            reach("v", "shared", "keys", self.head_size, self.dtype),
            *masks,
            reach("o", "heads", "queries", self.head_size, self.dtype),
        )


Call = ConvolutionCall | AttentionCall
_READERS: dict[str, type[ConvolutionCall] | type[AttentionCall]] = {
    "convolution": ConvolutionCall,
    "attention": AttentionCall,
}


def read_call(
    value: Mapping[str, Any], sizes: Sequence[int]
) -> tuple[Call, EngineChoice, dict[str, int]]:
    """A step's call with its choice, and its sizes by name; PlanCorruptError for anything else.

    ``sizes`` of the call are those for which the engine was chosen; a step must hold the same.
    """
    fields = dict(value)
    operation = choice(fields.pop("operation", None), f"{_WHERE}.operation", tuple(_READERS))
    chosen = EngineChoice.from_json(fields.pop("choice", None))
    tuned = items(fields.pop("sizes", None), f"{_WHERE}.sizes", _size)
    kind = _READERS[operation]
    call = kind.from_json(fields)
    if len(tuned) != len(kind.SIZES) or tuple(sizes) != tuned:
        refuse(f"{_WHERE}.sizes", "the engine was chosen for other sizes than the step has")
    return call, chosen, dict(zip(kind.SIZES, tuned))


def _size(value: Any, where: str) -> int:
    return integer(value, where, 0, _MOST)


def _integers(value: Any, where: str, count: int, least: int) -> tuple[int, ...]:
    found = items(value, where, lambda item, at: integer(item, at, least, 1 << 16))
    if len(found) != count:
        refuse(where, f"found {len(found)} numbers, expected {count}")
    return found


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        refuse(where, f"found {brief(value)}, expected a number")
    return float(value)


def _operands(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    found = items(value, where, _operand)
    if len(found) > _MOST_OPERANDS:
        refuse(where, f"found {len(found)} operands, expected at most {_MOST_OPERANDS}")
    return found


def _operand(value: Any, where: str) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2:
        refuse(where, f"found {brief(value)}, expected a kind and an element type")
    return choice(value[0], where, _KINDS), choice(value[1], where, _OPERAND_DTYPES)
