"""adopt_language: a causal LM that the user brings becomes the first Artifact of a run."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.errors import UserError

if TYPE_CHECKING:
    from hfcompress.language_shape import LanguageShape

TAKEN = (".safetensors", ".json", ".model", ".jinja", ".txt")


@dataclass(frozen=True)
class AdoptLanguage:
    """Take a model folder into the run: checked, and linked where the disk allows it, since it may be 15 GB."""

    any_architecture: bool = False
    """Also one that the layer-by-layer stages do not know."""

    training: ClassVar[bool] = False

    def __call__(self, out: Path, *, model: Path) -> dict[str, Any]:
        """Link or copy the weights, the config and the tokenizer.

        Raises:
            UserError: an architecture that is not known, or weights that cannot be read (see checkpoint.py).
        """
        from hfcompress.checkpoint import Checkpoint
        from hfcompress.decoder_stack import require_supported

        checkpoint = Checkpoint(model)
        if not self.any_architecture:
            require_supported(model, checkpoint.config)
        for file in sorted(model.iterdir()):
            if file.is_file() and file.suffix in TAKEN and file.name != "record.json":
                link(file.resolve(), out / file.name)
        return {"tensors": len(checkpoint.places)}

    def predict(self, model: "LanguageShape") -> "LanguageShape":
        """The same shape.

        Raises:
            UserError: it is another kind of model's.
        """
        from hfcompress.language_shape import LanguageShape

        if not isinstance(model, LanguageShape):
            raise UserError("--base: it is no causal LM, and this recipe takes one")
        return model


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy on another disk."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
