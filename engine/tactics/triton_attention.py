"""Attention by Triton: blocks of queries, or one query over keys that are split among blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from engine.cuda.kernel import DeviceKernel
from engine.ir.graph import Node, Value
from engine.ir.sizes import Dim, Size, ceildiv, evaluate, product, symbols
from engine.ir.types import DType
from engine.lower.builder import ProgramBuilder
from engine.ops.cache_update import CachedAttention, CacheUpdate
from engine.ops.fused_attention import DTYPES, FusedAttention, HeadAccess
from engine.plan.device import Pointer
from engine.plan.structure import Guard
from engine.tactics.tactic import Candidate, Refusal, register
from engine.tactics.triton_launch import Argument, parameters
from engine.target import CudaTarget, Target
from engine.templates.attention import AttentionForm, AttentionTile, attention_kernel
from engine.templates.attention_decode import (
    DecodeTile,
    copy_kernel,
    decode_kernel,
    update_kernel,
)
from engine.templates.attention_decode_tiles import decode_tiles

__all__ = [
    "TritonAttention",
    "TritonCacheUpdate",
    "attention_tiles",
    "decode_tiles",
    "emit_attention",
]

#: Candidates of one layer that are worth compiling.
MOST = 14
#: The most queries of a head for which the keys are split instead.
FEW_QUERIES = 4
#: Bytes per second and multiprocessor that one of this class reads, and seconds of a launch.
_BANDWIDTH = 4.3e12 / 132
_LAUNCH = 1.5e-6


@dataclass(frozen=True, slots=True)
class _Layer:
    """An attention and its operands, whatever operator it comes in."""

    op: FusedAttention
    query: Value
    key: Value
    value: Value
    mask: Value | None
    position: Value | None
    result: Value
    cached: CachedAttention | None = None


class TritonAttention:
    """Serves FusedAttention and CachedAttention in float16, bfloat16 and float32."""

    name = "triton.attention"
    kinds = ("FusedAttention", "CachedAttention")

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """One candidate per tile worth measuring; only split keys when there is a cache."""
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "it makes kernels for NVIDIA GPUs")
        if target.capability < (8, 0):
            return Refusal(self.name, "it needs compute capability 8.0")
        layer = _layer(node)
        reason = _why_not(layer, node)
        if reason:
            return Refusal(self.name, reason)
        batch, heads, queries, keys = (evaluate(dim, point) for dim in layer.op.sizes)
        if min(batch, heads, queries, keys) < 1:
            return Refusal(self.name, "there is nothing to attend to")
        form = _form(layer)
        found: list[AttentionTile | DecodeTile] = []
        if queries <= FEW_QUERIES:
            found += decode_tiles(form, batch * heads * queries, keys, target)
        if layer.cached is None:
            fixed = isinstance(layer.op.sizes[3], int)
            if not fixed:  # one step for all keys serves as long as they are no more
                whole = attention_tiles(form, batch * heads, queries, keys, target)
                found += [tile for tile in whole if tile.single][:3]
            found += attention_tiles(form, batch * heads, queries, keys, target, fixed=fixed)
        return [self._candidate(tile, layer.op.sizes[3], target) for tile in found[: MOST + 4]]

    def _candidate(
        self, tile: AttentionTile | DecodeTile, keys: Dim, target: CudaTarget
    ) -> Candidate:
        single = isinstance(tile, AttentionTile) and tile.single
        return Candidate(
            self.name,
            tile.to_json(),
            lambda builder, node, layer: emit_attention(builder, node, layer, tile, target),
            holds=(Guard("<=", keys, tile.keys),) if single else (),
        )


def _layer(node: Node) -> _Layer:
    inputs = list(node.inputs)
    cached = node.op if isinstance(node.op, CachedAttention) else None
    op = cached.attention if cached is not None else node.op
    assert isinstance(op, FusedAttention)
    if cached is not None:
        inputs = [*inputs[:3], *inputs[6:]]
    query, key, value, *others = inputs
    assert query is not None and key is not None and value is not None
    mask = others[0] if op.mask != "none" else None
    position = others[-1] if op.position != "none" else None
    return _Layer(op, query, key, value, mask, position, node.outputs[0], cached)


def _why_not(layer: _Layer, node: Node) -> str:
    """Why no kernel serves a layer; "" when one does."""
    op = layer.op
    dtypes = {value.tensor.dtype for value in (layer.query, layer.key, layer.value)}
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        return "queries, keys and values are not of one type of float16, bfloat16 or float32"
    if layer.mask is not None and layer.mask.tensor.dtype not in DTYPES:
        return f"the mask is {layer.mask.tensor.dtype.value}"
    if op.head_size > 256:
        return f"heads of {op.head_size} elements do not fit registers"
    if not math.isfinite(op.scale):
        return "the scale is no finite number"
    integers = [layer.position, node.inputs[5] if layer.cached is not None else None]
    for value in integers:
        if value is not None and value.tensor.dtype not in (DType.INT32, DType.INT64):
            return f"a position is {value.tensor.dtype.value}"
    if op.causal and op.position == "none" and not (isinstance(op.past, int) and op.past >= 0):
        return "a query may see no key at all"
    if layer.cached is not None:
        new = [value.tensor.dtype for value in node.inputs[3:5] if value is not None]
        if {*new, *dtypes} != dtypes:
            return "the new rows are of another type than the cache"
        if op.sizes[2] != 1 or {layer.cached.key.sizes[2], layer.cached.value.sizes[2]} != {1}:
            return "more than one row is written at once"
        if layer.cached.key.places != layer.cached.value.places:
            return "keys and values are written to different places"
    return ""


def _form(layer: _Layer) -> AttentionForm:
    op = layer.op
    return AttentionForm(
        layer.query.tensor.dtype,
        layer.result.tensor.dtype,
        op.head_size,
        op.scale,
        group=op.group,
        mask=op.mask,
        mask_dtype=None if layer.mask is None else layer.mask.tensor.dtype,
        causal=op.causal,
        position=op.position,
        position_dtype=None if layer.position is None else layer.position.tensor.dtype,
        guarded=op.guarded,
    )


def attention_tiles(
    form: AttentionForm,
    pairs: int,
    queries: int,
    keys: int,
    target: CudaTarget,
    *,
    fixed: bool = True,
) -> list[AttentionTile]:
    """Tiles that fit, the likeliest first; ``pairs`` are heads of all samples.

    One step may hold all keys only when their number is ``fixed``.
    """
    tiles = _tiles(queries, keys, fixed=fixed)
    found = [tile for tile in tiles if _fits(form, tile, target)]
    found.sort(key=lambda tile: _seconds(form, tile, pairs, queries, keys, target))
    return found[:MOST]


def _tiles(queries: int, keys: int, *, fixed: bool) -> Iterator[AttentionTile]:
    most = max(16, 1 << (queries - 1).bit_length())
    whole = max(32, 1 << (keys - 1).bit_length())
    for rows in (16, 32, 64, 128):
        if rows > most:
            continue
        for warps in (4, 8):
            if warps == 8 and rows < 64 and whole < 256:
                continue
            if whole <= 256 and fixed:
                yield AttentionTile(rows, whole, warps, 1, single=True)
            for columns in (32, 64, 128):
                if columns >= whole + (not fixed):
                    continue
                for stages in (2, 3) if keys > 2 * columns or not fixed else (1,):
                    yield AttentionTile(rows, columns, warps, stages)


def _fits(form: AttentionForm, tile: AttentionTile, target: CudaTarget) -> bool:
    """Whether shared memory and registers may hold a tile (the compiler has the last word)."""
    nbytes, threads = form.dtype.nbytes, 32 * tile.warps
    rows = tile.queries + 2 * tile.keys * max(1, tile.stages - 1 if not tile.single else 1)
    if rows * form.width * nbytes > target.shared_nbytes:
        return False
    held = tile.queries * (tile.keys + form.width)
    if tile.single:
        held += tile.keys * form.width * nbytes // 4
    if form.dtype is DType.FLOAT32:
        # Each factor is split in two for the matrix units.
        held += (tile.queries + 2 * tile.keys) * form.width // 2
    return held // threads + 30 <= 255


def _seconds(
    form: AttentionForm,
    tile: AttentionTile,
    pairs: int,
    queries: int,
    keys: int,
    target: CudaTarget,
) -> float:
    """A rough time: a launch, rounds of blocks, and the steps of each."""
    blocks = -(-queries // tile.queries) * pairs
    seen = min(keys, (keys + tile.queries) // 2) if form.causal and not tile.single else keys
    steps = -(-seen // tile.keys)
    flops = 4.0 * tile.queries * tile.keys * form.width
    # Hopper's wide units take 64 rows of four warps; below, the older ones run at about half.
    wide = target.capability >= (9, 0) and tile.queries * 4 // tile.warps >= 64
    rate = 3.0e12 if wide else 1.6e12
    if form.dtype is DType.FLOAT32:
        rate = 0.3e12
    powers = tile.queries * tile.keys / 27e9
    rows = tile.queries * 2 + steps * tile.keys * 2
    work = steps * (flops / rate + powers + (0.0 if tile.single else 0.25e-6))
    read = rows * form.width * form.dtype.nbytes / (_BANDWIDTH * 3)
    threads = 32 * tile.warps
    together = max(1, min(4, 65536 // (160 * threads)))
    rounds = -(-blocks // (target.multiprocessors * together))
    shares = -(-blocks // target.multiprocessors)
    latency = 0.8e-6 + 0.3e-6 * steps
    return _LAUNCH + rounds * latency + shares * max(work, read)


def emit_attention(
    builder: ProgramBuilder,
    node: Node,
    layer_index: int,
    tile: AttentionTile | DecodeTile,
    target: CudaTarget,
) -> None:
    """Copies of caches that do not share their memory, then the one launch."""
    layer = _layer(node)
    waits = target.capability >= (9, 0)
    op, form = layer.op, _form(layer)
    arguments: dict[str, Argument] = {}
    key, value = builder.slot(layer.key), builder.slot(layer.value)
    if layer.cached is not None:
        key = _shared(builder, layer.key, node.outputs[1], layer_index, waits=waits)
        value = _shared(builder, layer.value, node.outputs[2], layer_index, waits=waits)
    writes = layer.cached is not None
    arguments["q"] = Pointer(builder.slot(layer.query), op.query.offset)
    arguments["k"] = Pointer(key, op.key.offset, writes=writes)
    arguments["v"] = Pointer(value, op.value.offset, writes=writes)
    if layer.mask is not None:
        arguments["mask"] = Pointer(builder.slot(layer.mask), op.mask_access.offset)
    if layer.position is not None:
        arguments["position"] = Pointer(builder.slot(layer.position))
    arguments["out"] = Pointer(builder.slot(layer.result), op.out.offset, writes=True)
    sizes = _sizes(layer)
    batch, heads, queries, _ = op.sizes
    if isinstance(tile, DecodeTile) and _most(builder, batch * heads * queries) is None:
        tile = replace(tile, splits=1)  # there may be any number of counters
    if isinstance(tile, AttentionTile):
        kernel = attention_kernel(form, tile, sizes, _aligned(layer, node, sizes), waits=waits)
        grid = [ceildiv(queries, tile.queries), heads, batch]
    else:
        grid = [tile.splits, queries * heads, batch]
        kernel = _decoding(builder, layer, node, tile, sizes, arguments, waits=waits)
    named = {name for name, _ in kernel.signature}
    arguments |= {name: size for name, size in sizes.items() if name in named}
    builder.launch(kernel, grid, parameters(kernel, arguments), layer_index)


def _decoding(
    builder: ProgramBuilder,
    layer: _Layer,
    node: Node,
    tile: DecodeTile,
    sizes: dict[str, Dim],
    arguments: dict[str, Argument],
    *,
    waits: bool,
) -> DeviceKernel:
    """The kernel over split keys; what it takes beside the attention's own is added."""
    form, cached = _form(layer), layer.cached
    for name in ("nk", "nv"):
        sizes |= {f"{name}_batch": 0, f"{name}_head": 0}
    if cached is not None:
        for name, whole, update, source in (
            ("nk", "new_key", cached.key.update, node.inputs[3]),
            ("nv", "new_value", cached.value.update, node.inputs[4]),
        ):
            assert source is not None
            sizes |= {f"{name}_batch": update.batch, f"{name}_head": update.head}
            arguments[whole] = Pointer(builder.slot(source), update.offset)
        assert node.inputs[5] is not None
        arguments["place"] = Pointer(builder.slot(node.inputs[5]))
    rows = product(layer.op.sizes[:3])
    counters = _most(builder, rows)
    if tile.splits > 1:
        assert counters is not None
        elements = rows * (tile.splits * (form.width + 4))
        arguments["sums"] = Pointer(builder.workspace(DType.FLOAT32, elements), writes=True)
        arguments["counters"] = Pointer(builder.zeros(counters), writes=True)
    place = node.inputs[5] if cached is not None else None
    return decode_kernel(
        form,
        tile,
        sizes,
        _aligned(layer, node, sizes) | {"sums"},
        waits=waits,
        updates=None if place is None else place.tensor.dtype,
        places="one" if cached is None else cached.key.places,
    )


