"""The verb demo."""

from __future__ import annotations

VERBS = ()
