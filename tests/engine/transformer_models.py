"""Small transformers in float16 as PyTorch's exporter writes them: BERT, GPT-2, ViT, two layers.

Every node of the exporter that matters to a pass is here, with its masks, scaled halves of a
product, flattened rows and sequence-first attention; only the sizes are small.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from engine.ir.types import Array

__all__ = ["TRANSFORMERS", "bert", "gpt2", "vit"]

TOKENS, WIDTH, HEADS, HIDDEN, WORDS = 6, 16, 2, 32, 40
DEPTH = WIDTH // HEADS
IMAGE, PATCH = 8, 4
PATCHES = (IMAGE // PATCH) ** 2
SPLIT_SCALE = float(DEPTH) ** -0.25


class Writer:
    """Lines of a graph in ONNX's text, and its initializers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.arrays: dict[str, Array] = {}
        self.random = np.random.default_rng(5)
        self.count = 0

    def add(self, text: str) -> str:
        """One node from ``text``, an operator with its inputs; the name of its output."""
        self.count += 1
        self.lines.append(f"v{self.count} = {text}")
        return f"v{self.count}"

    def hold(self, array: Array) -> str:
        """An initializer."""
        name = f"c{len(self.arrays)}"
        self.arrays[name] = array
        return name

    def sizes(self, *sizes: int) -> str:
        return self.hold(np.array(sizes, np.int64))

    def number(self, value: float) -> str:
        return self.hold(np.array(value, np.float16))

    def weight(self, *shape: int, scale: float = 0.3) -> str:
        return self.hold((self.random.standard_normal(shape) * scale).astype(np.float16))

    def norm(self, x: str) -> str:
        gain = self.hold((1 + self.random.standard_normal(WIDTH) / 8).astype(np.float16))
        shift = self.weight(WIDTH)
        return self.add(f"LayerNormalization <axis = -1, epsilon = 1e-5> ({x}, {gain}, {shift})")

    def linear(self, x: str, rows: int, columns: int) -> str:
        product = self.add(f"MatMul ({x}, {self.weight(rows, columns)})")
        return self.add(f"Add ({product}, {self.weight(columns)})")

    def flat_linear(self, x: str, rows: int, columns: int) -> str:
        """A product of flattened rows, as GPT-2's Conv1D is exported."""
        flat = self.add(f"Reshape <allowzero = 1> ({x}, {self.sizes(-1, rows)})")
        given = f"{flat}, {self.weight(rows, columns)}, {self.weight(columns)}"
        product = self.add(f"Gemm ({given})")
        return self.add(f"Reshape <allowzero = 1> ({product}, {self.sizes(-1, TOKENS, columns)})")

    def heads(self, x: str) -> str:
        shape = self.sizes(-1, TOKENS, HEADS, DEPTH)
        parted = self.add(f"Reshape <allowzero = 1> ({x}, {shape})")
        return self.add(f"Transpose <perm = [0, 2, 1, 3]> ({parted})")

    def attention(self, query: str, key: str, value: str, mask: str = "", tokens: int = 0) -> str:
        """Both factors scaled, the key turned through three axes, rows without keys zero."""
        tokens = tokens or TOKENS
        flat = self.add(f"Reshape ({key}, {self.sizes(-1, tokens, DEPTH)})")
        turned = self.add(f"Transpose <perm = [0, 2, 1]> ({flat})")
        whole = self.add(f"Reshape ({turned}, {self.sizes(-1, HEADS, DEPTH, tokens)})")
        left = self.add(f"Mul ({query}, {self.number(SPLIT_SCALE)})")
        right = self.add(f"Mul ({whole}, {self.number(SPLIT_SCALE)})")
        scores = self.add(f"MatMul ({left}, {right})")
        if mask:
            scores = self.add(f"Add ({scores}, {mask})")
        weights = self.add(f"Softmax <axis = -1> ({scores})")
        if mask:
            missing = self.add(f"IsNaN ({weights})")
            weights = self.add(f"Where ({missing}, {self.number(0)}, {weights})")
        return self.add(f"MatMul ({weights}, {value})")

    def model(self, inputs: str, output: str) -> onnx.ModelProto:
        text = "\n".join([*self.lines, f"y = Identity ({output})"])
        head = '<ir_version: 10, opset_import: ["" : 20]>'
        proto = onnx.parser.parse_model(f"{head}\nsmall ({inputs}) => (float16[] y) {{ {text} }}")
        for name, array in self.arrays.items():
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
        return proto


