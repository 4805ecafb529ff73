"""The expression language: what parses, what it prints, what it says when it does not parse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane.image.expression import Chain, Meet, Name, Span, chain, is_name, meet, names, parse
from blockplane.model import ExpressionError

NAMES = st.from_regex(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]{0,8}", fullmatch=True).filter(is_name)


def expressions():
    leaves = st.one_of(NAMES.map(Name), st.tuples(NAMES, NAMES).map(lambda p: Span(Name(p[0]), Name(p[1]))))

    def joined(parts):
        several = st.lists(parts, min_size=2, max_size=4)
        signs = st.lists(st.sampled_from("+-^"), min_size=4, max_size=4)
        sums = st.tuples(several, signs).map(
            lambda p: chain([("+" if i == 0 else p[1][i], node) for i, node in enumerate(p[0])])
        )
        return st.one_of(sums, several.map(meet))

    return st.recursive(leaves, joined, max_leaves=12)


@given(expressions())
def test_printing_and_parsing_are_inverse(node):
    assert parse(str(node)) == node


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("june5", "june5"),
        ("  june5  -\tjune3 ", "june5 - june3"),
        ("a+b&c", "a + b & c"),
        ("a^b&c", "a ^ b & c"),
        ("a^(b^c)", "a ^ (b ^ c)"),
        ("(a + b) & c", "(a + b) & c"),
        ("((a)) + (b + c)", "a + (b + c)"),
        ("(a - b) + c", "a - b + c"),
        ("june1..june5 - june1", "june1..june5 - june1"),
        ("a-b - c-", "a-b - c-"),
        ("2026-11-22:noon - 2026.11", "2026-11-22:noon - 2026.11"),
        ("a. .. b.", "a. .. b."),
    ],
)
def test_canonical_text(text, canonical):
    assert str(parse(text)) == canonical
    assert parse(canonical) == parse(text)


def test_precedence_and_grouping():
    a, b, c = Name("a"), Name("b"), Name("c")
    assert parse("a - b + c") == Chain((("+", a), ("-", b), ("+", c)))
    assert parse("a - (b + c)") == Chain((("+", a), ("-", Chain((("+", b), ("+", c))))))
    assert parse("a - b ^ c + a") == Chain((("+", a), ("-", b), ("^", c), ("+", a)))
    assert parse("a ^ b & c") == Chain((("+", a), ("^", Meet((b, c)))))
    assert parse("a & (b & c)") == Meet((a, b, c))
    assert [name.text for name in names(parse("x..y & (z - x)"))] == ["x", "y", "z", "x"]


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("", 0, "empty"),
        ("   ", 0, "empty"),
        ("a b", 2, "operator was expected"),
        ("a -b", 2, "does not start with '-'"),
        ("a- b", 3, "operator was expected"),
        ("a - ", 4, "name was expected, not the end"),
        ("+ a", 0, "name was expected, not '+'"),
        ("(a + b", 0, "not closed"),
        ("a + b)", 5, "closes nothing"),
        ("a..", 3, "range a.."),
        ("a...b", 3, "does not start with '.'"),
        ("a ; b", 2, "';' has no meaning"),
        ("a + " + "x" * 128, 4, "127 bytes"),
        ("active - a", 0, "active cannot be used here"),
        ("alloc()", 6, "alloc() needs the name of a marked snapshot, not ')'"),
        ("a + dealloc(active)", 12, "dealloc() needs the name"),
        ("alloc(a + b)", 8, "alloc() takes one name"),
        ("alloc(a", 7, "takes one name"),
        ("size(a)", 0, "no function size"),
        ("a\nb", 1, "has no meaning"),
        ("(" * 65 + "a", 64, "more than 64 parentheses"),
    ],
)
def test_errors_point_at_the_place(text, position, words):
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert (caught.value.position, caught.value.exit_status) == (position, 2)
    assert words in str(caught.value)


def test_the_caret_stands_under_the_place():
    with pytest.raises(ExpressionError) as caught:
        parse("june5 -june3")
    _, line, caret = str(caught.value).splitlines()
    assert line.index("-june3") == caret.index("^")
    assert caught.value.hint == "put blanks on both sides of - to subtract"


def test_long_inputs_stay_cheap():
    assert len(list(names(parse(" + ".join(["a"] * 16_000))))) == 16_000
    with pytest.raises(ExpressionError, match="characters long"):
        parse("a" * 70_000)


def test_control_characters_do_not_reach_the_message():
    with pytest.raises(ExpressionError) as caught:
        parse("a \x1b[31m")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "active", "-a", ".a", "a..b", "a b", "x" * 128, "é" * 64])
def test_what_cannot_be_a_name(name):
    assert not is_name(name)


def test_active_only_where_it_is_allowed():
    assert parse("active - june3", allow_active=True) == Chain((("+", Name("active")), ("-", Name("june3"))))
