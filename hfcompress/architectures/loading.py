"""Loads stock models by transformers and refuses what it would invent, leave out or take from another model."""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.architectures.meta import meta_model
from hfcompress.architectures.pretrained import stock_config, stock_model
from hfcompress.errors import UserError
from hfcompress.folders.weights import Place, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Batches that a batch norm has seen: a counter that older checkpoints do not have, and that no answer depends on.
COUNTERS = ".num_batches_tracked"
POOLER = "pooler."
# What transformers and torch raise of wrong configs: an AssertionError of a padding token beyond the vocabulary.
RAISED = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    ArithmeticError,
    AssertionError,
)


@contextmanager
def says_what_does_not_fit(folder: Path) -> Iterator[None]:
    """One line for what transformers and torch raise of a config.json that is wrong, or is not of these weights.

    Raises:
        UserError: something was raised inside.
    """
    try:
        yield
    except RAISED as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: its config.json and its weights are no model that transformers loads ({reason}); fetch or "
            "make the model again"
        ) from error


class quiet_new_head:
    """Silence the advice to train a newly made head: training it is what happens next."""

    def __enter__(self) -> None:
        names = ("transformers.modeling_utils", "transformers.integrations.tensor_parallel")
        self.levels = {logging.getLogger(name): logging.getLogger(name).level for name in names}
        for logger in self.levels:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        for logger, level in self.levels.items():
            logger.setLevel(level)


def load_whole(auto: Any, folder: Path, *, new_head: bool = False, **changes: Any) -> Any:
    """Return a folder's model in float32, every weight of it from the files.

    Args:
        auto: an Auto class, or a model class.
        new_head: whether what is not the encoder (and the encoder's pooler) may be new: random, seeded by the caller.
        changes: fields of the config with other values (pretrained.stock_config).

    Raises:
        UserError: a weight is missing, has another shape or no counterpart in the model, or holds NaN or Inf.
    """
    import torch

    with quiet_new_head(), says_what_does_not_fit(folder):
        try:
            config = stock_config(folder, **changes)
            model, info = stock_model(auto, folder, config, torch_dtype=torch.float32, output_loading_info=True)
        except ValueError as error:
            if "corrupted" in str(error):  # a head, and no weight under the prefix of the rest
                refuse_absent(folder, auto)
            raise
    missing = [name for name in sorted(info["missing_keys"]) if not name.endswith(COUNTERS)]
    if new_head:
        missing = [name for name in missing if not is_head(model, name)]
    refuse_missing(folder, type(model).__name__, missing)
    if mismatched := sorted(str(entry) for entry in info.get("mismatched_keys") or ()):
        raise UserError(f"{folder}: {some(mismatched)} has another shape than config.json says; fetch the model again")
    if errors := info.get("error_msgs"):
        raise UserError(f"{folder}: {' '.join(str(errors[0]).split())[:200]}; fetch the model again")
    refuse_repeated(folder, info["unexpected_keys"], model.state_dict())
    if model.get_output_embeddings() is not None:
        places = stored_tensors(folder)
        named = module_names(folder, model, places, model.state_dict())
        aliases = tied_to(empty_model(folder, auto))  # transformers 5 has loaded what differs as two
        require_equal_ties(folder, aliases, {named[name]: place for name, place in places.items()})
    require_finite(folder, model)
    return model


def is_head(model: "PreTrainedModel", name: str) -> bool:
    """Whether a weight is the head's: outside of the base model, or of its pooler, which serves the head alone."""
    if model.base_model is model:
        return name.startswith(POOLER)
    prefix = f"{model.base_model_prefix}."
    return not name.startswith(prefix) or name.startswith(prefix + POOLER)


def refuse_missing(folder: Path, kind: str, missing: list[str]) -> None:
    """Raise UserError where weights of a model of the class `kind` are missing."""
    if missing:
        raise UserError(
            f"{folder} is not a whole {kind}: it does not contain {some(missing)}, and random values would stand in "
            "their place; give a folder that holds them, or fetch the model again"
        )


def refuse_absent(folder: Path, auto: Any) -> None:
    """Raise UserError naming the model's weights that are not in the folder's files under their own names."""
    model = empty_model(folder, auto)
    stored = stored_tensors(folder)
    refuse_missing(folder, type(model).__name__, sorted(name for name in model.state_dict() if name not in stored))


