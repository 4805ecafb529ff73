"""Run one target: over inputs that are named, or led by coverage for so many executions or seconds."""

from __future__ import annotations

import argparse
import gc
import os
import random
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

HANG_S = 5
#: What one input may add to the peak of memory, and what the process may come to.
MORE_MIB, MOST_MIB = 256, 1024


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzzing", description=__doc__)
    parser.add_argument("target", help="one of tests/fuzzing/targets.py")
    parser.add_argument("inputs", nargs="*", help="say what the target says of these files, and stop")
    parser.add_argument("--runs", type=int, default=-1, help="executions; without end by default")
    parser.add_argument("--seconds", type=int, default=0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer's random numbers; 0: another each time")
    parser.add_argument("--corpus", help="a folder of inputs to begin with, which gets those that reach something new")
    parser.add_argument("--findings", default=".", help="the folder for inputs that find something")
    return parser.parse_args()


def fuzz(args: argparse.Namespace) -> None:
    """Hand over to libFuzzer, which ends the process: 0 where nothing was found."""
    import atheris
    from atheris.import_hook import HookManager

    # as atheris.instrument_imports, but without its tracing of comparisons, which keeps what was compared: arrays
    with HookManager({"blockplane"}, set(), enable_loader_override=True, trace_dataflow=False):
        from fuzzing.mutators import Hand
        from fuzzing.targets import TARGETS

    from faults.inline import inline_workers

    target, n_done = TARGETS[args.target], 0

    def one(data: bytes) -> None:
        before = peak_mib()
        target.refusal(data)
        assert peak_mib() - before < MORE_MIB, f"took {peak_mib() - before} MiB"
        nonlocal n_done
        n_done += 1
        if n_done % target.collect_every == 0:
            gc.collect()

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        return target.mutate(data, most, Hand(random.Random(seed), lambda raw, n: atheris.Mutate(raw or b"\0", n)))

    with tempfile.TemporaryDirectory() as folder, inline_workers():
        seeds = Path(folder, "seeds")
        seeds.mkdir()
        for number, data in enumerate(target.seeds()):
            (seeds / f"{number}").write_bytes(data)
            one(data)
        options = [
            f"-max_len={target.most_bytes}", f"-timeout={HANG_S}", f"-rss_limit_mb={MOST_MIB}",
            f"-runs={args.runs}", f"-max_total_time={args.seconds}", f"-seed={args.seed}", "-print_final_stats=1",
            "-reduce_inputs=0",  # else whole streams give way to stumps that reach as much
            f"-artifact_prefix={os.path.join(args.findings, f'finding-{target.name}-')}",
            *([args.corpus] if args.corpus else []), str(seeds),
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutator)
        atheris.Fuzz()


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def say(name: str, paths: list[str], show: Callable[[str], object] = print) -> None:
    """Run a target over files; an exception that is none of ours comes out."""
    from faults.inline import inline_workers
    from fuzzing.targets import TARGETS

    with inline_workers():
        for path in paths:
            refusal = TARGETS[name].refusal(Path(path).read_bytes())
            show(f"{path}: {'taken' if refusal is None else f'refused: {refusal}'}")


if __name__ == "__main__":
    given = arguments()
    if given.inputs:
        say(given.target, given.inputs)
    else:
        fuzz(given)
