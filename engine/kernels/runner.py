"""Running prepared steps in C on a process-wide thread pool, with no Python in between.

Threads share the items of a step through an atomic counter; a step begins when all items of the
one before are done, so a worker that sleeps or arrives late holds nobody up. Workers spin for some
tens of microseconds after a run, then sleep. When one thread is inside `ef_run`, later callers run
their steps alone, so there are never two pools. After a fork the child makes its pool anew.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.kernels.kernel import Array
from engine.runtime.compilation import Function, load

__all__ = ["Handle", "Runner", "Step", "default_threads"]

_SOURCE = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef void kernel(void *const *, const int64_t *, int64_t, int64_t, char *);
typedef struct {
  kernel *function;
  void *const *pointer;
  const int64_t *size;
  int64_t items, grain;
  _Atomic int64_t finished;
  int64_t unused[2];
  _Atomic int64_t next;
  char apart[56];
  _Atomic int64_t done;
  char apart_again[56];
} step;
typedef struct {
  step *steps;
  int64_t count;
  char *scratch;
  int64_t scratch_stride, threads;
  int64_t *nanoseconds;
} job;

enum { MOST_WORKERS = 255, SPINS_BEFORE_SLEEP = 1500, SPINS_BEFORE_YIELD = 1500 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static _Atomic int64_t generation, active;
static atomic_flag busy = ATOMIC_FLAG_INIT;
static const job *current;
static int64_t workers, sleepers;
static pthread_t worker[MOST_WORKERS];
static int hooked;

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Whoever ends a step notes the time: the caller itself may be off its processor just then. */
static void take_part(const job *j, int64_t index) {
  char *scratch = j->scratch + index * j->scratch_stride;
  for (int64_t s = 0; s < j->count; ++s) {
    step *p = j->steps + s;
    for (;;) {
      int64_t begin = atomic_fetch_add_explicit(&p->next, p->grain, memory_order_relaxed);
      if (begin >= p->items) break;
      int64_t end = begin + p->grain < p->items ? begin + p->grain : p->items;
      p->function(p->pointer, p->size, begin, end, scratch);
      if (j->nanoseconds) {
        const int64_t time = now();
        if (time > atomic_load_explicit(&p->finished, memory_order_relaxed))
          atomic_store_explicit(&p->finished, time, memory_order_relaxed);
      }
      atomic_fetch_add_explicit(&p->done, end - begin, memory_order_release);
    }
    for (int64_t spins = 0; atomic_load_explicit(&p->done, memory_order_acquire) < p->items;) {
      if (++spins < SPINS_BEFORE_YIELD) pause_briefly();
      else sched_yield();
    }
  }
}

static void report_times(const job *j, int64_t before) {
  for (int64_t s = 0; s < j->count; ++s) {
    const int64_t after = j->steps[s].finished;
    j->nanoseconds[s] = after > before ? after - before : 0;
    if (after > before) before = after;
  }
}

static void *work(void *argument) {
  int64_t index = (int64_t)(intptr_t)argument, seen = 0;
  for (;;) {
    for (int64_t spins = 0; spins < SPINS_BEFORE_SLEEP; ++spins) {
      if (atomic_load_explicit(&generation, memory_order_acquire) != seen) break;
      pause_briefly();
    }
    pthread_mutex_lock(&mutex);
    while (atomic_load(&generation) == seen) {
      ++sleepers;
      pthread_cond_wait(&wake, &mutex);
      --sleepers;
    }
    seen = atomic_load(&generation);
    const job *j = current;
    if (j && index < j->threads) atomic_fetch_add(&active, 1);
    else j = 0;
    pthread_mutex_unlock(&mutex);
    if (j) {
      take_part(j, index);
      atomic_fetch_sub_explicit(&active, 1, memory_order_release);
    }
  }
  return 0;
}

static void start_anew(void) {
  pthread_mutex_init(&mutex, 0);
  pthread_cond_init(&wake, 0);
  atomic_store(&generation, 0);
  atomic_store(&active, 0);
  atomic_flag_clear(&busy);
  current = 0;
  workers = sleepers = 0;
}

static void add_workers(int64_t wanted) {
  if (!hooked) {
    pthread_atfork(0, 0, start_anew);
    hooked = 1;
  }
  while (workers < wanted && workers < MOST_WORKERS) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    void *index = (void *)(intptr_t)(workers + 1);
    const int failed = pthread_create(&worker[workers], &attributes, work, index);
    pthread_attr_destroy(&attributes);
    if (failed) return;
    ++workers;
  }
}

/* A sleeper that wakes on the caller's processor would wait there for the caller's time slice to
   end while another processor idles: let workers run wherever the caller may, but not beside it. */
static void keep_apart(void) {
#ifdef __linux__
  static int last = -1;
  cpu_set_t allowed;
  const int here = sched_getcpu();
  if (here < 0 || (here == last && !sleepers)) return;
  if (pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed)) return;
  if (here < CPU_SETSIZE && CPU_COUNT(&allowed) > 1) CPU_CLR(here, &allowed);
  for (int64_t i = 0; i < workers; ++i) pthread_setaffinity_np(worker[i], sizeof allowed, &allowed);
  last = here;
#endif
}

void ef_run(step *steps, int64_t count, char *scratch, int64_t scratch_stride, int64_t threads,
            int64_t *nanoseconds) {
  job j = {steps, count, scratch, scratch_stride, threads, nanoseconds};
  for (int64_t s = 0; s < count; ++s) {
    atomic_store_explicit(&steps[s].next, 0, memory_order_relaxed);
    atomic_store_explicit(&steps[s].done, 0, memory_order_relaxed);
    atomic_store_explicit(&steps[s].finished, 0, memory_order_relaxed);
  }
  const int64_t start = nanoseconds ? now() : 0;
  if (threads < 2 || atomic_flag_test_and_set(&busy)) {
    take_part(&j, 0);
    if (nanoseconds) report_times(&j, start);
    return;
  }
  pthread_mutex_lock(&mutex);
  add_workers(threads - 1);
  keep_apart();
  current = &j;
  atomic_fetch_add_explicit(&generation, 1, memory_order_release);
  if (sleepers) pthread_cond_broadcast(&wake);
  pthread_mutex_unlock(&mutex);
  take_part(&j, 0);
  pthread_mutex_lock(&mutex);
  current = 0;
  pthread_mutex_unlock(&mutex);
  while (atomic_load_explicit(&active, memory_order_acquire)) pause_briefly();
  atomic_flag_clear(&busy);
  if (nanoseconds) report_times(&j, start);
}

int64_t ef_workers(void) { return workers; }
"""

