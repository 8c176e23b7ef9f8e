"""export: what a run delivers, or a model's folder, as ONNX, LiteRT, or ONNX for TensorRT."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from hfcompress.architectures import ENCODERS
from hfcompress.architectures.kinds import is_image_folder
from hfcompress.architectures.models import load_image_processor
from hfcompress.errors import OptionError, Reason, UserError
from hfcompress.folders import fetch
from hfcompress.folders.files import PART, flush
from hfcompress.folders.guard import read_config
from hfcompress.folders.inside import inside
from hfcompress.folders.permissions import as_umask_says
from hfcompress.folders.record import read_json, write_json
from hfcompress.formats import format_of, onnx_export, tensorrt_rules
from hfcompress.formats.litert import to_litert
from hfcompress.formats.memory import image_size
from hfcompress.formats.onnx import require_parity
from hfcompress.formats.onnx_export import Array, read_model
from hfcompress.formats.tensorrt import quantize_for_tensorrt
from hfcompress.formats.tensorrt_rules import violations
from hfcompress.report.console import candidate_row
from hfcompress.tasks.image_folders import is_image, walked
from hfcompress.tasks.vocabulary import TOKENIZER_FILES

if TYPE_CHECKING:
    from hfcompress.tasks.task import Task

COMPANIONS = ("config.json", "preprocessor_config.json", *TOKENIZER_FILES)
CALIBRATION, COMPARED = 64, 300  # images
Images = Callable[[Path, int], Array]  # (folder of the model, most) -> float32 [images, 3, height, width]


@dataclass(frozen=True)
class Delivered:
    """What was written, and what a reader must know of it."""

    folder: Path
    lines: tuple[str, ...]


def export(name: str, to: str, out: Path, *, bits: int, images: Images | None, python: Path | None) -> Delivered:
    """Write a model into a new folder.

    Args:
        name: a run, whose compressed model is meant, or the folder of one model.
        to: onnx, litert or tensorrt-onnx.
        bits: of a LiteRT model: 32 or 8.
        images: where images for calibration and comparison come from; None where none were given.
        python: the one that has litert-torch.

    Raises:
        UserError: nothing that can be exported so; the folder is there already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(".out", "is there already and not empty; give another folder", out)
    source = delivered_model(name)
    if inside_of := holding(out, source):
        raise OptionError(
            ".out", "lies in {place}, the folder of a model; give one outside of it", out, place=inside_of
        )
    if images is not None and not is_image_folder(source):
        raise OptionError(".images", "{name} reads texts; leave it out", name=source.name)
    if (found := format_of(source)).word not in ("onnx", "transformers", "surgery"):
        raise UserError(f"{source} is {found.word}: its run has written the formats that such a model has")
    # What is half written, also by a process that was killed, must not be taken for an export.
    part = out.with_name(out.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if to == "onnx":
            lines = export_onnx(source, part)
        elif to == "litert":
            lines = export_litert(source, part, bits, images, python)
        else:
            lines = export_tensorrt(source, part, images)
        for file in COMPANIONS:
            if (source / file).is_file() and not (part / file).exists():
                shutil.copyfile(source / file, part / file)
        as_umask_says(part)
        flush([file for file in part.rglob("*") if file.is_file()])
        part.replace(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Delivered(out, tuple(lines))


def holding(out: Path, source: Path) -> Path | None:
    """Return the folder of a model that `out` would lie in: the source, or another with a record of its files."""
    above = out.expanduser().resolve().parents
    return next((place for place in above if place == source.resolve() or (place / "record.json").is_file()), None)


def delivered_model(name: str) -> Path:
    """The folder of the model that a run delivers, or the folder itself.

    Raises:
        UserError: the folder is neither, or the run has delivered nothing that is still there.
    """
    folder = fetch.fetch(name)
    if (folder / "report.json").is_file():
        report = read_json(folder / "report.json")
        if not report.get("verdicts"):
            raise UserError(f"{folder}: its report has no verdict, so no model that it delivers")
        row = candidate_row(report)
        model = None if row["path"] is None else inside(folder, row["path"], "report.json")
        if model is None or not (model / "config.json").is_file():
            raise UserError(f"{folder}: its model {row['name']} is not in the run any more; run the recipe again")
        return model
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} delivers nothing: neither report.json (a finished run) nor config.json (a model)")
    return folder


def torch_model(folder: Path) -> Path:
    """The folder of torch weights that a model was made from: its own, or its nearest parent's in the same run.

    Raises:
        UserError: there are none.
    """
    found = folder
    while format_of(found).word == "onnx":
        record = found / "record.json"
        name = read_json(record, "inputs")["inputs"].get("model") if record.is_file() else None
        parent = None if name is None else inside(found.parent, name, str(record))
        if parent is None or parent == found or not (parent / "config.json").is_file():
            raise UserError(f"{folder} is ONNX, and the torch model it was made from is not beside it; give that one")
        found = parent
    return found


def model_type(folder: Path) -> str | None:
    return read_config(folder).get("model_type")


def export_onnx(source: Path, out: Path) -> list[str]:
    """The ONNX that is there, fp32 or int8; of torch weights the fp32 export."""
    if format_of(source).word == "onnx":
        for file in source.glob("*.onnx*"):
            shutil.copyfile(file, out / file.name)
        kind = "int8" if is_quantized(read_model(source / "model.onnx")) else "fp32"
        return [f"{source.name}: its {kind} model.onnx"]
    return [f"{source.name}: fp32, {export_fp32(source, out):.2g} from torch's logits at most"]


def export_fp32(source: Path, out: Path) -> float:
    """model.onnx of torch weights; the largest difference of logits to torch."""
    from hfcompress.architectures.models import load_classifier, load_tokenizer

    network = load_classifier(source)
    if is_image_folder(source):
        from hfcompress.formats.onnx_images import export_images

        return export_images(network, out, image_size(source))
    if network.config.model_type not in ENCODERS:
        known = ", ".join(ENCODERS)
        raise UserError(f"{source} is a {network.config.model_type}: {known} and image classifiers can be exported")
    onnx_export.export(network, out)
    batch = onnx_export.parity_batch(load_tokenizer(source), ["a text of some words", "another"], 16)
    distance, largest = onnx_export.parity(network, out / "model.onnx", batch)
    require_parity(distance, largest)
    return distance


def export_litert(source: Path, out: Path, bits: int, images: Images | None, python: Path | None) -> list[str]:
    """model.tflite from the torch weights behind a model, compared with torch."""
    from hfcompress.architectures.models import load_classifier
    from hfcompress.formats.runtimes.litert_network import find_python

    weights = torch_model(source)
    if not is_image_folder(weights):
        raise UserError(
            f"{weights}: only image classifiers are exported to LiteRT; litert-torch 0.10 converts a BERT, "
            "and its logits are not torch's"
        )
    find_python(python)
    if images is None:
        raise OptionError(
            ".images", "LiteRT's answers are compared with torch's on images; give a folder of some hundred"
        )
    pixel_values = images(weights, COMPARED)
    calibration = spread(pixel_values, CALIBRATION) if bits == 8 else None
    found = to_litert(load_classifier(weights), out, pixel_values, calibration, python)
    write_json(out / "export.json", {"from": weights.name, "bits": bits} | found)
    lines = [] if weights == source else [f"from {weights.name}: the weights of {source.name} are ONNX alone"]
    return [
        *lines,
        f"model.tflite: {found['bytes'] / 1e6:.2f} MB in {'int8' if bits == 8 else 'float32'}; on {found['images']} "
        f"images its top-1 is torch's in {found['top1_agreement']:.1%}, its logits differ by "
        f"{found['largest_logit_difference']:.2g} at most (largest logit {found['largest_logit']:.3g})",
    ]


def export_tensorrt(source: Path, out: Path, images: Images | None) -> list[str]:
    """model.onnx that keeps TensorRT's documented rules; image classifiers are quantized for it, others must be so."""
    from hfcompress.formats import tensorrt as tensorrt_onnx

    if not is_image_folder(source) and model_type(source) not in ENCODERS:
        raise UserError(
            f"{source}: its model_type is {model_type(source)}; encoders and image classifiers are exported for it"
        )
    lines = []
    file = source / "model.onnx"
    model = read_model(file) if file.is_file() else None
    if is_image_folder(source) and (model is None or not keeps_rules(model)):
        if model is not None and is_quantized(model):
            broken = next(tensorrt_rules.violations(model))
            lines.append(f"quantized anew, symmetrically, from its torch weights, since {broken}")
        model = requantized(source, model, out, images)
    elif model is None:
        reason = "{source} has no int8 graph; run its recipe with {qat.target} tensorrt and export that run"
        raise UserError(Reason(reason, source=source))
    else:
        tensorrt_onnx.dequantize_embeddings_whole(model)
        if is_quantized(model) and not tensorrt_rules.is_symmetric(model):
            reason = (
                "{source}: its activations are uint8 with zero points, and TensorRT takes int8 around 0 alone; "
                "run the recipe with {qat.target} tensorrt"
            )
            raise UserError(Reason(reason, source=source.name))
    tensorrt_rules.require(model, f"{source.name}/model.onnx")
    onnx.save(model, str(out / "model.onnx"))
    command = tensorrt_rules.trtexec(model, "model.onnx", shapes_of(source, model))
    kept = f"keeps TensorRT's {len(tensorrt_rules.RULES)} documented rules for Q/DQ (checked here, not run on a GPU)"
    return [*lines, kept, f"{command}    # TensorRT 11; 10.x also wants --stronglyTyped"]


def requantized(source: Path, model: Any, out: Path, images: Images | None) -> Any:
    """A symmetric int8 graph of an image classifier, from its fp32 ONNX or its torch weights."""
    if images is None:
        raise OptionError(".images", "the ranges of int8 activations are found on images; give a folder of some dozen")
    weights = source
    if model is None or is_quantized(model):
        weights = torch_model(source)
        export_fp32(weights, out)
        place = out / "model.onnx"
    else:
        place = source / "model.onnx"
    found = quantize_for_tensorrt(place, (image[None] for image in images(weights, CALIBRATION)))
    (out / "model.onnx").unlink(missing_ok=True)
    return found


def keeps_rules(model: Any) -> bool:
    return is_quantized(model) and next(violations(model), None) is None


def is_quantized(model: Any) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def shapes_of(source: Path, model: Any) -> dict[str, tuple[int, ...]]:
    """One request: an image, or a text of 128 tokens."""
    if is_image_folder(source):
        return {"pixel_values": (1, 3, *image_size(source))}
    return {entry.name: (1, 128) for entry in model.graph.input}


def spread(pixel_values: Array, most: int) -> Array:
    """At most so many, evenly over all."""
    return pixel_values[evenly(len(pixel_values), most)]


def evenly(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly over all."""
    return [int(i) for i in np.linspace(0, count - 1, min(most, count)).round()]


def task_images(task: "Task") -> Images:
    """Training images of a task that `has_images`, evenly over all."""

    def read(model: Path, most: int) -> Array:
        from hfcompress.tasks.image_data import pixel_values

        rows = task.data.images("train")
        chosen = (rows[i] for i in evenly(len(rows), most))
        return np.asarray(pixel_values(load_image_processor(model), chosen))

    return read


def read_images(place: Path) -> Images:
    """Images of a folder (any depth) or of a parquet file's column `image`, as the model's processor makes them.

    Raises:
        UserError: there is no image, or one cannot be decoded.
    """

    def read(model: Path, most: int) -> Array:
        from hfcompress.tasks.image_input import decode, pixel_values

        rows = stored_images(place)
        if not rows:
            raise OptionError(".images", "there are no images; give a folder of them, or a parquet file", place)
        try:
            chosen = (decode(rows[i]) for i in evenly(len(rows), most))
            return np.asarray(pixel_values(load_image_processor(model), chosen))
        except ValueError as error:
            raise OptionError(".images", "an image cannot be decoded ({why})", place, why=str(error)) from None

    return read


def stored_images(place: Path) -> list[dict[str, Any]]:
    """What `image_input.decode` takes: bytes or a path each."""
    if place.is_dir():
        return [{"bytes": None, "path": str(file)} for file in walked(place) if is_image(file)]
    if place.suffix != ".parquet" or not place.is_file():
        raise OptionError(".images", "give a folder of images, or a parquet file with a column image", place)
    import pyarrow.parquet as parquet

    if "image" not in parquet.read_schema(place).names:
        raise OptionError(".images", "it has no column image", place)
    return list(parquet.read_table(place, columns=["image"]).column("image").to_pylist())
