"""Attention over strided queries, keys and values; made by the attention fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.sizes import Dim, dim_from_json, dim_to_json, evaluate
from engine.ir.types import Array, DType, Operand, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.operator import DOMAIN, Operator, register
from engine.ops.region import solve_symbols
from engine.ops.softmax import peak

__all__ = [
    "DTYPES",
    "FusedAttention",
    "HeadAccess",
    "head_view",
    "read_dim",
    "read_dims",
    "read_rows",
]

#: Floats that queries, keys, values, the mask and the result may be.
DTYPES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)
_FIELDS = frozenset(
    (
        *("head_size", "scale", "sizes", "accesses", "shape", "operands", "mask", "causal"),
        *("group", "dtype", "past", "position", "guarded"),
    )
)

Dims = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class HeadAccess:
    """Where element (batch, head, row, 0) of an operand lies; elements of a head are adjacent."""

    offset: Dim
    batch: Dim
    head: Dim
    row: Dim

    def dims(self) -> Dims:
        """Offset, then the three strides."""
        return self.offset, self.batch, self.head, self.row


@register("FusedAttention", domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class FusedAttention(Operator):
    """softmax(scale Q K^T + mask) V in float32, rounded once to ``dtype``.

    Inputs are Q, K, V (often one packed tensor), a mask when ``mask`` is not "none", a position
    when ``position`` is not "none"; floats of 16 or 32 bits, the position int32 or int64.
    ``sizes`` are batch, heads, queries, keys; ``group`` query heads share a key head. The mask is
    added; "key" has one value per key, "full" one per query and key. ``causal`` lets query i see
    the keys up to i + ``past``; with a position ("one" number for all, or one of each sample of the
    "batch") up to i + past + position, or past + position for every query when not causal. A query
    that sees no key gives NaN, zeros when ``guarded``. The output has ``shape`` and is written
    through ``out``. ``operands`` are the input shapes, from which symbols get values.
    """

    head_size: int
    scale: float
    sizes: Dims
    query: HeadAccess
    key: HeadAccess
    value: HeadAccess
    out: HeadAccess
    shape: Dims
    operands: tuple[Dims, ...]
    mask: str = "none"
    mask_access: HeadAccess = HeadAccess(0, 0, 0, 0)
    causal: bool = False
    group: int = 1
    dtype: DType = DType.FLOAT32
    past: Dim = 0
    position: str = "none"
    guarded: bool = False

    @property
    def mask_place(self) -> int | None:
        """Which input the mask is."""
        return None if self.mask == "none" else 3

    @property
    def position_place(self) -> int | None:
        """Which input the position is."""
        if self.position == "none":
            return None
        return 3 if self.mask == "none" else 4

    def infer(self, *operands: Operand | None) -> Sequence[Type]:
        return [TensorType(self.dtype, self.shape)]

    def meaning(self, *inputs: Array) -> Array:
        arrays = [as_array(item, order="C") for item in inputs]
        known = solve_symbols(self.operands, arrays)
        batch, heads, queries, keys = (evaluate(dim, known) for dim in self.sizes)
        shared = -(-heads // self.group)
        q = _read(arrays[0], self.query, (batch, heads, queries, self.head_size), known)
        k = _read(arrays[1], self.key, (batch, shared, keys, self.head_size), known)
        v = _read(arrays[2], self.value, (batch, shared, keys, self.head_size), known)
        index = np.arange(heads) // self.group
        scores = (q * np.float32(self.scale)) @ k[:, index].swapaxes(-1, -2)
        if self.mask_place is not None:
            rows = queries if self.mask == "full" else 1
            seen = (batch, heads, rows, keys)
            scores = scores + _read(arrays[self.mask_place], self.mask_access, seen, known)
        last = self._last_visible(arrays, queries, known)
        if last is not None:
            scores = np.where(np.arange(keys) <= last, scores, np.float32("-inf"))
        with np.errstate(invalid="ignore"):
            scores = scores - peak(scores, -1)
            weights = np.exp(scores)
            weights /= weights.sum(-1, keepdims=True)
        if self.guarded:
            weights = np.where(np.isnan(weights), np.float32(0), weights)
        result = np.empty([evaluate(dim, known) for dim in self.shape], self.dtype.numpy)
        out = head_view(result, self.out, (batch, heads, queries, self.head_size), known)
        out[...] = (weights @ v[:, index]).astype(self.dtype.numpy)
        return result

    def _last_visible(
        self, arrays: Sequence[Array], queries: int, known: Mapping[str, int]
    ) -> Array | None:
        """The last key that each query sees, [batch or 1, 1, queries, 1]; None for all keys."""
        if not self.causal and self.position_place is None:
            return None
        last = np.zeros((1, 1, queries, 1), np.int64) + evaluate(self.past, known)
        if self.causal:
            last = last + np.arange(queries)[:, None]
        if self.position_place is not None:
            last = last + arrays[self.position_place].reshape(-1, 1, 1, 1).astype(np.int64)
        return as_array(last)

    def attributes(self) -> dict[str, Any]:
        """Everything as JSON; sizes that may be symbolic in their own form."""
        return {
            "head_size": self.head_size,
            "scale": self.scale,
            "sizes": _to_json(self.sizes),
            "accesses": [
                _to_json(item.dims())
                for item in (self.query, self.key, self.value, self.out, self.mask_access)
            ],
            "shape": _to_json(self.shape),
            "operands": [_to_json(item) for item in self.operands],
            "mask": self.mask,
            "causal": self.causal,
            "group": self.group,
            "dtype": self.dtype.value,
            "past": dim_to_json(self.past),
            "position": self.position,
            "guarded": self.guarded,
        }

    @classmethod
    def from_attributes(cls, values: Mapping[str, Any]) -> FusedAttention:
        """Read `attributes`' JSON, which may be hostile; ValueError says what is wrong."""
        if set(values) != _FIELDS:
            raise ValueError("an attention has other fields than it should")
        accesses = [HeadAccess(*read_dims(item, 4)) for item in read_rows(values["accesses"], 5)]
        if len(accesses) != 5 or values["mask"] not in ("none", "key", "full"):
            raise ValueError("an attention needs five accesses and a kind of mask")
        if values["position"] not in ("none", "one", "batch"):
            raise ValueError("an attention's position is neither none, one nor batch")
        if values["dtype"] not in [dtype.value for dtype in DTYPES]:
            raise ValueError(f"an attention gives {values['dtype']!r}, expected a float")
        head_size, group = values["head_size"], values["group"]
        if type(head_size) is not int or not 1 <= head_size <= 4096 or type(group) is not int:
            raise ValueError("an attention's head size or group is no such number")
        if group < 1 or not isinstance(values["scale"], float):
            raise ValueError("an attention's group or scale is no such number")
        return cls(
            head_size,
            values["scale"],
            read_dims(values["sizes"], 4),
            accesses[0],
            accesses[1],
            accesses[2],
            accesses[3],
            tuple(read_dim(item) for item in read_rows(values["shape"], 8)),
            tuple(
                tuple(map(read_dim, read_rows(shape, 8)))
                for shape in read_rows(values["operands"], 5)
            ),
            mask=values["mask"],
            mask_access=accesses[4],
            causal=bool(values["causal"]),
            group=group,
            dtype=DType(values["dtype"]),
            past=read_dim(values["past"]),
            position=values["position"],
            guarded=bool(values["guarded"]),
        )


