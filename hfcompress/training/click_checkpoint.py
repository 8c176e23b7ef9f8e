"""Where a click model's training stands, in one file: a killed stage goes on there and ends in the same bits.

safetensors, as every weight is: the network, what each optimizer remembers of each parameter, and the losses so far.
Batches and dropped ids follow from the seed and the step (training/clicks.py), so that no generator has to be kept.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfcompress.folders.files import whole_path

if TYPE_CHECKING:
    import torch

    from hfcompress.architectures.click_model import ClickModel

FILE = "click_checkpoint.safetensors"


def save_checkpoint(
    work: Path, step: int, network: "ClickModel", optimizers: "list[torch.optim.Optimizer]", losses: list[float]
) -> None:
    """Write the state after `step` steps; a kill meanwhile leaves the one before it."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    numbers: dict[str, int] = {}
    for i, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                key = f"optimizer.{i}.{parameter}.{name}"
                if isinstance(value, torch.Tensor):
                    tensors[key] = value
                else:
                    numbers[key] = value  # SparseAdam counts its steps in an int
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    work.mkdir(parents=True, exist_ok=True)
    metadata = {"step": str(step), "numbers": json.dumps(numbers)}
    with whole_path(work / FILE) as part:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, str(part), metadata)


def load_checkpoint(
    work: Path, network: "ClickModel", optimizers: "list[torch.optim.Optimizer]"
) -> tuple[int, list[float]]:
    """Take over what was saved, in place; the steps that were done, and their losses: 0 and none without a file."""
    from safetensors import safe_open

    if not (work / FILE).is_file():
        return 0, []
    with safe_open(str(work / FILE), framework="pt") as file:
        metadata = file.metadata()
        tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network.load_state_dict({n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")})
    remembered = tensors | json.loads(metadata["numbers"])
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Any]] = {}
        for key, value in remembered.items():
            if key.startswith(f"optimizer.{i}."):
                parameter, name = key.removeprefix(f"optimizer.{i}.").split(".")
                state.setdefault(int(parameter), {})[name] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return int(metadata["step"]), tensors["losses"].tolist()
