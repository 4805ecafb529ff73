"""CLAIMS.md: every claim stands somewhere; there and in RELIABILITY.md every test that is named exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import blockplane

PAGE = Path(blockplane.__file__).with_name("CLAIMS.md").read_text()
PROMISES = Path(blockplane.__file__).with_name("RELIABILITY.md").read_text()
TESTS = Path(__file__).parents[1]


def rows() -> list[tuple[str, str, str]]:
    section = PAGE.split("\n## By subject\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| ([^|]+) \| ([^|]*)\| ([^|]+) \|$", section, re.MULTILINE)
    return [row for row in found if not row[0].startswith(("subject", "---"))]


def numbers_in(text: str) -> set[int]:
    spans = [(int(low), int(high or low)) for low, high in re.findall(r"(\d+)(?:-(\d+))?", text)]
    return {number for low, high in spans for number in range(low, high + 1)}


def test_each_of_the_62_claims_is_named_once_by_subject_or_said_to_be_unknown():
    named = set().union(*(numbers_in(claims) for _, claims, _ in rows()))
    unknown = numbers_in(re.search(r"## Numbers that are not named\n\n([^:]+):", PAGE)[1])
    assert named | unknown == set(range(1, 63))
    assert named & unknown == set()


@pytest.mark.parametrize("page", [PAGE, PROMISES], ids=["claims", "promises"])
def test_every_test_that_is_named_exists(page):
    named = re.findall(r"\bt\d_\w+/\w+\.py::\w+", page)
    assert len(named) > 20
    missing = []
    for name in named:
        path, _, function = name.partition("::")
        file = TESTS / path
        if not file.is_file() or not re.search(rf"^def {function}\(", file.read_text(), re.MULTILINE):
            missing.append(name)
    assert missing == []


def test_every_subject_has_a_test_or_is_said_to_come_later():
    assert all(re.fullmatch(r"later|\S+::\S+(, \S+::\S+)*", shown) for _, _, shown in rows())
    assert [subject.split(":")[0] for subject, _, shown in rows() if shown == "later"] == []
