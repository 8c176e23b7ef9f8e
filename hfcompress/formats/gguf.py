"""gguf: a packed causal LM as one file for llama.cpp."""

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.errors import CheckFailed, needs
from hfcompress.folders.end_tokens import copy_beside
from hfcompress.formats.bits_claimed import require_stored
from hfcompress.stage import TENSORS

if TYPE_CHECKING:
    from hfcompress.architectures.decoder_spec import LanguageShape
    from hfcompress.architectures.quantized_model import PackedModel
    from hfcompress.formats.gguf_file import Entry

COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
Q4_0, Q8_0 = 4.5, 8.5  # bits a weight of llama.cpp's blocks, scales included
ADVICE = "blocks are of 32 columns, those of 8 bits symmetric; give --allot.symmetric, or leave gguf out of --formats"
CHECKED_ROWS = 256  # of a matrix, evenly spread


@dataclass(frozen=True)
class ExportGguf:
    """Write model.gguf; the values that its blocks stand for must be those of the packed integers."""

    checked_tensors: int = 8
    """Matrices of which rows are read back and compared, evenly spread over the model."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*TENSORS, "gguf")

    def __call__(self, out: Path, *, model: Path) -> dict[str, Any]:
        """Write model.gguf beside the config and the tokenizer.

        Returns: how many tensors each type has, the modules that take more bits than their grid has, the file's
        bytes, and the largest difference from the packed model's values that was found in each type.

        Raises:
            UserError: the folder is no packed model, or none that llama.cpp computes.
        """
        from hfcompress.architectures.quantized_model import PackedModel
        from hfcompress.formats import gguf_file

        packed = PackedModel(model)
        file = out / "model.gguf"
        written = gguf_file.write(packed, file)
        bits = 4 if max(grid.bits for grid in packed.grids.values()) <= 4 else 8
        require_stored(out, bits, ADVICE)
        differences = check(packed, file, written, self.checked_tensors)
        for name in COPIED:
            if (model / name).is_file():
                shutil.copyfile(model / name, out / name)
        copy_beside(model, out)
        return {
            "types": dict(Counter(entry.type for entry in written)),
            "widened": [entry.source for entry in written if widened(packed, entry)],
            "file_bytes": file.stat().st_size,
            "largest_differences": differences,
        }

    def predict(self, model: "LanguageShape") -> "LanguageShape":
        """The shape in llama.cpp's blocks.

        Raises:
            UserError: llama.cpp does not compute what the config says.
        """
        if model.config is not None:
            from hfcompress.formats.gguf_file import require_supported

            require_supported("the model", model.config)
        return replace(model, weight_bits=Q4_0 if model.weight_bits <= Q4_0 else Q8_0)


def widened(packed: "PackedModel", entry: "Entry") -> bool:
    """Whether a matrix takes more bits in the file than its grid has."""
    bits = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4, "F16": 16, "F32": 32}[entry.type]
    return entry.source in packed.grids and bits > packed.grids[entry.source].bits


def check(packed: "PackedModel", file: Path, written: "list[Entry]", count: int) -> dict[str, float]:
    """Read rows of some matrices back and compare them; type -> largest difference found.

    Raises:
        CheckFailed: a value is further off than its type allows.
    """
    needs("gguf")
    import numpy as np
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize

    from hfcompress.formats.gguf_file import allowed_error, reordered

    matrices = [entry for entry in written if entry.source in packed.grids]
    chosen = {int(i) for i in np.linspace(0, len(matrices) - 1, count).round()}
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    found: dict[str, float] = {}
    for entry in (matrices[i] for i in sorted(chosen)):
        tensor = tensors[entry.name]
        rows = np.unique(np.linspace(0, entry.shape[0] - 1, CHECKED_ROWS).astype(int))
        order = torch.arange(entry.shape[0]) if entry.order is None else entry.order
        quantized = reordered(packed.quantized(entry.source), order[rows])
        wanted = quantized.dequantize().numpy().reshape(*quantized.scales.shape, -1)
        read = dequantize(tensor.data[rows], tensor.tensor_type).reshape(wanted.shape)
        off = np.abs(read - wanted).max(2)
        if not (off <= allowed_error(quantized, entry.type)).all():
            raise CheckFailed(
                f"{entry.name} ({entry.type}) in {file} differs by {off.max():.3g} from {entry.source}; "
                "leave gguf out of --formats, or give --allot.symmetric"
            )
        found[entry.type] = max(found.get(entry.type, 0.0), float(off.max()))
    return found
