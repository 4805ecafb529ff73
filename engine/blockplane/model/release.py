"""The release: what streams, tapes and metrics name as their writer."""

from typing import Final

WRITER: Final = "blockplane 0.1"
