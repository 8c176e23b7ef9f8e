"""What the verbs share: exit codes, the recipe or the model a name stands for."""

import logging
import os
import warnings
from pathlib import Path

from hfcompress.errors import UserError

HELP = {"-h", "--help", "--help-all"}
FAILED, WRONG_INPUT, KEEP_GOING, DEFECT, INTERRUPTED, NO_READER = 1, 2, 3, 70, 130, 141


def require_texts(*folders: Path) -> None:
    """Stop a verb whose requests are lines that are scored: texts, or a click model's requests.

    Raises:
        UserError: one of the models does something else.
    """
    from hfcompress.formats import kind_of

    does = {
        "images": "labels images, and requests are recorded as text; hfcompress predict --image labels images",
        "language": "writes texts, and requests are labeled; hfcompress summarize asks it",
    }
    for folder in folders:
        if said := does.get(kind_of(folder)):
            raise UserError(f"{folder.name} {said}; hfcompress check holds a run against its budget")


def quiet() -> None:
    """Leave standard error to our own messages and bars: the libraries' chatter off."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for chatty in ("torchao", "torch.utils._pytree"):  # both complain when transformers imports torchao
        logging.getLogger(chatty).setLevel(logging.ERROR)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    if hook := getattr(
        transformers.utils.logging, "set_tqdm_hook", None
    ):  # of version 5: a bar for each load and save
        hook(lambda bar, arguments, options: bar(*arguments, **options | {"disable": True}))
    datasets.disable_progress_bars()
