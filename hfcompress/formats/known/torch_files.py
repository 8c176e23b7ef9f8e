"""What the formats have in common that torch computes: safetensors beside a config.json."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.folders.weights import weight_files
from hfcompress.formats.format import Files, Kind, Named

LOADED = """from transformers import AutoModelFor{task}

model = AutoModelFor{task}.from_pretrained("{folder}")"""
PATCHED = """import hfcompress  # no native class has this shape; surgery.json says it

model = hfcompress.load("{folder}")"""
TEXT = """
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
encoded = tokenizer("This licence may be terminated.", return_tensors="pt")
print(model.config.id2label[int(model(**encoded).logits.argmax())])
"""
IMAGES = """
from transformers import AutoImageProcessor
from transformers.image_utils import load_image  # upright, in RGB

processor = AutoImageProcessor.from_pretrained("{folder}")
pixels = processor(load_image("image.png"), return_tensors="pt")["pixel_values"]
print(model.config.id2label[int(model(pixel_values=pixels).logits.argmax())])
"""
LANGUAGE = """
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
written = model.generate(tokenizer("This licence", return_tensors="pt")["input_ids"], max_new_tokens=8)
print(tokenizer.decode(written[0]))
"""
CLICKS = """from pathlib import Path

from hfcompress.formats import FORMATS  # no class of transformers has this model

model = FORMATS["transformers"].open(Path("{folder}"), "clicks")
print(model.logits(['{{"user": 1, "item": 2, "category": 0, "context": 0, "price": 1.0, "time": 0.5}}']))
"""
ASKED = {"text": TEXT, "images": IMAGES, "language": LANGUAGE}
TASKS = {"text": "SequenceClassification", "images": "ImageClassification", "language": "CausalLM"}


@dataclass(frozen=True)
class TorchFiles(Files):
    """Weights in safetensors that torch computes."""

    runtime: ClassVar[str] = "torch"
    weights: ClassVar[str] = "*.safetensors"
    library: ClassVar[str] = "transformers"
    bound: ClassVar[float] = 1e-5

    def write(self, out: Path, *, model: Path, task: Any) -> dict[str, Any]:
        """Load the model and save it: what a stage that changes weights writes at its end."""
        from hfcompress.formats import kind_of

        if (kind := kind_of(model)) == "clicks":
            from hfcompress.architectures.click_model import load_click_model, save_click_model

            save_click_model(load_click_model(model), out)
        elif kind == "language":
            from hfcompress.architectures.models import load_tokenizer
            from hfcompress.formats.runtimes.torch_decoder import load

            load(model).save_pretrained(out)
            load_tokenizer(model).save_pretrained(out)
        else:
            from hfcompress.architectures.models import load_classifier, load_image_processor, load_tokenizer, save

            processor = load_image_processor(model) if kind == "images" else load_tokenizer(model)
            save(load_classifier(model), processor, out)
        return {}

    def network(self, folder: Path, threads: int) -> Any:
        from hfcompress.formats.runtimes import networks

        return networks.torch_network(folder, threads)

    def _opened(self, folder: Path, kind: Kind, threads: int | None) -> Any:
        if kind != "language":
            return super()._opened(folder, kind, threads)
        import os

        from hfcompress.formats.runtimes.torch_decoder import TorchDecoder

        return TorchDecoder(folder, threads or len(os.sched_getaffinity(0)))

    def files(self, folder: Path) -> list[Path]:
        return weight_files(folder)

    def tensors(self, file: Path, bits: dict[str, int]) -> list[Named]:
        from hfcompress.formats.size import named_tensors

        return named_tensors(file, bits)

    def import_runtime(self, kind: Kind, threads: int) -> None:
        import torch

        modules = {
            "language": ["hfcompress.formats.runtimes.torch_decoder"],
            "clicks": ["hfcompress.architectures.click_model"],
        }
        others = ["transformers.models.auto.modeling_auto", "hfcompress.architectures.models"]
        for module in modules.get(kind, others):
            importlib.import_module(module)
        torch.set_num_threads(threads)

    def serve(self, folder: Path, kind: Kind, length: int, threads: int) -> dict[str, float]:
        from hfcompress.formats import language_memory, memory

        if kind == "language":
            return language_memory.serve(folder, length, threads)
        serving = {"clicks": memory.serve_clicks, "images": memory.serve_images, "text": memory.serve_transformers}
        return serving[kind](folder, length, threads)

    def usage(self, folder: str, kind: Kind) -> str:
        if kind == "clicks":
            return CLICKS.format(folder=folder)
        load = LOADED if self.stock else PATCHED
        return load.format(task=TASKS[kind], folder=folder) + ASKED[kind].format(folder=folder)
