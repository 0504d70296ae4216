"""A damaged or hostile plan file is refused by name, quickly, and in little memory."""

from __future__ import annotations

import copy
import json
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import engine
from engine.errors import EngineError, PlanCorruptError, PlanError, PlanVersionError
from engine.plan.container import read
from engine.plan.plan import open_plan
from engine.plan.writing import write

SECONDS = 1.0
NBYTES = 100_000_000


def model() -> bytes:
    """x[n, 16] through two products, an activation, a branch and an operator on the host."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal((16, 16)).astype(np.float32), name)
        for name in ("w0", "w1")
    ]
    typed = helper.make_tensor_value_info
    branches = [
        helper.make_graph(
            [helper.make_node(kind, ["b"], [kind])],
            kind,
            [],
            [typed(kind, TensorProto.FLOAT, None)],
        )
        for kind in ("Relu", "Neg")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["b"]),
        helper.make_node("If", ["c"], ["d"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("NonZero", ["d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [typed("x", TensorProto.FLOAT, ["n", 16]), typed("c", TensorProto.BOOL, [])],
        [typed("b", TensorProto.FLOAT, ["n", 16]), typed("y", TensorProto.INT64, None)],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return proto.SerializeToString()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("plan") / "x.engine"
    built = engine.build(model(), level=0, shapes={"x": ("n=1..4..32", 16)})
    built.save(place)
    open_plan(place)
    return place


@pytest.fixture
def victim(plan: Path, tmp_path: Path) -> Path:
    place = tmp_path / "victim.engine"
    place.write_bytes(plan.read_bytes())
    return place


def refused(path: Path, kind: type[PlanError] = PlanError) -> None:
    """The file is refused, within the limits; the message says what to do."""
    started = time.process_time()
    with pytest.raises(kind) as refusal:
        open_plan(path)
    assert time.process_time() - started < SECONDS
    assert len(str(refusal.value)) < 2000


def tolerated(path: Path) -> bool:
    """Whether the file is opened; anything but a PlanError fails the test."""
    started = time.process_time()
    try:
        open_plan(path)
    except PlanError:
        return False
    finally:
        assert time.process_time() - started < SECONDS
    return True


def test_a_plan_cut_anywhere_is_refused(victim: Path) -> None:
    content = victim.read_bytes()
    lengths = {0, 1, 7, 8, 9, 4095, 4096, 4097, len(content) - 1, len(content) - 32}
    for length in sorted(lengths | set(range(0, len(content), len(content) // 60))):
        victim.write_bytes(content[:length])
        refused(victim, PlanCorruptError)


def test_a_plan_with_more_at_its_end_is_refused(victim: Path) -> None:
    victim.write_bytes(victim.read_bytes() + b"\0")
    refused(victim, PlanCorruptError)


def flip(victim: Path, positions: Iterator[int] | range | list[int]) -> None:
    content = victim.read_bytes()
    for position in positions:
        changed = bytearray(content)
        changed[position // 8] ^= 1 << (position % 8)
        victim.write_bytes(changed)
        refused(victim)


def test_any_flipped_bit_is_noticed(victim: Path) -> None:
    random = np.random.default_rng(1)
    flip(victim, random.integers(0, victim.stat().st_size * 8, 150).tolist())


@pytest.mark.slow
def test_every_flipped_bit_of_the_header_is_noticed(victim: Path) -> None:
    length = len(victim.read_bytes().split(b"   ", 1)[0])
    flip(victim, range((length + 16) * 8))


def test_an_unknown_version_is_refused_by_name(victim: Path) -> None:
    content = victim.read_bytes()
    victim.write_bytes(content.replace(b'"version":"1"', b'"version":"2"'))
    refused(victim, PlanVersionError)


HEADERS = [
    b'{"__metadata__":{"format":"enginefarm","version":"1"}}',
    b'{"__metadata__":{"format":"enginefarm","version":"1","digest":"' + b"0" * 64 + b'"}}',
    b'{"__metadata__":{"format":"enginefarm","version":1}}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"__metadata__":{},"__metadata__":{}}',
    b'{"__metadata__":{"format":"enginefarm","version":"1","digest":"' + b"0" * 64 + b'"},'
    b'"program":{"data_offsets":[0,9],"dtype":"U8","shape":[' + b"9" * 6000 + b"]}}",
    b'{"__metadata__":{"format":"enginefarm","version":"1","digest":"' + b"0" * 64 + b'"},'
    b'"program":{"data_offsets":[0,9],"dtype":"F64","shape":[281474976710656,281474976710656]}}',
    b"NaN",
    b"\xff\xfe",
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_a_hostile_header_is_refused(victim: Path, header: bytes) -> None:
    padded = -(-(8 + len(header)) // 4096) * 4096 - 8
    victim.write_bytes(padded.to_bytes(8, "little") + header.ljust(padded) + bytes(4096))
    refused(victim)


@pytest.mark.parametrize("length", [0, 1, 4088, 1 << 24, 1 << 40, (1 << 64) - 1])
def test_a_lie_about_the_length_of_the_header_is_refused(victim: Path, length: int) -> None:
    content = victim.read_bytes()
    if content[:8] != length.to_bytes(8, "little"):
        victim.write_bytes(length.to_bytes(8, "little") + content[8:])
        refused(victim)


def reseal(source: Path, target: Path, document: Any) -> None:
    """Write the plan again with another program, and digests that match it."""
    container = read(source)
    sections = {name: container.array(name) for name in container.names}
    written = document if isinstance(document, bytes) else json.dumps(document).encode()
    sections["program"] = np.frombuffer(written, np.uint8)
    write(target, sections, keys=container.keys)


def program_of(plan: Path) -> Any:
    return json.loads(read(plan).raw("program").tobytes())


def test_resealing_changes_nothing(plan: Path, victim: Path) -> None:
    reseal(plan, victim, program_of(plan))
    assert open_plan(victim).program == open_plan(plan).program


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 1_000_000,
        b'{"program":' * 200_000,
        b'{"a":1,"a":1}',
        b"1" * 5000,
        b"\xff",
        b'"' + b"x" * 10_000_000 + b'"',
    ],
    ids=range(10),
)
def test_a_sealed_program_that_is_none_is_refused(plan: Path, victim: Path, content: bytes) -> None:
    reseal(plan, victim, content)
    refused(victim, PlanCorruptError)


def test_weights_without_a_program_are_refused(plan: Path, victim: Path) -> None:
    container = read(plan)
    write(victim, {name: container.array(name) for name in container.names if name != "program"})
    refused(victim, PlanCorruptError)


def test_missing_and_additional_weights_are_refused(plan: Path, victim: Path) -> None:
    container = read(plan)
    sections = {name: container.array(name) for name in container.names}
    write(victim, {**sections, "more": np.zeros(3)})
    refused(victim, PlanCorruptError)
    name = next(name for name in sections if name != "program")
    write(victim, {key: value for key, value in sections.items() if key != name})
    refused(victim, PlanCorruptError)
    write(victim, {**sections, name: sections[name][:-1]})
    refused(victim, PlanCorruptError)


def nested(depth: int) -> Any:
    found: Any = "n"
    for _ in range(depth):
        found = ["max", ["min", found, 7], ["floordiv", found if depth < 12 else "n", 3]]
    return found


def powers(rounds: int) -> Any:
    found: Any = ["+", "n", 1]
    for _ in range(rounds):
        found = ["*", found, found]
    return found


HOSTILE: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    3,
    1 << 31,
    1 << 47,
    1 << 62,
    1 << 200,
    -(1 << 63),
    1.5,
    1e308,
    "",
    "n",
    "../../etc/passwd",
    "__class__",
    "x" * 5000,
    [],
    [[]],
    {},
    {"kind": "gemm"},
    ["+", "n", 1],
    ["*", 1 << 47, ["*", "n", "n"]],
    ["floordiv", 1, ["+", "n", -4]],
    ["mod", "n", 0],
    nested(9),
    nested(200),
    powers(6),
    ["data"],
    ["input", "x", 0],
    list(range(5000)),
]


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in a document."""
    found: Any = ()
    if isinstance(document, dict):
        found = document.items()
    elif isinstance(document, list):
        found = enumerate(document)
    for key, value in found:
        yield (*path, key)
        yield from places(value, (*path, key))


