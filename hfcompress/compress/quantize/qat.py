"""qat: quantization-aware training, distilled from the teacher, delivered as QDQ ONNX with folded int8 weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.architectures.encoder import EMBEDDINGS
from hfcompress.architectures.encoder_spec import Shape
from hfcompress.errors import CheckFailed, OptionError, Reason
from hfcompress.formats.bits_claimed import require_stored
from hfcompress.formats.onnx import PARITY_TEXTS, copy_companions
from hfcompress.formats.size import integer_bytes, sizes
from hfcompress.stage import TRAINING
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.taught import Taught
from hfcompress.training.trainer import TrainTexts, train

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel

CALIBRATION_TEXTS, CALIBRATION_BATCH = 256, 32  # whatever the training batch, so that ranks begin with equal ranges
PARITY = 0.05  # of the largest logit: a value on the edge of two levels may be rounded either way


@dataclass(frozen=True)
class QAT(Taught, TrainTexts):
    """Every linear layer of the encoder, the pooler and the embeddings learn to compute in int8.

    What stays in floating point: the attention's two products, softmax, LayerNorm, GELU, biases and the classifier.
    """

    bits: int = 8
    """8; a model in 4 bits is the weight_only stage's."""
    target: Literal["cpu", "tensorrt"] = "cpu"
    """cpu: uint8 activations; tensorrt: symmetric int8 activations."""
    ranges: Literal["learned", "moving_average"] = "learned"
    """How the ranges of the activations are found after calibration. On several processes the moving average is of
    the main one's texts."""
    cache: bool = True
    """Compute the teacher's outputs once, on disk; without it, for every batch anew."""

    training: ClassVar[bool] = True
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*TRAINING, "onnx", "onnxruntime")

    def __call__(self, out: Path, *, model: Path, teacher: Path, task: TextClassification) -> dict[str, Any]:
        from accelerate import PartialState
        from transformers import set_seed

        from hfcompress.architectures.models import load_classifier, load_tokenizer
        from hfcompress.training.losses import label_loss
        from hfcompress.training.teacher_outputs import Wanted, require_same_task, teacher_outputs

        self._check()
        require_same_task(model, teacher)
        set_seed(self.seed)
        tokenizer, network = load_tokenizer(model), load_classifier(model, task.data.labels)
        data = task.data.encode(tokenizer, task.max_length, "train")
        prepare(network, symmetric=self.target == "tensorrt", learned=self.ranges == "learned")
        calibrate(network, tokenizer, data)
        outputs = teacher_outputs(out / "work", teacher, data, Wanted(), cache=self.cache, bf16=self.bf16)
        progress = train(
            network,
            tokenizer,
            out / "work",
            self,
            data,
            loss=label_loss(  # and no best checkpoint, as in distill
                outputs,
                temperature=self.temperature,
                logits_weight=self.logits_weight,
                hard_weight=self.hard_weight,
                label_smoothing=self.label_smoothing_factor,
            ),
        )
        if not PartialState().is_main_process:
            return {}
        return progress.as_dict() | deliver(
            network.cpu(), model, out, tokenizer, task, signed=self.target == "tensorrt"
        )

    def predict(self, model: Shape, *, teacher: Shape, task: TextClassification) -> Shape:
        self._check()
        return model.with_(weight_bits=8, embedding_bits=8, format="onnx")

    def _check(self) -> None:
        if self.bits != 8:
            raise OptionError("bits", "integer kernels multiply 8 bits; give 8", self.bits)


def prepare(network: "PreTrainedModel", *, symmetric: bool, learned: bool) -> None:
    """Replace the encoder's and the pooler's Linear layers and all embeddings by their fake-quantized forms.

    Raises:
        UserError: neither an encoder of the table nor an ALBERT that shares no layers.
    """
    import torch

    from hfcompress.ops.fake_quant import ActivationQuantizer, FakeQuantEmbedding, FakeQuantLinear

    where, body = places(network), network.base_model
    relative = getattr(network.config, "position_embedding_type", "absolute") != "absolute"
    for name in EMBEDDINGS:
        table = getattr(body.embeddings, name, None)
        if relative and name == "position_embeddings":  # the class has the table and does not read it
            continue
        if isinstance(table, torch.nn.Embedding):  # a tensor train stays as it is
            setattr(body.embeddings, name, FakeQuantEmbedding(table))
    for module in list(body.modules()):  # relative positions have a table a layer
        if isinstance(table := getattr(module, "distance_embedding", None), torch.nn.Embedding):
            module.distance_embedding = FakeQuantEmbedding(table)
    for parents in where.linear_groups(network):
        quantizer = ActivationQuantizer(symmetric, learned)
        for i, (parent, name) in enumerate(parents):
            setattr(parent, name, FakeQuantLinear(getattr(parent, name), quantizer, owner=i == 0))


