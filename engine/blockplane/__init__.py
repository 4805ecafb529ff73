"""File-system image transfer: snapshots as sets of block numbers."""
