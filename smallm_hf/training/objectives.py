"""What training minimises: language modelling, the tokens that follow, from logits or from hidden states in chunks."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from smallm_hf.inspection import evaluation_mode, read_as_text
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.validation import Scorable


class Objective(nn.Module):
    """The part of a step that is prepared and compiled: a batch in, one number out.

    Returning the loss alone lets the compiler drop the logits, and keeps Accelerate from copying them to float32.
    """

    model: PreTrainedModel
    # What one batch leaves to the next, of tensors that are replaced, never changed; it is saved in checkpoints.
    carried: list[tuple[torch.Tensor, ...]] | None = None

    def forward(self, targets: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """The summed nats of a batch, to be divided by the counted targets of the whole update."""
        raise NotImplementedError

    def validate(
        self, model: PreTrainedModel, batch_size: int, accelerator: Accelerator, interrupted: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """The figures of a model with whole weights; None, on every process, where one of them was interrupted."""
        raise NotImplementedError


class LanguageModelling(Objective):
    """The cross entropy of the next tokens.

    Args:
        model: any causal language model.
        compile: whether to compile it, once for each shape of batch.
        chunked: never hold the logits of a whole batch; see `has_plain_head`.
        label_smoothing: share of a target's probability that is spread over the vocabulary (Szegedy et al. 2016).
        validation: what is scored; None where nothing is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        compile: bool,
        chunked: bool,
        label_smoothing: float = 0.0,
        validation: Scorable | None = None,
    ):
        super().__init__()
        self.model, self.label_smoothing, self.validation = model, label_smoothing, validation
        self._no_split_modules = model._no_split_modules  # the blocks by which Accelerate splits a model
        # A compiled loss cannot see that its gradients are asked for once only.
        self.chunks = nn.LinearCrossEntropyOptions(allow_retain_graph=compile)
        self.compute = self._nats_in_chunks if chunked else self._nats_of_logits
        if compile:
            self.compute = compiled(self.compute, model)

    @classmethod
    def of_run(
        cls,
        model: PreTrainedModel,
        training: TrainingConfig,
        accelerator: Accelerator,
        validation: Scorable | None = None,
        **options: Any,
    ) -> "LanguageModelling":
        """As a run asks for it; a model that is split is compiled in its blocks, see `sharding.prepare_step`."""
        compiles = bool(training.compile) and not accelerator.is_fsdp2
        chosen = {"chunked": training.loss == "chunked", "label_smoothing": training.label_smoothing}
        return cls(model, compile=compiles, validation=validation, **chosen, **options)

    def forward(self, input_ids: torch.Tensor, targets: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Summed nats of the targets (B, T); all else goes to the model."""
        return self.compute(input_ids, targets, **inputs)

    def validate(
        self, model: PreTrainedModel, batch_size: int, accelerator: Accelerator, interrupted: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """The figures of the validation set, see `Scorable`."""
        return self.validation.score(model, batch_size, accelerator, interrupted)

    def _nats_of_logits(self, input_ids: torch.Tensor, targets: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids=input_ids, use_cache=False, **inputs).logits.float()  # (B, T, V)
        options = {"reduction": "sum", "label_smoothing": self.label_smoothing}
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), **options)

    def _nats_in_chunks(self, input_ids: torch.Tensor, targets: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.model.base_model(input_ids=input_ids, use_cache=False, **inputs)
        hidden_states = outputs.last_hidden_state  # (B, T, D)
        head = self.model.get_output_embeddings()
        device = hidden_states.device.type
        # The function knows nothing of autocast. A CPU's is ignored: its chunked kernels are slow in 16 bits.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and device != "cpu" else None
        dtype = dtype or head.weight.dtype
        hidden_states, weight, targets = hidden_states.flatten(0, 1).to(dtype), head.weight.to(dtype), targets.flatten()
        bias = None if head.bias is None else head.bias.to(dtype)
        with torch.autocast(device, enabled=False):
            options = {"linear_bias": bias, "reduction": "sum", "options": self.chunks}
            nats = F.linear_cross_entropy(hidden_states, weight, targets, **options)
            if self.label_smoothing:
                nats = nats + self.label_smoothing * _above_mean(hidden_states, weight, targets, bias)
            return nats


def _above_mean(
    hidden_states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """By how much the logits of the targets are above the means of their positions, summed, in O(targets x width).

    Times the smoothing this is what label smoothing adds to the cross entropy log Z - z_t of a target t: in
    log Z - (1 - smoothing) z_t - smoothing * mean(z) the logarithm of the sum is the same.
    """
    counted = targets >= 0
    targets = targets.clamp(min=0)
    above = (hidden_states * (weight[targets] - weight.mean(0))).float().sum(-1)
    if bias is not None:
        above = above + bias[targets] - bias.mean()
    return (above * counted).sum()


def compiled(function: Callable, model: PreTrainedModel) -> Callable:
    """A part of the step of a model, compiled once for each shape of batch."""
    return torch.compile(function, fullgraph=getattr(model, "_can_compile_fullgraph", False), dynamic=False)


@torch.inference_mode()
def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether logits are one linear map of the last hidden states, and nothing else (no scaling, no capping)."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or model.base_model is model:
        return False
    inputs = read_as_text(model, torch.arange(4, device=model.device)[None] % head.out_features)
    with evaluation_mode(model):
        logits = model(**inputs, use_cache=False).logits
        mapped = head(model.base_model(**inputs, use_cache=False).last_hidden_state)
    return logits.shape == mapped.shape and torch.equal(logits, mapped)
