"""What the forms of region kernels share: parameters, positions, loads in flight, vectors.

A thread holds ``count`` vectors of ``width`` points, numbered u. Loads are issued for all of them
before anything is computed, constants before the kernel waits for the kernels before it. Points
past the end read the last point again and are not stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.cuda.c_expression import (
    PRELUDE,
    print_number,
    print_statements,
    read_text,
    storage_type,
    value_type,
    write_text,
)
from engine.cuda.region import RegionChoice, is_vector
from engine.cuda.size_text import SizeText
from engine.cuda.vectors import VECTORS, kind_text, word_count
from engine.ir.sizes import Dim
from engine.ir.types import DType
from engine.ops.expression import Expression, order
from engine.ops.functions import REDUCTIONS
from engine.ops.region import Region

__all__ = ["HELPERS", "Printer"]

_NARROW = (DType.FLOAT16, DType.BFLOAT16)

HELPERS = r"""
template <class I> EF_FUNCTION I ef_position(int64_t index, I bound) {
  index = index < 0 ? index + bound : index;
  index = index < 0 ? 0 : index;
  return (I)(index < bound ? index : (int64_t)bound - 1); }
template <class K, int N> EF_FUNCTION typename K::value ef_pick(const uint32_t *w, int e) {
  typename K::value x[N];
  ef_decode<K, N>(w, x);
  return x[e]; }
