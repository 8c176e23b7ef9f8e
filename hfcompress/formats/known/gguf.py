"""gguf: one file for llama.cpp."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.formats.format import Kind, Named
from hfcompress.formats.known.language import Language

USE = """from llama_cpp import Llama

model = Llama("{folder}/model.gguf", verbose=False)
print(model("This licence", max_tokens=8)["choices"][0]["text"])
"""


@dataclass(frozen=True)
class Gguf(Language):
    """model.gguf beside the config and the tokenizer, which llama.cpp does not read."""

    name: ClassVar[str] = "gguf"
    word: ClassVar[str] = "gguf"
    runtime: ClassVar[str] = "llama.cpp"
    weights: ClassVar[str] = "*.gguf"
    folder: ClassVar[str] = "gguf/"
    library: ClassVar[str] = "gguf"
    bound: ClassVar[float] = 0.1  # llama.cpp rounds what a product reads to 8 bits
    widened_bits: ClassVar[int] = 1

    def write(self, out: Path, *, model: Path, task: Any) -> dict[str, Any]:
        from hfcompress.formats.gguf import ExportGguf

        return ExportGguf()(out, model=model)

    def decoder(self, folder: Path, threads: int) -> Any:
        from hfcompress.formats.runtimes.llama_decoder import LlamaDecoder

        return LlamaDecoder(folder, threads)

    def tensors(self, file: Path, bits: dict[str, int]) -> list[Named]:
        from hfcompress.formats.size import named_gguf_tensors

        return named_gguf_tensors(file)

    def import_runtime(self, kind: Kind, threads: int) -> None:
        from hfcompress.formats.runtimes.llama_decoder import import_llama

        import_llama()

    def usage(self, folder: str, kind: Kind) -> str:
        return USE.format(folder=folder)


GGUF = Gguf()
