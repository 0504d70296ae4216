"""Matrix products in Triton: A [M, K] times B [N, K] (or [K, N]), then any epilogue.

Three styles. "pointers" loads tiles through addresses (cp.async on every architecture), with masks
for whatever does not fit. "boxes" loads tiles through tensor maps made on the host and stores
through one where the rows allow it. "persistent" is the same with one program per multiprocessor,
so that the loads of a tile overlap the epilogue of the one before. Split products write partial
sums of K ranges as float32; the block that arrives last at a tile adds them up in their order,
which makes the sum the same in every run, and leaves the counter at zero.

Sums are float32. Products of float32 are taken as three TF32 products ("tf32x3"), which keeps about
21 bits of each factor.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.cuda.kernel import Constant, DeviceKernel
from engine.cuda.triton_compiler import ELEMENT_NAMES
from engine.cuda.triton_expression import HELPERS
from engine.ir.sizes import Dim, ceildiv
from engine.ir.types import DType
from engine.templates.epilogue import Tail, operand_name

__all__ = ["Gemm", "Tile", "gemm_kernel", "tile_count"]


@dataclass(frozen=True, slots=True)
class Tile:
    """How a product is cut up and computed.

    ``style`` is "pointers", "boxes" or "persistent"; ``rows``, ``columns`` and ``depth`` are the
    sizes of a block's tile, ``split`` the ranges of K, ``group`` the tile rows that neighbours in
    time share, ``swapped`` computes the transposed tile (few rows), ``halves`` stores a tile in
    two parts, ``programs`` the blocks of a persistent kernel, ``ahead`` brings a constant B into
    L2 while the kernels before still run. Triton's warp specialisation is left out: on Hopper its
    kernels hung (docs/performance.md).
    """

    style: str
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    split: int = 1
    group: int = 8
    swapped: bool = False
    halves: bool = False
    programs: int = 0
    ahead: bool = False

    def to_json(self) -> dict[str, object]:
        """The choice as JSON: what tells tiles of one layer apart."""
        found: dict[str, object] = {
            "style": self.style,
            "tile": [self.rows, self.columns, self.depth],
            "warps": self.warps,
            "stages": self.stages,
        }
        for name in ("split", "group", "swapped", "halves", "programs", "ahead"):
            value, usual = getattr(self, name), Tile.__dataclass_fields__[name].default
            if value != usual:
                found[name] = value
        return found


@dataclass(frozen=True, slots=True)
class Gemm:
    """What a product is: sizes, types, pitches in elements, and how parameters are aligned.

    ``batches`` are the sizes of up to two batch axes, ``strides`` the elements between matrices
    along each for "a", "b", "y" and operands by name (0 where one broadcasts). ``boxed`` names
    those of "a", "b", "y" for which a tensor map can be made, ``aligned`` the pointers that are
    multiples of 16 bytes, ``fixed`` the parameters that no kernel writes (weights). ``early`` is
    programmatic dependent launch.
    """

    dtype: DType
    m: Dim
    n: Dim
    k: Dim
    a_pitch: Dim
    b_pitch: Dim
    y_pitch: Dim
    tail: Tail
    transposed: bool = True
    batches: tuple[Dim, ...] = ()
    strides: tuple[tuple[str, tuple[Dim, ...]], ...] = ()
    boxed: frozenset[str] = frozenset()
    aligned: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
    early: bool = False

    def sizes(self) -> dict[str, Dim]:
        """Every size that the text names; the rows stay a parameter even when they are known."""
        found: dict[str, Dim] = {"M": self.m, "N": self.n, "K": self.k}
        found |= {"a_pitch": self.a_pitch, "b_pitch": self.b_pitch, "y_pitch": self.y_pitch}
        for place, extra in enumerate(self.tail.extras, 1):
            if extra.kind == "full" and not extra.boxed:
                found[f"{operand_name(place)}_pitch"] = extra.pitch
        if self.batches:
            found["inner"] = self.batches[-1]
        for name, strides in self.strides:
            found[f"{name}_outer"], found[f"{name}_inner"] = (0, *strides)[-2:]
        return found


def tile_count(gemm: Gemm, tile: Tile) -> Dim:
    """Tiles of one matrix."""
    return ceildiv(gemm.m, tile.rows) * ceildiv(gemm.n, tile.columns)


def gemm_kernel(gemm: Gemm, tile: Tile) -> DeviceKernel:
    """The kernel of a product for one way to cut it.

    Its parameters: "a", "b", "y" (pointers or tensor maps of the tile's shape), the operands,
    "partial" and "counters" of a split product, "b_ahead" (a pointer to B) of a tile that is
    brought ahead, then the sizes that are no constants. Its grid is
    tiles times batches (or ``programs``), then ``split``.
    """
    writer = _Writer(gemm, tile)
    text = writer.text()
    sizes = gemm.sizes()
    constants: dict[str, Constant] = {
        name: size for name, size in sizes.items() if isinstance(size, int) and name != "M"
    }
    signature = writer.signature()
    for name in sizes:
        if name not in constants:
            signature.append((name, "i32" if name in ("M", "N", "K", "inner") else "i64"))
    constants |= {"BM": tile.rows, "BN": tile.columns, "BK": tile.depth, "GROUP": tile.group}
    constants |= {"SPLIT": tile.split, "PROGRAMS": tile.programs}
    if tile.ahead:
        constants |= _lines_ahead(gemm, tile)
    names = ", ".join([*(n for n, _ in signature), *(f"{n}: tl.constexpr" for n in constants)])
    pointers = {name for name, form in signature if form.startswith("*")}
    return DeviceKernel(
        "triton",
        "gemm",
        text.replace("PARAMETERS", names),
        tile.warps * 32,
        signature=tuple(signature),
        constants=tuple(constants.items()),
        aligned=tuple(sorted(pointers & (gemm.aligned | {"partial", "counters"}))),
        stages=tile.stages,
        waits=gemm.early,
    )


_HEAD = """import triton
import triton.language as tl
"""

_PLACE = '''
@triton.jit
def place(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Row and column of a tile; GROUP tile rows are walked together, so that B stays in L2."""
    width = GROUP * tiles_n
    first = tile // width * GROUP
    high = tl.minimum(tiles_m - first, GROUP)
    return first + tile % width % high, tile % width // high
'''


class _Writer:
    """Writes the text of one kernel."""

    def __init__(self, gemm: Gemm, tile: Tile) -> None:
        self.gemm, self.tile = gemm, tile
        self.boxes = gemm.boxed if tile.style != "pointers" else frozenset()
        if tile.style != "pointers" and not {"a", "b"} <= self.boxes:
            raise ValueError(f"style {tile.style} needs tensor maps of both factors")
        if tile.style != "pointers" and (gemm.batches or tile.swapped):
            raise ValueError(f"style {tile.style} takes no batches and no swapped tiles")
        if tile.split > 1 and (gemm.batches or tile.style == "persistent"):
            raise ValueError("a split product has one matrix and is not persistent")
        if tile.halves and "y" not in self.boxes:
            raise ValueError("a tile is stored in halves only through a tensor map")
        self.ragged_n = not self._divides(gemm.n, tile.columns)
        self.ragged_k = not self._divides(gemm.k, tile.depth)
        if tile.ahead and not ("b" in gemm.fixed and gemm.transposed and gemm.early):
            raise ValueError("only a constant B [N, K] is brought ahead of an early launch")
        if tile.ahead and (
            gemm.batches or tile.style == "persistent" or not isinstance(gemm.k, int)
        ):
            raise ValueError("a B of known depth is brought ahead, by blocks of one tile each")
        small = {
            operand_name(place)
            for place, extra in enumerate(gemm.tail.extras, 1)
            if extra.kind in ("column", "scalar")
        }
        single = tile.style != "persistent" and tile.split == 1
        #: Operands that are loaded before the sums, so that nobody waits for them afterwards.
        self.loaded = frozenset(small if single else ())
        self.wide = [name for name, _ in gemm.strides]

    @staticmethod
    def _divides(size: Dim, part: int) -> bool:
        return isinstance(size, int) and size % part == 0

    def signature(self) -> list[tuple[str, str]]:
        """Pointers and tensor maps, in order."""
        gemm, tile = self.gemm, self.tile
        name = ELEMENT_NAMES[gemm.dtype]
        columns = tile.columns // 2 if tile.halves else tile.columns
        second = (tile.columns, tile.depth) if gemm.transposed else (tile.depth, tile.columns)
        shapes = {"a": (tile.rows, tile.depth), "b": second, "y": (tile.rows, columns)}
        types = {"a": name, "b": name, "y": gemm.tail.element}
        found = []
        for key, (high, wide) in shapes.items():
            boxed = key in self.boxes
            form = f"tensordesc<{types[key]}[{high}, {wide}]>" if boxed else f"*{types[key]}"
            found.append((key, form))
        found += gemm.tail.signature((tile.rows, columns))
        if tile.split > 1:
            found += [("partial", "*fp32"), ("counters", "*i32")]
        if tile.ahead:
            found.append(("b_ahead", f"*{name}"))
        return found

    def text(self) -> str:
        """The module."""
        body = ["tiles_m = tl.cdiv(M, BM)", "tiles_n = tl.cdiv(N, BN)"]
        if self.tile.style == "persistent":
            body += [
                *self._wait(),
                "tiles = tiles_m * tiles_n",
                "for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):",
                *_indented([*_PLACED, *self._sums(), *self._finish()]),
            ]
        else:
            body += ["tile = tl.program_id(0)", *self._batch(), *_PLACED, *self._one_tile()]
        lines = ["def gemm(PARAMETERS):", *_indented(body)]
        return _HEAD + HELPERS + _PLACE + "\n\n@triton.jit\n" + "\n".join(lines) + "\n"

    def _wait(self) -> list[str]:
        """Let the kernels after begin, once those before are done."""
        if not self.gemm.early:
            return []
        return ["tl.extra.cuda.gdc_wait()", "tl.extra.cuda.gdc_launch_dependents()"]

    def _batch(self) -> list[str]:
        """Which matrix this block works on, and the pointers moved to it."""
        if not self.gemm.batches:
            return []
        lines = ["matrix = (tile // (tiles_m * tiles_n)).to(tl.int64)"]
        lines += ["tile = tile % (tiles_m * tiles_n)"]
        for name in self.wide:
            lines.append(
                f"{name} += matrix // inner * {name}_outer + matrix % inner * {name}_inner"
            )
        return lines

    def _one_tile(self) -> list[str]:
        """The tile of a block: what no kernel writes is read before it waits for those before."""
        lines: list[str] = []
        if self.loaded:
            lines = ["columns = column0 + tl.arange(0, BN)"]
            mask = "columns < N" if self.ragged_n else ""
            lines += self.gemm.tail.early_lines(self.loaded & self.gemm.fixed, column_mask=mask)
        if self.tile.split > 1:
            lines.append("part = tl.program_id(1)")
        lines += [*(_AHEAD if self.tile.ahead else []), *self._wait()]
        if self.loaded:
            lines += self.gemm.tail.early_lines(self.loaded - self.gemm.fixed, column_mask=mask)
        lines += self._sums()
        if self.tile.split == 1:
            return lines + self._finish()
        return lines + _COLLECT + _indented([*self._finish(), "tl.store(counters + tile, 0)"])

    def _sums(self) -> list[str]:
        return self._pointer_sums() if self.tile.style == "pointers" else self._boxed_sums()

    def _range(self) -> list[str]:
        """The range of K tiles of this block."""
        if self.tile.split == 1:
            return ["first_k = 0", "last_k = tl.cdiv(K, BK)"]
        return [
            "per_part = tl.cdiv(tl.cdiv(K, BK), SPLIT)",
            "first_k = part * per_part",
            "last_k = tl.minimum(first_k + per_part, tl.cdiv(K, BK))",
        ]

    def _boxed_sums(self) -> list[str]:
        second = (
            "b.load([column0, k * BK]).T" if self.gemm.transposed else "b.load([k * BK, column0])"
        )
        return [
            *self._range(),
            "sums = tl.zeros((BM, BN), dtype=tl.float32)",
            "for k in tl.range(first_k, last_k):",
            f"    sums = tl.dot(a.load([row0, k * BK]), {second}, sums{self._precision()})",
        ]

    def _precision(self) -> str:
        return ', input_precision="tf32x3"' if self.gemm.dtype is DType.FLOAT32 else ""

    def _pointer_sums(self) -> list[str]:
        gemm, swapped = self.gemm, self.tile.swapped
        ragged = self.ragged_n
        # Rows that do not exist are read as the last one: their sums are never stored.
        lines = [
            *self._range(),
            "depth = tl.arange(0, BK)",
            "a_rows = tl.minimum(row0 + tl.arange(0, BM), M - 1).to(tl.int64)",
            "b_columns = column0 + tl.arange(0, BN)",
            "a_at = a + a_rows[:, None] * a_pitch + (first_k * BK + depth)[None, :]",
        ]
        masks = {"a": [], "b": []}  # type: dict[str, list[str]]
        if self.ragged_k:
            masks["a"].append("(depth < K - k * BK)[None, :]")
        if gemm.transposed:
            if ragged:
                lines.append("b_columns = tl.minimum(b_columns, N - 1)")
            lines += [
                "b_at = b + b_columns.to(tl.int64)[:, None] * b_pitch"
                " + (first_k * BK + depth)[None, :]"
            ]
            if self.ragged_k:
                masks["b"].append("(depth < K - k * BK)[None, :]")
        else:
            lines += [
                "b_at = b + (first_k * BK + depth).to(tl.int64)[:, None] * b_pitch"
                " + b_columns[None, :]"
            ]
            if self.ragged_k:
                masks["b"].append("(depth < K - k * BK)[:, None]")
            if ragged:
                masks["b"].append("(b_columns < N)[None, :]")
        first, second = (
            f"tl.load({name}_at{_mask(conditions)})" for name, conditions in masks.items()
        )
        by_column = f"{second}.T" if gemm.transposed else second
        shape = "(BN, BM)" if swapped else "(BM, BN)"
        if swapped:
            whole = second if gemm.transposed else f"{second}.T"
            product = f"tl.dot({whole}, {first}.T, sums{self._precision()})"
        else:
            product = f"tl.dot({first}, {by_column}, sums{self._precision()})"
        lines += [
            f"sums = tl.zeros({shape}, dtype=tl.float32)",
            "for k in tl.range(first_k, last_k):",
            f"    sums = {product}",
            "    a_at += BK",
            "    b_at += BK" if gemm.transposed else "    b_at += BK * b_pitch",
        ]
        return [*lines, "sums = tl.trans(sums)"] if swapped else lines

    def _finish(self) -> list[str]:
        """The epilogue of a whole tile of sums, and its store."""
        if self.tile.halves:
            lines = [
                "left, right = tl.split(sums.reshape(BM, 2, BN // 2).permute(0, 2, 1))",
            ]
            lines += self._part("left", "column0", "BN // 2", "l")
            return lines + self._part("right", "(column0 + BN // 2)", "BN // 2", "r")
        return self._part("sums", "column0", "BN", "t")

    def _part(self, sums: str, column: str, width: str, prefix: str) -> list[str]:
        boxed = "y" in self.boxes
        lines = [
            "rows = row0 + tl.arange(0, BM)",
            f"columns = {column} + tl.arange(0, {width})",
        ]
        column_mask = "columns < N" if self.ragged_n else ""

        def addresses(name: str) -> str:
            """One 64-bit address of a tile and 32-bit offsets: with more, registers spill."""
            first = f"({name} + row0.to(tl.int64) * {name}_pitch + {column})"
            inside = f"tl.arange(0, BM)[:, None] * {name}_pitch + tl.arange(0, {width})[None, :]"
            return f"{first} + ({inside})"

        made, value = self.gemm.tail.lines(
            sums,
            lambda name: f"{name}.load([row0, {column}])",
            row_mask="rows < M",
            column_mask=column_mask,
            prefix=prefix,
            loaded=self.loaded,
            at=addresses,
        )
        element = f"(BM, {width})"
        lines += [*made, f"result = tl.broadcast_to({value}, {element})"]
        if boxed:
            return [*lines, f"y.store([row0, {column}], result)"]
        masks = ["(rows < M)[:, None]", *(["(columns < N)[None, :]"] if self.ragged_n else [])]
        return [
            *lines,
            f"tl.store({addresses('y')}, result, mask={' & '.join(masks)})",
        ]


_PLACED = [
    "tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP)",
    "row0 = tile_m * BM",
    "column0 = tile_n * BN",
]
_PREFETCH = '"prefetch.global.L2 [$1]; // $0", "=r,l"'
#: Every 128 bytes of the part of B that this block reads; what lies beyond is read as the last.
_AHEAD = [
    "near = tl.minimum(column0 + tl.arange(0, BN), N - 1).to(tl.int64)[:, None] * b_pitch",
    "spots = (part * AHEAD if SPLIT > 1 else 0) + tl.arange(0, AHEAD_SIZE) * AHEAD_STEP",
    "near = (b_ahead + near + tl.minimum(spots, K - 1)[None, :]).to(tl.int64)",
    f"tl.inline_asm_elementwise({_PREFETCH}, [near], dtype=tl.int32, is_pure=False, pack=1)",
]


def _lines_ahead(gemm: Gemm, tile: Tile) -> dict[str, Constant]:
    """How much of each row of B a block brings ahead: elements of a part, lines, their length."""
    assert isinstance(gemm.k, int)
    part = -(-gemm.k // (tile.depth * tile.split)) * tile.depth
    step = 128 // gemm.dtype.nbytes
    lines = max(1, -(-min(part, gemm.k) // step))
    return {"AHEAD": part, "AHEAD_SIZE": 1 << (lines - 1).bit_length(), "AHEAD_STEP": step}


_COLLECT = [
    "tiles = tiles_m * tiles_n",
    "inside = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]",
    "tl.store(partial + (part * tiles + tile).to(tl.int64) * (BM * BN) + inside, sums)",
    "tl.debug_barrier()  # every thread's sums are written before one of them counts",
    'arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel")',
    "if arrived == SPLIT - 1:",
    "    sums = tl.zeros((BM, BN), dtype=tl.float32)",
    "    for other in tl.static_range(SPLIT):",
    "        at = partial + (other * tiles + tile).to(tl.int64) * (BM * BN) + inside",
    '        sums += tl.load(at, cache_modifier=".cg")',
]


def _mask(conditions: list[str]) -> str:
    return f", mask={' & '.join(conditions)}, other=0.0" if conditions else ""


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]
