"""Refuses a model that would be called n-bit with less than half of its weights in n bits."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path

from hfcompress.errors import UserError

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
