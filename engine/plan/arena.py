"""One block of memory for all intermediate values: lifetimes in, offsets out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ALIGNMENT", "Arena", "Request", "plan_arena"]

ALIGNMENT = 256
#: Orders tried beyond the first few, and how many requests that search may place in all.
MAX_TRIALS = 400
MAX_PLACEMENTS = 40_000


@dataclass(frozen=True, slots=True)
class Request:
    """Memory that something needs from step ``first`` to step ``last``, both included."""

    id: int
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Arena:
    """Offsets by request id, the bytes in all, and the bytes that no plan could go below."""

    offsets: Mapping[int, int]
    nbytes: int
    lower_bound: int


def plan_arena(requests: Sequence[Request]) -> Arena:
    """Place requests so that those alive at the same time never overlap.

    Best-fit in several orders (greatest first, greatest lifetime area first, earliest first, ...;
    Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020), then a
    bounded search that moves what reaches the top to the front of the order. Offsets are multiples
    of 256; the same requests always give the same plan. ValueError for a request that ends before
    it begins, a negative size, or an id used twice.
    """
    _check(requests)
    sizes = [-(-request.nbytes // ALIGNMENT) * ALIGNMENT for request in requests]
    bound = _lower_bound(requests, sizes)
    problem = _Problem(requests, sizes, _neighbours(requests, sizes))
    offsets, nbytes = _search(problem, bound)
    return Arena({r.id: offset for r, offset in zip(requests, offsets, strict=True)}, nbytes, bound)


@dataclass(frozen=True, slots=True)
class _Problem:
    requests: Sequence[Request]
    sizes: Sequence[int]
    neighbours: Sequence[Sequence[int]]


def _check(requests: Sequence[Request]) -> None:
    if len({request.id for request in requests}) != len(requests):
        raise ValueError("two memory requests have the same id")
    for request in requests:
        if request.nbytes < 0 or request.last < request.first:
            raise ValueError(f"{request} has a negative size or ends before it begins")


def _lower_bound(requests: Sequence[Request], sizes: Sequence[int]) -> int:
    """The most bytes alive at any one step."""
    change: dict[int, int] = {}
    for request, size in zip(requests, sizes, strict=True):
        change[request.first] = change.get(request.first, 0) + size
        change[request.last + 1] = change.get(request.last + 1, 0) - size
    alive = most = 0
    for step in sorted(change):
        alive += change[step]
        most = max(most, alive)
    return most


def _neighbours(requests: Sequence[Request], sizes: Sequence[int]) -> list[list[int]]:
    """For each request those alive at the same time; empty ones need no place."""
    found: list[list[int]] = [[] for _ in requests]
    order = sorted(
        (i for i, size in enumerate(sizes) if size), key=lambda i: (requests[i].first, i)
    )
    alive: list[int] = []
    for index in order:
        alive = [other for other in alive if requests[other].last >= requests[index].first]
        for other in alive:
            found[index].append(other)
            found[other].append(index)
        alive.append(index)
    return found


def _search(problem: _Problem, bound: int) -> tuple[list[int], int]:
    best_offsets, best, best_order = [0] * len(problem.sizes), -1, list[int]()
    for key in _orders(problem):
        order = sorted(range(len(problem.sizes)), key=key)
        offsets, nbytes = _place(problem, order)
        if best < 0 or nbytes < best:
            best_offsets, best, best_order = offsets, nbytes, order
        if best == bound:
            return best_offsets, best
    trials = min(MAX_TRIALS, MAX_PLACEMENTS // max(len(problem.sizes), 1))
    order, seen = best_order, {tuple(best_order)}
    offsets, nbytes = best_offsets, best
    for _ in range(trials):
        order = _moved(problem, order, offsets, nbytes, seen)
        if not order:
            break
        offsets, nbytes = _place(problem, order)
        if nbytes < best:
            best_offsets, best = offsets, nbytes
        if best == bound:
            break
    return best_offsets, max(best, 0)


def _orders(problem: _Problem) -> list[Callable[[int], tuple[int, ...]]]:
    requests, sizes = problem.requests, problem.sizes

    def length(i: int) -> int:
        return requests[i].last - requests[i].first + 1

    return [
        lambda i: (-sizes[i], requests[i].first, i),
        lambda i: (-sizes[i] * length(i), requests[i].first, i),
        lambda i: (requests[i].first, -sizes[i], i),
        lambda i: (-length(i), -sizes[i], i),
        lambda i: (-sum(sizes[j] for j in problem.neighbours[i]) - sizes[i], -sizes[i], i),
        lambda i: (-requests[i].last, -sizes[i], i),
    ]


def _place(problem: _Problem, order: Sequence[int]) -> tuple[list[int], int]:
    """Each request in turn into the smallest hole between its neighbours that holds it."""
    sizes, neighbours = problem.sizes, problem.neighbours
    offsets = [-1] * len(sizes)
    top = 0
    for index in order:
        size = sizes[index]
        taken = sorted(
            (offsets[j], offsets[j] + sizes[j]) for j in neighbours[index] if offsets[j] >= 0
        )
        end, place, hole = 0, -1, 0
        for begin, stop in taken:
            free = begin - end
            if free >= size and (place < 0 or free < hole):
                place, hole = end, free
            end = max(end, stop)
        offsets[index] = end if place < 0 else place
        top = max(top, offsets[index] + size)
    return offsets, top


def _moved(
    problem: _Problem, order: list[int], offsets: list[int], nbytes: int, seen: set[tuple[int, ...]]
) -> list[int]:
    """An order not tried yet, with what reaches the top (or its neighbours) placed earlier."""
    tops = [i for i in order if problem.sizes[i] and offsets[i] + problem.sizes[i] == nbytes]
    for index in tops:
        position = order.index(index)
        for target in (0, position // 2, max(position - 1, 0)):
            changed = [*order[:target], index, *order[target:position], *order[position + 1 :]]
            if tuple(changed) not in seen:
                seen.add(tuple(changed))
                return changed
    for index in (j for i in tops for j in problem.neighbours[i]):
        changed = [index] + [other for other in order if other != index]
        if tuple(changed) not in seen:
            seen.add(tuple(changed))
            return changed
    return []
