"""What training minimises: language modelling, the tokens that follow, from logits or from hidden states in chunks."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from smallm_hf.inspection import evaluation_mode, read_as_text
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.validation import Scorable


class Objective(nn.Module):
    """The part of a step that is prepared and compiled: a batch in, one number out.

    Returning the loss alone lets the compiler drop the logits, and keeps Accelerate from copying them to float32.
    """

    model: PreTrainedModel
    progress: float = 0.0  # the share of the run that is done, set before each update
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
        scheduled_sampling: share of the tokens read that the model itself has drawn, at the end of the run; see
            `_with_own_tokens`.
        validation: what is scored; None where nothing is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        compile: bool,
        chunked: bool,
        label_smoothing: float = 0.0,
        scheduled_sampling: float = 0.0,
        validation: Scorable | None = None,
    ):
        super().__init__()
        self.model, self.chunked, self.validation = model, chunked, validation
        self.label_smoothing, self.scheduled_sampling = label_smoothing, scheduled_sampling
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
        chosen = {name: getattr(training, name) for name in ("label_smoothing", "scheduled_sampling")}
        chosen["chunked"] = training.loss == "chunked"
        return cls(model, compile=compiles, validation=validation, **chosen, **options)

    def forward(self, input_ids: torch.Tensor, targets: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Summed nats of the targets (B, T); all else goes to the model."""
        inputs["input_ids"] = input_ids
        if share := self.scheduled_sampling * self.progress:
            inputs |= self._with_own_tokens(share, targets, inputs)
        return self.compute(targets=targets, **inputs)

    def validate(
        self, model: PreTrainedModel, batch_size: int, accelerator: Accelerator, interrupted: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """The figures of the validation set, see `Scorable`."""
        return self.validation.score(model, batch_size, accelerator, interrupted)

    @torch.no_grad()
    def _with_own_tokens(self, share: float, targets: torch.Tensor, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The tokens that a decoder reads, a share of them drawn by the model itself: scheduled sampling.

        A first pass over the text as it is predicts all tokens at once, a second one, over what this returns, trains
        (Bengio et al. 2015; in two passes Mihaylova and Martins 2019). What begins, ends or fills a text stays, and
        none of it is put elsewhere.
        """
        name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
        # A state that the first pass moved on would begin the second.
        first = {key: value if isinstance(value, torch.Tensor) else deepcopy(value) for key, value in inputs.items()}
        with evaluation_mode(self.model):
            if self.chunked:
                head, hidden_states = (
                    self.model.get_output_embeddings(),
                    self.model.base_model(**first, use_cache=False)[0],
                )
                drawn = torch.stack([draw_tokens(head(row)) for row in hidden_states])
            else:
                drawn = draw_tokens(self.model(**first, use_cache=False).logits)
        given = inputs[name]
        own = F.pad(drawn[:, :-1], (1, 0))
        marks = torch.tensor(marks_of(self.model.config), dtype=given.dtype, device=given.device)
        replaced = torch.rand(given.shape, device=given.device) < share
        replaced &= F.pad(targets[:, :-1] >= 0, (1, 0)) & ~torch.isin(given, marks) & ~torch.isin(own, marks)
        return {name: torch.where(replaced, own, given)}

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


def draw_tokens(logits: torch.Tensor) -> torch.Tensor:
    """A token of each position, (...), drawn by its logits, (..., V): the largest after adding Gumbel noise."""
    noise = torch.empty_like(logits, dtype=torch.float32).exponential_()
    return (logits - noise.log()).argmax(-1)


def marks_of(config: PreTrainedConfig) -> list[int]:
    """The tokens that begin, end or fill a text, by a model's config."""
    found = (getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "decoder_start"))
    return sorted({id for ids in found if ids is not None for id in (ids if isinstance(ids, list) else [ids])})


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
