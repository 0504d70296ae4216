"""A graph as text: one line per node, equal text for equal graphs."""

from __future__ import annotations

from engine.ir.graph import Graph, Node, Value

__all__ = ["graph_text"]


def graph_text(graph: Graph, *, indent: str = "") -> str:
    """The graph, readable aloud: inputs, nodes in order, outputs."""
    lines = [f"{indent}graph {graph.name}("]
    lines += [f"{indent}    {value!r}" for value in graph.inputs]
    lines.append(f"{indent}) {{")
    for node in graph.nodes:
        lines.append(f"{indent}  {_line(node)}")
        for body in node.bodies:
            lines.append(graph_text(body, indent=indent + "    "))
    lines.append(f"{indent}  return {', '.join('%' + value.name for value in graph.outputs)}")
    lines.append(f"{indent}}}")
    return "\n".join(lines)


def _line(node: Node) -> str:
    results = ", ".join(repr(value) for value in node.outputs)
    inputs = ", ".join(_argument(value) for value in node.inputs)
    domain = f"{node.op.domain}." if node.op.domain else ""
    return f"{results} = {domain}{node.op}({inputs})"


def _argument(value: Value | None) -> str:
    if value is None:
        return "-"
    if value.constant is None:
        return f"%{value.name}"
    if value.constant.size <= 4:
        return f"{value.type}{value.constant.reshape(-1).tolist()}"
    return f"const %{value.name}: {value.type}"
