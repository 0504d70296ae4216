"""Contexts: threads at once, shapes without a rebuild, bound buffers, results that stay."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import engine
from engine.debug.interpret import interpret
from engine.errors import FeedError, KernelError
from engine.runtime import context as contexts
from tests.engine.small_models import assert_close, built, check, graph_of, model, random_feeds

NETWORK = """(float[N, 12] x) => (float[N, 5] y, float[] z) {
    a = MatMul (x, w)
    b = Add (a, c)
    r = Relu (b)
    y = MatMul (r, v)
    s = Softmax <axis = -1> (y)
    z = ReduceSum <keepdims = 0> (s, axis)
}"""
RNG = np.random.default_rng(5)
WEIGHTS = {
    "w": RNG.standard_normal((12, 33)).astype(np.float32),
    "c": RNG.standard_normal(33).astype(np.float32),
    "v": RNG.standard_normal((33, 5)).astype(np.float32),
    "axis": np.array([1], np.int64),
}


@pytest.fixture(scope="module")
def network() -> engine.Engine:
    return built(model(NETWORK, weights=WEIGHTS), shapes={"x": ("N=1..4..64", 12)})


def feeds(rows: int, seed: int = 0) -> dict[str, Any]:
    x = np.random.default_rng(seed).standard_normal((rows, 12)).astype(np.float32)
    return {"x": x}


def expected(given: dict[str, Any]) -> dict[str, Any]:
    return interpret(graph_of(NETWORK, weights=WEIGHTS), given)


def test_threads_with_contexts_of_their_own_do_not_disturb_each_other(
    network: engine.Engine,
) -> None:
    wanted = {rows: expected(feeds(rows, rows)) for rows in range(1, 17)}
    start = threading.Barrier(4)

    def work(worker: int) -> None:
        start.wait()
        with network.create_context() as context:
            for turn in range(60):
                rows = 1 + (turn * 7 + worker * 5) % 16
                run = context.run if turn % 2 else network
                assert_close(run(feeds(rows, rows)), wanted[rows])

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, worker) for worker in range(4)]:
            done.result(timeout=120)


def test_every_size_of_the_profile_runs_and_none_outside(network: engine.Engine) -> None:
    with network.create_context() as context:
        for rows in (4, 1, 64, 3, 63, 4):
            assert_close(context.run(feeds(rows)), expected(feeds(rows)))
        for rows in (0, 65, 1000):
            with pytest.raises(FeedError, match=rf"N is {rows} .*outside the profile 1 to 64"):
                context.run(feeds(rows))
        assert_close(context.run(feeds(2)), expected(feeds(2)))


def test_more_shapes_than_are_kept_are_planned_again(network: engine.Engine) -> None:
    with network.create_context() as context:
        for _ in range(2):
            for rows in range(1, contexts.KEPT_SHAPES + 4):
                assert_close(context.run(feeds(rows)), expected(feeds(rows)))
        assert len(context._bound) <= contexts.KEPT_SHAPES


def test_a_closed_context_takes_a_new_arena(network: engine.Engine) -> None:
    context = network.create_context()
    first = context.run(feeds(3))
    context.close()
    assert_close(context.run(feeds(3)), first)


def test_bound_buffers_are_read_and_written_in_place(network: engine.Engine) -> None:
    x, y = feeds(4)["x"], np.empty((4, 5), np.float32)
    with network.create_context() as context:
        context.bind("x", x)
        context.bind("y", y)
        for seed in (1, 2):
            x[:] = feeds(4, seed)["x"]
            found = context.run({})
            assert found["y"] is y
            assert_close(found, expected({"x": x}))


def test_outputs_go_where_the_caller_says(network: engine.Engine) -> None:
    y = np.full((4, 5), np.nan, np.float32)
    with network.create_context() as context:
        found = context.run(feeds(4), outputs={"y": y})
    assert found["y"] is y
    assert_close({"y": y}, {"y": expected(feeds(4))["y"]})


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.empty((3, 5), np.float32), r"float32\[4, 5\].*float32\[3, 5\]"),
        (np.empty((4, 5), np.float64), "float64"),
        (np.empty((5, 4), np.float32).T, "C-contiguous"),
        (np.frombuffer(bytes(80), np.float32).reshape(4, 5), "writable"),
        (np.frombuffer(bytearray(81), np.uint8)[1:].view(np.float32).reshape(4, 5), "aligned"),
    ],
)
def test_an_output_array_that_does_not_fit_is_refused(
    network: engine.Engine, array: Any, message: str
) -> None:
    with network.create_context() as context, pytest.raises(FeedError, match=message):
        context.run(feeds(4), outputs={"y": array})


def test_an_output_that_nobody_has_is_refused(network: engine.Engine) -> None:
    with network.create_context() as context, pytest.raises(FeedError, match="no output 'q'"):
        context.run(feeds(4), outputs={"q": np.empty(3, np.float32)})


def test_an_output_may_not_lie_on_an_input(network: engine.Engine) -> None:
    memory = np.zeros(64, np.float32)
    x, y = memory[:48].reshape(4, 12), memory[40:60].reshape(4, 5)
    with network.create_context() as context, pytest.raises(FeedError, match=r"'y'.*'x' overlap"):
        context.run({"x": x}, outputs={"y": y})


def test_a_wrong_buffer_is_not_bound(network: engine.Engine) -> None:
    context = network.create_context()
    for name, array, message in (
        ("q", np.empty(1), "no input or output 'q'"),
        ("x", np.empty((4, 12)), "float64 does not fit"),
        ("x", np.empty((12, 4), np.float32).T, "C-contiguous"),
    ):
        with pytest.raises(FeedError, match=message):
            context.bind(name, array)


def test_arrays_need_not_be_contiguous_or_aligned(network: engine.Engine) -> None:
    x = feeds(4)["x"]
    shifted = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(4, 12)
    backwards = np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    columns = np.asfortranarray(x)
    for given in (shifted, backwards, columns):
        assert_close(network({"x": given}), expected({"x": x}))


class Exported:
    """Something that is no array but speaks DLPack."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def test_what_speaks_dlpack_is_taken(network: engine.Engine) -> None:
    assert_close(network({"x": Exported(feeds(4)["x"])}), expected(feeds(4)))


