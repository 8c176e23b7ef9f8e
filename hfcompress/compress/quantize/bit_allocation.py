"""Allocation of bits and group size to every matrix, so that the model fits its bytes at the least predicted loss."""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures.checkpoint import Checkpoint
from hfcompress.architectures.decoder_spec import EMBEDDING, LanguageShape
from hfcompress.compress.quantize.calibrate import CALIBRATION
from hfcompress.errors import OptionError, Reason, UserError, shown
from hfcompress.folders.record import write_json
from hfcompress.formats.matmul_nbits import (
    EMBEDDING_BITS,
    MATRIX_BITS,
    file_bytes,
    matrix_bits,
    require_sizes,
    resident_bits,
    row_bits,
    stored_bits,
)
from hfcompress.ops.grid import BITS, GROUP_SIZES, Grid
from hfcompress.ops.knapsack import knapsack
from hfcompress.planning import decoders
from hfcompress.planning.devices.memory import matrices_allowed
from hfcompress.stage import TENSORS

if TYPE_CHECKING:
    from torch import Tensor


ALLOTMENT = "allotment.json"
ROWS = 1024  # a matrix is rounded this many rows at a time

FEWER_BITS = (
    "{left:.2f} MB for the matrices, which take {least:.2f} MB at the least ({fewest} bits); raise it, or allow fewer "
    "bits ({bits})"
)


