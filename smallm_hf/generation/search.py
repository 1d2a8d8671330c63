"""Beam search for encoder-decoders: the likeliest answers instead of drawn ones, by `generate` of transformers."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.generation.request import source_ids
from smallm_hf.inspection import evaluation_mode, position_limit

SOURCES_AT_A_TIME = 32


def beam_search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    *,
    beams: int,
    max_new_tokens: int,
) -> list[str]:
    """Answers sources, each by the best of the texts that `beams` of them lead to, per token; one beam is greedy.

    Args:
        model: an encoder-decoder.
        tokenizer: its own.
        sources: in any order; those of like length are read together.
        beams: how many beginnings are kept at each token.
        max_new_tokens: of each answer at most, as many as the decoder has positions for.

    Raises:
        UserError: a source is longer than the encoder reads.
    """
    ids = [torch.tensor(source_ids(model, tokenizer, source)) for source in sources]
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    limit = position_limit(model)
    settings = {
        "num_beams": beams,
        "do_sample": False,
        "max_new_tokens": max_new_tokens if limit is None else min(max_new_tokens, limit - 1),
        "eos_token_id": model.generation_config.eos_token_id or tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    answers = [""] * len(ids)
    with evaluation_mode(model), torch.inference_mode():
        for begin in range(0, len(order), SOURCES_AT_A_TIME):
            batch = order[begin : begin + SOURCES_AT_A_TIME]
            rows = [ids[number] for number in batch]
            read = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            written = model.generate(read.to(model.device), attention_mask=mask.to(model.device), **settings)
            texts = tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for number, text in zip(batch, texts, strict=True):
                answers[number] = text
    return answers
