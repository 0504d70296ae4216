"""Attention of one query per head over a long cache, in Triton: the keys are split over blocks.

Each block reads its share of keys and values once, at the speed of memory, and multiplies without
matrix units. Key i of each step belongs to stream i of the block, which has its own maximum, total
and sum: until the streams are merged after the last step no thread needs what another found. The
keys and values of later steps may be on their way meanwhile. Shares are merged in the same launch
("Flash-Decoding", Dao and others): a block writes its sum, maximum and total, counts itself, and
the last to arrive merges them in order and sets the counter back to zero. Optionally the newest key
and value, which lie elsewhere, take their place in the cache: nobody uses what is read there, the
first block of a head stores them, and the block whose share holds the place takes them in as one
more stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.cuda.kernel import Constant, DeviceKernel
from engine.cuda.triton_compiler import ELEMENT_NAMES
from engine.ir.sizes import Dim
from engine.ir.types import DType
from engine.templates.attention import SIZE_NAMES, AttentionForm, pointer_types, split_sizes

__all__ = ["DECODE_SIZES", "DecodeTile", "copy_kernel", "decode_kernel", "update_kernel"]

#: The sizes that a decoding kernel takes: those of attention, then strides of the newest rows.
DECODE_SIZES = (*SIZE_NAMES, "nk_batch", "nk_head", "nv_batch", "nv_head")


@dataclass(frozen=True, slots=True)
class DecodeTile:
    """Keys of a step, blocks that share the keys of one query, warps of a block.

    An ``eager`` block reads its part of the whole cache without waiting for the position that says
    how much of it counts. ``stages`` are steps whose keys and values lie or arrive in shared
    memory; with one they come into registers.
    """

    keys: int
    splits: int
    warps: int
    eager: bool = False
    stages: int = 1

    def to_json(self) -> dict[str, Any]:
        """The tile as JSON; one stage goes without saying."""
        fields = {name: value for name, value in asdict(self).items() if name != "stages"}
        return {"decode": True, **fields} | ({"stages": self.stages} if self.stages > 1 else {})


def decode_kernel(
    form: AttentionForm,
    tile: DecodeTile,
    sizes: Mapping[str, Dim],
    aligned: frozenset[str],
    *,
    waits: bool,
    updates: DType | None = None,
    places: str = "one",
) -> DeviceKernel:
    """The kernel for sizes by name (`DECODE_SIZES`); those that are numbers are compiled in.

    The grid is splits by (queries * heads) by batch. With more than one split it takes ``sums``
    (float32 [rows, splits, width + 4]) and ``counters`` (int32 [rows], zeros). ``updates`` is the
    type of the ``place`` at which ``new_key`` and ``new_value`` are stored, ``places`` whether
    there is "one" or one of each sample of the "batch"; None leaves the cache as it is.
    """
    fixed, passed = split_sizes(sizes)
    element = f"*{ELEMENT_NAMES[form.dtype]}"
    pointers = pointer_types(form)
    if updates is not None:
        pointers += [("new_key", element), ("new_value", element)]
        pointers.append(("place", f"*{ELEMENT_NAMES[updates]}"))
    if tile.splits > 1:
        pointers += [("sums", "*fp32"), ("counters", "*i32")]
    numbers = [(name, "i32" if name.endswith("_head") else "i64") for name in passed]
    signature = [*pointers, *numbers]
    constants: dict[str, Constant] = {
        **fixed,
        "HEAD": form.head_size,
        "WIDTH": form.width,
        "GROUP": form.group,
        "BN": tile.keys,
        "SPLITS": tile.splits,
        "LINE": 128 // form.dtype.nbytes,
        "LINES": max(1, form.width * form.dtype.nbytes // 128),
        "WAITS": waits,
    }
    parameters = [
        *(name for name, _ in pointers),
        *(f"{name}: tl.constexpr" if name in fixed else name for name in DECODE_SIZES),
        *(f"{name}: tl.constexpr" for name in constants if name not in fixed),
    ]
    several = _several(tile, sizes["keys"])
    lines = [
        *_places(form, tile, updated=updates is not None, places=places, several=several),
        *_share(form, tile, updated=updates is not None, several=several),
        *(_merge(form) if tile.splits > 1 else _store(form)),
    ]
    return _kernel("attention_decode", parameters, lines, signature, constants, aligned,
                   tile.warps, waits=waits)  # fmt: skip


def _several(tile: DecodeTile, keys: Dim) -> bool:
    """Whether the share of a block may take more than one step."""
    return not isinstance(keys, int) or keys > tile.keys * tile.splits


def _kernel(
    entry: str,
    parameters: list[str],
    lines: list[str],
    signature: list[tuple[str, str]],
    constants: Mapping[str, Constant],
    aligned: frozenset[str],
    warps: int,
    *,
    waits: bool,
) -> DeviceKernel:
    source = (
        "import triton\nimport triton.language as tl\n\n\n@triton.jit\n"
        f"def {entry}({', '.join(parameters)}):\n" + "".join(f"    {line}\n" for line in lines)
    )
    return DeviceKernel(
        "triton",
        entry,
        source,
        32 * warps,
        signature=tuple(signature),
        constants=tuple(constants.items()),
        aligned=tuple(name for name, _ in signature if name in aligned),
        waits=waits,
    )


_WAIT = [
    "if WAITS:",
    "    tl.extra.cuda.gdc_wait()",
    "    tl.extra.cuda.gdc_launch_dependents()",
]


def _places(
    form: AttentionForm, tile: DecodeTile, *, updated: bool, places: str, several: bool
) -> list[str]:
    """Which query, which keys, and where they lie; the loads of a share that is one step."""
    lines = [
        "split = tl.program_id(0)",
        "query = tl.program_id(1) // heads",
        "head = tl.program_id(1) % heads",
        "batch = tl.program_id(2).to(tl.int64)",
        "shared = head // GROUP",
        "lanes = tl.arange(0, BN)",
        "elements = tl.arange(0, WIDTH)",
        "inside = elements < HEAD",
    ]
    early = tile.eager or not form.limited
    if early:
        lines += [*_keys("keys"), *_AHEAD]
    lines += _WAIT
    # What is read: all keys of the share when their number must not wait for the position.
    if early:
        lines.append("end = tl.minimum(begin + steps * BN, keys)")
    if early and not several:
        lines += _fetch(form, "begin")
    lines.append("last = tl.cast(keys, tl.int32)")
    if form.limited:
        lines.append("furthest = tl.cast(past, tl.int32)")
    if form.position != "none":
        lines.append(f"furthest += tl.load(position{_of(form.position)}).to(tl.int32)")
    if form.causal:
        lines.append("furthest += query")
    if form.limited:
        lines.append("last = tl.minimum(last, tl.maximum(furthest + 1, 0))")
    if not early:
        lines += [*_keys("last"), "end = tl.minimum(begin + steps * BN, last)"]
        lines += [] if several else _fetch(form, "begin")
    lines += [
        "q_at = q + batch * q_batch + head * q_head + query * q_row + elements",
        "scale = " + repr(form.scale * math.log2(math.e)),
        "queried = tl.load(q_at, mask=inside, other=0.0).to(tl.float32) * scale",
    ]
    if form.mask != "none":
        row = " + query * m_row" if form.mask == "full" else ""
        lines.append(f"m_at = mask + batch * m_batch + head * m_head{row} + begin + lanes")
    if updated:
        lines += [
            f"here = tl.load(place{_of(places)}).to(tl.int32)",
            "here = tl.where(here < 0, here + keys, here).to(tl.int32)",
            "newest_key = tl.load(new_key + batch * nk_batch + shared * nk_head + elements,"
            " mask=inside, other=0.0)",
            "newest_value = tl.load(new_value + batch * nv_batch + shared * nv_head + elements,"
            " mask=inside, other=0.0)",
        ]
    return lines


def _fetch(form: AttentionForm, start: str) -> list[str]:
    """Loads of the keys and values of a step."""
    narrow = form.width != form.head_size
    seen = f"({start} + lanes < end)[:, None]" + (" & inside[None, :]" if narrow else "")
    return [
        f"key = tl.load(k_at, mask={seen}, other=0.0)",
        f"value = tl.load(v_at, mask={seen}, other=0.0)",
    ]


def _keys(count: str) -> list[str]:
    """The share of this block in the first ``count`` keys."""
    return [
        f"steps = ((({count} + BN - 1) // BN + SPLITS - 1) // SPLITS)",
        "begin = split * steps * BN",
        "k_at = k + batch * k_batch + shared * k_head"
        " + (begin + lanes).to(tl.int64)[:, None] * k_row + elements[None, :]",
        "v_at = v + batch * v_batch + shared * v_head"
        " + (begin + lanes).to(tl.int64)[:, None] * v_row + elements[None, :]",
    ]


_PREFETCH = '"prefetch.global.L2 [$1]; // $0", "=r,l"'
#: The first keys and values are brought near while the kernels before this one still run; what
#: they may write is not read yet.
_AHEAD = [
    "if WAITS:",
    "    rows = tl.minimum(begin + lanes, keys - 1).to(tl.int64)[:, None]",
    "    lines = tl.minimum(tl.arange(0, LINES) * LINE, HEAD - 1)[None, :]",
    "    near = (k + batch * k_batch + shared * k_head + rows * k_row + lines).to(tl.int64)",
    f"    tl.inline_asm_elementwise({_PREFETCH}, [near], dtype=tl.int32, is_pure=False, pack=1)",
    "    near = (v + batch * v_batch + shared * v_head + rows * v_row + lines).to(tl.int64)",
    f"    tl.inline_asm_elementwise({_PREFETCH}, [near], dtype=tl.int32, is_pure=False, pack=1)",
]


def _of(places: str) -> str:
    return " + batch" if places == "batch" else ""


def _share(form: AttentionForm, tile: DecodeTile, *, updated: bool, several: bool) -> list[str]:
    """The block's keys, stream by stream; ``several`` when there may be more than one step."""
    body = _fetch(form, "start") if several else []
    body.append("counts = (start + lanes < end) & (start + lanes < last)")
    if updated:
        body.append("counts = counts & (start + lanes != here)")
    if updated or (tile.eager and form.limited):
        # What does not count may be anything, NaN too, and must not meet a weight of zero.
        body.append("value = tl.where(counts[:, None], value, 0.0)")
    body.append("scores = tl.sum(key.to(tl.float32) * queried[None, :], 1)")
    if form.mask != "none":
        body += [
            "added = tl.load(m_at, mask=start + lanes < end, other=0.0).to(tl.float32)",
            f"scores += added * {math.log2(math.e)!r}",
        ]
    body += [
        "scores = tl.where(counts, scores, float('-inf'))",
        "higher = tl.maximum(tops, scores)",
        "shifts = tl.where(higher == float('-inf'), 0.0, higher)",
        "weights = tl.exp2(scores - shifts)",
        "shrinks = tl.exp2(tops - shifts)",
        "totals = totals * shrinks + weights",
        "accs = accs * shrinks[:, None] + weights[:, None] * value.to(tl.float32)",
        "tops = higher",
    ]
    # A share of one step was loaded before: in a block of its own none of that is put off.
    loop = "for start in tl.range(begin, end, BN):"
    if several:
        body += ["k_at += BN * k_row", "v_at += BN * v_row"]
        body += ["m_at += BN"] if form.mask != "none" else []
        stages = f", num_stages={tile.stages}" if tile.stages > 1 else ""
        loop = f"for start in tl.range(begin, end, BN{stages}):"
    return [
        "accs = tl.zeros((BN, WIDTH), tl.float32)",
        "tops = tl.full((BN,), float('-inf'), tl.float32)",
        "totals = tl.zeros((BN,), tl.float32)",
        loop,
        *(f"    {line}" for line in body),
        *(_newest(form) if updated else []),
        *_joined(updated=updated),
    ]


