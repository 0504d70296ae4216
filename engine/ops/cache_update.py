"""Caches of keys and values that new rows are written to; made by the cache fusions.

`CacheUpdate` is one cache alone, `CachedAttention` a decoding step: both caches and the attention
over them. A result that is declared the update of its input shares its memory: a kernel then writes
only the new rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.ir.sizes import Dim, dim_to_json, evaluate
from engine.ir.types import Array, Operand, TensorType, Type
from engine.ops.arrays import as_array
from engine.ops.fused_attention import (
    FusedAttention,
    HeadAccess,
    head_view,
    read_dim,
    read_dims,
    read_rows,
)
from engine.ops.operator import DOMAIN, Operator, register, tensor
from engine.ops.region import solve_symbols

__all__ = ["CacheUpdate", "CachedAttention"]

Dims = tuple[Dim, ...]
_FIELDS = frozenset(("head_size", "sizes", "accesses", "length", "places", "operands"))


@register("CacheUpdate", domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class CacheUpdate(Operator):
    """A copy of a cache with new rows from a place on.

    Inputs are the cache, the tensor in which the new rows lie, and the place: int32 or int64, "one"
    number or one of each sample of the "batch"; one below zero counts from the end. ``sizes`` are
    batch, heads and new rows; ``length`` the rows of a head in the cache, which is read and written
    through ``cache``, the new rows through ``update``. Any float type; nothing is rounded.
    """

    head_size: int
    sizes: Dims
    length: Dim
    cache: HeadAccess
    update: HeadAccess
    places: str
    operands: tuple[Dims, ...]

    def infer(self, *operands: Operand | None) -> Sequence[Type]:
        """The type of the cache."""
        cache = tensor(operands[0], "cache")
        return [TensorType(cache.dtype, cache.shape)]

    def meaning(self, *inputs: Array) -> Array:
        """Assignment per sample; ValueError when rows leave the cache."""
        cache, update, place = (as_array(item, order="C") for item in inputs)
        known = solve_symbols(self.operands, [cache, update, place])
        batch, heads, rows = (evaluate(dim, known) for dim in self.sizes)
        length = evaluate(self.length, known)
        result = cache.copy()
        old = head_view(result, self.cache, (batch, heads, length, self.head_size), known)
        new = head_view(update, self.update, (batch, heads, rows, self.head_size), known)
        for sample, begin in enumerate(np.broadcast_to(place.reshape(-1), (batch,)).tolist()):
            first = begin + length if begin < 0 else begin
            if first < 0 or first + rows > length:
                raise ValueError(
                    f"rows {begin} to {begin + rows - 1} are written to a cache of {length}"
                )
            old[sample, :, first : first + rows] = new[sample]
        return result

    def attributes(self) -> dict[str, Any]:
        """Everything as JSON; sizes that may be symbolic in their own form."""
        return {
            "head_size": self.head_size,
            "sizes": [dim_to_json(dim) for dim in self.sizes],
            "length": dim_to_json(self.length),
            "accesses": [
                [dim_to_json(dim) for dim in access.dims()] for access in (self.cache, self.update)
            ],
            "places": self.places,
            "operands": [[dim_to_json(dim) for dim in shape] for shape in self.operands],
        }

    @classmethod
    def from_attributes(cls, values: Mapping[str, Any]) -> CacheUpdate:
        """Read `attributes`' JSON, which may be hostile; ValueError says what is wrong."""
        if not isinstance(values, Mapping) or set(values) != _FIELDS:
            raise ValueError("a cache's update has other fields than it should")
        accesses = [HeadAccess(*read_dims(item, 4)) for item in read_rows(values["accesses"], 2)]
        head_size, places = values["head_size"], values["places"]
        if len(accesses) != 2 or places not in ("one", "batch"):
            raise ValueError("a cache's update needs two accesses, and a place, one or batch")
        if type(head_size) is not int or not 1 <= head_size <= 4096:
            raise ValueError("a cache's head size is no such number")
        shapes = read_rows(values["operands"], 3)
        return cls(
            head_size,
            read_dims(values["sizes"], 3),
            read_dim(values["length"]),
            accesses[0],
            accesses[1],
            places,
            tuple(tuple(map(read_dim, read_rows(item, 8))) for item in shapes),
        )


@register("CachedAttention", domain=DOMAIN)
@dataclass(frozen=True, slots=True)
class CachedAttention(Operator):
    """Keys and values written to their caches, then attention over the caches.

    Inputs are the queries' tensor, the cache of keys, that of values, the tensors with the new keys
    and the new values, the place; then the mask and the position if ``attention`` has them. Results
    are the attention's, the new cache of keys, the new cache of values.
    """

    attention: FusedAttention
    key: CacheUpdate
    value: CacheUpdate

    def infer(self, *operands: Operand | None) -> Sequence[Type]:
        """The attention's result, and both caches' types."""
        caches = [tensor(operands[place], "cache") for place in (1, 2)]
        return [*self.attention.infer(), *(TensorType(kind.dtype, kind.shape) for kind in caches)]

    def meaning(self, *inputs: Array) -> tuple[Array, ...]:
        """One after the other."""
        query, keys, values, new_key, new_value, place, *others = inputs
        keys = self.key.meaning(keys, new_key, place)
        values = self.value.meaning(values, new_value, place)
        return self.attention.meaning(query, keys, values, *others), keys, values

    def attributes(self) -> dict[str, Any]:
        """The three operators' own."""
        parts = (self.attention, self.key, self.value)
        return dict(zip(("attention", "key", "value"), (part.attributes() for part in parts)))

    @classmethod
    def from_attributes(cls, values: Mapping[str, Any]) -> CachedAttention:
        """Read `attributes`' JSON, which may be hostile; ValueError says what is wrong."""
        if not isinstance(values, Mapping) or set(values) != {"attention", "key", "value"}:
            raise ValueError("an attention over caches has other fields than it should")
        if not isinstance(values["attention"], Mapping):
            raise ValueError("an attention over caches holds no attention")
        return cls(
            FusedAttention.from_attributes(values["attention"]),
            CacheUpdate.from_attributes(values["key"]),
            CacheUpdate.from_attributes(values["value"]),
        )
