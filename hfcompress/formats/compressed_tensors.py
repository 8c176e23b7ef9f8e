"""compressed_tensors: a packed causal LM as a transformers folder that `AutoModelForCausalLM.from_pretrained` loads.

The format is compressed-tensors' "pack-quantized", whose `quantization_config` stock transformers reads when the
compressed-tensors package is installed. Every linear layer keeps its integers, its bits and its groups. An embedding
cannot be packed in it, so that its rows are written as the float16 values that they stand for, and so is a tied head.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures.decoder_spec import EMBEDDING, LanguageShape
from hfcompress.architectures.decoders import kind_of
from hfcompress.architectures.models import load_tokenizer
from hfcompress.errors import CheckFailed, needs
from hfcompress.folders.end_tokens import copy_beside
from hfcompress.folders.record import write_json
from hfcompress.formats.simulation import check, small_enough
from hfcompress.stage import TENSORS
from hfcompress.tasks.text_generation import CausalLM

if TYPE_CHECKING:
    from torch import Tensor

    from hfcompress.architectures.quantized_model import PackedModel
    from hfcompress.ops.grid import Grid, Quantized

CHECKED_MATRICES = 8  # that are read back whole, evenly spread
CHECKED_TOKENS = 24
ROUNDED = 0.002  # of the largest logit: what float16 does to an embedding's rows


@dataclass(frozen=True)
class ExportTransformers:
    """Write safetensors shards, a layer each, and the config that names every matrix's grid."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*TENSORS, "compressed-tensors")

    def __call__(self, out: Path, *, model: Path, task: CausalLM) -> dict[str, Any]:
        """Write the folder, read matrices back, and hold it against the packed model's simulation if that is small.

        Raises:
            UserError: the folder is no packed model.
        """
        from hfcompress.architectures.checkpoint import INDEX, write_shard
        from hfcompress.architectures.quantized_model import PackedModel

        packed = PackedModel(model)
        parts = shards(packed)
        places: dict[str, str] = {}
        for number, names in enumerate(parts, 1):
            tensors = written(packed, names)
            file = out / f"model-{number:05d}-of-{len(parts):05d}.safetensors"
            write_shard(file, tensors)
            places |= dict.fromkeys(tensors, file.name)
        total = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
        linear = {module: grid for module, grid in packed.grids.items() if module != EMBEDDING}
        dtype = "float32" if kind_of(packed.config).overflows_float16 else "float16"  # who loads it gets this one
        write_json(out / "config.json", packed.config | {"dtype": dtype, "quantization_config": config(linear)})
        copy_beside(model, out)
        tokenizer = load_tokenizer(model)
        tokenizer.save_pretrained(out)
        read_back(out, packed, linear)
        checked: dict[str, Any] = {"checked": False}
        if small_enough(packed):
            ids = task.calibration(tokenizer)[0, :CHECKED_TOKENS].tolist()
            checked = check(out, packed, ids, ROUNDED)
        return {"packed_matrices": len(linear), "as_float16": [EMBEDDING], "file_bytes": total, **checked}

    def predict(self, model: LanguageShape, *, task: CausalLM) -> LanguageShape:
        return replace(model, embedding_bits=16)


def shards(packed: "PackedModel") -> list[list[str]]:
    """Modules and plain tensors of each file: those of a layer together, the rest in the first one."""
    found: dict[int, list[str]] = {}
    for name in [*packed.grids, *packed.plain_names()]:
        parts = name.split(".")
        found.setdefault(int(parts[2]) + 1 if name.startswith("model.layers.") else 0, []).append(name)
    return [found[number] for number in sorted(found)]


def written(packed: "PackedModel", names: list[str]) -> "dict[str, Tensor]":
    """The tensors that stand for these modules and plain tensors."""
    import torch

    tensors: dict[str, Tensor] = {}
    for name in names:
        if name not in packed.grids:
            tensors[name] = packed.tensor(name)
        elif name == EMBEDDING:
            tensors[f"{name}.weight"] = packed.quantized(name).dequantize().to(torch.float16)
        else:
            tensors |= {f"{name}.{part}": value for part, value in pack_quantized(packed.quantized(name)).items()}
    return tensors


def pack_quantized(quantized: "Quantized") -> "dict[str, Tensor]":
    """weight_packed int32, weight_scale float16, weight_shape and, if not symmetric, weight_zero_point of a matrix.

    Codes and zeros are counted from the middle code there.
    """
    import torch

    pack_to_int32 = packing().pack_to_int32
    grid = quantized.grid
    tensors = {
        "weight_packed": pack_to_int32(signed(quantized.codes, grid), grid.bits),
        "weight_scale": quantized.scales,
        "weight_shape": torch.tensor(quantized.codes.shape),
    }
    if not grid.symmetric:
        tensors["weight_zero_point"] = pack_to_int32(signed(quantized.zeros, grid), grid.bits, 0).contiguous()
    return tensors


def packing() -> Any:
    """Return the module of compressed_tensors that packs integers, which releases after 0.14 have elsewhere.

    Raises:
        UserError: compressed-tensors is not installed.
    """
    needs("compressed_tensors")
    try:
        from compressed_tensors.compressors.pack_quantized import helpers
    except ModuleNotFoundError:
        from compressed_tensors.compressors.quantized_compressors import pack_quantized as helpers
    return helpers


def signed(codes: "Tensor", grid: "Grid") -> "Tensor":
    """uint8 codes as int8 counted from the grid's middle."""
    import torch

    return (codes.to(torch.int16) - grid.middle).to(torch.int8)


def config(linear: "dict[str, Grid]") -> dict[str, Any]:
    """`quantization_config`: a group for each grid, naming its modules."""
    groups: dict[Grid, list[str]] = {}
    for module, grid in linear.items():
        groups.setdefault(grid, []).append(module)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [],
        # transformers 5 with compressed-tensors 0.20 keeps no room for packed zero points, unless it unpacks at once.
        **({} if all(grid.symmetric for grid in groups) else {"dequantize": True}),
        "config_groups": {
            f"group_{number}": {
                "targets": modules,
                "weights": {
                    "num_bits": grid.bits,
                    "type": "int",
                    "symmetric": grid.symmetric,
                    "strategy": "group" if grid.group_size else "channel",
                    "group_size": grid.group_size or None,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
            for number, (grid, modules) in enumerate(groups.items())
        },
    }


def read_back(out: Path, packed: "PackedModel", linear: "dict[str, Grid]") -> None:
    """Unpack some matrices of the written files and compare every code.

    Raises:
        CheckFailed: one differs.
    """
    import numpy as np
    import torch
    from safetensors import safe_open

    from hfcompress.architectures.checkpoint import INDEX

    places = json.loads((out / INDEX).read_text(encoding="utf-8"))["weight_map"]
    modules = list(linear)
    for chosen in np.unique(np.linspace(0, len(modules) - 1, CHECKED_MATRICES).round().astype(int)):
        module, grid = modules[chosen], linear[modules[chosen]]
        name = f"{module}.weight_packed"
        with safe_open(out / places[name], "pt") as stored:
            shape = torch.Size(stored.get_tensor(f"{module}.weight_shape"))
            codes = packing().unpack_from_int32(stored.get_tensor(name), grid.bits, shape)
        if not torch.equal(codes, signed(packed.quantized(module).codes, grid)):
            raise CheckFailed(
                f"{name} in {out} holds other integers than {packed.folder}; "
                "leave transformers out of --formats, or give other --allot.group-sizes"
            )
