"""Mutated models are built, or refused by name, within bounds of time and memory."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError, Message

from engine.building import BuildOptions, assemble_plan, optimise
from engine.errors import ModelError
from engine.onnx_io import read
from tests.engine.small_models import model

SECONDS = 5.0
NBYTES = 3 << 30

LOOP = """(int64 turns, float[2, 2] x, float[N, 4] z) => (float[] y, float[] all, float[] w) {
    yes = Constant <value = bool {1}> ()
    y, all = Loop (turns, yes, x) <body = step (int64 i, bool on, float[2, 2] v)
        => (bool again, float[] next, float[] out) {
        again = Identity(on)
        next = Add(v, x)
        out = local.scale <factor = 3.0> (next)
    }>
    w = If (yes) <then_branch = one () => (float[] a) { a = Neg(z) },
                  else_branch = two () => (float[] b) { b = Concat <axis = 0> (z, z) }>
}"""
FUNCTION = """<domain: "local", opset_import: ["" : 21]>
scale <factor: float = 2.0> (v) => (r) {
    k = Constant <value_float: float = @factor> ()
    r = Mul(v, k)
}"""
NETWORK = """(float[N, 3, 8, 8] x) => (float[] y, int64[] s) <int64[2] flat = {0, -1}> {
    c = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w, b)
    n = BatchNormalization (c, b, b, b, b)
    r = Relu (n)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    q = AveragePool <kernel_shape = [2, 2], auto_pad = "SAME_UPPER"> (p)
    t = Transpose <perm = [0, 2, 3, 1]> (q)
    f = Reshape (t, flat)
    g = Gemm <transB = 1> (f, v)
    e = Softmax <axis = -1> (g)
    m = ReduceMean <keepdims = 1> (e)
    y = Where (k, e, m)
    s = Shape (y)
}"""
SHAPES = """(float[N, M] x, int64[2] s) => (float[] y, float[] z, int64[] i) <
    int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[2] pads = {0, 1}> {
    h = Shape (x)
    n = Slice (h, zero, one)
    c = Concat <axis = 0> (n, two)
    e = ConstantOfShape <value = float[1] {1.5}> (c)
    t = Tile (e, two, one)
    y = Expand (e, c)
    p = Pad (x, pads, , one)
    z = Gather <axis = 0> (p, zero)
    i = NonZero (x)
}"""


def seeds() -> list[onnx.ModelProto]:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b": np.ones(4, np.float32),
        "v": rng.standard_normal((5, 16)).astype(np.float32),
        "k": np.array([True, False, True, True, False]),
    }
    shapes = SHAPES.replace("t = Tile (e, two, one)", "t = Tile (e, c)")
    return [
        model(LOOP, functions=FUNCTION),
        model(NETWORK, weights=weights),
        model(
            shapes.replace("p = Pad (x, pads, , one)", "p = Pad (x, edge)"),
            weights={"edge": np.array([0, 1, 1, 0], np.int64)},
        ),
    ]


SEEDS = seeds()


def messages(message: Message) -> Iterator[Message]:
    """A message and all within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                yield from messages(item)


def drop_field(proto: onnx.ModelProto, chance: random.Random) -> None:
    victim = chance.choice([item for item in messages(proto) if item.ListFields()])
    victim.ClearField(chance.choice(victim.ListFields())[0].name)


def change_number(proto: onnx.ModelProto, chance: random.Random) -> None:
    """Another number, often huge, negative or zero."""
    found = [
        (item, field, value)
        for item in messages(proto)
        for field, value in item.ListFields()
        if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
    ]
    item, field, value = chance.choice(found)
    number = chance.choice(
        [0, 1, -1, 2, 7, 100, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 62, -(1 << 62)]
    )
    if field.cpp_type == field.CPPTYPE_INT32:
        number = max(min(number, (1 << 31) - 1), -(1 << 31))
    if field.is_repeated:
        value[chance.randrange(len(value))] = number
    else:
        setattr(item, field.name, number)