def _read(
    array: Array, access: HeadAccess, shape: tuple[int, ...], known: Mapping[str, int]
) -> Array:
    """A strided operand as float32."""
    return as_array(head_view(array, access, shape, known), np.float32)


def head_view(
    array: Array, access: HeadAccess, shape: tuple[int, ...], known: Mapping[str, int]
) -> Array:
    """A strided view, checked against the array's end; ValueError when it would leave."""
    offset, *steps = (evaluate(dim, known) for dim in access.dims())
    steps.append(1)
    reach = offset + 1 + sum((n - 1) * s for n, s in zip(shape, steps))
    if 0 not in shape and (reach > array.size or min(offset, *steps) < 0):
        raise ValueError(f"attention reaches element {reach} of {array.size}")
    flat = array.reshape(-1)[offset:]
    return np.lib.stride_tricks.as_strided(flat, shape, [s * array.itemsize for s in steps])


def _to_json(dims: Dims) -> list[Any]:
    return [dim_to_json(dim) for dim in dims]


def read_rows(value: Any, most: int) -> list[Any]:
    """A list from JSON that may be hostile; ValueError when it is none or too long."""
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"an attention holds no list of at most {most} parts")
    return value


def read_dim(value: Any) -> Dim:
    """A size from JSON that may be hostile, with any symbols."""
    names: set[str] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack += item[1:]
        elif isinstance(item, str):
            names.add(item)
    return dim_from_json(value, names)


def read_dims(value: Any, count: int) -> Any:
    """As many sizes as are asked for, from JSON that may be hostile."""
    rows = read_rows(value, count)
    if len(rows) != count:
        raise ValueError(f"an attention needs {count} sizes, found {len(rows)}")
    return tuple(map(read_dim, rows))
