"""Regions point by point, and by rows: in registers, or in several passes over memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from engine.cuda.c_expression import print_statements, storage_type, value_type
from engine.cuda.reductions import (
    accumulator,
    combine,
    finished,
    neutral,
    print_exchange,
    print_fold,
)
from engine.cuda.region import RegionChoice
from engine.cuda.region_source import Printer
from engine.cuda.size_text import SizeText, divides
from engine.ir.sizes import Dim, ceildiv, floordiv, product
from engine.ops.expression import Expression, order
from engine.ops.functions import REDUCTIONS
from engine.ops.region import Region

__all__ = ["FlatPrinter", "RowPrinter"]

WARP = 32
Item = TypeVar("Item")


class FlatPrinter(Printer):
    """A thread computes ``count`` vectors, a block of threads apart."""

    def __init__(
        self, region: Region, choice: RegionChoice, sizes: SizeText, constants: frozenset[int]
    ) -> None:
        length = region.space[-1]
        self.tail = not divides(choice.width, length)
        if self.tail and len(region.space) > 1:
            raise ValueError(f"rows of {length} are not made of vectors of {choice.width}")
        super().__init__(region, choice, sizes, constants)
        if self.depth:
            raise ValueError("a region that reduces has no flat form")
        split = ceildiv if self.tail else floordiv
        self.vectors = split(length, choice.width)
        self.total = product(region.space[:-1]) * self.vectors

    def grid(self) -> tuple[Dim, ...]:
        """Blocks that cover all vectors."""
        return (ceildiv(self.total, self.choice.threads * self.count),)

    def axis(self, axis: int) -> str:
        """Indices are kept per vector; j is the first point of the vector."""
        return "j[u]" if axis == self.last else f"i{axis}[u]"

    def body(self) -> None:
        """Where each vector lies, all loads, then each vector's values and stores."""
        count, width, threads = self.count, self.width, self.choice.threads
        total = self.size(self.total)
        self.put(f"ef_index j[{count}];", f"bool live[{count}];")
        if self.tail:
            self.put(f"bool whole[{count}];")
        self.put(*(f"ef_index i{axis}[{count}];" for axis in range(self.last)))
        places = self.needed(self.roots)
        self.declare(places, count)
        self.put("#pragma unroll", f"for (int u = 0; u < {count}; ++u) {{")
        start = f"(ef_index)blockIdx.x * {threads * count} + u * {threads} + (int)threadIdx.x"
        self.put(f"ef_index item = {start};", f"live[u] = item < {total};")
        self.put(f"item = live[u] ? item : {total} - 1;")
        if self.last:
            vectors = self.size(self.vectors)
            self.put(f"const ef_index row = item / {vectors};")
            self.put(f"j[u] = (item - row * {vectors}) * {width};")
            self.indices("row", self.last, "i{axis}[u]")
        else:
            self.put(f"j[u] = item * {width};")
        if self.tail:
            length = self.size(self.region.space[self.last])
            self.put(f"whole[u] = j[u] + {width} <= {length};")
        self.put("}")
        for place in filter(self.early, places):
            self.fetch(place, count)
        self.wait()
        for place in places:
            if not self.early(place):
                self.fetch(place, count)
        self.put("#pragma unroll", f"for (int u = 0; u < {count}; ++u) if (live[u]) {{")
        self.decode(places)
        along = self.compute({})
        for index in along:
            self.store(index)
        for index in set(range(len(self.roots))) - set(along):
            self.store_once(index)
        self.put("}")

    def store_once(self, index: int) -> None:
        """A value that is the same along the row, by the thread that has its first point."""
        self.put("if (j[u] == 0) {", "const int e = 0;")
        lines, texts = print_statements([self.roots[index]], self.leaf, prefix="s")
        self.put(*lines, f"{self.target(index)} = {self.written(index, texts[0])};", "}")


