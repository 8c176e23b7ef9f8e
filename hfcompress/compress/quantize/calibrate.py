"""calibrate: how much each output of each layer matters, and how large its inputs are, on calibration text."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hfcompress.architectures.models import load_tokenizer
from hfcompress.errors import OptionError, require_numbers
from hfcompress.stage import TENSORS
from hfcompress.tasks.text_generation import CausalLM

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hfcompress.architectures.decoder_spec import LanguageShape
    from hfcompress.architectures.decoder_stack import DecoderStack, HiddenStates

CALIBRATION = "calibration.safetensors"
HEAD_TOKENS = 512


@dataclass(frozen=True)
class Calibrate:
    """One pass forward and one backward over the layers, each loaded alone: ops/sensitivity.py says what is kept."""

    windows: int = 16
    """Windows of the task's calibration text that are used."""
    seed: int = 0

    training: ClassVar[bool] = False
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = TENSORS

    def __post_init__(self) -> None:
        require_numbers(self)
        if self.windows < 1:
            raise OptionError("windows", "must be at least 1", self.windows)

    def __call__(self, out: Path, *, model: Path, task: CausalLM) -> dict[str, Any]:
        """Write calibration.safetensors: `<module>.rows` and `<module>.columns` of every matrix."""
        from hfcompress.architectures.checkpoint import Checkpoint, write_shard
        from hfcompress.architectures.decoder_stack import DecoderStack, HiddenStates

        stack = DecoderStack(Checkpoint(model))
        ids = task.calibration(load_tokenizer(model))[: self.windows]
        size = int(stack.checkpoint.config["hidden_size"])
        states = [HiddenStates(out / "work" / f"hidden-{i}", (*ids.shape, size)) for i in range(stack.layers + 1)]
        gradients = HiddenStates(out / "work" / "gradients", (*ids.shape, size))
        if not states[0].whole():
            states[0].write(stack.embed(part) for part in parts(ids, states[0].windows_a_batch))
        for index in range(stack.layers):
            if not states[index + 1].whole():
                forward(stack, index, states[index], states[index + 1])
        found = self._head(stack, states[-1], gradients)
        for index in reversed(range(stack.layers)):
            found |= self._layer(stack, index, states[index], gradients)
        found |= embedding(ids, gradients, stack)
        write_shard(out / CALIBRATION, found)
        return {"windows": len(ids), "tokens": int(ids.size)}

    def _head(self, stack: "DecoderStack", states: "HiddenStates", gradients: "HiddenStates") -> "dict[str, Tensor]":
        """lm_head's rows and columns; the gradients of what goes into the last norm are written."""
        import torch

        norm, head, sums, tokens = stack.norm(), stack.head(), dict[str, Any](), 0

        def backward() -> Any:
            nonlocal tokens
            for number, hidden in enumerate(states.batches()):
                hidden.requires_grad_(True)
                normed = norm(hidden).flatten(0, 1)
                parts = normed.detach().split(HEAD_TOKENS)
                of_normed = [self._logits(stack, part, head, number, sums) for part in parts]
                tokens += len(normed)
                yield torch.autograd.grad(normed, hidden, torch.cat(of_normed))[0]

        gradients.write(backward())
        return {f"lm_head.{name}": total / tokens for name, total in sums.items()}

    def _logits(
        self, stack: "DecoderStack", normed: "Tensor", head: "Tensor", number: int, sums: dict[str, Any]
    ) -> "Tensor":
        """The gradient of the normed states [tokens, hidden]; few tokens, as logits take a vocabulary's room each."""
        import torch

        from hfcompress.ops.sensitivity import sampled_loss

        normed.requires_grad_(True)
        logits = normed @ head.T
        loss = sampled_loss(stack.capped(logits), self.seed + number)
        of_logits, of_normed = torch.autograd.grad(loss, (logits, normed))
        add(sums, "rows", of_logits.square().sum(0))
        add(sums, "columns", normed.detach().square().sum(0))
        return of_normed

    def _layer(
        self, stack: "DecoderStack", index: int, states: "HiddenStates", gradients: "HiddenStates"
    ) -> "dict[str, Tensor]":
        """Rows and columns of a layer's matrices; `gradients` of its output become those of its input."""
        import torch

        from hfcompress.architectures.decoder_stack import unhook, watch_inputs

        layer, sums, tokens, kind = stack.layer(index), dict[str, Any](), 0, stack.kind
        inputs = watch_inputs(
            layer, kind.groups, lambda name, seen: add(sums, f"{name}.columns", seen.square().sum(0))
        )
        outputs = watch_gradients(
            layer, kind.linears, lambda name, seen: add(sums, f"{name}.rows", seen.square().sum(0))
        )

        def backward() -> Any:
            nonlocal tokens
            for hidden, gradient in zip(states.batches(), gradients.batches(), strict=True):
                hidden.requires_grad_(True)
                tokens += hidden.shape[0] * hidden.shape[1]
                yield torch.autograd.grad(stack.run(layer, hidden), hidden, gradient)[0]

        gradients.write(backward())
        unhook([*inputs, *outputs])
        for group in kind.groups:
            for name in group[1:]:
                sums[f"{name}.columns"] = sums[f"{group[0]}.columns"].clone()
        return {f"model.layers.{index}.{name}": total / tokens for name, total in sums.items()}

    def predict(self, model: "LanguageShape", *, task: CausalLM) -> "LanguageShape":
        return model


def forward(stack: "DecoderStack", index: int, states: "HiddenStates", following: "HiddenStates") -> None:
    """Run a layer, which is forgotten afterwards."""
    import torch

    layer = stack.layer(index)
    with torch.inference_mode():
        following.write(stack.run(layer, hidden) for hidden in states.batches())


def watch_gradients(layer: "nn.Module", names: tuple[str, ...], see: Any) -> list[Any]:
    """Call `see(linear, gradient of its output [tokens, rows])` at every backward; returns the hooks."""

    def hook(name: str) -> Any:
        def forward(module: Any, arguments: Any, output: Any) -> None:
            output.register_hook(lambda gradient: see(name, gradient.flatten(0, -2)))

        return forward

    return [layer.get_submodule(name).register_forward_hook(hook(name)) for name in names]


def embedding(ids: Any, gradients: "HiddenStates", stack: "DecoderStack") -> "dict[str, Tensor]":
    """The embedding's rows (how often each token occurs) and columns (gradient of what it hands on)."""
    import torch

    vocabulary = stack.checkpoint.shape("model.embed_tokens.weight")[0]
    counts = torch.bincount(torch.from_numpy(ids).flatten(), minlength=vocabulary).float()
    columns: Tensor = sum(batch.flatten(0, 1).square().sum(0) for batch in gradients.batches())
    columns *= stack.kind.embedding_scale**2  # an error of a row is scaled as the row is
    return {"model.embed_tokens.rows": counts / ids.size, "model.embed_tokens.columns": columns / ids.size}


def parts(array: Any, size: int) -> Any:
    """Consecutive pieces of an array."""
    return (array[start : start + size] for start in range(0, len(array), size))


def add(sums: dict[str, Any], name: str, value: Any) -> None:
    sums[name] = sums[name] + value if name in sums else value
