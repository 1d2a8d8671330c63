"""The one place that writes text: the same text for the same request, whatever is written beside it.

A text may grow beyond the model's positions: whenever they are full, the model reads the last half of them again and
goes on from there. What it writes then depends on at least that half. The text of an encoder-decoder ends there.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import UserError
from smallm_hf.generation.request import Request, Token, Written, prompt_ids, source_ids
from smallm_hf.generation.steps import CachedSteps, OwnSteps, Steps, decodes_directly
from smallm_hf.generation.text import GrowingText
from smallm_hf.inspection import position_limit, trained_length


class Engine:
    """Writes texts with a model: token by token, whole, or several in one batch.

    The same request gives the same text: alone, beside others, from several threads at once and after a restart. Each
    has a random generator of its own, no global state is read or changed, and the mode of the model is set once, here.
    Beside others, and by a compiled step, logits differ by float rounding: in float32 a token in a hundred thousand may
    fall otherwise, in 16 bits one in a hundred; write such texts one by one where that matters. Positions that stretch
    with the longest text so far (rope types `dynamic` and `longrope`) are a state of the model that requests share.

    Args:
        model: causal or seq2seq; on its device, in the caller's autocast if there is one. It is put into evaluation
            mode and stays in it; where it is trained, write inside `evaluation_mode`.
        tokenizer: the model's own.
        compile: compile the step, which takes 10 to 20 seconds on a CPU, and write one text after the other; without
            effect on a model that is no one graph.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, compile: bool = False):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.two_sides = model.config.is_encoder_decoder
        self.limit = position_limit(model)
        self.cached = decodes_directly(model) and not self.two_sides
        self.compile = compile and self.cached
        self.pads = self.cached and {"attention_mask", "position_ids"} <= signature(model.forward).parameters.keys()
        eos = model.generation_config.eos_token_id
        eos = tokenizer.eos_token_id if eos is None else eos
        self.eos_token_ids = [eos] if isinstance(eos, int) else list(eos or ())
        self.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._tokenizer_is_free = threading.Lock()  # those in Rust refuse two threads at once

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Token]:
        """Writes one text, token by token, for as long as it is iterated over and `stop` is not set.

        Raises:
            UserError: at once, for what the model cannot begin with: see `prompt_ids` and `source_ids`.
        """
        return (token for _, token in self.stream_together([request], stop))

    def write(self, requests: Sequence[Request], stop: threading.Event | None = None) -> list[Written]:
        """Writes several texts, in one batch where the model can; those that `stop` interrupts are what there is.

        Raises:
            UserError: before anything is written, see `stream`.
        """
        tokens: list[list[Token]] = [[] for _ in requests]
        for number, token in self.stream_together(requests, stop):
            tokens[number].append(token)
        return [
            Written("".join(token.text for token in one), tuple(one), one[-1].finish_reason if one else None)
            for one in tokens
        ]

    def stream_together(
        self, requests: Sequence[Request], stop: threading.Event | None = None
    ) -> Iterator[tuple[int, Token]]:
        """Writes several texts; gives each token with the number of its request, as they come. Raises as `stream`."""
        return self._stream([self._begin(number, request) for number, request in enumerate(requests)], stop)

    def _begin(self, number: int, request: Request) -> "_Text":
        """A text of which nothing is written yet."""
        if (self.two_sides and request.source is None) or (request.prompt and self.two_sides):
            raise UserError(f"{type(self.model).__name__} answers a source; give the text as source, and no prompt")
        if request.source is not None and not self.two_sides:
            raise UserError(f"{type(self.model).__name__} reads no source; give the text as prompt")
        read, given = (source_ids, request.source) if self.two_sides else (prompt_ids, request.prompt)
        with self._tokenizer_is_free:
            ids = read(self.model, self.tokenizer, given)
        if self.two_sides and self.limit is not None:
            most = min(request.max_new_tokens, self.limit - 1)
            request = replace(request, max_new_tokens=most, min_new_tokens=min(request.min_new_tokens, most))
        return _Text(
            number,
            request,
            torch.tensor([ids], device=self.model.device),
            GrowingText(self._decode, [] if self.two_sides else ids, request.stop),
            torch.Generator(self.model.device).manual_seed(request.seed) if request.temperature else None,
        )

    def _decode(self, token_ids: Sequence[int]) -> str:
        with self._tokenizer_is_free:
            return self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _stream(self, texts: "list[_Text]", stop: threading.Event | None) -> Iterator[tuple[int, Token]]:
        for group in self._batches(texts):
            while group and not (stop and stop.is_set()):
                yield from self._fill_positions(group, stop)
                group = [text for text in group if text.goes_on]

    def _batches(self, texts: "list[_Text]") -> "list[list[_Text]]":
        """Texts that are written together: all where the model reads padding or a source, else those of one length."""
        if self.compile:
            return [[text] for text in texts]
        batches: dict[int, list[_Text]] = {}
        for text in texts:
            batches.setdefault(0 if self.pads or self.two_sides else text.token_ids.shape[1], []).append(text)
        return list(batches.values())

    def _fill_positions(self, texts: "list[_Text]", stop: threading.Event | None) -> Iterator[tuple[int, Token]]:
        """Reads the texts, and writes each until it ends or the model's positions are full."""
        with torch.no_grad():
            steps = self._prepare(texts)
        while not (stop and stop.is_set()):
            with torch.no_grad():
                logits = steps.logits()
                new = torch.cat([text.draw(logits[row : row + 1]) for row, text in enumerate(texts)])
                told = [text.tell(logits[row]) for row, text in enumerate(texts)]
            ids = new.flatten().tolist()
            yield from [
                (text.number, text.add(id, id in self.eos_token_ids, *beside))
                for text, id, beside in zip(texts, ids, told, strict=True)
            ]
            rows = [row for row, text in enumerate(texts) if text.goes_on and text.room]
            if not rows:
                return
            texts = [texts[row] for row in rows]
            steps.go_on(rows, new[rows])

    def _prepare(self, texts: "list[_Text]") -> Steps:
        """Makes the texts and the model ready for the next of their tokens."""
        if self.two_sides:
            return self._prepare_answers(texts)
        for text in texts:
            if self.limit is not None and text.token_ids.shape[1] >= self.limit:
                text.token_ids = text.token_ids[:, -max(1, self.limit // 2) :]
            text.room = text.left if self.limit is None else min(text.left, self.limit - text.token_ids.shape[1])
            self._ask_generate(text, text.token_ids)
        token_ids = [text.token_ids for text in texts]
        if self.cached:
            return CachedSteps(self.model, token_ids, texts[0].most if self.compile else None)
        return OwnSteps(self.model, together := torch.cat(token_ids), self._ask_generate(texts[0], together))

    def _prepare_answers(self, texts: "list[_Text]") -> Steps:
        """Has the encoder read all sources."""
        sources = [text.token_ids[0] for text in texts]
        padded, mask = (
            nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (sources, map(torch.ones_like, sources))
        )
        texts[0].room = texts[0].left
        inputs = self._ask_generate(texts[0], padded, attention_mask=mask)
        begun = inputs.pop("decoder_input_ids")
        for row, text in enumerate(texts):
            text.room = text.left
            self._ask_generate(text, text.token_ids, encoder_outputs=inputs["encoder_outputs"])
            text.token_ids = begun[row : row + 1]
        return OwnSteps(self.model, begun, inputs)

    def _ask_generate(self, text: "_Text", token_ids: torch.Tensor, **given: Any) -> dict[str, Any]:
        """What `generate` would step with; a text gets the processors of its logits, those of the model included."""
        asked = text.request
        draw = {"temperature": float(asked.temperature), "top_k": asked.top_k, "top_p": float(asked.top_p)}
        config = GenerationConfig(
            do_sample=asked.temperature > 0,
            **(draw if asked.temperature else {}),
            repetition_penalty=float(asked.repetition_penalty),
            max_new_tokens=text.room,
            min_new_tokens=min(max(0, asked.min_new_tokens - text.written), text.room),
            eos_token_id=self.eos_token_ids or None,
            pad_token_id=self.pad_token_id,
            num_beams=1,
            num_return_sequences=1,
        )

        def take(model, input_ids, *, logits_processor, stopping_criteria, generation_config, **inputs):
            text.processors = logits_processor
            return inputs | ({"decoder_input_ids": input_ids} if self.two_sides else {})

        given = {"attention_mask": torch.ones_like(token_ids)} | given
        return self.model.generate(token_ids, generation_config=config, custom_generate=take, **given)


@dataclass
class _Text:
    """A text while it is written.

    Attributes:
        number: of its request.
        request: what was asked.
        token_ids: (1, T), what the model goes on from.
        pieces: makes text of the tokens.
        generator: draws; None takes the most probable token.
        written: tokens so far.
        room: tokens until the model's positions are full, or the text ends.
        processors: change the logits into those that are drawn from.
        goes_on: whether it has not ended.
    """

    number: int
    request: Request
    token_ids: torch.Tensor
    pieces: GrowingText
    generator: torch.Generator | None
    written: int = 0
    room: int = 0
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    goes_on: bool = True

    def __post_init__(self) -> None:
        self.most = self.token_ids.shape[1] + self.request.max_new_tokens

    @property
    def left(self) -> int:
        """Tokens that may still be written."""
        return self.request.max_new_tokens - self.written

    def draw(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token (1, 1), of logits (1, V) that stay as they are."""
        scores = logits.to(torch.float32, copy=True)
        for processor in self.processors:  # the list itself would look up what each takes, at every token
            scores = processor(self.token_ids, scores)
        if self.generator is None:
            token = scores.argmax(dim=-1, keepdim=True)
        else:
            token = torch.multinomial(scores.softmax(dim=-1), num_samples=1, generator=self.generator)
        self.token_ids = torch.cat([self.token_ids, token], dim=1)
        return token

    def tell(self, logits: torch.Tensor) -> tuple[float | None, tuple[tuple[int, float], ...]]:
        """What was asked for of the probabilities of the token drawn last, by logits (V,)."""
        if self.request.logprobs is None:
            return None, ()
        log_probabilities = logits.float().log_softmax(dim=-1)
        best = log_probabilities.topk(min(self.request.logprobs, len(logits)))
        ranked = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return log_probabilities[self.token_ids[0, -1]].item(), ranked

    def add(self, token_id: int, is_eos: bool, *beside: Any) -> Token:
        """Takes the token that was drawn; the text may end with it."""
        self.written, self.room = self.written + 1, self.room - 1
        piece, stopped = self.pieces.add(token_id, last=is_eos or not self.left)
        reason = "stop" if stopped or is_eos else None if self.left else "length"
        self.goes_on = reason is None
        return Token(token_id, piece, *beside, finish_reason=reason)


def stream_samples(engine: Engine, request: Request, write: Callable[[str], None], *, num_samples: int = 1) -> None:
    """Writes a prompt and its continuation `num_samples` times, each with the next seed.

    On stderr stands first that a text may grow beyond what the model was trained on, where it may.
    """
    if note := _beyond_training(engine, request):
        print(note, file=sys.stderr)
    for seed in range(request.seed, request.seed + num_samples):
        if num_samples > 1:
            write(f"--- {seed - request.seed + 1} of {num_samples}, seed {seed}\n")
        write(request.prompt)
        for token in engine.stream(replace(request, seed=seed)):
            if token.text:
                write(token.text)
        write("\n")


def _beyond_training(engine: Engine, request: Request) -> str | None:
    """What to expect of a text that is longer than the windows the model was trained on."""
    trained = trained_length(engine.model)
    tokens = len(prompt_ids(engine.model, engine.tokenizer, request.prompt)) + request.max_new_tokens
    if trained is None or min(tokens, engine.limit or tokens) <= trained:
        return None
    return (
        f"the model was trained on {trained} tokens at once, and prompt and continuation take up to {tokens}: "
        "it may write worse beyond"
    )