def _newest(form: AttentionForm) -> list[str]:
    """Store the newest key and value; its score, if this block's query sees it in this share."""
    lines = [
        # One block of each group stores, even when its query does not see the place.
        "stores = (head % GROUP == 0) & (query == 0) & (split == 0) & (here >= 0) & (here < keys)",
        "tl.store(k + batch * k_batch + shared * k_head + here.to(tl.int64) * k_row + elements,"
        " newest_key, mask=inside & stores)",
        "tl.store(v + batch * v_batch + shared * v_head + here.to(tl.int64) * v_row + elements,"
        " newest_value, mask=inside & stores)",
        "seen = (here >= begin) & (here < end) & (here < last)",
        "newest = tl.sum(newest_key.to(tl.float32) * queried, 0)",
    ]
    if form.mask != "none":
        row = " + query * m_row" if form.mask == "full" else ""
        lines += [
            f"m_here = mask + batch * m_batch + head * m_head{row} + here",
            "added_here = tl.load(m_here, mask=seen, other=0.0).to(tl.float32)",
            f"newest += added_here * {math.log2(math.e)!r}",
        ]
    lines.append("newest = tl.where(seen, newest, float('-inf'))")
    return lines


def _joined(*, updated: bool) -> list[str]:
    """All streams of the block as one maximum, total and sum."""
    lines = ["top = tl.max(tops, 0)"]
    if updated:
        lines.append("top = tl.maximum(top, newest)")
    lines += [
        "shift = tl.where(top == float('-inf'), 0.0, top)",
        "shrinks = tl.exp2(tops - shift)",
        "total = tl.sum(totals * shrinks, 0)",
        "acc = tl.sum(accs * shrinks[:, None], 0)",
    ]
    if updated:
        lines += [
            "weight = tl.exp2(newest - shift)",
            "total += weight",
            "acc += weight * tl.where(seen, newest_value.to(tl.float32), 0.0)",
        ]
    return lines


