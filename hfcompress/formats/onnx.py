"""onnx: fp32 export, and Optimum's dynamic and static int8: what a user would otherwise do."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.architectures.text_inputs import complete
from hfcompress.engines import optimum
from hfcompress.errors import CheckFailed
from hfcompress.formats.bits_claimed import require_stored
from hfcompress.stage import GRAPHS, PLACE, added
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.tasks.vocabulary import TOKENIZER_FILES

PARITY = 1e-4
PARITY_TEXTS = 16


@dataclass(frozen=True)
class ExportOnnx:
    """Write model.onnx in fp32; its logits must be the model's to 1e-4 on real texts."""

    engine: Literal["own", "optimum"] = added("own")
    """Whose exporter: ours, or Optimum's."""
    python: Path | None = field(default=None, metadata=PLACE)
    """See `DynamicInt8`."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = GRAPHS

    @property
    def foreign_versions(self) -> dict[str, str]:
        """See `Stage`."""
        return dict(optimum.require(self.python).versions) if self.engine == "optimum" else {}

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        from hfcompress.architectures.models import load_classifier, load_tokenizer
        from hfcompress.formats import onnx_export

        network, tokenizer = load_classifier(model), load_tokenizer(model)
        if self.engine == "optimum":
            scratch = out / "work" / "exported"
            optimum.require(self.python)("export", model, scratch, out / "work", task="text-classification")
            take_graph(scratch, out)
        else:
            onnx_export.export(network, out)
        copy_companions(model, out)
        texts = task.data.texts("validation")[:PARITY_TEXTS]
        distance, largest = onnx_export.parity(
            network, out / "model.onnx", onnx_export.parity_batch(tokenizer, texts, task.max_length)
        )
        require_parity(distance, largest)
        return {"largest_logit_difference": distance}

    def predict(self, model: Shape, *, task: TextClassification) -> Shape:
        if self.engine == "optimum":
            optimum.require(self.python)
        return model.with_(format="onnx")


@dataclass(frozen=True)
class ByOptimum:
    """What both kinds of int8 by Optimum share."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*GRAPHS, "optimum-onnx")

    @property
    def optimum(self) -> optimum.Optimum:
        """Where it is.

        Raises:
            UserError: see `engines.optimum.require`.
        """
        return optimum.require(getattr(self, "python", None))

    @property
    def foreign_versions(self) -> dict[str, str]:
        """See `Stage`."""
        return dict(self.optimum.versions)

    def predict(self, model: Shape, *, task: TextClassification) -> Shape:
        assert self.optimum
        return model.with_(format="onnx", weight_bits=8, embedding_bits=8)


@dataclass(frozen=True)
class DynamicInt8(ByOptimum):
    """Optimum's ORTQuantizer: int8 weights, activations quantized at run time. Takes an fp32 ONNX folder."""

    python: Path | None = field(default=None, metadata=PLACE)
    """The Python that has Optimum, where this one has not."""

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        scratch = out / "work" / "quantized"
        self.optimum("dynamic", model, scratch, out / "work")
        keep_int8(model, scratch, out)
        return {"integer_kernels": count(out)}


@dataclass(frozen=True)
class StaticInt8(ByOptimum):
    """Optimum's ORTQuantizer with ranges calibrated on training texts. Takes an fp32 ONNX folder."""

    calibration_texts: int = 128
    python: Path | None = field(default=None, metadata=PLACE)
    """See `DynamicInt8`."""

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        from hfcompress.architectures.models import load_tokenizer
        from hfcompress.formats.runtimes.sessions import onnx_session

        data = task.data.encode(load_tokenizer(model), task.max_length, "train")
        session = onnx_session(model / "model.onnx", threads=1)
        names = [entry.name for entry in session.get_inputs()]
        data = data.select(range(min(self.calibration_texts, len(data))))
        data = data.map(lambda row: complete(row, names), remove_columns=data.column_names)
        rows = out / "work" / "rows.json"
        rows.write_text(json.dumps(data.to_list()), encoding="utf-8")
        scratch = out / "work" / "quantized"
        self.optimum("static", model, scratch, out / "work", rows=str(rows))
        keep_int8(model, scratch, out)
        return {"integer_kernels": count(out)}


def keep_int8(model: Path, scratch: Path, out: Path) -> None:
    """Take the graph that Optimum quantized, in a form that every processor computes exactly, and its companions."""
    from hfcompress.formats.saturation import require_exact
    from hfcompress.formats.unsigned_weights import store_file_unsigned

    take_graph(scratch, out)
    store_file_unsigned(out / "model.onnx")
    require_exact(out / "model.onnx")
    require_stored(out, 8, "onnxruntime's quantizer knows no weight of it; give another {.base}")
    copy_companions(model, out)


def take_graph(scratch: Path, out: Path) -> None:
    """Move what Optimum wrote to its place as model.onnx."""
    for file in scratch.glob("model*.onnx*"):
        shutil.move(file, out / file.name.replace("_quantized", ""))


def count(out: Path) -> int:
    from hfcompress.formats import onnx_export

    return onnx_export.integer_kernels(out / "model.onnx")


def require_parity(distance: float, largest: float) -> None:
    """Refuse a float32 graph whose logits are not the model's.

    Args:
        distance: the largest difference of logits; largest: the largest logit.

    Raises:
        CheckFailed: they differ by more than PARITY of the largest, or are nan.
    """
    if not distance <= PARITY * max(1.0, largest):
        raise CheckFailed(
            f"the exported graph's logits differ by {distance:.2g} from the model's (allowed {PARITY} of the "
            f"largest, {largest:.3g}); its weights are too large for float32 sums: give another model"
        )


def copy_companions(source: Path, out: Path) -> None:
    """config.json and the tokenizer's or image processor's files: what makes a folder with model.onnx loadable."""
    for name in ("config.json", "preprocessor_config.json", *TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