def _most(builder: ProgramBuilder, size: Dim) -> int | None:
    """The greatest value of a size over the profile of the program; None when it has no bound."""
    greatest = {item.name: item.greatest for item in builder.symbols}
    known = {name: bound for name, bound in greatest.items() if isinstance(bound, int)}
    return evaluate(size, known) if symbols(size) <= known.keys() else None


def _shared(builder: ProgramBuilder, old: Value, new: Value, layer: int, *, waits: bool) -> int:
    """The slot of an updated cache: that of the old one, or a copy made of it first."""
    source, result = builder.slot(old), builder.slot(new)
    if builder.root(source) == builder.root(result):
        return result
    kernel = copy_kernel(old.tensor.dtype, waits=waits)
    count = old.tensor.elements
    assert not isinstance(count, float)
    arguments: dict[str, Argument] = {
        "x": Pointer(source),
        "y": Pointer(result, writes=True),
        "count": count,
    }
    builder.launch(kernel, [ceildiv(count, 2048)], parameters(kernel, arguments), layer)
    return result


def _sizes(layer: _Layer) -> dict[str, Dim]:
    op = layer.op
    _, heads, queries, keys = op.sizes
    sizes: dict[str, Dim] = {"heads": heads, "queries": queries, "keys": keys, "past": op.past}
    accesses = (op.query, op.key, op.value, op.out, op.mask_access)
    for part, access in zip("qkvom", accesses):
        used = access if part != "m" or op.mask != "none" else HeadAccess(0, 0, 0, 0)
        sizes |= {f"{part}_batch": used.batch, f"{part}_head": used.head, f"{part}_row": used.row}
    return sizes


