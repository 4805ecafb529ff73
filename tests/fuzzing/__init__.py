"""Fuzz targets: every door that takes bytes from somebody else, with mutators that know the formats (F16, F17).

The targets run in three ways:

    pip install -e '.[fuzz]'                                          atheris: libFuzzer, led by the engine's coverage
    PYTHONPATH=tests python -m fuzzing receive --runs 100000          one target for so many executions
    PYTHONPATH=tests python -m fuzzing receive --seconds 600 --corpus DIR     or so long, its finds kept
    PYTHONPATH=tests python -m fuzzing receive FILE...                what it says of inputs, without atheris
    python -m pytest tests/t8_faults/test_fuzz.py --deep [--part K/N]     each for its share of a million executions

and without atheris, once over seeds and mutants of them, in every run of the tests. A finding is an exception that is
not an error of ours, an input that takes longer than 5 s, 256 MiB more memory than the seeds take, or a promise of the
target that does not hold. The input is left where the command was started, as `finding-TARGET-...`.
"""
