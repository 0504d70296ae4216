"""The graph: nodes and values that know their uses, safe to edit while it is walked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from engine.ir.types import Array, Operand, TensorType, Type
from engine.ops.operator import Operator

__all__ = ["Graph", "Node", "Value"]


class Value:
    """A tensor, sequence, optional or map that flows along an edge.

    ``constant`` is the array of an initializer or a folded result. ``content`` holds the elements
    of a small integer tensor as sizes when they follow from shapes. ``origin`` is the name of the
    initializer in the model's file, kept for weight recipes.
    """

    __slots__ = ("constant", "content", "name", "origin", "producer", "type", "uses")

    def __init__(
        self,
        name: str,
        type: Type,
        *,
        constant: Array | None = None,
        origin: str | None = None,
    ) -> None:
        self.name = name
        self.type = type
        self.constant = constant
        self.content: Array | None = None
        self.origin = origin
        self.producer: Node | None = None
        self.uses: list[tuple[Node, int]] = []

    @property
    def tensor(self) -> TensorType:
        """The type, for a value that must be a tensor; ValueError otherwise."""
        if not isinstance(self.type, TensorType):
            raise ValueError(f"value {self.name!r} is {self.type}, expected a tensor")
        return self.type

    @property
    def users(self) -> list[Node]:
        """The nodes that read this value, each once, in order of first use."""
        return list(dict.fromkeys(node for node, _ in self.uses))

    def operand(self) -> Operand:
        """What a shape rule may know of this value."""
        return Operand(self.type, self.constant, self.content)

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


class Node:
    """One application of an operator; ``sources`` names the model's nodes it stands for."""

    __slots__ = ("bodies", "graph", "inputs", "name", "op", "outputs", "sources")

    def __init__(
        self,
        op: Operator,
        inputs: Sequence[Value | None],
        outputs: Sequence[Value],
        *,
        name: str = "",
        sources: Sequence[str] = (),
        bodies: Sequence[Graph] = (),
    ) -> None:
        self.op = op
        self.name = name
        self.sources: tuple[str, ...] = tuple(sources) or ((name,) if name else ())
        self.inputs: list[Value | None] = []
        self.outputs = list(outputs)
        self.bodies = list(bodies)
        self.graph: Graph | None = None
        for value in inputs:
            self.add_input(value)
        for value in self.outputs:
            value.producer = self

    def add_input(self, value: Value | None) -> None:
        """Append an input."""
        if value is not None:
            value.uses.append((self, len(self.inputs)))
        self.inputs.append(value)

    def set_input(self, index: int, value: Value | None) -> None:
        """Replace one input."""
        old = self.inputs[index]
        if old is not None:
            old.uses.remove((self, index))
        self.inputs[index] = value
        if value is not None:
            value.uses.append((self, index))

    def detach(self) -> None:
        """Forget all inputs, so that the values no longer count this node as a user."""
        for index, value in enumerate(self.inputs):
            if value is not None:
                value.uses.remove((self, index))
        self.inputs = []

    @property
    def kind(self) -> str:
        """The operator's name."""
        return self.op.name

    @property
    def only_first_read(self) -> bool:
        """Whether nobody reads any output but the first."""
        return not any(
            value.uses or (self.graph is not None and self.graph.is_output(value))
            for value in self.outputs[1:]
        )

    def __repr__(self) -> str:
        return f"{', '.join(map(repr, self.outputs))} = {self.op}({self.name})"


