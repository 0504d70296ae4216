"""What kernels over windows of NHWC images share: vectors of channels, tiles, sizes, endings.

A thread computes a small rectangle of output pixels for one vector of adjacent channels. The
threads of a block are `channel_lanes` x `column_lanes` x `row_lanes`, channels adjacent, so that a
warp reads whole sectors and neighbouring rectangles find what they share in the first-level cache.
Sizes that are known become constants of the text, the others parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from engine.cuda.c_expression import print_expression, read_text, storage_type, write_text
from engine.ir.sizes import Dim, ceildiv, modulo
from engine.ir.types import DType
from engine.ops.expression import Expression, load
from engine.plan.device import Scalar

__all__ = [
    "FLOATS",
    "IDENTITY",
    "Ending",
    "Geometry",
    "Sizes",
    "Tile",
    "divides",
    "fill",
    "narrowed",
    "vector_functions",
    "widest",
]

#: Element types that these kernels read and write.
FLOATS = (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32)
#: The most bytes that one access moves.
ACCESS_NBYTES = 16
_WORDS = {2: "uint16_t", 4: "uint32_t", 8: "uint2", 16: "uint4"}
_PAIRS = {DType.FLOAT16: "float16", DType.BFLOAT16: "bfloat16"}


def fill(text: str, parts: Mapping[str, object]) -> str:
    """A template with each @NAME@ replaced."""
    for name, value in parts.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def divides(number: int, dim: Dim) -> bool:
    """Whether a size is certain to be a multiple."""
    return modulo(dim, number) == 0


def widest(most: int, dims: Sequence[Dim]) -> int:
    """The greatest power of two up to ``most`` that divides all sizes."""
    width = most
    while width > 1 and not all(divides(width, dim) for dim in dims):
        width //= 2
    return width


def widest_vector(dtype: DType) -> int:
    """How many elements one access moves at most."""
    return ACCESS_NBYTES // dtype.nbytes


@dataclass(slots=True)
class Sizes:
    """The integers of a kernel by name: constants where they are known, else parameters."""

    values: dict[str, Dim] = field(default_factory=dict)

    def add(self, **values: Dim) -> None:
        """Name some sizes."""
        self.values.update(values)

    @property
    def constants(self) -> str:
        """Declarations of those that are known."""
        known = [(name, dim) for name, dim in self.values.items() if isinstance(dim, int)]
        return "\n".join(f"  constexpr int {name} = {dim};" for name, dim in known)

    @property
    def parameters(self) -> str:
        """The end of a parameter list, with those that only a launch knows."""
        return "".join(f", int {name}" for name, dim in self._open())

    @property
    def scalars(self) -> tuple[Scalar, ...]:
        """What a launch passes for `parameters`."""
        return tuple(Scalar("i32", dim) for _, dim in self._open())

    def _open(self) -> list[tuple[str, Dim]]:
        return [(name, dim) for name, dim in self.values.items() if not isinstance(dim, int)]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Windows over height and width; ``pads`` are top, left, bottom, right."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def spans(self) -> tuple[int, int]:
        """How many rows and columns a window reaches over."""
        high, wide = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations))
        return high, wide

    @property
    def written_out(self) -> bool:
        """Whether a window is small enough for a thread to hold its row and unroll all of it."""
        return self.kernel[0] * self.kernel[1] <= 49 and self.spans[1] <= 16

    @property
    def text(self) -> str:
        """The numbers as constants of a kernel."""
        named = {
            "kernel_height": self.kernel[0],
            "kernel_width": self.kernel[1],
            "stride_height": self.strides[0],
            "stride_width": self.strides[1],
            "dilation_height": self.dilations[0],
            "dilation_width": self.dilations[1],
            "pad_top": self.pads[0],
            "pad_left": self.pads[1],
            "pad_bottom": self.pads[2],
            "pad_right": self.pads[3],
        }
        return "\n".join(f"  constexpr int {name} = {value};" for name, value in named.items())


@dataclass(frozen=True, slots=True)
class Tile:
    """What a thread computes (``vector`` channels of ``rows`` x ``columns``), and its block."""

    vector: int
    columns: int
    rows: int
    channel_lanes: int
    column_lanes: int
    row_lanes: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.channel_lanes * self.column_lanes * self.row_lanes

    @property
    def block(self) -> tuple[int, int, int]:
        """Output rows, columns and channels of a block."""
        return (
            self.rows * self.row_lanes,
            self.columns * self.column_lanes,
            self.vector * self.channel_lanes,
        )

    def blocks(self, height: Dim, width: Dim, channels: Dim) -> Dim:
        """Blocks for one image."""
        high, wide, deep = self.block
        return ceildiv(height, high) * ceildiv(width, wide) * ceildiv(channels, deep)

    def to_json(self) -> dict[str, int]:
        """The tile as a choice."""
        return asdict(self)

    @property
    def place(self) -> str:
        """Text that finds a thread's image, row, column and channel; `out_*`, `channels` known."""
        return fill(_PLACE, asdict(self))


