"""plan for image classifiers: bytes and work from the shapes, SRAM and flash where the budget limits them."""

import dataclasses
from typing import TYPE_CHECKING, Any

from hfcompress.budget import Budget, ImageBudget
from hfcompress.image_shape import ImageShape

if TYPE_CHECKING:
    from hfcompress.plan import Plan, Planned

ON_CHIP = ("sram_kb", "flash_kb")


def compare_images(
    plan: "Plan", models: "tuple[Planned, ...]", candidate: "Planned", budget: Budget
) -> dict[str, Any]:
    """Fill a plan's rows, verdicts and advice; time and memory of a process cannot be predicted."""
    from hfcompress.plan import predicted_verdicts

    plan.rows = [
        {"name": model.name, "stage": model.stage, "format": model.shape.format}
        | model.shape.predicted()
        | {"shape": dataclasses.asdict(model.shape)}
        for model in models
    ]
    shape: ImageShape = candidate.shape
    plan.verdicts = predicted_verdicts(budget, candidate.name, plan.predictions[candidate.name])
    for verdict in plan.verdicts:
        # A run is not refused for what pruning may turn out to leave.
        verdict["exact"] = shape.keep_flops == 1
    plan.advice = work(plan.rows, shape)
    if isinstance(budget, ImageBudget):
        on_chip(plan, candidate.name, shape, budget)
    return {"ok": plan.ok}


def work(rows: list[dict[str, Any]], candidate: ImageShape) -> list[str]:
    """Multiply-accumulates of every model, and what a pruned one's figures stand for."""
    figures = ", ".join(f"{row['name']} {row['mmacs']:.1f}" for row in rows)
    height, width = candidate.size
    lines = [f"Millions of multiply-accumulates an image of {height}x{width}: {figures}."]
    if candidate.keep_flops < 1:
        lines.append(
            f"Pruned to {candidate.keep_flops:.0%} of the FLOPs: bytes as if every layer lost the same share of its "
            "channels; which ones go is decided by the data."
        )
    return lines


def on_chip(plan: "Plan", name: str, shape: ImageShape, budget: ImageBudget) -> None:
    """Verdicts on SRAM and flash of the candidate's int8 graph, and which widths and resolutions fit."""
    limits = {limit: getattr(budget, limit) for limit in ON_CHIP if getattr(budget, limit) is not None}
    if not limits:
        return
    if shape.config.get("model_type") == "mobilenet_v2":
        from hfcompress.microcontroller import add_to_plan

        width = round(float(shape.config.get("depth_multiplier", 1.0)) * shape.width_share, 3)
        add_to_plan(plan, name, shape.config | {"depth_multiplier": width}, shape.size[0], budget)
        return
    kind = shape.config.get("model_type")
    plan.advice.append(f"SRAM and flash of a {kind} cannot be predicted, only a MobileNetV2's.")
    plan.verdicts += [
        {"limit": limit, "candidate": name, "allowed": allowed, "predicted": None, "ok": None}
        for limit, allowed in limits.items()
    ]
