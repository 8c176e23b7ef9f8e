"""The verbs of the command line. The only file that knows tyro; imports neither torch nor a recipe until it must."""

import ast
import dataclasses
import difflib
import importlib
import inspect
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro
from tyro.conf import Positional

import recipes
from hfcompress.errors import UserError
from hfcompress.record import read_json

PAGE_EVERY = 20  # requests
FAILED, WRONG_INPUT, KEEP_GOING, INTERRUPTED = 1, 2, 3, 130


def main() -> None:
    """Exit codes: 0 all verdicts hold, 1 a verdict fails, 2 the input is wrong, 130 interrupted."""
    # Before torch is loaded: threads that spin while they wait make a shared machine many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice is for those who write code
    arguments = sys.argv[1:]
    try:
        sys.exit(dispatch(arguments))
    except UserError as error:
        print(f"hfcompress: {error}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    except KeyboardInterrupt:
        print("hfcompress: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of standard output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def dispatch(arguments: list[str]) -> int:
    """Run one verb and return its exit code."""
    verbs: dict[str, Callable[..., int]] = {
        "list": list_recipes,
        "plan": plan,
        "run": run,
        "report": report,
        "check": check,
        "predict": predict,
        "push": push,
        "verify": verify,
        "record": record,
        "replay": replay,
        "shadow": shadow,
        "ab": ab,
        "env": env,
    }
    if arguments[:1] == ["run"] and (lock_file := option_value(arguments, "--from-lock")):
        return from_lock(Path(lock_file), arguments[1:])  # before the recipe's name is asked for: the lock has it
    if arguments and arguments[0] in ("run", "plan") and len(arguments) > 1 and not arguments[1].startswith("-"):
        return with_recipe(arguments[0], arguments[1], arguments[2:])
    app = tyro.extras.SubcommandApp()
    for name, verb in verbs.items():
        app.command(name=name)(verb)
    return app.cli(
        prog="hfcompress",
        description="State a budget, run a recipe, get a small model and a report that proves or refuses the budget.",
        args=arguments,
    )


def list_recipes() -> int:
    """List the recipes, each with the first line of what it says about itself."""
    for name, summary in found_recipes().items():
        print(f"{name:20} {summary}")
    return 0


def run(recipe: Positional[str]) -> int:
    """Run a recipe: `hfcompress run legal_bert --help` shows all its options."""
    return with_recipe("run", recipe, [])


def plan(recipe: Positional[str]) -> int:
    """Predict size, memory and latency of every model of a recipe, without weights or network."""
    return with_recipe("plan", recipe, [])


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What `run` takes beside the recipe's own options."""

    scale: Annotated[str, tyro.conf.arg(help="small (embedded data, two cores) or full (from the Hub).")] = "small"
    smoke: Annotated[bool, tyro.conf.arg(help="The whole recipe on tiny models, in a minute.")] = False
    run_dir: Annotated[Path | None, tyro.conf.arg(help="Where the run lies [runs/RECIPE-SCALE].")] = None
    from_lock: Annotated[
        Path | None, tyro.conf.arg(help="A recipe.lock.json: recipe, scale and options are what it says.")
    ] = None
    push_to_hub: Annotated[bool, tyro.conf.arg(help="Push the result when the budget holds; see push --help.")] = False
    hub_model_id: Annotated[str | None, tyro.conf.arg(help="Where to: org/name.")] = None


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What `plan` takes beside the recipe's own options."""

    scale: Annotated[str, tyro.conf.arg(help="small (embedded data, two cores) or full (from the Hub).")] = "small"
    format: Annotated[Literal["text", "json"], tyro.conf.arg(help="What is printed.")] = "text"


def with_recipe(verb: str, name: str, arguments: list[str]) -> int:
    """Parse the verb's and the recipe's options together, then run or plan the recipe."""
    module = load_recipe(name)
    recipe_name = module.__name__.rpartition(".")[2]
    smoke = verb == "run" and "--smoke" in arguments
    scale = "smoke" if smoke else option_value(arguments, "--scale") or "small"
    if not smoke and scale not in module.SCALES:
        raise UserError(f"--scale {scale}: {recipe_name} has {' and '.join(module.SCALES)}")
    folder = folder_of(arguments, recipe_name, scale)
    own = {"run": RunOptions, "plan": PlanOptions}[verb]
    options = parse(module.recipe, own, module.arguments(scale, folder), arguments, f"hfcompress {verb} {name}")
    verb_values = {field.name: options.pop(field.name) for field in dataclasses.fields(own)}
    if verb == "plan":
        return print_plan(module.recipe, options, verb_values["format"])
    return run_recipe(module.recipe, options, recipe_name, scale, folder, RunOptions(**verb_values))


def from_lock(file: Path, arguments: list[str]) -> int:
    """Run a recipe with the options that a lock says; those given beside it win."""
    from hfcompress.lock import options_from, require_same_data, say_what_differs

    locked = read_json(file)
    if not isinstance(locked, dict) or not isinstance(locked.get("options"), dict) or "scale" not in locked:
        raise UserError(f"{file} is no recipe.lock.json")
    module, scale = load_recipe(str(locked.get("recipe"))), str(locked["scale"])
    recipe_name = module.__name__.rpartition(".")[2]
    if arguments and not arguments[0].startswith("-"):
        if arguments[0].replace("-", "_") != recipe_name:
            raise UserError(f"{file} is a lock of {recipe_name}, not of {arguments[0]}")
        arguments = arguments[1:]
    if scale_options := {"--smoke", "--scale"} & {argument.partition("=")[0] for argument in arguments}:
        raise UserError(f"{scale_options.pop()}: the lock says the scale ({scale}); leave it out")
    folder = folder_of(arguments, recipe_name, scale)
    defaults = {name: p.default for name, p in list(inspect.signature(module.recipe).parameters.items())[1:]}
    defaults = options_from(locked, defaults, arguments)
    options = parse(module.recipe, RunOptions, defaults, arguments, "hfcompress run --from-lock")
    own = RunOptions(**{field.name: options.pop(field.name) for field in dataclasses.fields(RunOptions)})
    say_what_differs(locked)
    require_same_data(locked, options)
    return run_recipe(module.recipe, options, recipe_name, scale, folder, own)


def folder_of(arguments: list[str], recipe_name: str, scale: str) -> Path:
    """Where a run lies."""
    return Path(option_value(arguments, "--run-dir") or Path("runs") / f"{recipe_name}-{scale}")


def parse(
    recipe: Callable[..., Any], own: type, defaults: dict[str, Any], arguments: list[str], prog: str
) -> dict[str, Any]:
    """The values of all options: the recipe's signature is its command line, with `defaults` for this scale."""
    hints = get_type_hints(recipe, include_extras=True)
    helps = argument_help(recipe)
    fields: list[Any] = [(f.name, f.type, dataclasses.field(default=f.default)) for f in dataclasses.fields(own)]
    for name, parameter in list(inspect.signature(recipe).parameters.items())[1:]:
        default = defaults.get(name, parameter.default)
        fields.append(
            (
                name,
                Annotated[hints[name], tyro.conf.arg(help=helps.get(name, ""))],
                dataclasses.field(default_factory=partial(copy, default)),
            )
        )
    options_type: type[Any] = dataclasses.make_dataclass("Options", fields, frozen=True)
    summary = (inspect.getdoc(recipe) or "").splitlines()[0]
    parsed = tyro.cli(options_type, args=arguments, prog=prog, description=summary)
    return {field.name: getattr(parsed, field.name) for field in dataclasses.fields(parsed)}


def argument_help(recipe: Callable[..., Any]) -> dict[str, str]:
    """Name -> text from the Args section of the recipe's docstring, so that help stands once."""
    from docstring_parser import parse as parse_docstring

    return {p.arg_name: (p.description or "").replace("\n", " ") for p in parse_docstring(recipe.__doc__ or "").params}


def run_recipe(
    recipe: Callable[..., Any], options: dict[str, Any], name: str, scale: str, folder: Path, own: RunOptions
) -> int:
    if own.push_to_hub != (own.hub_model_id is not None):
        raise UserError("--push-to-hub and --hub-model-id org/name: give both, or neither")
    if own.push_to_hub:
        from hfcompress.hub import require_token

        require_token()
    quiet()
    from hfcompress.plan import Plan
    from hfcompress.run import Run

    planned = Plan()
    recipe(planned, **options)
    refuse_impossible(planned.verdicts, planned.advice)
    result = recipe(Run(folder, name, scale, planned.predictions, options), **options)
    if own.hub_model_id and is_main_process():
        if result["ok"]:
            push(folder, own.hub_model_id)
        else:
            print("not pushed, since the budget does not hold: see hfcompress push --help", file=sys.stderr)
    return 0 if result["ok"] else FAILED


def is_main_process() -> bool:
    """Of the ranks that ran the recipe, the one that wrote the report."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def refuse_impossible(verdicts: list[dict[str, Any]], advice: list[str]) -> None:
    """Stop before hours of training when the plan is sure of a size that the budget does not allow.

    Predicted bytes are exact to a few percent; a predicted latency is not, and is left to the measurement.
    """
    for verdict in verdicts:
        if verdict["limit"] == "disk_mb" and verdict["predicted"] > 1.05 * verdict["allowed"]:
            raise UserError(
                f"--budget.disk-mb {verdict['allowed']:g}: {verdict['candidate']} would take "
                f"{verdict['predicted']:.1f} MB; raise the limit or choose a smaller student. {' '.join(advice)}"
            )


def print_plan(recipe: Callable[..., Any], options: dict[str, Any], form: str) -> int:
    from hfcompress.plan import Plan, render

    planned = Plan()
    recipe(planned, **options)
    print(json.dumps(planned.as_dict(), indent=1) if form == "json" else render(planned))
    return 0 if planned.ok else FAILED


def report(run: Positional[Path]) -> int:
    """Render report.html and the model card of a run again from its records, and print the table."""
    from hfcompress.report.card import render_card
    from hfcompress.report.console import table
    from hfcompress.report.html import render_html

    found, details = read_json(run / "report.json"), read_json(run / "details.json")
    (run / "report.html").write_text(render_html(found, details, details["records"]), encoding="utf-8")
    (run / "model_card.md").write_text(render_card(found, details), encoding="utf-8")
    print(table(found))
    print(f"report: {run / 'report.html'}", file=sys.stderr)
    return 0


def check(run: Positional[Path]) -> int:
    """Exit 0 only if every verdict of a run holds, and its files are those that were measured."""
    from hfcompress.report.console import verdict_lines
    from hfcompress.stage import Artifact

    found = read_json(run / "report.json")
    for model in found["models"]:
        if model["path"] is None:
            continue
        folder = run / model["path"]
        if not folder.is_dir():
            raise UserError(f"{folder} is gone: run the recipe again, or check another run")
        if damage := Artifact(folder).damage(hashed=True):
            raise UserError(f"{folder} is not what was measured: {damage}; run the recipe again")
    for line in verdict_lines(found):
        print(line)
    return 0 if found["verdicts"] and all(verdict["ok"] is True for verdict in found["verdicts"]) else FAILED


def push(
    run: Positional[Path],
    hub_model_id: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    allow_failed: bool = False,
    license: str | None = None,
) -> int:
    """Upload a run's models to the Hub, with the evidence.

    Args:
        run: the folder of a run.
        hub_model_id: where to: org/name.
        private: make the repository private, if it is made now.
        revision: the branch to push to [main].
        create_pr: open a pull request instead of pushing.
        dry_run: print what would be uploaded, and the card; upload nothing.
        allow_failed: push although the budget does not hold; the card says so first.
        license: of the result, where the base model names none.
    """
    from hfcompress import hub
    from hfcompress.release import release

    found = release(run, hub_model_id, license, allow_failed=allow_failed)
    if dry_run:
        for place, size in found.sizes().items():
            print(f"{size:>12,}  {place}")
        print(f"{sum(found.sizes().values()):>12,}  in all\n\n{found.rendered['README.md'].decode()}")
        return 0
    print(hub.push(found, hub_model_id, private=private, revision=revision, create_pr=create_pr))
    return 0


def verify(model: Positional[str], data: str | None = None, format: Literal["text", "json"] = "text") -> int:
    """Fetch a pushed model and prove its evidence again: exit 1 when a file or a figure is not what is claimed.

    Args:
        model: org/name, org/name@revision, or a folder that holds such a repository.
        data: other data for the accuracy, as --task.dataset takes it [what the run was measured on].
        format: text (a line a claim) or json.
    """
    quiet()
    from hfcompress import hub
    from hfcompress.lock import LOCK, restored
    from hfcompress.verify import verify as verified

    folder = hub.fetch(model)
    locked = read_json(folder / LOCK)
    try:
        task, options = (
            inspect.signature(load_recipe(locked["recipe"]).recipe).parameters["task"].default,
            locked["options"],
        )
        if isinstance(options["task"]["dataset"], dict) and data is None:
            raise UserError(
                f"the run's data was the local {options['task']['dataset']['local']}; give yours with --data"
            )
        task = restored(task, options["task"], "task", ["--task.dataset"])
    except (KeyError, TypeError):
        raise UserError(
            f"{folder / LOCK} is no lock of this version; fetch the model again, or push it again"
        ) from None
    claims = verified(folder, dataclasses.replace(task, dataset=data) if data else task, str(locked.get("data")))
    print(json.dumps([vars(c) for c in claims], indent=1) if format == "json" else "\n".join(map(str, claims)))
    return FAILED if any(claim.ok is False for claim in claims) else 0


def record(model: Positional[str], traffic: Positional[Path], arm: str = "old", rotate_mb: float = 100.0) -> int:
    """Answer requests from standard input, and append them with their answers to a traffic file.

    Args:
        model: a run, a model's folder, or the name of a model that was pushed.
        traffic: where to: JSON lines; a killed writer loses at most its last line.
        arm: the name under which this model's answers are recorded.
        rotate_mb: a larger file is renamed to NAME.1, NAME.2, ... and begun anew.
    """
    from hfcompress.evaluation.predictor import Predictor
    from hfcompress.evaluation.traffic import Writer
    from hfcompress.serving import record as recorded

    with candidate_of(model) as (folder, max_length):
        predictor, writer, count = Predictor(folder), Writer(traffic, rotate_mb), 0
        for count, event in enumerate(recorded(predictor, sys.stdin.buffer, writer, arm, max_length), 1):  # noqa: B007
            print(json.dumps({"id": event.id, **(event.answer or {})}, ensure_ascii=False), flush=True)
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
    from hfcompress.evaluation import counterfactual
    from hfcompress.evaluation import replay as replays
    from hfcompress.evaluation import traffic as recorded
    from hfcompress.evaluation.predictor import Predictor

    found = recorded.read(traffic)
    with candidate_of(old) as (one, max_length), candidate_of(new) as (other, _):
        models = Predictor(one), Predictor(other)
        replayed = replays.answered(*models, found.events, max_length)
        result = {
            "changes": replays.changes(replayed),
            "against_truth": replays.against_truth(replayed),
            "latency_ms": replays.timed(*models, replayed.events, max_length),
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
) -> int:
    """Answer requests from standard input with OLD, and ask NEW beside it, which nobody waits for.

    The answers go to standard output; agreement, latencies, drift and what was dropped, as JSON, to standard error at
    the end. NEW may be slow, hang or crash: requests that it cannot take are dropped and counted.

    Args:
        old: a run, a model's folder, or the name of a model that was pushed.
        new: the model that would replace it.
        traffic: both models' answers are appended here, under the same id.
        rotate_mb: a larger file is renamed to NAME.1, NAME.2, ... and begun anew.
        page: an HTML page that shows agreement, latencies and drift while the test runs.
    """
    from hfcompress import serving
    from hfcompress.evaluation.predictor import Predictor
    from hfcompress.evaluation.traffic import Writer

    with candidate_of(old) as (one, max_length), candidate_of(new) as (two, _):
        predictor, writer, state = Predictor(one), Writer(traffic, rotate_mb), serving.Shadowed()
        other = serving.Shadow(two, max_length)
        try:
            for event in serving.shadow(predictor, other, sys.stdin.buffer, writer, max_length, state):
                print(json.dumps({"id": event.id, **(event.answer or {})}, ensure_ascii=False), flush=True)
                if page is not None and state.answered % PAGE_EVERY == 0:
                    page.write_text(serving.page(state), encoding="utf-8")
        finally:
            other.close()
            if page is not None:
                page.write_text(serving.page(state), encoding="utf-8")
            print(json.dumps(state.as_dict(), indent=1, ensure_ascii=False), file=sys.stderr)
    return 0


def ab(
    traffic: Positional[Path],
    metric: str,
    tolerance: str,
    confidence: float = 0.95,
    planned_users: int = 10_000,
    share: float = 0.5,
    format: Literal["text", "json"] = "text",
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
    """
    from hfcompress.evaluation import sequential
    from hfcompress.evaluation import traffic as recorded

    if not 0 < share < 1 or not 0.5 < confidence < 1 or planned_users < 1:
        raise UserError("--share lies between 0 and 1, --confidence between 0.5 and 1, --planned-users is positive")
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
    if format == "json":
        print(json.dumps(outcome.as_dict() | {"broken_lines": found.broken}, indent=1))
    else:
        print(outcome.as_text(metric))
        if found.broken:
            print(f"{found.broken} lines are no events and were left out", file=sys.stderr)
    return {"accept": 0, "roll back": FAILED, "keep going": KEEP_GOING}[outcome.verdict]


def predict(
    run: Positional[str],
    file: Positional[Path | None] = None,
    text: str | None = None,
    format: Literal["text", "json"] = "text",
) -> int:
    """Label texts with the run's compressed model.

    Args:
        run: the folder of a run, or the name of a model that was pushed: org/name or org/name@revision.
        file: a file with one text a line; standard input when neither it nor --text is given.
        text: one text.
        format: text (label, score, text with tabs between) or json (one object a line).
    """
    import numpy as np

    from hfcompress.evaluation.predictor import Predictor

    texts = [text] if text is not None else read_lines(file)
    with candidate_of(run) as (folder, max_length):
        predictor = Predictor(folder)
        logits = predictor.logits(texts, max_length=max_length)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    for line, row in zip(texts, probabilities, strict=True):
        label, score = predictor.labels[int(row.argmax())], float(row.max())
        answer = {"label": label, "score": round(score, 6), "text": line}
        print(json.dumps(answer, ensure_ascii=False) if format == "json" else f"{label}\t{score:.4f}\t{line}")
    return 0


@contextmanager
def candidate_of(name: str) -> Iterator[tuple[Path, int]]:
    """A model's folder and how many tokens it reads.

    Args:
        name: a run or a repository that was pushed, whose compressed model is meant, or the folder of one model.
    """
    from hfcompress import hub
    from hfcompress.lock import LOCK
    from hfcompress.report.console import candidate_row
    from hfcompress.verify import laid_out

    folder = hub.fetch(name)
    if not (folder / "report.json").is_file() and (folder / "config.json").is_file():
        yield folder, tokens_read(folder)
        return
    report = read_json(folder / "report.json")
    row = candidate_row(report)
    if "delivered" not in report:
        yield folder / row["path"], read_json(folder / "details.json")["max_length"]
        return
    with tempfile.TemporaryDirectory() as work:
        yield laid_out(folder, row, Path(work)), read_json(folder / LOCK)["options"]["task"]["max_length"]


def tokens_read(folder: Path) -> int:
    """What the run around a model measured it with; of a model from elsewhere, all that it has positions for."""
    details = folder.parent / "details.json"
    if details.is_file():
        return int(read_json(details)["max_length"])
    return int(read_json(folder / "config.json").get("max_position_embeddings", 512))


def env() -> int:
    """Print versions, processor, threads and GPU: what to add to a bug report."""
    from hfcompress.record import environment

    print(json.dumps(environment(), indent=1))
    return 0


def read_lines(file: Path | None) -> list[str]:
    """One text a line; empty lines are left out.

    Raises:
        UserError: no such file, not UTF-8, or no text at all.
    """
    try:
        content = sys.stdin.buffer.read() if file is None else file.read_bytes()
        lines = [line for line in content.decode("utf-8").splitlines() if line.strip()]
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f'{file}: no such file; give one text a line, or --text "..."') from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file or 'standard input'} is not UTF-8 (byte {error.start}); convert it, for instance with "
            "iconv -t UTF-8"
        ) from None
    if not lines:
        raise UserError(f"{file or 'standard input'} holds no text")
    return lines


def found_recipes() -> dict[str, str]:
    """Name -> first docstring line of every file in recipes/ that defines a `recipe`; nothing is imported."""
    found = {}
    for folder in recipes.__path__:
        for file in sorted(Path(folder).glob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            if any(isinstance(node, ast.FunctionDef) and node.name == "recipe" for node in tree.body):
                found[file.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def load_recipe(name: str) -> Any:
    wanted, known = name.replace("-", "_"), found_recipes()
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
        raise UserError(f"there is no recipe {name}; {hint}")
    return importlib.import_module(f"recipes.{wanted}")


def option_value(arguments: list[str], option: str) -> str | None:
    """The value of an option that decides which other options there are, read before the real parse."""
    for i, argument in enumerate(arguments):
        if argument == option and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def quiet() -> None:
    """Leave standard error to our own messages and bars: the libraries' chatter off."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
