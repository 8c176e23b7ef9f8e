"""What the formats of quantized causal LMs have in common: they are opened as Decoders."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.formats.format import Files, Kind


@dataclass(frozen=True)
class Language(Files):
    """Written from a packed model, and asked token by token."""

    kinds: ClassVar[tuple[Kind, ...]] = ("language",)
    source: ClassVar[str] = "patched"

    def decoder(self, folder: Path, threads: int) -> Any:
        """Return the Decoder of a folder."""
        raise NotImplementedError

    def _opened(self, folder: Path, kind: Kind, threads: int | None) -> Any:
        return self.decoder(folder, threads or len(os.sched_getaffinity(0)))

    def serve(self, folder: Path, kind: Kind, length: int, threads: int) -> dict[str, float]:
        from hfcompress.formats import language_memory

        return language_memory.serve(folder, length, threads)