def _aligned(layer: _Layer, node: Node, sizes: Mapping[str, Dim]) -> frozenset[str]:
    """Parameters that are multiples of 16 whatever the sizes: strides, and pointers in bytes."""
    op = layer.op
    offsets = [("q", layer.query, op.query), ("k", layer.key, op.key), ("v", layer.value, op.value)]
    offsets.append(("out", layer.result, op.out))
    if layer.mask is not None:
        offsets.append(("mask", layer.mask, op.mask_access))
    if layer.cached is not None:
        for name, place, update in (
            ("new_key", 3, layer.cached.key.update),
            ("new_value", 4, layer.cached.value.update),
        ):
            source = node.inputs[place]
            assert source is not None
            offsets.append((name, source, update))
    names = {name for name, size in sizes.items() if _divides(16, size)}
    for name, source, access in offsets:
        if _divides(16, access.offset * source.tensor.dtype.nbytes):
            names.add(name)
    return frozenset(names)


def _divides(number: int, size: Dim) -> bool:
    """Whether a size is certainly a multiple of a number."""
    if isinstance(size, Size):
        return all(coefficient % number == 0 for _, coefficient in size.terms)
    return size % number == 0


class TritonCacheUpdate:
    """Serves CacheUpdate in every float type: only the new rows when the caches share memory."""

    name = "triton.cache_update"
    kinds = ("CacheUpdate",)

    def offers(
        self, node: Node, point: Mapping[str, int], target: Target
    ) -> Sequence[Candidate] | Refusal:
        """The one way."""
        if not isinstance(target, CudaTarget):
            return Refusal(self.name, "it makes kernels for NVIDIA GPUs")
        if target.capability < (8, 0):
            return Refusal(self.name, "it needs compute capability 8.0")
        cache, update, place = node.inputs
        assert cache is not None and update is not None and place is not None
        if cache.tensor.dtype not in DTYPES or update.tensor.dtype != cache.tensor.dtype:
            return Refusal(self.name, "the cache and its rows are not floats of one type")
        if place.tensor.dtype not in (DType.INT32, DType.INT64):
            return Refusal(self.name, f"the place is {place.tensor.dtype.value}")
        waits = target.capability >= (9, 0)
        return [
            Candidate(
                self.name,
                {},
                lambda builder, node, layer: _emit_update(builder, node, layer, waits=waits),
            )
        ]


