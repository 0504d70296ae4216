"""Identity returns any value as it is."""

from __future__ import annotations

import numpy as np
import pytest

from engine.ir.types import DType, Operand, OptionalType, SequenceType, TensorType
from engine.ops import find

TENSOR = TensorType(DType.FLOAT32, (2,))


@pytest.mark.parametrize("kind", [TENSOR, SequenceType(TENSOR), OptionalType(TENSOR)])
def test_the_type_is_kept(kind: object) -> None:
    assert find("", "Identity", 16)().infer(Operand(kind)) == [kind]


@pytest.mark.parametrize("value", [np.zeros(2), [np.zeros(1)], None])
def test_the_value_is_kept(value: object) -> None:
    assert find("", "Identity", 16)().meaning(value) is value
