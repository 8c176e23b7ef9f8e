"""qat_images: an image classifier learns to compute in int8; the result is QDQ ONNX that runs in integer kernels."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures import IMAGE_MODELS
from hfcompress.errors import CheckFailed, Reason, UserError
from hfcompress.formats.bits_claimed import require_stored
from hfcompress.formats.size import integer_bytes, sizes
from hfcompress.stage import TRAINING
from hfcompress.tasks.image_classification import ImageClassification
from hfcompress.tasks.image_data import pixel_values
from hfcompress.training.finetune_images import TrainImages
from hfcompress.training.taught import Taught
from hfcompress.training.trainer import train

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from hfcompress.ops.fake_quant import ActivationQuantizer
    from hfcompress.tasks.image_data import Examples

CALIBRATION_IMAGES, CALIBRATION_BATCH = 256, 32
PARITY_IMAGES = 32
PARITY = 0.02  # of the largest logit, on average: a value on the edge of two levels may be rounded either way


@dataclass(frozen=True)
class QATImages(Taught, TrainImages):
    """Every convolution, residual sum, pool and linear layer learns to compute in int8, by soft labels.

    Batch norms are folded into their convolutions before the training begins: a model that is fine-tuned for a few
    hundred steps at a small learning rate needs no batch statistics, and what is trained is then exactly what the
    integer kernels compute. (Jacob et al. 2018, section 3.2, train with unfolded norms from scratch.)

    Activations are uint8 with ranges that follow the data as a moving average (section 3.1): behind a ReLU6 such a
    range ends at 6, so that the kernel's own saturation does the clipping.
    """

    training: ClassVar[bool] = True
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*TRAINING, "onnx", "onnxruntime")

    def __call__(self, out: Path, *, model: Path, teacher: Path, task: ImageClassification) -> dict[str, Any]:
        from accelerate import PartialState
        from transformers import set_seed

        from hfcompress.architectures.models import load_classifier, load_image_processor
        from hfcompress.training.losses import taught_by

        set_seed(self.seed)
        processor, network = load_image_processor(model), load_classifier(model, task.data.labels)
        data = task.data.examples(processor, "train", self.augment)
        loss = taught_by(teacher, self, out / "work", model, task, data)
        prepare(network)
        calibrate(network, task.data.examples(processor, "train"), self.seed)
        progress = train(
            network,
            None,
            out / "work",
            self,
            data,
            loss=loss,
        )
        if not PartialState().is_main_process:
            return {}
        return progress.as_dict() | deliver(network.cpu(), out, processor, task)

    def predict(self, model: Any, *, teacher: Any, task: ImageClassification) -> Any:
        return model.with_(format="onnx", weight_bits=8)


def prepare(network: "PreTrainedModel") -> None:
    """Fold batch norms, and let every weight and every tensor between two layers be quantized.

    Quantizers stand where a tensor is made: behind each convolution with its activation, each residual sum and the
    average pool, between factors, and at the image. A max pool keeps the range of what it reads.

    Raises:
        UserError: the model is of another kind.
    """
    import torch
    from torch import nn

    from hfcompress.architectures.factors import FactoredConv, LowRankLinear
    from hfcompress.ops.fake_quant import FakeQuantConv2d, FakeQuantLinear

    architecture = IMAGE_MODELS.get(network.config.model_type)
    if architecture is None:
        known = " and ".join(IMAGE_MODELS)
        raise UserError(f"a {network.config.model_type} cannot be trained in int8 yet, only {known} can")
    sums = {network.get_submodule(block.name) for block in architecture.blocks(network.config.to_dict())}
    quantizers = nn.ModuleList()
    units = fold_batch_norms(network)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            network.set_submodule(name, FakeQuantConv2d(module))
    image = quantizer(quantizers)
    units[0].register_forward_pre_hook(lambda module, inputs: (image(inputs[0]), *inputs[1:]))
    halfway = {}  # what the second factor of a linear layer reads
    for module in network.modules():
        if isinstance(module, LowRankLinear):
            halfway[module.up] = quantizer(quantizers)
        elif isinstance(module, FactoredConv):
            for part in list(module)[:-1]:
                after(part, quantizer(quantizers))
    for module in list(network.modules()):
        if isinstance(module, nn.MaxPool2d):
            after(module, quantizers[-1])
        elif module in units or module in sums or isinstance(module, nn.AdaptiveAvgPool2d):
            after(module, quantizer(quantizers))
    pool = quantizers[-1]  # made last, behind the average pool
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear):
            network.set_submodule(name, FakeQuantLinear(module, halfway.get(module, pool), owner=False))
    network.quantizers = quantizers.to(torch.device("cpu"))


def quantizer(found: "nn.ModuleList") -> "ActivationQuantizer":
    """A new quantizer, kept with the others."""
    from hfcompress.ops.fake_quant import ActivationQuantizer

    found.append(ActivationQuantizer(symmetric=False, learned=False))
    return found[-1]


def after(module: "nn.Module", quantize: "ActivationQuantizer") -> None:
    module.register_forward_hook(lambda module, inputs, output: quantize(output))


def fold_batch_norms(network: "PreTrainedModel") -> "list[nn.Module]":
    """Fold each `normalization` into the `convolution` beside it, of factors into the last; returns the modules that
    hold such pairs.
    """
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    units = []
    for module in network.modules():
        if isinstance(norm := getattr(module, "normalization", None), nn.BatchNorm2d):
            whole = module.convolution.eval()
            if isinstance(whole, nn.Sequential):
                whole[-1] = fuse_conv_bn_eval(whole[-1], norm.eval())
            else:
                module.convolution = fuse_conv_bn_eval(whole, norm.eval())
            module.normalization = nn.Identity()
            units.append(module)
    return units


def calibrate(network: "PreTrainedModel", examples: "Examples", seed: int) -> None:
    """Let every range cover what some training images show."""
    import torch
    from transformers import default_data_collator

    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(examples), generator=generator)[:CALIBRATION_IMAGES].tolist()
    network.eval()
    for one in network.quantizers:
        one.observing = True
    with torch.inference_mode():
        for start in range(0, len(rows), CALIBRATION_BATCH):
            batch = default_data_collator([examples[row] for row in rows[start : start + CALIBRATION_BATCH]])
            network(batch["pixel_values"])
    for one in network.quantizers:
        one.observing = False


def deliver(network: "PreTrainedModel", out: Path, processor: Any, task: ImageClassification) -> dict[str, Any]:
    """Export, then prove it: parity with the fake-quantized model, integer kernels, and no fp32 copy of a weight."""
    import numpy as np
    import torch

    from hfcompress.formats.onnx_images import require_integer_kernels
    from hfcompress.formats.runtimes.sessions import onnx_session
    from hfcompress.formats.saturation import require_exact

    pixels = pixel_values(processor, task.data.inputs("validation", PARITY_IMAGES))
    weights = write_int8(network, out, pixels.shape[2:])
    network.config.save_pretrained(out)
    processor.save_pretrained(out)
    (found,) = onnx_session(out / "model.onnx", threads=1).run(["logits"], {"pixel_values": pixels})
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(pixels)).logits.numpy()
    distance, largest = float(np.abs(found - expected).mean()), float(np.abs(expected).max())
    if not distance <= PARITY * largest:
        reason = (
            "the exported graph's logits differ by {distance:.2g} from the fake-quantized model's; "
            "lower {learning_rate} or train for longer: a weight or activation is far larger than the rest"
        )
        raise CheckFailed(Reason(reason, distance=distance))
    require_exact(out / "model.onnx")
    kernels = require_integer_kernels(out / "model.onnx")
    dtypes = sizes(out)["dtypes"]
    if integer_bytes(dtypes) < weights or dtypes.get("float32", 0) > weights:
        raise CheckFailed(f"the file claims int8 and holds {dtypes}; give a model whose layers do not share weights")
    require_stored(out, 8, "its other layers are not trained in int8; give another model")
    return {"kernels": kernels, "mean_logit_difference": distance}


def write_int8(network: "PreTrainedModel", out: Path, size: tuple[int, int]) -> int:
    """model.onnx of a fake-quantized network, its weights as integers; returns how many weights became such."""
    from torch import nn

    from hfcompress.formats.onnx_images import export_fake_quantized
    from hfcompress.ops.fake_quant import FakeQuantConv2d, FakeQuantLinear, integer_rows, row_scales

    weights: dict[str, nn.Parameter] = {
        f"{name}.weight": module.weight
        for name, module in network.named_modules()
        if isinstance(module, FakeQuantConv2d | FakeQuantLinear)
    }
    export_fake_quantized(
        network,
        out / "model.onnx",
        size,
        integers={name: integer_rows(w).numpy() for name, w in weights.items()},
        scales={name: row_scales(w).numpy() for name, w in weights.items()},
    )
    return sum(w.numel() for w in weights.values())
