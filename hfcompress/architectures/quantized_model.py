"""A causal LM whose matrices are packed integers: what the 4-bit stages hand on, and every delivery format reads.

A folder in `save_pretrained` layout whose weights are safetensors shards. A matrix `m` on a grid (see ops/grid.py)
is stored as `m.codes` (uint8 [rows, packed columns], ops/packing.py), `m.scales` (float16 [rows, groups]) and, on an
asymmetric grid, `m.zeros` (packed alike); what is not on a grid is stored under its own name. `surgery.json` says the
grid of each. Module names are the stock model's (`model.layers.0.self_attn.q_proj`, `model.embed_tokens`, `lm_head`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.architectures.checkpoint import Checkpoint
from hfcompress.architectures.decoders import attention_softcap, head_size
from hfcompress.architectures.meta import meta_model
from hfcompress.architectures.pretrained import stock_config
from hfcompress.errors import UserError
from hfcompress.folders.foreign_files import read_object
from hfcompress.folders.guard import read_config
from hfcompress.ops.grid import Grid, Quantized
from hfcompress.ops.packing import pack, unpack

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

SURGERY = "surgery.json"


class PackedModel:
    """Reads a packed folder, a matrix at a time.

    Raises:
        UserError: the folder is not a packed model, or see `Checkpoint`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / SURGERY).is_file():
            raise UserError(f"{folder} is not a packed model: it has no {SURGERY}")
        self.checkpoint = Checkpoint(folder)
        self.config = self.checkpoint.config
        surgery = read_object(folder / SURGERY)
        self.grids = {name: Grid(**grid) for name, grid in surgery["grids"].items()}

    @property
    def tied(self) -> bool:
        """Whether lm_head is the embedding: then only the embedding is stored."""
        return "lm_head.codes" not in self.checkpoint and "lm_head.weight" not in self.checkpoint

    def quantized(self, module: str, rows: slice | None = None) -> Quantized:
        """The matrix of a module that is on a grid, or some of its rows."""
        grid = self.grids[module]
        scales = self.checkpoint.read(f"{module}.scales", rows)
        columns = self.columns(module)
        codes = unpack(self.checkpoint.read(f"{module}.codes", rows), grid.bits, columns)
        return Quantized(codes, scales, self.zeros(module, scales, rows), grid)

    def zeros(self, module: str, scales: "Tensor", rows: slice | None = None) -> "Tensor":
        """uint8 [rows, groups]: the code of zero in each group of a module with these scales."""
        import torch

        grid = self.grids[module]
        if grid.symmetric:
            return torch.full(scales.shape, grid.middle, dtype=torch.uint8)
        return unpack(self.checkpoint.read(f"{module}.zeros", rows), grid.bits, scales.shape[1])

    def columns(self, module: str) -> int:
        """Inputs of a module on a grid: those of down_proj are the intermediate size, and so on."""
        if module.endswith("down_proj"):
            return int(self.config["intermediate_size"])
        if module.endswith("o_proj"):
            return int(self.config["num_attention_heads"]) * head_size(self.config)
        return int(self.config["hidden_size"])

    def tensor(self, name: str) -> "Tensor":
        """A tensor that is on no grid, such as model.norm.weight, as stored."""
        return self.checkpoint.read(name)

    def plain_names(self) -> Iterator[str]:
        """Names of the tensors that are on no grid."""
        parts = {f"{module}.{part}" for module in self.grids for part in ("codes", "scales", "zeros")}
        return (name for name in self.checkpoint.places if name not in parts)


class Dequantized:
    """A packed model under the stock model's names, read as a Checkpoint is: matrices as the values they stand for."""

    def __init__(self, packed: PackedModel) -> None:
        self.packed, self.folder, self.config = packed, packed.folder, packed.config

    def __contains__(self, name: str) -> bool:
        return name.removesuffix(".weight") in self.packed.grids or name in self.packed.checkpoint

    def shape(self, name: str) -> tuple[int, ...]:
        module = name.removesuffix(".weight")
        if module in self.packed.grids:
            return self.packed.checkpoint.shape(f"{module}.codes")[0], self.packed.columns(module)
        return self.packed.checkpoint.shape(name)

    def read(self, name: str, rows: slice | None = None) -> "Tensor":
        """A tensor or some of its rows: float32, or what is on no grid in its own type."""
        module = name.removesuffix(".weight")
        if module in self.packed.grids:
            return self.packed.quantized(module, rows).dequantize()
        return self.packed.checkpoint.read(name, rows)


def packed_tensors(module: str, quantized: Quantized) -> "dict[str, Tensor]":
    """The tensors that stand for a matrix on a grid."""
    bits = quantized.grid.bits
    tensors = {f"{module}.codes": pack(quantized.codes, bits), f"{module}.scales": quantized.scales}
    if not quantized.grid.symmetric:
        tensors[f"{module}.zeros"] = pack(quantized.zeros, bits)
    return tensors


def load_simulated(folder: Path) -> "PreTrainedModel":
    """The stock model in float32 with the weights that the packed integers stand for: a simulation for comparison."""
    import torch
    from transformers import AutoModelForCausalLM

    packed = PackedModel(folder)
    config = stock_config(folder, **attention_option(folder))
    model = meta_model(AutoModelForCausalLM, config, torch_dtype=torch.float32)
    state = {name: packed.tensor(name).float() for name in packed.plain_names()}
    state |= {f"{module}.weight": packed.quantized(module).dequantize() for module in packed.grids}
    if packed.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    fill_buffers(model)
    if packed.tied:
        model.tie_weights()
    return model.eval()


def attention_option(folder: Path) -> dict[str, str]:
    """What transformers must be told to compute a folder's attention: only eager knows Gemma 2's cap."""
    return {"attn_implementation": "eager"} if attention_softcap(read_config(folder)) else {}


def without_weights(config: Any) -> Any:
    """A stock model's inner module without layers and words: what it has are the buffers that no checkpoint holds.

    config: a transformers config, left as it is. Rotary frequencies (`rotary_emb`) and the like are made from it.
    """
    import copy

    from transformers import AutoModelForCausalLM

    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size, small.pad_token_id = 0, 1, None
    return AutoModelForCausalLM.from_config(small).model


def rotations(inner: Any, hidden: "Tensor", positions: "Tensor") -> dict[bool, "tuple[Tensor, Tensor]"]:
    """Return cos and sin [1, tokens, turned part of a head]: False -> of most layers, True -> of those with a window.

    True is missing where all layers turn alike. transformers 5 has one module for both, 4.57 has two.

    Args:
        inner: see `without_weights`.
        hidden: gives the type and the device.
        positions: integers [1, tokens].
    """
    rotary = inner.rotary_emb
    if kinds := getattr(rotary, "layer_types", None):
        return {kind == "sliding_attention": rotary(hidden, positions, kind) for kind in kinds}
    found = {False: rotary(hidden, positions)}
    if hasattr(inner, "rotary_emb_local"):
        found[True] = inner.rotary_emb_local(hidden, positions)
    return found


def fill_buffers(model: "PreTrainedModel") -> None:
    """Buffers that no checkpoint holds are made anew from the config."""
    inner, made = model.model, without_weights(model.config)
    for name, module in made.named_children():
        if name.startswith("rotary_emb"):
            setattr(inner, name, module)
    for name, buffer in made.embed_tokens.named_buffers():
        setattr(inner.embed_tokens, name, buffer)
