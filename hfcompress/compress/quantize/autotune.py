"""autotune: the smallest of several configurations of a causal LM whose loss is shown to be within what is allowed."""

import json
import re
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from hfcompress.architectures.checkpoint import Checkpoint
from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.architectures.decoders import kind_of
from hfcompress.architectures.models import load_tokenizer
from hfcompress.compress.quantize.bit_allocation import onnx_bits, onnx_file_bytes
from hfcompress.compress.quantize.weight_only import CALIBRATED, WeightOnly
from hfcompress.engines import ENGINES
from hfcompress.engines.autotune import autotune
from hfcompress.errors import OptionError, Reason, require, require_numbers
from hfcompress.folders.files import clear
from hfcompress.folders.record import write_json
from hfcompress.formats.matmul_nbits import require_sizes
from hfcompress.ops.grid import Grid
from hfcompress.planning import decoders
from hfcompress.planning.devices.memory import matrices_allowed
from hfcompress.stage import TENSORS
from hfcompress.tasks.text_generation import CausalLM

if TYPE_CHECKING:
    from hfcompress.evaluation.language import Scores

ENGINE: Literal["neural-compressor"] = "neural-compressor"
TUNED = "autotune.json"
THREADS = 2
Algorithm = Literal["rtn", "hqq", "gptq", "awq"]
BROKEN = {  # fails in Neural Compressor 3.10 -> what to do instead
    "teq": "give gptq or awq",
    "smoothquant": "give gptq or awq",
    "autoround": "give gptq or awq, or AutoRound itself: {.quantize} allot {weight_only.engine} auto-round "
    "{weight_only.algorithm} autoround",
}
SPELLED = re.compile(rf"({'|'.join(get_args(Algorithm))})-([2348])-g(0|32|64|128|256)(-asymmetric)?")


@dataclass(frozen=True)
class Configuration:
    """One algorithm and one grid for all matrices."""

    name: str
    algorithm: Any
    grid: Grid

    @classmethod
    def read(cls, text: str) -> "Configuration":
        """Return what a text such as gptq-4-g128-asymmetric names.

        Raises:
            OptionError: it names nothing, or what Neural Compressor does not do.
        """
        if (name := text.partition("-")[0]) in BROKEN:
            why = Reason("{name} fails in Neural Compressor 3.10; {instead}", name=name, instead=Reason(BROKEN[name]))
            raise OptionError("configurations", why, text)
        found = SPELLED.fullmatch(text)
        if found is None:
            reason = "give ALGORITHM-BITS-gGROUP, such as gptq-4-g128 or hqq-4-g32-asymmetric; group 0 is a row"
            raise OptionError("configurations", reason, text)
        algorithm, bits, group, asymmetric = found.groups()
        if algorithm == "hqq" and not asymmetric:
            reason = "its HQQ fits a zero point to each group; give {other}"
            raise OptionError("configurations", reason, text, other=f"{text}-asymmetric")
        return cls(text, algorithm, Grid(int(bits), int(group), not asymmetric))

    def sizes(self, shape: LanguageShape) -> dict[str, float]:
        """Return the bytes that a model's matrices take as ONNX: in the file, and in onnxruntime's memory."""
        found = {"file": 0.0, "resident": 0.0}
        for name, rows, columns in shape.linears():
            grid = self.grid.fitting(columns)
            found["file"] += onnx_file_bytes(grid, rows, columns, name)
            found["resident"] += rows * columns * onnx_bits(grid, columns, name, shape.tied) / 8
        return found


