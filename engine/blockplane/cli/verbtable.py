"""What each verb does to a volume that others use: a kind of `server.activity`; or why it is not run by its owner.

A volume's owner looks here before it runs a verb of another process; a test holds the table against the parsers.
"""

from __future__ import annotations

from typing import Final

#: verb -> kind when it writes, and when it only reads (a dry run) it is READS. Of `copy` and `replicate`:
#: what they do to their target.
KINDS: Final[dict[str, str]] = {
    "cat": "READS",
    "check": "CHECKS",
    "copy": "LIVE",
    "diff": "READS",
    "get": "READS",
    "grow": "DISKS",
    "image": "READS",
    "image delete": "SNAPSHOTS",
    "image list": "READS",
    "image plan": "READS",
    "image save": "SNAPSHOTS",
    "info": "READS",
    "ls": "READS",
    "mirror add": "SNAPSHOTS",
    "mirror break": "SNAPSHOTS",
    "mirror reintegrate": "LIVE",
    "mirror remove": "SNAPSHOTS",
    "mirror resync": "LIVE",
    "mirror run": "SNAPSHOTS",
    "mirror status": "READS",
    "mkdir": "FILES",
    "mv": "FILES",
    "pointer": "SNAPSHOTS",
    "prune": "SNAPSHOTS",
    "put": "FILES",
    "receive": "LIVE",
    "replicas": "SNAPSHOTS",
    "replicate": "LIVE",
    "rm": "FILES",
    "rollback": "LIVE",
    "send": "READS",
    "settle": "SNAPSHOTS",
    "shrink": "DISKS",
    "snapshot create": "SNAPSHOTS",
    "snapshot delete": "SNAPSHOTS",
    "snapshot hold": "SNAPSHOTS",
    "snapshot list": "READS",
    "snapshot mark": "SNAPSHOTS",
    "snapshot master": "SNAPSHOTS",
    "snapshot policy": "SNAPSHOTS",
    "snapshot release": "SNAPSHOTS",
    "snapshot rename": "SNAPSHOTS",
    "snapshot shadow": "SNAPSHOTS",
    "snapshot unmark": "SNAPSHOTS",
    "stat": "READS",
    "stream compare": "READS",
    "stream info": "READS",
    "stream merge": "READS",
    "stream verify": "READS",
    "tape read": "LIVE",
    "tape verify": "READS",
    "tape write": "READS",
    "who": "READS",
}

#: Verbs that open no volume there is.
ALONE: Final[dict[str, str]] = {
    "cert": "it needs no volume",
    "completion": "it needs no volume",
    "create": "it makes a volume of its own",
    "demo": "it makes volumes of its own",
    "key create": "it needs no volume",
    "key info": "it needs no volume",
    "serve": "it has volumes of its own",
    "tape list": "it needs no volume",
    "tape retrieve": "it needs no volume",
}


def verb_of(arguments: list[str]) -> str:
    """Return the verb that words begin with: two of them where they are one."""
    pair = " ".join(arguments[:2])
    return pair if pair in KINDS or pair in ALONE else (arguments[0] if arguments else "")
