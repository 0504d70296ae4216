"""Gather elementwise operators and row reductions over one space into regions.

Nodes join greedily in order: a node joins the clusters that feed it when their spaces agree and no
path leads out of the joined cluster and back in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.ir.graph import Graph, Node, Value
from engine.ir.infer import infer_node
from engine.ir.sizes import Dim
from engine.ops.expression import Expression, load, order
from engine.ops.region import Load, Region, Store
from engine.ops.widen import widen
from engine.passes.rows import RowForm, Shape, row_form

__all__ = ["make_regions"]

MOST_LOADS = 12
MOST_OUTPUTS = 6
MOST_NODES = 160


@dataclass(slots=True, eq=False)
class _Cluster:
    """Nodes that will be one region."""

    space: Shape
    nodes: list[Node] = field(default_factory=list)
    forms: dict[int, RowForm] = field(default_factory=dict)


def make_regions(graph: Graph) -> bool:
    """Replace every cluster, single nodes included, by a region."""
    position = {id(node): index for index, node in enumerate(graph.nodes)}
    owner: dict[int, _Cluster] = {}
    clusters: list[_Cluster] = []
    for node in graph.nodes:
        form = row_form(node)
        if form is None or not form.space:
            continue
        cluster = _Cluster(form.space, [node], {id(node): form})
        owner[id(node)] = cluster
        clusters.append(cluster)
        for other in _feeding(node, owner, cluster):
            joined = _joined(other, cluster, position, owner)
            if joined is not None:
                clusters.remove(other)
                clusters.remove(cluster)
                clusters.append(joined)
                for item in joined.nodes:
                    owner[id(item)] = joined
                cluster = joined
    for cluster in clusters:
        _replace(graph, cluster)
    graph.sort()
    return bool(clusters)


def _feeding(node: Node, owner: dict[int, _Cluster], own: _Cluster) -> list[_Cluster]:
    found = []
    for value in node.inputs:
        if value is not None and value.producer is not None:
            cluster = owner.get(id(value.producer))
            if cluster is not None and cluster is not own and cluster not in found:
                found.append(cluster)
    return found


def _joined(
    first: _Cluster, second: _Cluster, position: dict[int, int], owner: dict[int, _Cluster]
) -> _Cluster | None:
    """The two clusters as one, if their spaces agree and nothing outside lies between them."""
    space = _common_space(first, second)
    if space is None or len(first.nodes) + len(second.nodes) > MOST_NODES:
        return None
    nodes = sorted(first.nodes + second.nodes, key=lambda node: position[id(node)])
    joined = _Cluster(space, nodes, {**first.forms, **second.forms})
    if any(form.reduces and form.space != space for form in joined.forms.values()):
        return None  # a sum over a row of one element is none over a longer row
    if not (isinstance(space[-1], int) and space[-1] > 0) and _leaves_unsummed(joined):
        return None
    for item in nodes:
        joined.forms[id(item)] = _over(joined.forms[id(item)], space)
    if len(_inputs(joined)) > MOST_LOADS or _leaves_and_returns(joined, position, owner):
        return None
    return joined


def _leaves_unsummed(cluster: _Cluster) -> bool:
    """Whether others read a value per row that no reduction gives: empty rows never write it."""
    inside = {id(node) for node in cluster.nodes}
    summed: set[int] = set()
    for node in cluster.nodes:
        form = cluster.forms[id(node)]
        (output,) = node.outputs[:1]
        if form.reduces or any(id(value) in summed for value in node.inputs):
            summed.add(id(output))
        elif form.per_row or form.space != cluster.space:
            leaves = any(id(user) not in inside for user, _ in output.uses)
            if leaves or (node.graph is not None and node.graph.is_output(output)):
                return True
    return False


def _over(form: RowForm, space: Shape) -> RowForm:
    """A form whose own space has one value per row of the cluster's is computed per row."""
    if form.space == space:
        return form
    return RowForm(space, form.build, per_row=True, reads=form.reads)


def _common_space(first: _Cluster, second: _Cluster) -> Shape | None:
    a, b = first.space, second.space
    if a == b:
        return a
    if len(a) == len(b) and a[:-1] == b[:-1]:
        if b[-1] == 1:
            return a
        if a[-1] == 1:
            return b
    return None


def _inputs(cluster: _Cluster) -> list[Value]:
    """What the cluster reads from outside, in order of first use."""
    inside = {id(value) for node in cluster.nodes for value in node.outputs}
    values = (
        value for node in cluster.nodes for value in _read(cluster, node) if value is not None
    )
    return [v for v in dict.fromkeys(values) if id(v) not in inside]