@dataclass(frozen=True)
class Allot:
    """Choose a grid for each matrix: a multiple-choice knapsack, solved by HiGHS (scipy.optimize.milp)."""

    bits: tuple[int, ...] = (2, 4, 8)
    """Bits that a matrix may get; onnxruntime computes in 2, 4 and 8."""
    group_sizes: tuple[int, ...] = (32, 128, 256)
    """Columns that may share a scale; 0 is the whole row."""
    symmetric: bool = True
    bits_per_weight: float = 4.25
    """Average bits a weight, scales included. A budget of memory may ask for less."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = TENSORS

    def __post_init__(self) -> None:
        for name, value, known in (("bits", self.bits, BITS), ("group_sizes", self.group_sizes, GROUP_SIZES)):
            if not value or set(value) - set(known):
                raise OptionError(name, "choose from {known}", tuple(value), known=shown(known))
        if not self.bits_per_weight > 0:
            raise OptionError("bits_per_weight", "must be above 0", self.bits_per_weight)

    def __call__(
        self,
        out: Path,
        *,
        model: Path,
        calibration: Path,
        ram_gb: float | None = None,
        disk_mb: float | None = None,
        context: int = 2048,
        kv_bits: int = 8,
    ) -> dict[str, Any]:
        """Write allotment.json: module -> grid, bytes and predicted KL of the choice, and of every uniform one.

        Args:
            ram_gb: peak memory that a process may take, in GB, when `context` tokens lie in a cache of `kv_bits`.
            disk_mb: what all files of the ONNX model may take, in MB, with rotary tables of `context` positions.

        Raises:
            UserError: not even the smallest choice fits.
        """
        from safetensors.torch import load_file

        checkpoint = Checkpoint(model)
        statistics = load_file(calibration / CALIBRATION)
        options = {name: self.options(checkpoint, name, statistics) for name in matrices(checkpoint)}
        weights = sum(
            checkpoint.shape(f"{name}.weight")[0] * checkpoint.shape(f"{name}.weight")[1] for name in options
        )
        allowed = self.bits_per_weight * weights / 8
        limits = {"bytes": allowed}
        shape = replace(LanguageShape.read(model), kv_bits=kv_bits)
        if ram_gb is not None:
            limits["resident"] = matrices_allowed(shape, context, 1e9 * ram_gb)
        if disk_mb is not None:
            limits["file"] = 1e6 * disk_mb - decoders.beside_matrices(shape, context)
        chosen = knapsack(list(options.values()), limits)
        if chosen is None:
            raise UserError(self.refusal(list(options.values()), limits))
        picked = {name: found[i] for (name, found), i in zip(options.items(), chosen, strict=True)}
        result = {
            "grids": {name: option["grid"] for name, option in picked.items()},
            "modules": {
                name: {"weights": option["weights"], "bytes": option["bytes"], "kl": option["kl"]}
                for name, option in picked.items()
            },
            "bytes": sum(option["bytes"] for option in picked.values()),
            "allowed_bytes": allowed,
            "resident_bytes": sum(option["resident"] for option in picked.values()),
            "allowed_resident_bytes": limits.get("resident"),
            "file_bytes": sum(option["file"] for option in picked.values()),
            "allowed_file_bytes": limits.get("file"),
            "predicted_kl": sum(option["kl"] for option in picked.values()),
            "uniform": uniform(options),
        }
        write_json(out / ALLOTMENT, result)
        print(table(result), file=sys.stderr, flush=True)
        return {name: value for name, value in result.items() if name not in ("grids", "modules")}

    def refusal(self, options: list[list[dict[str, Any]]], limits: dict[str, float]) -> str | Reason:
        """Which limit not even the smallest grids keep."""
        for name, what in (("bytes", "take"), ("resident", "take in memory"), ("file", "take in the file")):
            least = sum(min(option[name] for option in found) for found in options)
            if name in limits and least > limits[name]:
                return Reason(
                    "the matrices may {what} {allowed:.2f} MB, and {what} {least:.2f} MB at the least ({fewest} "
                    "bits); raise the budget, or allow fewer bits ({bits})",
                    what=what,
                    allowed=limits[name] / 1e6,
                    least=least / 1e6,
                    fewest=min(self.bits),
                )
        return "no choice of bits keeps all limits together, on disk and in memory; raise one of them"

    def options(self, checkpoint: "Checkpoint", name: str, statistics: "dict[str, Tensor]") -> list[dict[str, Any]]:
        """The grids that a matrix may get, each with its bytes and predicted KL (nats a token)."""
        rows, columns = checkpoint.shape(f"{name}.weight")
        grids = [Grid(b, g, self.symmetric).fitting(columns) for b in self.bits for g in self.group_sizes]
        roles = [name] + (["lm_head"] if name == "model.embed_tokens" and "lm_head.weight" not in checkpoint else [])
        costs = dict.fromkeys(grids, 0.0)
        for start in range(0, rows, ROWS):
            part = slice(start, min(start + ROWS, rows))
            add_costs(
                costs,
                checkpoint,
                name,
                part,
                [(statistics[f"{role}.rows"][part], statistics[f"{role}.columns"]) for role in roles],
            )
        return [
            {
                "grid": asdict(grid),
                "weights": rows * columns,
                "bytes": rows * columns * grid.bits_per_weight(columns) / 8,
                "file": onnx_file_bytes(grid, rows, columns, name),
                "resident": rows * columns * onnx_bits(grid, columns, name, len(roles) == 2) / 8,
                "kl": kl,
            }
            for grid, kl in costs.items()
        ]

    def predict(
        self,
        model: LanguageShape,
        *,
        calibration: Any,
        ram_gb: float | None,
        context: int,
        kv_bits: int,
        disk_mb: float | None = None,
    ) -> LanguageShape:
        """The shape with the bits that all limits leave.

        Raises:
            UserError: a limit leaves fewer than the fewest.
        """
        require_sizes(model)
        matrices = model.parameters - model.plain_parameters
        bits = self.bits_per_weight
        if disk_mb is not None:
            allowed = 1e6 * disk_mb - decoders.beside_matrices(model, context)
            least = self.least_file_bytes(model)
            if allowed < least:
                raise OptionError(
                    "budget.disk_mb",
                    f"tokenizer, tables and graph leave {FEWER_BITS}",
                    disk_mb,
                    left=max(allowed, 0) / 1e6,
                    least=least / 1e6,
                    fewest=min(self.bits),
                )
            bits = max(min(self.bits), min(bits, 8 * allowed / matrices - decoders.onnx_file_bits(0)))
        if ram_gb is not None:
            found = replace(model, kv_bits=kv_bits)
            allowed, least = matrices_allowed(found, context, 1e9 * ram_gb), matrices * min(self.bits) / 8
            if allowed < least:
                raise OptionError(
                    "budget.ram_gb",
                    f"what else a process holds leaves {FEWER_BITS}",
                    ram_gb,
                    left=max(allowed, 0) / 1e6,
                    least=least / 1e6,
                    fewest=min(self.bits),
                )
            bits = max(min(self.bits), min(bits, 8 * allowed / matrices - resident_bits(0)))
        return replace(model, weight_bits=bits)

    def least_file_bytes(self, model: LanguageShape) -> float:
        """What the matrices take in an ONNX file at the fewest bits, in the largest groups."""
        grid = Grid(min(self.bits), 0 if 0 in self.group_sizes else max(self.group_sizes), self.symmetric)
        return sum(onnx_file_bytes(grid.fitting(width), rows, width, name) for name, rows, width in model.linears())


def matrices(checkpoint: "Checkpoint") -> list[str]:
    """The modules that are quantized: every matrix of a decoder."""
    return [
        name.removesuffix(".weight")
        for name in checkpoint.places
        if name.endswith(".weight") and len(checkpoint.shape(name)) == 2
    ]


def add_costs(
    costs: dict[Grid, float], checkpoint: "Checkpoint", name: str, rows: slice, roles: "list[tuple[Tensor, Tensor]]"
) -> None:
    """Add what each grid's rounding of these rows costs; rows and columns of each role as ops/sensitivity.py says."""
    from hfcompress.architectures.decoder_stack import finite
    from hfcompress.ops.rtn import rtn
    from hfcompress.ops.sensitivity import predicted_kl

    weight = finite(checkpoint, f"{name}.weight", rows)
    for grid in costs:
        error = weight - rtn(weight, grid).dequantize()
        costs[grid] += sum(float(predicted_kl(error, of_rows, of_columns)) for of_rows, of_columns in roles)


