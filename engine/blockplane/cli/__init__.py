"""The command line."""

from blockplane.cli.start import main

__all__ = ["main"]