def refuse_repeated(folder: Path, unexpected: Iterable[str], expected: Iterable[str]) -> None:
    """Refuse weights of layers that the config does not count: all but their numbers is as in layers that it counts.

    Weights of another kind (the head of pretraining, a vision tower) are left out, as transformers leaves them out.

    Raises:
        UserError: naming some.
    """
    kinds = {without_numbers(name) for name in expected}
    more = sorted(name for name in unexpected if without_numbers(name) in kinds)
    if more:
        raise UserError(
            f"{folder}: {some(more)} is in the file, and by config.json the model ends before it (number of layers); "
            "give the config.json that was saved with these weights"
        )


def without_numbers(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def require_finite(folder: Path, model: "PreTrainedModel") -> None:
    """Refuse NaN and Inf among a model's parameters.

    Raises:
        UserError: naming the first such parameter.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(f"{folder}: {name} holds NaN or Inf; the model is damaged, fetch or make it again")


def some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def empty_model(folder: Path, auto: Any) -> Any:
    """Return the folder's model without memory for its weights (torch's meta device).

    Raises:
        UserError: transformers has no such model.
    """
    try:
        return meta_model(auto, stock_config(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{folder} is no {auto_task(auto)} that transformers knows ({reason})") from None


def auto_task(auto: Any) -> str:
    return "causal LM" if auto.__name__ == "AutoModelForCausalLM" else "classifier"


def loaded_places(folder: Path, places: dict[str, Place]) -> tuple[dict[str, Place], list[str]]:
    """Return a causal LM's tensors by the names of its modules, and the stored names that transformers leaves out.

    A weight that config.json ties to another (lm_head to the embedding) is one that is left out.

    Raises:
        UserError: transformers has no such causal LM, a weight is missing, has another shape than config.json says,
            or is one of a layer that config.json does not count.
    """
    from transformers import AutoModelForCausalLM

    model = empty_model(folder, AutoModelForCausalLM)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    aliases = tied_to(model)
    named = module_names(folder, model, places, shapes)
    require_equal_ties(folder, aliases, {named[name]: place for name, place in places.items()})
    found = {named[name]: place for name, place in places.items() if named[name] in shapes}
    ignored = [name for name in places if named[name] not in shapes or named[name] in aliases]
    missing = [name for name in shapes if name not in found and name not in aliases and not name.endswith(COUNTERS)]
    output = model.get_output_embeddings()
    head = next((f"{name}.weight" for name, module in model.named_modules() if module is output), "lm_head.weight")
    if missing == [head]:
        raise UserError(
            f"{folder}: {head} is missing, and config.json says that it is not the embedding (tie_word_embeddings "
            "false); fetch the model again, or set tie_word_embeddings to true if it was trained so"
        )
    if missing:
        refuse_converted(folder, model.config.model_type)
    refuse_missing(folder, type(model).__name__, missing)
    require_shapes(folder, found, shapes, getattr(model.config.get_text_config(), "vocab_size", None))
    benign = {name for name, _ in model.named_buffers()}
    unknown = [name for name in ignored if named[name] not in aliases and named[name] not in benign]
    refuse_repeated(folder, [named[name] for name in unknown], shapes)
    patterns = [*(model._keys_to_ignore_on_load_unexpected or []), r"rotary_emb\.inv_freq", r"\.masked_bias$"]
    said = [name for name in ignored if not any(re.search(p, name) for p in patterns) and named[name] not in benign]
    return {name: place for name, place in found.items() if name not in aliases}, said


def refuse_converted(folder: Path, model_type: str) -> None:
    """Refuse an architecture whose tensors transformers 5 renames or merges as it loads them, as a mixture's experts.

    Raises:
        UserError: with the version that holds them as the files do.
    """
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ModuleNotFoundError:  # version 4 has the names of the files
        return
    if get_checkpoint_conversion_mapping(model_type):
        import transformers

        raise UserError(
            f"{folder}: transformers {transformers.__version__} renames or merges the tensors of a {model_type} as it "
            "loads them (experts, for one), and they are quantized as the files hold them; install 'transformers<5' "
            "where it knows this model"
        )


def tied_to(model: "PreTrainedModel") -> dict[str, str]:
    """Parameter -> the one before it that it is the same tensor as."""
    first: dict[int, str] = {}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (same := first.setdefault(id(parameter), name)) != name:
            found[name] = same
    return found


def require_equal_ties(folder: Path, aliases: dict[str, str], places: dict[str, Place]) -> None:
    """Refuse a weight that config.json ties to another (lm_head to the embedding), and that the files have otherwise.

    transformers 4 computes with the one, transformers 5 with the other.

    Args:
        aliases: see `tied_to`.
        places: by the model's names.

    Raises:
        UserError: naming both.
    """
    for alias, kept in aliases.items():
        if alias in places and kept in places and not equal_values(places[alias], places[kept]):
            raise UserError(
                f"{folder}: config.json says that {alias} is {kept} (tie_word_embeddings true), and in the files they "
                "differ: transformers 4 computes with the one, transformers 5 with the other; set tie_word_embeddings "
                f"to false, or take {alias} out of the files"
            )


def equal_values(one: Place, other: Place) -> bool:
    """Whether two stored tensors are the same, a MB at a time."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        for done in range(0, one.bytes, 2**20):
            size = min(2**20, one.bytes - done)
            if first.read(size) != second.read(size):
                return False
    return True