def _result(form: AttentionForm) -> list[str]:
    inverse = "1.0 / total"
    if form.guarded:
        inverse = "tl.where(total == 0.0, 0.0, 1.0 / total)"
    return [
        "o_at = out + batch * o_batch + head * o_head + query * o_row + elements",
        f"tl.store(o_at, (acc * ({inverse})).to(out.dtype.element_ty), mask=inside)",
    ]


def _store(form: AttentionForm) -> list[str]:
    return _result(form)


def _merge(form: AttentionForm) -> list[str]:
    """Write the share, count, and let the last block of a query merge all shares in order."""
    merged = [
        "shares = tl.arange(0, SPLITS)",
        "theirs = sums + (row * SPLITS + shares) * (WIDTH + 4)",
        'their_tops = tl.load(theirs + WIDTH, cache_modifier=".cg")',
        'their_totals = tl.load(theirs + (WIDTH + 1), cache_modifier=".cg")',
        'parts = tl.load(theirs[:, None] + elements[None, :], cache_modifier=".cg")',
        "top = tl.max(their_tops, 0)",
        "shift = tl.where(top == float('-inf'), 0.0, top)",
        "their_shrinks = tl.exp2(their_tops - shift)",
        "total = tl.sum(their_totals * their_shrinks, 0)",
        "acc = tl.sum(parts * their_shrinks[:, None], 0)",
        *_result(form),
        "tl.store(counters + row, 0)",
    ]
    return [
        "row = batch * tl.num_programs(1) + tl.program_id(1)",
        "mine = sums + (row * SPLITS + split) * (WIDTH + 4)",
        "tl.store(mine + elements, acc)",
        "tl.store(mine + WIDTH, top)",
        "tl.store(mine + (WIDTH + 1), total)",
        "tl.debug_barrier()  # every thread's share is written before the block counts",
        'arrived = tl.atomic_add(counters + row, 1, sem="acq_rel")',
        "if arrived == SPLITS - 1:",
        *(f"    {line}" for line in merged),
    ]


