"""patched: weights that no native class has the shape of, with surgery.json, which leads to it."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.formats.format import Kind
from hfcompress.formats.known.torch_files import TorchFiles

LANGUAGE = """from pathlib import Path

from hfcompress.formats.runtimes.decoder import open_decoder

decoder = open_decoder(Path("{folder}"), threads=1)
print(decoder.append([5, 17, 40])[-1].argmax())  # the token that follows these
"""


@dataclass(frozen=True)
class Patched(TorchFiles):
    """Loaded by `hfcompress.load` alone; what is delivered in place of it is its ONNX.

    Of a causal LM surgery.json names the grids of its integers, and torch computes with the values that these stand
    for: how it answers, not how fast.
    """

    name: ClassVar[str] = "patched"
    word: ClassVar[str] = "surgery"
    kinds: ClassVar[tuple[Kind, ...]] = ("text", "images", "language")
    source: ClassVar[str] = "patched"
    library: ClassVar[str] = "hfcompress"
    stock: ClassVar[bool] = False

    def holds(self, folder: Path) -> bool:
        return (folder / "surgery.json").is_file()

    def runtime_of(self, kind: Kind) -> str:
        return "torch, simulated" if kind == "language" else self.runtime

    def usage(self, folder: str, kind: Kind) -> str:
        return LANGUAGE.format(folder=folder) if kind == "language" else super().usage(folder, kind)

    def write(self, out: Path, *, model: Path, task: Any) -> dict[str, Any]:
        from hfcompress.formats import kind_of
        from hfcompress.formats.size import shipped_files

        if kind_of(model) != "language":
            return super().write(out, model=model, task=task)
        for file in shipped_files(model):  # integers are what they are
            shutil.copyfile(file, out / file.name)
        return {}


PATCHED = Patched()
