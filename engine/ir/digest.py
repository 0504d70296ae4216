"""The digest of a graph with everything that it computes with."""

from __future__ import annotations

import hashlib
import json

from engine.ir.graph import Graph
from engine.ir.text import graph_text
from engine.ir.types import Array

__all__ = ["graph_digest", "structure_digest"]


def graph_digest(graph: Graph) -> str:
    """The digest of a graph, its bodies and their constants; equal for a model exported twice."""
    digest = hashlib.sha256(_structure(graph))
    for owner in _graphs(graph):
        for value in owner.constants():
            if value.constant is not None:
                _digest_array(digest, value.constant)
    return digest.hexdigest()


def structure_digest(graph: Graph) -> str:
    """The digest of a graph and its bodies, whatever the numbers in their constants."""
    return hashlib.sha256(_structure(graph)).hexdigest()


def _graphs(graph: Graph) -> list[Graph]:
    return [graph, *(body for _, node in graph.walk() for body in node.bodies)]


def _structure(graph: Graph) -> bytes:
    rows = [graph_text(graph)]
    for owner in _graphs(graph):
        for node in owner.nodes:  # the text shortens long attributes
            rows.append(json.dumps(node.op.attributes(), sort_keys=True, default=str))
    return "".join(rows).encode()


def _digest_array(digest: hashlib._Hash, array: Array) -> None:
    if array.dtype == object:
        digest.update(json.dumps(array.reshape(-1).tolist()).encode())
        return
    flat = array.reshape(-1).view("u1") if array.size else array.reshape(-1)
    for start in range(0, flat.nbytes, 1 << 26):
        digest.update(flat[start : start + (1 << 26)].tobytes())
