"""A module of the user's adds an operator, a fusion and a tactic without touching the engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PLUGIN = '''
from dataclasses import dataclass

import numpy as np

from engine.fusions import Match, fusion
from engine.ops import Operator, register
from engine.tactics import Candidate
from engine.tactics import register as register_tactic


@register("Triple", domain="user", since=1)
@dataclass(frozen=True, slots=True)
class Triple(Operator):
    """Three times its input."""

    def infer(self, x, /):
        return [x.type]

    def meaning(self, x, /):
        return np.asarray(x * 3, x.dtype)


@fusion("abs(abs(x)) => abs(x)", "Abs")
def absolute_twice(graph, node):
    above = node.inputs[0].producer
    if above is None or above.kind != "Abs":
        return None
    return Match(node.op, above.inputs, node.outputs[0], [above, node])


class Rival:
    name = "plugin.triple"
    kinds = ("Triple",)

    def offers(self, node, point, target):
        return [Candidate(self.name, {}, lambda b, n, layer: b.meaning(n, layer))]


register_tactic(Rival())
'''

SCRIPT = """
import json, numpy as np, onnx, engine
from onnx import helper as h
nodes = [h.make_node("Triple", ["x"], ["a"], domain="user"),
         h.make_node("Abs", ["a"], ["b"]), h.make_node("Abs", ["b"], ["y"])]
value = lambda name: h.make_tensor_value_info(name, 1, [2])
graph = h.make_graph(nodes, "g", [value("x")], [value("y")])
model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21), h.make_opsetid("user", 1)])
plan = engine.build(model, level=0, tactics=("plugin", "numpy"))
y = engine.load(plan)({"x": np.array([-1, 2], np.float32)})["y"]
rules = [d["rule"] for d in plan.decisions if d["made"]]
print(json.dumps([y.tolist(), [layer.tactic for layer in plan.program.layers], rules]))
"""


def run(folder: Path, plugin: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "ENGINEFARM_PLUGINS": plugin,
        "PYTHONPATH": os.pathsep.join([str(folder), root]),
    }
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )


def test_a_plugin_registers_what_it_likes(tmp_path: Path) -> None:
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    done = run(tmp_path, "my_plugin")
    assert done.returncode == 0, done.stderr
    result, tactics, rules = json.loads(done.stdout)
    assert result == [3.0, 6.0]
    assert "plugin.triple" in tactics
    assert "abs(abs(x)) => abs(x)" in rules


def test_a_plugin_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "no_such_plugin")
    assert done.returncode != 0
    assert "the plugin 'no_such_plugin' cannot be imported" in done.stderr