def _key_mask(w: Writer, batch: str) -> str:
    """[B, 1, 1, T]: 0 where a token counts, else the least number; looked up by indices."""
    kept = w.add("Cast <to = 9> (mask)")
    first = w.add(f"Range ({w.hold(np.array(0))}, {batch}, {w.hold(np.array(1))})")
    first = w.add(f"Unsqueeze ({first}, {w.sizes(1, 2, 3)})")
    places = w.hold(np.arange(TOKENS).reshape(1, 1, 1, TOKENS))
    shape = w.add(f"Shape ({w.add(f'Max ({first}, {places})')})")
    pairs = [w.add(f"Expand ({item}, {shape})") for item in (first, places)]
    pairs = [w.add(f"Unsqueeze ({item}, {w.sizes(-1)})") for item in pairs]
    at = w.add(f"Concat <axis = -1> ({', '.join(pairs)})")
    found = w.add(f"GatherND ({kept}, {at})")
    everywhere = w.hold(np.ones((1, 1, TOKENS, 1), np.bool_))
    both = w.add(f"And ({everywhere}, {found})")
    return w.add(f"Where ({both}, {w.number(0)}, {w.number(-65504)})")


def bert(batch: str = "B", layers: int = 2) -> onnx.ModelProto:
    """Tokens [B, 6] and their mask to states [B, 6, 16]; normalisation behind each residual."""
    w = Writer()
    count = w.add(f"Squeeze ({w.add('Shape <start = 0, end = 1> (mask)')})")
    words = w.add(f"Gather ({w.weight(WORDS, WIDTH, scale=1)}, ids)")
    kinds = w.add(f"Gather ({w.weight(2, WIDTH)}, {w.hold(np.zeros((1, TOKENS), np.int64))})")
    x = w.add(f"Add ({words}, {kinds})")
    places = w.add(f"Gather ({w.weight(64, WIDTH)}, {w.hold(np.arange(TOKENS)[None])})")
    x = w.norm(w.add(f"Add ({x}, {places})"))
    mask = _key_mask(w, count)
    for _ in range(layers):
        parts = [w.heads(w.linear(x, WIDTH, WIDTH)) for _ in range(3)]
        found = w.attention(parts[0], parts[1], parts[2], mask)
        found = w.add(f"Transpose <perm = [0, 2, 1, 3]> ({found})")
        found = w.add(f"Reshape <allowzero = 1> ({found}, {w.sizes(-1, TOKENS, WIDTH)})")
        x = w.norm(w.add(f"Add ({w.linear(found, WIDTH, WIDTH)}, {x})"))
        inner = w.add(f'Gelu <approximate = "none"> ({w.linear(x, WIDTH, HIDDEN)})')
        x = w.norm(w.add(f"Add ({w.linear(inner, HIDDEN, WIDTH)}, {x})"))
    return w.model(f"int64[{batch}, {TOKENS}] ids, int64[{batch}, {TOKENS}] mask", x)


def gpt2(batch: str = "B", layers: int = 2) -> onnx.ModelProto:
    """Tokens [B, 6] to scores [B, 6, 40]; a causal mask, GELU spelled out with tanh."""
    w = Writer()
    words = w.weight(WORDS, WIDTH, scale=1)
    places = w.add(f"Gather ({w.weight(64, WIDTH)}, {w.hold(np.arange(TOKENS)[None])})")
    x = w.add(f"Add ({w.add(f'Gather ({words}, ids)')}, {places})")
    rows = w.hold(np.arange(TOKENS).reshape(1, 1, TOKENS, 1))
    columns = w.hold(np.arange(TOKENS).reshape(1, 1, 1, TOKENS))
    seen = w.add(f"LessOrEqual ({columns}, {rows})")
    mask = w.add(f"Where ({seen}, {w.number(0)}, {w.number(-65504)})")
    for _ in range(layers):
        packed = w.flat_linear(w.norm(x), WIDTH, 3 * WIDTH)
        names = [f"s{w.count}_{part}" for part in range(3)]
        w.lines.append(f"{', '.join(names)} = Split <axis = 2, num_outputs = 3> ({packed})")
        found = w.attention(*(w.heads(name) for name in names), mask)
        found = w.add(f"Transpose <perm = [0, 2, 1, 3]> ({found})")
        found = w.add(f"Reshape ({found}, {w.sizes(-1, TOKENS, WIDTH)})")
        x = w.add(f"Add ({w.flat_linear(found, WIDTH, WIDTH)}, {x})")
        inner = w.flat_linear(w.norm(x), WIDTH, HIDDEN)
        half = w.add(f"Mul ({inner}, {w.number(0.5)})")
        cube = w.add(f"Mul ({w.add(f'Pow ({inner}, {w.number(3)})')}, {w.number(0.044715)})")
        bent = w.add(f"Mul ({w.add(f'Add ({inner}, {cube})')}, {w.number(0.7978845608)})")
        gate = w.add(f"Add ({w.add(f'Tanh ({bent})')}, {w.number(1)})")
        x = w.add(f"Add ({x}, {w.flat_linear(w.add(f'Mul ({half}, {gate})'), HIDDEN, WIDTH)})")
    turned = w.add(f"Transpose <perm = [1, 0]> ({words})")
    return w.model(f"int64[{batch}, {TOKENS}] ids", w.add(f"MatMul ({w.norm(x)}, {turned})"))