def module_names(
    folder: Path, model: "PreTrainedModel", stored: Iterable[str], expected: Iterable[str]
) -> dict[str, str]:
    """Stored name -> the model's, as transformers loads it.

    A base model's file gets the prefix that the causal LM has for it; version 5 has other names for some modules than
    files have (GPT-NeoX: embed_out is lm_head).

    Raises:
        UserError: names with and without the prefix, which transformers refuses.
    """
    prefix = f"{model.base_model_prefix}."
    renamed = {name: re.sub(r"LayerNorm\.(gamma|beta)$", plain_norm, name) for name in stored}
    wanted = set(expected)
    for renaming in renamings(model):
        for name in [name for name, old in renamed.items() if old not in wanted]:
            new = renaming.rename_source_key(renamed[name])[0]
            renamed[name] = new if new in wanted else renamed[name]
    if any(name.startswith(prefix) for name in renamed.values()) or not any(n.startswith(prefix) for n in expected):
        return renamed
    if both := [name for name in renamed.values() if name in wanted]:
        raise UserError(
            f"{folder}: {both[0]} stands beside weights without the prefix {prefix!r}; save the whole model again"
        )
    return {name: prefix + new for name, new in renamed.items()}


def renamings(model: "PreTrainedModel") -> list[Any]:
    """Return how transformers 5 renames a file's tensors to which it does nothing else; below 5 none is renamed."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ModuleNotFoundError:
        return []
    return [one for one in get_model_conversion_mapping(model, add_legacy=False) if type(one) is WeightRenaming]


def saved_names(model: "PreTrainedModel", names: Iterable[str]) -> dict[str, str]:
    """Return name -> the one that `save_pretrained` gives that tensor, which both versions read."""
    back = [renaming.reverse_transform() for renaming in reversed(renamings(model))]
    found = {name: name for name in names}
    for renaming in back:
        found = {name: renaming.rename_source_key(old)[0] for name, old in found.items()}
    return found


def plain_norm(match: re.Match[str]) -> str:
    return "LayerNorm.weight" if match[1] == "gamma" else "LayerNorm.bias"


def require_shapes(
    folder: Path, found: dict[str, Place], shapes: dict[str, tuple[int, ...]], vocabulary: int | None
) -> None:
    """Refuse tensors of another shape than config.json says.

    Raises:
        UserError: naming rows and vocab_size where these differ, else a tensor and both shapes.
    """
    for name, place in found.items():
        stored, wanted = place.shape, shapes[name]
        if stored == wanted:
            continue
        if stored[1:] == wanted[1:] and wanted[:1] == (vocabulary,):
            says = f"has {stored[0]:,} rows in the file, and vocab_size in config.json is {vocabulary:,}"
        else:
            says = f"is {list(stored)} in the file and {list(wanted)} by config.json"
        raise UserError(f"{folder}: {name} {says}; give the config.json that was saved with these weights")
