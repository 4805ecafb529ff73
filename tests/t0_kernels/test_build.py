"""The .pxd files are installed where another package's Cython finds them."""

from __future__ import annotations

import subprocess
import sys

SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup

setup(name="other", ext_modules=cythonize([Extension("other", ["other.pyx"])], language_level=3))
"""

OTHER = """
from libc.stdint cimport int64_t, uint64_t

from blockplane._native.algebra cimport combine_words, count_words
from blockplane._native.bits cimport count_bits, select_bit
from blockplane._native.extents cimport count_runs, fill_range, next_bit
from blockplane._native.roaring_format cimport CONTAINER_WORDS


def answers():
    cdef uint64_t words[2]
    words[0] = words[1] = 0
    fill_range(words, 3, 70, True)
    cdef const uint64_t *plus = words
    return (
        count_words(words, 2), combine_words(&plus, 1, words, NULL, NULL, 2), count_bits(words, 0, 64),
        select_bit(words, 2, 1), count_runs(words, 0, 128), next_bit(words, 5, 128, ~<uint64_t>0), CONTAINER_WORDS,
    )
"""


def test_another_package_cimports_the_kernels(tmp_path):
    (tmp_path / "setup.py").write_text(SETUP)
    (tmp_path / "other.pyx").write_text(OTHER)
    build = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=tmp_path, capture_output=True, text=True
    )
    assert build.returncode == 0, build.stdout + build.stderr
    run = subprocess.run(
        [sys.executable, "-c", "import other; print(*other.answers())"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.stdout.split() == ["67", "0", "61", "4", "1", "70", "1024"], run.stderr
