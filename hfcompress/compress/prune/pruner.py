"""Pruner: scores and masks on an encoder's heads, neurons and residual dimensions, from all kept to the target."""

from typing import Any

import torch
from torch import Tensor, nn

from hfcompress.architectures import encoders
from hfcompress.ops.importance import cubic_schedule, l1_norm, magnitude, top_k
from hfcompress.ops.masks import MaskedLayerNorm

KINDS = ("heads", "neurons", "dimensions")


class Pruner(nn.Module):
    """Registers itself as `network.pruner`, so that the scores lie in the Trainer's checkpoints.

    In every forward pass a mask is made of the scores (top-k; heads and neurons in each layer, dimensions over the
    whole model) and multiplied onto what the structure puts out. The gradient of a mask entry is the sum of dL/dW * W
    over the weights that the entry multiplies, so that with the straight-through estimator the optimizer's step on a
    score is the sum of -dL/dW * W over its group: the score of Sanh et al. 2020, section 4, for a group.

    Args:
        importance: "movement": the scores are learned; "magnitude" or "l1": they are norms of the current weights.
        warm_up, cool_down: shares of the steps before pruning begins, and after it has ended.
    """

    def __init__(
        self, network: Any, heads: int, neurons: int, importance: str, warm_up: float, cool_down: float
    ) -> None:
        super().__init__()
        self.head_size = encoders.head_size(network)
        self.full = {
            "heads": encoders.size(network, "num_attention_heads"),
            "neurons": encoders.size(network, "intermediate_size"),
            "dimensions": encoders.size(network, "hidden_size"),
        }
        self.target = {"heads": heads, "neurons": neurons, "dimensions": heads * self.head_size}
        self.importance, self.warm_up, self.cool_down = importance, warm_up, cool_down
        layers = encoders.size(network, "num_hidden_layers")
        shapes = {
            "heads": (layers, self.full["heads"]),
            "neurons": (layers, self.full["neurons"]),
            "dimensions": (self.full["dimensions"],),
        }
        for kind in KINDS:
            self.register_parameter(
                kind, nn.Parameter(torch.zeros(shapes[kind]), requires_grad=importance == "movement")
            )
            self.register_buffer(f"frozen_{kind}", torch.ones(shapes[kind]))
        self.register_buffer("is_frozen", torch.tensor(False))
        self.fraction = 0.0
        self.masks: dict[str, Tensor] = {}
        self._network = [network]  # in a list, so that it does not become a submodule of its own submodule
        self._install(network)

    def _install(self, network: Any) -> None:
        network.pruner = self
        self.hooks = [network.register_forward_pre_hook(lambda module, inputs: self._set_masks())]
        outputs = zip(encoders.context_outputs(network), encoders.neurons_outputs(network), strict=True)
        for i, (context, neurons) in enumerate(outputs):
            self.hooks += [
                context.register_forward_pre_hook(
                    lambda module, inputs, i=i: (inputs[0] * self.masks["heads"][i].repeat_interleave(self.head_size),)
                ),
                neurons.register_forward_pre_hook(lambda module, inputs, i=i: (inputs[0] * self.masks["neurons"][i],)),
            ]
        self.norms = []
        for parent, name in encoders.layer_norms(network):
            masked = MaskedLayerNorm(getattr(parent, name))
            setattr(parent, name, masked)
            self.norms.append((parent, name))
        self.hooks.append(
            encoders.classifier(network).register_forward_pre_hook(
                lambda module, inputs: (inputs[0] * self.masks["dimensions"],)
            )
        )

    @property
    def network(self) -> Any:
        """The network that the masks are on."""
        return self._network[0]

    def scores(self) -> dict[str, Tensor]:
        """Heads [layers, heads], neurons [layers, neurons], dimensions [size]."""
        if self.importance == "movement":
            return {kind: getattr(self, kind) for kind in KINDS}
        norm = magnitude if self.importance == "magnitude" else l1_norm
        with torch.no_grad():
            return dict(zip(KINDS, encoders.weight_scores(self.network, norm), strict=True))

    def keep(self, fraction: float) -> dict[str, int]:
        """How many of each kind are kept at this share of the way to the target."""
        return {kind: round(self.full[kind] + fraction * (self.target[kind] - self.full[kind])) for kind in KINDS}

    def schedule(self, total: int) -> list[dict[str, int]]:
        """How many of each kind were kept in twenty steps of `total`, for the record; a resume leaves no gap in it."""
        steps = range(0, total, max(1, total // 20))
        return [
            {"step": step} | self.keep(cubic_schedule(step, total, self.warm_up, self.cool_down)) for step in steps
        ] + [{"step": total} | self.target]

    def _set_masks(self) -> None:
        scores, keep = self.scores(), self.keep(self.fraction)
        frozen = bool(self.is_frozen)
        for kind in KINDS:
            if frozen:  # 0 * scores: DistributedDataParallel waits for a gradient of every parameter
                self.masks[kind] = getattr(self, f"frozen_{kind}") + 0.0 * scores[kind]
            else:
                self.masks[kind] = top_k(scores[kind], keep[kind])
        for parent, name in self.norms:
            getattr(parent, name).mask = self.masks["dimensions"]

    def advance(self, step: int, total: int) -> None:
        """Follow the schedule at the start of a training step; freeze the masks when it has reached its end."""
        self.fraction = cubic_schedule(step, total, self.warm_up, self.cool_down)
        if self.fraction == 1.0:
            self.finish()

    def finish(self) -> None:
        """Set the masks for good, at the target."""
        if bool(self.is_frozen):
            return
        self.fraction = 1.0
        with torch.no_grad():
            for kind, scores in self.scores().items():
                getattr(self, f"frozen_{kind}").copy_(top_k(scores, self.target[kind]))
        self.is_frozen.fill_(True)

    def kept(self) -> encoders.Kept:
        """What the frozen masks leave."""
        layers = range(len(self.frozen_heads))
        return encoders.Kept(
            layers=list(layers),
            heads=[self.frozen_heads[i].nonzero().flatten().cpu() for i in layers],
            neurons=[self.frozen_neurons[i].nonzero().flatten().cpu() for i in layers],
            dimensions=self.frozen_dimensions.nonzero().flatten().cpu(),
        )

    def kept_as_lists(self) -> dict[str, Any]:
        kept = self.kept()
        return {
            "heads": [h.tolist() for h in kept.heads],
            "neurons": [len(n) for n in kept.neurons],
            "dimensions": len(kept.dimensions),
        }

    def cut(self) -> Any:
        """Take the masks off the network and return the stock model that computes what the masked one did."""
        network = self.network
        for hook in self.hooks:
            hook.remove()
        for parent, name in self.norms:
            setattr(parent, name, getattr(parent, name).norm)
        del network.pruner
        device = network.device
        return encoders.cut(network.cpu(), self.kept()).to(device)

    def callback(self) -> Any:
        """What tells the pruner at which step the Trainer is; after a resume too."""
        from transformers import TrainerCallback

        pruner = self

        class Schedule(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                pruner.advance(state.global_step, state.max_steps)

        return Schedule()