@dataclass(frozen=True)
class Autotune:
    """Neural Compressor's `autotune`: configurations from the smallest on, until one keeps the allowed loss.

    It is kept where the rise of perplexity on validation text is shown to lie within what the budget allows, as the
    report's verdict is on test text. Where none is, the one that comes nearest is written.
    """

    configurations: tuple[str, ...] = ("rtn-4-g128", "awq-4-g128", "gptq-4-g128", "gptq-4-g32", "rtn-8-g128")
    """What is tried, ALGORITHM-BITS-gGROUP: rtn, gptq, awq, or hqq (asymmetric); 2, 3, 4 or 8 bits; groups of 32, 64,
    128, 256 or g0, whole rows; -asymmetric behind it. By size in ONNX; of the same size in the order given."""
    tokens: int = 32_768
    """Tokens of the validation split that perplexity is measured on."""
    bf16: Literal["auto", "yes", "no"] = "auto"
    """gptq, awq: calibration text runs through the layers in bf16; auto where the CPU computes in it."""
    resamples: int = 4000
    """Draws of the bootstrap."""
    seed: int = 0

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = (*TENSORS, *ENGINES[ENGINE].libraries)

    def __post_init__(self) -> None:
        require_numbers(self)
        require(self, 1, "tokens")
        require(self, 2, "resamples")
        if not self.configurations:
            raise OptionError("configurations", "nothing is given; give at least one, such as gptq-4-g128")
        for text in self.configurations:
            Configuration.read(text)
            if self.configurations.count(text) > 1:
                raise OptionError("configurations", "it is there twice; give it once", text)

    def unused(self, inputs: dict[str, Any]) -> dict[str, Reason]:
        """See `stage.unused_options`."""
        calibrated = any(Configuration.read(text).algorithm in CALIBRATED for text in self.configurations)
        return {} if calibrated else {"bf16": Reason("without gptq or awq in {configurations}")}

    def __call__(
        self,
        out: Path,
        *,
        model: Path,
        task: CausalLM,
        drop: float,
        confidence: float = 0.95,
        ram_gb: float | None = None,
        disk_mb: float | None = None,
        context: int = 2048,
        kv_bits: int = 8,
    ) -> dict[str, Any]:
        """Write the quantized model of the configuration that is chosen, and autotune.json: what was tried.

        Args:
            drop: by what share the perplexity may rise; confidence: with which that must be shown.
            ram_gb, disk_mb, context, kv_bits: limits on the ONNX model, see `Allot`; what exceeds one is not tried.

        Raises:
            UserError: every configuration exceeds a limit, or the model cannot be read.
        """
        shape = replace(LanguageShape.read(model), kv_bits=kv_bits)
        require_absorbable(self.configurations, Checkpoint(model).config)
        wanted, left_out = self.fitting(shape, ram_gb, disk_mb, context)
        trials = Trials(self, out / "work", model, task, drop, confidence)
        sizes = {c.name: decoders.beside_matrices(shape, context) + c.sizes(shape)["file"] for c in wanted}
        chosen = autotune(list(sizes), trials.quantize, lambda name: trials.judge(name, sizes[name]))
        for file in (out / "work" / chosen).iterdir():
            file.rename(out / file.name)
        found = {
            "engine": ENGINE,
            "chosen": chosen,
            "kept": trials.tried[chosen]["verdict"] == "shown",
            "allowed": drop,
            "confidence": confidence,
            "tokens": int(trials.reference.tokens.sum()),
            "documents": len(trials.reference.tokens),
            "perplexity": trials.reference.perplexity,
            "tried": list(trials.tried.values()),
            "left_out": left_out,
        }
        write_json(out / TUNED, found)
        return found

    def fitting(
        self, shape: LanguageShape, ram_gb: float | None, disk_mb: float | None, context: int
    ) -> tuple[list[Configuration], list[dict[str, Any]]]:
        """Return the configurations within the limits, the smallest first, and the others' names, sizes and limits.

        Raises:
            OptionError: there is none within the limits.
        """
        read = [Configuration.read(text) for text in self.configurations]
        sizes = {found.name: found.sizes(shape) for found in read}
        limits = {}  # of the matrices, in bytes
        if disk_mb is not None:
            limits["budget.disk_mb"] = "file", 1e6 * disk_mb - decoders.beside_matrices(shape, context)
        if ram_gb is not None:
            limits["budget.ram_gb"] = "resident", matrices_allowed(shape, context, 1e9 * ram_gb)
        kept, left_out = [], []
        for found in sorted(read, key=lambda found: sizes[found.name]["file"]):
            for limit, (kind, allowed) in limits.items():
                if (size := sizes[found.name][kind]) > allowed:
                    over = {"limit": limit, "bytes": size, "allowed_bytes": allowed}
                    left_out.append({"configuration": found.name, **over})
                    break
            else:
                kept.append(found)
        if not kept:
            raise too_large(left_out[0], {"budget.disk_mb": disk_mb, "budget.ram_gb": ram_gb})
        return kept, left_out

    def predict(
        self,
        model: LanguageShape,
        *,
        task: CausalLM,
        drop: float,
        ram_gb: float | None,
        disk_mb: float | None,
        context: int,
        kv_bits: int,
        confidence: float = 0.95,
    ) -> LanguageShape:
        """The shape with the bits of the largest configuration within the limits: at most these are written.

        Raises:
            UserError: see `fitting`.
        """
        require_sizes(model)
        require_absorbable(self.configurations, model.config)
        wanted, _ = self.fitting(replace(model, kv_bits=kv_bits), ram_gb, disk_mb, context)
        widths = [(rows * columns, columns) for _, rows, columns in model.linears()]
        total = sum(weights for weights, _ in widths)
        grid = wanted[-1].grid
        bits = sum(weights * grid.fitting(columns).bits_per_weight(columns) for weights, columns in widths) / total
        return replace(model, weight_bits=bits)


