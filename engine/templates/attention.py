"""Attention in Triton: softmax(scale Q K^T + mask) V for a block of queries of one head.

Scores are never stored: keys pass in blocks with a running maximum and sum (Milakov and Gimelshein,
"Online normalizer calculation for softmax"; Dao, "FlashAttention-2"), in powers of two with the
scale folded in. When one block holds all keys there is a single pass without corrections. Blocks of
keys that every query of the block sees whole are taken without comparisons; those at the end, on
the diagonal or before a position compare every key's index.
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

__all__ = ["AttentionForm", "AttentionTile", "SIZE_NAMES", "attention_kernel", "split_sizes"]

#: The sizes that a kernel takes, in the order of its parameters.
SIZE_NAMES = (
    *("heads", "queries", "keys", "past"),
    *(f"{part}_{axis}" for part in "qkvom" for axis in ("batch", "head", "row")),
)
#: 64 bits where a product with a block's place may pass 2**31.
_WIDE = frozenset(name for name in SIZE_NAMES if name.endswith(("_batch", "_row")))


@dataclass(frozen=True, slots=True)
class AttentionForm:
    """What an attention is but for its sizes.

    ``mask`` and ``position`` are kinds as in `FusedAttention`; their dtypes are None without one.
    """

    dtype: DType
    out_dtype: DType
    head_size: int
    scale: float
    group: int = 1
    mask: str = "none"
    mask_dtype: DType | None = None
    causal: bool = False
    position: str = "none"
    position_dtype: DType | None = None
    guarded: bool = False

    @property
    def width(self) -> int:
        """Elements of a head in registers: a power of two, 16 at least."""
        return max(16, 1 << (self.head_size - 1).bit_length())

    @property
    def limited(self) -> bool:
        """Whether queries see the first keys only."""
        return self.causal or self.position != "none"


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """Queries of a block, keys of a step, warps, depth of the pipeline.

    ``single`` says that one step holds all keys.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    single: bool = False

    def to_json(self) -> dict[str, Any]:
        """The tile as JSON."""
        return asdict(self)


def split_sizes(sizes: Mapping[str, Dim]) -> tuple[dict[str, int], dict[str, Dim]]:
    """Sizes that are compiled in, and those that are passed when launched."""
    fixed = {name: size for name, size in sizes.items() if isinstance(size, int)}
    return fixed, {name: size for name, size in sizes.items() if name not in fixed}


def attention_kernel(
    form: AttentionForm,
    tile: AttentionTile,
    sizes: Mapping[str, Dim],
    aligned: frozenset[str],
    *,
    waits: bool,
) -> DeviceKernel:
    """The kernel for sizes by name (`SIZE_NAMES`); those that are numbers are compiled in.

    ``aligned`` are parameters (pointers too) that are always multiples of 16 (bytes for pointers).
    The grid is blocks of queries by heads by batch. ``waits`` is for GPUs with programmatic
    dependent launch.
    """
    fixed, passed = split_sizes(sizes)
    pointers = pointer_types(form)
    signature = [*pointers, *((name, "i64" if name in _WIDE else "i32") for name in passed)]
    constants: dict[str, Constant] = {
        **fixed,
        "HEAD": form.head_size,
        "WIDTH": form.width,
        "GROUP": form.group,
        "BM": tile.queries,
        "BN": tile.keys,
        "WAITS": waits,
    }
    # A size that is a number cannot be told from its type: its parameter is a constant.
    parameters = [
        *(name for name, _ in pointers),
        *(f"{name}: tl.constexpr" if name in fixed else name for name in SIZE_NAMES),
        *(f"{name}: tl.constexpr" for name in constants if name not in fixed),
    ]
    lines = _lines(form, tile, sizes)
    source = (
        "import triton\nimport triton.language as tl\n\n\n@triton.jit\n"
        f"def attention({', '.join(parameters)}):\n" + "".join(f"    {line}\n" for line in lines)
    )
    known = {name for name, _ in signature}
    return DeviceKernel(
        "triton",
        "attention",
        source,
        32 * tile.warps,
        signature=tuple(signature),
        constants=tuple(constants.items()),
        aligned=tuple(name for name, _ in signature if name in aligned and name in known),
        stages=tile.stages,
        waits=waits,
    )


