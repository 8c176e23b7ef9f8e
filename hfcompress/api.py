"""The verbs of the command line as functions of Python; `import hfcompress as hfc` gives all of them.

Errors are those of the command line, with options named by their fields. Standard output stays empty; progress goes to
standard error. Heavy libraries are imported when a function needs them.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hfcompress.errors import OptionError, UserError, require_counts

if TYPE_CHECKING:
    from hfcompress.hub.verify import Claim
    from hfcompress.planning.plan import Plan
    from hfcompress.runs.delivery import Delivered
    from hfcompress.runs.recipes import FoundRecipe
    from hfcompress.runs.result import Checked, Result
    from hfcompress.tasks.text_generation import CausalLM

Recipe = str | Path | Callable[..., dict[str, Any]]
"""A recipe by its name, by the path of its .py file, or its function."""


def plan(
    recipe: Recipe,
    *,
    data: str | Path | None = None,
    scale: str | None = None,
    device: str = "here",
    **options: Any,
) -> "Plan":
    """Predict size, memory and latency of every model of a recipe, without training.

    Args:
        recipe: its name, the path of its .py file (which is executed), the function, or a model: a folder or Hub id
            with a slash, for which the recipe is chosen by its architecture.
        data: the data set of the recipe's task: a folder, a file or a Hub id.
        scale: one of the recipe's scales [small, or its first].
        device: for a causal LM: a phone or board by name; here: this machine.
        options: the recipe's, by the names of its parameters; of a group of options also a dict of those that are
            not its defaults (`prune={"num_attention_heads": 8}`).

    Returns: the plan: `ok`, `rows`, `verdicts`, `advice`; `print` gives the table.

    Raises:
        UserError: an option is refused, or the size of a model is not known without the network.
    """
    from hfcompress.runs import prepare

    found, options = chosen(recipe, data, options)
    with prepare.scale_of(found, scale or found.default_scale, None) as (of_scale, _):
        return prepare.planned(found.recipe, prepare.resolved(found, of_scale, options), device)


def chosen(recipe: Recipe, data: str | Path | None, options: dict[str, Any]) -> "tuple[FoundRecipe, dict[str, Any]]":
    """Return what `plan` and `run` are asked for: a recipe, and its options with the model and the data in them."""
    from hfcompress.runs.of_model import names_a_model, recipe_of_model, with_data
    from hfcompress.runs.recipes import find_recipe

    if names_a_model(recipe):
        found, taken = recipe_of_model(str(recipe))
        if twice := [name for name in taken if name in options]:
            raise OptionError(f".{twice[0]}", "the model is given as the first argument; leave this out")
        options = taken | options
    else:
        found = find_recipe(recipe)
    return found, with_data(found, options, data)


def run(
    recipe: Recipe,
    *,
    data: str | Path | None = None,
    scale: str | None = None,
    run_dir: str | Path | None = None,
    **options: Any,
) -> "Result":
    """Run a recipe: make its models, measure them, and hold them against the budget. What is done before is kept.

    Args:
        recipe: see `plan`.
        data: the data set of the recipe's task: a folder, a file or a Hub id.
        scale: one of the recipe's scales, or smoke: the whole recipe on tiny models [small, or its first].
        run_dir: where the run lies [runs/RECIPE-SCALE].
        options: see `plan`.

    Returns: the run: `ok`, `table`, `model` (the folder of the compressed model), `report`.

    Raises:
        UserError: an option is refused, the plan is sure that the budget cannot hold, or a stage cannot go on.
    """
    from hfcompress.runs import prepare
    from hfcompress.runs.result import Result

    found, options = chosen(recipe, data, options)
    scale = scale or found.default_scale
    folder = prepare.run_folder(run_dir, found.name, scale)
    prepare.refuse_other_recipe(folder, found.name)  # before anything is written there
    with prepare.scale_of(found, scale, folder) as (of_scale, held):
        resolved = prepare.resolved(found, of_scale, options)
        return Result(folder, prepare.executed(found, resolved, scale, folder, held))


def quantize(
    model: str | Path,
    *,
    bits: int = 4,
    format: Literal["transformers", "onnx", "gguf"] = "transformers",
    algorithm: Literal["rtn", "hqq", "gptq", "awq", "autoround"] | None = None,
    group_size: int | None = None,
    data: "str | Path | CausalLM | None" = None,
    run_dir: str | Path | None = None,
) -> Path:
    """Quantize the weights of a causal LM, and write them in a format that stock tools load. Nothing is measured.

    Args:
        model: a folder, or a Hub id (org/name@revision).
        bits: of every matrix.
        format: transformers (compressed-tensors), onnx (onnxruntime-genai) or gguf (llama.cpp).
        algorithm: gptq, awq and autoround read the data [gptq where data is given, else hqq].
        group_size: columns that share a scale; 0 is the whole row [128; 32 in gguf].
        data: texts for calibration, and for a check of the result: a folder, a file, a Hub id, or a `CausalLM`, which
            says the length and the number of windows, too [licence texts].
        run_dir: where the folders of the stages lie [runs/quantize-NAME].

    Returns: the folder of the quantized model.

    Raises:
        UserError: it is no causal LM that can be quantized so.
    """
    from hfcompress.runs.quantize import quantize as quantized

    return quantized(str(model), bits, format, algorithm, group_size, data, run_dir)


def predict(
    model: str | Path, texts: str | Iterable[str] = (), *, images: Iterable[str | Path] = ()
) -> list[dict[str, Any]]:
    """Label texts or images with a compressed model, in order.

    Args:
        model: a run, whose compressed model is meant, the folder of a model, or org/name of one that was pushed.
        texts: one text, or any number of them.
        images: image files.

    Returns: for each a dict with `label` and `score`, as transformers' pipeline has them.

    Raises:
        UserError: the model labels no such thing, or an image cannot be read.
    """
    from hfcompress.hub.candidate import candidate_of
    from hfcompress.runs.labeling import labeled_images, labeled_texts, require_files, require_kind

    lines, files = [texts] if isinstance(texts, str) else list(texts), [Path(image) for image in images]
    if bool(lines) == bool(files):
        raise UserError("give one of texts and images")
    with candidate_of(str(model)) as (folder, max_length):
        from hfcompress.formats.runtimes.predictor import open_predictor

        require_kind(folder, str(model), texts=bool(lines), images=bool(files))
        require_files(files, "images")
        predictor = open_predictor(folder)
        if files:
            answered = labeled_images(predictor, map(str, files), "images", named=True)
        else:
            answered = labeled_texts(predictor, iter(lines), max_length)
        return [answer for _, answer in answered]


def evaluate(
    run: str | Path,
    tasks: Iterable[str],
    *,
    models: Iterable[str] = (),
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    threads: int | None = None,
) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness on the models of a run (extra lm-eval), and write its eval.json.

    Args:
        run: the run of a causal LM, or a model's folder.
        tasks: names of tasks of lm-evaluation-harness, or of the files in `include_path`.
        models: which of the run's models [the reference and every delivered format].
        include_path: a folder of task files of your own.
        num_fewshot: examples before each question [the task's own number].
        limit: documents a task [all].
        apply_chat_template: ask in the model's chat template.
        threads: of the processor [all].

    Returns: model -> task -> metric -> value.

    Raises:
        UserError: the run or a task is not known.
    """
    from hfcompress.runs import harness

    require_counts(0, num_fewshot=num_fewshot)
    require_counts(limit=limit, threads=threads)
    return harness.evaluate(
        Path(run),
        (tasks,) if isinstance(tasks, str) else tuple(tasks),
        tuple(models),
        include_path=None if include_path is None else Path(include_path),
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=apply_chat_template,
        threads=threads,
    )


