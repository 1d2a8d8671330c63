"""The model that is served, and what every endpoint asks of it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from smallm_hf.base.errors import TooLong, UserError
from smallm_hf.generation.continuous import Closed, ContinuousWriter
from smallm_hf.generation.engine import Engine
from smallm_hf.inspection import require_known, vocabulary_size
from smallm_hf.serving.configuration import Limits
from smallm_hf.serving.errors import Refused, shown
from smallm_hf.serving.vocabulary import Vocabulary

Found = TypeVar("Found")


@dataclass(frozen=True)
class Served:
    """A model that is served.

    Args:
        writer: owns it.
        name: what clients call it.
    """

    writer: ContinuousWriter
    name: str

    @property
    def engine(self) -> Engine:
        """Of the writer."""
        return self.writer.engine

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Of the engine's tokenizer."""
        return Vocabulary(self.engine.tokenizer)

    def require(self, name: str | None) -> None:
        """Raises `Refused` where a request names another model than this one; it may name none."""
        if name not in (None, self.name):
            raise Refused(404, f"model: {shown(name)} is not served here; {self.name} is", "model_not_found", "model")

    async def run(self, errand: Callable[[], Found]) -> Found:
        """What a function gives, called by the thread that owns the model.

        Raises:
            Busy, Closed: as `ContinuousWriter.run`.
        """
        future = self.writer.run(errand)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.cancelled() and not asyncio.current_task().cancelling():
                raise Closed from None
            raise

    async def read(self, prompts: list[str] | list[list[int]], limits: Limits, *, texts: int = 1) -> list[list[int]]:
        """The token ids of texts, with the start token, or those given.

        Args:
            prompts: the texts, or their token ids.
            limits: of the server.
            texts: to be written for each.

        Raises:
            UserError: too many of them, or too many tokens in one; a token that the model does not know.
        """
        for what, asked, allowed in (
            ("prompts", len(prompts), limits.max_prompts),
            (f"texts ({len(prompts)} prompts with n={texts})", len(prompts) * texts, limits.max_texts),
        ):
            if asked > allowed:
                raise UserError(f"{asked} {what} in one request are more than the {allowed} that this server allows")
        encode = self.vocabulary.encode
        read = [await asyncio.to_thread(encode, one) if isinstance(one, str) else one for one in prompts]
        for token_ids in read:
            if not token_ids:  # only of a tokenizer that has nothing to begin with
                raise UserError("an empty text has no token here; give a text or token ids")
            require_known(max(token_ids), vocabulary_size(self.engine.model))
            if len(token_ids) > limits.max_prompt_tokens:
                raise TooLong(
                    f"a prompt of {len(token_ids)} tokens is longer than the {limits.max_prompt_tokens} that this "
                    "server allows; shorten it"
                )
        return read

    def tokens_to_write(self, prompts: list[list[int]], asked: int | None, default: int, limits: Limits) -> int:
        """How many tokens may follow each of the prompts.

        Args:
            prompts: their token ids.
            asked: by the request.
            default: where it does not ask, as far as the context has room.
            limits: of the server.

        Raises:
            TooLong: more than the model's context holds; one without positions has no such limit.
            UserError: more than the server allows.
        """
        longest, context = max(map(len, prompts)), self.engine.limit
        if asked is None:
            asked = default if context is None else min(default, max(1, context - longest))
        if asked > limits.max_tokens:
            raise UserError(f"max_tokens={asked} is more than the {limits.max_tokens} that this server allows")
        if context is not None and longest + asked > context:
            raise TooLong(
                f"the model's context holds {context} tokens, and {longest + asked} were asked for: {longest} in the "
                f"prompt and {asked} behind it; shorten the prompt or lower max_tokens"
            )
        return asked