def vit(batch: str = "B", layers: int = 2) -> onnx.ModelProto:
    """Images [B, 3, 8, 8] to scores [B, 10]; one token in front, the sequence first inside."""
    w = Writer()
    tokens = PATCHES + 1
    filters = w.weight(WIDTH, 3, PATCH, PATCH, scale=0.15)
    strides = f"<kernel_shape = [{PATCH}, {PATCH}], strides = [{PATCH}, {PATCH}]>"
    pixels = w.add(f"Conv {strides} (x, {filters}, {w.weight(WIDTH)})")
    pixels = w.add(f"Reshape <allowzero = 1> ({pixels}, {w.sizes(-1, WIDTH, PATCHES)})")
    pixels = w.add(f"Transpose <perm = [0, 2, 1]> ({pixels})")
    count = w.add("Shape <start = 0, end = 1> (x)")
    shape = w.add(f"Concat <axis = 0> ({count}, {w.sizes(1)}, {w.sizes(1)})")
    first = w.add(f"Expand ({w.weight(1, 1, WIDTH)}, {shape})")
    joined = w.add(f"Concat <axis = 1> ({first}, {pixels})")
    x = w.add(f"Add ({joined}, {w.weight(1, tokens, WIDTH)})")
    for _ in range(layers):
        found = _sequence_first(w, w.norm(x), tokens)
        x = w.add(f"Add ({found}, {x})")
        inner = w.add(f'Gelu <approximate = "none"> ({w.linear(w.norm(x), WIDTH, HIDDEN)})')
        x = w.add(f"Add ({x}, {w.linear(inner, HIDDEN, WIDTH)})")
    head = w.add(f"Gather <axis = 1> ({w.norm(x)}, {w.hold(np.array(0))})")
    given = f"{head}, {w.weight(10, WIDTH)}, {w.weight(10)}"
    return w.model(
        f"float16[{batch}, 3, {IMAGE}, {IMAGE}] x", w.add(f"Gemm <transB = 1> ({given})")
    )


def _sequence_first(w: Writer, x: str, tokens: int) -> str:
    """torch.nn.MultiheadAttention with the batch first, which it turns around inside."""
    turned = w.add(f"Transpose <perm = [1, 0, 2]> ({x})")
    packed = w.linear(turned, WIDTH, 3 * WIDTH)
    apart = w.add(f"Reshape <allowzero = 1> ({packed}, {w.sizes(tokens, -1, 3, WIDTH)})")
    apart = w.add(f"Unsqueeze ({apart}, {w.sizes(0)})")
    apart = w.add(f"Transpose <perm = [3, 1, 2, 0, 4]> ({apart})")
    apart = w.add(f"Squeeze ({apart}, {w.sizes(-2)})")
    parts = []
    for place in range(3):
        part = w.add(f"Gather ({apart}, {w.hold(np.array(place))})")
        part = w.add(f"Reshape <allowzero = 1> ({part}, {w.sizes(tokens, -1, DEPTH)})")
        part = w.add(f"Transpose <perm = [1, 0, 2]> ({part})")
        parts.append(
            w.add(f"Reshape <allowzero = 1> ({part}, {w.sizes(-1, HEADS, tokens, DEPTH)})")
        )
    found = w.attention(parts[0], parts[1], parts[2], tokens=tokens)
    found = w.add(f"Transpose <perm = [2, 0, 1, 3]> ({found})")
    flat = w.add(f"Reshape <allowzero = 1> ({found}, {w.sizes(-1, WIDTH)})")
    given = f"{flat}, {w.weight(WIDTH, WIDTH)}, {w.weight(WIDTH)}"
    flat = w.add(f"Gemm <transB = 1> ({given})")
    whole = w.add(f"Reshape <allowzero = 1> ({flat}, {w.sizes(tokens, -1, WIDTH)})")
    return w.add(f"Transpose <perm = [1, 0, 2]> ({whole})")


TRANSFORMERS = {"bert": bert, "gpt2": gpt2, "vit": vit}