def test_there_are_no_streams_on_a_cpu(network: engine.Engine) -> None:
    with pytest.raises(FeedError, match="no streams"):
        network.create_context(stream=object())


VIEWS = """(float[8] x, int64[1] count) => (float[] y, float[] z, seq(float[8]) s) <
    int64[1] zero = {0}> {
    r = Mul (x, x)
    y = Slice (r, zero, count)
    a = Exp (r)
    b = Sin (a)
    c = Sqrt (b)
    z = Identity (c)
    s = SequenceConstruct (r, r)
}"""


def test_results_of_a_run_stay_as_they_are_when_the_context_runs_again() -> None:
    net = built(model(VIEWS))
    context = net.create_context()

    def given(number: float, count: int) -> dict[str, Any]:
        return {"x": np.full(8, number, np.float32), "count": np.array([count], np.int64)}

    first = context.run(given(0.5, 3))
    wanted = interpret(graph_of(VIEWS), given(0.5, 3))
    assert_close(first, wanted)
    context.run(given(1.25, 5))
    assert_close(first, wanted)


def test_what_a_host_step_returns_does_not_live_in_memory_that_is_used_again() -> None:
    body = """(float[64] x, int64[1] count) => (float[] y, float[64] z) <int64[1] zero = {0}> {
        r = Mul (x, x)
        y0 = Slice (r, zero, count)
        a = Exp (x)
        b = CumSum (a, axis)
        c = Sin (b)
        d = CumSum (c, axis)
        e = Cos (d)
        z = CumSum (e, axis)
        y = Reshape (y0, minus)
    }"""
    weights = {"axis": np.array(0, np.int64), "minus": np.array([-1], np.int64)}
    check(
        body,
        {"x": np.linspace(0, 1, 64, dtype=np.float32), "count": np.array([5], np.int64)},
        weights=weights,
    )


def test_results_do_not_lie_on_the_callers_input() -> None:
    net = built(
        model("(seq(float[4]) s, float[4] x) => (seq(float[4]) t) { t = SequenceInsert (s, x) }")
    )
    x = np.ones(4, np.float32)
    found = net({"s": [np.zeros(4, np.float32)], "x": x})
    x[:] = 7
    assert found["t"][1].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_tensors_may_be_empty(count: int) -> None:
    body = """(float[N, 12] x) => (float[] y, float[] z, float[] u, float[] t) {
        y = MatMul (x, w)
        z = Softmax (y)
        u = Concat <axis = 0> (y, z)
        t = Transpose <perm = [1, 0]> (u)
    }"""
    check(body, sizes={"N": count}, weights={"w": WEIGHTS["w"]})


