"""Facts about a model, from its config or from one small forward pass, and its mode while it is used."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from smallm_hf.base.errors import UserError


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switches dropout and its like off inside the block; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest input the model was built for, in tokens; None where it names none."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def trained_length(model: PreTrainedModel) -> int | None:
    """Tokens of the windows a model was trained on; None where its config does not say, as only ours do.

    What it makes of later positions was never trained, even where it has them.
    """
    return getattr(model.config, "trained_context_length", None)


def ngram_count(model: PreTrainedModel) -> int | None:
    """How many n-grams a model holds in place of parameters; None where it has parameters."""
    return getattr(model.config, "num_ngrams", None)


def reach(model: PreTrainedModel) -> int | None:
    """The most tokens that a prediction of the model reads; None where there is no such number."""
    return getattr(model.config, "context_size", position_limit(model))


def vocabulary_size(model: PreTrainedModel) -> int:
    """The number of logits for each token."""
    return model.config.get_text_config().vocab_size


def require_known(largest_id: int, vocab_size: int) -> None:
    """Makes sure that a model has an embedding for what a tokenizer gives.

    Raises:
        UserError: it has not.
    """
    if largest_id >= vocab_size:
        raise UserError(
            f"token id {largest_id} is outside the model's vocabulary of {vocab_size}; take the tokenizer of this model"
        )


def read_as_text(model: PreTrainedModel, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Inputs by which a model reads ids (B, T) as a text; its encoder, if it has one, the same source for each."""
    if not model.config.is_encoder_decoder:
        return {"input_ids": input_ids}
    return {"input_ids": torch.zeros_like(input_ids), "decoder_input_ids": input_ids}


@torch.inference_mode()
def refuse_lookahead(model: PreTrainedModel) -> None:
    """Makes sure that no later token changes an earlier prediction, by one small forward pass.

    A model that sees the token it is scored on, BERT for example, would get a splendid and meaningless score.

    Raises:
        UserError: one does.
    """
    input_ids = torch.zeros((2, 4), dtype=torch.long, device=model.device)
    input_ids[1, -1] = 1
    logits = model(**read_as_text(model, input_ids), use_cache=False).logits[:, :-1]
    tolerance = 16 * torch.finfo(logits.dtype).eps * logits.abs().max()
    if (logits[0] - logits[1]).abs().max() > tolerance:
        raise UserError(
            f"{type(model).__name__} is not causal: a later token changes its earlier predictions; "
            "give a model that was trained to predict the next token"
        )
