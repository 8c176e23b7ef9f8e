"""An int8 key-value cache for a written decoder: scales a channel, from what the cache holds on calibration text.

GroupQueryAttention writes keys after their rotation and values as they come. So calibration text is run through what
the packed integers stand for, a layer at a time in memory, and each channel's scale is set to the largest value that
it held (KIVI, Liu et al. 2024, section 3.1, shows why keys want a scale a channel).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfcompress.architectures.decoder_stack import DecoderStack
from hfcompress.architectures.quantized_model import Dequantized, PackedModel
from hfcompress.formats.onnx_decoders import K_SCALE, V_SCALE
from hfcompress.formats.onnx_writer import MICROSOFT, MODEL

if TYPE_CHECKING:
    from torch import Tensor

Array = np.ndarray[Any, Any]
LARGEST_CODE = 127
MARGIN = 1.1  # text that was not seen holds larger values; beyond them the cache is clipped


class Largest:
    """Stands in a cache's place, and keeps the largest value of each channel [kv heads * head size]."""

    def __init__(self) -> None:
        self.key, self.value = np.zeros(0), np.zeros(0)

    def update(self, keys: "Tensor", values: "Tensor", *rest: Any, **more: Any) -> "tuple[Tensor, Tensor]":
        """keys, values: [windows, kv heads, tokens, head size]; handed back as they are."""
        self.key, self.value = (part.detach().float().abs().amax((0, 2)).flatten().numpy() for part in (keys, values))
        return keys, values


def cache_scales(packed: PackedModel, windows: Array, bf16: bool = False) -> dict[str, Array]:
    """Scales by input name of the cache, float32 [kv heads * head size] each.

    Args:
        windows: token ids [windows, tokens]; bf16: whether products are computed in it.
    """
    import torch

    stack = DecoderStack(Dequantized(packed))
    states = [stack.embed(window[None]) for window in windows]
    found: dict[str, Array] = {}
    with torch.inference_mode():
        for index in range(stack.layers):
            layer = stack.layer(index)
            for number, hidden in enumerate(states):
                seen = Largest()
                states[number] = stack.run(layer, hidden, bf16, seen)
                for part, largest in (("key", seen.key), ("value", seen.value)):
                    name = f"past_key_values.{index}.{part}"
                    found[name] = np.maximum(found.get(name, 0.0), largest)
    return {
        name: (np.maximum(largest, np.finfo(np.float32).tiny) * MARGIN / LARGEST_CODE).astype(np.float32)
        for name, largest in found.items()
    }


def to_int8(folder: Path, scales: dict[str, Array]) -> None:
    """Give model.onnx in `folder` an int8 cache with these scales; its data file stays as it is."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(folder / MODEL), load_external_data=False)
    graph = model.graph
    graph.initializer.extend(numpy_helper.from_array(array, f"{name}.scale") for name, array in scales.items())
    for node in graph.node:
        if node.op_type == "GroupQueryAttention" and node.domain == MICROSOFT:
            key, value = node.input[3], node.input[4]
            inputs = [*node.input, *[""] * (V_SCALE + 1 - len(node.input))]
            inputs[K_SCALE], inputs[V_SCALE] = f"{key}.scale", f"{value}.scale"
            del node.input[:]
            node.input.extend(inputs)
            more = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
            node.attribute.extend(helper.make_attribute(name, setting) for name, setting in more.items())
    for entry in (*graph.input, *graph.output):
        if entry.name.startswith(("past_key_values.", "present.")):
            entry.type.tensor_type.elem_type = TensorProto.INT8
    part = folder / f"{MODEL}.part"
    onnx.save(model, str(part))
    part.replace(folder / MODEL)
