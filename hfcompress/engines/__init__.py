"""Other compression tools behind this package's contracts: one file each, and a table of those that quantize layers.

A new one is a file beside these and an entry here; `tests/contracts/test_engines.py` then runs over it.
"""

from hfcompress.engines.auto_round import AutoRound
from hfcompress.engines.engine import Engine
from hfcompress.engines.neural_compressor import NeuralCompressor

ENGINES: dict[str, Engine] = {
    "neural-compressor": NeuralCompressor(),
    "auto-round": AutoRound(),
}
"""`--weight-only.engine` -> the engine; "own" is none of them."""
