"""What surrounds a call of another tool: random generators, logging and torch's settings stay as they were."""

import gc
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from hfcompress.engines.engine import Layer

VARIABLES = {
    "INC_TARGET_DEVICE": "cpu",  # where the layer is: Neural Compressor moves it to a GPU by itself
    "AR_ALLOW_W8_ASYM": "1",  # AutoRound refuses 8 bits with zero points for the sake of formats that are not ours
}


class Step(nn.Module):
    """A layer that is called with hidden states alone: masks and positions are `Layer.run`'s."""

    def __init__(self, layer: Layer, module: nn.Module) -> None:
        super().__init__()
        self.module, self.run = module, layer.run

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.run(self.module, hidden_states)


class Stack(nn.Module):
    """A model of one layer, `layers.0.module`: tools look for a ModuleList of layers."""

    def __init__(self, layer: Layer, module: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Step(layer, module)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        found: Tensor = self.layers[0](hidden_states)
        return found


@contextmanager
def isolated(seed: int = 0) -> Iterator[None]:
    """Call another tool within: seeded, on the CPU, quiet but for errors, outside inference mode."""
    state, arrays = random.getstate(), np.random.get_state()
    before = {name: os.environ.get(name) for name in VARIABLES}
    deterministic = torch.are_deterministic_algorithms_enabled()
    threads, disabled = torch.get_num_threads(), logging.root.manager.disable
    try:
        os.environ.update(VARIABLES)
        gc.freeze()  # tools collect garbage after each matrix: what is here already need not be searched each time
        logging.disable(logging.WARNING)  # whatever levels its loggers set when they are imported
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        gc.unfreeze()
        random.setstate(state)
        np.random.set_state(arrays)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)
        logging.disable(disabled)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
