"""How well a causal LM predicts text: perplexity, and how far it is from another model on the same tokens."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hfcompress.errors import UserError
from hfcompress.evaluation.drawn import Drawn, paired_difference
from hfcompress.evaluation.metrics import METRICS, metrics_of
from hfcompress.evaluation.statistics import Difference
from hfcompress.formats.runtimes.decoder import Decoder

Array = np.ndarray[Any, Any]
# (bits, least top-1 agreement with what was rounded). To nearest in groups of 64 the lowest of thirteen tiny models of
# random weights (initializer ranges 0.02 to 0.3, tied or not, two to eight layers) and of one of 260,000 trained ones
# was 90.4% at 8 bits, 26.0% at 4, 8.4% at 3, and 0.8% at 2, where other weights agree by chance on 0.5%: no bound.
LEAST_AGREEMENT = ((7.5, 0.45), (3.9, 0.1), (2.9, 0.03))
FEW_TOKENS = 64  # with fewer the bounds could be missed by chance
SHOWN = 20  # disagreements that are listed


class ScoredWindow(Protocol):
    """Tokens that are read at once; from `first` on they are scored."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def first(self) -> int: ...
    @property
    def group(self) -> str: ...


@dataclass(frozen=True)
class Scores:
    """Sums over the tokens of each group (a document): float64 [groups]."""

    nll: Array
    """-log p of the true tokens, in nats."""
    kl: Array
    """KL(reference || model), in nats; zeros without a reference."""
    agree: Array
    """Tokens whose most likely successor is the reference's."""
    tokens: Array

    @property
    def sums(self) -> Array:
        """[groups, 4], as the metrics of tokens read them."""
        return np.stack([self.nll, self.kl, self.agree, self.tokens], axis=1)

    @property
    def perplexity(self) -> float:
        return METRICS["perplexity"].value(self.sums, self.tokens)


def log_probabilities(decoder: Decoder, window: ScoredWindow) -> Array:
    """float32 [scored tokens, vocab]: what the model says before each scored token."""
    from scipy.special import log_softmax

    decoder.rewind(0)
    logits = decoder.append(window.ids, all_logits=True)[window.first - 1 : len(window.ids) - 1]
    return np.asarray(log_softmax(logits.astype(np.float32), axis=1))


def scores(found: Iterable[Array], windows: list[Any], reference: Iterable[Array] | None = None) -> Scores:
    """Sum up by group what a model (and a reference) said of each window, see `log_probabilities`."""
    number = {group: i for i, group in enumerate(sorted({window.group for window in windows}))}
    sums = np.zeros((4, len(number)))
    against = iter(reference) if reference is not None else None
    for window, said in zip(windows, found, strict=True):
        true = np.array(window.ids[window.first :])
        group = number[window.group]
        sums[0, group] -= said[np.arange(len(true)), true].astype(np.float64).sum()
        sums[3, group] += len(true)
        if against is not None:
            wanted = next(against)
            sums[1, group] += float((np.exp(wanted.astype(np.float64)) * (wanted.astype(np.float64) - said)).sum())
            sums[2, group] += int((wanted.argmax(1) == said.argmax(1)).sum())
    return Scores(*sums)


def integer_bits(dtypes: dict[str, int]) -> float | None:
    """Return the average bits of a model's integer weights, from the bytes of each type; None where it has none."""
    found = {name: re.fullmatch(r"(?:int|q)(\d)(?:_.*)?", name) for name in dtypes}
    sizes = [(int(match[1]), dtypes[name]) for name, match in found.items() if match]
    weights = sum(size / bits for bits, size in sizes)
    return sum(size for _, size in sizes) / weights if weights else None


def require_kinship(name: str, reference: str, scored: Scores, dtypes: dict[str, int]) -> None:
    """Refuse a quantized model that agrees less with its source than rounding alone can make it.

    Args:
        scored: of the quantized model, against the reference; dtypes: bytes of its tensors by type.

    Raises:
        UserError: with the agreement, the bits and the bound.
    """
    bits, tokens = integer_bits(dtypes), int(scored.tokens.sum())
    least = next((bound for from_bits, bound in LEAST_AGREEMENT if bits is not None and bits >= from_bits), 0.0)
    agreement = float(scored.agree.sum()) / max(tokens, 1)
    if tokens >= FEW_TOKENS and agreement < least:
        raise UserError(
            f"{name} has the most likely token of {reference} in {agreement:.2%} of {tokens:,} places, and rounding "
            f"to {bits:.1f} bits leaves {least:.0%} even of random weights: it does not compute with the weights of "
            f"{reference}; look into the base's files and config.json, nothing is delivered"
        )


def drawn(scored: Scores, resamples: int, seed: int) -> Drawn:
    """Return a model's sums, drawn by whole groups."""
    each = [str(i).zfill(9) for i in range(len(scored.tokens))]  # a row is a group already
    return Drawn(scored.sums, scored.tokens, each, resamples=resamples, seed=seed)


def increase(reference: Drawn, candidate: Drawn, confidence: float) -> Difference:
    """How much the perplexity rose, as a share of the reference's and with a minus, as a drop is counted."""
    return paired_difference(reference, candidate, METRICS["perplexity"], confidence, int(reference.truth.sum()))


def summary(found: Drawn, *, has_reference: bool) -> dict[str, Any]:
    """Perplexity, KL (nats a token) and top-1 agreement, each with its interval; of the latter two the errors too.

    Args:
        found: see `drawn`.
    """
    measured = ("perplexity", "kl", "agreement") if has_reference else ("perplexity",)
    metrics = metrics_of(measured)
    errors = {name: float(found.values(metrics[name]).std(ddof=1)) for name in measured[1:]}
    return {
        **{name: found.value(metric) for name, metric in metrics.items()},
        "ci95": {name: found.interval(metric) for name, metric in metrics.items()},
        "nll": float(found.outputs[:, 0].sum() / found.truth.sum()),
        "tokens": int(found.truth.sum()),
        "kl": found.value(metrics["kl"]) if has_reference else None,
        "kl_se": errors.get("kl"),
        "agreement": found.value(metrics["agreement"]) if has_reference else None,
        "agreement_se": errors.get("agreement"),
    }


def disagreements(said: Iterable[Array], simulated: Iterable[Array], windows: list[Any]) -> dict[str, Any]:
    """Where a runtime and the simulation of its own weights differ in the most likely token.

    Returns: tokens, agreement (share), kl (nats a token), and the first ones with the simulation's margin: how much
        likelier (in nats) its own token is there than the one that the runtime took. A small margin is a near-tie.
    """
    tokens = agreed = 0
    kl = 0.0
    listed: list[dict[str, Any]] = []
    margins: list[float] = []
    for number, (window, ours, theirs) in enumerate(zip(windows, said, simulated, strict=True)):
        first, second = theirs.argmax(1), ours.argmax(1)
        tokens += len(first)
        agreed += int((first == second).sum())
        kl += float((np.exp(theirs.astype(np.float64)) * (theirs.astype(np.float64) - ours)).sum())
        for place in (first != second).nonzero()[0]:
            margin = float(theirs[place, first[place]] - theirs[place, second[place]])
            margins.append(margin)
            if len(listed) < SHOWN:
                listed.append({"window": number, "token": window.first + int(place), "margin": round(margin, 5)})
    return {
        "tokens": tokens,
        "agreement": agreed / tokens,
        "kl": kl / tokens,
        "largest_margin": max(margins, default=0.0),
        "disagreements": listed,
    }
