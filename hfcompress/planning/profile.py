"""profile: where a model's parameters, bytes and time are, by groups of modules.

Parameters and bytes come from the files' headers, so that they are what is shipped. Time is measured: in torch by
hooks around every module (a module's own time is its time less its children's), in onnxruntime by its own profiler.
"""

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hfcompress.architectures import ENCODERS
from hfcompress.architectures.kinds import is_click_model
from hfcompress.architectures.loading import load_whole, says_what_does_not_fit
from hfcompress.architectures.models import check_config, check_folder, load
from hfcompress.architectures.patches import read_edits
from hfcompress.architectures.pretrained import stock_class, stock_config
from hfcompress.errors import UserError
from hfcompress.folders.guard import read_config
from hfcompress.formats import format_of
from hfcompress.formats.memory import pixels_read
from hfcompress.formats.size import named_initializers, safetensors_parts, shipped_files
from hfcompress.report.console import threads_in_words

if TYPE_CHECKING:
    import torch

OTHER = "(no module)"
BODIES = {"model", *(encoder.body for encoder in ENCODERS.values())}  # below them the second word says little
WARM_UP = 2


@dataclass
class Group:
    """Modules of one kind: `encoder.layer.*.attention` is that of all layers."""

    name: str
    parameters: int = 0
    bytes: int = 0
    milliseconds: float | None = None
    """Of one forward pass; None where nothing was timed."""


class Timed(NamedTuple):
    """What a pass took."""

    own: dict[str, float]
    """Milliseconds of each module's or node's own work."""
    total: float
    runtime: str
    size: dict[str, int]
    """Of the request: `length` in tokens, or `height` and `width` of an image; nothing of rows."""


@dataclass(frozen=True)
class Profile:
    """Groups in the order of their bytes, and the totals."""

    format: str
    runtime: str | None
    parameters: int
    bytes: int
    milliseconds: float | None
    groups: list[Group]
    request: dict[str, int]
    """Batch, size (see `Timed`) and threads of what was timed."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def profile(folder: Path, *, batch: int, length: int, threads: int, runs: int, timed: bool = True) -> Profile:
    """Profile the model in a folder.

    Args:
        batch, length: of the request that is timed: texts and tokens, images, or rows of a click log.
        runs: timed passes after two that warm up; the median counts.

    Raises:
        UserError: the folder holds no model that is known here, or it cannot be run on such a request.
    """
    found = format_of(folder)
    check_config(folder)
    groups: dict[str, Group] = defaultdict(lambda: Group(""))
    times = {"onnxruntime": onnx_times, "torch": torch_times}.get(found.runtime)
    if times is None:
        raise UserError(
            f"{folder} is {found.name.upper()}, which {found.runtime} runs and no profiler here reads; profile the "
            "model it was written from"
        )
    files = stored_parts(folder)
    for name, parameters, size in files:
        group = groups[group_of(name)]
        group.parameters += parameters
        group.bytes += size
    took = None
    if timed and found.stock:
        took = times(folder, batch, length, threads, runs)
        for name, milliseconds in took.own.items():
            group = groups[group_of(name)]
            group.milliseconds = (group.milliseconds or 0.0) + milliseconds
    for name, group in groups.items():
        group.name = name
    ordered = sorted(groups.values(), key=lambda g: (-g.bytes, -(g.milliseconds or 0.0)))
    return Profile(
        found.word,
        took.runtime if took else None,
        sum(group.parameters for group in ordered),
        sum(group.bytes for group in ordered),
        took.total if took else None,
        ordered,
        {"batch": batch, **(took.size if took else {}), "threads": threads},
    )


def group_of(name: str) -> str:
    """The group of a parameter, module or node by its name.

    Numbers become *; of a layer's parts the first word after the last number stays, of anything else two words:
    bert.encoder.layer.3.attention.self.query.weight is bert.encoder.layer.*.attention, and
    bert.embeddings.word_embeddings.weight is bert.embeddings.word_embeddings.
    """
    if name.startswith("("):
        return name
    name = re.sub(r"_(u?int8|scale|zero_point|dequantized|rows|row_scales|float)$", "", name.removeprefix("fused "))
    parts = [part for part in re.split(r"[./]", name) if part]
    parts = [part for i, part in enumerate(parts) if i == 0 or part != parts[i - 1]]  # a scope names itself twice
    parts = parts[1:] if parts[:1] == ["network"] else parts  # what the export wraps a model in
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    if numbers:
        keep = numbers[-1] + 2 if len(parts) > numbers[-1] + 2 else numbers[-1] + 1
        if len(parts) == numbers[-1] + 2 and parts[-1] not in ("weight", "bias"):
            keep = len(parts)
        return ".".join("*" if part.isdigit() else part for part in parts[:keep])
    while len(parts) > 1 and parts[-1] in ("weight", "bias"):
        parts.pop()
    return ".".join(parts[:3] if parts[:1] and parts[0] in BODIES else parts[:2]) or OTHER


def stored_parts(folder: Path) -> list[tuple[str, int, int]]:
    """(tensor, parameters, bytes) of everything in the folder; a file that is no weights counts by its name."""
    found: list[tuple[str, int, int]] = []
    for file in shipped_files(folder):
        tensors = safetensors_parts(file) if file.suffix == ".safetensors" else []
        if file.suffix == ".onnx":
            tensors = onnx_parts(file)
        found += tensors
        inside = 0 if file.suffix == ".onnx_data" or file.name.endswith(".onnx.data") else file.stat().st_size
        left = inside - sum(size for _, _, size in tensors)
        if left > 0:
            found.append(("(graph and headers)" if tensors else "(config and tokenizer)", 0, left))
    if not any(parameters for _, parameters, _ in found):
        raise UserError(f"{folder} has no weights (*.safetensors or *.onnx)")
    return found


def onnx_parts(file: Path) -> list[tuple[str, int, int]]:
    """Initializers, by their own name where it says a module, else by the node that reads them."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(file), load_external_data=False)
    except DecodeError as error:
        raise UserError(f"{file} is damaged or cut short ({error}); fetch or make it again") from None
    readers = {name: node for node in reversed(model.graph.node) for name in node.input}

    def reader(name: str) -> str:
        """The node that a weight is for: behind its DequantizeLinear, where it has one."""
        node = readers.get(name)
        while node is not None and node.op_type == "DequantizeLinear" and node.output[0] in readers:
            node = readers[node.output[0]]
        return OTHER if node is None else node.name or OTHER

    return [
        (
            name if "." in name or "/" in name else reader(name),
            elements if is_weight else 0,
            elements * bits // 8,
        )
        for name, (elements, _, bits, is_weight) in named_initializers(file)
    ]


