"""adopt_language: a causal LM that the user brings becomes the first Artifact of a run."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hfcompress.architectures.checkpoint import Checkpoint, weight_files
from hfcompress.architectures.decoder_spec import LanguageShape
from hfcompress.architectures.decoders import require_supported
from hfcompress.architectures.loading import some
from hfcompress.architectures.pretrained import stock_config
from hfcompress.architectures.text_state import require_key_values
from hfcompress.errors import OptionError
from hfcompress.folders.end_tokens import copy_templates
from hfcompress.folders.guard import read_config
from hfcompress.folders.weights import unread_weights

TAKEN = (".json", ".model", ".jinja", ".txt")


@dataclass(frozen=True)
class AdoptLanguage:
    """Take a model folder into the run: checked, and linked where the disk allows it, since it may be 15 GB."""

    any_architecture: bool = False
    """Also one that the layer-by-layer stages do not know."""

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ()

    def __call__(self, out: Path, *, model: Path) -> dict[str, Any]:
        """Link or copy the weights, the config and the tokenizer.

        Raises:
            UserError: an architecture that is not known, weights that cannot be read (see checkpoint.py), or a config
                that does not say how many tokens the model holds; or a model that keeps a state (text_state.py).
        """
        from hfcompress.architectures.text_inputs import decoder_positions

        if not self.any_architecture and (model / "config.json").is_file():
            require_supported(model, read_config(model))
        if self.any_architecture and (model / "config.json").is_file():
            config = stock_config(model)
            decoder_positions(model, config)  # the measurement would ask when all is done, and refuse such a state
            require_key_values(model, config)
        checkpoint = Checkpoint(model)
        unread = unread_weights(model)
        say_what_is_left(model, unread, checkpoint.ignored)
        others = [f for f in sorted(model.iterdir()) if f.is_file() and f.suffix in TAKEN and f not in unread]
        for file in [*weight_files(model), *others]:
            if file.name != "record.json":
                link(file.resolve(), out / file.name)
        copy_templates(model, out)
        return {"tensors": len(checkpoint.places)}

    def predict(self, model: "LanguageShape") -> "LanguageShape":
        """The same shape.

        Raises:
            UserError: it is another kind of model's, or of an architecture that is not known.
        """
        if getattr(model, "described_as", None) != LanguageShape.described_as:
            raise OptionError(".base", "it is no causal LM, and this recipe takes one")
        if model.config is not None and not self.any_architecture:
            require_supported("the base model", model.config)
        return model


def say_what_is_left(model: Path, files: set[Path], tensors: list[str]) -> None:
    """Print one line for files of weights that transformers does not read, and one for tensors that it leaves out."""
    if files:
        names = some(sorted(file.relative_to(model).as_posix() for file in files))
        print(f"{model.name}: transformers does not read {names}, and neither does this run", file=sys.stderr)
    if tensors:
        print(
            f"{model.name}: {some(tensors)} is no part of the model by its config.json, and left out", file=sys.stderr
        )


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy on another disk."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
