"""Times the generated kernels beside onnxruntime on the distinct layers of the benchmark networks.

Each layer runs as a model of one node (and a relu) in onnxruntime with two threads, and as every
candidate kernel. Both sides run in turns with pauses between them, because the idle workers of
either would spin on the other's processor; the least time of all rounds counts.
Run: python -m benchmarks.kernels [--network NAME ...] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from engine.kernels import convolution, gemm, winograd
from engine.kernels.blocked import SPLIT_SIZES, Split
from engine.kernels.epilogue import standard
from engine.kernels.isa import detect
from engine.kernels.kernel import Array, Kernel
from engine.kernels.packing import pack
from engine.kernels.runner import Handle, Runner, Step
from engine.runtime.compilation import Function, load

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
NETWORKS = (
    *("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50"),
    *("shufflenet", "squeezenet", "vgg19", "zfnet512"),
)
EPILOGUE = standard("column", relu=True)
PAUSE_SECONDS = 0.01
Offer = tuple[Kernel, Split]


@dataclass(frozen=True)
class Product:
    """A matrix product with constant B, bias and relu."""

    m: int
    n: int
    k: int

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k


@dataclass(frozen=True)
class Conv:
    """A convolution of one image with bias and relu."""

    height: int
    width: int
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int

    @property
    def out(self) -> tuple[int, int]:
        high = (self.height + self.pads[0] + self.pads[2] - self.kernel[0]) // self.stride[0] + 1
        wide = (self.width + self.pads[1] + self.pads[3] - self.kernel[1]) // self.stride[1] + 1
        return high, wide

    @property
    def flops(self) -> float:
        taps = math.prod(self.kernel) * self.inputs // self.groups
        return 2.0 * math.prod(self.out) * self.outputs * taps


Layer = Product | Conv
TRANSFORMERS = {
    "bert-base-128": {
        Product(128, 768, 768): 48,
        Product(128, 3072, 768): 12,
        Product(128, 768, 3072): 12,
    },
    "gpt2-128": {
        Product(128, 2304, 768): 12,
        Product(128, 768, 768): 12,
        Product(128, 3072, 768): 12,
        Product(128, 768, 3072): 12,
        Product(128, 50257, 768): 1,
    },
    "vit-b16": {
        Product(197, 768, 768): 48,
        Product(197, 3072, 768): 12,
        Product(197, 768, 3072): 12,
    },
}


def _shape(info: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in info.type.tensor_type.shape.dim]


def layers_of(network: str) -> Counter[Layer]:
    """Convolutions (but depthwise ones) and fully connected layers of a network, with counts."""
    if network in TRANSFORMERS:
        return Counter(TRANSFORMERS[network])
    model = onnx.shape_inference.infer_shapes(onnx.load(LIGHT / f"light_{network}.onnx"))
    shapes = {
        info.name: _shape(info)
        for infos in (model.graph.value_info, model.graph.input, model.graph.output)
        for info in infos
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    found: Counter[Layer] = Counter()
    for node in model.graph.node:
        if node.op_type == "Gemm":
            (m, k), n = shapes[node.input[0]], shapes[node.output[0]][1]
            found[Product(m, n, k)] += 1
        elif node.op_type == "Conv":
            values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            _, inputs, height, width = shapes[node.input[0]]
            outputs, _, *kernel = shapes[node.input[1]]
            groups = values.get("group", 1)
            if groups == inputs:
                continue
            layer = Conv(
                *(height, width, inputs, outputs, tuple(kernel)),
                tuple(values.get("strides", (1, 1))),
                tuple(values.get("pads", (0, 0, 0, 0))),
                groups,
            )
            found[layer] += 1
    return found


def candidates_of(layer: Layer) -> list[Offer]:
    """Every kernel and split worth measuring for a layer."""
    if isinstance(layer, Product):
        return list(gemm.candidates(layer.m, layer.n, layer.k, epilogue=EPILOGUE))
    high, wide = layer.out
    depth = math.prod(layer.kernel) * layer.inputs // layer.groups
    found: list[Offer] = list(
        convolution.candidates(high * wide, layer.outputs // layer.groups, depth, epilogue=EPILOGUE)
    )
    if layer.kernel == (3, 3) and layer.stride == (1, 1):
        for side in (4, 2):
            tiles = -(-high // side) * -(-wide // side)
            found += winograd.candidates(
                tiles,
                layer.outputs // layer.groups,
                layer.inputs // layer.groups,
                outputs_per_side=side,
                epilogue=EPILOGUE,
            )
    return found


@dataclass
class Problem:
    """A layer's operands: the input as we read it, weights as ONNX has them, bias, truth."""

    layer: Layer
    x: Array
    weight: Array
    bias: Array
    run_onnx: Callable[[], list[Array]]

    @classmethod
    def make(cls, layer: Layer, threads: int) -> Problem:
        generator = np.random.default_rng(0)
        if isinstance(layer, Product):
            shape, weight_shape = (layer.m, layer.k), (layer.k, layer.n)
            node = helper.make_node("Gemm", ["x", "w", "b"], ["t"])
        else:
            shape = (1, layer.inputs, layer.height, layer.width)
            weight_shape = (layer.outputs, layer.inputs // layer.groups, *layer.kernel)
            node = helper.make_node(
                "Conv",
                ["x", "w", "b"],
                ["t"],
                strides=layer.stride,
                pads=layer.pads,
                group=layer.groups,
                kernel_shape=layer.kernel,
            )
        x = generator.standard_normal(shape, dtype=np.float32)
        weight = generator.standard_normal(weight_shape, dtype=np.float32)
        weight *= np.float32(math.sqrt(2 * math.prod(shape[1:2]) / weight.size))
        columns = layer.n if isinstance(layer, Product) else layer.outputs
        bias = generator.standard_normal(columns, dtype=np.float32)
        graph = helper.make_graph(
            [node, helper.make_node("Relu", ["t"], ["y"])],
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        stored = x if isinstance(layer, Product) else np.ascontiguousarray(np.moveaxis(x, 1, -1))
        return cls(layer, stored, weight, bias, lambda: session.run(None, {"x": x}))

    def sizes(self, kernel: Kernel, split: Split) -> list[int]:
        """Run-time sizes of a dense layer."""
        values = dict.fromkeys(kernel.size_names, 0)
        values.update(zip(SPLIT_SIZES, split.sizes, strict=True))
        layer = self.layer
        if isinstance(layer, Product):
            values.update(outer=1, inner=1, m=layer.m, n=layer.n, k=layer.k)
            values.update(a_row=layer.k, a_column=1, c_row=layer.n)
            return list(values.values())
        high, wide = layer.out
        values.update(images=1, height=layer.height, width=layer.width)
        values.update(out_height=high, out_width=wide)
        values.update(pad_top=layer.pads[0], pad_left=layer.pads[1], y_pixel=layer.outputs)
        row = layer.width * layer.inputs
        values.update(x_image=row * layer.height, x_row=row, x_column=layer.inputs)
        values.update(groups=layer.groups)
        values.update(inputs=layer.inputs // layer.groups, outputs=layer.outputs // layer.groups)
        if isinstance(kernel, winograd.Winograd):
            return list(values.values())
        values.update(x_channel=1, kernel_height=layer.kernel[0], kernel_width=layer.kernel[1])
        values.update(stride_height=layer.stride[0], stride_width=layer.stride[1])
        values.update(dilation_height=1, dilation_width=1)
        return list(values.values())

    def packed(self, kernel: Kernel) -> Array:
        """The weight as the kernel reads it."""
        if isinstance(kernel, gemm.Gemm):
            return pack("columns", self.weight, [kernel.tile.columns])
        assert isinstance(self.layer, Conv)
        if isinstance(kernel, winograd.Winograd):
            numbers = [kernel.tile.columns, kernel.outputs_per_side, self.layer.groups]
            return pack("winograd", self.weight, numbers)
        assert isinstance(kernel, convolution.Convolution)
        return pack("filters", self.weight, [kernel.tile.columns, self.layer.groups])


def prepare(
    problem: Problem, offer: Offer, runner: Runner, truth: Array, packed: Array
) -> tuple[Handle, list[Array]]:
    """A handle that runs the kernel, after its output was found right."""
    isa, (kernel, split) = detect(), offer
    address = load([Function("kernel", kernel.source("kernel", isa))], isa)["kernel"]
    output = np.full(truth.size, np.nan, np.float32)
    operands = [problem.x, packed, problem.bias, output]
    sizes = problem.sizes(kernel, split)
    step = Step(
        address,
        [operand.ctypes.data for operand in operands],
        sizes,
        kernel.items(sizes),
        kernel.scratch_nbytes(sizes),
    )
    handle = runner.prepare([step])
    runner.run(handle)
    error = np.abs(output.reshape(truth.shape) - truth).max() / np.abs(truth).max()
    if not error < 1e-4:
        raise SystemExit(f"{kernel} is wrong by {error} on {problem.layer}")
    return handle, operands


def turns(actions: Sequence[Callable[[], object]], rounds: int, repeat: int) -> list[float]:
    """Least seconds of each action, in turns with pauses."""
    best = [math.inf] * len(actions)
    for _ in range(rounds):
        for position, action in enumerate(actions):
            time.sleep(PAUSE_SECONDS)
            for _ in range(repeat):
                start = time.perf_counter()
                action()
                best[position] = min(best[position], time.perf_counter() - start)
    return best


def label(kernel: Kernel, split: Split) -> str:
    """A kernel and how it is split in a few characters."""
    tile = kernel.tile  # type: ignore[attr-defined]
    flags = "c" if split.by_columns else "r"
    side = getattr(kernel, "outputs_per_side", "")
    kind = f"{kernel.kind[:4]}{side}{flags}"
    return f"{kind} {tile.rows}x{tile.columns}x{tile.depth} {split.row_tiles}x{split.column_tiles}"


def measure(layer: Layer, runner: Runner, rounds: int) -> dict[str, object]:
    """Least times of onnxruntime and of every candidate."""
    problem = Problem.make(layer, runner.threads)
    truth = problem.run_onnx()[0]
    if isinstance(layer, Conv):
        truth = np.ascontiguousarray(np.moveaxis(truth, 1, -1))
    offers = candidates_of(layer)
    weights: dict[object, Array] = {}
    prepared = []
    for kernel, split in offers:
        width, side = kernel.tile.columns, getattr(kernel, "outputs_per_side", 0)  # type: ignore[attr-defined]
        if (width, side) not in weights:
            weights[width, side] = problem.packed(kernel)
        prepared.append(prepare(problem, (kernel, split), runner, truth, weights[width, side]))

    def action(handle: Handle) -> Callable[[], None]:
        return lambda: runner.run(handle)

    actions: list[Callable[[], object]] = [problem.run_onnx]
    actions += [action(handle) for handle, _ in prepared]
    repeat = 3 if layer.flops > 5e8 else 8
    reference, *times = turns(actions, rounds, repeat)
    order = sorted(range(len(times)), key=times.__getitem__)
    return {
        "layer": type(layer).__name__ + " " + json.dumps(asdict(layer)),
        "gflop": layer.flops / 1e9,
        "onnxruntime_ms": reference * 1e3,
        "ours_ms": times[order[0]] * 1e3,
        "first_ms": times[0] * 1e3,
        "ranking": [(label(*offers[i]), times[i] * 1e3) for i in order],
    }


def title(layer: Layer) -> str:
    """A layer in a table's cell."""
    if isinstance(layer, Product):
        return f"{layer.m} x {layer.n} x {layer.k}"
    size = "x".join(map(str, layer.kernel))
    text = f"{layer.height}x{layer.width}x{layer.inputs}->{layer.outputs} {size}/{layer.stride[0]}"
    return text + (f" g{layer.groups}" if layer.groups > 1 else "")


def record(
    summary: Mapping[str, object], known: Mapping[Layer, Mapping[str, object]], threads: int
) -> dict[str, object]:
    """What a results file keeps: sums per network, both times and the best kernel per layer."""
    layers = []
    for row in known.values():
        kept = {name: value for name, value in row.items() if name != "ranking"}
        layers.append({**kept, "kernel": row["ranking"][0][0]})  # type: ignore[index]
    return {
        "isa": detect().name,
        "threads": threads,
        "onnxruntime": onnxruntime.__version__,
        "networks": summary,
        "layers": layers,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", choices=[*NETWORKS, *TRANSFORMERS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    runner = Runner(options.threads)
    known: dict[Layer, dict[str, object]] = {}
    summary = {}
    print(f"{'layer':38} {'count':>5} {'ort ms':>8} {'ort GF':>7} {'ms':>8} {'GF':>7} {'ratio':>6}")
    for network in options.network or [*NETWORKS, *TRANSFORMERS]:
        total_reference = total = 0.0
        print(f"-- {network}", flush=True)
        for layer, count in layers_of(network).items():
            if layer not in known:
                known[layer] = measure(layer, runner, options.rounds)
            row = known[layer]
            reference, ours = float(row["onnxruntime_ms"]), float(row["ours_ms"])  # type: ignore[arg-type]
            total_reference += reference * count
            total += ours * count
            flops = layer.flops / 1e6
            best = row["ranking"][0][0]  # type: ignore[index]
            print(
                f"{title(layer):38} {count:5d} {reference:8.3f} {flops / reference:7.0f} "
                f"{ours:8.3f} {flops / ours:7.0f} {reference / ours:6.2f}  {best}",
                flush=True,
            )
        summary[network] = {"onnxruntime_ms": total_reference, "ours_ms": total}
        if options.json:
            options.json.write_text(json.dumps(record(summary, known, options.threads)) + "\n")
        print(
            f"   sum {total_reference:.2f} ms, ours {total:.2f} ms: {total_reference / total:.2f}"
        )


if __name__ == "__main__":
    main()