def torch_times(folder: Path, batch: int, length: int, threads: int, runs: int) -> Timed:
    """Of each module in a forward pass, and of the pass; medians."""
    import numpy as np
    import torch

    network, request = torch_request(folder, batch, length)
    clock = ModuleClock(network)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for _ in range(WARM_UP):
                network(**request)
            passes = []
            for _ in range(runs):
                clock.own.clear()
                begun = time.perf_counter()
                network(**request)
                passes.append((1e3 * (time.perf_counter() - begun), dict(clock.own)))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"{folder} cannot be run on {batch} x {length} ({str(error).splitlines()[0][:120]}); give another "
            "--batch or --sequence-length, or --no-timed"
        ) from None
    finally:
        torch.set_num_threads(before)
        clock.remove()
    names = {name for _, own in passes for name in own}
    total = float(np.median([whole for whole, _ in passes]))
    own_of = {n: float(np.median([own.get(n, 0.0) for _, own in passes])) for n in names}
    return Timed(own_of, total, "torch", size_of(request))


def size_of(request: dict[str, Any]) -> dict[str, int]:
    """What of a request's shape is said beside its batch (see `Timed`)."""
    if (pixels := request.get("pixel_values")) is not None:
        return {"height": pixels.shape[-2], "width": pixels.shape[-1]}
    return {"length": request["input_ids"].shape[-1]} if "input_ids" in request else {}


class ModuleClock:
    """Hooks that add up each module's own milliseconds: its time less its children's."""

    def __init__(self, network: "torch.nn.Module") -> None:
        self.own: dict[str, float] = defaultdict(float)
        self.open: list[list[float]] = []  # when a module began, and what its children took
        self.handles = []
        for name, module in network.named_modules():
            self.handles.append(module.register_forward_pre_hook(self._begin))
            self.handles.append(module.register_forward_hook(self._end(name or OTHER)))

    def _begin(self, *_: Any) -> None:
        self.open.append([time.perf_counter(), 0.0])

    def _end(self, name: str) -> Callable[..., None]:
        def end(*_: Any) -> None:
            begun, children = self.open.pop()
            took = 1e3 * (time.perf_counter() - begun)
            self.own[name] += took - children
            if self.open:
                self.open[-1][1] += took

        return end

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def torch_request(folder: Path, batch: int, length: int) -> "tuple[torch.nn.Module, dict[str, torch.Tensor]]":
    """The network in fp32 and a request for it: tokens, an image, or rows of a click log."""
    import torch

    random = torch.Generator().manual_seed(0)
    if is_click_model(read_config(folder)):
        from hfcompress.architectures.click_model import load_click_model

        clicks = load_click_model(folder)
        ids = {n: torch.randint(0, rows, (batch,), generator=random) for n, rows in clicks.columns.items()}
        return clicks, ids | {"dense": torch.zeros(batch, clicks.config["features"])}
    check_folder(folder)
    with says_what_does_not_fit(folder):
        config, edited = stock_config(folder), read_edits(folder)  # from_pretrained would give edited ones new weights
    made = stock_class(config)
    network = load(folder) if edited else load_whole(made, folder, new_head=made.__name__ == "AutoModel").eval()
    if network.main_input_name == "pixel_values":
        size = pixels_read(folder, config)
        return network, {"pixel_values": torch.zeros(batch, getattr(config, "num_channels", 3), *size)}
    return network, token_request(network, batch, length, random)


