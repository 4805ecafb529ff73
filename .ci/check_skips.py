"""Fail on skipped tests whose reason is not on the list.

check_skips.py LIST JUNIT.xml: LIST holds one regular expression a line; blank lines and lines from # on do not count.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree


def main(listed: str, report: str) -> int:
    lines = (line.partition("#")[0].strip() for line in Path(listed).read_text().splitlines())
    allowed = [re.compile(line) for line in lines if line]
    cases = ElementTree.parse(report).getroot().iter("testcase")
    unlisted = [
        f"{case.get('classname')}::{case.get('name')}: {skipped.get('message')}"
        for case in cases
        for skipped in case.iter("skipped")
        if not any(pattern.search(skipped.get("message") or "") for pattern in allowed)
    ]
    for line in unlisted:
        print(f"skipped for a reason that is not listed: {line}", file=sys.stderr)
    return 1 if unlisted else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