def swap_names(proto: onnx.ModelProto, chance: random.Random) -> None:
    """A node reads, writes or is something else."""
    nodes = [item for item in messages(proto) if isinstance(item, onnx.NodeProto)]
    first, second = chance.choice(nodes), chance.choice(nodes)
    kind = chance.randrange(3)
    if kind == 0 and first.input and second.output:
        first.input[chance.randrange(len(first.input))] = chance.choice(second.output)
    elif kind == 1 and first.output and second.output:
        first.output[0] = second.output[0]
    else:
        first.op_type = second.op_type


def repeat(proto: onnx.ModelProto, chance: random.Random) -> None:
    """Something twice, or moved into something of its kind: recursion."""
    found = [
        (field, value)
        for item in messages(proto)
        for field, value in item.ListFields()
        if field.is_repeated and field.message_type is not None and len(value)
    ]
    field, value = chance.choice(found)
    kin = [other for same, other in found if same.message_type is field.message_type]
    written = value[chance.randrange(len(value))].SerializeToString()
    chance.choice(kin).add().MergeFromString(written)


def change_type(proto: onnx.ModelProto, chance: random.Random) -> None:
    tensors = [item for item in messages(proto) if isinstance(item, onnx.TensorProto)]
    types = [item for item in messages(proto) if isinstance(item, onnx.TypeProto.Tensor)]
    if chance.random() < 0.5 and tensors:
        chance.choice(tensors).data_type = chance.randrange(30)
    else:
        chance.choice(types).elem_type = chance.randrange(30)


CHANGES: list[Callable[[onnx.ModelProto, random.Random], None]] = [
    drop_field,
    change_number,
    swap_names,
    repeat,
    change_type,
]


def mutated(seed: int) -> onnx.ModelProto | bytes:
    """A model with one to four changes, or with some of its bytes flipped."""
    chance = random.Random(seed)
    proto = onnx.ModelProto()
    proto.CopyFrom(chance.choice(SEEDS))
    if chance.random() < 0.3:
        data = bytearray(proto.SerializeToString())
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        return bytes(data)
    for _ in range(chance.randrange(1, 5)):
        try:
            chance.choice(CHANGES)(proto, chance)
        except (IndexError, DecodeError):
            continue  # nothing of that kind is left
    return proto


def is_old(given: onnx.ModelProto | bytes) -> bool:
    """Whether onnx's own converter would run first: what that does is not ours."""
    try:
        proto = onnx.ModelProto.FromString(given) if isinstance(given, bytes) else given
    except DecodeError:
        return False
    return any(item.version < 7 and item.domain in ("", "ai.onnx") for item in proto.opset_import)


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """An address space that cannot grow by more than `NBYTES`."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + NBYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def read_or_refused(seed: int) -> bool:
    """Whether a mutated model can be read and optimised; anything but a refusal fails the test."""
    given = mutated(seed)
    if is_old(given):
        return False
    started = time.process_time()
    refusal = None
    try:
        graph = optimise(read(given), checked=True)
        assemble_plan(graph, BuildOptions(level=0), [])
    except ModelError as error:
        refusal = str(error)
    except Exception as error:
        raise AssertionError(f"mutation {seed} gave {type(error).__name__}: {error}") from error
    assert refusal is None or refusal.strip(), f"mutation {seed} was refused without a word"
    assert time.process_time() - started < SECONDS, f"mutation {seed} took too long"
    return refusal is None


@pytest.mark.usefixtures("bounded_memory")
def test_seeds_are_accepted() -> None:
    for seed in SEEDS:
        optimise(read(seed), checked=True)


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mutated_models_are_read_or_refused_by_name() -> None:
    accepted = sum(read_or_refused(seed) for seed in range(600))
    assert 30 < accepted < 570


@pytest.mark.slow
@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("block", range(20))
def test_many_more_mutated_models_are_read_or_refused(block: int) -> None:
    for seed in range(1000 + 1000 * block, 2000 + 1000 * block):
        read_or_refused(seed)
