"""The one place that writes text: the same text for the same request, whatever is written beside it.

A text may grow beyond the model's positions: whenever they are full, the model reads the last half of them again and
goes on from there. What it writes then depends on at least that half. The text of an encoder-decoder ends there.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import TooLong, UserError
from smallm_hf.families import family_of
from smallm_hf.generation.biases import Biases
from smallm_hf.generation.request import Ranked, Request, Token, Written, prompt_ids, source_ids
from smallm_hf.generation.steps import CachedSteps, OwnSteps, decodes_directly
from smallm_hf.generation.text import GrowingText
from smallm_hf.inspection import position_limit, require_known, vocabulary_size


class Engine:
    """Writes texts with a model: token by token, whole, or several in one batch.

    The same request gives the same text: alone, beside others, from several threads at once and after a restart. Each
    has a random generator of its own, and no global state is read or changed. What can differ is rounding: beside
    others, and by a compiled step, the same sums are made in another order, and where two tokens lie closer than that,
    the other one is written. In float32 this is rare; in 16 bits it happens within some hundred tokens, so write one
    by one what has to be repeated, or side by side by `ContinuousWriter`. Rotary positions that stretch with the
    longest text so far (`dynamic`, `longrope`) are a state of the model, which its texts share.

    Args:
        model: causal or seq2seq; on its device, in the caller's autocast if there is one. It is put into evaluation
            mode once, here; while it is trained, write inside `evaluation_mode`.
        tokenizer: the model's own.
        compile: compile the step, which takes 10 to 20 seconds on a CPU for each number of texts in a batch; texts of
            different length are then written one after the other. Without effect on a model that is no single graph.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, compile: bool = False):
        self.model, self.tokenizer, self.limit = model.eval(), tokenizer, position_limit(model)
        self.answers = model.config.is_encoder_decoder
        self.cached = decodes_directly(model) and not self.answers
        self.compile = compile and self.cached
        # Texts of different length stand in one batch where the decoder begins alike, or can be told what is padding.
        self.reads_padding = {"attention_mask", "position_ids"} <= signature(model.forward).parameters.keys()
        mixes = self.answers or family_of(model.config).recurrent
        self.mixes_lengths = mixes or (self.cached and self.reads_padding and not self.compile)
        eos = model.generation_config.eos_token_id
        eos = tokenizer.eos_token_id if eos is None else eos
        self.eos_token_ids = [eos] if isinstance(eos, int) else list(eos or ())
        self._tokenizing = threading.Lock()  # fast tokenizers raise where two threads use one

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Token]:
        """Writes one text, token by token, for as long as it is iterated over and `stop` is not set.

        Raises:
            UserError: at once, for what the model cannot begin with, see `prompt_ids` and `source_ids`; or a token that
                is not in its vocabulary.
        """
        return (token for _, token in self.stream_batch([request], stop))

    def stream_batch(
        self, requests: Sequence[Request], stop: threading.Event | None = None
    ) -> Iterator[tuple[int, Token]]:
        """Writes several texts, in one batch where the model can; gives each token with the number of its request.

        Raises:
            UserError: as `stream`.
        """
        texts = [self.begin(number, request) for number, request in enumerate(requests)]
        return self._write(texts, lambda: stop is not None and stop.is_set())

    def write(self, requests: Sequence[Request], stop: threading.Event | None = None) -> list[Written]:
        """The texts that `stream_batch` writes; those that `stop` interrupts are what there is of them."""
        tokens: list[list[Token]] = [[] for _ in requests]
        for number, token in self.stream_batch(requests, stop):
            tokens[number].append(token)
        return [Written(tuple(one)) for one in tokens]

    def begin(self, number: int, request: Request) -> "Text":
        """A text of which nothing is written yet."""
        kind = type(self.model).__name__
        if self.answers and (request.source is None or request.prompt):
            raise UserError(f"{kind} answers a source; give the text as source, and no prompt")
        if request.source is not None and not self.answers:
            raise UserError(f"{kind} reads no source; give the text as prompt")
        with self._tokenizing:
            if self.answers:
                ids = source_ids(self.model, self.tokenizer, request.source)
            else:
                ids = prompt_ids(self.model, self.tokenizer, request.prompt)
        self._require_known([*ids, *(token_id for token_id, _ in request.logit_bias)])
        if self.answers and self.limit is not None:
            fits = min(request.max_new_tokens, self.limit - 1)
            request = replace(request, max_new_tokens=fits, min_new_tokens=min(request.min_new_tokens, fits))
        device = self.model.device
        pieces = GrowingText(self._decode, [] if self.answers else ids, request.stop)
        drawing = torch.Generator(device).manual_seed(request.seed) if request.temperature else None
        biased = request.logit_bias or request.presence_penalty or request.frequency_penalty
        biases = Biases(request, vocabulary_size(self.model), device) if biased else None
        token_ids = torch.tensor([ids], device=device)
        most = len(ids) + request.max_new_tokens
        return Text(number, request, token_ids, pieces, drawing, biases, most)

    @torch.no_grad()
    def prompt_log_probabilities(self, token_ids: Sequence[int], top: int = 0) -> list[tuple[float, Ranked]]:
        """What the model itself makes of a text: for each token but the first, what `told` tells of it.

        By one plain forward pass over all tokens but the last, which is what `lm_eval --model hf` does.

        Args:
            token_ids: of the whole text, with the start token where it shall begin with one.
            top: how many of the most probable tokens are named in the place of each.

        Raises:
            TooLong: more tokens than the model's positions, and one, whose successor nobody asks for.
            UserError: an encoder-decoder, which has no prompts, or a token that is not in the vocabulary.
        """
        if self.answers:
            raise UserError(f"{type(self.model).__name__} answers a source and has no prompt to tell something about")
        self._require_known(token_ids)
        self._require_fit(token_ids[:-1])
        if len(token_ids) < 2:
            return []
        logits = self.model(input_ids=torch.tensor([token_ids[:-1]], device=self.model.device)).logits[0]
        return [told(row, token_id, top) for row, token_id in zip(logits, token_ids[1:], strict=True)]

    @torch.no_grad()
    def embed(self, token_ids: Sequence[int]) -> torch.Tensor:
        """A text as one vector, (D,) float32: the mean of the last hidden states, of an encoder where there is one.

        Raises:
            TooLong: more tokens than the model has positions.
            UserError: no token at all or one that is not in the vocabulary, or a model without hidden states.
        """
        base = self.model.get_encoder() if self.answers else self.model.base_model
        if base is self.model:
            raise UserError(f"{type(self.model).__name__} has no hidden states to embed a text by; take another model")
        if not token_ids:
            raise UserError("a text of no tokens has no hidden states; give one token or more")
        self._require_known(token_ids)
        self._require_fit(token_ids)
        states = base(input_ids=torch.tensor([token_ids], device=self.model.device)).last_hidden_state
        return states[0].float().mean(dim=0)

    def _require_known(self, token_ids: Sequence[int]) -> None:
        vocab_size = vocabulary_size(self.model)
        if min(token_ids, default=0) < 0:
            raise UserError(
                f"token id {min(token_ids)} is below 0; give those of the model's vocabulary of {vocab_size}"
            )
        require_known(max(token_ids, default=0), vocab_size)

    def _require_fit(self, token_ids: Sequence[int]) -> None:
        if self.limit is not None and len(token_ids) > self.limit:
            raise TooLong(f"the text takes {len(token_ids)} tokens and the model reads {self.limit}; shorten it")

    def _decode(self, token_ids: Sequence[int]) -> str:
        with self._tokenizing:
            return self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _write(self, texts: "list[Text]", stopped: Callable[[], bool]) -> Iterator[tuple[int, Token]]:
        batches: dict[int, list[Text]] = {}
        for text in texts:
            alike = 0 if self.mixes_lengths else text.token_ids.shape[1]
            batches.setdefault(alike, []).append(text)
        for batch in batches.values():
            while batch and not stopped():
                yield from self._fill_positions(batch, stopped)
                batch = [text for text in batch if text.goes_on]

    def _fill_positions(self, texts: "list[Text]", stopped: Callable[[], bool]) -> Iterator[tuple[int, Token]]:
        """Reads the texts, and writes each until it ends or the model's positions are full."""
        with torch.no_grad():
            steps = self.prepare(texts)
        while not stopped():
            with torch.no_grad():
                logits = steps.logits()
                drawn = [text.draw(logits[row : row + 1]) for row, text in enumerate(texts)]
                tokens = torch.cat(drawn)
                beside = [text.tell(logits[row]) for row, text in enumerate(texts)]
            for text, id, told_of in zip(texts, tokens.flatten().tolist(), beside, strict=True):
                yield text.number, text.add(id, id in self.eos_token_ids, *told_of)
            left = [row for row, text in enumerate(texts) if text.goes_on and text.room]
            if not left:
                return
            if len(left) < len(texts):
                texts, tokens = [texts[row] for row in left], tokens[left]
            steps.go_on(left, tokens)

    def prepare(self, texts: "list[Text]") -> CachedSteps | OwnSteps:
        """Makes the texts and the model ready for the next of their tokens."""
        for text in texts:
            text.make_room(None if self.answers else self.limit)
        rows = [text.token_ids[0] for text in texts]
        given = {}
        if not self.cached:  # sources stand before their padding, prompts behind it
            side = "right" if self.answers else "left"
            pad = partial(pad_sequence, batch_first=True, padding_side=side)
            token_ids, mask = pad(rows), pad([*map(torch.ones_like, rows)])
            steps = OwnSteps(self.model, *self.ask_generate(texts[0], token_ids, attention_mask=mask))
            given = {name: steps.inputs[name] for name in ("encoder_outputs",) if self.answers}  # read once
        for text in texts:
            self.ask_generate(text, text.token_ids, attention_mask=torch.ones_like(text.token_ids), **given)
        if self.cached:
            return CachedSteps(self.model, rows, max(text.most for text in texts) if self.compile else None)
        for row, text in enumerate(texts if self.answers else ()):
            text.token_ids = steps.token_ids[row : row + 1]  # where its decoder begins
        return steps

    def ask_generate(self, text: "Text", token_ids: torch.Tensor, **given: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """Where `generate` would begin, and what it would give the model beside; a text gets its logits processors."""
        asked, pad = text.request, self.tokenizer.pad_token_id
        draw = {"temperature": float(asked.temperature), "top_k": asked.top_k, "top_p": float(asked.top_p)}
        draw |= {"min_p": float(asked.min_p)} if asked.min_p else {}
        config = GenerationConfig(
            do_sample=asked.temperature > 0,
            **(draw if asked.temperature else {}),
            repetition_penalty=float(asked.repetition_penalty),
            max_new_tokens=text.room,
            min_new_tokens=min(max(0, asked.min_new_tokens - text.written), text.room),
            eos_token_id=self.eos_token_ids or None,
            pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
            num_beams=1,
            num_return_sequences=1,
        )

        def take(model, input_ids, *, logits_processor, stopping_criteria, generation_config, **inputs):
            text.processors = logits_processor
            return input_ids, inputs

        return self.model.generate(token_ids, generation_config=config, custom_generate=take, **given)


def told(logits: torch.Tensor, token_id: int, top: int) -> tuple[float, Ranked]:
    """The log-probability of a token by the logits (V,) in its place, and the `top` most probable tokens with theirs.

    In float32 whatever the dtype of the logits.
    """
    log_probabilities = logits.float().log_softmax(dim=-1)
    best = log_probabilities.topk(min(top, len(logits)))
    ranked = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return log_probabilities[token_id].item(), ranked


@dataclass
class Text:
    """A text while it is written.

    Attributes:
        token_ids: (1, T), what the model goes on from; a source until an encoder has read it.
        drawing: draws the tokens; None takes the most probable ones.
        biases: what the request adds to the logits; None where it adds nothing.
        most: tokens that it can have, with its prompt.
        room: tokens until the model's positions are full, or the text ends.
        processors: change the logits into those that are drawn from.
        goes_on: whether it has not ended.
    """

    number: int
    request: Request
    token_ids: torch.Tensor
    pieces: GrowingText
    drawing: torch.Generator | None
    biases: Biases | None
    most: int
    written: int = 0
    room: int = 0
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    goes_on: bool = True

    @property
    def left(self) -> int:
        """Tokens that may still be written."""
        return self.request.max_new_tokens - self.written

    def make_room(self, positions: int | None) -> None:
        """Keeps the last half where the positions are full; None where there are enough."""
        self.room = self.left
        if positions is not None:
            if self.token_ids.shape[1] >= positions:
                self.token_ids = self.token_ids[:, -max(1, positions // 2) :]
            self.room = min(self.left, positions - self.token_ids.shape[1])

    def draw(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token (1, 1), of logits (1, V) that stay as they are."""
        scores = logits.to(torch.float32, copy=True)
        if self.biases:
            scores = self.biases(scores)
        for processor in self.processors:  # the list itself would look up what each takes, at every token
            scores = processor(self.token_ids, scores)
        if self.drawing is None:
            token = scores.argmax(dim=-1, keepdim=True)
        else:
            token = torch.multinomial(scores.softmax(dim=-1), num_samples=1, generator=self.drawing)
        self.token_ids = torch.cat([self.token_ids, token], dim=1)
        return token

    def tell(self, logits: torch.Tensor) -> tuple[float | None, Ranked]:
        """What `told` tells of the token drawn last, where that was asked for."""
        asked = self.request.logprobs
        return (None, ()) if asked is None else told(logits, int(self.token_ids[0, -1]), asked)

    def add(self, token_id: int, is_eos: bool, *beside: Any) -> Token:
        """Takes the token that was drawn; the text may end with it."""
        self.written, self.room = self.written + 1, self.room - 1
        if self.biases:
            self.biases.add(token_id)
        piece, stopped = self.pieces.add(token_id, last=is_eos or not self.left)
        reason = "stop" if stopped or is_eos else None if self.left else "length"
        self.goes_on = reason is None
        return Token(token_id, piece, *beside, finish_reason=reason)
