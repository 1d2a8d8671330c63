"""What the page asks of a model, through the writer that the API uses: the same request and seed have the same text."""

import copy
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import UserError
from smallm_hf.base.settings import Sampling
from smallm_hf.generation.request import FinishReason, Ranked, Request, Token
from smallm_hf.pictures.attention import PAGE_CAPTION, attention_html, read_attention
from smallm_hf.pictures.tokens import heat_map, read_along
from smallm_hf.serving.configuration import Limits
from smallm_hf.serving.served import Served
from smallm_hf.serving.texts import Texts
from smallm_hf.tokenizing.encoding import valid_unicode

CHOICES = 8  # next tokens that are offered
SHOWN_EVERY = 0.05  # seconds: a page that is told of each of a thousand tokens a second does nothing else


@dataclass(frozen=True)
class Progress:
    """A text while it is written.

    Attributes:
        text: what there is behind the prompt.
        tokens: of it.
        ended: why it has; None while it goes on.
    """

    text: str = ""
    tokens: int = 0
    ended: FinishReason | Literal["cancelled"] | None = None


@dataclass
class Stop:
    """Ends a text: `wanted` is set by another event of the page than the one that it is written in."""

    wanted: bool = False


@dataclass(frozen=True)
class Steps:
    """A text that is written by choosing each of its tokens.

    Attributes:
        token_ids: with the start token.
        given: how many of them were there before the first choice.
        choices: the most probable next tokens with their log-probabilities; none where the text has ended.
    """

    token_ids: tuple[int, ...]
    given: int
    choices: Ranked = ()


class Asking:
    """The questions to one model.

    Args:
        served: the model.
        limits: of a server; what is beyond is refused.
    """

    def __init__(self, served: Served, limits: Limits):
        self.served, self.limits, self.vocabulary = served, limits, served.vocabulary
        self._tokenizer = copy.deepcopy(served.engine.tokenizer)  # for the thread of the writer alone

    async def write(self, prompt: str, sampling: Sampling, stop: Stop) -> AsyncIterator[Progress]:
        """Continues a prompt; what is asked of the model ends with the iteration, or when `stop` is wanted.

        Raises:
            UserError: a prompt that the model cannot begin with, more tokens than are allowed, or a busy model.
        """
        if sampling.max_new_tokens > self.limits.max_tokens:
            raise UserError(f"a text may have {self.limits.max_tokens:,} tokens here; lower the length")
        request = Request(await self._read(prompt), **asdict(sampling))
        progress, shown = Progress(), 0.0
        async with aclosing(self._tokens(request)) as tokens:
            async for token in tokens:
                ended = token.finish_reason or ("cancelled" if stop.wanted else None)
                progress = Progress(progress.text + token.text, progress.tokens + 1, ended)
                if ended or time.monotonic() - shown >= SHOWN_EVERY:
                    shown = time.monotonic()
                    yield progress
                if ended:
                    return

    async def begin(self, prompt: str) -> Steps:
        """A text of which all that follows the prompt is chosen; raises as `write`."""
        token_ids = tuple(await self._read(prompt))
        return await self._offer(Steps(token_ids, len(token_ids)))

    async def take(self, steps: Steps, choice: int) -> Steps:
        """The text with one of its `choices` behind it; raises as `write`."""
        token_id, _ = steps.choices[choice]
        return await self._offer(replace(steps, token_ids=(*steps.token_ids, token_id)))

    async def take_back(self, steps: Steps) -> Steps:
        """The text without the token chosen last; one of which none is left stays as it is."""
        return await self._offer(
            replace(steps, token_ids=steps.token_ids[: max(steps.given, len(steps.token_ids) - 1)])
        )

    def pieces(self, steps: Steps) -> tuple[str, list[str]]:
        """The text before the first choice, and what each choice has added to it."""
        pieces = self.vocabulary.pieces(steps.token_ids)
        return "".join(pieces[: steps.given]), pieces[steps.given :]

    def has_ended(self, token_id: int) -> bool:
        """Whether a text ends with a token."""
        return token_id in self.served.engine.eos_token_ids

    async def surprise(self, text: str) -> str:
        """A fragment of a page: how surprised the model was by each token of a text.

        Raises:
            UserError: a text that it cannot read, or a busy model.
        """
        return await self._draw(text, lambda *model: heat_map(read_along(*model, text)))

    async def attention(self, text: str) -> str:
        """A fragment of a page: where each head looks in a text; raises as `surprise`, also for lack of heads."""
        return await self._draw(text, lambda *model: _attention_map(*model, text))

    async def _draw(self, text: str, draw: Callable[[PreTrainedModel, PreTrainedTokenizerBase], str]) -> str:
        await self._read(text)
        return await self.served.run(lambda: draw(self.served.engine.model, self._tokenizer))

    async def _read(self, text: str) -> list[int]:
        if text != valid_unicode(text):
            raise UserError("the text holds half of a character (a lone surrogate); type it again")
        (token_ids,) = await self.served.read([text], self.limits)
        return token_ids

    async def _offer(self, steps: Steps) -> Steps:
        chosen = steps.token_ids[steps.given :]
        if chosen and self.has_ended(chosen[-1]):
            return replace(steps, choices=())
        asked = Request(steps.token_ids, max_new_tokens=1, temperature=0, logprobs=CHOICES)
        (token,) = [token async for token in self._tokens(asked)]
        return replace(steps, choices=token.alternatives)

    async def _tokens(self, request: Request) -> AsyncIterator[Token]:
        texts = Texts(self.served.writer, [request])
        try:
            async for _, token in await texts.begin():
                yield token
        finally:
            texts.cancel()


def _attention_map(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    attention = read_attention(model, tokenizer, text)
    layers, heads, *_ = attention.maps.shape
    cut = f" The first {len(attention.tokens)} tokens are shown." if attention.left_out else ""
    return attention_html(attention, PAGE_CAPTION + cut, range(layers), range(heads))