def onnx_bits(grid: Grid, columns: int, name: str, tied: bool) -> float:
    """Bits a weight that a matrix on a grid takes in onnxruntime's memory; a tied embedding is there twice."""
    group = columns // grid.groups(columns)
    if name != EMBEDDING:
        return matrix_bits(grid.bits, group)
    wide = stored_bits(grid.bits, EMBEDDING_BITS)  # the head reads what the embedding stores
    return row_bits(grid.bits, group) + (matrix_bits(wide, group) if tied else 0.0)


def onnx_file_bytes(grid: Grid, rows: int, columns: int, name: str) -> int:
    """What a matrix on a grid takes in the ONNX file; a tied embedding is there once."""
    group = columns // grid.groups(columns)
    known = EMBEDDING_BITS if name == EMBEDDING else MATRIX_BITS
    return file_bytes(rows, columns, grid.bits, group, grid.symmetric, known)


def uniform(options: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What every uniform choice would cost: the same grid for all matrices."""
    found = []
    for i in range(min(len(choices) for choices in options.values())):
        rows = [choices[i] for choices in options.values()]
        if all(row["grid"]["bits"] == rows[0]["grid"]["bits"] for row in rows):
            total = {name: sum(row[name] for row in rows) for name in ("bytes", "kl")}
            found.append({"grid": rows[-1]["grid"], "bytes": total["bytes"], "predicted_kl": total["kl"]})
    return found


def table(result: dict[str, Any]) -> str:
    """The plan, before anything is written: a row a kind of matrix, its bits over the layers."""
    kinds: dict[str, list[str]] = {}
    for name in result["grids"]:
        kinds.setdefault(name.rpartition(".")[2], []).append(name)
    lines = [f"{'matrix':14} {'MB':>9} {'bits a weight':>14} {'predicted KL':>13}  bits over the layers"]
    for kind, names in kinds.items():
        rows = [result["modules"][name] for name in names]
        size, weights = sum(row["bytes"] for row in rows), sum(row["weights"] for row in rows)
        bits = " ".join(f"{result['grids'][n]['bits']}g{result['grids'][n]['group_size'] or 'row'}" for n in names)
        kl = sum(row["kl"] for row in rows)
        lines.append(f"{kind:14} {size / 1e6:9.2f} {8 * size / weights:14.3f} {kl:13.5f}  {bits[:200]}")
    lines.append(
        f"{'all':14} {result['bytes'] / 1e6:9.2f} of {result['allowed_bytes'] / 1e6:.2f} MB allowed, "
        f"predicted KL {result['predicted_kl']:.5f}"
    )
    return "\n".join(lines)