def pointer_types(form: AttentionForm) -> list[tuple[str, str]]:
    """The pointers that a kernel takes, with Triton's types."""
    element = f"*{ELEMENT_NAMES[form.dtype]}"
    found = [("q", element), ("k", element), ("v", element)]
    if form.mask_dtype is not None:
        found.append(("mask", f"*{ELEMENT_NAMES[form.mask_dtype]}"))
    if form.position_dtype is not None:
        found.append(("position", f"*{ELEMENT_NAMES[form.position_dtype]}"))
    return [*found, ("out", f"*{ELEMENT_NAMES[form.out_dtype]}")]


def _lines(form: AttentionForm, tile: AttentionTile, sizes: Mapping[str, Dim]) -> list[str]:
    lines = [
        *_places(form, sizes),
        "top = tl.full((BM,), float('-inf'), tl.float32)",
        "total = tl.zeros((BM,), tl.float32)",
        "acc = tl.zeros((BM, WIDTH), tl.float32)",
    ]
    keys = sizes["keys"]
    if tile.single:
        # All keys at once: their values are asked for before the softmax needs the scores.
        return [*lines, "start = 0", *_step(form, edge=True, single=True), *_store(form)]
    # Of a last block that lies within the keys everything may be read.
    inside = form.position == "none" and isinstance(keys, int) and keys % tile.keys == 0
    whole = form.limited or not isinstance(keys, int) or keys >= tile.keys
    ragged = form.limited or not isinstance(keys, int) or bool(keys % tile.keys)
    if whole:
        lines += [
            "for start in tl.range(0, full, BN):",
            *(f"    {line}" for line in _step(form, edge=False)),
        ]
    if ragged:
        lines += [
            "for start in tl.range(full, last, BN, num_stages=1):",
            *(f"    {line}" for line in _step(form, edge=True, inside=inside)),
        ]
    return [*lines, *_store(form)]


def _places(form: AttentionForm, sizes: Mapping[str, Dim]) -> list[str]:
    """Where the block's queries, keys and values lie, and which keys it has to see."""
    narrow = form.width != form.head_size
    lines = [
        # The last queries see the most keys: they begin first.
        "block = tl.num_programs(0) - 1 - tl.program_id(0)" if form.causal
        else "block = tl.program_id(0)",
        "head = tl.program_id(1)",
        "batch = tl.program_id(2).to(tl.int64)",
        "first = block * BM",
        "rows = first + tl.arange(0, BM)",
        "lanes = tl.arange(0, BN)",
        "elements = tl.arange(0, WIDTH)",
        "shared = head // GROUP",
        "q_at = q + batch * q_batch + head * q_head"
        " + rows.to(tl.int64)[:, None] * q_row + elements[None, :]",
        # A step moves one address of each tensor; within it offsets stay as they are.
        "k_from = k + batch * k_batch + shared * k_head",
        "v_from = v + batch * v_batch + shared * v_head",
        f"k_at = {_narrow('lanes', sizes['k_row'])}[:, None] * k_row + elements[None, :]",
        f"v_at = {_narrow('lanes', sizes['v_row'])}[:, None] * v_row + elements[None, :]",
    ]  # fmt: skip
    if form.mask == "key":
        lines.append("m_at = mask + batch * m_batch + head * m_head + lanes[None, :]")
    elif form.mask == "full":
        lines.append(
            "m_at = mask + batch * m_batch + head * m_head"
            " + rows.to(tl.int64)[:, None] * m_row + lanes[None, :]"
        )
    lines += [
        "if WAITS:",
        "    tl.extra.cuda.gdc_wait()",
        "    tl.extra.cuda.gdc_launch_dependents()",
    ]
    if form.limited:
        lines.append("furthest = past")
    if form.position == "one":
        lines.append("furthest += tl.load(position).to(tl.int32)")
    elif form.position == "batch":
        lines.append("furthest += tl.load(position + batch).to(tl.int32)")
    if form.causal:
        lines += [
            "last = tl.minimum(keys, tl.maximum(first + BM + furthest, 0))",
            "full = tl.minimum(keys, tl.maximum(first + 1 + furthest, 0)) // BN * BN",
        ]
    elif form.limited:
        lines += [
            "last = tl.minimum(keys, tl.maximum(1 + furthest, 0))",
            "full = last // BN * BN",
        ]
    else:
        lines += ["last = keys", "full = keys // BN * BN"]
    seen = "(rows < queries)[:, None]" + (" & (elements < HEAD)[None, :]" if narrow else "")
    return [*lines, f"queried = tl.load(q_at, mask={seen}, other=0.0)"]