def _emit_update(builder: ProgramBuilder, node: Node, layer: int, *, waits: bool) -> None:
    op = node.op
    assert isinstance(op, CacheUpdate)
    cache, update, place = node.inputs
    assert cache is not None and update is not None and place is not None
    slot = _shared(builder, cache, node.outputs[0], layer, waits=waits)
    batch, heads, rows = op.sizes
    sizes: dict[str, Dim] = {"keys": op.length}
    for part, access in (("c", op.cache), ("u", op.update)):
        for axis in ("batch", "head", "row"):
            sizes[f"{part}_{axis}"] = getattr(access, axis)
    aligned = {name for name, size in sizes.items() if _divides(16, size)}
    for name, access in (("cache", op.cache), ("update", op.update)):
        if _divides(16, access.offset * cache.tensor.dtype.nbytes):
            aligned.add(name)
    kernel = update_kernel(
        cache.tensor.dtype,
        place.tensor.dtype,
        op.head_size,
        sizes,
        frozenset(aligned),
        places=op.places,
        waits=waits,
    )
    arguments: dict[str, Argument] = {
        "cache": Pointer(slot, op.cache.offset, writes=True),
        "update": Pointer(builder.slot(update), op.update.offset),
        "place": Pointer(builder.slot(place)),
    }
    named = {name for name, _ in kernel.signature}
    arguments |= {name: size for name, size in sizes.items() if name in named}
    builder.launch(kernel, [rows, heads, batch], parameters(kernel, arguments), layer)


register(TritonAttention())
register(TritonCacheUpdate())