def update_kernel(
    dtype: DType,
    place: DType,
    head_size: int,
    sizes: Mapping[str, Dim],
    aligned: frozenset[str],
    *,
    places: str,
    waits: bool,
) -> DeviceKernel:
    """Stores new rows in a cache; the grid is rows by heads by batch.

    Sizes by name: ``keys`` (rows of the cache), strides of the cache ``c_`` and the rows ``u_``
    along batch, head and row. A place below zero counts from the end; rows past it are left out.
    """
    fixed, passed = split_sizes(sizes)
    element = f"*{ELEMENT_NAMES[dtype]}"
    signature = [("cache", element), ("update", element), ("place", f"*{ELEMENT_NAMES[place]}")]
    signature += [(name, "i64") for name in passed]
    width = max(16, 1 << (head_size - 1).bit_length())
    constants: dict[str, Constant] = {**fixed, "HEAD": head_size, "WIDTH": width, "WAITS": waits}
    parameters = [
        *("cache", "update", "place"),
        *(f"{name}: tl.constexpr" if name in fixed else name for name in sizes),
        *(f"{name}: tl.constexpr" for name in constants if name not in fixed),
    ]
    lines = [
        *_WAIT,
        "row = tl.program_id(0)",
        "head = tl.program_id(1)",
        "batch = tl.program_id(2).to(tl.int64)",
        "elements = tl.arange(0, WIDTH)",
        "inside = elements < HEAD",
        "rows = tl.load(update + batch * u_batch + head * u_head + row * u_row + elements,"
        " mask=inside, other=0.0)",
        f"here = tl.load(place{_of(places)}).to(tl.int64)",
        "here = tl.where(here < 0, here + keys, here) + row",
        "tl.store(cache + batch * c_batch + head * c_head + here * c_row + elements, rows,"
        " mask=inside & (here >= 0) & (here < keys))",
    ]
    return _kernel("cache_update", parameters, lines, signature, constants, aligned, 1,
                   waits=waits)  # fmt: skip


def copy_kernel(dtype: DType, *, waits: bool) -> DeviceKernel:
    """Copies ``count`` elements; the grid is count / 2048, rounded up."""
    element = f"*{ELEMENT_NAMES[dtype]}"
    lines = [
        *_WAIT,
        "at = tl.program_id(0).to(tl.int64) * 2048 + tl.arange(0, 2048)",
        "tl.store(y + at, tl.load(x + at, mask=at < count), mask=at < count)",
    ]
    return _kernel("copy", ["x", "y", "count", "WAITS: tl.constexpr"], lines,
                   [("x", element), ("y", element), ("count", "i64")], {"WAITS": waits},
                   frozenset(("x", "y")), 4, waits=waits)  # fmt: skip
