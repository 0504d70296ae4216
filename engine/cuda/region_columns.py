"""Regions whose reduced axis is strided: neighbouring threads reduce neighbouring rows.

A block is a rectangle: along x, vectors of the axis before the reduced one; along y, ``lanes``
threads that share a column and meet in shared memory.
"""

from __future__ import annotations

from engine.cuda.c_expression import print_statements, value_type
from engine.cuda.reductions import accumulator, combine, finished, neutral
from engine.cuda.region import RegionChoice
from engine.cuda.region_source import Printer
from engine.cuda.size_text import SizeText, divides
from engine.ir.sizes import Dim, ceildiv, floordiv, product
from engine.ops.expression import Expression
from engine.ops.region import Region

__all__ = ["ColumnPrinter"]


class ColumnPrinter(Printer):
    """The vector axis is the one before the reduced axis."""

    def __init__(
        self, region: Region, choice: RegionChoice, sizes: SizeText, constants: frozenset[int]
    ) -> None:
        super().__init__(region, choice, sizes, constants)
        if len(region.space) < 2 or self.depth != 1:
            raise ValueError("columns need two axes and one level of reductions")
        if any(self.varies[root] for root in self.roots):
            raise ValueError("columns store once per row")
        self.reduced = self.last
        self.last -= 1
        self.across = choice.threads // choice.lanes
        if not divides(choice.width, region.space[self.last]):
            raise ValueError(f"{region.space[self.last]} rows are no vectors of {choice.width}")
        self.vectors = floordiv(region.space[self.last], choice.width)
        self.total = product(region.space[: self.last]) * self.vectors

    def grid(self) -> tuple[Dim, ...]:
        """Blocks that cover all vectors of rows."""
        return (ceildiv(self.total, self.across),)

    def axis(self, axis: int) -> str:
        """The first row of the vector is j, the place along the reduced axis k[u]."""
        names = {self.last: "j[0]", self.reduced: "k[u]"}
        return names.get(axis, f"i{axis}")

    def body(self) -> None:
        """The column's place, one pass over it, the exchange, the stores."""
        count, width, lanes = self.count, self.width, self.choice.lanes
        length, total = self.size(self.region.space[self.reduced]), self.size(self.total)
        self.put(f"const int x = (int)threadIdx.x % {self.across};")
        self.put(f"const int y = (int)threadIdx.x / {self.across};")
        self.put(f"ef_index item = (ef_index)blockIdx.x * {self.across} + x;")
        self.put(f"const bool live = item < {total};", f"item = live ? item : {total} - 1;")
        self.put(f"const ef_index row = item / {self.size(self.vectors)};", "ef_index j[1];")
        self.put(f"j[0] = (item - row * {self.size(self.vectors)}) * {width};")
        self.indices("row", self.last, "const ef_index i{axis}")
        for place, node in enumerate(self.reductions):
            self.put(f"{accumulator(node)} a{place}[{width}];", "#pragma unroll")
            self.put(f"for (int e = 0; e < {width}; ++e) a{place}[e] = {neutral(node)};")
        self.wait()
        wanted = [node.operands[0] for node in self.reductions]
        places = self.needed(wanted)
        self.put(f"for (ef_index base = 0; base < {length}; base += {lanes * count}) {{")
        self.put(f"ef_index k[{count}];", f"bool in[{count}];", "#pragma unroll")
        self.put(f"for (int u = 0; u < {count}; ++u) {{ k[u] = base + u * {lanes} + y;")
        self.put(f"in[u] = k[u] < {length};", "k[u] = in[u] ? k[u] : 0; }")
        self.declare(places, count)
        for place in places:
            self.fetch(place, count)
        self.put("#pragma unroll", f"for (int u = 0; u < {count}; ++u) if (in[u]) {{")
        self.decode(places)
        self.put("#pragma unroll", f"for (int e = 0; e < {width}; ++e) {{")
        lines, texts = print_statements(wanted, self.leaf, prefix="t")
        self.put(*lines)
        for place, (node, text) in enumerate(zip(self.reductions, texts, strict=True)):
            value = combine(node, f"a{place}[e]", f"({accumulator(node)}){text}")
            self.put(f"a{place}[e] = {value};")
        self.put("}", "}", "}")
        self.exchange()
        self.finish()

    def exchange(self) -> None:
        """The first thread of each column gets the reductions of all of them."""
        lanes, across, width = self.choice.lanes, self.across, self.width
        if lanes == 1:
            return
        for place, node in enumerate(self.reductions):
            kind = accumulator(node)
            self.put(f"__shared__ {kind} s{place}[{lanes}][{width}][{across}];")
            self.put("#pragma unroll", f"for (int e = 0; e < {width}; ++e)")
            self.put(f"s{place}[y][e][x] = a{place}[e];")
        self.put("__syncthreads();", "if (y == 0) {")
        for place, node in enumerate(self.reductions):
            value = combine(node, f"a{place}[e]", f"s{place}[lane][e][x]")
            self.put(f"for (int lane = 1; lane < {lanes}; ++lane)", "#pragma unroll")
            self.put(f"for (int e = 0; e < {width}; ++e) a{place}[e] = {value};")
        self.put("}")

    def finish(self) -> None:
        """Values of the stores from the reductions, by the first thread of each column."""
        places = self.needed(self._outside())
        self.put("if (y == 0 && live) {", "const ef_index k[1] = {0};")
        self.declare(places, 1)
        for place in places:
            self.fetch(place, 1)
        self.put("{ const int u = 0;")
        self.decode(places)
        known = {}
        for place, node in enumerate(self.reductions):
            kind, value = value_type(node.dtype), finished(node, f"a{place}[e]")
            self.put(f"{kind} f{place}[{self.width}];", "#pragma unroll")
            self.put(f"for (int e = 0; e < {self.width}; ++e) f{place}[e] = {value};")
            known[node] = f"f{place}[e]"
        for index in self.compute(known):
            self.store(index)
        self.put("}", "}")

    def along(self) -> list[int]:
        """All stores are made for every row."""
        return list(range(len(self.roots)))

    def _outside(self) -> list[Expression]:
        """Loads that the stores use beside the reductions."""
        found, stack = [], list(self.roots)
        while stack:
            node = stack.pop()
            if node.function == "load":
                found.append(node)
            elif node not in self.reductions:
                stack += node.operands
        return found
