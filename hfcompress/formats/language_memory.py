"""Memory of a causal LM alone: a fresh process that loads it, reads a prompt that fills its context, and answers.

`python -m hfcompress.formats.language_memory FOLDER CONTEXT THREADS` prints one JSON line.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hfcompress.folders.guard import read_config
from hfcompress.formats import format_of
from hfcompress.formats.memory import rss_mb

ANSWER = 16  # tokens of the context that are generated


def fresh_process(folder: Path, context: int, threads: int) -> dict[str, float]:
    """Measure a folder in a process of its own.

    Returns: peak_rss_mb, bare_rss_mb (after the imports, before the model), loaded_rss_mb, load_ms.
    """
    module = "hfcompress.formats.language_memory"
    command = [sys.executable, "-m", module, str(folder), str(context), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def serve(folder: Path, context: int, threads: int) -> dict[str, Any]:
    """Load, fill the context, generate its last tokens."""
    from hfcompress.formats.runtimes.decoder import open_decoder

    format_of(folder).import_runtime("language", threads)
    bare = rss_mb()
    begun = time.perf_counter()
    decoder = open_decoder(folder, threads)
    load_ms = (time.perf_counter() - begun) * 1e3
    loaded = rss_mb(now=True)
    vocabulary = read_config(folder)["vocab_size"]
    context = min(context, decoder.context)
    prompt = [3 + (i * 7919) % (vocabulary - 3) for i in range(context - ANSWER)]
    token = int(decoder.append(prompt)[-1].argmax())
    for _ in range(ANSWER - 1):
        token = int(decoder.append([token])[-1].argmax())
    found = {"peak_rss_mb": rss_mb(), "bare_rss_mb": bare, "loaded_rss_mb": loaded, "load_ms": load_ms}
    return {name: round(value, 1) for name, value in found.items()}


if __name__ == "__main__":
    print(json.dumps(serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
