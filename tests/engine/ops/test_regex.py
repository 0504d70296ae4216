"""RE2 patterns match as RE2 matches them, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ir.types import DType, Operand, TensorType
from engine.ops import find
from engine.ops.regex import translate
from engine.ops.strings import string_array
from tests.engine.ops.peer import agrees_with_peer

TEXTS = [
    "", "a", "A", "ab", "aB", "abc", "a\n", "a\nb", "\n", "7", "٣", "é", "_", " ", "\u00a0", "\v",
    "a-b", "a.b", "a|b", "[a]", "{,3}", "a{2}", "aa", "aaa", "x\\y", "k", "\u212a", "-", "^", "&&",
    "foo.bar@example.com", "2024-01-31", "ß", "b\nab",
]  # fmt: skip
PATTERNS = [
    r"a", r"a.b", r"(?s)a.b", r"a$", r"(?m)a$\nb", r"^a$", r"\Aa\z", r"\d", r"\D", r"\w+", r"\W",
    r"\s", r"\S", r"[\d]", r"[^\d]", r"[\W]", r"[\w-]", r"[\s\S]", r"[[:alpha:]]+",
    r"[[:punct:]]", r"[^[:space:]]", r"(?i)ab", r"a(?i)b", r"(?i:a)b", r"(a(?i)b|C)",
    r"a(?i)b|C", r"(?i)k", r"(?P<name>a)b", r"(?<name>a)b", r"(?:ab|a)c?", r"a{2}", r"a{2,}",
    r"a{1,2}?", r"\{,3\}", r"{,3}", r"\Qa.b\E", r"\Qa|b", r"\x61", r"\x{e9}", r"\141", r"[]a[]+",
    r"[^]a]", r"[a-c]+", r"[+--]", r"[&&]+", r"a\-b", r"x\\y", r"\bab\b", r"a\Bb", r"(a|b)*", r"",
    r"(?m)^b$(?s).*", r"[\x41-\x{5A}]", r"[\n]", r"[a\-b]*", r"^", r"[\^]", r"[a^]",
    r"(\W|^)[\w.\-]{0,25}@(yahoo|example)\.com(\W|$)", r"[\w.-]+@\w+\.com", r"\d{4}-\d\d-\d\d",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_it_matches_in_onnx_runtime(pattern: str) -> None:
    x = string_array(TEXTS, (len(TEXTS),))
    agrees_with_peer("RegexFullMatch", [x], [DType.BOOL], domain="", pattern=pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a)\1", r"(?=a)a", r"(?<=a)b", r"(?!a)b", r"(?>a)", r"a++", r"a*+", r"(?P=n)", r"\pL",
        r"\p{Greek}", r"\C", r"(?#note)", r"(?U)a*", r"\Z", r"\8", r"[\b]", r"[[:word", r"[a",
        r"(a", r"a)", r"a{1001}", r"*a", r"a**", r"\x{110000}", r"(?(1)a)", r"[z-a]", r"\é",
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused_when_a_model_is_built(pattern: str) -> None:
    operator = find("", "RegexFullMatch", 20).from_attributes({"pattern": pattern})
    with pytest.raises(ValueError, match="pattern"):
        operator.infer(Operand(TensorType(DType.STRING, (2,))))


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=12))
def test_a_quoted_text_matches_itself_alone(text: str) -> None:
    operator: Any = find("", "RegexFullMatch", 20).from_attributes(
        {"pattern": "".join(f"\\x{{{ord(char):x}}}" for char in text)}
    )
    x = string_array([text, text + "x", "x" + text], (3,))
    assert operator.meaning(x).tolist() == [True, False, False]


def test_flags_hold_to_the_end_of_their_group_across_alternatives() -> None:
    assert translate("a(?i)b|c") == "a(?i:b)|(?i:c)"
    assert translate("(a(?i)b)c") == "(a(?i:b))c"


def test_a_missing_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="pattern"):
        find("", "RegexFullMatch", 20).from_attributes({}).infer(
            Operand(TensorType(DType.STRING, (2,)))
        )
