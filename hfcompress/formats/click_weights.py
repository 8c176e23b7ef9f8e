"""A torch click model as model.onnx: its tensors as they are stored, its graph by formats/onnx_clicks.py."""

from pathlib import Path

from torch import nn

from hfcompress.architectures.click_model import ClickModel, Towers
from hfcompress.formats.onnx_clicks import Array, write_click_graph
from hfcompress.formats.stored_tables import stored_table
from hfcompress.ops.fake_quant import FakeQuantLinear, integer_rows, row_scales


def export_clicks(network: ClickModel, out: Path) -> None:
    """Write model.onnx."""
    tables = {name: stored_table(table) for name, table in network.tables.items()}
    write_click_graph(network.config, tables, tower_arrays(network.towers), out / "model.onnx")


def tower_arrays(towers: Towers) -> dict[str, Array]:
    """Weights and biases by name, in int8 with the scales and the ranges of the inputs beside them."""
    found: dict[str, Array] = {}
    for name, layer in towers.named_modules():
        if not isinstance(layer, nn.Linear | FakeQuantLinear):
            continue
        found |= {f"{name}.weight": layer.weight.detach().numpy(), f"{name}.bias": layer.bias.detach().numpy()}
        if isinstance(layer, FakeQuantLinear):
            quantizer = layer.of_input
            found |= {
                f"{name}.weight": integer_rows(layer.weight).numpy(),
                f"{name}.weight_scale": row_scales(layer.weight).numpy(),
                f"{name}.input_scale": quantizer.scale.detach()[0].numpy(),
                f"{name}.input_zero_point": quantizer.zero_point[0].byte().numpy(),
            }
    return found