def places(network: "PreTrainedModel") -> Any:
    """The module that knows this network's layers: albert.py of factorized embeddings, encoders.py of any other."""
    from hfcompress.architectures import albert, encoders

    if type(network).__name__ == albert.NAME and network.config.num_hidden_groups == network.config.num_hidden_layers:
        return albert
    encoders.encoder_of(network)  # refuses what is in no table
    return encoders


def calibrate(network: "PreTrainedModel", tokenizer: Any, data: "Dataset") -> None:
    """Let every range cover what the first training texts show."""
    import torch

    from hfcompress.ops.fake_quant import ActivationQuantizer

    quantizers = [module for module in network.modules() if isinstance(module, ActivationQuantizer)]
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in data.column_names]
    network.eval()
    for quantizer in quantizers:
        quantizer.observing = True
    with torch.inference_mode():
        for start in range(0, min(len(data), CALIBRATION_TEXTS), CALIBRATION_BATCH):
            examples = data[start : start + CALIBRATION_BATCH]
            network(**tokenizer.pad({name: examples[name] for name in names}, return_tensors="pt"))
    for quantizer in quantizers:
        quantizer.observing = False


def deliver(
    network: "PreTrainedModel",
    source: Path,
    out: Path,
    tokenizer: Any,
    task: TextClassification,
    *,
    signed: bool = False,
) -> dict[str, Any]:
    """Export, then prove it: parity with the fake-quantized model, integer kernels, and no fp32 copy of a weight."""
    from hfcompress.formats import onnx_export
    from hfcompress.formats.saturation import require_exact, saturating_layers

    weights = write_int8(network, out, signed=signed)
    copy_companions(source, out)
    batch = onnx_export.parity_batch(tokenizer, task.data.texts("validation")[:PARITY_TEXTS], task.max_length)
    distance, largest = onnx_export.parity(network, out / "model.onnx", batch)
    if not distance <= PARITY * largest:
        reason = (
            "the exported graph's logits differ by {distance:.2g} from the fake-quantized model's; "
            "lower {learning_rate} or train for longer: a weight or activation is far larger than the rest"
        )
        raise CheckFailed(Reason(reason, distance=distance))
    if not signed:
        require_exact(out / "model.onnx")
    linears = len(places(network).encoder_linears(network))  # the pooler's one vector runs in float
    kernels = onnx_export.integer_kernels(out / "model.onnx")
    if kernels < linears:
        reason = (
            "only {kernels} of {linears} linear layers run in integer kernels; "
            "another {target} may have kernels on this processor"
        )
        raise CheckFailed(Reason(reason, kernels=kernels, linears=linears))
    dtypes = sizes(out)["dtypes"]
    elements = sum(w.numel() for w in weights)
    if integer_bytes(dtypes) < elements or dtypes.get("float32", 0) > elements:
        reason = "the file claims int8 and holds {dtypes}; give {bits} 8 and a model whose layers do not share weights"
        raise CheckFailed(Reason(reason, dtypes=dtypes))
    require_stored(out, 8, "its other layers are not trained in int8; give another model")
    return {
        "integer_linears": kernels,
        "linears": linears,
        "largest_logit_difference": distance,
        "saturating_layers": len(saturating_layers(out / "model.onnx")),
    }


def write_int8(network: "PreTrainedModel", out: Path, *, signed: bool = False) -> "list[torch.Tensor]":
    """model.onnx of a fake-quantized network, its weights as integers; returns the weights that became such."""
    from hfcompress.formats import onnx_export
    from hfcompress.ops.fake_quant import FakeQuantEmbedding, FakeQuantLinear, integer_rows, row_scales

    weights = {
        f"{name}.weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, FakeQuantLinear | FakeQuantEmbedding)
    }
    onnx_export.export(
        network,
        out,
        integers={name: integer_rows(w).numpy() for name, w in weights.items()},
        scales={name: row_scales(w).numpy() for name, w in weights.items()},
        signed=signed,
    )
    return list(weights.values())
