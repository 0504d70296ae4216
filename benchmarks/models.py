"""Twelve networks with seeded weights: nine of the ONNX backend suite and three transformers.

The nine come without trained weights in the installed onnx package (every output is one value,
whatever the input); the graphs of the three lie in ``benchmarks/models``. Weights are made here, at
first use, and kept in the user's cache folder beside one graph file for each batch size asked for.
Batch-norm statistics were measured once, by `benchmarks.batch_norm`, and are stored as float16.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test.loader
import platformdirs
from numpy.typing import NDArray

from benchmarks import weights
from engine.debug.compare import error

__all__ = ["NAMES", "NETWORKS", "error", "graph", "images", "inputs", "load", "set_batch"]

FOLDER = Path(__file__).parent / "models"
LIGHT = Path(onnx.backend.test.loader.DATA_DIR) / "light"
WEIGHTS_FILE = "weights.bin"
ALIGNMENT = 4096  # a memory page, so that every weight can be mapped
SEQUENCE = 128


@dataclass(frozen=True, slots=True)
class Network:
    """A graph file, the gain of its kernels, its vocabulary's size (0: it reads images)."""

    graph: Path
    gain: float
    vocabulary: int = 0


def _image(name: str) -> Network:
    return Network(LIGHT / f"light_{name}.onnx", gain=2.0)


NETWORKS = {
    "bvlc_alexnet": _image("bvlc_alexnet"),
    "densenet121": _image("densenet121"),
    "inception_v1": _image("inception_v1"),
    "inception_v2": _image("inception_v2"),
    "resnet50": _image("resnet50"),
    "shufflenet": _image("shufflenet"),
    "squeezenet": _image("squeezenet"),
    "vgg19": _image("vgg19"),
    "zfnet512": _image("zfnet512"),
    "bert_base": Network(FOLDER / "bert_base.onnx", gain=1.0, vocabulary=30522),
    "gpt2": Network(FOLDER / "gpt2.onnx", gain=1.0, vocabulary=50257),
    "vit_b16": Network(FOLDER / "vit_b16.onnx", gain=1.0),
}
NAMES = tuple(NETWORKS)


def load(name: str, batch: int | None = 1) -> Path:
    """The path of a network with weights, made when it is not yet in the cache.

    `batch` fixes every size, sequences at 128 tokens; None leaves the axes ``batch`` (all twelve)
    and ``sequence`` (BERT, GPT-2) symbolic. The weights lie beside the graph as external data.
    """
    folder = _folder(name)
    path = folder / f"batch_{'any' if batch is None else batch}.onnx"
    if not path.exists():
        model = graph(name)
        set_batch(model, batch)
        _refer_to_weights(model)
        _write_whole(path, model.SerializeToString(deterministic=True))
    return path


