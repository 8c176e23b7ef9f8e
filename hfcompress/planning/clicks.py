"""plan for click models: bytes and memory from the shape, time from the same graph with fewer rows."""

from typing import TYPE_CHECKING

from hfcompress.budget import predicted_verdicts

if TYPE_CHECKING:
    from hfcompress.planning.plan import Compared, Plan


def compare_clicks(plan: "Plan", asked: "Compared") -> None:
    """Fill a plan's rows and verdicts."""
    from hfcompress.planning.click_latency import slates_ms  # onnxruntime

    name = asked.candidate.name
    graphs = {model.name: model.shape.config for model in asked.models if model.shape.format == "onnx"}
    times = slates_ms(graphs, asked.task.slate, asked.measure.threads)
    plan.rows = [
        {"name": model.name, "stage": model.stage, "format": model.shape.format}
        | model.shape.predicted(times.get(model.name), times.get(asked.latency_reference.name))
        | {"shape": model.shape.config}
        for model in asked.models
    ]
    plan.verdicts = predicted_verdicts(asked.budget, name, plan.predictions[name])