"""


class Printer:
    """Gathers the lines of one kernel."""

    #: Whether the last vector may be incomplete.
    tail = False

    def __init__(
        self, region: Region, choice: RegionChoice, sizes: SizeText, constants: frozenset[int]
    ) -> None:
        self.region, self.choice, self.size = region, choice, sizes
        self.constants = constants
        self.last = len(region.space) - 1
        self.width, self.count = choice.width, choice.count
        self.roots = [store.value for store in region.stores]
        self.nodes = order(*self.roots)
        self.reductions = [node for node in self.nodes if node.function in REDUCTIONS]
        self.varies: dict[Expression, bool] = {}
        self.levels: dict[Expression, int] = {}
        for node in self.nodes:
            self.varies[node] = self._varying(node)
            below = max((self.levels[item] for item in node.operands), default=0)
            self.levels[node] = below + (node.function in REDUCTIONS)
        self.depth = max(self.levels.values())
        self.lines: list[str] = []

    def _varying(self, node: Expression) -> bool:
        """Whether a value changes along the last axis of the space."""
        axis = len(self.region.space) - 1
        if node.function == "load":
            return self.load_varies(int(node.value or 0), axis)
        if node.function == "index":
            return int(node.value or 0) == axis
        return node.function not in REDUCTIONS and any(self.varies[i] for i in node.operands)

    def put(self, *texts: str) -> None:
        self.lines += texts

    def grid(self) -> tuple[Dim, ...]:
        """Blocks to launch."""
        raise NotImplementedError

    def body(self) -> None:
        """Print what is between the braces of the function."""
        raise NotImplementedError

    def source(self) -> str:
        """The whole file."""
        self.body()
        dtypes = {load.operand: load.dtype for load in self.region.loads}
        parameters = [f"const {storage_type(dtypes[i])} *p{i}" for i in sorted(dtypes)]
        outputs = {store.output: store.value.dtype for store in self.region.stores}
        parameters += [f"{storage_type(outputs[i])} *o{i}" for i in sorted(outputs)]
        parameters += self.size.declarations
        return (
            f"{PRELUDE}{VECTORS}{HELPERS}typedef {self.size.index_type} ef_index;\n"
            f'extern "C" __global__ void __launch_bounds__({self.choice.threads}) ef_region(\n'
            f"    {', '.join(parameters)}) {{\n" + "\n".join(self.lines) + "\n}\n"
        )

    # ---- positions ----------------------------------------------------------------------------

    def axis(self, axis: int) -> str:
        """The text of a running index of vector u."""
        raise NotImplementedError

    def indices(self, flat: str, axes: int, target: str = "i{axis}") -> None:
        """Running indices of the first axes from a flat number."""
        if not axes:
            return
        self.put(f"ef_index rest = {flat};")
        for axis in range(axes - 1, 0, -1):
            size = self.size(self.region.space[axis])
            self.put(f"{target.format(axis=axis)} = rest % {size}; rest /= {size};")
        self.put(f"{target.format(axis=0)} = rest;")

    def position(self, strides: Sequence[Dim], offset: Dim, low: dict[int, str], more: str) -> str:
        """The text of an element's position; ``more`` is added to the last index."""
        terms = [] if offset == 0 else [self.size(offset)]
        for axis, stride in enumerate(strides):
            if stride == 0 or (self.region.space[axis] == 1 and axis not in low):
                continue
            index = self.axis(axis) + (more if axis == self.last else "")
            if axis in low:
                index = f"{index} - {low[axis]}"
            simple = stride == 1 and axis not in low
            text = index if simple and "+" not in index else f"({index})"
            terms.append(text if stride == 1 else f"{text} * {self.size(stride)}")
        return " + ".join(terms) or "0"

    def load_position(self, place: int, more: str, index: str | None) -> str:
        """Where load ``place`` reads; ``index`` is the value of its index load."""
        load = self.region.loads[place]
        low = {b.axis: self.size(b.low) for b in load.bounds if b.low != 0}
        text = self.position(load.strides, load.offset, low, more)
        if load.gather is not None and load.gather.stride != 0:
            bound, stride = self.size(load.gather.bound), self.size(load.gather.stride)
            text += f" + ef_position<ef_index>({index}, {bound}) * {stride}"
        return text

    def inside(self, place: int, more: str) -> str:
        """The condition under which a bounded load reads, or nothing."""
        parts = []
        for bound in self.region.loads[place].bounds:
            index = self.axis(bound.axis) + (more if bound.axis == self.last else "")
            if bound.low != 0:
                parts.append(f"{index} >= {self.size(bound.low)}")
            if bound.high != self.region.space[bound.axis]:
                parts.append(f"{index} < {self.size(bound.high)}")
        return " && ".join(parts)

    # ---- loads --------------------------------------------------------------------------------

    def mode(self, place: int) -> str:
        """How a load is made: "scalar" once per vector, "vector", or "elements" one by one."""
        load = self.region.loads[place]
        if not self.load_varies(place, self.last):
            return "scalar"
        gathered = load.gather is not None and self.load_varies(load.gather.load, self.last)
        if not gathered and is_vector(load, self.width, self.last, tail=self.tail):
            return "vector"
        return "elements"

    def load_varies(self, place: int, axis: int) -> bool:
        """Whether a load changes along an axis."""
        load = self.region.loads[place]
        if load.strides[axis] != 0 or any(bound.axis == axis for bound in load.bounds):
            return True
        return load.gather is not None and self.load_varies(load.gather.load, axis)

    def early(self, place: int) -> bool:
        """Whether a load reads only constants, so that it need not wait."""
        load = self.region.loads[place]
        if load.operand not in self.constants:
            return False
        return load.gather is None or self.early(load.gather.load)

    def needed(self, roots: Sequence[Expression]) -> list[int]:
        """Loads that expressions read, index loads included, in order."""
        found = {int(n.value or 0) for n in order(*roots) if n.function == "load"}
        for place in range(len(self.region.loads) - 1, -1, -1):
            gather = self.region.loads[place].gather
            if place in found and gather is not None:
                found.add(gather.load)
        return sorted(found)

    def declare(self, places: Sequence[int], count: int) -> None:
        """What loads in flight are held in."""
        for place in places:
            load, mode = self.region.loads[place], self.mode(place)
            name = self.held(place)
            if mode == "vector":
                self.put(f"uint32_t {name}[{count}][{word_count(load.dtype, self.width)}];")
            elif mode == "elements":
                self.put(f"{storage_type(load.dtype)} {name}[{count}][{self.width}];")
            else:
                self.put(f"{storage_type(load.dtype)} {name}[{count}];")

    def held(self, place: int) -> str:
        """The array that a load in flight is held in."""
        return f"r{place}"

    def fetch(self, place: int, count: int) -> None:
        """Issue one load for every vector."""
        self.put("#pragma unroll", f"for (int u = 0; u < {count}; ++u) {{")
        self.fetch_vector(place)
        self.put("}")

    def fetch_vector(self, place: int) -> None:
        """Issue one load of vector u."""
        load, mode, width = self.region.loads[place], self.mode(place), self.width
        index = self.index_of(place)
        if mode == "elements":
            self.put("#pragma unroll", f"for (int e = 0; e < {width}; ++e) {{")
            if self.tail and width > 1:
                self.put(f"if (j[u] + e >= {self.size(self.region.space[self.last])}) continue;")
        more = " + e" if mode == "elements" and width > 1 else ""
        target = {"elements": f"{self.held(place)}[u][e]", "scalar": self.scalar(place)}.get(
            mode, ""
        )
        position, condition = self.load_position(place, more, index), self.inside(place, more)
        if condition:
            self.put(f"if ({condition}) {{")
        if mode == "vector":
            self.fetch_words(place, position)
        else:
            self.put(f"{target} = p{load.operand}[{position}];")
        if condition:
            fill = write_text(load.dtype, print_number(load.fill, load.dtype))
            self.put("} else {")
            if mode == "vector":
                self.put(
                    f"{value_type(load.dtype)} fill[{width}];",
                    "#pragma unroll",
                    f"for (int e = 0; e < {width}; ++e)",
                    f"fill[e] = {print_number(load.fill, load.dtype)};",
                    f"ef_encode<{kind_text(load.dtype)}, {width}>(fill, {self.held(place)}[u]);",
                )
            else:
                self.put(f"{target} = {fill};")
            self.put("}")
        if mode == "elements":
            self.put("}")

    def fetch_words(self, place: int, position: str) -> None:
        """Issue one access of a whole vector."""
        load, width, name = self.region.loads[place], self.width, self.held(place)
        call = f"ef_fetch<{load.dtype.nbytes * width}>(p{load.operand} + {position}, {name}[u])"
        if self.tail and width > 1:
            count = f"{self.size(self.region.space[self.last])} - j[u]"
            part = f"ef_fetch_part<{kind_text(load.dtype)}, {width}>"
            call = (
                f"if (whole[u]) {call}; else {part}(p{load.operand} + {position}, "
                f"(int)({count}), {name}[u])"
            )
        self.put(f"{call};")

    def index_of(self, place: int) -> str | None:
        """The text of the index that a gathered load uses, decoded before it where needed."""
        gather = self.region.loads[place].gather
        if gather is None:
            return None
        return {
            "scalar": self.scalar(gather.load),
            "elements": f"{self.held(gather.load)}[u][e]",
            "vector": f"ef_pick<{kind_text(self.region.loads[gather.load].dtype)}, {self.width}>"
            f"({self.held(gather.load)}[u], e)",
        }[self.mode(gather.load)]

    def decode(self, places: Sequence[int]) -> None:
        """The values of vector loads of vector u."""
        for place in places:
            if self.mode(place) == "vector":
                dtype, name = self.region.loads[place].dtype, self.held(place)
                self.put(
                    f"{value_type(dtype)} x{place}[{self.width}];",
                    f"ef_decode<{kind_text(dtype)}, {self.width}>({name}[u], x{place});",
                )

    def leaf(self, node: Expression) -> str:
        """The text of a load or index at element e of vector u."""
        place = int(node.value or 0)
        if node.function == "index":
            axis = self.axis(place)
            return f"(int64_t)({axis} + e)" if place == self.last else f"(int64_t){axis}"
        dtype = self.region.loads[place].dtype
        return {
            "vector": f"x{place}[e]",
            "elements": read_text(dtype, f"{self.held(place)}[u][e]"),
            "scalar": read_text(dtype, self.scalar(place)),
        }[self.mode(place)]

    def scalar(self, place: int) -> str:
        """What holds a load that is made once per vector."""
        return f"{self.held(place)}[u]"

    # ---- results ------------------------------------------------------------------------------

    def along(self) -> list[int]:
        """Stores that are made for every point of a row; the others are made once."""
        stores = self.region.stores
        single = self.region.space[self.last] == 1
        return [i for i, s in enumerate(stores) if single or s.strides[self.last] != 0]

    def stored(self, index: int) -> Expression:
        """What a store encodes: encoding rounds, so that a rounding just before it is left out."""
        root = self.roots[index]
        if root.function == "cast" and root.dtype in _NARROW:
            source = root.operands[0]
            if source.dtype in _NARROW or source.dtype is DType.FLOAT32:
                return source
        return root

    def compute(self, known: dict[Expression, str]) -> list[int]:
        """The values that the stores along the row take at vector u, as arrays y."""
        along = self.along()
        for index in along:
            self.put(f"{value_type(self.roots[index].dtype)} y{index}[{self.width}];")
        wanted = [self.stored(index) for index in along]
        self.put("#pragma unroll", f"for (int e = 0; e < {self.width}; ++e) {{")
        lines, texts = print_statements(wanted, self.leaf, prefix="t", known=dict(known))
        self.put(*lines)
        self.put(*(f"y{index}[e] = {text};" for index, text in zip(along, texts, strict=True)))
        self.put("}")
        return along

    def store(self, index: int) -> None:
        """Write array y of a store at vector u."""
        store, width = self.region.stores[index], self.width
        dtype = store.value.dtype
        kind = kind_text(dtype)
        if not is_vector(store, width, self.last, tail=self.tail):
            more = " + e" if width > 1 else ""
            position = self.position(store.strides, store.offset, {}, more)
            self.put("#pragma unroll", f"for (int e = 0; e < {width}; ++e)")
            if self.tail and width > 1:
                self.put(f"if (j[u] + e < {self.size(self.region.space[self.last])})")
            self.put(f"o{store.output}[{position}] = {kind}::write(y{index}[e]);")
            return
        position = self.position(store.strides, store.offset, {}, "")
        if self.tail and width > 1:
            rest = f"(int)({self.size(self.region.space[self.last])} - j[u])"
            self.put(
                f"if (!whole[u]) ef_put_part<{kind}, {width}>(o{store.output} + {position}, "
                f"{rest}, y{index}); else {{"
            )
        self.put(
            f"uint32_t w{index}[{word_count(dtype, width)}];",
            f"ef_encode<{kind}, {width}>(y{index}, w{index});",
            f"ef_put<{dtype.nbytes * width}>(o{store.output} + {position}, w{index});",
        )
        if self.tail and width > 1:
            self.put("}")

    def target(self, index: int) -> str:
        """The element that a store writes once per row."""
        store = self.region.stores[index]
        return f"o{store.output}[{self.position(store.strides, store.offset, {}, '')}]"

    def written(self, index: int, text: str) -> str:
        """What a store writes for a value."""
        return f"{kind_text(self.region.stores[index].value.dtype)}::write({text})"

    def wait(self) -> None:
        """Let the next kernel begin, and wait for those before this one."""
        self.put("ef_wait();", "ef_launch_dependents();")
