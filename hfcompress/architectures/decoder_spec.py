"""The shape of a causal LM as plain numbers: what `plan` predicts from, with no weights and no torch."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.architectures import DECODERS
from hfcompress.architectures.decoder import Decoder
from hfcompress.architectures.decoders import head_size, kv_heads
from hfcompress.errors import UnknownShape, UserError
from hfcompress.folders.guard import check_type, read_config

NOT_SHIPPED = ("record.json", "model.safetensors.index.json", "README.md")
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


@dataclass(frozen=True)
class LanguageShape:
    """A decoder of Llama's kind: RMSNorm, grouped-query attention, a gated MLP.

    `layer_plain` counts what a layer has beside its matrices: norms and biases. `weight_bits` is for every matrix, the
    scales of groups included; the embedding has its own where `embedding_bits` is given. `resident_bits` is what a
    matrix takes in memory, where the runtime repacks it. `kv_bits` is for an element of the key-value cache. `fused`:
    queries, keys and values are one matrix, and the MLP's two halves (Phi-3). `sliding_window` is given where every
    layer has it: what some layers keep whole is counted for all. `tokenizer_bytes`: of what lies beside
    the weights, where the folder is known.
    """

    described_as: ClassVar[str] = "a causal LM"
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    context: int
    layer_plain: int
    sliding_window: int | None = None
    fused: bool = False
    weight_bits: float = 16
    embedding_bits: float | None = None
    resident_bits: float | None = None
    kv_bits: float = 16
    tokenizer_bytes: int | None = None
    config: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    """The config.json it was read from, in config_form.py's form, for what a format has to know beside sizes."""
    folder: Path | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LanguageShape":
        """Read the shape from the fields of a config.json.

        Raises:
            UnknownShape: another architecture.
            UserError: a field is missing.
        """
        kind = config.get("model_type")
        if (decoder := DECODERS.get(str(kind))) is None:
            raise UnknownShape(f"a {kind} is no model whose shape is known; known are {', '.join(DECODERS)}")
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            groups, head_dim = kv_heads(config), head_size(config)
            intermediate = int(config["intermediate_size"])
            windows = set(decoder.windows(config))
            return cls(
                layers=int(config["num_hidden_layers"]),
                hidden=hidden,
                intermediate=intermediate,
                heads=heads,
                kv_heads=groups,
                head_dim=head_dim,
                vocab=int(config["vocab_size"]),
                tied=bool(decoder.value(config, "tie_word_embeddings")),
                context=int(config["max_position_embeddings"]),
                layer_plain=layer_plain(decoder, config, heads * head_dim, groups * head_dim),
                sliding_window=windows.pop() if len(windows) == 1 else None,
                fused=decoder.fused,
                weight_bits=32 if str(config.get("dtype") or config.get("torch_dtype")).endswith("float32") else 16,
                config=config,
            )
        except KeyError as error:
            raise UserError(f"the config has no {error.args[0]}: a {kind} has one") from None

    @classmethod
    def read(cls, folder: Path) -> "LanguageShape":
        """The shape of a model folder.

        Raises:
            UserError: no config.json, a damaged one, or see `from_config`.
        """
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder / 'config.json'}: no such file; give the folder of a model")
        config = read_config(folder)
        check_type(folder, config)
        beside = [entry for entry in folder.glob("*") if entry.suffix in (".json", ".txt", ".model", ".jinja")]
        size = sum(entry.stat().st_size for entry in beside if entry.name not in NOT_SHIPPED and entry.is_file())
        kept = size if (folder / "tokenizer.json").is_file() else None
        return replace(cls.from_config(config), folder=folder, tokenizer_bytes=kept)

    def layer_linears(self) -> list[tuple[str, int, int]]:
        """The matrices of one layer: name in it, rows (outputs), columns (inputs)."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.fused:
            return [
                ("self_attn.qkv_proj", queries + 2 * keys, self.hidden),
                ("self_attn.o_proj", self.hidden, queries),
                ("mlp.gate_up_proj", 2 * self.intermediate, self.hidden),
                ("mlp.down_proj", self.hidden, self.intermediate),
            ]
        return [
            ("self_attn.q_proj", queries, self.hidden),
            ("self_attn.k_proj", keys, self.hidden),
            ("self_attn.v_proj", keys, self.hidden),
            ("self_attn.o_proj", self.hidden, queries),
            ("mlp.gate_proj", self.intermediate, self.hidden),
            ("mlp.up_proj", self.intermediate, self.hidden),
            ("mlp.down_proj", self.hidden, self.intermediate),
        ]

    def linears(self) -> list[tuple[str, int, int]]:
        """All matrices: module name, rows, columns; a tied head is the embedding and not listed."""
        found = [(EMBEDDING, self.vocab, self.hidden)]
        for i in range(self.layers):
            found += [(f"model.layers.{i}.{name}", rows, columns) for name, rows, columns in self.layer_linears()]
        return found if self.tied else [*found, (HEAD, self.vocab, self.hidden)]

    @property
    def embedding_parameters(self) -> int:
        return self.vocab * self.hidden

    @property
    def layer_parameters(self) -> int:
        """Weights of all layers' matrices."""
        return self.layers * sum(rows * columns for _, rows, columns in self.layer_linears())

    @property
    def head_parameters(self) -> int:
        """Of the head's own matrix: none where it is the embedding."""
        return 0 if self.tied else self.embedding_parameters

    @property
    def plain_parameters(self) -> int:
        """Norms and biases: what is on no grid."""
        return self.layers * self.layer_plain + self.hidden

    @property
    def memory_bits(self) -> float:
        """Bits of a matrix's weight in memory."""
        return self.weight_bits if self.resident_bits is None else self.resident_bits

    @property
    def parameters(self) -> int:
        return self.embedding_parameters + self.layer_parameters + self.head_parameters + self.plain_parameters


def layer_plain(decoder: Decoder, config: dict[str, Any], queries: int, keys: int) -> int:
    """Return how many numbers the norms and biases of a layer have, as transformers builds it."""
    hidden, intermediate = int(config["hidden_size"]), int(config["intermediate_size"])
    found = (4 if decoder.norms_after else 2) * hidden
    if decoder.query_biases:
        found += queries + 2 * keys
    elif decoder.value(config, "attention_bias"):
        found += queries + 2 * keys + hidden
    if decoder.value(config, "mlp_bias"):
        found += 2 * intermediate + hidden
    return found + (2 * head_size(config) if decoder.head_norms else 0)
