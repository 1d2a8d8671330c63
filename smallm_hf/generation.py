"""Continues prompts with `model.generate`: samples for the training log, streams for the terminal.

A prompt is read as the beginning of a document: its tokens are preceded by bos (eos where there is none), the token
that stands before every document in training and in scoring. `pipeline("text-generation")` leaves that to the
tokenizer, so with GPT-2's its texts begin in the middle of nowhere and differ from these.

A text may grow beyond the model's positions: whenever they are full, the model reads the last half of them again and
goes on from there. What it writes then depends on at least that half.

`generate` prepares all of it; between its tokens stands our own loop, which does no more than a text without padding
needs, and which may run a compiled step.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch._dynamo.config as dynamo
import torch._inductor.config as inductor
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StaticCache,
    StoppingCriteriaList,
    TextStreamer,
)
from transformers.generation.streamers import BaseStreamer

from smallm_hf.base.errors import TooLong, UserError, one_line
from smallm_hf.base.settings import Sampling
from smallm_hf.inspection import evaluation_mode, position_limit, trained_length
from smallm_hf.models.modeling_smallm import CACHE_NAME
from smallm_hf.tokenizing.encoding import encode_ordinary, start_token_id, valid_unicode

# The libraries' float32 products on a CPU read a matrix for a few vectors at a fraction of the speed of memory; those
# that Inductor writes come near it. Nothing is chosen by its time, so that the same text is written every time.
OWN_PRODUCTS = {
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP",
    "max_autotune_report_choices_stats": False,
    "autotune_num_choices_displayed": 0,
}
# One for each model and size of cache; past Dynamo's own 8, a process that writes with several would fail.
COMPILED_STEPS = 256


class _TextFrom(TextStreamer):
    """Decodes prompt and continuation as one text, so that no space is lost between them, and writes the latter."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_ids: torch.Tensor,
        write: Callable[[str], None],
        heard: Callable[[], None],
    ):
        super().__init__(tokenizer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.write, self.heard = write, heard
        self.unwritten = len(tokenizer.decode(prompt_ids, **self.decode_kwargs))
        super().put(prompt_ids)

    def put(self, value: torch.Tensor) -> None:
        super().put(value)
        self.heard()

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


def _step(model: PreTrainedModel, input_ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    """The logits (B, V) after the last of the ids (B, T), which go into the cache."""
    return model(input_ids=input_ids, **{CACHE_NAME: cache}, use_cache=True, logits_to_keep=1).logits[:, -1]


@functools.cache
def _compiled_step() -> Callable[..., torch.Tensor]:
    """`_step` compiled: once for each model and shape of batch and cache."""
    return torch.compile(_step, fullgraph=True, dynamic=False)


@contextmanager
def _compiling(model: PreTrainedModel) -> Iterator[None]:
    """What holds while a compiled step is called, as its first call compiles it.

    On a CPU the weights become constants of it, laid out for its products: should the model's change, it keeps these.

    Raises:
        UserError: the compiler of this machine fails.
    """
    frozen = {"freezing": model.device.type == "cpu"}
    if frozen["freezing"] and model.dtype == torch.float32:
        frozen |= OWN_PRODUCTS
    with inductor.patch(**frozen), dynamo.patch(recompile_limit=COMPILED_STEPS):
        try:
            yield
        except (TorchDynamoException, InductorError) as error:
            raise UserError(
                f"compiling fails on this machine ({one_line(error)}); write with --compile false"
            ) from error


def _unmark(cache: Cache) -> None:
    """Copies the tensors of a cache: a step with frozen weights would take those that are marked static for its own."""
    for layer in cache.layers:
        tensors = {name: value for name, value in vars(layer).items() if isinstance(value, torch.Tensor)}
        vars(layer).update({name: tensor.clone() for name, tensor in tensors.items()})


def decode(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    compile: bool,
    put: Callable[[torch.Tensor], None] | None = None,
    **model_inputs: Any,
) -> torch.Tensor:
    """The loop of `generate(custom_generate=...)` for prompts (B, T) without padding.

    Draws what `generate` itself would draw, and ends when all rows have; one that ends earlier is not padded. `put` is
    called with each step's tokens (B, 1).
    """
    tokens, cache, step = input_ids, model_inputs[CACHE_NAME], _step
    with _compiling(model) if compile else nullcontext():
        while True:
            logits = step(model, tokens, cache)
            scores = logits_processor(input_ids, logits.to(torch.float32, copy=True))
            if generation_config.do_sample:
                tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1)
            else:
                tokens = scores.argmax(dim=-1, keepdim=True)
            input_ids = torch.cat([input_ids, tokens], dim=1)
            if put:
                put(tokens.cpu())
            if stopping_criteria(input_ids, None).all():
                return input_ids
            if compile and step is _step:  # the prompt has been read, as it is: only steps of one token are compiled
                _unmark(cache)
                step = _compiled_step()


def decodes_directly(model: PreTrainedModel) -> bool:
    """Whether `decode` can write with a model: its state is a cache of keys and values, and its step one graph."""
    return getattr(model, "_can_compile_fullgraph", False) and not getattr(model, "_is_stateful", False)


def fixed_cache(model: PreTrainedModel, tokens: int) -> StaticCache:
    """A cache for a compiled step and that many tokens at least; few sizes, so that few steps are compiled."""
    limit = position_limit(model)
    size = 1 << (tokens - 1).bit_length()
    return StaticCache(config=model.config, max_cache_len=size if limit is None else min(limit, size))


def lay_out_for_decoding(model: PreTrainedModel) -> PreTrainedModel:
    """Stores the weights of linear maps by columns, where that makes them faster to multiply with one vector.

    The values stay, and so does the shape. On a CPU in float32, the libraries' product reads the usual rows of small
    matrices at half the speed of memory, and columns at nearly all of it. To be saved, a model is loaded again.
    """
    if model.device.type == "cpu" and model.dtype == torch.float32:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = module.weight.data.T.contiguous().T
    return model


def forked_random(device: torch.device) -> AbstractContextManager:
    """Leaves the random states of the CPU and of this one device as they were before the block."""
    return torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)


