"""VOL[@SNAP][:/PATH] as INTERFACE words have it: the first `:/` ends the volume, `@` counts after its last `/`."""

from __future__ import annotations

import pytest

import blockplane as bp
from blockplane.cli.naming import file_of, parse_target, snapshot_of, volume_only


@pytest.mark.parametrize(
    ("text", "place", "snapshot", "path"),
    [
        ("pool", "pool", None, None),
        ("pool@june1", "pool", "june1", None),
        ("pool:/", "pool", None, "/"),
        ("/srv/pool/@june1:/a", "/srv/pool", "june1", "/a"),
        ("pool:/a:/b", "pool", None, "/a:/b"),
        ("pool@june1:/a@b", "pool", "june1", "/a@b"),
        ("/srv/x@y/pool", "/srv/x@y/pool", None, None),
        ("/srv/x@y/pool@june1:/a", "/srv/x@y/pool", "june1", "/a"),
        ("pool@june1..june4", "pool", "june1..june4", None),
        ("pool@a:b:/c", "pool", "a:b", "/c"),
        ("./a@b/", "./a@b/", None, None),
        ("full.bps:/include", "full.bps", None, "/include"),
        ("A.bps,B.bps:/x", "A.bps,B.bps", None, "/x"),
        ("host:9000/name", "host:9000/name", None, None),
    ],
)
def test_parts(text, place, snapshot, path):
    found = parse_target(text)
    assert (found.place, found.snapshot, found.path) == (place, snapshot, path)


@pytest.mark.parametrize("text", [":/", ":/a", "@june1", "pool@", "/@june1", "pool@:/a"])
def test_nonsense_is_a_usage_error(text):
    with pytest.raises(bp.errors.UsageError):
        parse_target(text)


@pytest.mark.parametrize("text", ["pool@june1", "pool:/", "pool@june1:/"])
def test_a_volume_alone(text):
    with pytest.raises(bp.errors.UsageError, match="is not a volume"):
        volume_only(text)


@pytest.mark.parametrize("text", ["pool", "pool:/", "pool@june1:/a"])
def test_a_snapshot_alone(text):
    with pytest.raises(bp.errors.UsageError, match="VOL@SNAP"):
        snapshot_of(text)


def test_a_path_must_be_named():
    with pytest.raises(bp.errors.UsageError, match="names no path"):
        file_of("pool@june1")
