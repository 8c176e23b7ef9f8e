"""embeddings: where the parameters are, and a vocabulary trimmed to the pieces that the corpus uses."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures.encoder_spec import Shape
from hfcompress.architectures.kinds import is_text_classifier
from hfcompress.architectures.loading import load_whole
from hfcompress.architectures.models import check_unquantized, load_tokenizer, save
from hfcompress.architectures.patches import read_edits
from hfcompress.architectures.pretrained import stock_class, stock_config
from hfcompress.architectures.text_inputs import AFTER_PADDING
from hfcompress.errors import CheckFailed, Reason, UserError
from hfcompress.folders.lines import read_lines
from hfcompress.stage import TENSORS
from hfcompress.tasks import vocabulary
from hfcompress.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKED_TEXTS = 64


@dataclass(frozen=True)
class TrimVocabulary:
    """Keep the word pieces that the training texts use, and what keeps any text tokenizable.

    On the corpus the model's outputs stay bit-equal (checked on a sample; a difference fails the stage). With
    `vocabulary_size` they cannot: the record then says which share of the corpus is cut into other pieces.
    """

    vocabulary_size: int | None = None
    """At most so many pieces, the most frequent ones; all that are used when not given."""
    extra_text: Path | None = None
    """More text whose pieces stay, one text a line."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = TENSORS

    def __call__(self, out: Path, *, model: Path, task: TextClassification) -> dict[str, Any]:
        corpus = self._corpus(task)
        tokenizer = vocabulary.read_tokenizer(model)
        pieces = vocabulary.kept_pieces(tokenizer, vocabulary.count_pieces(model, corpus), self.vocabulary_size)
        vocabulary.write_tokenizer(model, out, vocabulary.trimmed_tokenizer(tokenizer, pieces))
        (out / "config.json").write_bytes((model / "config.json").read_bytes())  # can alone say the tokenizer's class
        network = load_any(model)
        profile = where_parameters_are(network)
        rows = [tokenizer["model"]["vocab"][piece] for piece in pieces]
        trim_embeddings(network, rows)
        small_tokenizer = load_tokenizer(out)
        require_same_positions(network.config, small_tokenizer.pad_token_id)
        network.config.pad_token_id = small_tokenizer.pad_token_id
        save(network, small_tokenizer, out)
        changed = share_cut_differently(model, out, corpus)
        if self.vocabulary_size is None:
            if changed:
                reason = (
                    "{changed:.1%} of the corpus is cut into other pieces than before; "
                    "give {vocabulary_size}, which allows that, or {.trim_vocabulary:no}"
                )
                raise CheckFailed(Reason(reason, changed=changed))
            check_bit_equal(model, out, corpus[:: max(1, len(corpus) // CHECKED_TEXTS)], task.max_length)
        unseen = task.data.texts("validation") + task.data.texts("test")
        return {
            "parameters_before": profile,
            "pieces_before": len(tokenizer["model"]["vocab"]),
            "pieces": len(pieces),
            "corpus_texts_cut_differently": changed,
            "unseen_text": {"before": piece_statistics(model, unseen), "after": piece_statistics(out, unseen)},
        }

    def predict(self, model: Shape, *, task: TextClassification) -> Shape:
        """As the stage would trim it, where the tokenizer is on this machine; else unchanged."""
        folder = model.tokenizer_folder
        if folder is None:
            return model
        from tempfile import TemporaryDirectory

        tokenizer = vocabulary.read_tokenizer(folder)
        counts = vocabulary.count_pieces(folder, self._corpus(task))
        pieces = vocabulary.kept_pieces(tokenizer, counts, self.vocabulary_size)
        with TemporaryDirectory() as scratch:
            vocabulary.write_tokenizer(folder, Path(scratch), vocabulary.trimmed_tokenizer(tokenizer, pieces))
            size = vocabulary.tokenizer_bytes(Path(scratch))
        return model.with_(vocab_size=len(pieces), tokenizer_bytes=size, tokenizer_folder=None)

    def _corpus(self, task: TextClassification) -> list[str]:
        return task.data.texts("train") + (read_texts(self.extra_text) if self.extra_text else [])


def require_same_positions(config: Any, padding: int) -> None:
    """Refuse another number of the padding token where positions are counted from behind it.

    Raises:
        UserError: with both numbers.
    """
    if config.model_type in AFTER_PADDING and padding != config.pad_token_id:
        raise UserError(
            f"the trimmed vocabulary has its padding token at {padding}, and a {config.model_type} counts positions "
            f"from behind {config.pad_token_id}: leave the vocabulary as it is (--no-trim-vocabulary)"
        )


def read_texts(file: Path) -> list[str]:
    """One text a line.

    Raises:
        UserError: there is no such file, or it is not UTF-8.
    """
    try:
        return [line for line in read_lines(file) if line.strip()]
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{file}: no such file; give one with a text a line") from None


def load_any(folder: Path) -> "PreTrainedModel":
    """A classifier as it is, any other model without its head (a language model's head has the vocabulary's size)."""
    import torch
    from transformers import AutoModel

    check_unquantized(folder)
    if read_edits(folder):
        raise UserError(f"{folder} was cut or factored before (surgery.json): trim the model that it was made of")
    named = stock_class(stock_config(folder))
    kind = named if is_text_classifier(named) else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a pooler that the folder does not have is the same in every run
        network: PreTrainedModel = load_whole(kind, folder, new_head=kind is AutoModel)
        return network.eval()


def trim_embeddings(network: "PreTrainedModel", rows: list[int]) -> None:
    """Keep these rows of the input embeddings, in this order."""
    import torch

    old = network.get_input_embeddings()
    new = torch.nn.Embedding(len(rows), old.embedding_dim)
    with torch.no_grad():
        new.weight.copy_(old.weight[rows])
    network.set_input_embeddings(new)
    network.config.vocab_size = len(rows)


def where_parameters_are(network: "PreTrainedModel") -> dict[str, int]:
    """Parameters in word embeddings, other embeddings, attention, feed-forward layers and the rest."""
    found = dict.fromkeys(("word_embeddings", "other_embeddings", "attention", "feed_forward", "head"), 0)
    for name, parameter in network.named_parameters():
        part = (
            "word_embeddings"
            if "word_embeddings" in name
            else "other_embeddings"
            if "embeddings" in name
            else "attention"
            if ".attention." in name
            else "feed_forward"
            if ".layer." in name
            else "head"
        )
        found[part] += parameter.numel()
    return found


def share_cut_differently(before: Path, after: Path, texts: list[str]) -> float:
    """The share of texts that the two tokenizers cut into other pieces."""
    old, new = (load_tokenizer(folder) for folder in (before, after))
    pairs = zip(old(texts).encodings, new(texts).encodings, strict=True)
    return sum(a.tokens != b.tokens for a, b in pairs) / len(texts)


def check_bit_equal(before: Path, after: Path, texts: list[str], max_length: int) -> None:
    """Raise CheckFailed unless both models give the same bits on the texts."""
    import torch

    outputs = []
    for folder in (before, after):
        tokenizer, network = load_tokenizer(folder), load_any(folder)
        batch = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        with torch.inference_mode():
            outputs.append(network(**batch)[0])
    if not torch.equal(*outputs):
        reason = (
            "the trimmed model's outputs are not bit-equal to the original's; "
            "leave the vocabulary as it is ({.trim_vocabulary:no}), or give {vocabulary_size}"
        )
        raise CheckFailed(Reason(reason))


def piece_statistics(folder: Path, texts: list[str]) -> dict[str, float]:
    """unknown_rate (share of pieces that are [UNK]) and pieces_per_text."""
    counts: Counter[int] = vocabulary.count_pieces(folder, texts)
    tokenizer = vocabulary.read_tokenizer(folder)
    unknown = counts[tokenizer["model"]["vocab"][tokenizer["model"]["unk_token"]]]
    total = sum(counts.values())
    return {"unknown_rate": unknown / total, "pieces_per_text": total / len(texts)}
