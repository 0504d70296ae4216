"""C text of region kernels: loops over rows, or over columns for reductions of a strided axis.

Rows: every work item is one row (or a chunk of a row when nothing is reduced). The body runs in
passes: pass k computes what the reductions of level k need, keeps values that later passes use in
scratch buffers, and the last pass stores. Columns: neighbouring rows are reduced together, lane by
lane, when the reduced axis is strided and the axis before it is contiguous.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from engine.ir.types import DType
from engine.kernels.c_expression import (
    PRELUDE,
    print_number,
    print_statements,
    read_text,
    storage_type,
    value_type,
    write_text,
)
from engine.ops.expression import Expression, order
from engine.ops.functions import REDUCTIONS

if TYPE_CHECKING:
    from engine.kernels.region import RegionKernel

__all__ = ["CHUNK", "LANES", "print_region"]

#: Elements of a row that one work item covers when nothing is reduced.
CHUNK = 4096
#: Columns that one work item of the column form reduces together.
LANES = 64
#: Elements between two foldings of a reduction.
FOLD = 1024

_REDUCERS = r"""
#define EF_REDUCE(T, name, lanes, start, combine)                                              \
static T name(const T *x, int64_t n) {                                                         \
  T acc[lanes];                                                                                \
  int64_t j = 0;                                                                               \
  for (int l = 0; l < lanes; ++l) acc[l] = start;                                              \
  for (; j + lanes <= n; j += lanes)                                                           \
    for (int l = 0; l < lanes; ++l) { T a = acc[l], b = x[j + l]; acc[l] = combine; }          \
  for (int w = lanes / 2; w; w /= 2)                                                           \
    for (int l = 0; l < w; ++l) { T a = acc[l], b = acc[l + w]; acc[l] = combine; }            \
  T a = acc[0];                                                                                \
  for (; j < n; ++j) { T b = x[j]; a = combine; }                                              \
  return a; }