def _read(cluster: _Cluster, node: Node) -> list[Value | None]:
    """The inputs of a node that its form reads."""
    return node.inputs[: cluster.forms[id(node)].reads]


def _leaves_and_returns(
    cluster: _Cluster, position: dict[int, int], owner: dict[int, _Cluster]
) -> bool:
    """Whether an input of the cluster depends on it (other clusters count as one node)."""
    inside = {id(node) for node in cluster.nodes}
    first = min(position[id(node)] for node in cluster.nodes)
    stack = [v.producer for v in _inputs(cluster) if v.producer is not None]
    seen: set[int] = set()
    while stack:
        node = stack.pop()
        if id(node) in inside:
            return True
        if id(node) in seen:
            continue
        group = owner.get(id(node))
        members = [node] if group is None or id(group.nodes[0]) in inside else group.nodes
        if max(position[id(item)] for item in members) < first:
            continue
        for item in members:
            seen.add(id(item))
            stack += [v.producer for v in item.inputs if v is not None and v.producer is not None]
    return False


def _strides(shape: Shape, space: Shape) -> tuple[Dim, ...] | None:
    """Element strides with which a tensor of a shape broadcasts over a space."""
    if len(shape) > len(space):
        return None
    full = (1,) * (len(space) - len(shape)) + shape
    strides: list[Dim] = []
    step: Dim = 1
    for size, whole in zip(reversed(full), reversed(space)):
        if size != 1 and size != whole:
            return None
        strides.append(0 if size == 1 else step)
        step = step * size
    return tuple(reversed(strides))


def _replace(graph: Graph, cluster: _Cluster) -> None:
    """One region node in the place of the cluster; a cluster that does not fit one stays."""
    inputs = _inputs(cluster)
    expressions: dict[int, Expression] = {}
    loads: list[Load] = []
    for index, value in enumerate(inputs):
        kind = value.tensor
        strides = _strides(kind.dims, cluster.space)
        if strides is None:
            return
        expressions[id(value)] = load(index, kind.dtype)
        loads.append(Load(index, kind.dtype, 0, strides))
    for node in cluster.nodes:
        operands = [None if v is None else expressions[id(v)] for v in _read(cluster, node)]
        expressions[id(node.outputs[0])] = cluster.forms[id(node)].build(operands)
    inside = {id(node) for node in cluster.nodes}
    leaving = [
        node.outputs[0]
        for node in cluster.nodes
        if graph.is_output(node.outputs[0])
        or any(id(user) not in inside for user, _ in node.outputs[0].uses)
    ]
    stores = _stores(cluster, leaving, expressions)
    if stores is None or len(leaving) > MOST_OUTPUTS:
        return
    used = {int(n.value or 0) for s in stores for n in order(s.value) if n.function == "load"}
    if len(used) != len(inputs):
        return  # an input that no result needs: dead code is for another pass
    shapes = tuple(value.tensor.dims for value in inputs)
    region = Region(cluster.space, tuple(loads), tuple(stores), shapes)
    _insert(graph, cluster, region, inputs, leaving)


def _stores(
    cluster: _Cluster, leaving: Sequence[Value], expressions: dict[int, Expression]
) -> list[Store] | None:
    stores = []
    for index, value in enumerate(leaving):
        shape = value.tensor.dims
        full = shape if len(shape) == len(cluster.space) else (*shape, 1)
        strides = _strides(full, cluster.space)
        expression = widen(expressions[id(value)])
        if strides is None or expression.dtype is not value.tensor.dtype:
            return None
        stores.append(Store(expression, index, shape, 0, strides))
    return stores


def _insert(
    graph: Graph, cluster: _Cluster, region: Region, inputs: list[Value], leaving: list[Value]
) -> None:
    sources = dict.fromkeys(source for node in cluster.nodes for source in node.sources)
    results = [graph.value(value.name, value.type) for value in leaving]
    last = cluster.nodes[-1]
    node = Node(region, inputs, results, name=graph.fresh_name(last.name), sources=tuple(sources))
    graph.insert_after(last, node)
    infer_node(graph, node)
    for old, new in zip(leaving, results):
        new.type = old.type
        graph.replace_value(old, new)
    for item in reversed(cluster.nodes):
        graph.remove(item)
    if len(cluster.nodes) > 1:
        kinds = " + ".join(dict.fromkeys(item.kind for item in cluster.nodes))
        graph.decide(f"{kinds} => region", tuple(sources), True)
