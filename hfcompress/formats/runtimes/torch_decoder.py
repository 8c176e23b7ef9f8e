"""A causal LM in torch, token by token: stock transformers classes in float32 on the CPU."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from hfcompress.architectures.loading import load_whole
from hfcompress.architectures.models import check_folder
from hfcompress.architectures.quantized_model import SURGERY, attention_option, load_simulated
from hfcompress.architectures.text_inputs import decoder_positions, require_room, require_rows
from hfcompress.architectures.text_state import require_key_values, stateful

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Array = np.ndarray[Any, Any]


class TorchDecoder:
    """The model of a transformers folder, or of a packed one (surgery.json), whose integers are then simulated.

    Args:
        threads: intra-op threads; they are torch's only while this decoder computes.

    Raises:
        UserError: the folder holds no causal LM, or not all of its weights, or one that keeps more of a text than keys
            and values.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.threads, self._folder = threads, folder
        self._model = load(folder)
        require_key_values(folder, self._model.config, type(self._model))
        self.context = decoder_positions(folder, self._model.config)
        # Without the config every layer keeps all tokens: a sliding window's cache could not be rewound.
        self._cache = DynamicCache()

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return int(self._cache.get_seq_length())

    def append(self, ids: list[int], all_logits: bool = False) -> Array:
        """Read tokens.

        Returns: float32 logits after the last one [1, vocab], or after each of them [len(ids), vocab].

        Raises:
            UserError: no token, or more than the context has room for; or the model has no row for one.
        """
        require_room(ids, self.length, self.context)
        require_rows(ids, self._model.get_input_embeddings().weight.shape[0])
        before, expected = torch.get_num_threads(), self.length + len(ids)
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                found = self._model(
                    input_ids=torch.tensor([ids]),
                    past_key_values=self._cache,
                    use_cache=True,
                    logits_to_keep=0 if all_logits else 1,  # 0 keeps all
                )
        finally:
            torch.set_num_threads(before)
        if self.length != expected:
            raise stateful(self._folder, self._model.config)
        return np.asarray(found.logits[0].float().numpy())

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length`.

        Raises:
            ValueError: there are fewer.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"rewind to {length} of {self.length} tokens")
        if length == 0:
            self._cache = DynamicCache()  # the old one's memory can go
        elif length < self.length:
            self._cache.crop(length - self.length)  # how many to drop: transformers 5 takes no length


def load(folder: Path) -> "PreTrainedModel":
    """The folder's model in float32 and in eval mode.

    Raises:
        UserError: see `TorchDecoder`.
    """
    if (folder / SURGERY).is_file():
        return load_simulated(folder)
    check_folder(folder)
    changes: dict[str, Any] = {**attention_option(folder)}
    model: PreTrainedModel = load_whole(AutoModelForCausalLM, folder, **changes)
    return model.eval()