def mutated(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(document)
    found = changed
    for step in path[:-1]:
        found = found[step]
    if value is KeyError:
        del found[path[-1]]
    else:
        found[path[-1]] = copy.deepcopy(value)
    return changed


#: Where any JSON is data for a report or a name that may be anything.
FREE = {"decisions", "target", "choice", "codegen", "tactic", "nodes", "time_ns", "layers"}


def run(path: Path) -> None:
    """Run a plan on honest inputs; anything but an error raised on purpose fails the test."""
    feeds = {"x": np.ones((4, 16), np.float32), "c": np.array(True)}
    with suppress(EngineError):
        engine.load(path, compile="never")(feeds)


def attack(plan: Path, victim: Path, rounds: int, seed: int) -> tuple[int, int]:
    """Mutate the sealed program at random places; (refused, opened)."""
    document = program_of(plan)
    paths = [path for path in places(document) if not FREE & set(path)]
    random = np.random.default_rng(seed)
    counts = [0, 0]
    for _ in range(rounds):
        path = paths[random.integers(len(paths))]
        value = [*HOSTILE, KeyError][random.integers(len(HOSTILE) + 1)]
        reseal(plan, victim, mutated(document, path, value))
        opened = tolerated(victim)
        if opened:  # then it must be a plan that an honest build could have made
            again = open_plan(victim)
            replace(again).save(victim.with_name("again"))
            assert open_plan(victim.with_name("again")).program == again.program
            run(victim)
        counts[opened] += 1
    return counts[0], counts[1]


def test_sealed_mutations_are_refused_or_harmless(plan: Path, victim: Path) -> None:
    rejected, opened = attack(plan, victim, 400, 0)
    assert rejected > 3 * opened


@pytest.mark.slow
def test_many_sealed_mutations_are_refused_or_harmless(plan: Path, victim: Path) -> None:
    for seed in range(1, 11):
        rejected, opened = attack(plan, victim, 1000, seed)
        assert rejected > 3 * opened


def targeted(document: Any) -> Iterator[tuple[str, Any]]:
    """Mutations that must be refused, wherever they apply."""
    for path in places(document["program"]):
        full = ("program", *path)
        if path[-1] == "kernel":
            yield "kernel index", mutated(document, full, 10**6)
        elif path[-1] == "function" and "recipe" not in path:
            yield "host function", mutated(document, full, "os.system")
        elif path[-1] == "kind" and "kernels" in path:
            yield "kernel kind", mutated(document, full, "../evil")
        elif path[-1] == "name" and "operator" in path:
            yield "operator", mutated(document, full, "Eval")
        elif path[-1] == "place":
            yield "place", mutated(document, full, "heap")
        elif path[-2:-1] == ("sizes",):
            yield "negative size", mutated(document, full, -5)
            yield "absurd size", mutated(document, full, 1 << 60)
            yield "blown-up size", mutated(document, full, powers(8))
        elif path[-3:-2] == ("operands",):
            yield "operand", mutated(document, full, 1 << 40)
            yield "negative operand", mutated(document, full, -1)


def test_sealed_attacks_on_memory_and_names_are_refused(plan: Path, victim: Path) -> None:
    cases = list(targeted(program_of(plan)))
    assert {kind for kind, _ in cases} >= {"kernel index", "operand", "negative size", "operator"}
    for kind, document in cases:
        reseal(plan, victim, document)
        assert not tolerated(victim), kind


def test_refusing_takes_little_memory(plan: Path, victim: Path) -> None:
    document = program_of(plan)
    hostile = [
        mutated(document, ("program", "steps"), [{}] * 300_000),
        mutated(document, ("program", "slots"), document["program"]["slots"] * 2000),
        mutated(document, ("program", "symbols"), document["program"]["symbols"] * 2000),
        mutated(document, ("program", "slots", 0, "type", 1), [1 << 40] * 60),
        mutated(document, ("program", "weights", 0, "shape"), [1 << 47] * 60),
    ]
    for item in hostile:
        reseal(plan, victim, item)
        tracemalloc.start()
        try:
            with pytest.raises(PlanCorruptError):
                open_plan(victim)
            assert tracemalloc.get_traced_memory()[1] < NBYTES
        finally:
            tracemalloc.stop()
