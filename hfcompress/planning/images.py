"""plan for image classifiers: bytes and work from the shapes, SRAM and flash where the budget limits them."""

import dataclasses
from typing import TYPE_CHECKING, Any

from hfcompress.architectures import IMAGE_MODELS
from hfcompress.budget import ImageBudget, predicted_verdicts
from hfcompress.planning.image_graph import images_ms
from hfcompress.planning.image_spec import ImageShape

if TYPE_CHECKING:
    from hfcompress.evaluation.measure import Measuring
    from hfcompress.planning.plan import Compared, Plan, Planned

ON_CHIP = ("sram_kb", "flash_kb")
FLASH_CHANNEL_BYTES = 8  # int32 bias and float32 scale
KB = 1024


def compare_images(plan: "Plan", asked: "Compared") -> None:
    """Fill a plan's rows, verdicts and advice."""
    candidate, budget = asked.candidate, asked.budget
    times = milliseconds(asked.models, asked.measure)
    plan.rows = [
        {"name": model.name, "stage": model.stage, "format": model.shape.format}
        | model.shape.predicted(times.get(model.name), times.get(asked.latency_reference.name))
        | {"shape": dataclasses.asdict(model.shape.with_(edits=()))}
        for model in asked.models
    ]
    shape: ImageShape = candidate.shape
    row = next(row for row in plan.rows if row["name"] == candidate.name)
    plan.verdicts = predicted_verdicts(budget, candidate.name, row)
    plan.advice = work(plan.rows, shape)
    if limited := budget.on_chip:
        on_chip(plan, candidate.name, shape, limited)
    if shape.is_pruned and shape.uniform:
        for verdict in plan.verdicts:
            verdict["exact"] = False  # whole channels go: a run is not refused for it
    elif shape.is_pruned:
        left_open(plan.verdicts, shape)


def milliseconds(models: "tuple[Planned, ...]", measure: "Measuring") -> dict[str, float]:
    """What a request takes by model, those of the same layers timed once; nothing of what is not in ONNX."""
    wanted = {model.name: (model.shape.timed, model.shape.weight_bits < 32) for model in models}
    kinds: dict[str, str] = {}  # a model -> the one that is timed for it
    for name, network in wanted.items():
        if network[0] is not None:
            kinds[name] = next((other for other in kinds.values() if wanted[other] == network), name)
    if not kinds:
        return {}
    size = models[0].shape.size
    times = images_ms({name: wanted[name] for name in kinds.values()}, size, measure.batch, measure.threads)
    return {name: times[kind] for name, kind in kinds.items()}


def left_open(verdicts: list[dict[str, Any]], shape: ImageShape) -> None:
    """Where the data decide what pruning leaves: beside the most that it can be, the least, `at_least`.

    No limit fails that lies between them.
    """
    left = shape.at_least()
    flash = left.weights + FLASH_CHANNEL_BYTES * left.channel_share * shape.network.channels
    least = shape.least() | {"flash_kb": flash / KB}
    for verdict in verdicts:
        if verdict["limit"] in least and verdict["predicted"] is not None:
            verdict["at_least"] = least[verdict["limit"]]
            if verdict["ok"] is False and verdict["at_least"] <= verdict["allowed"]:
                verdict["ok"] = None


def work(rows: list[dict[str, Any]], candidate: ImageShape) -> list[str]:
    """Multiply-accumulates of every model, and what a pruned one's figures stand for."""
    figures = ", ".join(f"{row['name']} {row['mmacs']:.1f}" for row in rows)
    height, width = candidate.size
    lines = [f"Millions of multiply-accumulates an image of {height}x{width}: {figures}."]
    if candidate.is_pruned and candidate.uniform:
        lines.append(f"Pruned to {candidate.keep_flops:.0%} of the FLOPs, the same share of every layer's channels.")
    elif candidate.is_pruned:
        ranges = (f"{row['name']} {row['at_least']['disk_mb']:.2f} to {row['disk_mb']:.2f}"
                  for row in rows if "at_least" in row)  # fmt: skip
        lines.append(
            f"Pruned to {candidate.keep_flops:.0%} of the FLOPs, which can leave, in MB: {', '.join(ranges)}. The "
            "data decide: late layers have most of the bytes for their FLOPs, early ones the fewest."
        )
    return lines


def on_chip(plan: "Plan", name: str, shape: ImageShape, budget: ImageBudget) -> None:
    """Verdicts on SRAM and flash of the candidate's int8 graph, and which widths and resolutions fit."""
    limits = {limit: getattr(budget, limit) for limit in ON_CHIP if getattr(budget, limit) is not None}
    architecture = IMAGE_MODELS.get(shape.config.get("model_type", ""))
    if architecture is not None and architecture.on_chip:
        from hfcompress.planning.devices.microcontroller import add_to_plan

        config = shape.config
        if shape.uniform and not shape.edits:  # else as before it is pruned: the most that can be left
            width = round(float(config.get("depth_multiplier", 1.0)) * shape.width_share, 3)
            config = config | {"depth_multiplier": width}
        add_to_plan(plan, name, config, shape.size[0], budget, list(shape.edits))
        return
    kind = shape.config.get("model_type")
    plan.advice.append(f"SRAM and flash of a {kind} cannot be predicted, only a MobileNetV2's.")
    plan.verdicts += [
        {"limit": limit, "candidate": name, "allowed": allowed, "predicted": None, "ok": None}
        for limit, allowed in limits.items()
    ]
