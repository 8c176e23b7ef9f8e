"""A causal LM run one decoder layer at a time: what calibrates a model that does not fit in memory.

Only one layer's weights are in memory; the hidden states between layers lie on disk, a file a layer.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hfcompress.architectures.decoders import kind_of, require_supported
from hfcompress.architectures.meta import meta_model
from hfcompress.architectures.pretrained import stock_config
from hfcompress.architectures.quantized_model import rotations, without_weights
from hfcompress.architectures.text_inputs import require_rows
from hfcompress.errors import UserError
from hfcompress.folders.files import whole_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hfcompress.architectures.checkpoint import Checkpoint
    from hfcompress.architectures.quantized_model import Dequantized

BATCH_TOKENS = 4096
EMBEDDING, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"


class DecoderStack:
    """The embedding, each layer, and the head of a model folder, loaded when asked for, in float32.

    checkpoint: of a stock model, or what a packed one stands for (architectures/quantized_model.py, Dequantized).

    Raises:
        UserError: an architecture that is none of the table's, or see `Checkpoint`.
    """

    def __init__(self, checkpoint: "Checkpoint | Dequantized") -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.checkpoint = checkpoint
        require_supported(checkpoint.folder, checkpoint.config)
        self.kind = kind_of(checkpoint.config)
        attention = "eager" if self.kind.attention_softcap else "sdpa"
        config = stock_config(checkpoint.folder, attn_implementation=attention)
        self.skeleton = meta_model(AutoModelForCausalLM, config, torch_dtype=torch.float32).eval()
        self.skeleton.requires_grad_(False)
        self.buffers = without_weights(config)
        self.layers = len(self.skeleton.model.layers)
        self.tied = f"{HEAD}.weight" not in checkpoint

    def embed(self, ids: "np.ndarray[Any, Any]") -> "Tensor":
        """Hidden states [windows, tokens, hidden] of token ids [windows, tokens]; only rows that occur are read."""
        import torch

        wanted, place = np.unique(ids, return_inverse=True)
        name = f"{EMBEDDING}.weight"
        require_rows(wanted.tolist(), self.checkpoint.shape(name)[0])
        rows = torch.stack([self.checkpoint.read(name, slice(int(i), int(i) + 1))[0].float() for i in wanted])
        return rows[torch.from_numpy(place.reshape(ids.shape))] * self.kind.embedding_scale

    def layer(self, index: int) -> "nn.Module":
        """Decoder layer `index` with its weights in float32.

        Raises:
            UserError: a weight holds NaN or Inf, or is missing.
        """
        import copy

        layer = copy.deepcopy(self.skeleton.model.layers[index])
        prefix = f"model.layers.{index}."
        state = {name: finite(self.checkpoint, prefix + name) for name in layer.state_dict()}
        layer.load_state_dict(state, assign=True)
        return layer.requires_grad_(False)

    def norm(self) -> "nn.Module":
        """The last norm."""
        import copy

        norm = copy.deepcopy(self.skeleton.model.norm)
        norm.load_state_dict({"weight": finite(self.checkpoint, f"{NORM}.weight")}, assign=True)
        return norm.requires_grad_(False)

    def head(self) -> "Tensor":
        """lm_head's weight [vocab, hidden], which may be the embedding's."""
        return finite(self.checkpoint, f"{EMBEDDING if self.tied else HEAD}.weight")

    def run(self, layer: "nn.Module", hidden: "Tensor", bf16: bool = False, cache: Any = None) -> "Tensor":
        """A layer on hidden states [windows, tokens, hidden]; attention is causal, and looks back as far as it may.

        Args:
            bf16: whether products are computed in it; the residual stream stays float32.
            cache: what is handed the layer's keys and values, as transformers' caches are (`update`).
        """
        import torch

        positions, index = torch.arange(hidden.shape[1]).unsqueeze(0), layer.self_attn.layer_idx
        found = rotations(self.buffers, hidden, positions)
        turned = {"position_embeddings": found[self.kind.local_rotary[index]]}
        if hasattr(self.buffers, "rotary_emb_local"):
            turned = {"position_embeddings_global": found[False], "position_embeddings_local": found[True]}
        mask = self.mask(hidden.shape[1], index)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            new = layer(hidden, attention_mask=mask, position_ids=positions, past_key_values=cache, **turned)
        return new[0] if isinstance(new, tuple) else new

    def mask(self, tokens: int, index: int) -> "Tensor | None":
        """What is added to a layer's attention, [1, 1, tokens, tokens]; None where it is causal by itself."""
        import torch

        window = self.kind.windows[index]
        if not self.kind.attention_softcap and not (window and tokens > window):
            return None
        mask = torch.full((tokens, tokens), -torch.inf).triu(1)
        if window:
            mask += torch.full((tokens, tokens), -torch.inf).tril(-window)
        return mask[None, None]

    def capped(self, logits: "Tensor") -> "Tensor":
        """What the model makes of lm_head's products."""
        cap, logits = self.kind.logit_softcap, logits / self.kind.logit_divisor
        return cap * (logits / cap).tanh() if cap else logits


def finite(checkpoint: "Checkpoint | Dequantized", name: str, rows: slice | None = None) -> "Tensor":
    """A tensor in float32.

    Raises:
        UserError: it holds NaN or Inf.
    """
    tensor = checkpoint.read(name, rows).float()
    if not tensor.isfinite().all():
        raise UserError(f"{checkpoint.folder}: {name} holds NaN or Inf; the model is damaged, fetch or make it again")
    return tensor


class HiddenStates:
    """Hidden states [windows, tokens, size] in float32 on disk, read and written some windows at a time."""

    def __init__(self, file: Path, shape: tuple[int, int, int]) -> None:
        self.file, self.shape = file, shape

    @property
    def windows_a_batch(self) -> int:
        return max(1, BATCH_TOKENS // self.shape[1])

    def whole(self) -> bool:
        """Whether the file is there: it is renamed to its place when it is complete."""
        return self.file.is_file()

    def batches(self) -> Iterator["Tensor"]:
        """In order, each [some windows, tokens, size]."""
        import torch

        windows, tokens, size = self.shape
        with self.file.open("rb", buffering=0) as stream:
            for start in range(0, windows, self.windows_a_batch):
                count = min(self.windows_a_batch, windows - start)
                read = np.fromfile(stream, dtype=np.float32, count=count * tokens * size)
                yield torch.from_numpy(read.reshape(count, tokens, size))

    def write(self, batches: "Iterator[Tensor]") -> None:
        """All of them, in order; the file appears when the last one is on the disk."""
        with whole_file(self.file, "wb") as stream:
            for batch in batches:
                stream.write(batch.detach().contiguous().numpy().data)  # tofile would hide why a write failed


def watch_inputs(
    layer: "nn.Module", groups: tuple[tuple[str, ...], ...], see: "Callable[[str, Tensor], None]"
) -> "list[Any]":
    """Call `see(first linear of the group, its input [tokens, columns])` at every forward; returns the hooks."""

    def hook(name: str) -> Any:
        def call(module: Any, arguments: Any) -> None:
            see(name, arguments[0].detach().flatten(0, -2))

        return call

    return [layer.get_submodule(group[0]).register_forward_pre_hook(hook(group[0])) for group in groups]


def unhook(hooks: "list[Any]") -> None:
    for hook in hooks:
        hook.remove()
