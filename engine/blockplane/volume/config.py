"""`volume.toml`: where a volume's disks are. A hint for people and for opening; the labels are the truth."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blockplane.model.errors import NotAVolumeError, RefusedError
from blockplane.model.ownfiles import read_own, replace_own

CONFIG_NAME = "volume.toml"
DISKS_DIR = "disks"
#: Where the ends of a base's disk lie, beside the volume's own disks.
BASE_DISK: Final = f"{DISKS_DIR}/base"
_PUT_BACK: Final = "put a copy of it back; or make the incremental mirror anew in another folder, from its base"
_ON_BASE: Final = "# Where the disks of this volume are, and what it is built on, which nothing else says: keep a copy."
_HOST_PORT = re.compile(r"[^/]+:\d{1,5}")


@dataclass(frozen=True, slots=True)
class VolumeConfig:
    """The volume's id and the paths of its disks in order; relative ones count from the volume's directory.

    volume_id : empty where volume.toml is lost; the disks are in no order then. base : where what it is built on is to
    be read (`volume.basing`); empty: it stands by itself. base_id : id of the snapshot there.
    """

    volume_id: bytes
    disks: tuple[str, ...]
    base: tuple[str, ...] = ()
    base_id: bytes = b""

    def paths(self, directory: Path) -> list[str]:
        """Return the disks' paths."""
        return [str(directory / disk) for disk in self.disks]


def write_config(directory: Path, config: VolumeConfig) -> None:
    """Write volume.toml: whole, or not at all; durable on return."""
    lines = [
        _ON_BASE
        if config.base
        else "# Where the disks of this volume are. Made anew from the disks' labels when lost.",
        f'id = "{config.volume_id.hex()}"',
        "disks = [",
        *(f"  {_quoted(disk)}," for disk in config.disks),
        "]",
        *(_base_lines(config) if config.base else ()),
        "",
    ]
    replace_own(directory / CONFIG_NAME, "\n".join(lines))


def read_config(directory: Path) -> VolumeConfig:
    """Read volume.toml, or find the disks in the volume's own folder where it is lost.

    Raises
    ------
    NotAVolumeError: the directory is no volume; the message says what it is.
    """
    path = directory / CONFIG_NAME
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "does not exist"
        hint = "name a volume's directory, or make one with `blockplane create`"
        if _HOST_PORT.fullmatch(str(directory)):
            hint = "a volume behind a network is named HOST:PORT/NAME"
        raise NotAVolumeError(f"{directory} {what}", hint)
    try:
        return _parsed(read_own(path).decode("utf-8", "surrogateescape"))
    except FileNotFoundError:
        if (directory / BASE_DISK).exists():
            raise NotAVolumeError(
                f"{directory} is built on a base, and has no {CONFIG_NAME} that says where it is", _PUT_BACK
            ) from None
        own = sorted((directory / DISKS_DIR).glob("[0-9]*"), key=lambda disk: (len(disk.name), disk.name))
        if not own:
            raise NotAVolumeError(
                f"{directory} is not a volume: it has no {CONFIG_NAME}", "make a volume with `blockplane create`"
            ) from None
        return VolumeConfig(b"", tuple(str(disk.relative_to(directory)) for disk in own))
    except (ValueError, RecursionError) as error:
        raise NotAVolumeError(
            f"{path} cannot be read: {error}",
            _PUT_BACK
            if (directory / BASE_DISK).exists()
            else "remove it: it is made anew from the disks in the volume's folder",
        ) from None


def config_of(directory: Path, volume_id: bytes) -> VolumeConfig:
    """Read volume.toml of an open volume, before it is written anew; errors as of `read_config`.

    Raises
    ------
    RefusedError: another volume is there by now, as after a change of the working directory.
    """
    config = read_config(directory)
    if config.volume_id not in (b"", volume_id):
        raise RefusedError(
            f"{directory} is another volume than the one that was opened by that name",
            "open it by its absolute path where the working directory changes",
        )
    return config


def _parsed(text: str) -> VolumeConfig:
    """Return what volume.toml says; ValueError: it is not what `write_config` writes."""
    found = tomllib.loads(text)
    missing = [name for name in ("id", "disks") if name not in found]
    if missing:
        raise ValueError("it is empty" if not text.strip() else f"it does not say {' and '.join(missing)}")
    volume_id, disks = found["id"], found["disks"]
    if not isinstance(volume_id, str) or not re.fullmatch("[0-9a-f]{32}", volume_id):
        raise ValueError("its id is not 32 hexadecimal digits")
    if not isinstance(disks, list) or not disks or not all(isinstance(disk, str) for disk in disks):
        raise ValueError("its disks are not a list of paths")
    base, base_id = found.get("base", []), found.get("base_id", "")
    if not isinstance(base, list) or not all(isinstance(name, str) for name in base):
        raise ValueError("its base is not a list of paths")
    if not isinstance(base_id, str) or not re.fullmatch("[0-9a-f]{32}" if base else "", base_id):
        raise ValueError("its base's id is not 32 hexadecimal digits")
    return VolumeConfig(bytes.fromhex(volume_id), tuple(disks), tuple(base), bytes.fromhex(base_id))


def _base_lines(config: VolumeConfig) -> list[str]:
    names = (f"  {_quoted(name)}," for name in config.base)
    return ["# What the volume holds only the difference from; where it was moved, say here where to.",
            "base = [", *names, "]", f'base_id = "{config.base_id.hex()}"']  # fmt: skip


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
