"""Files, directories and attributes on a volume, a snapshot or a stream: paths, put, get, check."""

from blockplane.filesystem.check import CheckReport
from blockplane.filesystem.copyout import GetReport
from blockplane.filesystem.difference import Change, Difference, compare
from blockplane.filesystem.errors import FileSystemDamagedError, PathError
from blockplane.filesystem.file import File
from blockplane.filesystem.filesystem import FileSystem
from blockplane.filesystem.inode import DOS_ARCHIVE, DOS_HIDDEN, DOS_READ_ONLY, DOS_SYSTEM
from blockplane.filesystem.putreport import PutReport
from blockplane.filesystem.stat_result import DirEntry, StatResult

__all__ = [
    "DOS_ARCHIVE",
    "DOS_HIDDEN",
    "DOS_READ_ONLY",
    "DOS_SYSTEM",
    "Change",
    "CheckReport",
    "Difference",
    "DirEntry",
    "File",
    "FileSystem",
    "FileSystemDamagedError",
    "GetReport",
    "PathError",
    "PutReport",
    "StatResult",
    "compare",
]
