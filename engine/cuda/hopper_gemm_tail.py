"""What Hopper's matrix product does to its sums, as CUDA C: operands, epilogue, store.

Results of 16 bits take functions of float32 in forms of few instructions, for the multiplying warps
have little time for them: an absolute error of 1e-6 is far below what the last rounding loses.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from engine.cuda.c_expression import (
    print_number,
    print_statements,
    read_text,
    storage_type,
    value_type,
    write_text,
)
from engine.cuda.contraction import joined
from engine.ir.types import DType
from engine.ops.expression import Expression, order

__all__ = ["FACTORS", "HopperTail"]

#: Element types of the factors.
FACTORS = (DType.FLOAT16, DType.BFLOAT16)
_PACK = {DType.FLOAT16: "float16", DType.BFLOAT16: "bfloat16"}
#: Words of column operands that a thread keeps during the main loop.
_EARLY_WORDS = 8

# The error function's error is under 5e-7 everywhere, that of the others a few units in the last
# place (of 1 for tanh).
_FUNCTIONS = r"""
#ifdef __CUDACC__
EF_FUNCTION float ef_power_of_two(float x) {
  float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
EF_FUNCTION float ef_near_reciprocal(float x) {
  float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
#else
EF_FUNCTION float ef_power_of_two(float x) { return exp2f(x); }
EF_FUNCTION float ef_near_reciprocal(float x) { return 1.0f / x; }
#endif
EF_FUNCTION float ef_fast_erf(float x) {
  const float a = ef_minimum(fabsf(x), 4.0f);
  float q = a * -1.00220714e-04f + 4.61571498e-04f;
  q = q * a + 2.30223947e-03f;
  q = q * a - 2.94525159e-02f;
  q = q * a + 1.48963664e-01f;
  q = q * a + 9.18328645e-01f;
  q = q * a + 1.62791365e+00f;
  return copysignf(1.0f - ef_power_of_two(-(q * a)), x); }
EF_FUNCTION float ef_fast_exp(float x) { return ef_power_of_two(x * 1.44269504f); }
/* 1 / (1 + 2**x) */
EF_FUNCTION float ef_logistic(float x) {
  return ef_near_reciprocal(1.0f + ef_power_of_two(x)); }
EF_FUNCTION float ef_fast_sigmoid(float x) { return ef_logistic(x * -1.44269504f); }
EF_FUNCTION float ef_fast_tanh(float x) {
  const float t = x * x;
  float p = t * -5.39682540e-02f + 1.33333333e-01f;
  p = p * t - 3.33333333e-01f;
  p = p * t;
  return fabsf(x) < 0.25f ? x + x * p : 1.0f - 2.0f * ef_logistic(x * 2.88539008f); }
"""
_FAST = {"erff": "erf", "expf": "exp", "tanhf": "tanh", "ef_sigmoid": "sigmoid"}
#: log2 of erfc(x / sqrt 2) / 2 for x from 0 to 5.6 is -1 plus this polynomial without a constant
#: term: a weighted least-squares fit. The product of x and the function has an absolute error under
#: 4e-7 and a relative one under 1.4e-4.
_TAIL = (
    -1.1511027812957764,
    -0.4590604901313782,
    -0.05308942496776581,
    0.0079233068972826,
    -0.0007369212689809501,
    3.102024129475467e-05,
)
_TAIL_END = 5.6


@dataclass(frozen=True, slots=True)
class HopperTail:
    """What is done to the sums, and how its operands and its result are passed.

    ``kinds`` are those of `engine.ops.fused`. ``store`` is "boxes" (a tensor map takes results of
    16 bits), "rows" (16 bits at any address) or "elements" (any type). ``staged`` numbers, from 1,
    the "full" operand of 16 bits that comes through a tensor map as well; 0 is none.
    """

    epilogue: Expression
    kinds: tuple[str, ...]
    dtypes: tuple[DType, ...]
    store: str
    staged: int = 0

    def maps(self) -> list[tuple[str, DType]]:
        """Names and element types of the tensor maps after those of the factors."""
        found = [("y_map", self.epilogue.dtype)] if self.store == "boxes" else []
        if self.staged:
            found.append((f"x{self.staged}_map", self.dtypes[self.staged - 1]))
        return found

    def pointers(self) -> list[str]:
        """The C parameters that are pointers."""
        found = [
            f"const {storage_type(dtype)} *x{place}"
            for place, dtype in enumerate(self.dtypes, 1)
            if place != self.staged
        ]
        return found + ([] if self.store == "boxes" else [f"{storage_type(self._result)} *y"])

    def strides(self) -> list[str]:
        """The names of the strides."""
        full = [
            f"x{place}_row"
            for place, kind in enumerate(self.kinds, 1)
            if kind == "full" and place != self.staged
        ]
        return [*([] if self.store == "boxes" else ["y_row"]), *full]

    @property
    def _result(self) -> DType:
        return self.epilogue.dtype

    def function(self) -> str:
        """The C function that makes a result out of a sum and its operands' values.

        The last rounding to 16 bits is left to the store, which packs two values at once. Raises
        ValueError where CUDA C lacks a type or a function.
        """
        body, narrow = self.epilogue, self._result in _PACK
        if narrow and body.function == "cast" and body.operands[0].dtype is DType.FLOAT32:
            body = body.operands[0]
        names = [f"v{place}" for place in range(1, len(self.dtypes) + 1)]
        fast = narrow and all(node.dtype is not DType.FLOAT64 for node in order(body))
        functions, lines, value = _printed(body, ["sum", *names], fast)
        parameters = ["float sum"]
        parameters += [f"{value_type(dtype)} {name}" for name, dtype in zip(names, self.dtypes)]
        head = f"EF_FUNCTION {value_type(body.dtype)} ef_tail({', '.join(parameters)}) {{"
        return "\n".join([functions, head, joined([*lines, f"return {value};"], 2), "}", ""])

    def scalars(self) -> list[str]:
        """Loads that hold for the whole run."""
        return [
            f"const {value_type(dtype)} x{place}_value = {read_text(dtype, f'x{place}[0]')};"
            for place, (kind, dtype) in enumerate(zip(self.kinds, self.dtypes), 1)
            if kind == "scalar"
        ]

    def rows(self) -> list[str]:
        """Loads that hold for a block of 64 rows."""
        found = []
        for place, (kind, dtype) in enumerate(zip(self.kinds, self.dtypes), 1):
            if kind == "row":
                name = value_type(dtype)
                found.append(f"{name} x{place}_rows[2];")
                element = f"x{place}[ef_least(row + inner_row + h * 8, M - 1)]"
                found.append(
                    f"for (int h = 0; h < 2; ++h) x{place}_rows[h] = {read_text(dtype, element)};"
                )
        return found

    def columns(self, parts: int, keep: bool) -> tuple[list[str], list[str], list[str]]:
        """Names of a tile's column operands, loads before the main loop, and loads after it.

        A warp loads each part of a tile's columns at once, two neighbours per lane. With ``keep``
        what is loaded before the main loop stays for further tiles of the same columns.
        """
        names: list[str] = []
        texts: tuple[list[str], list[str]] = ([], [])
        words = 0
        for place, (kind, dtype) in enumerate(zip(self.kinds, self.dtypes), 1):
            if kind != "column":
                continue
            narrow = dtype in _PACK
            words += parts if narrow else 2 * parts
            found = texts[words > _EARLY_WORDS]
            at = "at.column + j * PART + lane % (PART / 2) * 2"
            name = f"uint32_t x{place}_own[BN / PART]"
            load = f"x{place}_own[j] = ef_pair(x{place}, {at}, N);"
            if not narrow:
                name = f"{value_type(dtype)} x{place}_own[BN / PART][2]"
                element = read_text(dtype, f"x{place}[ef_least({at} + e, N - 1)]")
                load = f"for (int e = 0; e < 2; ++e) x{place}_own[j][e] = {element};"
            names.append(f"{name};")
            found += ["#pragma unroll", "for (int j = 0; j < BN / PART; ++j)"]
            found.append(f"    {load}")
        early, late = texts
        if early and keep:
            names.append("int own_column = -1;")
            early = ["if (at.column != own_column) {", "own_column = at.column;", *early, "}"]
        return names, early, late

    def shared_columns(self) -> list[str]:
        """Values of a part's columns out of the lanes that loaded them."""
        found = []
        for place, (kind, dtype) in enumerate(zip(self.kinds, self.dtypes), 1):
            if kind != "column":
                continue
            one = f"__shfl_sync(0xffffffffu, x{place}_own[j]@, c * 4 + lane % 4)"
            head = ["#pragma unroll", "for (int c = 0; c < PART / 8; ++c)"]
            if dtype in _PACK:
                found += [f"uint32_t x{place}_columns[PART / 8];", *head]
                found.append(f"    x{place}_columns[c] = {one.replace('@', '')};")
            else:
                found += [f"{value_type(dtype)} x{place}_columns[PART / 8][2];", *head]
                line = f"x{place}_columns[c][e] = {one.replace('@', '[e]')};"
                found.append(f"    for (int e = 0; e < 2; ++e) {line}")
        return found

    def results(self) -> list[str]:
        """The results of two neighbouring columns, packed into a word or stored."""
        lines, values = [], ["", ""]
        arguments: list[list[str]] = [["sum[0]"], ["sum[1]"]]
        for place, (kind, dtype) in enumerate(zip(self.kinds, self.dtypes), 1):
            text, loads = self._operand(place, kind, dtype)
            lines += loads
            for e in range(2):
                arguments[e].append(text.replace("@E@", str(e)))
        values = [f"ef_tail({', '.join(items)})" for items in arguments]
        if self.store != "elements":
            return [*lines, f"words[p][q] = ef_pack_{_PACK[self._result]}({', '.join(values)});"]
        for e, value in enumerate(values):
            stored = write_text(self._result, f"({value})")
            lines.append(f"if (at_row < M && at_column + {e} < N)")
            lines.append(f"    y[(long long)at_row * y_row + at_column + {e}] = {stored};")
        return lines

    def _operand(self, place: int, kind: str, dtype: DType) -> tuple[str, list[str]]:
        """The text of an operand's value for column @E@ of two, and what comes before it."""
        name = f"x{place}"
        if kind == "scalar":
            return f"{name}_value", []
        if kind == "row":
            return f"{name}_rows[q % 2]", []
        if kind == "column" and dtype not in _PACK:
            return f"{name}_columns[p * 2 + q / 2][@E@]", []
        if kind == "column" or place == self.staged:
            word = f"{name}_columns[p * 2 + q / 2]" if kind == "column" else "staged[p][q]"
            unpack = f"float {name}_pair[2]; ef_unpack_{_PACK[dtype]}({word}, {name}_pair[0], "
            return f"{name}_pair[@E@]", [f"{unpack}{name}_pair[1]);"]
        line = f"(long long)ef_least(at_row, M - 1) * {name}_row"
        return read_text(dtype, f"{name}[{line} + ef_least(at_column + @E@, N - 1)]"), []

    def finish(self) -> list[str]:
        """What stores a buffer of 16 rows and PART columns."""
        if self.store == "elements":
            return []
        if self.store == "rows":
            return [
                "__syncwarp();",
                "uint16_t *const corner = y + row * y_row + column;",
                "if (row + 16 <= M && column + 64 <= N)",
                "    ef_store_rows(corner, y_row, buffer, lane);",
                "else ef_store_edge(corner, y_row, buffer, M - row, N - column, lane);",
            ]
        lines = ["ef_publish();", "__syncwarp();", "if (lane == 0) {"]
        lines.append("    ef_store_part(&y_map, at, row_in_tile + i * 64, j * PART, buffer);")
        if self.staged:
            # The buffer before this one has been read when all stores but the last have.
            lines.append(
                "    if (stored) { ef_await_reads<1>(); ask((slot ? slot : BUFFERS) - 1); }"
            )
            lines.append("    stored = true;")
        return [*lines, "}"]


def _printed(body: Expression, loads: list[str], fast: bool) -> tuple[str, list[str], str]:
    """Functions, statements and the text of the value of an epilogue's body."""

    def leaf(node: Expression) -> str:
        if node.function != "load" or not isinstance(node.value, int):
            raise ValueError(f"{node.function} has a value only inside a region")
        return loads[node.value]

    known: dict[Expression, str] = {}
    lines: list[str] = []
    functions: list[str] = []
    if fast:
        for node in order(body):
            known_form = _unit(node)
            if known_form is None:
                continue
            kind, scale, rest, inner = known_form
            found, names = print_statements((*rest, *inner), leaf, known=known)
            factor = " * ".join(names[: len(rest)])
            argument = " * ".join(names[len(rest) :])
            name = f"g{len(functions)}"
            lines += found
            if kind == "erf":
                functions.append(_gelu_text(f"ef_gelu_{name}", scale))
                lines.append(f"const float {name} = ef_gelu_{name}({factor});")
            else:
                functions.append("")
                number = print_number(scale * -2.0 * math.log2(math.e), DType.FLOAT32)
                value = f"ef_logistic({argument} * {number})"
                lines.append(f"const float {name} = {factor} * {value};")
            known[node] = name
    found, (value,) = print_statements([body], leaf, known=known)
    lines += found
    if fast:
        pattern = re.compile(r"\b(" + "|".join(_FAST) + r")\(")
        lines = [pattern.sub(lambda m: f"ef_fast_{_FAST[m[1]]}(", line) for line in lines]
        uses = any("ef_fast_" in line or "ef_logistic" in line for line in lines) or functions
        functions.insert(0, _FUNCTIONS if uses else "")
    return "".join(functions), lines, value


_Unit = tuple[str, float, list[Expression], list[Expression]]


def _unit(node: Expression) -> _Unit | None:
    """Whether this is a product with (1 + erf(s y)) / 2 or (1 + tanh(s y)) / 2.

    Returns "erf" or "tanh", s, the other factors and the factors of y. Of erf only
    y (1 + erf(s y)) / 2 is found.
    """
    if node.function != "multiply" or node.dtype is not DType.FLOAT32:
        return None
    number, factors = _factors(node)
    for place, item in enumerate(factors):
        inner = _above_one(item)
        rest = factors[:place] + factors[place + 1 :]
        if inner is None or number != 0.5 or not rest:
            continue
        scale, arguments = _factors(inner.operands[0])
        if not arguments:
            continue
        if inner.function == "tanh":
            return "tanh", scale, rest, arguments
        same = sorted(map(id, rest)) == sorted(map(id, arguments))
        if same and 0.25 < scale < 4.0:
            return "erf", scale, rest, arguments
    return None


def _above_one(node: Expression) -> Expression | None:
    """The erf or tanh of its sum with one."""
    if node.function != "add" or node.dtype is not DType.FLOAT32:
        return None
    for one, other in (node.operands, node.operands[::-1]):
        if one.function == "constant" and one.value == 1 and other.function in ("erf", "tanh"):
            return other
    return None


def _factors(node: Expression) -> tuple[float, list[Expression]]:
    """A product's constant and its other factors."""
    if node.function == "constant":
        assert node.value is not None
        return float(node.value), []
    if node.dtype is DType.FLOAT32 and node.function == "multiply":
        number, found = 1.0, []
        for item in node.operands:
            part, factors = _factors(item)
            number *= part
            found += factors
        return number, found
    if node.dtype is DType.FLOAT32 and node.function == "divide":
        left, right = node.operands
        if right.function == "constant" and right.value:
            number, found = _factors(left)
            return number / float(right.value), found
    return 1.0, [node]


def _gelu_text(name: str, scale: float) -> str:
    """A function of x: x (1 + erf(scale x)) / 2 as max(x, 0) - |x| erfc(scale |x|) / 2."""
    unit = scale * math.sqrt(2.0)

    def number(value: float) -> str:
        return print_number(value, DType.FLOAT32)

    last, *others = reversed([item * unit**power for power, item in enumerate(_TAIL, 1)])
    lines = [f"const float a = ef_minimum(fabsf(x), {number(_TAIL_END / unit)});"]
    lines.append(f"float q = {number(last)};")
    lines += [f"q = q * a + {number(item)};" for item in (*others, -1.0)]
    lines.append("return fmaxf(x, 0.0f) - a * ef_power_of_two(q);")
    return "\n".join([f"EF_FUNCTION float {name}(float x) {{", joined(lines, 2), "}", ""])
