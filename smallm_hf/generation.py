"""Continues prompts with `model.generate`: samples for the training log, streams for the terminal.

A prompt is read as the beginning of a document: its tokens are preceded by bos (eos where there is none), the token
that stands before every document in training and in scoring. `pipeline("text-generation")` leaves that to the
tokenizer, so with GPT-2's its texts begin in the middle of nowhere and differ from these.

A text may grow beyond the model's positions: whenever they are full, the model reads the last half of them again and
goes on from there. What it writes then depends on at least that half.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from transformers.generation.streamers import BaseStreamer

from smallm_hf.errors import UserError
from smallm_hf.evaluation.scoring import encode_ordinary, evaluation_mode, position_limit, start_token_id


class _TextFrom(TextStreamer):
    """Decodes prompt and continuation as one text, so that no space is lost between them, and writes the latter."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_ids: torch.Tensor, write: Callable[[str], None]):
        super().__init__(tokenizer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.write = write
        self.unwritten = len(tokenizer.decode(prompt_ids, **self.decode_kwargs))
        self.put(prompt_ids)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        new = text[self.unwritten :]
        self.unwritten = max(0, self.unwritten - len(text))
        if new:
            self.write(new)


class _NewTokens(BaseStreamer):
    """Passes on what one `generate` call adds: neither the window it begins with nor its end."""

    def __init__(self, streamer: TextStreamer):
        self.streamer = streamer
        self.window_is_next = True

    def put(self, value: torch.Tensor) -> None:
        if not self.window_is_next:
            self.streamer.put(value)
        self.window_is_next = False

    def end(self) -> None:
        pass


def forked_random(device: torch.device) -> AbstractContextManager:
    """Leaves the random states of the CPU and of this one device as they were before the block."""
    return torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    write: Callable[[str], None],
    *,
    max_new_tokens: int = 200,
    min_new_tokens: int = 0,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 42,
) -> None:
    """Continues one prompt and hands the continuation to `write` word by word; joined, the pieces follow the prompt.

    The same arguments give the same text. The global random state and the mode of the model are left as they were.

    Args:
        model: a causal model with `generate`; on its device, in the caller's autocast if there is one.
        tokenizer: the model's own.
        prompt: the text to continue; may be empty, and is read as ordinary text.
        write: called with each new piece of text.
        max_new_tokens: tokens to write at most, also beyond the model's context; the text may end earlier, by eos.
        min_new_tokens: tokens before which eos is not allowed; `max_new_tokens` for a text of exactly that length.
        temperature: divides the logits; below 1 safer, above 1 wilder, 0 always takes the most probable token.
        top_k: draw from the k most probable tokens only; 0 for all.
        top_p: draw from the most probable tokens that together hold this probability (Holtzman et al. 2020, 3.1).
        repetition_penalty: above 1 makes tokens that occurred less probable (Keskar et al. 2019, 4.1).
        seed: of the random draw.

    Raises:
        UserError: a prompt that leaves no room in the model's context, a setting out of its range, or an empty prompt
            and neither bos nor eos to begin with.
    """
    _check_settings(max_new_tokens, min_new_tokens, temperature, top_k, top_p, repetition_penalty)
    window = prompt_window(model, tokenizer, prompt)
    limit = position_limit(model)
    eos_token_id = model.generation_config.eos_token_id
    eos_token_id = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
    eos_token_ids = set(torch.tensor([] if eos_token_id is None else eos_token_id).flatten().tolist())
    draw = {"temperature": temperature, "top_k": top_k, "top_p": top_p} if temperature else {}
    output = _TextFrom(tokenizer, window, write)
    written = 0
    with forked_random(model.device), evaluation_mode(model):
        torch.manual_seed(seed)
        while written < max_new_tokens and not (written and window[-1].item() in eos_token_ids):
            if limit is not None and len(window) >= limit:
                window = window[-max(1, limit // 2) :]
            room = max_new_tokens - written if limit is None else min(max_new_tokens - written, limit - len(window))
            text = model.generate(
                window[None].to(model.device),
                attention_mask=torch.ones_like(window)[None].to(model.device),
                generation_config=GenerationConfig(
                    do_sample=temperature > 0,
                    **draw,
                    repetition_penalty=repetition_penalty,
                    max_new_tokens=room,
                    min_new_tokens=min(max(0, min_new_tokens - written), room),
                    eos_token_id=eos_token_id,
                    pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
                ),
                streamer=_NewTokens(output),
            )[0].cpu()
            written += len(text) - len(window)
            window = text
    output.end()


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    num_samples: int = 1,
    seed: int = 42,
    heard: Callable[[str], None] | None = None,
    **settings: float,
) -> list[str]:
    """Returns the continuations of prompts, `num_samples` of the first, then of the second, and so on.

    Sample `i` of a prompt is what `stream` writes with `seed + i`, whatever the other prompts are; `settings` are
    those of `stream`. `heard` is called with each piece as it comes, and may end it all by an exception.
    """
    texts = []
    for prompt in prompts:
        for index in range(num_samples):
            pieces: list[str] = []

            def write(piece: str, pieces: list[str] = pieces) -> None:
                pieces.append(piece)
                if heard:
                    heard(piece)

            stream(model, tokenizer, prompt, write, seed=seed + index, **settings)
            texts.append("".join(pieces))
    return texts


def prompt_window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """The start token and the prompt's own, int64 of shape (tokens,)."""
    start = start_token_id(tokenizer)
    ids = ([] if start is None else [start]) + encode_ordinary(tokenizer, [prompt])[0]
    if not ids:
        raise UserError("the prompt is empty and the tokenizer has neither bos nor eos to begin with; give a prompt")
    limit = position_limit(model)
    if limit is not None and len(ids) >= limit:
        raise UserError(
            f"the prompt takes {len(ids)} tokens and the model's context holds {limit}, the continuation included; "
            "shorten the prompt"
        )
    return torch.tensor(ids)


def _check_settings(
    max_new_tokens: int, min_new_tokens: int, temperature: float, top_k: int, top_p: float, repetition_penalty: float
) -> None:
    for setting, in_range, wanted in (
        (f"{max_new_tokens=}", max_new_tokens >= 1, "1 or more"),
        (f"{min_new_tokens=}", 0 <= min_new_tokens <= max_new_tokens, f"0 to {max_new_tokens=}"),
        (f"{temperature=}", temperature >= 0, "0 or more"),
        (f"{top_k=}", top_k >= 0, "0 or more"),
        (f"{top_p=}", 0 < top_p <= 1, "above 0 and at most 1"),
        (f"{repetition_penalty=}", repetition_penalty > 0, "above 0"),
    ):
        if not in_range:
            raise UserError(f"{setting} is out of range; give {wanted}")
