"""README and docs: links lead somewhere, and the commands, targets and imports that they show exist."""

import ast
import importlib
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import hfcompress
from hfcompress.runs.recipes import found_recipes
from tests.language_models import write_llama

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "model_cards/**/*.md")
    for page in ROOT.glob(pattern)
)
README_LINES = 200
PICTURE_BYTES = 200_000
FENCE = re.compile(r"^(```|~~~)(\w*)[^\n]*\n(.*?)^\1\s*$", re.M | re.S)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s*(\S+)", re.M)
VERB = re.compile(r"(?<![\w./-])(?<!from )(?<!import )hfcompress ([a-z]\w*)(?: +([a-z]\w*)(?![\w./]))?")
ELSEWHERE = re.compile(r"^(?:[a-z][a-z+.-]*:|//)", re.I)


def prose(text: str) -> str:
    """Return a page without its code, where brackets are no links."""
    return INLINE.sub("", FENCE.sub("", text))


def code(text: str) -> list[str]:
    """Return the fenced blocks and the inline code of a page."""
    return [block for _, _, block in FENCE.findall(text)] + INLINE.findall(FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them: repeated ones are numbered."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", FENCE.sub("", text), re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken_links(page: Path, root: Path) -> list[str]:
    """Return the relative links of a page that lead to no file below `root`, or to no heading of a page."""
    broken = []
    for first, second in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        link = first or second
        if ELSEWHERE.match(link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        there = target.exists() and target.is_relative_to(root.resolve())
        if there and anchor:
            there = target.suffix == ".md" and anchor in anchors(target.read_text(encoding="utf-8"))
        if not there:
            broken.append(link)
    return broken


def make_targets(text: str) -> set[str]:
    """Return the targets that a page's code calls with make."""
    return {name for part in code(text) for name in re.findall(r"(?<![\w-])make ([a-z][\w-]*)", part)}


def verbs(text: str) -> set[tuple[str, str]]:
    """Return the verbs that a page's code calls, each with the recipe behind `run` and `plan` ("" where none is)."""
    calls = [
        call
        for part in code(text)
        for call in re.findall(
            r"(?<![\w./-])(?<!from )(?<!import )hfcompress ([a-z]\w*)(?: +([a-z]\w*)(?![\w./]))?", part
        )
    ]
    return {(verb, name if verb in ("run", "plan") else "") for verb, name in calls}


def unknown_verbs(text: str, known: set[str], recipes: set[str]) -> set[tuple[str, str]]:
    return {(verb, recipe) for verb, recipe in verbs(text) if verb not in known or (recipe and recipe not in recipes)}


def known_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def known_verbs(capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Those that `hfcompress --help` lists."""
    from hfcompress.cli import dispatch

    with pytest.raises(SystemExit):
        dispatch(["--help"])
    listed = re.search(r"\{([\w,\n -]+)\}", capsys.readouterr().out)
    assert listed
    return set(re.findall(r"\w+", listed[1]))


def test_every_kind_of_page_is_checked() -> None:
    assert {page.parent.relative_to(ROOT).parts[:1] for page in PAGES} == {(), ("docs",), ("model_cards",)}
    assert len(PAGES) > 20


def test_the_readme_is_short_and_its_picture_small() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < README_LINES
    assert all(picture.stat().st_size < PICTURE_BYTES for picture in (ROOT / "docs" / "images").iterdir())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken_links(page, ROOT) == []


def test_every_page_of_the_docs_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {link for link, _ in LINK.findall(prose(index.read_text(encoding="utf-8")))}
    pages = {page.relative_to(index.parent).as_posix() for page in index.parent.rglob("*.md")} - {"README.md"}
    assert pages <= linked, pages - linked


def test_broken_links_are_seen(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading, `with code`\n\n## Twice\n\n## Twice\n\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#a-heading-with-code) [c](other.md#twice-1) [d](https://example.com/x) [e](#here)\n"
        "![f](missing.png) [g](other.md#no-heading) [h](other.md#twice-2) [i](../outside.md)\n# Here\n"
        "`[j](code.md)`\n\n```\n[k](code.md)\n```\n\n[l]: gone.md\n"
    )
    (tmp_path.parent / "outside.md").touch()
    assert broken_links(page, tmp_path) == [
        "missing.png",
        "other.md#no-heading",
        "other.md#twice-2",
        "../outside.md",
        "gone.md",
    ]


def test_the_pages_name_only_make_targets_that_exist() -> None:
    named = {name for page in PAGES for name in make_targets(page.read_text(encoding="utf-8"))}
    assert len(named) > 8
    assert named <= known_targets(), named - known_targets()


def test_the_pages_name_only_verbs_and_recipes_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    known, recipes = known_verbs(capsys), set(found_recipes())
    assert {"run", "check"} <= known
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len({verb for verb, _ in verbs(text)}) > 12
    assert unknown_verbs(text, known, recipes) == set()


def test_a_target_or_a_verb_that_does_not_exist_is_seen() -> None:
    block = "```\nmake nothing ARGS=1\nhfcompress squeeze x\n```\n`hfcompress run ber`"
    text = f"It does make sense, and hfcompress is one.\n\n{block}"
    assert make_targets(text) == {"nothing"}
    assert unknown_verbs(text, {"run"}, {"legal_bert"}) == {("squeeze", ""), ("run", "ber")}


def python_blocks() -> list[tuple[str, str]]:
    return [
        (page.relative_to(ROOT).as_posix(), block)
        for page in PAGES
        if "model_cards" not in page.parts
        for _, language, block in FENCE.findall(page.read_text(encoding="utf-8"))
        if language == "python"
    ]


@pytest.mark.parametrize(("page", "block"), python_blocks(), ids=lambda value: value if value.endswith(".md") else "")
def test_the_python_that_is_shown_compiles_and_its_imports_exist(page: str, block: str) -> None:
    compile(block, page, "exec")
    missing = []
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hfcompress":
            module = importlib.import_module(str(node.module))
            modules = {found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []))}
            missing += [a.name for a in node.names if not hasattr(module, a.name) and a.name not in modules]
    assert not missing, f"{page} imports what is not there"


def own_recipe() -> str:
    """The recipe that "Write a recipe" shows."""
    (block,) = [b for page, b in python_blocks() if page == "docs/how-to/recipe_and_stage.md" and "def recipe(" in b]
    return block


def test_the_recipe_that_is_shown_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hfcompress.cli import dispatch
    from hfcompress.recipes import tiny

    (tmp_path / "mine.py").write_text(own_recipe())
    tiny.write_model(tmp_path / "base")
    words = ["--base", str(tmp_path / "base"), "--measure.sequence-length", "32", "--format", "json"]
    assert dispatch(["plan", str(tmp_path / "mine.py"), *words]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["models"]] == ["teacher", "int8"]


@pytest.mark.slow
def test_the_recipe_that_is_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfcompress.cli import dispatch
    from hfcompress.recipes import tiny

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(own_recipe())
    tiny.write_model(tmp_path / "base")
    tiny.write_dataset(tmp_path / "data")
    words = ["--base", "base", "--task.dataset", "data", "--task.max-length", "32", "--measure.sequence-length", "32"]
    assert dispatch(["run", "./mine.py", *words]) in (0, 1)
    report = json.loads((tmp_path / "runs/mine-default/report.json").read_text())
    assert [model["name"] for model in report["models"]] == ["teacher", "int8", "tfidf-svm"]


@pytest.mark.slow
def test_the_readmes_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains tiny models; what it prints last are the report's rows."""
    monkeypatch.chdir(tmp_path)
    write_llama(tmp_path / "my-llm")
    (block,) = [block for page, block in python_blocks() if page == "README.md"]
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "int8" in printed
    assert "'label': " in printed
    assert (tmp_path / printed.splitlines()[-1] / "model.gguf").is_file()


@pytest.mark.slow
def test_the_recipe_of_the_python_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfcompress.recipes import tiny

    monkeypatch.chdir(tmp_path)
    tiny.write_dataset(tmp_path / "my-data")
    data = hfcompress.run(
        "legal_bert",
        scale="smoke",
        budget=hfcompress.Budget(disk_mb=1, drop={"accuracy": 0.5}),
        run_dir="runs/teacher",
    )
    (teacher,) = data.folder.glob("teacher-????????????????")
    (tmp_path / "my-model").symlink_to(teacher)
    (block,) = [b for page, b in python_blocks() if page == "docs/guides/python.md" and "def exported(" in b]
    space: dict[str, Any] = {"__name__": "guide"}
    block = block.replace('{"dataset": "./my-data"}', '{"dataset": "./my-data", "max_length": 32}')
    exec(compile(block.replace("Measure()", "Measure(sequence_length=32, runs=3)"), "python.md", "exec"), space)
    assert [row["name"] for row in space["result"].models] == ["model", "onnx", "tfidf-svm"]
    assert space["result"].report["recipe"] == "exported"


@pytest.mark.slow
def test_the_three_commands_run_on_a_model_of_ones_own(tmp_path: Path) -> None:
    """A teacher with as many layers, heads and neurons as the student of the small scale, and no less."""
    from hfcompress.recipes import tiny

    tiny.write_dataset(tmp_path / "DATA")
    tiny.write_model(tmp_path / "FOLDER", layers=4, hidden=96, heads=12, intermediate=1024)
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your own model in three commands")[2]
    found = FENCE.search(section)
    assert found
    commands = [shlex.split(line, comments=True) for line in found[3].splitlines()]
    assert [words[1] for words in commands] == ["plan", "run", "predict"]
    for words in commands:
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert done.returncode in ((0,) if words[1] == "predict" else (0, 1)), done.stderr
    assert any(label in done.stdout for label in tiny.WORDS)


SPELLED = {"bert": "BERT", "roberta": "RoBERTa", "xlm-roberta": "XLM-RoBERTa", "camembert": "CamemBERT",
           "distilbert": "DistilBERT", "electra": "ELECTRA"}  # fmt: skip


def made_smaller(matrix: str) -> set[str]:
    """Return the architectures that a support matrix names among those that are made smaller."""
    return {
        name.strip() for row in matrix.splitlines() if "none yet" not in row for name in row.split("|")[1].split(",")
    }


def test_the_support_matrix_names_every_encoder_and_decoder_of_the_tables() -> None:
    from hfcompress.architectures import DECODERS, ENCODERS

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = made_smaller(readme.partition("<!-- support matrix -->\n")[2].partition("<!-- /support matrix -->")[0])
    assert {SPELLED.get(kind) for kind in ENCODERS} <= named
    assert {decoder.name for decoder in DECODERS.values()} <= named
    assert made_smaller("| BERT | x |\n| RoBERTa | none yet |") == {"BERT"}
