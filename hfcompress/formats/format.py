"""Format: the contract of whatever is delivered, and what most formats have in common."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from hfcompress.errors import UserError

Kind = Literal["text", "images", "clicks", "language"]
"""What a model is asked: a text's class, an image's class, whether a row is clicked, the next token."""
Tensor = tuple[int, str, int, bool]
"""Elements, type, bits of an element, and whether they are weights (and not scales, zero points or statistics)."""
Named = tuple[str, Tensor]


class Format(Protocol):
    """The files of a runtime: how they are written, opened, counted, served, placed in a repository, and used.

    Whatever is delivered is a Format: it is measured in its own runtime, held against the budget, in the report, and
    pushed. There is no second way out. `formats.FORMATS` lists them; nothing else asks which format a folder has.
    `tests/contracts/test_formats.py` runs over every row of that table and every kind of model in `kinds`:

    - `write` makes a folder that `holds` recognizes, and that no format before it in the table takes for its own;
    - `open` answers the logits of the model that was written, no further off than `bound` of the largest logit;
    - `size` counts every shipped byte once, and the tensors' bytes by type are not more than the files';
    - `serve` loads and asks the model alone, in a process that was started for it;
    - `usage` runs in a process that does not import hfcompress, where `stock` is true;
    - a damaged file is refused by `open` with a UserError of one line that names it.

    A format is an object without state. Its module imports no runtime, no torch and no transformers before a method
    needs it: the process whose memory is measured imports this table.
    """

    name: ClassVar[str]
    """Its name in the table."""
    word: ClassVar[str]
    """What records and report.json call it; formats that differ by the kind of model alone share one."""
    kinds: ClassVar[tuple[Kind, ...]]
    """The kinds of models that it holds."""
    runtime: ClassVar[str]
    """What computes it."""
    source: ClassVar[str]
    """The name of the format that `write` reads."""
    weights: ClassVar[str]
    """The name of the file of weights, or a pattern (`*.gguf`)."""
    folder: ClassVar[str]
    """Where its files lie in a Hub repository ("gguf/"); "" is the root, where `from_pretrained` looks."""
    library: ClassVar[str]
    """The Hub's `library_name`."""
    bound: ClassVar[float]
    """The largest difference of a logit to the model that was written, of the largest logit."""
    stock: ClassVar[bool]
    """Whether it loads without hfcompress."""
    widened_bits: ClassVar[int]
    """Bits a weight that its types take beyond their name, such as the scales in GGUF's blocks."""

    own_environment: ClassVar[bool]
    """Whether its runtime lives in a Python of its own, beside this one."""

    def runtime_of(self, kind: Kind) -> str:
        """Return what computes a model of that kind, as reports say it."""

    def python(self) -> Path:
        """Return the Python that has the runtime: this one, or that of an environment of its own.

        Raises:
            UserError: it is not there.
        """

    def holds(self, folder: Path) -> bool:
        """Return whether a folder is of this format, by its files and config.json."""

    def write(self, out: Path, *, model: Path, task: Any) -> dict[str, Any]:
        """Write a model's folder into the empty folder `out` by the format's stage with its default options.

        Returns: what the stage measured.

        Raises:
            CheckFailed: the written files answer otherwise than the model.
            UserError: the model is none that the format holds.
        """

    def network(self, folder: Path, threads: int) -> Any:
        """Return the classifier of a folder as a `runtimes.networks.Network`.

        Raises:
            UserError: a file is missing or damaged, or the runtime is not installed.
        """

    def open(self, folder: Path, kind: Kind, threads: int | None = None) -> Any:
        """Return what answers: a predictor of texts, images or clicks, or a Decoder.

        Args:
            threads: intra-op threads; None for all cores.

        Raises:
            UserError: a file is missing or damaged, the runtime is not installed, or the format holds no such models.
        """

    def files(self, folder: Path) -> list[Path]:
        """Return the files of weights that are read.

        Raises:
            UserError: one is missing.
        """

    def tensors(self, file: Path, bits: dict[str, int]) -> list[Named]:
        """Return name and contents of each tensor of a file of weights, read from headers.

        Args:
            bits: module -> bits of its packed integers, as `size.packed_bits` finds them in the configs.
        """

    def size(self, folder: Path) -> dict[str, Any]:
        """Return bytes (of all files that must be shipped), parameters, and dtypes: type -> bytes of tensors."""

    def import_runtime(self, kind: Kind, threads: int) -> None:
        """Import what computes such a model, so that its memory can be told from the model's."""

    def serve(self, folder: Path, kind: Kind, length: int, threads: int) -> dict[str, float]:
        """Load and ask a model as a lean server would; called in a fresh process.

        Args:
            length: tokens of a text or of a context, images or rows of a request.

        Returns: peak_rss_mb, bare_rss_mb (after the imports, before the model), load_ms.
        """

    def place(self, file: str, integer: bool) -> str:
        """Return where a file of the model lies in a Hub repository.

        Args:
            integer: whether its weights are 8-bit integers.
        """

    def usage(self, folder: str, kind: Kind) -> str:
        """Return Python source that loads a folder and prints an answer; images are read from `image.png`."""


@dataclass(frozen=True)
class Files:
    """What formats have in common: one pattern of weights, and files that lie in one place."""

    name: ClassVar[str]
    word: ClassVar[str]
    kinds: ClassVar[tuple[Kind, ...]]
    runtime: ClassVar[str]
    source: ClassVar[str] = "transformers"
    weights: ClassVar[str]
    folder: ClassVar[str] = ""
    library: ClassVar[str]
    bound: ClassVar[float]
    stock: ClassVar[bool] = True
    widened_bits: ClassVar[int] = 0
    own_environment: ClassVar[bool] = False

    def runtime_of(self, kind: Kind) -> str:
        return self.runtime

    def python(self) -> Path:
        return Path(sys.executable)

    def holds(self, folder: Path) -> bool:
        return any(folder.glob(self.weights))

    def network(self, folder: Path, threads: int) -> Any:
        raise UserError(f"{folder} is {self.name}, which holds no classifier; give the folder of one")

    def open(self, folder: Path, kind: Kind, threads: int | None = None) -> Any:
        if kind not in self.kinds:
            held = ", ".join(self.kinds)
            raise UserError(f"{folder} is {self.name}, which holds models of {held}, none of {kind}; give another")
        return self._opened(folder, kind, threads)

    def _opened(self, folder: Path, kind: Kind, threads: int | None) -> Any:
        """Return the predictor of a classifier; formats of other models have their own."""
        if kind == "clicks":
            from hfcompress.formats.runtimes.click_predictor import ClickPredictor

            return ClickPredictor(folder, threads)
        if kind == "images":
            from hfcompress.formats.runtimes.image_predictor import ImagePredictor

            return ImagePredictor(folder, threads)
        from hfcompress.formats.runtimes.predictor import Predictor

        return Predictor(folder, threads)

    def files(self, folder: Path) -> list[Path]:
        return sorted(folder.glob(self.weights))

    def size(self, folder: Path) -> dict[str, Any]:
        from hfcompress.formats.size import sizes

        return sizes(folder)

    def place(self, file: str, integer: bool) -> str:
        return self.folder + file
