"""A chain of stream files that a site sends to, beside what its snapshots held."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from blockplane.filesystem import FileSystem
from blockplane.image.image import build
from blockplane.model import RefusedError
from blockplane.stream import open_stream
from blockplane.transfer.merge import merge_streams
from blockplane.transfer.send import send
from blockplane.transfer.verify import stream_map, verify_streams
from model import ModelSnapshot, Tree
from rig.listing import describe
from rig.site import Site

#: Streams of a chain; then another begins.
MOST = 4


class Backups:
    """See the module.

    Attributes
    ----------
    brought : by id, the name that a snapshot had when it was sent, and what it held.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._n_sent = 0
        self.paths: list[Path] = []
        self.brought: dict[str, tuple[str, Tree]] = {}
        #: by id, the stream that brought a snapshot, and the id of the base of that
        self._came: dict[str, tuple[Path, str]] = {}

    def add(self, site: Site, top: ModelSnapshot, choose: Callable[[list[ModelSnapshot]], ModelSnapshot]) -> bool:
        """Send a snapshot onto one that the chain has, or whole where it has none; the chain is whole afterwards."""
        site.sync()
        if top.id in self.brought:
            return False
        regular = site.model.regular()
        bases = [regular[i] for i in top.moment.listed if i in regular and i in self.brought and i != top.id]
        if not bases or len(self.paths) == MOST:
            self.clear()
            bases = []
        text = f"{top.name} - {choose(sorted(bases, key=lambda s: s.id)).name}" if bases else top.name
        path = self._folder / f"{self._n_sent}.bps"
        try:
            image = build(site.volume, text)
            if not image.complete:
                return False
            send(image, path, compress="zstd:1" if self._n_sent % 3 == 0 else None)
        except RefusedError:
            return False
        self._n_sent += 1
        self.paths.append(path)
        for record in stream_map(path).arriving():
            found = regular[record.id.hex()]
            self.brought[found.id] = found.name, found.tree
            self._came.setdefault(found.id, (path, image.base.id.hex() if image.base is not None else ""))
        return True

    def check(self, top: ModelSnapshot) -> None:
        """The chain is proved whole, and each snapshot reads out of it as it was; so does the top out of one stream."""
        verdict = verify_streams(*self.paths)
        names = [name for name, _ in self.brought.values()]
        assert (verdict.problems, sorted(verdict.proved)) == ([], sorted(names))
        with open_stream(*reversed(self.paths), chooses=not verdict.branches) as chain:  # of two none is the newest
            for name, tree in self.brought.values():
                if names.count(name) == 1:
                    assert describe(FileSystem(chain.at(name))) == tree.describe(), f"{name} in the chain"
        if len(line := self._line(top.id)) > 1:
            merged = self._folder / "merged.bps"
            merge_streams(*line, sink=merged)
            with open_stream(merged) as stream:
                assert describe(FileSystem(stream.at(top.name))) == top.tree.describe(), f"{top.name} merged"
            merged.unlink()

    def _line(self, snapshot_id: str) -> list[Path]:
        """The streams that a snapshot is built from, its own first."""
        found = []
        while snapshot_id:
            path, snapshot_id = self._came[snapshot_id]
            found.append(path)
        return found

    def clear(self) -> None:
        """Begin anew."""
        for path in self.paths:
            path.unlink()
        self.paths, self.brought, self._came = [], {}, {}