/* The greatest or least, ignoring NaN where it is folded and looking for it once beside. */
#define EF_EXTREME(T, name, lanes, start, sign)                                                \
EF_REDUCE(T, name##_number, lanes, start, (b sign a ? b : a))                                  \
static T name(const T *x, int64_t n) {                                                         \
  int bad = 0;                                                                                 \
  for (int64_t j = 0; j < n; ++j) bad |= x[j] != x[j];                                         \
  return bad ? (T)NAN : name##_number(x, n); }
static inline int64_t ef_position(int64_t index, int64_t bound) {
  index = index < 0 ? index + bound : index;
  index = index < 0 ? 0 : index;
  return index < bound ? index : bound - 1;
}
"""


def _combine(node: Expression, left: str, right: str) -> str:
    """The C text that takes one more value into a reduction."""
    function = {"row_sum": "add", "row_prod": "multiply", "row_max": "max", "row_min": "min"}
    names = [Expression("load", _wide(node.dtype), (), place) for place in (0, 1)]
    joined = Expression(function[node.function], _wide(node.dtype), tuple(names))
    lines, _ = print_statements([joined], lambda leaf: (left, right)[int(leaf.value or 0)])
    text = lines[-1].partition(" = ")[2].rstrip(";")
    first, second = (line.split(" = ")[0].split()[-1] for line in lines[:2])
    return text.replace(first, left).replace(second, right)


def _wide(dtype: DType) -> DType:
    return DType.FLOAT32 if dtype in (DType.FLOAT16, DType.BFLOAT16) else dtype


def _start(node: Expression) -> str:
    """The neutral element of a reduction."""
    dtype = _wide(node.dtype)
    if node.function in ("row_sum", "row_prod"):
        return print_number(int(node.function == "row_prod"), dtype)
    if dtype.is_float:
        return "-INFINITY" if node.function == "row_max" else "INFINITY"
    limits = {"row_max": "MIN", "row_min": "MAX"}[node.function]
    kind = storage_type(dtype).removesuffix("_t").upper()
    return "0" if kind.startswith("U") and limits == "MIN" else f"{kind}_{limits}"


class _Printer:
    """Gathers the lines of one kernel."""

    def __init__(self, kernel: RegionKernel) -> None:
        self.kernel = kernel
        self.last = kernel.rank - 1
        self.roots = [store.value for store in kernel.stores]
        self.nodes = order(*self.roots)
        self.reductions = [node for node in self.nodes if node.function in REDUCTIONS]
        self.lines: list[str] = []
        self.levels: dict[Expression, int] = {}
        self.varies: dict[Expression, bool] = {}
        for node in self.nodes:
            below = max((self.levels[item] for item in node.operands), default=0)
            self.levels[node] = below + (node.function in REDUCTIONS)
            self.varies[node] = self._varying(node)
        self.depth = max(self.levels.values())
        #: The last pass in which a value along the row uses a node.
        self.latest: dict[Expression, int] = {}
        for node in filter(self.varies.__getitem__, self.nodes):
            for item in node.operands:
                self.latest[item] = max(self.latest.get(item, -1), self.levels[node])

    def _varying(self, node: Expression) -> bool:
        if node.function == "load":
            return self.kernel.load_varies(int(node.value or 0))
        if node.function == "index":
            return node.value == self.last
        return node.function not in REDUCTIONS and any(self.varies[i] for i in node.operands)

    def put(self, text: str) -> None:
        self.lines.append(text)

    # ---- what both forms share -------------------------------------------------------------

    def head(self, name: str) -> None:
        self.put(f"void {name}(void *const *pointer, const int64_t *size, int64_t begin,")
        self.put("    int64_t end, char *scratch) {")
        rank, place = self.kernel.rank, 0
        for axis in range(rank):
            self.put(f"const int64_t n{axis} = size[{axis}];")
        place = rank
        for index, load in enumerate(self.kernel.loads):
            kind = storage_type(load.dtype)
            self.put(f"const {kind} *const p{index} = (const {kind} *)pointer[{load.operand}]")
            self.put(f"    + size[{place}];")
            for axis in range(rank):
                text = f"size[{place + 1 + axis}]"
                if axis == self.last:
                    text = {"unit": "1", "zero": "0"}.get(load.inner, text)
                self.put(f"const int64_t s{index}_{axis} = {text};")
            place += 1 + rank
            if load.gather >= 0:
                self.put(f"const int64_t g{index} = size[{place}], h{index} = size[{place + 1}];")
                self.put(f"if (h{index} < 1) return;")
                place += 2
            for axis in load.bounds:
                self.put(f"const int64_t low{index}_{axis} = size[{place}];")
                self.put(f"const int64_t high{index}_{axis} = size[{place + 1}];")
                place += 2
        for index, store in enumerate(self.kernel.stores):
            kind, operand = storage_type(store.value.dtype), self.kernel.inputs + store.output
            self.put(f"{kind} *const o{index} = ({kind} *)pointer[{operand}] + size[{place}];")
            for axis in range(rank):
                text = f"size[{place + 1 + axis}]"
                if axis == self.last:
                    text = {"unit": "1", "zero": "0"}.get(store.inner, text)
                self.put(f"const int64_t z{index}_{axis} = {text};")
            place += 1 + rank

    def indices(self, flat: str, axes: int) -> None:
        """The running indices of the first axes from a flat number."""
        self.put(f"int64_t rest = {flat};")
        for axis in range(axes - 1, 0, -1):
            self.put(f"const int64_t i{axis} = rest % n{axis}; rest /= n{axis};")
        if axes:
            self.put("const int64_t i0 = rest;")

    def row_pointers(self, axes: int) -> None:
        """Pointers at the first axes' indices, and whether bounded loads are inside there."""
        for index, load in enumerate(self.kernel.loads):
            terms, conditions = [], []
            for axis in range(axes):
                bounded = axis in load.bounds
                low = f" - low{index}_{axis}" if bounded else ""
                terms.append(f"(i{axis}{low}) * s{index}_{axis}")
                if bounded:
                    conditions += [
                        f"i{axis} >= low{index}_{axis}",
                        f"i{axis} < high{index}_{axis}",
                    ]
            text = " + ".join(terms) or "0"
            if conditions:
                self.put(f"const int inside{index} = {' && '.join(conditions)};")
                text = f"(inside{index} ? {text} : 0)"
            self.put(f"const {storage_type(load.dtype)} *const q{index} = p{index} + {text};")
        for index in range(len(self.kernel.stores)):
            text = " + ".join(f"i{axis} * z{index}_{axis}" for axis in range(axes)) or "0"
            kind = storage_type(self.kernel.stores[index].value.dtype)
            self.put(f"{kind} *const w{index} = o{index} + {text};")

    def load_text(self, index: int, indices: dict[int, str]) -> str:
        """The value of a load, given texts of the inner indices not in its row pointer."""
        load = self.kernel.loads[index]
        terms, conditions = [], []
        if any(axis not in indices for axis in load.bounds):
            conditions.append(f"inside{index}")
        for axis, name in indices.items():
            if axis in load.bounds:
                conditions += [f"{name} >= low{index}_{axis}", f"{name} < high{index}_{axis}"]
                name = f"({name} - low{index}_{axis})"
            if axis == self.last and load.inner == "zero":
                continue
            unit = axis == self.last and load.inner == "unit"
            terms.append(name if unit else f"{name} * s{index}_{axis}")
        if load.gather >= 0:
            found = self.load_text(load.gather, indices)
            terms.append(f"ef_position({found}, h{index}) * g{index}")
        text = read_text(load.dtype, f"q{index}[{' + '.join(terms) or '0'}]")
        if not conditions:
            return text
        fill = print_number(load.fill, load.dtype)
        return f"({' && '.join(conditions)} ? {text} : {fill})"

    # ---- rows ------------------------------------------------------------------------------

    def rows(self) -> None:
        inner = f"n{self.last}"
        if self.depth == 0:
            self.put(f"const int64_t chunks = ({inner} + {CHUNK - 1}) / {CHUNK};")
        self.put("for (int64_t item = begin; item < end; ++item) {")
        if self.depth == 0:
            self.put(f"const int64_t from = item % chunks * {CHUNK};")
            self.put(f"const int64_t to = from + {CHUNK} < {inner} ? from + {CHUNK} : {inner};")
        self.indices("item / chunks" if self.depth == 0 else "item", self.last)
        self.row_pointers(self.last)
        known: dict[Expression, str] = {}
        buffers = self.buffers()
        for level in range(self.depth + 1):
            self.invariants(level, known)
            if level < self.depth:
                self.reduce(level, known, buffers)
            else:
                self.store(known, buffers)
        self.put("}")

    def buffers(self) -> dict[Expression, str]:
        """Scratch for values along a row that a later pass uses again: all of the row's length."""
        needed: dict[Expression, None] = {}
        for node in self.nodes:
            for item in node.operands:
                late = self.levels[node] > self.levels[item] + (node.function in REDUCTIONS)
                if self.buffered(item) and (late or self.used_late(item)) and item not in needed:
                    needed[item] = None
        for root in self.roots:
            if self.buffered(root) and self.levels[root] < self.depth and root not in needed:
                needed[root] = None
        result, offset = {}, "0"
        for number, node in enumerate(needed):
            kind = value_type(node.dtype)
            self.put(f"{kind} *const b{number} = ({kind} *)(scratch + {offset});")
            offset += f" + n{self.last} * 8"
            result[node] = f"b{number}"
        return result

    def buffered(self, node: Expression) -> bool:
        leaf = node.function in ("load", "constant", "index", "cast")
        return self.varies[node] and not leaf and self.depth > 0

    def used_late(self, node: Expression) -> bool:
        """Whether a user of the node runs in a later pass than the node's own."""
        return self.latest.get(node, -1) > self.levels[node]

    def invariants(self, level: int, known: dict[Expression, str]) -> None:
        """Values that are the same along the row, as soon as their reductions are known."""
        ready = [
            node
            for node in self.nodes
            if not self.varies[node]
            and self.levels[node] <= level
            and node not in known
            and node.function not in REDUCTIONS
        ]
        lines, _ = print_statements(ready, self.outer_leaf, prefix="u", known=known)
        self.lines += lines

    def outer_leaf(self, node: Expression) -> str:
        index = int(node.value or 0)
        return f"i{index}" if node.function == "index" else self.load_text(index, {self.last: "0"})

    def inner_leaf(self, node: Expression) -> str:
        if node.function == "index":
            return "j"
        return self.load_text(int(node.value or 0), {self.last: "j"})

    def names(
        self, level: int, known: dict[Expression, str], buffers: dict[Expression, str]
    ) -> dict[Expression, str]:
        """What is known inside a pass: invariants, and buffers that earlier passes filled."""
        ready = {node: f"{b}[j]" for node, b in buffers.items() if self.levels[node] < level}
        return {**known, **ready}

    def reduce(
        self, level: int, known: dict[Expression, str], buffers: dict[Expression, str]
    ) -> None:
        """One pass: fill this level's buffers and fold the reductions over this level's values."""
        folds = [node for node in self.reductions if self.levels[node] == level + 1]
        fills = [node for node in buffers if self.levels[node] == level]
        direct = {node: self.direct(node.operands[0], buffers) for node in folds}
        for place, node in enumerate(folds):
            self.put(f"{value_type(node.dtype)} a{level}_{place} = {_start(node)};")
            if direct[node] is None:
                kind = value_type(node.operands[0].dtype)
                self.put(f"{kind} k{level}_{place}[{FOLD}];")
        inner = f"n{self.last}"
        self.put(f"for (int64_t from = 0; from < {inner}; from += {FOLD}) {{")
        self.put(f"const int64_t to = from + {FOLD} < {inner} ? from + {FOLD} : {inner};")
        wanted = fills + [node.operands[0] for node in folds if direct[node] is None]
        if wanted:
            self.put("EF_INDEPENDENT for (int64_t j = from; j < to; ++j) {")
            names = self.names(level, known, buffers)
            lines, texts = print_statements(
                wanted, self.inner_leaf, prefix=f"v{level}_", known=names
            )
            self.lines += lines
            for node, text in zip(fills, texts, strict=False):
                self.put(f"{buffers[node]}[j] = {text};")
            for place, node in enumerate(folds):
                if direct[node] is None:
                    self.put(f"k{level}_{place}[j - from] = {names[node.operands[0]]};")
            self.put("}")
        for place, node in enumerate(folds):
            source = direct[node] or f"k{level}_{place} - from"
            call = f"{self.reducer(node)}({source} + from, to - from)"
            self.put(f"a{level}_{place} = {_combine(node, f'a{level}_{place}', call)};")
        self.put("}")
        for place, node in enumerate(folds):
            known[node] = self.rounded(node, f"a{level}_{place}")

    def rounded(self, node: Expression, name: str) -> str:
        return name if node.dtype is _wide(node.dtype) else f"ef_round_{node.dtype.value}({name})"

    def direct(self, node: Expression, buffers: dict[Expression, str]) -> str | None:
        """A pointer to the values of a reduced node, when they lie in memory already."""
        if node in buffers:
            return buffers[node]
        if node.function == "load" and node.dtype is _wide(node.dtype):
            load = self.kernel.loads[int(node.value or 0)]
            if load.inner == "unit" and load.gather < 0 and not load.bounds:
                return f"q{node.value}"
        return None

    def reducer(self, node: Expression) -> str:
        return f"ef_{node.function}_{_wide(node.dtype).value}"

    def store(self, known: dict[Expression, str], buffers: dict[Expression, str]) -> None:
        """The last pass."""
        stores = list(enumerate(self.kernel.stores))
        along = [(i, s) for i, s in stores if s.inner != "zero"]
        if along:
            bounds = ("from", "to") if self.depth == 0 else ("0", f"n{self.last}")
            self.put(f"EF_INDEPENDENT for (int64_t j = {bounds[0]}; j < {bounds[1]}; ++j) {{")
            names = self.names(self.depth, known, buffers)
            lines, texts = print_statements(
                [s.value for _, s in along], self.inner_leaf, prefix="y", known=names
            )
            self.lines += lines
            for (index, item), text in zip(along, texts, strict=True):
                step = "j" if item.inner == "unit" else f"j * z{index}_{self.last}"
                self.put(f"w{index}[{step}] = {write_text(item.value.dtype, text)};")
            self.put("}")
        for index, item in stores:
            if item.inner == "zero":
                self.put(f"w{index}[0] = {write_text(item.value.dtype, known[item.value])};")

    # ---- columns ---------------------------------------------------------------------------

    def columns(self) -> None:
        lane = self.last - 1
        self.put(f"const int64_t blocks = (n{lane} + {LANES - 1}) / {LANES};")
        self.put("for (int64_t item = begin; item < end; ++item) {")
        self.put(f"const int64_t from = item % blocks * {LANES};")
        self.put(f"const int64_t to = from + {LANES} < n{lane} ? from + {LANES} : n{lane};")
        self.indices("item / blocks", lane)
        self.row_pointers(lane)
        known: dict[Expression, str] = {}
        for place, node in enumerate(self.reductions):
            self.put(f"{value_type(node.dtype)} a{place}[{LANES}];")
            self.put(f"for (int l = 0; l < {LANES}; ++l) a{place}[l] = {_start(node)};")
            known[node] = self.rounded(node, f"a{place}[c - from]")
        self.put(f"for (int64_t j = 0; j < n{self.last}; ++j)")
        self.put("EF_INDEPENDENT for (int64_t c = from; c < to; ++c) {")
        wanted = [node.operands[0] for node in self.reductions]
        lines, texts = print_statements(wanted, self.lane_leaf, prefix="v")
        self.lines += lines
        for place, (node, text) in enumerate(zip(self.reductions, texts, strict=True)):
            self.put(f"a{place}[c - from] = {_combine(node, f'a{place}[c - from]', text)};")
        self.put("}")
        self.put("for (int64_t c = from; c < to; ++c) {")
        lines, texts = print_statements(self.roots, self.lane_leaf, prefix="y", known=known)
        self.lines += lines
        for index, text in enumerate(texts):
            target = f"w{index}[c * z{index}_{lane}]"
            self.put(f"{target} = {write_text(self.kernel.stores[index].value.dtype, text)};")
        self.put("}}")

    def lane_leaf(self, node: Expression) -> str:
        if node.function == "index":
            return {self.last: "j", self.last - 1: "c"}.get(int(node.value or 0), f"i{node.value}")
        return self.load_text(int(node.value or 0), {self.last - 1: "c", self.last: "j"})

    def reducers(self) -> list[str]:
        """Definitions of the reducing functions that are used."""
        found = {}
        for node in self.reductions:
            name, kind = self.reducer(node), value_type(node.dtype)
            start = f"({_start(node)})"
            if node.dtype.is_float and node.function in ("row_max", "row_min"):
                sign = ">" if node.function == "row_max" else "<"
                found[name] = f"EF_EXTREME({kind}, {name}, {LANES}, {start}, {sign})"
            else:
                combine = _combine(node, "a", "b")
                found[name] = f"EF_REDUCE({kind}, {name}, {LANES}, {start}, ({combine}))"
        return list(found.values())


def print_region(kernel: RegionKernel, name: str) -> str:
    """The C file of a region kernel."""
    printer = _Printer(kernel)
    printer.head(name)
    if kernel.layout == "columns":
        printer.columns()
    else:
        printer.rows()
    printer.put("}")
    independent = (
        "#if defined(__clang__)\n"
        '#define EF_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")\n'
        '#else\n#define EF_INDEPENDENT _Pragma("GCC ivdep")\n#endif\n'
    )
    reducers = "\n".join(printer.reducers())
    body = "\n".join(printer.lines)
    return f"{PRELUDE}{_REDUCERS}{independent}{reducers}\n{body}\n"


@lru_cache(maxsize=1024)
def buffer_count(kernel: RegionKernel) -> int:
    """How many scratch buffers of a row's length the kernel keeps."""
    return 0 if kernel.layout == "columns" else len(_Printer(kernel).buffers())