def token_request(network: Any, batch: int, length: int, random: "torch.Generator") -> "dict[str, torch.Tensor]":
    """Random ordinary tokens with one end token, or the spectrum of a sound; for a decoder beside, its first token."""
    import torch

    config, end = network.config, network.config.eos_token_id
    rows = config.get_text_config().vocab_size
    ids = torch.randint(0, rows, (batch, length), generator=random)
    for special in (config.pad_token_id, end):
        ids[ids == special] = rows // 2
    if isinstance(end, int) and end < rows:
        ids[:, -1] = end  # where some classifiers read the class, of every text once
    request = {"input_ids": ids}
    if network.main_input_name == "input_features":
        frames = 2 * config.max_source_positions  # of sound: mel bands, two frames a position
        request = {"input_features": torch.zeros(batch, config.num_mel_bins, frames)}
    if config.is_encoder_decoder:
        request["decoder_input_ids"] = torch.full((batch, 1), config.decoder_start_token_id or 0)
    return request


def onnx_times(folder: Path, batch: int, length: int, threads: int, runs: int) -> Timed:
    """The same of a graph, by onnxruntime's profiler: milliseconds of each node (mean of the runs)."""
    import numpy as np
    import onnxruntime

    file = next(iter(sorted(folder.glob("*.onnx"))))
    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is said below
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            request = onnx_request(session, batch, length)
            totals = []
            for _ in range(WARM_UP + runs):
                begun = time.perf_counter()
                session.run(None, request)
                totals.append(1e3 * (time.perf_counter() - begun))
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise UserError(
                f"{file} cannot be run on {batch} x {length} ({str(error).splitlines()[0][:120]}); give another "
                "--batch or --sequence-length, or --no-timed"
            ) from None
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[node_name(event)].append(event["dur"] / 1e3)
    share = runs / (WARM_UP + runs)  # every pass runs every node equally often, the first ones are left out
    own = {name: sum(times[len(times) - round(share * len(times)) :]) / runs for name, times in spent.items()}
    return Timed(own, float(np.median(totals[WARM_UP:])), "onnxruntime", size_of(request))


def node_name(event: dict[str, Any]) -> str:
    """A node's name where it says a module; what optimization made anew goes by its operator."""
    name = event["name"].removesuffix("_kernel_time")
    kind = event["args"].get("op_name", "node")
    return name if re.search(r"[./].*[./]", name) or name.startswith("tables.") else f"(operator {kind})"


def onnx_request(session: Any, batch: int, length: int) -> dict[str, Any]:
    """Arrays for every input: symbolic dimensions by their name, a cache empty."""
    import numpy as np

    kinds = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32,
             "tensor(float16)": np.float16, "tensor(int8)": np.int8}  # fmt: skip
    found = {}
    for entry in session.get_inputs():
        shape = [
            axis if isinstance(axis, int) else batch if "batch" in str(axis) else 0 if "past" in str(axis) else length
            for axis in entry.shape
        ]
        found[entry.name] = np.ones(shape, dtype=kinds[entry.type])
        if entry.name == "position_ids":
            found[entry.name] = np.broadcast_to(np.arange(shape[-1]), shape).astype(kinds[entry.type])
        elif entry.name == "token_type_ids":
            found[entry.name] = np.zeros(shape, dtype=kinds[entry.type])
    return found


def as_text(found: Profile) -> str:
    """The table."""
    lines = [f"{'group':56} {'parameters':>13} {'MB':>9} {'bytes':>6} {'ms':>9} {'time':>6}"]
    spent = sum(group.milliseconds or 0.0 for group in found.groups) or 1.0
    for group in found.groups:
        own = group.milliseconds
        time_share = "" if own is None else f"{own:9.3f} {own / spent:6.1%}"
        lines.append(
            f"{group.name[-56:]:56} {group.parameters:13,} {group.bytes / 1e6:9.3f} {group.bytes / found.bytes:6.1%} "
            f"{time_share}"
        )
    whole = "" if found.milliseconds is None else f"{found.milliseconds:9.3f}"
    lines.append(f"{'all':56} {found.parameters:13,} {found.bytes / 1e6:9.3f} {1:6.1%} {whole}")
    if found.milliseconds is not None:
        request = found.request
        size = f", length {request['length']}" if "length" in request else ""
        if "height" in request:
            size = f", images of {request['height']} x {request['width']} pixels"
        lines.append(f"{found.runtime}, batch {request['batch']}{size}, {threads_in_words(request['threads'])}")
    return "\n".join(line.rstrip() for line in lines)
