"""The performance gate: counts that are exact, and ratios within one run that are far from what is reached.

    python bench/gate.py

A count beyond its limit is a regression, whatever the machine does meanwhile; the ratios' limits leave room for a busy
one. Under two minutes; exit status 1 when a limit is missed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from yardstick.caches import make_cold, warm
from yardstick.pairs import Pairs
from yardstick.raw import copy_file, copy_raw, extents_of, like_in, read_raw, write_raw
from yardstick.tree import MIB, TreeSize, make_tree
from yardstick.wire import N_BYTES, connections, raw, striped
from yardstick.world import Source, disk_bytes_for, make_chain, make_source

from blockplane.disks import DiskCounters
from blockplane.filesystem import FileSystem, compare
from blockplane.image.image import build
from blockplane.server.network import Credentials, make_certificates
from blockplane.stream import open_stream
from blockplane.stream.media import Rack, TapeSet, TapeSink, new_set, stores
from blockplane.transfer import merge_streams, stream_map
from blockplane.transfer.copy import copy
from blockplane.transfer.receive import receive
from blockplane.transfer.send import send
from blockplane.volume import Volume

SIZE = TreeSize(1000, 128 * MIB, 64 * MIB)
N_PAIRS = 3
FSINFO_BLOCKS = 10
#: By what changes in ten increments. On two cores, in memory, 128 MiB reach 0.41 and 0.63 of a copy's speed, 1 GiB 0.58
#: and 0.70; what else runs there takes more from two threads than from one.
MERGE_SHARES = {"single": 0.25, "runs": 0.30}


class Gate:
    """Collects figures and what they may be."""

    def __init__(self) -> None:
        self.missed = 0

    def most(self, name: str, found: float, limit: float) -> None:
        """Hold a figure that may be at most so large."""
        self._show(name, found, "<=", limit, found <= limit)

    def least(self, name: str, found: float, limit: float) -> None:
        """Hold a figure that may be at least so small."""
        self._show(name, found, ">=", limit, found >= limit)

    def _show(self, name: str, found: float, sign: str, limit: float, holds: bool) -> None:
        self.missed += not holds
        print(f"{'ok    ' if holds else 'MISSED'}  {name:<58} {found:12.3f} {sign} {limit:.3f}", flush=True)


def counted(volume: Volume, work: Callable[[], object]) -> DiskCounters:
    """Run; return what it did to the disks."""
    before = volume.array.counters()
    work()
    after = volume.array.counters()
    return DiskCounters(
        after.read_bytes - before.read_bytes,
        after.read_requests - before.read_requests,
        after.written_bytes - before.written_bytes,
        after.write_requests - before.write_requests,
        after.flushes - before.flushes,
    )


def pairs_of(subject: Callable[[], object], baseline: Callable[[], object], before: Callable[[], None]) -> Pairs:
    """Run subject and baseline in turns."""
    pairs = Pairs()
    for _ in range(N_PAIRS):
        pairs.add(subject, baseline, before)
    return pairs


def gate_send(gate: Gate, source: Source) -> None:
    """Counts and speed of a full and an incremental send."""
    for expression, share in (("june1", 0.40), ("june2 - june1", 0.20)):
        image = build(source.volume, expression)
        extents = extents_of(image)
        did = counted(source.volume, lambda: send(build(source.volume, expression), os.devnull))  # noqa: B023
        report = send(image, None, dry_run=True)
        n_bytes = image.n_bytes
        gate.most(f"send {expression}: bytes read / image", did.read_bytes / n_bytes, 1.05 + 4 * MIB / n_bytes)
        gate.most(f"send {expression}: reads / MiB", did.read_requests / (n_bytes / MIB), 6)
        gate.most(f"send {expression}: stream / image", report.stream_bytes / n_bytes, 1.01 + 0.1 * MIB / n_bytes)
        pairs = pairs_of(
            lambda: send(build(source.volume, expression), os.devnull),  # noqa: B023
            lambda: read_raw(extents),  # noqa: B023
            lambda: make_cold([source.path]),
        )
        gate.least(f"send {expression}: share of raw reads' speed", pairs.speed, share)
        if expression == "june1":
            gate.most("send june1: CPU s / GiB", pairs.cpu_s / n_bytes * (1 << 30), 0.8)


def gate_receive(gate: Gate, source: Source, folder: Path) -> None:
    """Counts and speed of receiving a full stream."""
    stream, target, raw_folder = folder / "full.bps", folder / "copy", folder / "raw"
    image = build(source.volume, "june1")
    send(image, stream)
    extents = like_in(raw_folder, extents_of(image), n_parity=1)

    def fresh() -> None:
        for path in (target, raw_folder):
            shutil.rmtree(path, ignore_errors=True)
        raw_folder.mkdir()
        warm(stream)

    fresh()
    with Volume.create(target, disks=5, size=source.disk_bytes) as volume:
        did = counted(volume, lambda: receive(stream, volume))
    gate.most("receive june1: bytes written / image", did.written_bytes / image.n_bytes, 1.25 + 2 * MIB / image.n_bytes)
    gate.most("receive june1: bytes read / image", did.read_bytes / image.n_bytes, 2 * MIB / image.n_bytes)
    gate.most("receive june1: writes / MiB", did.write_requests / (image.n_bytes / MIB), 4)
    gate.most("receive june1: flushes", did.flushes, 80)
    pairs = pairs_of(lambda: receive(stream, target), lambda: write_raw(extents, source.disk_bytes), fresh)
    gate.least("receive june1: share of raw writes' speed", pairs.speed, 0.15)
    gate.most("receive june1: CPU s / GiB", pairs.cpu_s / image.n_bytes * (1 << 30), 3.0)


def gate_copy(gate: Gate, source: Source, folder: Path) -> None:
    """Counts and speed of a full copy from disk to disk."""
    target, raw_folder = folder / "copy", folder / "raw"
    image = build(source.volume, "june1")
    origins, n_bytes = extents_of(image), image.n_bytes
    targets = like_in(raw_folder, origins, n_parity=1)

    def fresh() -> None:
        for path in (target, raw_folder):
            shutil.rmtree(path, ignore_errors=True)
        raw_folder.mkdir()
        make_cold([source.path])

    fresh()
    did = counted(source.volume, lambda: copy(build(source.volume, "june1"), target))
    gate.most("copy june1: bytes read / image", did.read_bytes / n_bytes, 1.05 + 4 * MIB / n_bytes)
    gate.most("copy june1: reads / MiB", did.read_requests / (n_bytes / MIB), 6)
    pairs = pairs_of(
        lambda: copy(build(source.volume, "june1"), target),
        lambda: copy_raw(origins, targets, source.disk_bytes),
        fresh,
    )
    gate.least("copy june1: share of raw copies' speed", pairs.speed, 0.25)
    gate.most("copy june1: CPU s / GiB", pairs.cpu_s / n_bytes * (1 << 30), 3.0)


def gate_chains(gate: Gate, source: Source, folder: Path) -> None:
    """Reading in place: bytes and frames for 1 MiB of a file. Merging: beside copying the result."""
    wanted = slice(8 * MIB, 9 * MIB)
    with FileSystem(source.volume.get_snapshot("june2")).open("/tree/large.bin") as file:
        expected = file.read()[wanted]
    for compress in (None, "zstd"):
        chain = [folder / f"{name}-{compress}.bps" for name in ("full", "step")]
        for path, expression in zip(chain, ("june1", "june2 - june1"), strict=True):
            send(build(source.volume, expression), path, compress=compress)
        with open_stream(*chain) as opened, FileSystem(opened).open("/tree/large.bin") as file:
            before = replace(opened.counters)
            file.seek(wanted.start)
            assert file.read(MIB) == expected
            did = opened.counters
        name = f"1 MiB read out of a chain, {compress or 'plain'}"
        gate.most(f"{name}: MiB read", (did.read_bytes - before.read_bytes) / MIB, 3)
        gate.most(f"{name}: frames decompressed", did.n_frames - before.n_frames, 12)
    for kind, share in MERGE_SHARES.items():
        gate_merge(gate, folder, kind, share)


def gate_merge(gate: Gate, folder: Path, kind: str, share: float) -> None:
    """A full stream and ten increments merged, beside copying the result."""
    chain, direct = make_chain(folder, SIZE.n_bytes, kind)
    merged, copied = folder / "merged.bps", folder / "copied.bps"

    def before() -> None:
        for path in (merged, copied):
            path.unlink(missing_ok=True)
        for path in (*chain, direct):
            warm(path)

    pairs = pairs_of(lambda: merge_streams(*chain, sink=merged), lambda: copy_file(direct, copied), before)
    assert stream_map(merged).header.plane_digest == stream_map(direct).header.plane_digest
    gate.most(f"merge {kind}: stream / direct stream", merged.stat().st_size / direct.stat().st_size, 1.01)
    gate.least(f"merge {kind}: share of a copy's speed", pairs.speed, share)
    for path in (*chain, direct, merged, copied):
        path.unlink(missing_ok=True)


def gate_files(gate: Gate, tree: Path, source: Source, folder: Path) -> None:
    """Counts and speed of put and get beside cp -a."""
    pool, out, plain = folder / "pool", folder / "out", folder / "plain"

    def copy_tree() -> None:
        subprocess.run(["cp", "-a", str(tree), str(plain)], check=True)
        subprocess.run(["sync", "-f", str(plain)], check=True)

    def fresh() -> None:
        for path in (pool, out, plain):
            shutil.rmtree(path, ignore_errors=True)
        make_cold([tree, source.path])

    def put() -> None:
        with Volume.create(pool, disks=5, size=disk_bytes_for(SIZE)) as volume:
            did.append(counted(volume, lambda: (FileSystem(volume).put(tree, "/tree"), volume.sync())))

    def get() -> None:
        FileSystem(source.volume.get_snapshot("june1")).get("/tree", out)
        subprocess.run(["sync", "-f", str(out)], check=True)

    did: list[DiskCounters] = []
    pairs = pairs_of(put, copy_tree, fresh)
    gate.most("put: time / cp -a", 1 / pairs.speed, 3.0)
    n_bytes = SIZE.n_bytes + SIZE.n_files * 4096
    gate.most("put: bytes written / blocks of data", statistics.median(d.written_bytes for d in did) / n_bytes, 1.35)
    pairs = pairs_of(get, copy_tree, fresh)
    gate.most("get: time / cp -a", 1 / pairs.speed, 3.0)
    subprocess.run(["diff", "-r", str(tree), str(out)], check=True)
    read = counted(source.volume, lambda: (shutil.rmtree(out), get())).read_bytes
    gate.most("get: bytes read / blocks of data", read / n_bytes, 1.10)


def gate_volume(gate: Gate, source: Source) -> None:
    """Counts of small consistency points."""
    volume, fs = source.volume, FileSystem(source.volume)

    def overwrite() -> None:
        with fs.open("/tree/large.bin", "r+b", buffering=0) as file:
            file.seek(4096)
            file.write(os.urandom(4096))
        volume.sync()

    overwrite()
    did = counted(volume, overwrite)
    gate.most("CP of one overwrite: blocks beside the root record", did.written_bytes / 4096 - FSINFO_BLOCKS, 16)
    did = counted(volume, lambda: volume.snapshot("gate"))
    gate.most("snapshot create: blocks written", did.written_bytes / 4096, 35)
    gate.most("snapshot create: blocks read", did.read_bytes / 4096, 8)
    found = compare(volume.state("june1"), volume.state("june2"))
    gate.most("diff: metadata blocks read / changed path", found.n_reads / len(found.changes), 6)


def gate_system_calls(gate: Gate, source: Source, folder: Path) -> None:
    """System calls of a whole send and of writing a tape, by strace where it is installed."""
    strace = shutil.which("strace")
    if strace is None:
        print("        system calls: no strace here")
        return
    n_mib = build(source.volume, "june1").n_bytes / MIB
    source.volume.close()
    tape = folder / "traced.tap"
    runs: tuple[tuple[list[str], dict[str, float]], ...] = (
        (["send", str(source.path), "june1", "-o", os.devnull], {"preadv": 6.0, "writev": 2.0}),
        (
            ["tape", "write", str(tape), "--record-size", "64KiB", str(source.path), "june1"],
            {"writev": 0.6, "write": 0.1},
        ),
    )
    for words, limits in runs:
        command = [strace, "-f", "-c", "-e", "trace=preadv,writev,write", sys.executable, "-m", "blockplane", *words]
        traced = subprocess.run(command, capture_output=True, text=True, check=True)
        calls = {line.split()[-1]: int(line.split()[3]) for line in traced.stderr.splitlines() if line[:1] == " "}
        for name, limit in limits.items():
            gate.most(f"{words[0]} june1: {name} / MiB", calls.get(name, 0) / n_mib, limit)


def gate_tape(gate: Gate, source: Source, folder: Path) -> None:
    """Speed of cutting a stream into records of 64 KiB beside write(2) of it; both are synced."""
    stream, tape, plain = folder / "june1.bps", folder / "june1.tap", folder / "plain"
    send(build(source.volume, "june1"), stream, order="tape")
    data = memoryview(stream.read_bytes())

    def write_plain() -> None:
        with open(plain, "wb", buffering=0) as file:
            for at in range(0, len(data), MIB):
                file.write(data[at : at + MIB])
            os.fsync(file.fileno())

    def write_records() -> None:
        with closing(Rack([tape], writable=True)) as rack, closing(TapeSink(rack, new_set(64 << 10))) as sink:
            for at in range(0, len(data), 16 * MIB):
                sink.write_all([data[at : at + 16 * MIB]])
            sink.commit()

    def fresh() -> None:
        for path in (tape, plain):
            path.unlink(missing_ok=True)

    pairs = pairs_of(write_records, write_plain, fresh)
    gate.least("tape records of 64 KiB: share of a plain write's speed", pairs.speed, 0.25)
    with closing(TapeSet(Rack([tape]))) as tapes:
        gate.most(
            "tape records of 64 KiB: images that are not the stream", stores(tapes)[0].read(len(data), 0) != data, 0
        )
    stream.unlink()


def gate_network(gate: Gate, folder: Path) -> None:
    """Speed and CPU of a stream over four connections."""
    make_certificates(folder / "tls", ["here=127.0.0.1"])
    credentials = Credentials.find(folder / "tls")
    for kind, share, cpu_s in (("plain", 0.3, 0.7), ("tls", 0.3, 2.5)):
        pairs, came = Pairs(), set()
        for _ in range(N_PAIRS):
            with connections(kind, credentials) as mine, connections(kind, credentials) as theirs:
                pairs.add(lambda: came.add(striped(mine)), lambda: raw(theirs), lambda: None)  # noqa: B023
        gate.most(f"stripes, {kind}: bytes lost", N_BYTES - min(came), 0)
        gate.least(f"stripes, {kind}: share of raw connections' speed", pairs.speed, share)
        gate.most(f"stripes, {kind}: CPU s / GiB", pairs.cpu_s / N_BYTES * (1 << 30), cpu_s)


def main() -> int:
    """Run all; 1: a limit was missed."""
    gate = Gate()
    with tempfile.TemporaryDirectory(prefix="blockplane-gate") as name:
        folder = Path(name)
        (folder / "tree").mkdir()
        make_tree(folder / "tree", SIZE)
        source = make_source(folder / "source", folder / "tree", SIZE)
        with source.volume:
            gate_send(gate, source)
            gate_receive(gate, source, folder)
            gate_copy(gate, source, folder)
            gate_chains(gate, source, folder)
            gate_files(gate, folder / "tree", source, folder)
            gate_volume(gate, source)
            gate_tape(gate, source, folder)
            gate_network(gate, folder)
            gate_system_calls(gate, source, folder)
    print(f"{gate.missed} limits missed")
    return min(gate.missed, 1)


if __name__ == "__main__":
    sys.exit(main())
