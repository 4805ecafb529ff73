"""Building a directory in one go: levels of nodes from sorted entries."""

from __future__ import annotations

from blockplane.filesystem.directory_node import CAPACITY_BYTES, FIRST_KEY, Key, Node, separator

# An eighth stays free, so that the first inserts after a bulk build do not split every leaf.
BULK_FILL_BYTES = CAPACITY_BYTES * 7 // 8


def pack_leaves(keyed: list[tuple[int, bytes, int]]) -> list[tuple[Key, Node]]:
    """Cut sorted (hash, name, target) into leaves; return each with its lower bound."""
    level: list[tuple[Key, Node]] = []
    node = Node(0)
    bound = FIRST_KEY
    for hash_, name, target in keyed:
        if node.used_bytes + node.entry_bytes + len(name) > BULK_FILL_BYTES:
            level.append((bound, node))
            bound = separator(node.key(len(node) - 1), (hash_, name))
            node = Node(0)
        node.hashes.append(hash_)
        node.names.append(name)
        node.values.append(target)
        node.used_bytes += node.entry_bytes + len(name)
    level.append((bound, node))
    return level


def pack_branches(children: list[tuple[Key, int]], level_number: int) -> list[tuple[Key, Node]]:
    """Cut (lower bound, block) of a level's nodes into branches; return each with its lower bound."""
    level: list[tuple[Key, Node]] = []
    node, lower = Node(level_number), FIRST_KEY
    for bound, block in children:
        if node.hashes and node.used_bytes + node.entry_bytes + len(bound[1]) > BULK_FILL_BYTES:
            level.append((lower, node))
            node = Node(level_number)
        if not node.hashes:
            lower = bound
        node.insert(len(node), bound if node.hashes else FIRST_KEY, block)
    level.append((lower, node))
    return level
