"""Build the compiled kernels: one table of extensions, directives once.

Environment switches (each variant keeps its own generated C, objects and library directory):

    BLOCKPLANE_DEBUG=1     bounds checks on, asserts on, -O1 -g
    BLOCKPLANE_SANITIZE=1  as debug, under the address and undefined-behaviour sanitizers
    BLOCKPLANE_ANNOTATE=1  Cython's annotated HTML beside the generated C

An instrumented build without touching the release modules:

    BLOCKPLANE_DEBUG=1 python setup.py build --build-lib build/debug-lib
    PYTHONPATH=build/debug-lib python -m pytest tests/t0_kernels

`.ci/sanitize` builds the kernels under the sanitizers and runs the tests that call them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
EXT = Path("ext")  # relative: setuptools wants source paths relative to setup.py
PACKAGE = "blockplane._native"
SHARED_UTILITY = f"{PACKAGE}._cyutility"


class Kernel(NamedTuple):
    """One row of the extension table: `ext/<name>.pyx` becomes `blockplane._native.<name>`."""

    name: str
    headers: tuple[str, ...] = ()  # ext/*.h it includes: a change rebuilds it, and the sdist carries them


KERNELS = (
    Kernel("algebra", ("algebra.h", "algebra_x86.h")),
    Kernel("bits", ("algebra.h", "algebra_x86.h")),
    Kernel("extents", ("algebra.h", "algebra_x86.h")),
    Kernel("roaring_decode"),
    Kernel("roaring_encode"),
    Kernel("checksum", ("checksum.h", "checksum_x86.h")),
    Kernel("parity", ("parity.h",)),
    Kernel("geometry"),
    Kernel("diskio"),
    Kernel("segments"),
)


def switch(name: str) -> bool:
    """Whether the environment turns BLOCKPLANE_<name> on."""
    return os.environ.get(f"BLOCKPLANE_{name}", "0") not in ("", "0")


SANITIZE = switch("SANITIZE")
DEBUG = switch("DEBUG") or SANITIZE
ANNOTATE = switch("ANNOTATE")
VARIANT = "sanitize" if SANITIZE else "debug" if DEBUG else "release"
BUILD = Path("build") / VARIANT
STAGED = Path("build") / "pxd"

DIRECTIVES = {
    "language_level": 3,
    "embedsignature": True,
    "binding": True,
    "boundscheck": DEBUG,
    "initializedcheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
}

SANITIZERS = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
# -O3 and never -march=native: a wheel runs on other machines; vector variants carry their own target attributes.
COMPILE = ["-O1", "-g", "-UNDEBUG"] if DEBUG else ["-O3", "-g0"]
COMPILE += ["-Wall", "-Wno-unused-function", "-pthread"] + (SANITIZERS if SANITIZE else [])
LINK = ["-pthread"] + (SANITIZERS if SANITIZE else [])


def copy_if_changed(source: Path, target: Path) -> None:
    """Copy a file, keeping the target's time where the bytes are equal, so that nothing is rebuilt for it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or target.read_bytes() != source.read_bytes():
        shutil.copyfile(source, target)


def stage_pxds() -> None:
    """Lay ext/*.pxd out under their dotted names: Cython ignores them in a flat directory."""
    package = ROOT / STAGED / PACKAGE.replace(".", "/")
    package.mkdir(parents=True, exist_ok=True)
    for folder in (package, package.parent):
        (folder / "__init__.pxd").touch()
    for pxd in sorted((ROOT / EXT).glob("*.pxd")):
        copy_if_changed(pxd, package / pxd.name)


def extensions() -> list[Extension]:
    """Return the table's extensions and Cython's shared utility module (5 s to 1.3 s compile time a module)."""
    rows = [
        Extension(
            f"{PACKAGE}.{kernel.name}",
            sources=[str(EXT / f"{kernel.name}.pyx")],
            depends=[str(EXT / header) for header in kernel.headers],
            include_dirs=[str(EXT)],
            extra_compile_args=COMPILE,
            extra_link_args=LINK,
        )
        for kernel in KERNELS
    ]
    # cythonize generates this source, under its build_dir
    shared = Extension(SHARED_UTILITY, sources=["_cyutility.c"], extra_compile_args=COMPILE, extra_link_args=LINK)
    return [*rows, shared]


class BuildKernels(build_ext):
    """build_ext that keeps the variants apart and installs the .pxd files beside the modules."""

    def finalize_options(self) -> None:
        """Give the variant its own object directory; rebuild all when the target holds another variant."""
        super().finalize_options()
        self.build_temp = str(BUILD / "objects")
        self.force = self.force or DEBUG or self._modules_are_of_another_variant()

    def _modules_are_of_another_variant(self) -> bool:
        stamp = self._stamp()
        return stamp.exists() and stamp.read_text() != VARIANT

    def _stamp(self) -> Path:
        """The file that names the variant of the modules standing in the target directory."""
        return Path("build") / ("inplace-variant" if self.inplace else f"{Path(self.build_lib).name}-variant")

    def run(self) -> None:
        """Build, then copy the .pxd files to where the modules went."""
        super().run()
        self._stamp().write_text(VARIANT)
        package = Path("engine" if self.inplace or self.editable_mode else self.build_lib, *PACKAGE.split("."))
        for pxd in sorted(EXT.glob("*.pxd")):
            copy_if_changed(pxd, package / pxd.name)


stage_pxds()
setup(
    ext_modules=cythonize(
        extensions(),
        build_dir=str(BUILD / "cython"),
        include_path=[str(STAGED)],
        compiler_directives=DIRECTIVES,
        shared_utility_qualified_name=SHARED_UTILITY,
        annotate=ANNOTATE,
        force=DEBUG or ANNOTATE,
        quiet=True,
    ),
    cmdclass={"build_ext": BuildKernels},
)
