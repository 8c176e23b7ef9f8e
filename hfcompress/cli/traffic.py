"""record, replay, shadow and ab: whether a model may replace another, from what it is asked."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from hfcompress.cli.common import FAILED, KEEP_GOING, require_texts
from hfcompress.errors import UserError
from hfcompress.folders.escaping import one_line, terminal
from hfcompress.folders.files import disk_is_full, full_disk, write_output
from hfcompress.folders.lines import json_line
from hfcompress.hub.candidate import candidate_of

if TYPE_CHECKING:
    from hfcompress.rollout.traffic import Writer

PAGE_EVERY = 20  # requests
MOST_USERS = 10**12
SHOWN_LOOKS = 300  # of an A/B test, in its picture


def say_if_torn(writer: "Writer") -> None:
    """Tell what a killed writer has lost."""
    if writer.torn:
        print(
            f"{writer.file}: the writer before was killed amid its last line, which is lost; what follows is whole",
            file=sys.stderr,
        )


def record(model: Positional[str], traffic: Positional[Path], arm: str = "old", rotate_mb: float = 100.0) -> int:
    """Answer requests from standard input, and append them with their answers to a traffic file.

    Args:
        model: a run, a model's folder, or the name of a model that was pushed.
        traffic: where to: JSON lines; a killed writer loses at most its last line.
        arm: the name under which this model's answers are recorded.
        rotate_mb: a larger file is renamed to NAME.1, NAME.2, ... and begun anew.
    """
    from hfcompress.folders.files import disk_is_full
    from hfcompress.formats.runtimes.predictor import open_predictor
    from hfcompress.rollout.serving import record as recorded
    from hfcompress.rollout.traffic import Writer, bounded_lines

    with candidate_of(model) as (folder, max_length):
        require_texts(folder)
        predictor, writer, count = open_predictor(folder), Writer(traffic, rotate_mb), 0
        say_if_torn(writer)
        try:
            for event in recorded(predictor, bounded_lines(sys.stdin.buffer), writer, arm, max_length):
                print(json_line({"id": event.id, **(event.answer or {})}), flush=True)
                count += 1
        except OSError as error:
            if not disk_is_full(error):
                raise
            raise UserError(
                f"the disk that holds {traffic} is full; {count} requests are recorded, each whole, and the next one "
                "is not; make room, then go on with that one: the file is appended to"
            ) from error
        finally:
            writer.close()
    print(f"{count} requests recorded in {traffic}", file=sys.stderr)
    return 0


def replay(old: Positional[str], new: Positional[str], traffic: Positional[Path], metric: str | None = None) -> int:
    """Ask two models what was asked before: what changed, whether it is better, how fast it is. Prints JSON.

    Args:
        old: a run, a model's folder, or the name of a model that was pushed.
        new: the model that would replace it.
        traffic: JSON lines, as `record` writes them; an outcome `label` is the true label.
        metric: also estimate what this outcome would have been under each model; needs recorded propensities.
    """
    from hfcompress.formats.runtimes.predictor import open_predictor
    from hfcompress.rollout import counterfactual
    from hfcompress.rollout import replay as replays
    from hfcompress.rollout import traffic as recorded

    with candidate_of(old) as (one, max_length), candidate_of(new) as (other, its_length):
        require_texts(one, other)
        found = recorded.read(traffic)
        models = open_predictor(one), open_predictor(other)
        lengths = max_length, its_length
        replayed = replays.answered(*models, found.events, *lengths)
        result = {
            "changes": replays.changes(replayed),
            "against_truth": replays.against_truth(replayed),
            "latency_ms": replays.timed(*models, replayed.events, *lengths),
            "broken_lines": found.broken,
        }
    if metric is not None:
        print(f"--metric {metric}: {counterfactual.ASSUMPTIONS}", file=sys.stderr)
        result["would_have_been"] = replays.would_have_been(replayed, metric)
    print(json.dumps(result, indent=1, ensure_ascii=False))
    return 0


def shadow(
    old: Positional[str],
    new: Positional[str],
    traffic: Positional[Path],
    rotate_mb: float = 100.0,
    page: Path | None = None,
    serve: int | None = None,
) -> int:
    """Answer requests from standard input or over HTTP with OLD, and ask NEW beside it, which nobody waits for.

    The answers go to standard output; agreement, latencies, drift and what was dropped, as JSON, to standard error at
    the end. NEW may be slow, hang or crash: requests that it cannot take are dropped and counted.

    Args:
        old: a run, a model's folder, or the name of a model that was pushed.
        new: the model that would replace it.
        traffic: both models' answers are appended here, under the same id.
        rotate_mb: a larger file is renamed to NAME.1, NAME.2, ... and begun anew.
        page: an HTML page that shows agreement, latencies and drift while the test runs.
        serve: a port of 127.0.0.1: requests come as POST / with {"input": ...}, and GET / is the page. Ends
            on SIGINT, SIGTERM or SIGHUP.
    """
    from hfcompress.formats.runtimes.predictor import open_predictor
    from hfcompress.rollout import serving
    from hfcompress.rollout.traffic import Writer, bounded_lines

    if serve is not None and not 0 < serve < 65536:
        raise UserError(f"--serve {serve}: a port is a number from 1 to 65535")
    with candidate_of(old) as (one, max_length), candidate_of(new) as (two, its_length):
        require_texts(one, two)
        predictor, writer, state = open_predictor(one), Writer(traffic, rotate_mb), serving.Shadowed()
        say_if_torn(writer)
        if page is not None:  # one that cannot be written is refused before the first request
            write_output(page, serving.page(state))
        with ended_by_signals():
            other = serving.Shadow(two, its_length)
            test, refused = serving.ShadowTest(predictor, other, writer, max_length, state), False
            try:
                if not other.wait_until_loaded():
                    print(f"{new} does not load: what it is asked will be dropped", file=sys.stderr)
                if serve is not None:
                    from hfcompress.rollout import shadow_server

                    shadow_server.serve(test, serve)
                    return 0
                for event in serving.answered(test, bounded_lines(sys.stdin.buffer)):
                    print(json_line({"id": event.id, **(event.answer or {})}), flush=True)
                    if page is not None and state.answered % PAGE_EVERY == 0:
                        refused = refresh(page, serving.page(state), refused)
            finally:
                other.close()
                test.give_up()
                writer.close()
                if page is not None:
                    refresh(page, serving.page(state), refused)
                print(terminal(json.dumps(state.as_dict(), indent=1, ensure_ascii=False)), file=sys.stderr)
    return 0


def refresh(page: Path, text: str, refused: bool = False) -> bool:
    """Write the page again, and return whether it could not be: the answers go on, and that is said once.

    Args:
        refused: whether that has been said.
    """
    try:
        write_output(page, text)
    except OSError as error:
        if not refused:
            why = full_disk(error, page) if disk_is_full(error) else str(error.strerror)
            print(one_line(f"hfcompress: --page {page}: {why}; what it shows is not the newest"), file=sys.stderr)
        return True
    return False


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into the end of the program with its last words: exit code 128 and the signal's number.

    By default they end the process on the spot.
    """

    def end(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # the last words are being said
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ab(
    traffic: Positional[Path],
    metric: str,
    tolerance: str,
    confidence: float = 0.95,
    planned_users: int = 10_000,
    share: float = 0.5,
    format: Literal["text", "json"] = "text",
    report: Path | None = None,
) -> int:
    """Judge an A/B test from its traffic, as often as you like: exit 0 accept, 1 roll back, 3 keep going.

    The new model is accepted when its mean of the metric is shown to be no lower than the old one's by more than the
    tolerance, and rolled back when it is shown to be. The bounds hold at all looks together.

    Args:
        traffic: JSON lines; the first decision in the order of the file stands.
        metric: which outcome counts, such as ctr.
        tolerance: agreed on before the test: 0.5% of the old model's mean, or a difference such as 0.005.
        confidence: of each of the two decisions, however often one looks.
        planned_users: how many users the test is planned for: there the bounds are narrow.
        share: of the users assigned to the new model.
        format: text or json.
        report: an HTML page with the estimate and its bounds after every look.
    """
    from dataclasses import replace

    from hfcompress.rollout import sequential
    from hfcompress.rollout import traffic as recorded

    if not 0 < share < 1 or not 0.5 < confidence < 1 or not 1 <= planned_users <= MOST_USERS:
        raise UserError(
            f"--share lies between 0 and 1, --confidence between 0.5 and 1, --planned-users from 1 to {MOST_USERS:,}"
        )
    found = recorded.read(traffic)
    outcome = sequential.ab(
        found.events,
        metric,
        sequential.Tolerance.parse(tolerance),
        alpha=1 - confidence,
        planned=planned_users,
        share=share,
    )
    if outcome.ratio_p < sequential.RATIO_ALPHA:
        raise UserError(
            f"{traffic}: {outcome.users['old']:,} users have the old model and {outcome.users['new']:,} the new one, "
            f"where {share:.0%} should have the new (p = {outcome.ratio_p:.1g}): the assignment or the logging is "
            "broken, and the arms cannot be compared; mend that, or give the --share that was meant"
        )
    if report is not None:
        from hfcompress.report.clicks import ab_html

        shown = replace(outcome, looks=sequential.thinned(outcome.looks, SHOWN_LOOKS)).as_dict()
        write_output(report, ab_html(shown, metric, tolerance, outcome.as_text(metric)))
        print(f"report: {report}", file=sys.stderr)
    if format == "json":
        print(json.dumps(outcome.as_dict() | {"broken_lines": found.broken}, indent=1))
    else:
        print(outcome.as_text(metric))
        if found.broken:
            print(f"{found.broken} lines are no events and were left out", file=sys.stderr)
    return {"accept": 0, "roll back": FAILED, "keep going": KEEP_GOING}[outcome.verdict]