_ALIGNMENT = 64


class _StepRecord(ctypes.Structure):
    """The C struct `step`."""

    _fields_ = [
        ("function", ctypes.c_void_p),
        ("pointer", ctypes.c_void_p),
        ("size", ctypes.c_void_p),
        ("items", ctypes.c_int64),
        ("grain", ctypes.c_int64),
        ("finished", ctypes.c_int64),
        ("unused", ctypes.c_int64 * 2),
        ("next", ctypes.c_int64),
        ("apart", ctypes.c_char * 56),
        ("done", ctypes.c_int64),
        ("apart_again", ctypes.c_char * 56),
    ]


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a compiled kernel: addresses, sizes, items, scratch bytes per thread, grain.

    ``grain`` is how many items a thread takes at a time; 0 lets the runner choose.
    """

    function: int
    pointers: Sequence[int]
    sizes: Sequence[int]
    items: int
    scratch: int = 0
    grain: int = 0


def default_threads() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


class Handle:
    """Steps ready to run: their pointers and sizes live in arrays that may be patched between runs.

    ``pointers[i]`` (uint64) and ``sizes[i]`` (int64) are the arrays of step ``i``. A handle is
    used by one thread at a time.
    """

    def __init__(self, steps: Sequence[Step], threads: int) -> None:
        self.count = len(steps)
        self.threads = threads
        self.pointers = [np.array(step.pointers, np.uint64) for step in steps]
        self.sizes = [np.array(step.sizes, np.int64) for step in steps]
        largest = max((step.scratch for step in steps), default=0)
        self.scratch_stride = -(-largest // _ALIGNMENT) * _ALIGNMENT
        self._scratch = np.empty(self.scratch_stride * threads + _ALIGNMENT, np.uint8)
        self._records = (_StepRecord * max(1, self.count))()
        for index, step in enumerate(steps):
            record = self._records[index]
            record.function = step.function
            record.pointer = self.pointers[index].ctypes.data
            record.size = self.sizes[index].ctypes.data
            self.set_items(index, step.items, step.grain)

    def set_items(self, index: int, items: int, grain: int = 0) -> None:
        """Change how many work items step ``index`` has."""
        record = self._records[index]
        record.items = items
        record.grain = grain or max(1, items // (self.threads * 8) if self.threads > 1 else items)

    @property
    def scratch(self) -> int:
        """Address of the scratch memory of the first thread."""
        return -(-int(self._scratch.ctypes.data) // _ALIGNMENT) * _ALIGNMENT


class Runner:
    """Runs handles with a number of threads (all processors when None). Needs a C compiler."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or default_threads()
        self._run = _run_function()

    def prepare(self, steps: Sequence[Step]) -> Handle:
        """Lay out steps for `run`."""
        return Handle(steps, self.threads)

    def run(self, handle: Handle, nanoseconds: Array | None = None) -> None:
        """Run all steps; fills ``nanoseconds`` (int64, one per step) when given. Holds no GIL."""
        times = None
        if nanoseconds is not None:
            if nanoseconds.dtype != np.int64 or nanoseconds.size < handle.count:
                raise ValueError("nanoseconds must be int64, one element per step")
            times = nanoseconds.ctypes.data
        self._run(
            handle._records,
            handle.count,
            handle.scratch,
            handle.scratch_stride,
            handle.threads,
            times,
        )


_LOCK = threading.Lock()
_RUN: list[Any] = []


def _run_function() -> Any:
    """The C function `ef_run`, one for the whole process, because the pool lives in its file."""
    with _LOCK:
        if not _RUN:
            address = load([Function("ef_run", _SOURCE)])["ef_run"]
            kinds = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64]
            run = ctypes.CFUNCTYPE(None, *kinds, ctypes.c_int64, ctypes.c_void_p)(address)
            _RUN.append(run)
        return _RUN[0]
