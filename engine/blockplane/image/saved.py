"""Stored images: definitions that keep their meaning, and stand in expressions for what they are now (claim 21).

A definition is stored by the ids of its snapshots, so that renaming one changes nothing. A stored image's name stands
in an expression for its definition, evaluated then; one that names a snapshot that is gone cannot be evaluated, and one
that sums a shadow neither.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from blockplane.image import expression as language
from blockplane.image.definition import IMAGE_ID, POINTER_NAME, SNAPSHOT_ID, names_now
from blockplane.image.expression import Name
from blockplane.image.image import build
from blockplane.image.store import SnapshotStore, store_of
from blockplane.model.errors import (
    BlockplaneError,
    NoSpaceError,
    NoSuchSnapshotError,
    RefusedError,
    SnapshotExistsError,
)
from blockplane.volume.imagetable import StoredImage
from blockplane.volume.live import LiveVolume
from blockplane.volume.naming import check_name
from blockplane.volume.waiting import leaves_of_plane

#: What a save needs beside the leaves of the plane: nodes, and the table.
_TABLE_BLOCKS: Final = 16


@dataclass(frozen=True, slots=True)
class SavedImage:
    """A stored image as it is now.

    definition : with the names that its snapshots have now. was_blocks : how many it held when it was saved.
    n_blocks : how many it holds now; None where it cannot be evaluated. obstacle : why it cannot be sent; empty: it
    can.
    """

    name: str
    definition: str
    made_ns: int
    was_blocks: int
    n_blocks: int | None
    obstacle: str

    @property
    def is_sendable(self) -> bool:
        """Whether it can be sent."""
        return not self.obstacle


def save(volume: LiveVolume, name: str, text: str, with_: Sequence[str] = ()) -> None:
    """Store an image: its definition, and its plane as it is now. Durable on return.

    Raises
    ------
    UsageError: the name cannot be one, the definition is too long, there are too many. SnapshotExistsError: the name is
    taken. What `build` raises: the image cannot be evaluated.
    """
    check_name(name)
    if name.startswith(("alloc-", "dealloc-")):
        raise RefusedError(f"{name!r} means marks where planes are read as files", "take another name")
    with volume.lock:
        store = store_of(volume)
        taken = {record.name: "snapshot" for record in store.records()}
        taken |= {image.name: "stored image" for image in store.stored_images()}
        taken |= dict.fromkeys(store.pointers(), "pointer")
        if name in taken:
            raise SnapshotExistsError(f"a {taken[name]} named {name!r} exists", "take another name")
        node = language.parse(text, allow_active=True)
        if name in {found.text for found in language.every_name(node)}:
            raise RefusedError(f"{name} cannot be defined by itself", "take another name")
        found = build(volume, text, with_=with_, allow_active=True)
        ids = {record.name: SNAPSHOT_ID + record.id.hex() for record in store.records()}
        ids |= {pointer: POINTER_NAME + pointer for pointer in store.pointers()}
        ids |= {image.name: IMAGE_ID + image.id.hex() for image in store.stored_images()}
        by_id = language.with_names(node, lambda word: Name(ids.get(word.text, word.text)))
        n_leaves = sum(1 for _ in leaves_of_plane(found.plane))
        if volume.available_blocks < n_leaves + _TABLE_BLOCKS:
            raise NoSpaceError(f"{volume.path} is full: there is no room for the plane of {name}", "delete something")
        made = StoredImage(os.urandom(16), name, str(by_id), str(node), found.n_blocks, time.time_ns())
        volume.local.images.refuse(made)
        with volume.changing():
            volume.local.images.add(made, found.plane)
            volume.commit()


def delete(volume: LiveVolume, name: str) -> None:
    """Drop a stored image. Durable on return.

    Raises
    ------
    NoSuchSnapshotError: there is none of that name. RefusedError: another one is defined by it.
    """
    with volume.lock:
        images = volume.local.images.all()
        gone = next((image for image in images if image.name == name), None)
        if gone is None:
            hint = f"there are: {', '.join(image.name for image in images[-8:])}" if images else "there are none"
            raise NoSuchSnapshotError(f"no stored image is named {name!r}", hint)
        for other in images:
            if IMAGE_ID + gone.id.hex() in other.definition:
                raise RefusedError(f"{name} stays: {other.name} is defined by it", f"delete {other.name} first")
        with volume.changing():
            volume.local.images.remove(gone)
            volume.commit()


def saved(volume: LiveVolume) -> list[SavedImage]:
    """Return the stored images as they are now, older first."""
    with volume.lock:
        store = store_of(volume)
        return [_as_it_is(volume, store, image) for image in store.stored_images()]


def _as_it_is(volume: LiveVolume, store: SnapshotStore, image: StoredImage) -> SavedImage:
    n_blocks, obstacle = None, ""
    try:
        found = build(volume, image.name, allow_active=True)
        n_blocks = found.n_blocks
        found.require_sendable()
    except BlockplaneError as error:
        obstacle = error.message
    return SavedImage(image.name, _shown(store, image), image.made_ns, image.n_blocks, n_blocks, obstacle)


def _shown(store: SnapshotStore, image: StoredImage) -> str:
    """Return a definition with the names of now; of what is gone, the name that it had."""
    names = names_now(store)
    written = language.every_name(language.parse(image.written, allow_active=True))
    node = language.parse(image.definition, allow_active=True)
    before = {word.text: old.text for word, old in zip(language.every_name(node), written, strict=True)}
    return str(language.with_names(node, lambda word: Name(names.get(word.text, before[word.text]))))