def _step(
    form: AttentionForm, *, edge: bool, single: bool = False, inside: bool = False
) -> list[str]:
    """Scores of one block of keys, and their share of the result.

    At an ``edge`` some keys do not count; ``inside`` says that they can be read all the same.
    """
    narrow = form.width != form.head_size
    conditions = ["(start + lanes < last)[:, None]"] if edge and not inside else []
    conditions += ["(elements < HEAD)[None, :]"] if narrow else []
    guard = f", mask={' & '.join(conditions)}, other=0.0" if conditions else ""
    precision = ', input_precision="tf32x3"' if form.dtype is DType.FLOAT32 else ""
    lines = [f"key = tl.load(k_from + k_at{guard})"]
    if single:
        lines.append(f"value = tl.load(v_from + v_at{guard})")
    if form.mask != "none":
        shown = ["(start + lanes < last)[None, :]"] if edge and not inside else []
        shown += ["(rows < queries)[:, None]"] if form.mask == "full" else []
        when = f", mask={' & '.join(shown)}, other=0.0" if shown else ""
        lines.append(f"added = tl.load(m_at{when}).to(tl.float32)")
    scale = repr(form.scale * math.log2(math.e))
    lines.append(f"scores = tl.dot(queried, tl.trans(key){precision}) * ({scale})")
    if form.mask != "none":
        lines.append(f"scores += added * ({math.log2(math.e)!r})")
    if edge:
        visible = "(start + lanes < last)[None, :]"
        if form.causal:
            visible = "(start + lanes)[None, :] <= tl.minimum(rows + furthest, last - 1)[:, None]"
        lines.append(f"scores = tl.where({visible}, scores, float('-inf'))")
    # Without a mask or position the first block holds a key that every query sees (past >= 0).
    empty = form.mask != "none" or form.position != "none"
    lines.append(
        "higher = tl.max(scores, 1)" if single else "higher = tl.maximum(top, tl.max(scores, 1))"
    )
    if empty:
        lines.append("shift = tl.where(higher == float('-inf'), 0.0, higher)")
    shift = "shift" if empty else "higher"
    lines.append(f"scores = tl.exp2(scores - {shift}[:, None])")
    if single:
        lines += [
            "total = tl.sum(scores, 1)",
            f"acc = tl.dot(scores.to(value.dtype), value{precision})",
        ]
        return lines
    lines += [
        f"shrink = tl.exp2(top - {shift})",
        "total = total * shrink + tl.sum(scores, 1)",
        "acc = acc * shrink[:, None]",
        f"value = tl.load(v_from + v_at{guard})",
        f"acc = tl.dot(scores.to(value.dtype), value, acc{precision})",
        "top = higher",
        "k_from += BN * k_row",
        "v_from += BN * v_row",
    ]
    if form.mask != "none":
        lines.append("m_at += BN")
    return lines


def _narrow(places: str, row: Dim) -> str:
    """Places within a block as they are multiplied by a stride: 32 bits where that is enough."""
    return places if isinstance(row, int) and row < 1 << 23 else f"{places}.to(tl.int64)"


def _store(form: AttentionForm) -> list[str]:
    narrow = form.width != form.head_size
    seen = "(rows < queries)[:, None]" + (" & (elements < HEAD)[None, :]" if narrow else "")
    inverse = "1.0 / total"
    if form.guarded:
        inverse = "tl.where(total == 0.0, 0.0, 1.0 / total)"
    return [
        f"acc = acc * ({inverse})[:, None]",
        "o_at = out + batch * o_batch + head * o_head"
        " + rows.to(tl.int64)[:, None] * o_row + elements[None, :]",
        f"tl.store(o_at, acc.to(out.dtype.element_ty), mask={seen})",
    ]
