"""Prints texts while they are written: to read, or as a line of JSON each."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from smallm_hf.base.errors import UserError
from smallm_hf.base.settings import Sampling
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request, Token, Written, as_number
from smallm_hf.inspection import reach, trained_length


def requests_for(
    engine: Engine, prompts: Sequence[str], sampling: Sampling, *, num_samples: int = 1, logprobs: int | None = None
) -> list[Request]:
    """Asks for `num_samples` texts behind each prompt, each with the next seed; an encoder-decoder answers it."""
    side = "source" if engine.answers else "prompt"
    seeds = range(sampling.seed, sampling.seed + num_samples)
    settings = [asdict(replace(sampling, seed=seed)) for seed in seeds]
    return [Request(**{side: prompt}, **one, logprobs=logprobs) for prompt in prompts for one in settings]


def print_texts(
    engine: Engine, requests: Sequence[Request], write: Callable[[str], None], *, together: int = 1
) -> None:
    """Writes each prompt and its continuation, of an answer that alone, one text after the other.

    Args:
        engine: of the model.
        requests: none that `longest_text` refuses.
        write: is given each piece of text as soon as it is final.
        together: texts that are written in a batch; those behind the first are shown when it has ended.
    """
    texts = zip(requests, _written_in_order(engine, requests, together), strict=True)
    for number, (request, tokens) in enumerate(texts, start=1):
        if len(requests) > 1:
            write(f"--- {number} of {len(requests)}, seed {request.seed}\n")
        write(request.prompt)
        for token in tokens:
            if token.text:
                write(token.text)
        write("\n")


def print_records(
    engine: Engine, requests: Sequence[Request], write: Callable[[str], None], *, together: int = 1
) -> None:
    """As `print_texts`, each text as one line of JSON, ASCII so that it is valid in any locale."""
    texts = zip(requests, _written_in_order(engine, requests, together), strict=True)
    for request, tokens in texts:
        write(json.dumps(_record(engine, request, Written(tuple(tokens)))) + "\n")


def longest_text(engine: Engine, requests: Sequence[Request]) -> int:
    """The tokens that the longest text may take, with its prompt, once the model has been asked to begin each.

    Raises:
        UserError: of the first that it cannot begin with, see `Engine.stream`.
    """
    longest = 0
    for number, request in enumerate(requests, start=1):
        try:
            text = engine.begin(number, request)
        except UserError as error:
            if len(requests) == 1:
                raise
            raise type(error)(f"text {number} of {len(requests)}: {error}") from error
        longest = max(longest, request.max_new_tokens if engine.answers else text.most)
    return longest


def note_on_length(engine: Engine, tokens: int) -> str | None:
    """What to say of texts that may grow beyond what the model was trained on; None where they may not."""
    trained = trained_length(engine.model)
    if trained is None or min(tokens, reach(engine.model) or tokens) <= trained:
        return None
    return (
        f"the model was trained on {trained} tokens at once, and prompt and continuation take up to {tokens}: it may "
        "write worse beyond"
    )


def _written_in_order(engine: Engine, requests: Sequence[Request], together: int) -> Iterator[Iterator[Token]]:
    """The tokens of one text after the other; each has to be read before the next is asked for."""
    for begin in range(0, len(requests), together):
        batch = requests[begin : begin + together]
        arriving, waiting = engine.stream_batch(batch), [deque[Token]() for _ in batch]
        for mine in waiting:
            yield _tokens_of(mine, waiting, arriving)


def _tokens_of(
    mine: deque[Token], waiting: Sequence[deque[Token]], arriving: Iterator[tuple[int, Token]]
) -> Iterator[Token]:
    """Yields those of one text of a batch as they arrive; those of the others wait for their turn."""
    reason = None
    while reason is None:
        while not mine:
            number, token = next(arriving)
            waiting[number].append(token)
        token = mine.popleft()
        yield token
        reason = token.finish_reason


def _record(engine: Engine, request: Request, written: Written) -> dict[str, Any]:
    record = {
        "prompt": request.source if engine.answers else request.prompt,
        "text": written.text,
        "tokens": len(written.tokens),
        "seed": request.seed,
        "finish_reason": written.finish_reason,
    }
    if request.logprobs is not None:
        record["logprobs"] = [
            _named(engine, token.id, token.log_probability)
            | {"top_logprobs": [_named(engine, *one) for one in token.alternatives]}
            for token in written.tokens
        ]
    return record


def _named(engine: Engine, token_id: int, log_probability: float) -> dict[str, Any]:
    shown = engine.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    return {"id": token_id, "token": shown, "logprob": as_number(log_probability)}