def seed_of(*parts: int | str) -> int:
    """A seed that follows from numbers and texts, on every machine alike; other parts give another one.

    One seed for several prompts would make the same draws behind each, and their texts would repeat each other.
    """
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "big")


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    write: Callable[[str], None],
    *,
    compile: bool = False,
    heard: Callable[[], None] = lambda: None,
    **settings: Any,
) -> None:
    """Continues one prompt and hands the continuation to `write` word by word; joined, the pieces follow the prompt.

    The same arguments give the same text. The global random state and the mode of the model are left as they were.

    Args:
        model: a causal model with `generate`; on its device, in the caller's autocast if there is one.
        tokenizer: the model's own.
        prompt: the text to continue; may be empty, and is read as ordinary text.
        write: called with each new piece of text.
        compile: compile the step, which takes 10 to 20 seconds on a CPU; without effect on a model that is no one
            graph. Logits differ by float rounding.
        heard: called after each token, where `write` waits for a word; may end it all by an exception.
        settings: of `Sampling`.

    Raises:
        UserError: a prompt that leaves no room in the model's context, a setting out of its range, or an empty prompt
            and neither bos nor eos to begin with.
    """
    asked = Sampling(**settings)
    window = prompt_window(model, tokenizer, prompt)
    limit = position_limit(model)
    eos_token_id = model.generation_config.eos_token_id
    eos_token_id = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
    eos_token_ids = set(torch.tensor([] if eos_token_id is None else eos_token_id).flatten().tolist())
    draw = {"temperature": asked.temperature, "top_k": asked.top_k, "top_p": asked.top_p} if asked.temperature else {}
    output = _TextFrom(tokenizer, window, write, heard)
    cache = None
    if decodes_directly(model):
        loop = {"custom_generate": functools.partial(decode, compile=compile, put=output.put)}
        if compile:
            cache = loop[CACHE_NAME] = fixed_cache(model, len(window) + asked.max_new_tokens)
    else:
        loop = {"streamer": _NewTokens(output)}
    written = 0
    with forked_random(model.device), evaluation_mode(model):
        torch.manual_seed(asked.seed)
        while written < asked.max_new_tokens and not (written and window[-1].item() in eos_token_ids):
            if limit is not None and len(window) >= limit:
                window = window[-max(1, limit // 2) :]
            left = asked.max_new_tokens - written
            room = left if limit is None else min(left, limit - len(window))
            if cache:
                cache.reset()
            text = model.generate(
                window[None].to(model.device),
                attention_mask=torch.ones_like(window)[None].to(model.device),
                generation_config=GenerationConfig(
                    do_sample=asked.temperature > 0,
                    **draw,
                    repetition_penalty=asked.repetition_penalty,
                    max_new_tokens=room,
                    min_new_tokens=min(max(0, asked.min_new_tokens - written), room),
                    eos_token_id=eos_token_id,
                    pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
                ),
                **loop,
            )[0].cpu()
            written += len(text) - len(window)
            window = text
    output.end()


def stream_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    write: Callable[[str], None],
    *,
    num_samples: int = 1,
    seed: int = 42,
    **settings: Any,
) -> None:
    """Writes a prompt and its continuation `num_samples` times, each with the next seed; `settings` are of `stream`.

    On stderr stands first that a text may grow beyond what the model was trained on, where it may.
    """
    if note := _beyond_training(model, tokenizer, prompt, **settings):
        print(note, file=sys.stderr)
    for index in range(num_samples):
        if num_samples > 1:
            write(f"--- {index + 1} of {num_samples}, seed {seed + index}\n")
        write(prompt)
        stream(model, tokenizer, prompt, write, seed=seed + index, **settings)
        write("\n")


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    num_samples: int = 1,
    seed: int = 42,
    **settings: Any,
) -> list[str]:
    """Returns the continuations of prompts, `num_samples` of the first, then of the second, and so on.

    Sample `i` of a prompt is what `stream` writes with `seed + i`, whatever the other prompts are; `settings` are
    those of `stream`.
    """
    texts = []
    for prompt in prompts:
        for index in range(num_samples):
            pieces: list[str] = []
            stream(model, tokenizer, prompt, pieces.append, seed=seed + index, **settings)
            texts.append("".join(pieces))
    return texts


def _beyond_training(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = Sampling.max_new_tokens,
    **settings: Any,
) -> str | None:
    """What to expect of a text that is longer than the windows the model was trained on."""
    trained, tokens = trained_length(model), len(prompt_window(model, tokenizer, prompt)) + max_new_tokens
    if trained is None or min(tokens, position_limit(model) or tokens) <= trained:
        return None
    return (
        f"the model was trained on {trained} tokens at once, and prompt and continuation take up to {tokens}: "
        "it may write worse beyond"
    )


def prompt_window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """The start token and the prompt's own, int64 of shape (tokens,)."""
    if prompt != valid_unicode(prompt):
        raise UserError(f"the prompt {prompt!a} holds half of a character (a lone surrogate); give whole ones")
    start = start_token_id(tokenizer)
    ids = ([] if start is None else [start]) + encode_ordinary(tokenizer, [prompt])[0]
    if not ids:
        raise UserError("the prompt is empty and the tokenizer has neither bos nor eos to begin with; give a prompt")
    limit = position_limit(model)
    if limit is not None and len(ids) >= limit:
        raise TooLong(
            f"the prompt takes {len(ids)} tokens and the model's context holds {limit}, the continuation included; "
            "shorten the prompt"
        )
    return torch.tensor(ids)
