"""Documents without labels, by split: made where there is one table, and held apart."""

from hfcompress.tasks.find_splits import SPLITS, say
from hfcompress.tasks.hold_out import ALL, families, splits_of_one
from hfcompress.tasks.overlap import Keys, Overlap, checked, near_duplicates
from hfcompress.tasks.splits import EMBEDDED

LEAST_WORDS = 16  # shorter rows (headings, single lines) stand in any two books
Row = tuple[str, str]  # text, group


def documents_apart(
    dataset: str, splits: dict[str, list[Row]], grouped: bool, overlap: Overlap, option: str
) -> tuple[dict[str, list[Row]], tuple[str, ...]]:
    """Return the rows of each split, with no group or longer text in two of them, and sentences about both.

    Args:
        dataset: its name, for messages.
        splits: (text, group) of every row.
        grouped: whether the data names the groups; else each row is one of its own.
        overlap: see `overlap.checked`.
        option: what the options' names begin with.

    Raises:
        UserError: a group or text stands in two splits, and is to be refused; or one table is too small to split.
    """
    if ALL in splits:
        rows = splits[ALL]
        texts = [text for text, _ in rows]
        names = families([group for _, group in rows], texts) if grouped else [text.strip() for text in texts]
        parts = splits_of_one(dataset, names, [""] * len(rows), option)
        splits = {split: [rows[i] for i in which] for split, which in parts.items()}
    keys = {
        split: Keys(
            [text if len(text.split()) >= LEAST_WORDS else None for text, _ in rows],
            [group for _, group in rows] if grouped else None,
        )
        for split, rows in splits.items()
    }
    kept, notes = checked(dataset, keys, overlap, option)
    if dataset != EMBEDDED:
        notes += near_duplicates({split: Keys([keys[split].texts[i] for i in kept[split]], None) for split in keys})
    for note in notes:
        say(f"{option}.dataset {dataset}: {note}")
    return {split: [splits[split][i] for i in kept[split]] for split in SPLITS if split in splits}, tuple(notes)
