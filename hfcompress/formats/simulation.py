"""Whether a delivered model says what the integers that it was written from stand for."""

from pathlib import Path
from typing import Any

from hfcompress.errors import CheckFailed

AGREEMENT = 0.02  # of the largest logit: rounded inputs and a rounded cache move logits, wrong bytes by all of it
CHECKED_PARAMETERS = 50_000_000  # the simulation takes 4 bytes for each


def small_enough(packed: Any) -> bool:
    """Whether a packed model (architectures/quantized_model.py) is simulated as soon as it was delivered."""
    return 2 * sum(place.bytes for place in packed.checkpoint.places.values()) <= CHECKED_PARAMETERS


def check(folder: Path, packed: Any, ids: list[int], allowed: float = AGREEMENT) -> dict[str, Any]:
    """The logits of a delivered folder after these tokens, in its own runtime, beside the simulation's.

    Returns: checked, and difference_from_simulation: root mean square, as a share of the largest logit.

    Raises:
        CheckFailed: it is above `allowed`.
    """
    import numpy as np
    import torch

    from hfcompress.architectures.quantized_model import load_simulated
    from hfcompress.formats.runtimes.decoder import open_decoder

    with torch.inference_mode():
        simulated = load_simulated(packed.folder)(torch.tensor([ids])).logits[0].numpy()
    found = open_decoder(folder, 1).append(ids, all_logits=True)
    difference = float(np.sqrt(np.mean((found - simulated) ** 2)) / np.abs(simulated).max())
    if not difference <= allowed:
        raise CheckFailed(
            f"{folder} gives other logits than the packed model: {difference:.3f} of the largest; "
            "give --genai.accuracy-level 1 (float32 products), or more bits (--allot.bits)"
        )
    return {"checked": True, "difference_from_simulation": difference}