_PLACE = r"""
  constexpr int V = @vector@, COLUMNS = @columns@, ROWS = @rows@;
  const int lane = (int)threadIdx.x;
  unsigned block = blockIdx.x;
  const unsigned channel_blocks =
      ((unsigned)channels + @channel_lanes@ * V - 1) / (@channel_lanes@ * V);
  const unsigned column_blocks =
      ((unsigned)out_width + @column_lanes@ * COLUMNS - 1) / (@column_lanes@ * COLUMNS);
  const unsigned row_blocks =
      ((unsigned)out_height + @row_lanes@ * ROWS - 1) / (@row_lanes@ * ROWS);
  const int channel = ((int)(block % channel_blocks) * @channel_lanes@
      + lane % @channel_lanes@) * V;
  block /= channel_blocks;
  const int column = ((int)(block % column_blocks) * @column_lanes@
      + lane / @channel_lanes@ % @column_lanes@) * COLUMNS;
  block /= column_blocks;
  const int row = ((int)(block % row_blocks) * @row_lanes@
      + lane / (@channel_lanes@ * @column_lanes@)) * ROWS;
  const int image = (int)(block / row_blocks);
"""


def narrowed(tile: Tile, vector: int) -> Tile:
    """A tile with a narrower vector, for tensors that do not allow its own."""
    return Tile(
        vector, tile.columns, tile.rows, tile.channel_lanes, tile.column_lanes, tile.row_lanes
    )


def vector_functions(dtype: DType, width: int, tag: str) -> str:
    """Text of ``load_TAG``, ``store_TAG`` (floats) for ``width`` elements, at most 16 bytes each.

    Where all of it is one access there are also ``raw_TAG``, its type, ``unpack_TAG`` and
    ``pack_TAG``.
    """
    kind = storage_type(dtype)
    step = min(width, widest_vector(dtype))
    raw = _WORDS[step * dtype.nbytes]
    return fill(
        _VECTOR,
        {
            "UNPACK": _unpack(dtype, step),
            "PACK": _pack(dtype, step),
            "T": kind,
            "RAW": raw,
            "TAG": tag,
            "WIDTH": width,
            "STEP": step,
        },
    )


_VECTOR = r"""
typedef @RAW@ raw_@TAG@;
EF_FUNCTION void unpack_@TAG@(const raw_@TAG@ &w, float *v) { @UNPACK@ }
EF_FUNCTION raw_@TAG@ pack_@TAG@(const float *v) { raw_@TAG@ w; @PACK@ return w; }
EF_FUNCTION void load_@TAG@(const @T@ *p, float *v) {
#pragma unroll
  for (int i = 0; i < @WIDTH@; i += @STEP@) {
    const raw_@TAG@ w = *(const raw_@TAG@ *)(p + i);
    unpack_@TAG@(w, v + i);
  }
}
EF_FUNCTION void store_@TAG@(@T@ *p, const float *v) {
#pragma unroll
  for (int i = 0; i < @WIDTH@; i += @STEP@) store_vector((raw_@TAG@ *)(p + i), pack_@TAG@(v + i));
}
"""


