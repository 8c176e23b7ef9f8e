"""Seeded damage to files of every kind that hfcompress reads, and what the libraries alone make of the same files."""

import base64
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVIL: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 1e18, 10**30, float("nan"), float("inf"), -0.5, "", "x", "../../secret", "/etc/passwd",
    "1e400", "\u0000", "\u202e", "a" * 20000, [], {}, [1, "a", None], {"a": {"b": -1}}, [[]] * 50,
)  # fmt: skip
KEYS = (
    ("auto_map", {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", None]}),
    ("trust_remote_code", True),
    ("_attn_implementation_internal", "org/kernel"),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ("model_type", "lightglue"),
    ("num_labels", 7),
    ("torch_dtype", "float8"),
    ("rope_scaling", {"type": "yarn", "factor": -3}),
)
EVIL_CODE = "from pathlib import Path\nPath({place!r}).write_text('ran')\n"


def damage_json(text: str, rng: random.Random) -> str:
    """Return a JSON text with one or two changes: to a value, a key, or its characters."""
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        change = rng.choice((replace, replace, replace, delete, rename, add))
        value = change(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.2:
        return rng.choice((cut, nested, garbled))(text, rng)
    return text


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value inside."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += [(value, key), *places(inner)]
    return found


def place(value: Any, rng: random.Random) -> tuple[Any, Any]:
    """Draw a place: most often near the top, since a vocabulary has thousands of places deep inside."""
    top = [(value, key) for key in (value if isinstance(value, dict) else range(len(value)))]
    every = places(value)
    return rng.choice(top if rng.random() < 0.6 and top else every)


def replace(value: Any, rng: random.Random) -> Any:
    container, key = place(value, rng)
    container[key] = rng.choice(EVIL)
    return value


def delete(value: Any, rng: random.Random) -> Any:
    container, key = place(value, rng)
    del container[key]
    return value


def rename(value: Any, rng: random.Random) -> Any:
    container, key = place(value, rng)
    if isinstance(container, dict):
        container[rng.choice(("x", key.upper(), "..", ""))] = container.pop(key)
    return value


def add(value: Any, rng: random.Random) -> Any:
    key, evil = rng.choice(KEYS)
    if isinstance(value, dict):
        value[key] = evil
    return value


def cut(text: str, rng: random.Random) -> str:
    return text[: rng.randrange(len(text))]


def nested(text: str, rng: random.Random) -> str:
    return "[" * 100_000 if rng.random() < 0.5 else '{"a":' * 100_000


def garbled(text: str, rng: random.Random) -> str:
    i = rng.randrange(len(text))
    return text[:i] + rng.choice(("\\ud800", "\x00", ",", "{", "NaN", "é")) + text[i + 1 :]


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return bytes that are cut off, flipped, doubled or filled with zeros somewhere."""
    i = rng.randrange(max(len(content), 1))
    kind = rng.randrange(5)
    if kind == 0:
        return content[:i]
    if kind == 1:
        return content[:i] + bytes([content[i] ^ (1 << rng.randrange(8))]) + content[i + 1 :]
    if kind == 2:
        return content[:i] + rng.randbytes(16) + content[i + 16 :]
    if kind == 3:
        return content + content[:i]
    return content[:i] + bytes(64) + content[i + 64 :]


def damage_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file whose header or body is damaged."""
    if rng.random() < 0.4:
        early = rng.randrange(min(len(content), 4000)) if rng.random() < 0.5 else None
        return damage_bytes(content, rng) if early is None else damage_bytes(content[:early], rng) + content[early:]
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.sample(names, 2)
    kind = rng.randrange(6)
    if kind == 0:
        del header[name]
    elif kind == 1:
        header[f"{name}.old"] = header.pop(name)
    elif kind == 2:
        header[name]["shape"] = rng.choice(([], [-1], [1e9], [2**40, 2**40], list(reversed(header[name]["shape"]))))
    elif kind == 3:
        header[name]["dtype"] = rng.choice(("F64", "F8_E4M3", "x", None, "BF16"))
    elif kind == 4:
        header[name]["data_offsets"] = rng.choice(([0, 10**15], [-4, 4], header[other]["data_offsets"], "x", [0]))
    else:
        header[name] = header[other]
    text = json.dumps(header).encode()
    return struct.pack("<Q", rng.choice((len(text), len(text), len(text), 2**62, 0))) + text + body


def with_evil_code(folder: Path, marker: Path) -> None:
    """Put a module into a folder that tells that it was run."""
    (folder / "evil.py").write_text(EVIL_CODE.format(place=str(marker)))


def damage_file(file: Path, rng: random.Random, change: Callable[[bytes, random.Random], bytes]) -> None:
    """Change a file in place."""
    file.write_bytes(change(file.read_bytes(), rng))


def as_text(change: Callable[[str, random.Random], str]) -> Callable[[bytes, random.Random], bytes]:
    """Turn a change of a text into one of its bytes."""
    return lambda content, rng: change(content.decode(), rng).encode("utf-8", "surrogatepass")


# What the libraries alone say, run in a fork of its own. Each refuses what the weights do not have.


def classified(folder: str, text: str) -> list[Any]:
    """Return label and score of transformers' own pipeline for a text."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"], f"missing: {sorted(info['missing_keys'])}"
    pipe = pipeline("text-classification", model, tokenizer=AutoTokenizer.from_pretrained(folder))
    answer = pipe(text, truncation=True)[0]
    return [answer["label"], answer["score"]]


def classified_image(folder: str, image: str) -> list[Any]:
    """Return label and score of transformers' own model for an image as transformers' pipelines open it."""
    import numpy as np
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    from transformers.image_utils import load_image

    pixels = np.asarray(load_image(image).convert("RGB"))
    inputs = AutoImageProcessor.from_pretrained(folder, use_fast=False)(
        pixels, input_data_format="channels_last", return_tensors="pt"
    )
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        scores = model(**inputs).logits.softmax(-1)[0]
    return [model.config.id2label[int(scores.argmax())], float(scores.max())]


def parameters(folder: str) -> int:
    """Return the number of distinct parameters of a causal LM of that config."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from hfcompress.architectures.meta import meta_model

    model = meta_model(AutoModelForCausalLM, AutoConfig.from_pretrained(folder))
    return sum(p.numel() for p in model.parameters())


def read_task(folder: str) -> dict[str, Any]:
    """Return what the text task reads of a folder: split -> [text, label name], in the order of the file."""
    from hfcompress.errors import UserError
    from hfcompress.tasks.text_classification import TextClassification

    try:
        data = TextClassification(dataset=folder).data
    except UserError as error:
        return {"refused": str(error)}
    return {
        split: [[text, data.labels[i]] for text, i in zip(data.texts(split), data.label_ids(split), strict=True)]
        for split in ("train", "validation", "test")
    }


LABELS = (
    ["None", "NA"], ["1", "2"], ["01", "1"], ["true", "false"], ["2019-01-01", "2019-01-02"], ["1.0", "2.0"],
    ["nan", "inf"], ["a,b", 'say "x"'], ["train", "test"], ["é", "\u202ex"], ["a  b", "c"], ["yes", "no"],
)  # fmt: skip
PIECES = ("apple", "1", "NA", "2020-02-02", "x\x0cy", "line\u2028two", "a\tb", '"quoted"', "naïve", "1e5", "{}", "🎉")


def table_rows(rng: random.Random, split: str, labels: list[str], count: int) -> list[dict[str, str]]:
    """Return rows of words that readers like to guess types from; no text stands twice."""
    return [
        {"text": f"{split} {i} " + " ".join(rng.choices(PIECES, k=3)), "label": labels[i % len(labels)]}
        for i in range(count)
    ]


def write_table(file: Path, rows: list[dict[str, str]], rng: random.Random) -> None:
    """Write rows as the format of the file's name."""
    import csv

    if file.suffix == ".csv":
        with file.open("w", encoding=rng.choice(("utf-8", "utf-8-sig")), newline="") as stream:
            writer = csv.DictWriter(stream, ["text", "label"], quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
            writer.writeheader()
            writer.writerows(rows)
    elif file.suffix == ".jsonl":
        bom = "\ufeff" if rng.random() < 0.3 else ""
        ascii_only = rng.random() < 0.5
        text = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
        file.write_text(bom + text, encoding="utf-8", newline="\n")
    else:
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({name: [row[name] for row in rows] for name in ("text", "label")})
        if rng.random() < 0.5:
            table = table.set_column(1, "label", table["label"].dictionary_encode())
        pyarrow.parquet.write_table(table, file)


def write_image(file: Path, rng: random.Random) -> None:
    """Write an image of some mode, size and orientation."""
    import numpy as np
    from PIL import Image

    side = rng.choice((1, 7, 40, 300)), rng.choice((1, 16, 33, 200))
    pixels = np.random.default_rng(rng.randrange(10**6)).integers(0, 256, (*side, 4), dtype=np.uint8)
    mode = rng.choice(("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"))
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[274] = rng.randrange(1, 9)
    suffix = "JPEG" if mode in ("RGB", "L", "CMYK") else "PNG"
    image.save(file, suffix, **({"exif": exif} if suffix == "JPEG" else {}))
    if rng.random() < 0.4:
        file.write_bytes(damage_bytes(file.read_bytes(), rng))


def traffic_lines(rng: random.Random, count: int) -> list[str]:
    """Return lines of an A/B test's traffic, some of them damaged."""
    lines = []
    for i in range(count):
        event = {"id": str(i), "arm": rng.choice(("old", "new")), "time": 1e9 + i, "user": f"u{i % 50}"}
        event["outcome"] = {"ctr": rng.choice((0, 1))}
        line = json.dumps(event)
        if rng.random() < 0.05:
            line = damage_json(line, rng)[:5000]
        elif rng.random() < 0.02:
            line = base64.b64encode(rng.randbytes(30)).decode()
        lines.append(line)
    return lines
