"""An int8 key-value cache for a written decoder: scales a channel, from what the cache holds on calibration text.

GroupQueryAttention writes keys after their rotation and values as they come. So the float model itself is run, its
cache is read, and each channel's scale is set to the largest value that it held (KIVI, Liu et al. 2024, section 3.1,
shows why keys want a scale a channel).
"""

from pathlib import Path
from typing import Any

import numpy as np

from hfcompress.decoder_graph import K_SCALE, V_SCALE
from hfcompress.graph_writer import MICROSOFT, MODEL

Array = np.ndarray[Any, Any]
LARGEST_CODE = 127
MARGIN = 1.1  # text that was not seen holds larger values; beyond them the cache is clipped


def cache_scales(folder: Path, windows: Array, threads: int = 1) -> dict[str, Array]:
    """Scales by input name of the cache, float32 [kv heads * head size] each.

    Args:
        folder: a decoder whose cache is float; windows: token ids [windows, tokens].
    """
    from hfcompress.evaluation.onnx_decoder import OnnxDecoder

    decoder = OnnxDecoder(folder, threads, context=windows.shape[1])
    largest: dict[str, Array] = {}
    for window in windows:
        decoder.rewind(0)
        decoder.append(window.tolist())
        for name, cache in decoder.caches.items():
            seen = np.abs(cache[0, :, : decoder.length]).max(1).reshape(-1)
            largest[name] = np.maximum(largest.get(name, 0.0), seen)
    return {
        name: (np.maximum(found, np.finfo(np.float32).tiny) * MARGIN / LARGEST_CODE).astype(np.float32)
        for name, found in largest.items()
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
