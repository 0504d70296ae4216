"""Every registered operator gives the answers of onnx's backend suite.

One operator alone: ``pytest tests/engine/ops/test_conformance.py -k Softmax``. A failure
lists every case of the operator that failed, with the last place in our own code.
"""

from __future__ import annotations

import traceback
import warnings
from typing import Any

import numpy as np
import pytest

from engine.ir.types import TensorType
from engine.ops import Operator, known
from tests.engine.ops.conformance import Case, cases, check


def failure(case: Case) -> str | None:
    """What is wrong with a case, or None."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            check(case)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/engine/" in f.filename]
        text = " ".join(str(error).split())[:300]
        place = f"{ours[-1].filename.rsplit('/', 1)[-1]}:{ours[-1].lineno}"
        return f"{case.name} ({place}): {type(error).__name__}: {text}"
    return None


TESTED = [key for key in known() if key in cases()]


@pytest.mark.parametrize("key", TESTED, ids=lambda key: ".".join(filter(None, key)))
def test_an_operator_passes_all_its_cases(key: tuple[str, str]) -> None:
    chosen = cases()[key]
    failures = [text for text in map(failure, chosen) if text]
    assert not failures, f"{len(failures)} of {len(chosen)} cases:\n  " + "\n  ".join(failures)


def test_a_wrong_meaning_and_a_wrong_shape_rule_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = cases()["", "Concat"][0]
    cls = type(case.operator())
    assert failure(case) is None
    with monkeypatch.context() as patch:
        patch.setattr(cls, "meaning", lambda self, *inputs: np.concatenate(inputs)[:1])
        assert failure(case) is not None
    rule = cls.infer

    def transposed(self: Operator, *operands: Any) -> Any:
        (kind,) = rule(self, *operands)
        return [TensorType(kind.dtype, None if kind.shape is None else (*kind.shape, 1))]

    monkeypatch.setattr(cls, "infer", transposed)
    text = failure(case)
    assert text is not None
    assert "inferred" in text
