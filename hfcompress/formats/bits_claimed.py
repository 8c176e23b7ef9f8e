"""Refuses a model that would be called n-bit with less than half of its weights in n bits."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from hfcompress.errors import CheckFailed, Reason, UserError
from hfcompress.formats import format_of

LEAST_SHARE = 0.5


def require_share(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], rounded: Collection[str], bits: int, why: str = ""
) -> float:
    """Return the share of a model's weights that are rounded to `bits`.

    Args:
        shapes: of every stored tensor; a tied one once.
        rounded: the names of those that are rounded.
        why: what is said of those that are not, where they are the most.

    Raises:
        UserError: it is less than half; naming what is left as it was.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = max(sum(sizes.values()), 1)
    share = sum(sizes[name] for name in rounded) / total
    if share >= LEAST_SHARE:
        return share
    left = sorted((name for name in sizes if name not in rounded), key=lambda name: -sizes[name])
    named = ", ".join(f"{name} {list(shapes[name])}" for name in left[:2])
    reason = why or (
        "3-D parameters, such as fused experts, are no torch.nn.Linear"
        if len(shapes[left[0]]) > 2
        else "embeddings and head stay as they are here"
    )
    raise UserError(
        f"{folder}: only {share:.1%} of the weights would be in {bits} bits, and {1 - share:.1%} left as they are "
        f"({named}, ...: {reason}); that is no {bits}-bit model"
    )


def require_stored(folder: Path, bits: int, advice: str) -> float:
    """Return the share of the weights in a folder's files of weights that is really stored in `bits` or fewer.

    A GGUF block's scales count among its bits: those of a 4-bit type take up to 5.

    Args:
        advice: what to do where it is less than half: the template of a Reason.

    Raises:
        CheckFailed: it is less than half.
        UserError: the folder holds no weights.
    """
    found = format_of(folder)
    stored = [named for file in found.files(folder) for named in found.tensors(file, {})]
    weights = [(name, elements, width) for name, (elements, _, width, is_weight) in stored if is_weight]
    most = bits + found.widened_bits
    wide = [(elements, name, width) for name, elements, width in weights if width > most]
    total = sum(elements for _, elements, _ in weights)
    share = 1 - sum(elements for elements, _, _ in wide) / total if total else 0.0
    if share >= LEAST_SHARE:
        return share
    largest = "{1} has {0:,} in {2}".format(*max(wide)) if wide else "it holds none"
    few = f"{folder}: only {share:.1%} of the weights are stored in {bits} bits ({largest})"
    raise CheckFailed(Reason("{why}: {advice}", why=f"{few}; that is no {bits}-bit model", advice=Reason(advice)))
