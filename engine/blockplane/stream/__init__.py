"""Image streams: FORMAT.md, its codec, writer, reader, and stream files as block sources."""