class RowPrinter(Printer):
    """``lanes`` threads share a row; forms "rows" and "passes".

    With several rows at once everything that belongs to row k carries its number.
    """

    def __init__(
        self, region: Region, choice: RegionChoice, sizes: SizeText, constants: frozenset[int]
    ) -> None:
        super().__init__(region, choice, sizes, constants)
        self.lanes, self.length = choice.lanes, region.space[-1]
        if choice.threads % choice.lanes or (choice.lanes > WARP and choice.lanes < choice.threads):
            raise ValueError("a row is shared by a part of a warp or by a whole block")
        if not divides(choice.width, self.length):
            raise ValueError(f"rows of {self.length} are not made of vectors of {choice.width}")
        if choice.rows > 1 and choice.form != "rows":
            raise ValueError("only rows in registers are taken several at once")
        self.step, self.row = choice.lanes * choice.width, 0
        if choice.form == "rows":
            most = sizes.greatest(self.length)
            if most > 1 << 20:
                raise ValueError(f"rows of {self.length} do not stay in registers")
            self.count = max(1, -(-int(most) // self.step))
        #: Values computed in one pass and used in a later one, as arrays in registers.
        self.buffers: dict[Expression, str] = {}
        #: Per pass, the nodes that change along the row and that it computes itself.
        self.plans: list[list[Expression]] = []
        for level in range(self.depth + 1):
            self.plans.append(self._plan(level))

    def grid(self) -> tuple[Dim, ...]:
        """Blocks that cover all rows."""
        rows = product(self.region.space[:-1])
        return (ceildiv(rows, self.choice.rows * (self.choice.threads // self.lanes)),)

    @property
    def mark(self) -> str:
        """What the names of the row at hand end with, nothing for the only one."""
        return f"k{self.row}" if self.choice.rows > 1 else ""

    @property
    def exact(self) -> bool:
        """Whether every vector of every thread lies in the row."""
        return self.choice.form == "rows" and self.length == self.count * self.step

    def axis(self, axis: int) -> str:
        """Indices of the row are the thread's; j is the first point of vector u."""
        return "j[u]" if axis == self.last else f"i{axis}{self.mark}"

    def scalar(self, place: int) -> str:
        """Loads that do not change along the row are made once."""
        return f"{self.held(place)}[0]"

    def held(self, place: int) -> str:
        """Loads that are the same for every row are held once."""
        return f"r{place}{self.mark if self.moves(place) else ''}"

    def moves(self, place: int) -> bool:
        """Whether a load differs from row to row."""
        return any(self.load_varies(place, axis) for axis in range(self.last))

    # ---- passes -------------------------------------------------------------------------------

    def folds(self, level: int) -> list[Expression]:
        """Reductions that a pass makes."""
        return [node for node in self.reductions if self.levels[node] == level + 1]

    def wanted(self, level: int) -> list[Expression]:
        """What a pass computes along the row."""
        if level < self.depth:
            return [node.operands[0] for node in self.folds(level)]
        return [self.stored(index) for index in self.along()]

    def _plan(self, level: int) -> list[Expression]:
        """What a pass has to compute; what it finds computed is buffered by the earlier pass."""
        fixed = {node for node in self.nodes if not self.varies[node]}
        earlier = {node for plan in self.plans for node in plan if self._kept(node)}
        found = order(*self.wanted(level), known=fixed | earlier)
        used = [*self.wanted(level), *(item for node in found for item in node.operands)]
        for node in used:
            if node in earlier:
                self.buffers.setdefault(node, f"b{len(self.buffers)}")
        return found

    def _kept(self, node: Expression) -> bool:
        """Whether a value is worth registers until a later pass; passes over memory keep none."""
        if self.choice.form != "rows" or node.function in ("load", "constant", "index"):
            return False
        return not (node.function == "cast" and node.operands[0].function == "load")

    def loads_of(self, level: int) -> list[int]:
        """Loads along the row that a pass uses, with the index loads they need."""
        nodes = [node for node in self.plans[level] if node.function == "load"]
        return [p for p in self.needed(nodes) if self.load_varies(p, self.last)]

    # ---- text ---------------------------------------------------------------------------------

    def body(self) -> None:
        """The places of the rows, all loads, then for each row a pass per level of reductions."""
        self.put(f"const int lane = (int)threadIdx.x % {self.lanes};")
        for _ in self.taken(range(self.choice.rows)):
            self.begin()
        self.put(f"ef_index j[{self.count}];")
        if not self.exact:
            self.put(f"bool in[{self.count}];")
        everything = self.needed(self.roots)
        scalars = [p for p in everything if not self.load_varies(p, self.last)]
        along = [p for p in everything if p not in scalars] if self.choice.form == "rows" else []
        for place in self.issued(scalars):
            kind = storage_type(self.region.loads[place].dtype)
            self.put(f"{kind} {self.held(place)}[1];")
        for place in self.issued(along):
            self.declare([place], self.count)
        if self.choice.form == "rows":
            self.places("0")
            for _ in self.taken(range(self.choice.rows)):
                self.declare_buffers()
        loads = [*scalars, *along]
        for place in self.issued(filter(self.early, loads)):
            self.fetch_row(place, scalars)
        self.wait()
        for place in self.issued(place for place in loads if not self.early(place)):
            self.fetch_row(place, scalars)
        known: list[dict[Expression, str]] = [{} for _ in range(self.choice.rows)]
        for level in range(self.depth + 1):
            self.one_pass(level, known)
        for names in self.taken(known):
            self.stores_once(names)

    def begin(self) -> None:
        """Where the row at hand lies; threads past the end take the last row and store nothing."""
        lanes, count, mark = self.lanes, self.choice.rows, self.mark
        each, rows = self.choice.threads // lanes, self.size(product(self.region.space[:-1]))
        block = f"((ef_index)blockIdx.x * {count} + {self.row})" if mark else "(ef_index)blockIdx.x"
        self.put(f"ef_index row{mark} = {block} * {each} + (int)threadIdx.x / {lanes};")
        self.put(f"const bool live{mark} = row{mark} < {rows};")
        self.put(f"row{mark} = live{mark} ? row{mark} : {rows} - 1;")
        if mark:
            self.put(*(f"ef_index i{axis}{mark};" for axis in range(self.last)), "{")
            self.indices(f"row{mark}", self.last, f"i{{axis}}{mark}")
            self.put("}")
        else:
            self.indices("row", self.last, "const ef_index i{axis}")

    def taken(self, items: Iterable[Item]) -> Iterator[Item]:
        """An item for each row taken at once, which is at hand meanwhile."""
        for row, item in enumerate(items):
            self.row = row
            yield item

    def issued(self, places: Iterable[int]) -> Iterator[int]:
        """Loads in the order of issue, their row at hand: what rows share once, then row by row."""
        wanted = list(places)
        for row in self.taken(range(self.choice.rows)):
            yield from (place for place in wanted if row == 0 or self.moves(place))

    def declare_buffers(self) -> None:
        """Arrays for values of a row that later passes use."""
        for node, name in self.buffers.items():
            kind = value_type(node.dtype)
            self.put(f"{kind} {name}{self.mark}[{self.count}][{self.width}];")

    def fetch_row(self, place: int, scalars: Sequence[int]) -> None:
        """Issue a load: once, or for every vector of the row."""
        if place in scalars:
            self.fetch_vector(place)
        else:
            self.fetch(place, self.count)

    def places(self, base: str) -> None:
        """Where the vectors of this thread lie."""
        self.put("#pragma unroll", f"for (int u = 0; u < {self.count}; ++u) {{")
        start = "" if base == "0" else f"{base} + "
        self.put(f"j[u] = {start}(u * {self.lanes} + lane) * {self.width};")
        if not self.exact:
            self.put(f"in[u] = j[u] < {self.size(self.length)};", "j[u] = in[u] ? j[u] : 0;")
        self.put("}")

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
        lines, _ = print_statements(ready, self.leaf, prefix=f"v{self.mark}", known=known)
        self.put(*lines)

    def one_pass(self, level: int, known: Sequence[dict[Expression, str]]) -> None:
        """Fold the reductions of a level in every row, or store; ``known`` is row by row."""
        folds = self.folds(level)
        for names in self.taken(known):
            self.invariants(level, names)
            if level < self.depth or self.along():
                self.along_row(level, names)
        if folds:
            marks = [self.mark for _ in self.taken(known)]
            self.put(*print_exchange(folds, level, self.lanes, self.choice.threads, marks))
        for names in self.taken(known):
            for place, node in enumerate(folds):
                names[node] = f"f{level}_{place}{self.mark}"
                value = finished(node, f"a{level}_{place}{self.mark}[0]")
                self.put(f"const {value_type(node.dtype)} {names[node]} = {value};")

    def along_row(self, level: int, known: dict[Expression, str]) -> None:
        """What each thread does for a level along the row at hand."""
        folds, loads = self.folds(level), self.loads_of(level)
        for place, node in enumerate(folds):
            name = f"a{level}_{place}{self.mark}"
            self.put(f"{accumulator(node)} {name}[{self.width}];", "#pragma unroll")
            self.put(f"for (int e = 0; e < {self.width}; ++e) {name}[e] = {neutral(node)};")
        if self.choice.form == "passes":
            step = self.step * self.count
            self.put(f"for (ef_index base = 0; base < {self.size(self.length)}; base += {step}) {{")
            self.places("base")
            self.declare(loads, self.count)
            for load in loads:
                self.fetch(load, self.count)
        guard = "" if self.exact else "if (in[u]) "
        if level == self.depth:
            live = f"live{self.mark}"
            guard = f"if ({live}) " if self.exact else f"if ({live} && in[u]) "
        self.put("#pragma unroll", f"for (int u = 0; u < {self.count}; ++u) {guard}{{")
        self.decode(loads)
        names = {**known, **self._earlier(level)}
        if level == self.depth:
            for index in self.compute(names):
                self.store(index)
        else:
            self.fold(level, folds, names)
        self.put("}")
        if self.choice.form == "passes":
            self.put("}")
        for place, node in enumerate(folds):
            self.put(*print_fold(node, f"a{level}_{place}{self.mark}", self.width))

    def _earlier(self, level: int) -> dict[Expression, str]:
        """Buffered values that passes before this one computed."""
        done = {node for plan in self.plans[:level] for node in plan}
        return {n: f"{name}{self.mark}[u][e]" for n, name in self.buffers.items() if n in done}

    def fold(self, level: int, folds: Sequence[Expression], names: dict[Expression, str]) -> None:
        """Take vector u into the reductions of a level, and keep what later passes use."""
        self.put("#pragma unroll", f"for (int e = 0; e < {self.width}; ++e) {{")
        wanted = [node.operands[0] for node in folds]
        lines, texts = print_statements(wanted, self.leaf, prefix="t", known=names)
        self.put(*lines)
        for node, name in self.buffers.items():
            if node in self.plans[level]:
                self.put(f"{name}{self.mark}[u][e] = {names[node]};")
        for place, (node, text) in enumerate(zip(folds, texts, strict=True)):
            target = f"a{level}_{place}{self.mark}[e]"
            self.put(f"{target} = {combine(node, target, f'({accumulator(node)}){text}')};")
        self.put("}")

    def stores_once(self, known: dict[Expression, str]) -> None:
        """Values that are the same along the row, by its first thread."""
        once = [i for i in range(len(self.roots)) if i not in self.along()]
        if once:
            self.put(f"if (live{self.mark} && lane == 0) {{")
            for index in once:
                text = self.written(index, known[self.roots[index]])
                self.put(f"{self.target(index)} = {text};")
            self.put("}")
