"""Definitions of stored images: by the ids of snapshots on disk, by names everywhere else."""

from __future__ import annotations

from typing import Final

from blockplane.image import expression as language
from blockplane.image.expression import ACTIVE, Expression, Name
from blockplane.image.store import SnapshotStore
from blockplane.model.errors import NoSuchSnapshotError, RefusedError
from blockplane.volume.imagetable import StoredImage

#: What stands before the id of a snapshot, of a stored image, in a definition.
SNAPSHOT_ID: Final = "s:"
IMAGE_ID: Final = "i:"
#: What stands before the name of a pointer: it means where that stands when the image is used.
POINTER_NAME: Final = "p:"
#: Definitions within definitions; saving cannot make a circle, damage might.
MAX_NESTING: Final = 64


def names_now(store: SnapshotStore) -> dict[str, str]:
    """Return the names that ids have now."""
    names = {SNAPSHOT_ID + record.id.hex(): record.name for record in store.records()}
    names |= {POINTER_NAME + pointer: pointer for pointer in store.pointers()}
    return names | {IMAGE_ID + image.id.hex(): image.name for image in store.stored_images()} | {ACTIVE: ACTIVE}


def named(store: SnapshotStore, image: StoredImage) -> Expression:
    """Return a stored image's definition over the names of now.

    Raises
    ------
    NoSuchSnapshotError: a snapshot of it is gone.
    """
    names = names_now(store)
    node = language.parse(image.definition, allow_active=True)
    written = language.every_name(language.parse(image.written, allow_active=True))
    for word, old in zip(language.every_name(node), written, strict=True):
        if word.text not in names:
            raise NoSuchSnapshotError(
                f"the image {image.name} cannot be evaluated: {old} is gone",
                f"it was saved as `{image.written}`; delete it, or save another one",
            )
    return language.with_names(node, lambda word: Name(names[word.text]))


def expanded(store: SnapshotStore, node: Expression, accepted: set[str], depth: int = 0) -> Expression:
    """Return an expression with definitions in place of the names of stored images.

    Parameters
    ----------
    accepted : the names of definitions are added to it: whoever saved them has said that they are meant.
    """
    images = {image.name: image for image in store.stored_images()}
    if not images:
        return node
    if depth > MAX_NESTING:
        raise RefusedError("stored images lead back to themselves", "delete one of them")

    def write(word: Name) -> Expression:
        image = images.get(word.text)
        if image is None:
            return word
        definition = named(store, image)
        accepted.update(found.text for found in language.every_name(definition))
        return expanded(store, definition, accepted, depth + 1)

    return language.with_names(node, write)
