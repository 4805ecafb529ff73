"""Who we are to others, and how they prove who they are: TLS 1.3 from the first byte, both sides with certificates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate, its key, and the private CA that both sides' certificates are of.

    ca, certificate, key : PEM files. revoked : SHA-256 fingerprints of certificates of the CA that are refused.
    """

    ca: Path
    certificate: Path
    key: Path
    revoked: frozenset[bytes] = frozenset()