def inputs(name: str, batch: int = 1, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Seeded inputs by name: smooth float32 images, or int64 tokens with padding at the right."""
    rng = weights.generator(f"inputs/{name}/{seed}")
    vocabulary = NETWORKS[name].vocabulary
    if not vocabulary:
        return {graph(name).graph.input[0].name: images(rng, batch)}
    tokens = rng.integers(0, vocabulary, (batch, SEQUENCE), dtype=np.int64)
    lengths = rng.integers(SEQUENCE // 2, SEQUENCE, (batch, 1), endpoint=True)
    positions = np.arange(SEQUENCE)
    feeds = {"input_ids": tokens, "attention_mask": (positions < lengths).astype(np.int64)}
    if name == "bert_base":
        feeds["token_type_ids"] = np.broadcast_to(positions >= SEQUENCE // 2, tokens.shape).astype(
            np.int64
        )
    return dict(feeds)


def images(rng: np.random.Generator, batch: int) -> NDArray[np.float32]:
    """Images (batch, 3, 224, 224) with the same power at each scale, as photographs have about.

    White noise would not do: pooling averages it away, and all inputs would look alike.
    """
    total = np.zeros((batch, 3, 224, 224), np.float32)
    for size in (1, 4, 14, 56, 224):
        coarse = rng.standard_normal((batch, 3, size, size), dtype=np.float32)
        total += coarse.repeat(224 // size, axis=2).repeat(224 // size, axis=3)
    return total / np.float32(np.sqrt(5))


def graph(name: str) -> onnx.ModelProto:
    """The network's graph; its weights are initialisers with a shape and no values."""
    try:
        network = NETWORKS[name]
    except KeyError:
        raise ValueError(f"no network is called {name!r}; known: {', '.join(NAMES)}") from None
    model = onnx.load(network.graph)
    if network.graph.parent == LIGHT:
        _strip_light(model)
    return model


def _strip_light(model: onnx.ModelProto) -> None:
    """Turn the constant weights of a backend-suite network into initialisers without values."""
    body = model.graph
    known = {tensor.name: tensor for tensor in body.initializer}
    made = [node for node in body.node if node.op_type == "ConstantOfShape"]
    shapes = {node.output[0]: onnx.numpy_helper.to_array(known[node.input[0]]) for node in made}
    read = set(weights.readers(body)) - {node.input[0] for node in made}
    kept = [tensor for tensor in body.initializer if tensor.name in read]
    for tensor in kept:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.ClearField("float_data")
            tensor.ClearField("raw_data")
    kept += [
        onnx.TensorProto(name=name, dims=shape, data_type=onnx.TensorProto.FLOAT)
        for name, shape in shapes.items()
    ]
    feeds = [value for value in body.input if value.name not in known]
    nodes = [node for node in body.node if node.op_type != "ConstantOfShape"]
    for field, content in (("initializer", kept), ("input", feeds), ("node", nodes)):
        body.ClearField(field)
        getattr(body, field).extend(content)
    model.ir_version = 8  # from 4 on an initialiser need not be an input too


def set_batch(model: onnx.ModelProto, batch: int | None) -> None:
    """Fix the batch axis of inputs, outputs and reshapes, or leave it symbolic for None."""
    for value in (*model.graph.input, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if batch is None:
            sizes[0].dim_param = "batch"
            continue
        sizes[0].dim_value = batch
        for size in sizes:
            if size.dim_param == "sequence":
                size.dim_value = SEQUENCE
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        if node.input[0] not in constants:
            target = constants[node.input[1]]
            shape = onnx.numpy_helper.to_array(target).copy()
            shape[0] = 0 if batch is None else batch  # 0 keeps the size of the input
            target.CopyFrom(onnx.numpy_helper.from_array(shape, target.name))


def statistics(name: str, model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """The stored means and variances of a network's batch norms by tensor name."""
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if not norms:
        return {}
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    ends = np.cumsum([sizes[node.input[3]] for node in norms])[:-1]
    means, variances = np.load(FOLDER / f"{name}_batch_norm.npy").astype(np.float32)
    found = dict(zip((n.input[3] for n in norms), np.split(means, ends), strict=True))
    found.update(zip((n.input[4] for n in norms), np.split(variances, ends), strict=True))
    return found


def _refer_to_weights(model: onnx.ModelProto) -> None:
    """Point every weight at its place in the weights file."""
    offset = 0
    for tensor in weights.weights(model.graph):
        length = 4 * int(np.prod(tensor.dims))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        offset += -(-length // ALIGNMENT) * ALIGNMENT


def _folder(name: str) -> Path:
    """The cache folder of a network, weights written; its name says what they are made from."""
    cache = platformdirs.user_cache_path("enginefarm") / "benchmark_models"
    folder = cache / f"{name}-{_digest(name)[:16]}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=cache, prefix=f".{name}-"))
        try:
            _write_weights(name, partial / WEIGHTS_FILE)
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            # Another process was first, with the same bytes.
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _digest(name: str) -> str:
    """SHA-256 over the graph, the statistics and the code that makes weights from them."""
    digest = hashlib.sha256(graph(name).SerializeToString(deterministic=True))
    for path in (FOLDER / f"{name}_batch_norm.npy", Path(__file__), Path(weights.__file__)):
        if path.exists():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _write_weights(name: str, path: Path) -> None:
    model = graph(name)
    reads = weights.readers(model.graph)
    known = statistics(name, model)
    gain = NETWORKS[name].gain
    with path.open("wb") as file:
        for tensor in weights.weights(model.graph):
            array = weights.values(tensor, seed=name, gain=gain, reads=reads, statistics=known)
            array.tofile(file)
            file.write(bytes(-file.tell() % ALIGNMENT))


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file so that no reader ever sees a part of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