def _words(step: int, nbytes: int) -> list[str]:
    """The 32-bit words of a vector, or its only element."""
    total = step * nbytes
    return ["w"] if total <= 4 else [f"w.{axis}" for axis in "xyzw"[: total // 4]]


def _unpack(dtype: DType, step: int) -> str:
    words = _words(step, dtype.nbytes)
    if dtype is DType.FLOAT32:
        return " ".join(f"v[{i}] = ef_float({word});" for i, word in enumerate(words))
    if step == 1:
        return f"v[0] = {read_text(dtype, 'w')};"
    name = _PAIRS[dtype]
    return " ".join(
        f"ef_unpack_{name}({word}, v[{2 * i}], v[{2 * i + 1}]);" for i, word in enumerate(words)
    )


def _pack(dtype: DType, step: int) -> str:
    words = _words(step, dtype.nbytes)
    if dtype is DType.FLOAT32:
        return " ".join(f"{word} = ef_bits(v[{i}]);" for i, word in enumerate(words))
    if step == 1:
        return f"w = {write_text(dtype, 'v[0]')};"
    name = _PAIRS[dtype]
    return " ".join(
        f"{word} = ef_pack_{name}(v[{2 * i}], v[{2 * i + 1}]);" for i, word in enumerate(words)
    )


#: Stores that stay one access, whatever the compiler thinks of their parts.
STORES = r"""
#ifdef __CUDACC__
EF_FUNCTION void store_vector(uint4 *p, uint4 w) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
               :: "l"(p), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w) : "memory"); }
EF_FUNCTION void store_vector(uint2 *p, uint2 w) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" :: "l"(p), "r"(w.x), "r"(w.y) : "memory"); }
#else
EF_FUNCTION void store_vector(uint4 *p, uint4 w) { *p = w; }
EF_FUNCTION void store_vector(uint2 *p, uint2 w) { *p = w; }
#endif
EF_FUNCTION void store_vector(uint32_t *p, uint32_t w) { *p = w; }
EF_FUNCTION void store_vector(uint16_t *p, uint16_t w) { *p = w; }
"""

IDENTITY = load(0, DType.FLOAT32)


@dataclass(frozen=True, slots=True)
class Ending:
    """What becomes of sums before they are stored: an epilogue, how its operands lie, their types.

    Operand i of the epilogue is the parameter ``e{i}``; "full" ones have a size ``e{i}_pixel``,
    elements between pixels.
    """

    epilogue: Expression
    kinds: tuple[str, ...]
    dtypes: tuple[DType, ...]
    out: DType

    @property
    def parameters(self) -> str:
        """The operands in a parameter list."""
        return "".join(f", const {storage_type(d)} *e{i}" for i, d in self._operands())

    def _operands(self) -> list[tuple[int, DType]]:
        return list(enumerate(self.dtypes, 1))

    def functions(self, width: int) -> str:
        """``finish`` of one sum with its operands, and accesses of vectors."""
        values = ["sum", *(f"e{i}" for i, _ in self._operands())]
        body, value = print_expression(_unrounded(self.epilogue), values)
        arguments = ", ".join(f"float {name}" for name in values)
        lines = " ".join(body)
        found = [f"EF_FUNCTION float finish({arguments}) {{ {lines} return {value}; }}"]
        found += [
            vector_functions(dtype, width, f"e{i}")
            for i, dtype in self._operands()
            if self.kinds[i - 1] in ("column", "full")
        ]
        return "\n".join((*found, vector_functions(self.out, width, "y")))

    def hoisted(self, channel: str, width: int) -> str:
        """Text that reads what does not depend on the pixel."""
        lines = []
        for i, dtype in self._operands():
            kind = self.kinds[i - 1]
            if kind == "column":
                lines.append(f"float c{i}[{width}]; load_e{i}(e{i} + {channel}, c{i});")
            elif kind == "scalar":
                lines.append(f"const float c{i} = {read_text(dtype, f'e{i}[0]')};")
        return "\n".join(lines)

    def store(self, sums: str, pixel: str, channel: str, width: int) -> str:
        """Text that finishes the ``width`` sums of a pixel (a 64-bit index) and stores them."""
        lines, arguments = [], [f"({sums})[v]"]
        for i, dtype in self._operands():
            kind = self.kinds[i - 1]
            if kind == "full":
                at = f"e{i} + {pixel} * e{i}_pixel + {channel}"
                lines.append(f"float c{i}[{width}]; load_e{i}({at}, c{i});")
            elif kind == "row":
                lines.append(f"const float c{i} = {read_text(dtype, f'e{i}[{pixel}]')};")
            arguments.append(f"c{i}[v]" if kind in ("full", "column") else f"c{i}")
        return "\n".join(
            (
                "{",
                *lines,
                f"float made[{width}];",
                '_Pragma("unroll")',
                f"for (int v = 0; v < {width}; ++v) made[v] = finish({', '.join(arguments)});",
                f"store_y(y + {pixel} * y_pixel + {channel}, made);",
                "}",
            )
        )


def _unrounded(epilogue: Expression) -> Expression:
    """The epilogue without a last rounding to 16 bits, which storing does as well."""
    last = epilogue.operands[0] if epilogue.function == "cast" else epilogue
    narrow = epilogue.dtype in (DType.FLOAT16, DType.BFLOAT16)
    return last if narrow and last.dtype is DType.FLOAT32 else epilogue
