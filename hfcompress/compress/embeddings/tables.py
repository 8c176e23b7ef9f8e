"""embedding_codes: tables in fewer bytes (see ops/ for each way), started from the trained ones and fine-tuned."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hfcompress.architectures.click_spec import ClickShape
from hfcompress.errors import OptionError, Reason, UnknownShape
from hfcompress.ops.table_sizes import Array, describe_table
from hfcompress.stage import TENSORS
from hfcompress.tasks.tabular_classification import Clicks
from hfcompress.training.clicks import ClickTrain, fit

if TYPE_CHECKING:
    import torch

    from hfcompress.architectures.click_model import ClickModel

SMALL_SHARE = 0.02  # of all tables' bytes: a smaller table keeps its rows, in 8 bits where others have fewer than 32


@dataclass(frozen=True)
class CompressEmbeddings(ClickTrain):
    """Every large table becomes one of a kind, the largest that the ratio allows; then the model is fine-tuned.

    Fine-tuning sees the rounding, and takes its targets from the model that it began as: a click model that sees the
    same clicks again overfits them at once (Zhang et al. 2022, "Towards Understanding the Overfitting Phenomenon of
    Deep Click-Through Rate Models").
    """

    kind: Literal["rows", "factorized", "hashed", "quotient_remainder", "mixed"] = "mixed"
    """rows (all of them, in fewer bits), factorized (A B), hashed (sums of shared rows), quotient_remainder (products
    of shared rows), mixed (rare ids get narrow rows)."""
    bits: Literal[4, 8, 32] = 8
    """Of the stored rows; below 32 with a float16 scale a row."""
    ratio: float = 10.0
    """The tables' bytes in float32 over those after."""
    energy: float | None = None
    """Of factorized tables, instead of the ratio: the share of the squared singular values, rows weighted by how often
    they are read, that the rank of each table must hold."""
    num_train_epochs: float = 0.5
    soft_share: float = 1.0
    """Of the targets that are the original model's probabilities."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = TENSORS

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        return {} if self.energy is None else {"ratio": Reason("with {energy} {share:g}", share=self.energy)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratio >= 1:
            raise OptionError("ratio", "must be at least 1", self.ratio)
        if self.energy is not None and (self.kind != "factorized" or not 0 < self.energy <= 1):
            raise OptionError("energy", "above 0, at most 1, and of factorized tables alone", self.energy)
        if not 0 <= self.soft_share <= 1:
            raise OptionError("soft_share", "from 0 to 1", self.soft_share)

    def __call__(self, out: Path, *, model: Path, task: Clicks) -> dict[str, Any]:
        import torch

        from hfcompress.architectures.click_model import ClickModel, load_click_model, logits_of, save_click_model

        before = load_click_model(model)
        frequencies = frequencies_of(task)
        read = {name: torch.from_numpy(array) for name, array in frequencies.items()}
        config = self.by_energy(before, read) if self.energy else self.compressed(before.config, frequencies)
        network = ClickModel(config)
        network.towers.load_state_dict(before.towers.state_dict())
        with torch.no_grad():
            for name, table in network.tables.items():
                known = torch.arange(before.columns[name] + 1)
                table.start(before.tables[name](known), read[name])
        log, test = task.data.logs["train"], task.data.logs["validation"]
        said = logits_of(before, log)
        reference = logits_of(before, test)
        start = logits_of(network, test)
        measured = fit(network, log, self, out / "work", said, self.soft_share)
        save_click_model(network, out)
        return measured | {
            "tables": network.config["tables"],
            "table_bytes": network.table_bytes(),
            "ratio": float32_bytes(before.config) / network.table_bytes(),
            "mean_logit_difference": {
                "at_the_start": float(abs(start - reference).mean()),
                "fine_tuned": float(abs(logits_of(network, test) - reference).mean()),
            },
        }

    def compressed(self, config: dict[str, Any], frequencies: dict[str, Array]) -> dict[str, Any]:
        """config.json with other tables.

        Raises:
            UserError: the kind cannot be as small as the ratio says, or 4 bits hold no such rows.
        """
        if self.bits == 4 and self.kind != "factorized" and config["dim"] % 2:
            reason = (
                "two codes share a byte, and rows of {dim} numbers cannot be parted so; give 8, or an even {train.dim}"
            )
            raise OptionError("bits", reason, 4, dim=config["dim"])
        rows, dim = {name: count + 1 for name, count in config["columns"].items()}, config["dim"]
        whole, small = float32_bytes(config), small_tables(config)
        small_bits = 32 if self.bits == 32 else 8
        kept = sum(rows[name] * (dim * small_bits / 8 + (2 if small_bits < 32 else 0)) for name in small)
        left = (whole / self.ratio - kept) / sum(count for name, count in rows.items() if name not in small)
        tables: dict[str, Any] = {}
        for name, count in rows.items():
            if name in small:
                tables[name] = {"kind": "rows", "bits": small_bits}
                continue
            found = describe_table(self.kind, count, dim, self.bits, left * count, frequencies[name])
            if found is None:
                raise OptionError(
                    "ratio",
                    "{name}'s {count:,} rows of {dim} numbers cannot be that small as {kind} in {bits} bits; give a "
                    "smaller ratio, fewer bits or another kind",
                    self.ratio,
                    name=name,
                    count=count,
                    dim=dim,
                    kind=self.kind,
                    bits=self.bits,
                )
            tables[name] = found
        return config | {"tables": tables}

    def by_energy(self, network: "ClickModel", frequencies: "dict[str, torch.Tensor]") -> dict[str, Any]:
        """config.json with factorized tables, each of the smallest rank that holds the energy."""
        import torch

        from hfcompress.ops.factorized import rank_for_energy, weighted_svd

        small, tables = small_tables(network.config), dict[str, Any]()
        for name, rows in network.columns.items():
            if name in small:
                tables[name] = {"kind": "rows", "bits": 32 if self.bits == 32 else 8}
                continue
            with torch.no_grad():
                values, _ = weighted_svd(network.tables[name](torch.arange(rows + 1)), frequencies[name])
            rank = rank_for_energy(values, float(self.energy or 1))
            dim = network.config["dim"]
            even = min(rank + rank % 2, dim - dim % 2) if self.bits == 4 else rank
            tables[name] = {"kind": "factorized", "rank": even, "bits": self.bits}
        return network.config | {"tables": tables}

    def predict(self, model: ClickShape, *, task: Clicks) -> ClickShape:
        if self.energy is not None:
            raise UnknownShape(Reason("{energy}: which ranks hold it is known when the model is trained"))
        return model.with_(config=self.compressed(model.config, frequencies_of(task)))


def small_tables(config: dict[str, Any]) -> set[str]:
    """The columns whose tables are left as rows."""
    least = SMALL_SHARE * float32_bytes(config)
    return {name for name, rows in config["columns"].items() if 4 * config["dim"] * (rows + 1) < least}


def float32_bytes(config: dict[str, Any]) -> int:
    """Of whole tables in float32."""
    return sum(4 * config["dim"] * (rows + 1) for rows in config["columns"].values())


def frequencies_of(task: Clicks) -> dict[str, Array]:
    """How often training reads each row of each table, [rows + 1]; the unknown row is read, too."""
    data = task.data
    found = {}
    for name in data.rows:
        counts = data.counts(name).astype(np.float32)
        found[name] = np.append(counts, max(1.0, float(counts.mean()))).astype(np.float32)
    return found