class Graph:
    """Nodes in an order in which they can run, with named inputs and outputs."""

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.nodes: list[Node] = []
        #: Decisions taken while reading and rewriting, for reports: (rule, nodes, made, reason).
        self.decisions: list[Decision] = []
        #: The names that callers know the outputs by, as the model gives them.
        self.output_names: list[str] = []
        self._names: set[str] = set()
        self._counter = 0

    def fresh_name(self, hint: str) -> str:
        """A value or node name that is not yet used in this graph."""
        name = hint
        base, _, last = hint.rpartition(".")
        base = base if base and last.isdigit() else hint  # else numbers would pile up
        while name in self._names or not name:
            self._counter += 1
            name = f"{base}.{self._counter}"
        self._names.add(name)
        return name

    def value(self, hint: str, type: Type, **details: object) -> Value:
        """A new value with a name of its own."""
        return Value(self.fresh_name(hint), type, **details)  # type: ignore[arg-type]

    def constant(self, hint: str, array: Array, *, origin: str | None = None) -> Value:
        """A new constant."""
        from engine.ir.types import DType

        kind = TensorType(DType.of(array.dtype), tuple(int(d) for d in array.shape))
        return Value(self.fresh_name(hint), kind, constant=array, origin=origin)

    def append(self, node: Node) -> Node:
        """Add a node at the end."""
        node.graph = self
        self.nodes.append(node)
        return node

    def insert_before(self, anchor: Node, node: Node) -> Node:
        """Add a node just before another one."""
        node.graph = self
        self.nodes.insert(self.nodes.index(anchor), node)
        return node

    def insert_after(self, anchor: Node, node: Node) -> Node:
        """Add a node just after another one."""
        node.graph = self
        self.nodes.insert(self.nodes.index(anchor) + 1, node)
        return node

    def remove(self, node: Node) -> None:
        """Take a node out; its outputs must no longer be used."""
        for value in node.outputs:
            if value.uses or value in self.outputs:
                raise ValueError(f"node {node.name!r} still feeds %{value.name}")
        node.detach()
        node.graph = None
        self.nodes.remove(node)

    def replace_value(self, old: Value, new: Value) -> None:
        """Let every user of one value, the graph's outputs included, read another one."""
        for node, index in list(old.uses):
            node.set_input(index, new)
        self.outputs = [new if value is old else value for value in self.outputs]

    def is_output(self, value: Value) -> bool:
        """Whether a value leaves the graph."""
        return any(value is output for output in self.outputs)

    def values(self) -> Iterator[Value]:
        """Every value once: inputs, constants in order of first use, then results."""
        seen: set[int] = set()
        for value in self._all_values():
            if id(value) not in seen:
                seen.add(id(value))
                yield value

    def _all_values(self) -> Iterator[Value]:
        yield from self.inputs
        for node in self.nodes:
            yield from (value for value in node.inputs if value is not None)
            yield from node.outputs
        yield from self.outputs

    def constants(self) -> list[Value]:
        """All constants in use, in order of first use."""
        return [value for value in self.values() if value.constant is not None]

    def sort(self) -> None:
        """Put the nodes in an order in which they can run, keeping the present one where legal.

        Raises ValueError naming a node on a cycle.
        """
        mine = {id(node) for node in self.nodes}
        done: set[int] = set()
        ordered: list[Node] = []
        for root in self.nodes:
            stack: list[tuple[Node, Iterator[Node]]] = []
            open_nodes: set[int] = set()
            if id(root) not in done:
                stack.append((root, self._producers(root, mine)))
                open_nodes.add(id(root))
            while stack:
                node, pending = stack[-1]
                below = next(pending, None)
                if below is None:
                    stack.pop()
                    open_nodes.discard(id(node))
                    done.add(id(node))
                    ordered.append(node)
                elif id(below) in open_nodes:
                    raise ValueError(f"node {below.name!r} depends on its own output")
                elif id(below) not in done:
                    stack.append((below, self._producers(below, mine)))
                    open_nodes.add(id(below))
        self.nodes = ordered

    @staticmethod
    def _producers(node: Node, mine: set[int]) -> Iterator[Node]:
        return iter(
            [
                value.producer
                for value in node.inputs
                if value is not None and value.producer is not None and id(value.producer) in mine
            ]
        )

    def walk(self) -> Iterator[tuple[Graph, Node]]:
        """Every node of this graph and of the bodies below it, with the graph that holds it."""
        for node in list(self.nodes):
            yield self, node
            for body in node.bodies:
                yield from body.walk()

    def decide(self, rule: str, nodes: Iterable[str], made: bool, reason: str = "") -> None:
        """Record a rewrite that was made, or refused with its reason."""
        self.decisions.append(Decision(rule, tuple(nodes), made, reason))

    def each(self, kind: str) -> list[Node]:
        """All nodes of one operator."""
        return [node for node in self.nodes if node.kind == kind]


class Decision:
    """A rewrite made or refused: which rule, on which of the model's nodes, and why."""

    __slots__ = ("made", "nodes", "reason", "rule")

    def __init__(self, rule: str, nodes: tuple[str, ...], made: bool, reason: str) -> None:
        self.rule, self.nodes, self.made, self.reason = rule, nodes, made, reason

    def to_json(self) -> dict[str, object]:
        """The decision as JSON."""
        return {
            "rule": self.rule,
            "nodes": list(self.nodes),
            "made": self.made,
            "reason": self.reason,
        }


Pass = Callable[[Graph], bool]