def too_large(smallest: dict[str, Any], given: dict[str, float | None]) -> OptionError:
    """Return the error where not even the smallest configuration is within the limits."""
    reason = (
        "what else there is leaves {allowed:.2f} MB for the matrices, of which {name}, the smallest of "
        "{autotune.configurations}, takes {size:.2f} MB; raise it, or name one of fewer bits there"
    )
    size, allowed = smallest["bytes"] / 1e6, max(smallest["allowed_bytes"], 0) / 1e6
    limit = str(smallest["limit"])
    return OptionError(limit, reason, given[limit], allowed=allowed, size=size, name=smallest["configuration"])


def require_absorbable(configurations: tuple[str, ...], config: dict[str, Any] | None) -> None:
    """Refuse AWQ of a model whose norms Neural Compressor scales wrongly.

    Raises:
        OptionError: naming those configurations.
    """
    named = [text for text in configurations if text.startswith("awq")]
    if named and config is not None and kind_of(config).norm_offset:
        why = "its AWQ divides a norm's weight, and this model's norms multiply by 1 + weight; leave {named} out"
        raise OptionError("configurations", why, configurations, named=" ".join(named))


class Trials:
    """Quantized models of one model, each in its folder, with what perplexity they have; a kill loses no finished one.

    `tried` has a row per configuration that was judged, in order; `reference` are the scores of the model itself.
    """

    def __init__(
        self, options: Autotune, work: Path, model: Path, task: CausalLM, drop: float, confidence: float
    ) -> None:
        self.options, self.work, self.model, self.task = options, work, model, task
        self.drop, self.confidence = drop, confidence
        self.tried: dict[str, dict[str, Any]] = {}
        self.windows = task.windows(load_tokenizer(model), "validation", options.tokens)
        self.reference = self.scores("reference", model)

    def quantize(self, name: str) -> None:
        """Make a configuration's folder, unless it has been scored: it is whole then."""
        folder = self.work / name
        if self.file(name).is_file():
            return
        (folder / "work").mkdir(parents=True, exist_ok=True)
        clear(folder, keep="work")
        found = Configuration.read(name)
        grid = found.grid
        stage = WeightOnly(
            found.algorithm, grid.bits, grid.group_size, grid.symmetric, bf16=self.options.bf16, engine=ENGINE
        )
        stage(folder, model=self.model, task=self.task)
        shutil.rmtree(folder / "work")

    def judge(self, name: str, size: float) -> float:
        """Return how far the bound of a configuration's rise lies within what is allowed, and add its row to `tried`.

        Args:
            size: bytes of the ONNX model that it makes.
        """
        from hfcompress.evaluation import language
        from hfcompress.evaluation.statistics import verdict

        scored = self.scores(name, self.work / name)
        drawn = [language.drawn(s, self.options.resamples, self.options.seed) for s in (self.reference, scored)]
        found = language.increase(drawn[0], drawn[1], self.confidence)
        self.tried[name] = {
            "configuration": name,
            "bytes": round(size),
            "perplexity": scored.perplexity,
            **{key: value for key, value in asdict(found).items() if key in ("difference", "lower_bound", "n")},
            "verdict": verdict(found, self.drop),
        }
        print(
            f"  {name}: {size / 1e6:.2f} MB, perplexity {scored.perplexity:.3f}, {-found.difference:+.2%}, with "
            f"{self.confidence:.0%} confidence at most {-found.lower_bound:+.2%}, allowed {self.drop:+.2%}",
            file=sys.stderr,
            flush=True,
        )
        return found.lower_bound + self.drop

    def scores(self, name: str, folder: Path) -> "Scores":
        """Return a model's scores on the validation windows; they are kept in a file."""
        import numpy as np

        from hfcompress.evaluation import language
        from hfcompress.formats.runtimes.decoder import open_decoder

        if not self.file(name).is_file():
            decoder = open_decoder(folder, THREADS)
            found = language.scores((language.log_probabilities(decoder, w) for w in self.windows), self.windows)
            write_json(self.file(name), {key: value.tolist() for key, value in vars(found).items()})
        kept = json.loads(self.file(name).read_text(encoding="utf-8"))
        return language.Scores(**{key: np.array(value, dtype=np.float64) for key, value in kept.items()})

    def file(self, name: str) -> Path:
        """Return where a model's scores are kept."""
        return self.work / f"{name}.json"
