"""Attention on Hopper: wgmma over all keys at once, scores and probabilities stay in registers.

A block holds the keys and values of one head in shared memory, where the tensor memory accelerator
puts them; each of its warpgroups takes tiles of 64 queries one after the other. The scores of a
tile are one product, so that the softmax passes over them once, in powers of two with the scale
folded in; rounded to 16 bits they are the first factor of the product with the values. Several
blocks of a multiprocessor hide each other's softmax, products and copies. (Shah et al.,
"FlashAttention-3", for products whose first factor stays in registers.)

Parameters: tensor maps of queries, keys, values and the result, each of batch, heads, rows and
elements; with a mask its pointer; queries, keys (int); with a mask its strides over batch and heads
(long). The grid is blocks of queries by heads by batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from engine.cuda.c_expression import PRELUDE, read_text, storage_type
from engine.cuda.hopper_attention_source import (
    BODY,
    SETTINGS,
    STAGE,
    TILE,
    attend_text,
    product_text,
)
from engine.cuda.hopper_prelude import HOPPER_PRELUDE, wgmma_text
from engine.cuda.kernel import DeviceKernel
from engine.ir.types import DType
from engine.plan.device import TensorMapForm
from engine.target import CudaTarget

__all__ = [
    "MOST_KEYS",
    "HopperAttentionForm",
    "HopperAttentionTile",
    "attention_body",
    "attention_head",
    "attention_maps",
    "attention_text",
    "hopper_attention_kernel",
    "ranked_attention_tiles",
]

#: The most columns of one product, hence keys.
MOST_KEYS = 256
_QUERIES = 64
_LOG2_E = 1.4426950408889634
#: Candidates of one layer that are worth compiling.
_MOST = 6


@dataclass(frozen=True, slots=True)
class HopperAttentionForm:
    """What a kernel computes.

    ``queries`` and ``keys`` are 0 where they are told by the launch; ``columns`` is a multiple of 8
    up to 256, at least the keys. ``mask`` is the element type of a mask with one value per key.
    ``past`` as in `FusedAttention`.
    """

    dtype: DType
    head_size: int
    scale: float
    queries: int
    keys: int
    columns: int
    group: int = 1
    mask: DType | None = None
    causal: bool = False
    past: int = 0
    guarded: bool = False

    @property
    def parts(self) -> int:
        """Blocks of 64 elements of a head."""
        return -(-self.head_size // 64)

    @property
    def rows(self) -> int:
        """Rows of keys and of values in shared memory: a multiple of 16."""
        return -(-self.columns // 16) * 16

    @property
    def spans(self) -> list[int]:
        """Columns of the products that there are, ascending: what lies past a diagonal is left."""
        below = range(64, self.columns, 64) if self.causal else range(0)
        return [*below, self.columns]

    @property
    def registers(self) -> int:
        """About what a thread needs: the scores, or probabilities and the result.

        Scores in two parts need more: those of one while the other's products are under way.
        """
        result = -(-self.head_size // 8) * 4
        held = max(self.columns // 2, self.columns // 4 + result)
        return held + (32 if self.columns <= 128 else 60 if self.parts == 1 else 84)


@dataclass(frozen=True, slots=True)
class HopperAttentionTile:
    """How an attention is cut.

    ``groups`` warpgroups of a block (1 to 4), ``tiles`` of 64 queries that each takes in turn,
    ``resident`` blocks for which a multiprocessor shall have registers.
    """

    groups: int
    tiles: int
    resident: int

    def to_json(self) -> dict[str, object]:
        """The choice as JSON."""
        return asdict(self)

    def shared_nbytes(self, form: HopperAttentionForm) -> int:
        """Dynamic shared memory, with room to begin at a multiple of 1024."""
        held = form.parts * (2 * form.rows * 128 + self.groups * 2 * 8192)
        return 1024 + held + 64 + (4 * form.rows if form.mask is not None else 0)


def hopper_attention_kernel(form: HopperAttentionForm, tile: HopperAttentionTile) -> DeviceKernel:
    """The kernel; ValueError for what it cannot do."""
    if form.dtype not in (DType.FLOAT16, DType.BFLOAT16):
        raise ValueError(f"factors are {form.dtype.value}, expected float16 or bfloat16")
    if form.columns % 8 or not max(8, form.keys) <= form.columns <= MOST_KEYS:
        raise ValueError(f"{form.columns} columns are no product for {form.keys} keys")
    if not 1 <= form.head_size <= 128 or form.scale <= 0 or form.past < 0:
        raise ValueError("heads have 1 to 128 elements, the scale is positive, the past is not < 0")
    if not 1 <= tile.groups <= 4 or min(tile.tiles, tile.resident) < 1:
        raise ValueError(f"no block of {tile.groups} warpgroups with {tile.tiles} tiles each")
    cut = {columns: _chunks(form, columns) for columns in form.spans}
    widths = sorted({width for chunks in cut.values() for width in chunks})
    text = [wgmma_text(form.dtype, width) for width in widths] + [attention_text(form)]
    text += [attend_text(chunks, _edge(form, columns)) for columns, chunks in cut.items()]
    text.append(attention_body(form, BODY).replace("@ATTEND@", _attend(form)))
    named = {"GROUPS": tile.groups, "TILES": tile.tiles, "RESIDENT": tile.resident}
    named |= {"ADDED_KEYS": form.rows}
    return DeviceKernel(
        "nvrtc",
        "hopper_attention",
        "".join([attention_head(form, named), *text]),
        128 * tile.groups,
        shared_nbytes=tile.shared_nbytes(form),
        waits=True,
        maps=attention_maps(form),
    )


def attention_maps(form: HopperAttentionForm) -> tuple[TensorMapForm, ...]:
    """The forms of the tensor maps of queries, keys, values and the result."""
    boxes = [_QUERIES, form.rows, form.rows, 16]
    return tuple(TensorMapForm(form.dtype.value, (1, 1, rows, 64), 128) for rows in boxes)


def attention_head(form: HopperAttentionForm, named: Mapping[str, int]) -> str:
    """What a kernel's text begins with; ``named`` are macros of its own."""
    settings: dict[str, object] = {
        "HEAD": form.head_size,
        "SHARED": form.group,
        "QUERIES": form.queries or "queries",
        "KEYS": form.keys or "keys",
        "WHOLE": int(form.queries > 0 and form.queries % _QUERIES == 0),
        "ROWS": form.rows,
        "SCALE": f"{form.scale * _LOG2_E!r}f",
        "PACK": "ef_pack_bfloat16" if form.dtype is DType.BFLOAT16 else "ef_pack_float16",
        "ADDED": int(form.mask is not None),
        "CAUSAL": int(form.causal),
        "PAST": form.past,
        "GUARDED": int(form.guarded),
        **named,
    }
    lines = [f"#define {name} {value}\n" for name, value in settings.items()]
    return "".join([PRELUDE, *lines, SETTINGS, HOPPER_PRELUDE])


