"""genai: a packed decoder as a folder that onnxruntime-genai and plain onnxruntime run."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hfcompress.architectures.decoders import decoder_of, head_size, kv_heads, require_graph
from hfcompress.architectures.models import load_tokenizer
from hfcompress.errors import CheckFailed, OptionError, Reason
from hfcompress.folders.end_tokens import copy_beside, end_tokens, ids_of
from hfcompress.folders.record import write_json
from hfcompress.formats.matmul_nbits import require_sizes, resident_bits
from hfcompress.formats.onnx_writer import DATA, MODEL
from hfcompress.formats.simulation import check, small_enough
from hfcompress.ops.precision import use_bf16
from hfcompress.stage import GRAPHS
from hfcompress.tasks.text_generation import CausalLM

if TYPE_CHECKING:
    from hfcompress.architectures.decoder_spec import LanguageShape
    from hfcompress.architectures.quantized_model import PackedModel

CHECKED_TOKENS = 24


@dataclass(frozen=True)
class ExportGenai:
    """Write model.onnx, its data and genai_config.json; the integers are copied, not rounded again."""

    kv_cache: Literal["int8", "float32"] = "int8"
    """Type of the key-value cache; int8 has a scale a channel, from the task's calibration text."""
    windows: int = 8
    """Windows of calibration text whose keys and values set the scales of an int8 cache."""
    accuracy_level: int = 4
    """What MatMulNBits rounds its inputs to: 4 is int8 (fast), 1 is float32."""
    context: int = 2048
    """Tokens that the cache is made for; no more than the model has positions."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*GRAPHS, "onnxruntime-genai")

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        return {} if self.kv_cache == "int8" else {"windows": Reason("with {kv_cache} {kind}", kind=self.kv_cache)}

    def __post_init__(self) -> None:
        if self.accuracy_level not in (0, 1, 4):
            raise OptionError("accuracy_level", "choose from 0 1 4", self.accuracy_level)
        for name, value in (("context", self.context), ("windows", self.windows)):
            if value < 1:
                raise OptionError(name, "must be at least 1", value)

    def __call__(self, out: Path, *, model: Path, task: CausalLM) -> dict[str, Any]:
        """Write the folder, and hold it against the packed model.

        Raises:
            UserError: an architecture or a grid that the format cannot express.
        """
        from hfcompress.architectures.quantized_model import PackedModel
        from hfcompress.formats.int8_cache import cache_scales, to_int8
        from hfcompress.formats.onnx_decoders import write_decoder

        packed = PackedModel(model)
        context = min(self.context, int(packed.config["max_position_embeddings"]))
        widened = write_decoder(out, packed, context=context, accuracy_level=self.accuracy_level)
        tokenizer = load_tokenizer(model)
        write_json(out / "genai_config.json", genai_config(packed, context, end_tokens(model, tokenizer)))
        shutil.copyfile(model / "config.json", out / "config.json")
        copy_beside(model, out)
        tokenizer.save_pretrained(out)
        small = small_enough(packed)
        needs_text = small or self.kv_cache == "int8"
        windows = task.calibration(tokenizer)[: self.windows, :context] if needs_text else None
        if windows is not None and self.kv_cache == "int8":
            to_int8(out, cache_scales(packed, windows, use_bf16("auto")))
        counted = count_matrices(out / MODEL)
        if counted["float_matrices"] or counted["matrices"] != len(packed.grids) + (1 if packed.tied else 0):
            raise CheckFailed(
                f"{out / MODEL} claims packed integers and holds {counted}; "
                "give another --base: a matrix of this one is not stored as integers"
            )
        checked: dict[str, Any] = {"checked": False}
        if windows is not None and small:
            checked = check(out, packed, windows[0, :CHECKED_TOKENS].tolist())
        return {"widened": widened, "file_bytes": (out / DATA).stat().st_size, **counted, **checked}

    @property
    def kv_bits(self) -> int:
        """Of an element of the cache."""
        return 8 if self.kv_cache == "int8" else 32

    def predict(self, model: "LanguageShape", *, task: CausalLM) -> "LanguageShape":
        """The shape with the cache's and the matrices' bits in memory.

        Raises:
            UserError: onnxruntime has no operator for its sizes, or the graph does not compute what the config says.
        """
        require_sizes(model)
        if model.config is not None:
            require_graph(model.config, min(self.context, model.context))
        return replace(model, kv_bits=self.kv_bits, resident_bits=resident_bits(model.weight_bits))


def genai_config(packed: "PackedModel", context: int, ends: list[int]) -> dict[str, Any]:
    """Return genai_config.json: shapes, names and special tokens.

    Args:
        ends: the tokens that end an answer, as onnxruntime-genai's own builder takes them from generation_config.json
            too: its runtime stops at these alone.
    """
    config, decoder = packed.config, decoder_of(packed.config)
    begin = ids_of(config.get("bos_token_id"))
    pads = [*ids_of(config.get("pad_token_id")), *ends, 0]  # the first Llamas have -1, which its runtime refuses
    return {
        "model": {
            "type": decoder.genai or decoder.model_type,
            **({"bos_token_id": begin[0]} if begin else {}),  # the runtime takes no null
            "eos_token_id": ends[0] if len(ends) == 1 else ends,
            "pad_token_id": next(number for number in pads if number < config["vocab_size"]),
            "vocab_size": config["vocab_size"],
            "context_length": context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "hidden_size": config["hidden_size"],
                "head_size": head_size(config),
                "num_attention_heads": config["num_attention_heads"],
                "num_hidden_layers": config["num_hidden_layers"],
                "num_key_value_heads": kv_heads(config),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": context, "past_present_share_buffer": True, "num_beams": 1},
    }


def count_matrices(file: Path) -> dict[str, Any]:
    """Packed matrices in a written graph by bits, and float tensors that are as large as a matrix."""
    import math

    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    by_bits: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            bits = next(attribute.i for attribute in node.attribute if attribute.name == "bits")
            by_bits[str(bits)] = by_bits.get(str(bits), 0) + 1
    tables = ("scales", "_cache")
    floats = [
        tensor.name
        for tensor in graph.initializer
        if len(tensor.dims) > 1 and tensor.data_type in (1, 10, 16) and math.prod(tensor.dims) > 1
        if not tensor.name.endswith(tables)
    ]
    return {"matrices": sum(by_bits.values()), "by_bits": by_bits, "float_matrices": floats}
