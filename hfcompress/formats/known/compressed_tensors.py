"""compressed-tensors: a quantized causal LM that `AutoModelForCausalLM.from_pretrained` loads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.folders.guard import read_config
from hfcompress.formats.format import Kind
from hfcompress.formats.known.torch_files import TorchFiles


@dataclass(frozen=True)
class CompressedTensors(TorchFiles):
    """A transformers folder whose config has the grids of its packed matrices; wants compressed-tensors installed."""

    name: ClassVar[str] = "compressed-tensors"
    word: ClassVar[str] = "transformers"
    kinds: ClassVar[tuple[Kind, ...]] = ("language",)
    source: ClassVar[str] = "patched"
    bound: ClassVar[float] = 0.01  # an embedding's rows are rounded to float16

    def holds(self, folder: Path) -> bool:
        if not (folder / "config.json").is_file():
            return False
        stated = read_config(folder).get("quantization_config")
        return isinstance(stated, dict) and stated.get("quant_method") == "compressed-tensors"

    def write(self, out: Path, *, model: Path, task: Any) -> dict[str, Any]:
        from hfcompress.formats.compressed_tensors import ExportTransformers

        return ExportTransformers()(out, model=model, task=task)


COMPRESSED_TENSORS = CompressedTensors()
