"""ClickModel: a network that predicts clicks from ids, after DLRM, and its folder.

Facebook's deep learning recommendation model (Naumov et al. 2019, section 2): a table an id column, a bottom tower for
the dense features, the dot products of all pairs of vectors, and a top tower. Unlike there, the vectors themselves go
into the top tower too, and it gives two logits: of a click, and of a conversion.

The folder holds config.json (columns, tables, widths) and model.safetensors: no class of transformers has this shape.
"""

from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hfcompress.architectures.click_inputs import LABELS, inputs_of, read_config, write_config
from hfcompress.errors import UserError
from hfcompress.folders.permissions import as_umask_says
from hfcompress.ops.embedding_tables import make_table
from hfcompress.ops.fake_quant import ActivationQuantizer, FakeQuantLinear
from hfcompress.ops.table_sizes import table_bytes

if TYPE_CHECKING:
    from hfcompress.tasks.click_log import ClickLog


class KnownIds(nn.Module):
    """Where an id is looked up: itself, or what stands for the ids that training never saw.

    Args:
        rows: ids from 0 to rows - 1 are known; row `rows` of the table is the unknown one's.
        unknown: row: the unknown one's row; hash: the row of some known id, always the same.
    """

    def __init__(self, rows: int, unknown: str) -> None:
        super().__init__()
        self.rows, self.unknown = rows, unknown

    def forward(self, ids: Tensor) -> Tensor:
        inside = (ids >= 0) & (ids < self.rows)
        other = torch.remainder(ids, self.rows) if self.unknown == "hash" else torch.full_like(ids, self.rows)
        return torch.where(inside, ids, other)


class Towers(nn.Module):
    """All that comes after the tables: dense [batch, features], vectors [batch, columns, dim] -> logits [batch, 2]."""

    def __init__(self, features: int, columns: int, dim: int, bottom: int, top: tuple[int, ...]) -> None:
        super().__init__()
        self.columns = columns
        self.bottom = nn.Sequential(nn.Linear(features, bottom), nn.ReLU(), nn.Linear(bottom, dim), nn.ReLU())
        pairs = columns * (columns + 1) // 2
        widths = (pairs + (columns + 1) * dim, *top)
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
        self.top = nn.Sequential(*layers, nn.Linear(widths[-1], len(LABELS)))
        self.pairs = [a * (columns + 1) + b for a, b in combinations(range(columns + 1), 2)]

    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        every = torch.cat([self.bottom(dense).unsqueeze(1), vectors], dim=1)
        products = (every @ every.transpose(1, 2)).flatten(1)[:, self.pairs]
        return self.top(torch.cat([products, every.flatten(1)], dim=1))


class ClickModel(nn.Module):
    """Logits [batch, 2] of click and conversion, from ids [batch] by column and dense features [batch, features].

    Args:
        config: columns (name -> rows), dim, features, bottom, top, unknown, and tables (name -> see
            ops/embedding_tables.py).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.columns: dict[str, int] = config["columns"]
        self.known = nn.ModuleDict({n: KnownIds(rows, config["unknown"]) for n, rows in self.columns.items()})
        self.tables = nn.ModuleDict(
            {n: make_table(config["tables"][n], rows + 1, config["dim"]) for n, rows in self.columns.items()}
        )
        self.towers = Towers(
            config["features"], len(self.columns), config["dim"], config["bottom"], tuple(config["top"])
        )
        if config.get("int8_towers"):
            quantize_towers(self.towers)

    def forward(self, dense: Tensor, **ids: Tensor) -> Tensor:
        return self.towers(dense, self.vectors(ids))

    def vectors(self, ids: dict[str, Tensor]) -> Tensor:
        """[batch, columns, dim]."""
        return torch.stack([self.tables[name](self.known[name](ids[name])) for name in self.columns], dim=1)

    def table_bytes(self) -> int:
        """What all tables take as they are delivered."""
        return sum(table_bytes(table.description, table.rows, table.dim) for table in self.tables.values())


def quantize_towers(towers: Towers) -> None:
    """Let every Linear compute what int8 kernels will: int8 weights, uint8 inputs whose range follows the data."""
    for tower in (towers.bottom, towers.top):
        for name, layer in list(tower.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(tower, name, FakeQuantLinear(layer, ActivationQuantizer(symmetric=False, learned=False)))


def save_click_model(network: ClickModel, out: Path) -> None:
    """Write config.json and model.safetensors."""
    from safetensors.torch import save_file

    write_config(network.config, out)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, str(out / "model.safetensors"))
    as_umask_says(out / "model.safetensors")


def load_click_model(folder: Path) -> ClickModel:
    """The network of a folder, in eval mode.

    Raises:
        UserError: it is none, or its weights do not fit its config.json.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network = ClickModel(read_config(folder))
    try:
        network.load_state_dict(load_file(str(folder / "model.safetensors")))
    except (FileNotFoundError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder / 'model.safetensors'} cannot be read ({str(error)[:160]}); make it again") from None
    return network.eval()


def logits_of(network: "ClickModel", log: "ClickLog", batch: int = 16_384) -> "np.ndarray[Any, Any]":
    """Return the network's logits for a log, float32 [rows, 2]."""
    inputs = {name: torch.from_numpy(array) for name, array in inputs_of(log).items()}
    network.eval()
    with torch.inference_mode():
        parts = [
            network(**{name: tensor[start : start + batch] for name, tensor in inputs.items()}).numpy()
            for start in range(0, len(log), batch)
        ]
    return np.concatenate(parts)
