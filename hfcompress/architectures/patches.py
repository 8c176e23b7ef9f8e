"""A stock model cut into a shape that no config can express: its config.json, and surgery.json with the ordered edits.

`surgery.json` is `{"edits": [...]}`. An edit names a module and what becomes of it:

- `{"edit": "resize", "module": "...convolution", "to": {"in_channels": 12, "out_channels": 20, "groups": 1}}`:
  a convolution, Linear, normalization or Embedding of another size;
- `{"edit": "attributes", "module": "...attention.self", "to": {"num_attention_heads": 7, "all_head_size": 448}}`:
  numbers that a module's forward reads;
- the edits for factors of a layer, which hfcompress/architectures/factors.py describes.

The weights are then loaded into the edited model, every name and every size of them.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError
from hfcompress.folders.foreign_files import read_object
from hfcompress.folders.weights import weight_files

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

SURGERY = "surgery.json"
# What says the size of a module, by the name of its class; a parameter's size follows from these.
SIZES = {
    "Conv2d": ("in_channels", "out_channels", "groups"),
    "Linear": ("in_features", "out_features"),
    "BatchNorm2d": ("num_features",),
    "LayerNorm": ("normalized_shape",),
    "Embedding": ("num_embeddings", "embedding_dim"),
}
MOST = 2**24  # of a size: beyond every model's, and its memory can still be asked for
ATTRIBUTES = ("num_attention_heads", "all_head_size")

Edit = dict[str, Any]


def read_edits(folder: Path) -> list[Edit]:
    """The edits of a model folder; none without surgery.json.

    Raises:
        UserError: surgery.json is damaged, or is that of a packed causal LM (architectures/quantized_model.py).
    """
    file = folder / SURGERY
    if not file.is_file():
        return []
    try:
        found = read_object(file)
        if "grids" in found:
            raise UserError(f"{folder} is a packed causal LM: use the formats that its run delivers")
        return list(found["edits"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); make the model again") from None


def write_edits(folder: Path, edits: list[Edit]) -> None:
    """Write surgery.json where there is anything to say."""
    if edits:
        (folder / SURGERY).write_text(json.dumps({"edits": edits}, indent=1) + "\n", encoding="utf-8")


def rebuild(folder: Path, model: "PreTrainedModel", edits: list[Edit]) -> "PreTrainedModel":
    """Edit a fresh stock `model` and load the folder's weights into it, all of them.

    Raises:
        UserError: an edit does not fit the model, or the weights do not fit the edited model.
    """
    from safetensors.torch import load_file

    apply(model, edits)
    state = {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        cause = str(error).splitlines()[-1].strip()
        raise UserError(f"{folder}: the weights do not fit {SURGERY} ({cause})") from None
    missing = [name for name in missing if name not in tied_names(model)]
    if missing or unexpected:
        raise UserError(f"{folder}: {(missing + unexpected)[0]} stands only in the weights or only in {SURGERY}")
    model.tie_weights()
    return model


def tied_names(model: "PreTrainedModel") -> set[str]:
    """Names of parameters that are another's and so are stored once, and buffers that are made anew."""
    found = set(getattr(model, "_tied_weights_keys", None) or ())
    return found | {name for name in dict(model.named_buffers()) if name not in model.state_dict()}


def apply(model: "PreTrainedModel", edits: list[Edit]) -> None:
    """Edit `model` in place; new weights are uninitialized. The edits travel with it as `model.edits`.

    Raises:
        UserError: an edit names a module that the model does not have, or is of an unknown kind.
    """
    from hfcompress.architectures.factors import factored

    for edit in edits:
        try:
            module = model.get_submodule(edit["module"])
            if edit["edit"] == "resize":
                model.set_submodule(edit["module"], resized(module, edit["to"]))
            elif edit["edit"] == "attributes":
                for name, value in edit["to"].items():
                    if name not in ATTRIBUTES or not isinstance(value, int) or value < 1:
                        raise TypeError(f"{name} = {value!r} is no size")
                    setattr(module, name, value)
            elif (new := factored(module, edit)) is not None:
                model.set_submodule(edit["module"], new)
            else:
                raise UserError(f"{SURGERY}: there is no edit {edit['edit']!r}; a newer version may have made it")
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{SURGERY}: {edit} does not fit the model ({error})") from None
    model.edits = [*edits_of(model), *edits]


def edits_of(model: "PreTrainedModel") -> list[Edit]:
    """The edits that a model was made with."""
    return list(getattr(model, "edits", []))


def resized(module: "nn.Module", to: dict[str, Any]) -> "nn.Module":
    """A module of the same kind and settings with other sizes, its weights not initialized."""
    import torch
    from torch import nn

    for name, value in to.items():
        numbers = value if isinstance(value, list) and name == "normalized_shape" else [value]
        if name not in size_of(module) or not all(type(n) is int and 0 < n < MOST for n in numbers):
            raise TypeError(f"{name} = {value!r} is no size")
    size = size_of(module) | to
    with torch.device(module.weight.device):
        if isinstance(module, nn.Conv2d):
            return nn.Conv2d(
                **size,
                kernel_size=module.kernel_size,
                stride=module.stride,
                padding=module.padding,
                dilation=module.dilation,
                bias=module.bias is not None,
                padding_mode=module.padding_mode,
            )
        if isinstance(module, nn.Linear):
            return nn.Linear(**size, bias=module.bias is not None)
        if isinstance(module, nn.BatchNorm2d):
            return nn.BatchNorm2d(**size, eps=module.eps, momentum=module.momentum, affine=module.affine)
        if isinstance(module, nn.LayerNorm):
            return nn.LayerNorm(tuple(size["normalized_shape"]), eps=module.eps)
        if isinstance(module, nn.Embedding):
            return nn.Embedding(**size, padding_idx=module.padding_idx)
    raise TypeError(f"a {type(module).__name__} cannot be resized")


def size_of(module: "nn.Module") -> dict[str, Any]:
    """The numbers that say a module's size; empty for a kind that has none."""
    names = SIZES.get(type(module).__name__, ())
    return {name: list(v) if isinstance(v := getattr(module, name), tuple) else v for name in names}


def resizes(stock: "PreTrainedModel", model: "nn.Module") -> list[Edit]:
    """The edits that lead from a fresh stock model to one whose modules were cut in place.

    Sizes that the modules only claim (torch-pruning keeps the attributes) are checked against their weights by
    `rebuild`, which fails when they differ.
    """
    found: list[Edit] = []
    cut = dict(model.named_modules())
    for name, module in stock.named_modules():
        if size_of(module) != (now := size_of(cut[name])):
            found.append({"edit": "resize", "module": name, "to": now})
        numbers = {n: getattr(cut[name], n) for n in ATTRIBUTES if isinstance(getattr(module, n, None), int)}
        if any(getattr(module, n) != value for n, value in numbers.items()):
            found.append({"edit": "attributes", "module": name, "to": numbers})
    return found
