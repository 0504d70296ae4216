import os
import threading
import time

import numpy as np
import pytest

from engine.kernels.runner import Handle, Runner, Step, default_threads
from engine.runtime.compilation import Function, find_compiler, load

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C compiler on this machine")

COUNT = Function(
    "count",
    """#include <stdint.h>
void count(void *const *pointer, const int64_t *size, int64_t begin, int64_t end, char *scratch) {
  int64_t *to = pointer[0];
  for (int64_t i = begin; i < end; ++i) {
    ((volatile int64_t *)scratch)[0] = i;
    to[i] = to[i] * 3 + size[0] + (((volatile int64_t *)scratch)[0] - i);
  }
}
""",
)
# Reads the whole input for each item, so a step that starts early is seen.
SUM = Function(
    "sum",
    """#include <stdint.h>
void sum(void *const *pointer, const int64_t *size, int64_t begin, int64_t end, char *scratch) {
  const int64_t *from = pointer[0];
  int64_t *to = pointer[1];
  for (int64_t i = begin; i < end; ++i) {
    int64_t total = 0;
    for (int64_t j = 0; j < size[0]; ++j) total += from[j];
    to[i] = total + i;
  }
}
""",
)
ITEMS = 300


def chain(runner: Runner, length: int) -> tuple[Handle, list[np.ndarray]]:
    """Count, then alternate sums between two arrays; every step needs all of the one before."""
    addresses = load([COUNT, SUM])
    arrays = [np.zeros(ITEMS, np.int64) for _ in range(2)]
    places = [array.ctypes.data for array in arrays]
    steps = [Step(addresses["count"], places[:1], [5], ITEMS, 64)]
    for i in range(length):
        pair = [places[i % 2], places[(i + 1) % 2]]
        steps.append(Step(addresses["sum"], pair, [ITEMS], ITEMS, 64, 7))
    return runner.prepare(steps), arrays


def truth(length: int) -> list[int]:
    """The sums of the arrays after each step, in wrapping int64."""
    values = np.full(ITEMS, 5, np.int64)
    for _ in range(length):
        values = values.sum() + np.arange(ITEMS)
    return values.tolist()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_steps_see_all_of_the_step_before(threads):
    runner = Runner(threads)
    handle, arrays = chain(runner, 5)
    for _ in range(200):
        arrays[0][:] = 0
        runner.run(handle)
        assert arrays[1].tolist() == truth(5)


def test_several_threads_run_at_once():
    failures = []

    def work() -> None:
        runner = Runner(2)
        handle, arrays = chain(runner, 5)
        for _ in range(200):
            arrays[0][:] = 0
            runner.run(handle)
            if arrays[1].tolist() != truth(5):
                failures.append(arrays[1].copy())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_child_after_fork_makes_its_own_pool():
    runner = Runner(2)
    handle, arrays = chain(runner, 3)
    runner.run(handle)
    child = os.fork()
    if child == 0:
        arrays[0][:] = 0
        runner.run(handle)
        os._exit(0 if arrays[1].tolist() == truth(3) else 1)
    deadline = time.monotonic() + 20
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if found == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert found == (child, 0)
    arrays[0][:] = 0
    runner.run(handle)
    assert arrays[1].tolist() == truth(3)


def test_steps_without_items_are_passed_over():
    runner = Runner(2)
    address = load([COUNT])["count"]
    target = np.zeros(4, np.int64)
    steps = [Step(address, [target.ctypes.data], [1], items) for items in (0, 4, 0)]
    runner.run(runner.prepare(steps))
    assert target.tolist() == [1, 1, 1, 1]


def test_an_empty_list_of_steps_runs():
    runner = Runner(2)
    runner.run(runner.prepare([]))


def test_pointers_sizes_and_items_can_be_changed_between_runs():
    runner = Runner(2)
    handle, arrays = chain(runner, 0)
    other = np.zeros(10, np.int64)
    handle.pointers[0][0] = other.ctypes.data
    handle.sizes[0][0] = 9
    handle.set_items(0, 10)
    runner.run(handle)
    assert other.tolist() == [9] * 10
    assert not arrays[0].any()


def test_each_step_is_timed():
    runner = Runner(2)
    handle, _ = chain(runner, 4)
    times = np.full(5, -1, np.int64)
    runner.run(handle, times)
    assert (times >= 0).all()
    assert 0 < times.sum() < 10**9
    with pytest.raises(ValueError, match="one element per step"):
        runner.run(handle, times[:2])


def test_workers_wake_after_sleeping():
    runner = Runner(2)
    handle, arrays = chain(runner, 5)
    for _ in range(5):
        time.sleep(0.02)
        arrays[0][:] = 0
        runner.run(handle)
        assert arrays[1].tolist() == truth(5)


def test_the_processors_of_the_process_are_the_default():
    assert default_threads() >= 1
    assert Runner().threads == default_threads()
