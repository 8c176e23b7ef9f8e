"""pretrain: a small Llama and its tokenizer, from nothing but the task's texts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.architectures.models import save
from hfcompress.errors import OptionError, require
from hfcompress.folders.memory import TRAINED_BYTES, require_machine_memory
from hfcompress.stage import TRAINING
from hfcompress.tasks.text_generation import CausalLM
from hfcompress.training.trainer import TrainTexts, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


BEGIN, END, PAD = "<s>", "</s>", "<pad>"


@dataclass(frozen=True)
class Pretrain(TrainTexts):
    """Train a Llama of this shape on the training texts, joined and cut into windows."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2

    training: ClassVar[bool] = True
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = TRAINING

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, 1, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        require(self, 1, "num_attention_heads", "num_key_value_heads")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise OptionError(
                "num_attention_heads",
                "twice as many must divide {hidden_size} ({size})",
                self.num_attention_heads,
                size=self.hidden_size,
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise OptionError(
                "num_key_value_heads",
                "must divide {num_attention_heads} ({heads})",
                self.num_key_value_heads,
                heads=self.num_attention_heads,
            )

    def __call__(self, out: Path, *, task: CausalLM) -> dict[str, Any]:
        from datasets import Dataset
        from transformers import LlamaConfig, LlamaForCausalLM, set_seed

        set_seed(self.seed)
        tokenizer = byte_pair_tokenizer(task.data.texts["train"], self.vocab_size)
        network = LlamaForCausalLM(LlamaConfig.from_dict(self.config(task)))
        blocks = task.blocks(tokenizer, "train")
        data = Dataset.from_dict({"input_ids": blocks, "attention_mask": blocks * 0 + 1, "labels": blocks})
        progress = train(network, tokenizer, out / "work", self, data)
        save(network, tokenizer, out)
        return progress.as_dict() | {"tokens": int(blocks.size)}

    def config(self, task: CausalLM) -> dict[str, Any]:
        """The fields of the model's config.json that are not transformers' own."""
        return {
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "max_position_embeddings": task.window,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        }

    def predict(self, *, task: CausalLM) -> "LanguageShape":
        """The shape.

        Raises:
            UserError: this machine has not the memory to train it.
        """
        shape = replace(LanguageShape.from_config(self.config(task)), weight_bits=32)
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
        largest = max(sizes, key=lambda name: getattr(self, name))
        require_machine_memory(TRAINED_BYTES * shape.parameters, largest, getattr(self, largest))
        return shape


def byte_pair_tokenizer(texts: list[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE (Radford 2019) learned from these texts; any text can be written with it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
