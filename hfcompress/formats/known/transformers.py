"""transformers: what `from_pretrained` loads."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hfcompress.formats.format import Kind
from hfcompress.formats.known.torch_files import TorchFiles


@dataclass(frozen=True)
class Transformers(TorchFiles):
    """`save_pretrained`'s layout; also a folder that is incomplete, whose opening says what is missing."""

    name: ClassVar[str] = "transformers"
    word: ClassVar[str] = "transformers"
    kinds: ClassVar[tuple[Kind, ...]] = ("text", "images", "clicks", "language")

    def holds(self, folder: Path) -> bool:
        return True


TRANSFORMERS = Transformers()
