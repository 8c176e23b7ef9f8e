"""Licence review: which obligations does this licence text put on us? The embedded data set.

Source: the licence texts and rules of scancode-toolkit (licensedcode/data, CC BY 4.0, nexB Inc. and others), read from
the pip package scancode-toolkit-mini, which is not imported. A text's label is the category of its licence
("Copyleft", "Permissive", ...), its group the licence's key.

Kept are English, live texts of at least 20 words that belong to one licence alone, in categories with at least 100
such texts: of the 2,600 licences their full text; of the 36,000 rules the texts, notices, and those tags and
references that are long enough to say something. Introductions ("Licensed under one of these") name no licence, clues
are too weak to detect one, false positives are no licence: these are left out.

Split by licence, so that none is in two splits: in each category the licences stand in the order of a hash of their
key; the first quarter is test, the next tenth validation. Stratified, since a rare category has a dozen licences. The
17 licences with more than 100 texts (half of all texts, GPL and BSD above all) are for training: one of them would
drown the others in validation or test.

Many licences repeat another's words, and a model would only have to remember them: where two texts of different splits
are near-duplicates, one is dropped. Sending the licences that share a text to one split together would put 550
licences and three quarters of the texts into train. So the fewest possible are dropped, 915: a minimum vertex cover
of the near-duplicate pairs between two splits, exact and fast because such pairs form a bipartite graph (König 1931).
Train is then thinned of its own near-duplicates within a category (9,000 texts to 3,629): a linear model learns as
much from them, and an epoch costs 40%.

With scancode-toolkit-mini 32.5 that makes, in 9 categories, 3,629 texts of 1,223 licences for training, 613 of 184 for
validation and 1,314 of 475 for test.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.errors import UserError

if TYPE_CHECKING:
    from datasets import DatasetDict
    from scipy.sparse import csr_array

Row = dict[str, str]

PACKAGE = "scancode-toolkit-mini"
MIN_WORDS = 20
MIN_TEXTS = 100
NEAR_DUPLICATE = 0.8  # cosine of the binary word-trigram vectors
TEST, VALIDATION = 0.25, 0.10  # shares of each category's licences
COMMON = 100  # texts; a licence with more of them is for training
SPLITS = ("train", "validation", "test")
UNUSABLE = ("is_deprecated", "is_false_positive", "is_license_clue", "is_license_intro")


def load() -> "DatasetDict":
    """Splits train, validation and test with the columns text, label (a category) and group (a licence key).

    The first call reads some 39,000 small files (a quarter of a minute); the result is cached as parquet.

    Raises:
        UserError: the package is not installed.
    """
    import pyarrow.parquet as parquet
    from datasets import Dataset, DatasetDict

    folder = data_folder()
    cache = cache_folder()
    if not (cache / f"{SPLITS[-1]}.parquet").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        for split, rows in split_rows(usable_rows(folder, MIN_TEXTS)).items():  # the last one says that all are there
            part = cache / f"{split}.parquet.{os.getpid()}"
            parquet.write_table(Dataset.from_list(rows).data.table, part)
            part.replace(cache / f"{split}.parquet")
    return DatasetDict({split: Dataset(parquet.read_table(cache / f"{split}.parquet")) for split in SPLITS})


def data_folder() -> Path:
    """Where the package keeps licenses/*.LICENSE and rules/*.RULE; the package itself is not imported."""
    spec = importlib.util.find_spec("licensedcode")
    if spec is None or spec.origin is None:
        raise UserError(f"the licence texts are not installed: pip install --no-deps {PACKAGE}")
    return Path(spec.origin).parent / "data"


def cache_folder() -> Path:
    """A folder for this version of the texts and of the code that chooses among them."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hfcompress"
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    return base / f"licence-review-{importlib.metadata.version(PACKAGE)}-{code}"


def usable_rows(folder: Path, min_texts: int) -> list[Row]:
    """The texts in licenses/*.LICENSE and rules/*.RULE that the module's docstring keeps, sorted by licence."""
    categories, rows = {}, []
    for file in sorted((folder / "licenses").glob("*.LICENSE")):
        fields, text = front_matter(file.read_text(encoding="utf-8"))
        categories[fields["key"]] = fields["category"]
        rows += list(candidate(fields, text, fields["key"]))
    for file in sorted((folder / "rules").glob("*.RULE")):
        fields, text = front_matter(file.read_text(encoding="utf-8"))
        rows += list(candidate(fields, text, fields.get("license_expression", "")))
    rows = [row | {"label": categories[row["group"]]} for row in rows if row["group"] in categories]
    rows = list({row["text"].lower(): row for row in rows}.values())
    count = Counter(row["label"] for row in rows)
    return sorted((r for r in rows if count[r["label"]] >= min_texts), key=lambda r: (r["group"], r["text"]))


def front_matter(content: str) -> tuple[dict[str, Any], str]:
    """The YAML fields between the first two `---` lines, and the text below, {{key phrase}} marks removed."""
    import yaml

    _, head, body = [*re.split(r"^---[ \t]*$", content, maxsplit=2, flags=re.MULTILINE), ""][:3]
    text = re.sub(r"\{\{|\}\}", "", body)
    return yaml.load(head, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)), " ".join(text.split())


def candidate(fields: dict[str, Any], text: str, expression: str) -> Iterator[Row]:
    """The row of a file, if it is usable: English, live, long enough, one licence key and no exception."""
    single = re.fullmatch(r"[\w.+-]+", expression) is not None
    if (
        single
        and len(text.split()) >= MIN_WORDS
        and fields.get("language", "en") == "en"
        and not any(fields.get(flag) for flag in UNUSABLE)
    ):
        yield {"text": text, "group": expression}


def split_rows(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by split (train, validation, test in this order), near-duplicates across splits dropped as documented."""
    assigned = assign(rows)
    train, validation, test = ([row for row in rows if assigned[row["group"]] == split] for split in SPLITS)
    both, test = without_near_duplicates(train + validation, test)
    train, validation = ([row for row in both if assigned[row["group"]] == split] for split in SPLITS[:2])
    train, validation = without_near_duplicates(train, validation)
    return {"train": thinned(train), "validation": validation, "test": test}


def assign(rows: list[Row]) -> dict[str, str]:
    """The split of each licence."""
    size = Counter(row["group"] for row in rows)
    assigned = dict.fromkeys(size, "train")
    licences: dict[str, set[str]] = {}
    for row in rows:
        licences.setdefault(row["label"], set()).add(row["group"])
    for keys in licences.values():
        for i, key in enumerate(sorted(keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())):
            if i / len(keys) < TEST + VALIDATION and size[key] <= COMMON:
                assigned[key] = "test" if i / len(keys) < TEST else "validation"
    return assigned


def without_near_duplicates(left: list[Row], right: list[Row]) -> tuple[list[Row], list[Row]]:
    """Both lists without the fewest rows whose absence leaves no near-duplicate pair between them.

    König's theorem: from the left rows that a maximum matching leaves free, walk along alternating paths; the left
    rows not reached and the right rows reached are a minimum vertex cover, and these are dropped.
    """
    from scipy.sparse.csgraph import maximum_bipartite_matching

    if not left or not right:
        return left, right
    pairs = near_duplicates(left, right)
    partner = maximum_bipartite_matching(pairs, perm_type="column")  # of each left row, or -1
    back = {int(column): row for row, column in enumerate(partner) if column >= 0}
    reached_left = {row for row, column in enumerate(partner) if column < 0}
    reached_right: set[int] = set()
    frontier = list(reached_left)
    while frontier:
        row = frontier.pop()
        new = {int(c) for c in pairs.indices[pairs.indptr[row] : pairs.indptr[row + 1]]} - reached_right
        reached_right |= new
        rows = {back[column] for column in new} - reached_left  # a maximum matching covers every column reached
        reached_left |= rows
        frontier.extend(rows)
    return (
        [row for i, row in enumerate(left) if i in reached_left],
        [row for i, row in enumerate(right) if i not in reached_right],
    )


def thinned(rows: list[Row]) -> list[Row]:
    """The rows without those that are near-duplicates of an earlier one that stays and has the same label."""
    pairs = near_duplicates(rows, rows)
    dropped: set[int] = set()
    for i, row in enumerate(rows):
        if i not in dropped:
            alike = (int(j) for j in pairs.indices[pairs.indptr[i] : pairs.indptr[i + 1]])
            dropped |= {j for j in alike if j > i and rows[j]["label"] == row["label"]}
    return [row for i, row in enumerate(rows) if i not in dropped]


def near_duplicates(left: list[Row], right: list[Row]) -> "csr_array":
    """Boolean matrix [left, right] of the pairs whose binary word-trigram vectors have a cosine of at least 0.8."""
    from scipy.sparse import csr_array, vstack
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(ngram_range=(3, 3), binary=True, alternate_sign=False, norm="l2", n_features=2**22)
    ours = csr_array(vectorizer.transform(row["text"] for row in left))
    theirs = csr_array(vectorizer.transform(row["text"] for row in right)).T.tocsr()
    blocks = [csr_array(ours[i : i + 256] @ theirs >= NEAR_DUPLICATE) for i in range(0, len(left), 256)]
    return vstack(blocks, format="csr")


def leaks(splits: dict[str, list[Row]]) -> list[str]:
    """What is wrong with a split, one line each: licences in two splits, and near-duplicate texts across splits."""
    found = []
    for one, other in combinations(splits, 2):
        left, right = splits[one], splits[other]
        for key in sorted({row["group"] for row in left} & {row["group"] for row in right}):
            found.append(f"licence {key} is in {one} and in {other}")
        if left and right and (pairs := near_duplicates(left, right).nnz):
            found.append(f"{pairs} near-duplicate texts between {one} and {other}")
    return found
