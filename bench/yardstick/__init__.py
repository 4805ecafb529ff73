"""What the benchmarks share: a tree of files, cold caches, pairs of runs, and the machine's own limits."""
