"""Names of engines."""

from __future__ import annotations

import pytest

from scheduler.errors import RequestError
from scheduler.names import EngineName, parse_name


def test_a_name_without_a_tag_means_the_latest() -> None:
    assert parse_name("resnet50") == EngineName("resnet50", "latest")
    assert str(parse_name("resnet50:prod")) == "resnet50:prod"


@pytest.mark.parametrize("text", ["", ":", "a:", ":b", "a b", "../a", "a:b:c", "-a", "a" * 200])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="no engine name"):
        parse_name(text)