def test_sizes_that_two_inputs_share_must_agree() -> None:
    net = built(model("(float[N] x, float[N] z, float[2] w) => (float[] y) { y = Add (x, z) }"))
    w = np.ones(2, np.float32)
    with pytest.raises(FeedError, match="'z' has size 4 on axis 0, but N is 3"):
        net({"x": np.ones(3, np.float32), "z": np.ones(4, np.float32), "w": w})
    with pytest.raises(FeedError, match="'w' has size 3 on axis 0, expected 2"):
        net({"x": np.ones(3, np.float32), "z": np.ones(3, np.float32), "w": np.ones(3, np.float32)})


@pytest.mark.parametrize("mode", ["wait", "never"])
@pytest.mark.parametrize(
    "body",
    [
        "(float[N, K] x, float[L, M] z) => (float[] y) { y = MatMul (x, z) }",
        "(float[N, K] x, float[L, M] z) => (float[] y) { y = Add (x, z) }",
        "(float[N, K] x, float[L, M] z) => (float[] y) { y = Concat <axis = 1> (x, z) }",
    ],
)
def test_sizes_that_the_model_needs_equal_but_does_not_say_so(body: str, mode: str) -> None:
    net = built(model(body), compile=mode)
    fits = {"x": np.ones((4, 4), np.float32), "z": np.ones((4, 4), np.float32)}
    assert_close(net(fits), interpret(graph_of(body), fits))
    with pytest.raises((KernelError, FeedError)):
        net({"x": np.ones((3, 5), np.float32), "z": np.ones((4, 6), np.float32)})
    with pytest.raises((KernelError, FeedError)):
        net({"x": np.ones((3, 4), np.float32), "z": np.ones((7, 5), np.float32)})


@pytest.mark.parametrize("mode", ["wait", "never"])
@pytest.mark.parametrize(
    ("line", "good", "bad"),
    [
        ("y = Conv <pads = [1, 1, 1, 1]> (x, k)", (1, 3, 6, 6), [(1, 5, 6, 6), (1, 2, 6, 6)]),
        ("y = Conv <group = 4, pads = [1, 1, 1, 1]> (x, d)", (1, 4, 6, 6), [(1, 8, 6, 6)]),
        ("r = Relu (x) y = Reshape (r, s)", (4, 3, 1, 1), [(2, 7, 1, 1), (1, 5, 1, 1)]),
        ("r = Relu (x) y = Squeeze (r, one)", (4, 1, 1, 1), [(2, 7, 1, 1)]),
        ("y = BatchNormalization (x, g, g, g, g)", (1, 3, 6, 6), [(1, 5, 6, 6), (1, 1, 6, 6)]),
        ("y = GroupNormalization <num_groups = 3> (x, g, g)", (1, 3, 2, 2), [(1, 4, 2, 2)]),
    ],
)
def test_a_size_that_weights_settle_is_checked_when_it_runs(
    line: str, good: tuple[int, ...], bad: list[tuple[int, ...]], mode: str
) -> None:
    body = f"(float[N, C, H, W] x) => (float[] y) {{ {line} }}"
    weights = {
        "k": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "d": RNG.standard_normal((4, 1, 3, 3)).astype(np.float32),
        "g": np.ones(3, np.float32),
        "s": np.array([2, 6], np.int64),
        "one": np.array([1], np.int64),
    }
    net = built(model(body, weights=weights), compile=mode)
    fits = {"x": RNG.standard_normal(good).astype(np.float32)}
    assert_close(net(fits), interpret(graph_of(body, weights=weights), fits))
    for shape in bad:
        with pytest.raises(KernelError, match="layer '"):
            net({"x": np.ones(shape, np.float32)})


def test_sizes_with_different_names_may_broadcast_when_they_run() -> None:
    body = "(float[N, 4] x, float[M, 4] z) => (float[] y) { y = Add (x, z) }"
    for n, m in ((3, 3), (1, 3), (3, 1)):
        check(body, sizes={"N": n, "M": m})


def test_random_feeds_for_every_axis_name() -> None:
    graph = graph_of("(float[N, M] x) => (float[] y) { y = Neg (x) }")
    assert random_feeds(graph, N=2, M=5)["x"].shape == (2, 5)


def test_the_time_of_every_layer_is_told(network: engine.Engine) -> None:
    with network.create_context() as context:
        times = context.profile(feeds(4))
    assert times and set(times) <= set(range(len(network.program.layers)))
    assert all(spent >= 0 for spent in times.values())