def export(
    model: str | Path,
    to: Literal["onnx", "litert", "tensorrt-onnx"],
    out: str | Path | None = None,
    *,
    bits: int = 32,
    images: str | Path | None = None,
    litert_python: str | Path | None = None,
) -> "Delivered":
    """Write a run's compressed model as ONNX, LiteRT (.tflite), or ONNX for TensorRT.

    Args:
        model: a run, whose compressed model is meant, or the folder of one model.
        to: onnx (as it is), litert (image classifiers, by litert-torch) or tensorrt-onnx (symmetric Q/DQ, checked).
        out: a new folder [NAME-FORMAT].
        bits: of a LiteRT model: 32, or 8 calibrated on `images`.
        images: a folder or parquet file of images, for calibration and for comparing LiteRT with torch [the run's].
        litert_python: the Python of an environment that has litert-torch, where this one has not.

    Returns: `folder`, and `lines` that a reader must know of it.

    Raises:
        UserError: the model cannot be exported so, or the folder is there already.
    """
    from hfcompress.runs import delivery
    from hfcompress.runs.own_data import images_of, require_options

    require_options(to, bits, images, litert_python)
    return delivery.export(
        str(model),
        to,
        Path(out) if out is not None else Path(f"{Path(model).expanduser().resolve().name}-{to}"),
        bits=bits,
        images=images_of(str(model), None if images is None else Path(images)),
        python=None if litert_python is None else Path(litert_python),
    )


