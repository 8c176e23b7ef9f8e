"""The page and the card of a causal LM's run."""

from typing import Any

from hfcompress.evaluation.metrics import metrics_of
from hfcompress.folders.escaping import code_span, markdown
from hfcompress.report import console
from hfcompress.report.card import EVIDENCE, against, costs, hub_names, metadata, noise, verdict_line
from hfcompress.report.console import threads_in_words
from hfcompress.report.html import chain_of, ends, page
from hfcompress.report.sections import cards_of
from hfcompress.tasks import measured_task

CARD = """---
{metadata}
---

{warning}# {title}

{verdict}{notes}

{size} MB at {bits} bits a parameter, {against}. Made by the recipe `{recipe}` ({scale} scale).

| model | format | MB | bits | perplexity (95% interval) | KL, nats | top-1 | ms a token | first token, ms | peak MB |
|---|---|---|---|---|---|---|---|---|---|
{rows}

{plot}Measured on {n} test tokens of {groups} documents; time and memory at {tokens} tokens of context,
{threads}, {cpu}.{noise} KL and top-1 agreement are against `{reference}`, on the same tokens.

## The budget

{verdicts}

{sections}{costs}## Use

{use}{evidence}
## Intended use and limits

Continues text like its test texts ({data}). Perplexity, KL and agreement say how near it is to `{reference}` on such
text, and nothing about other languages or subjects. Whether what it writes is true, fair or harmless was not measured,
of neither: look at both before use.
"""
GENAI_USE = """```python
import onnxruntime_genai as genai
{fetch}
model = genai.Model({path})
tokenizer = genai.Tokenizer(model)
generator = genai.Generator(model, genai.GeneratorParams(model))
generator.append_tokens(tokenizer.encode("This licence"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```

`hfcompress summarize {name} report.txt` streams a summary.
"""
FETCH = """from huggingface_hub import snapshot_download

folder = snapshot_download("{repository}", allow_patterns="genai/*")"""
STOCK_USE = """With `pip install "compressed-tensors>=0.14,<0.15"` beside transformers 4:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
"""
GGUF_USE = """
And for llama.cpp: `hf download {repository} gguf/model.gguf --local-dir .`, then `llama-cli -m gguf/model.gguf`.
"""


def language_html(report: dict[str, Any], details: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """The page.

    Args:
        report: report.json; details: measurements.json of the measure stage and more; records: of all stages.
    """
    return page("language.html.j2", report, details, records, runtimes=details["runtimes"])


def language_card(
    report: dict[str, Any],
    details: dict[str, Any],
    repository: str | None = None,
    places: dict[str, str] | None = None,
) -> str:
    """README.md of the candidate: YAML metadata with a model-index, and text.

    Args:
        repository: org/name, when the card is for the Hub; places: what lies there, with the name of its model.
    """
    candidate, reference = ends(report, details)
    task = measured_task(details)
    tokens, threads = candidate["accuracy"]["all"]["tokens"], candidate["latency_ms"]["threads"]
    return CARD.format(
        metadata=metadata(
            report,
            details,
            task=task.pipeline_tag,
            library="onnxruntime-genai" if candidate["format"] == "onnx-genai" else "transformers",
            metrics=hub_names(task),
            tags=[*sorted({"onnx"} & {candidate["format"].partition("-")[0]}), "4-bit"],
            counts=dict.fromkeys(metrics_of(task.metrics), tokens),
        ),
        warning="" if report["ok"] else "**The budget does not hold.**\n\n",
        title=markdown(f"{report['recipe']}-{report['scale']}-{candidate['name']}"),
        verdict="The budget holds. " if report["ok"] else "",
        notes=markdown(" ".join(report["notes"])),
        size=f"{candidate['bytes'] / 1e6:.2f}",
        bits=f"{candidate['bits_per_parameter']:.2f}",
        against=against(report, candidate, reference),
        recipe=code_span(report["recipe"]),
        scale=markdown(report["scale"]),
        reference=code_span(reference["name"]),
        rows="\n".join(map(card_row, report["models"])),
        n=f"{details['n']:,}",
        groups=f"{details['groups']:,}",
        tokens=candidate["latency_ms"]["sequence_length"],
        threads=threads_in_words(threads),
        cpu=markdown(report["environment"]["cpu"]),
        noise=noise(details),
        verdicts="\n".join(map(verdict_line, report["verdicts"])),
        plot="![size, latency and perplexity of every model](plot.svg)\n\n" if repository else "",
        sections=cards_of(details, repository),
        costs=costs(chain_of(details.get("records", []), report, candidate["name"], reference["name"])),
        use=use(report, candidate, repository, places or {}),
        evidence=EVIDENCE.format(repository=repository) if repository else "",
        data=markdown(str(details.get("data", report["recipe"]))),
    )


def use(report: dict[str, Any], candidate: dict[str, Any], repository: str | None, places: dict[str, str]) -> str:
    """How each delivered model is loaded."""
    if candidate["format"] == "transformers":
        return STOCK_USE.format(name=repository or candidate["path"])
    if repository is None:
        return GENAI_USE.format(fetch="", path=f'"{candidate["path"]}"', name=candidate["path"])
    text = GENAI_USE.format(fetch=FETCH.format(repository=repository), path='f"{folder}/genai"', name=repository)
    formats = {model["format"] for model in report["models"] if model["name"] in places.values()}
    if "transformers" in formats:
        text += "\nThe same weights for transformers. " + STOCK_USE.format(name=repository)
    return text + (GGUF_USE.format(repository=repository) if "gguf" in formats else "")


def card_row(model: dict[str, Any]) -> str:
    every, timed, (low, high) = model["accuracy"]["all"], model["latency_ms"], model["accuracy"]["ci95"]
    return (
        f"| {markdown(model['name'])} | {markdown(model['format'])} | {model['bytes'] / 1e6:.2f} | "
        f"{model['bits_per_parameter']:.2f} | {every['perplexity']:.3f} ({low:.2f} – {high:.2f}) | "
        f"{console.number(every['kl'], '.5f')} | {console.number(every['agreement'], '.2%')} | "
        f"{timed['per_token']:.2f} | {timed['first_token']:.1f} | {console.number(model['peak_rss_mb'], '.0f')} |"
    )
