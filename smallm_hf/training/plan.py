"""What a run will cost, counted before it starts: parameters, tokens, operations, memory."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from smallm_hf.families import family_of, parameter_groups
from smallm_hf.pretrained import fresh_model
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.devices import accelerator_type, model_shares, resolve_compile

# What a step holds in 16 bits, by whether it is compiled: bytes for each token, layer and channel; for each weight of
# the attention, which dropout has a CPU keep; for each logit; and for the code. Least squares over the peaks of
# docs/speed.md, "Knowing beforehand", which they meet within 10 %.
MEMORY = {True: (45, 4.5, 2.3, 156 << 20), False: (78, 18, 13.8, 299 << 20)}
WITHOUT_AUTOCAST = 1.5  # times that, without autocast, under which some of it is float32 too


def embedding_parameters(model: PreTrainedModel) -> int:
    """Parameters of the tables: tokens, positions, and the output head where it is not tied."""
    return sum(parameter.numel() for parameter in parameter_groups(model)["embedding"])


@dataclass(frozen=True)
class RunPlan:
    """The size of a run.

    Attributes:
        parameters: all of them, a tied head counted once.
        embedding_parameters: of these, tables of tokens and positions and an untied head.
        tokens_per_step: over all processes.
        steps: planned updates; None where time or an unknown number of tokens ends the run.
        flops_per_token: forward and backward.
        compiled: whether the step is.
        memory_bytes: an estimate, see `memory_bytes`.
        counted: whether the model is counted in one pass, without updates, see `training/counting.py`.
    """

    parameters: int
    embedding_parameters: int
    tokens_per_step: int
    steps: int | None
    flops_per_token: int
    compiled: bool
    memory_bytes: int
    counted: bool = False

    @property
    def tokens(self) -> int | None:
        """Training tokens of the whole run, repetitions counted."""
        return None if self.steps is None else self.steps * self.tokens_per_step

    @property
    def flops(self) -> int | None:
        """Operations of the whole run."""
        return None if self.tokens is None else self.tokens * self.flops_per_token


def compilable_share(model: PreTrainedModel, flops_per_token: int) -> float:
    """The share of a token's operations that the compiler works on.

    It leaves torch's recurrent cells, which are one kernel each, as they are (`torch._dynamo.config.allow_rnn`); a
    model that is counted has no operations at all.
    """
    cells = (module for module in model.modules() if isinstance(module, nn.RNNBase))
    weights = (parameter.numel() for cell in cells for parameter in cell.parameters() if parameter.dim() > 1)
    return 1 - 6 * sum(weights) / flops_per_token if flops_per_token else 0.0


def make_plan(
    config: PreTrainedConfig,
    training: TrainingConfig,
    precision: str,
    steps: int | None,
    say: Callable[[str], None] = lambda line: None,
) -> RunPlan:
    """Counts a run on the meta device, every `auto` but that of compiling decided: needs no data, weights or memory.

    Raises:
        UserError: compiling was asked for and cannot be, see `resolve_compile`, which also gets `say`.
    """
    model, family = fresh_model(config, "meta"), family_of(config)
    flops = family.flops_per_token(model, training.context_length)
    compiled = resolve_compile(
        training.compile,
        planned_flops=steps and steps * training.tokens_per_step * flops,
        planned_seconds=training.max_seconds,
        compilable=compilable_share(model, flops),
        say=say,
    )
    return RunPlan(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embedding_parameters=embedding_parameters(model),
        tokens_per_step=training.tokens_per_step,
        steps=steps,
        flops_per_token=flops,
        compiled=compiled,
        memory_bytes=memory_bytes(model, training, precision, compiled=compiled),
        counted=family.counted,
    )


def memory_bytes(model: PreTrainedModel, training: TrainingConfig, precision: str, *, compiled: bool) -> int:
    """Estimated peak of what training adds to a process: weights, gradients, optimizer state, activations, logits.

    Weights, gradients and moments are float32 (AdamW keeps two moments, Muon one) and counted; what activations and
    logits take was fitted to measured peaks of resident memory on a CPU, see `MEMORY`. Processes that share a model
    also hold it whole for a while: its gradients until an update has all of them, its weights to be scored and saved.
    """
    groups = parameter_groups(model)
    parameters = sum(p.numel() for group in groups.values() for p in group)
    moments = 2 * parameters - (sum(p.numel() for p in groups["hidden"]) if training.optimizer == "muon" else 0)
    config = model.config.get_text_config()
    tokens = training.batch_size * training.context_length
    channels, attention_weights = family_of(model.config).activations(config, training.context_length)
    per_channel, per_weight, per_logit, constant = MEMORY[compiled]
    dropout = getattr(config, "attention_dropout", getattr(config, "attn_pdrop", 0.0))
    if not dropout or accelerator_type() != "cpu":
        per_weight = 0
    if training.activation_checkpointing:  # a layer keeps its input alone (Korthikanti et al. 2022, section 5)
        per_channel, per_weight = 2, 0
    kept = tokens * (channels * per_channel + attention_weights * per_weight)
    activations = kept * (WITHOUT_AUTOCAST if precision == "fp32" else 1)
    logits = 0 if training.loss == "chunked" else tokens * config.vocab_size * per_logit
    shares = model_shares()
    held = 4 * (2 * parameters + moments) / shares + (4 * parameters if shares > 1 else 0)
    return round(held + activations + logits + constant)
