"""Compiled kernels, one module per concept; sources in `ext/`. Each is imported by one thin module only."""
