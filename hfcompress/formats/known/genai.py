"""onnx-genai: what onnxruntime-genai and plain onnxruntime run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.errors import needs
from hfcompress.formats.format import Kind, Named
from hfcompress.formats.known.language import Language

USE = """import onnxruntime_genai as genai

model = genai.Model("{folder}")
tokenizer, parameters = genai.Tokenizer(model), genai.GeneratorParams(model)
parameters.set_search_options(max_length=16)
generator = genai.Generator(model, parameters)
generator.append_tokens(tokenizer.encode("This licence"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
"""


@dataclass(frozen=True)
class Genai(Language):
    """model.onnx, its data and genai_config.json."""

    name: ClassVar[str] = "onnx-genai"
    word: ClassVar[str] = "onnx-genai"
    runtime: ClassVar[str] = "onnxruntime"
    weights: ClassVar[str] = "*.onnx"
    folder: ClassVar[str] = "genai/"
    library: ClassVar[str] = "onnxruntime-genai"
    bound: ClassVar[float] = 0.2  # products of inputs that are rounded to int8, and an int8 cache

    def holds(self, folder: Path) -> bool:
        return (folder / "genai_config.json").is_file()

    def write(self, out: Path, *, model: Path, task: Any) -> dict[str, Any]:
        from hfcompress.formats.genai import ExportGenai

        return ExportGenai()(out, model=model, task=task)

    def decoder(self, folder: Path, threads: int) -> Any:
        from hfcompress.formats.runtimes.onnx_decoder import OnnxDecoder

        return OnnxDecoder(folder, threads)

    def tensors(self, file: Path, bits: dict[str, int]) -> list[Named]:
        from hfcompress.formats.size import named_initializers

        return named_initializers(file)

    def import_runtime(self, kind: Kind, threads: int) -> None:
        needs("onnxruntime_genai")
        import onnxruntime_genai  # noqa: F401

    def usage(self, folder: str, kind: Kind) -> str:
        return USE.format(folder=folder)


GENAI = Genai()