def check(run: str | Path) -> "Checked":
    """Compute the verdicts of a run again from what its stages recorded, and compare its files with those measured.

    Args:
        run: the folder of a finished run.

    Returns: `ok`, `lines` (a sentence for every limit), `report`, `disagreement`; `print` gives the lines.

    Raises:
        UserError: it is no finished run, or a file is not the one that was measured.
    """
    from hfcompress.runs.result import checked

    return checked(Path(run))


def push(
    run: str | Path,
    hub_model_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    allow_failed: bool = False,
    license: str | None = None,
) -> str:
    """Upload a run's models to the Hub, with the evidence.

    Args:
        run: the folder of a run.
        hub_model_id: where to: org/name.
        private: make the repository private, if it is made now.
        revision: the branch to push to [main].
        create_pr: open a pull request instead of pushing.
        allow_failed: push although the budget does not hold; the card says so first.
        license: of the result, where the base model names none.

    Returns: the address of what was pushed.

    Raises:
        UserError: the budget does not hold, the run was changed, or the Hub refuses.
    """
    from hfcompress.hub.push import push as upload
    from hfcompress.hub.release import release

    found = release(Path(run), hub_model_id, license, allow_failed=allow_failed)
    return upload(found, hub_model_id, private=private, revision=revision, create_pr=create_pr)


def verify(model: str | Path, *, data: str | None = None, recipe: Recipe | None = None) -> "list[Claim]":
    """Fetch a pushed model and prove its evidence again.

    Args:
        model: org/name, org/name@revision, or a folder that holds such a repository.
        data: other data for the accuracy [what the run was measured on].
        recipe: the file or function of the recipe, where it is none that is installed.

    Returns: a claim for every file and figure; `ok` is False where it is not what is claimed.

    Raises:
        UserError: it is not a repository that `push` made, or its recipe or data is not known here.
    """
    from hfcompress.folders import fetch
    from hfcompress.hub.verify import verify as verified
    from hfcompress.runs.lock import LOCK, locked_task, read_lock
    from hfcompress.runs.own_data import default_task
    from hfcompress.runs.recipes import find_recipe, load_recipe

    folder = fetch.fetch(str(model))
    locked = read_lock(folder / LOCK)
    found = load_recipe(locked["recipe"]) if recipe is None else find_recipe(recipe)
    if found.name != locked["recipe"]:
        raise OptionError(".recipe", "{model} was made by {name}", found.name, model=model, name=locked["recipe"])
    task = locked_task(locked, default_task(found), data)
    return verified(folder, task, str(locked.get("data")))
