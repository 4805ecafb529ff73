"""Disk workers that work in the calling thread: opening a volume of a thousand crash states costs no thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from blockplane.disks import array
from blockplane.disks.worker import DiskWorker, Job, ReadJob, WriteJob


class InlineWorker(DiskWorker):
    """A worker without a thread: what is submitted is done."""

    def start(self) -> None:
        pass

    def submit(self, job: Job) -> None:
        if isinstance(job, WriteJob):
            self._note_write(job)
        self._run_batch([job])

    def submit_urgent(self, job: ReadJob) -> None:
        self.submit(job)

    def close(self) -> None:
        pass


@contextlib.contextmanager
def inline_workers() -> Iterator[None]:
    """Arrays made inside work in the thread that calls them."""
    with mock.patch.object(array, "DiskWorker", InlineWorker):
        yield
