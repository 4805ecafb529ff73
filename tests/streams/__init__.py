"""Streams for tests: tiny ones by recipe, and a storage that is not a volume."""
