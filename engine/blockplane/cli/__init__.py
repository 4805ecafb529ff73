"""The command line."""

from blockplane.cli.main import main

__all__ = ["main"]