def attention_text(form: HopperAttentionForm) -> str:
    """The functions for tiles."""
    return product_text(form.dtype, -(-form.head_size // 8) * 8) + TILE


def attention_body(form: HopperAttentionForm, body: str) -> str:
    """The text of a kernel with its parameters and what a mask adds."""
    parameters = [f"const __grid_constant__ ef_map {name}" for name in ("q", "k", "v", "y")]
    if form.mask is not None:
        parameters.append(f"const {storage_type(form.mask)} *mask")
    parameters += ["int queries", "int keys"]
    if form.mask is not None:
        parameters += ["long long mask_batch", "long long mask_head"]
    body = body.replace("@PARAMETERS@", ", ".join(parameters)).replace("@STAGE@\n", STAGE)
    if form.mask is not None:
        element = "mask[batch * mask_batch + head * mask_head + i]"
        body = body.replace("@MASK@", read_text(form.mask, element))
    return body


def _attend(form: HopperAttentionForm) -> str:
    """The call for a tile: over the columns that its last query sees."""
    spans = form.spans
    lines = []
    for place, columns in enumerate(spans):
        when = f"if (first + 64 + PAST <= {columns} || KEYS <= {columns}) "
        begin = "" if place == 0 else "else "
        call = f"ef_attend_{columns}(at, value_rows, o, inverse, ready, valued);"
        lines.append(begin + ("" if columns == spans[-1] else when) + call)
    return "\n".join(f"        {line}" for line in lines)


def _edge(form: HopperAttentionForm, columns: int) -> int:
    """The first of some columns that not every query of a tile sees; all are seen before it."""
    if not form.causal:
        return form.keys
    # The tile's last query sees more than the columns of the span before.
    last = (columns - 1) // 64 * 64
    return last if form.past % 64 == 0 else max(0, last - 64)


def _chunks(form: HopperAttentionForm, columns: int) -> list[int]:
    """The products that make the scores of some columns; all but the last are multiples of 16."""
    if columns <= 128 or form.parts > 1:
        return [columns]
    half = columns // 32 * 16
    return [half, columns - half]


def ranked_attention_tiles(
    form: HopperAttentionForm, pairs: int, queries: int, target: CudaTarget
) -> list[HopperAttentionTile]:
    """Tiles that fit, the likeliest first; ``pairs`` are heads of all samples."""
    found = {tile: _seconds(form, tile, pairs, queries, target) for tile in _tiles(form, queries,
             target)}  # fmt: skip
    return sorted(found, key=lambda tile: found[tile])[:_MOST]


def _tiles(
    form: HopperAttentionForm, queries: int, target: CudaTarget
) -> Iterator[HopperAttentionTile]:
    count = -(-queries // _QUERIES)
    for groups in range(1, min(4, count) + 1):
        rounds = {1, 2, -(-count // groups)}
        for tiles in sorted(rounds):
            if (tiles - 1) * groups >= count:
                continue
            alone = HopperAttentionTile(groups, tiles, 1)
            nbytes = alone.shared_nbytes(form) + 1024
            threads = 128 * groups
            # Registers come in eights; what is needed may be a little less than guessed.
            room = [n for n in range(1, 9) if 65536 // (threads * n) // 8 * 8 >= form.registers]
            most = min(max(room, default=0), (target.shared_nbytes + 1024) // nbytes)
            if most >= 1:
                yield HopperAttentionTile(groups, tiles, most)


def _seconds(
    form: HopperAttentionForm,
    tile: HopperAttentionTile,
    pairs: int,
    queries: int,
    target: CudaTarget,
) -> float:
    """A rough time: a launch, then what takes longest of latency, arithmetic and copies.

    Exponentials: 16 per clock and multiprocessor; products: 8192 operations; 1.7 GHz.
    """
    covered = tile.groups * tile.tiles * _QUERIES
    blocks = -(-queries // covered) * pairs
    columns = form.columns * (0.6 if form.causal and len(form.spans) > 1 else 1.0)
    rows = min(queries, covered)
    work = rows * columns / 16 + 4 * rows * columns * form.head_size / 8192 / 3
    chain = tile.tiles * (700 + 64 * columns / 16)
    nbytes = (2 * form.rows + 2 * rows) * form.head_size * 2
    bandwidth = 5.5e12 / target.multiprocessors
    rounds = -(-blocks // (target.multiprocessors * tile.resident))
    share = -(-blocks // target.multiprocessors)
    latency = rounds * (1.2e-6 + chain / 1.7e9)
    return 2e-6 + max(latency, share * max(work / 1.7e9, nbytes / bandwidth) + 1e-6)
