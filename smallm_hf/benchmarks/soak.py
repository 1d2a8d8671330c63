"""A server under requests of every kind, good and bad: nothing hangs, nothing grows, and every answer can be read.

What is asked follows from a seed. An answer is right when it is JSON in the shape that its status promises, or a stream
of events that ends with [DONE]; a server that is busy may say so (429).
"""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from smallm_hf.base.environment import environment
from smallm_hf.base.errors import one_line
from smallm_hf.benchmarks.serve import SERVE
from smallm_hf.benchmarks.servers import Running, started

PATH = "/v1/completions"
BUSY = 429
# What is not answered within this time hangs.
HANG_SECONDS = 120.0
# After the last answer, for the slots of those who left to be free again.
SETTLE_SECONDS = 10.0
WORDS = (
    "Once",
    "ünïcödé",
    "数学",
    "🙂🙃",
    "שלום",
    "\x00\x07",
    "a\u0301",
    "end<|endoftext|>",
    "\n\n",
    " ",
    "\U0010ffff",
)
# Fields of a request, each wrong in its own way, and bodies that are no request at all.
WRONG_FIELDS: tuple[dict[str, Any], ...] = (
    *({"temperature": value} for value in ("hot", -1, 1e309, None, [])),
    *({"max_tokens": value} for value in (-1, 10**9, "many", 1.5)),
    *({"n": value} for value in (0, 10_000, "two")),
    *({"prompt": value} for value in ({}, 7, [[]], [-1], [10**9], ["a", 1], [True], "\ud800", [None])),
    *({"stop": value} for value in ("x" * 100_000, [""], [1], ["a"] * 1000)),
    *({"top_p": 2}, {"logit_bias": {"a": 1}}, {"logit_bias": [1]}, {"logprobs": 10**6}, {"stream": "maybe"}),
    *({"model": "another"}, {"suffix": "end"}, {"seed": "x"}, {"stream_options": 1}, {"echo": 5}, {"best_of": 7}),
)
WRONG_BODIES = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b'{"prompt": NaN}',
    b"[" * 100_000,
    b'{"top_p": 1e999}',
)


class Wrong(Exception):
    """An answer that is not what it has to be."""


@dataclass
class Soak:
    """The clients of one run, and what they have met.

    Attributes:
        statuses: of each kind of request, how often each status came; "left" where the client went first.
        wrong: what should not have been, by kind.
    """

    client: httpx2.AsyncClient
    statuses: dict[str, Counter] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    async def good(self, draw: random.Random) -> int:
        """A text, or several."""
        body = _body(draw) | {"n": draw.choice((1, 1, 2)), "logprobs": draw.choice((None, 0, 3))}
        response = await self.client.post(PATH, json=body | {"echo": draw.random() < 0.3})
        if response.status_code == 200:
            answer = _json(response)
            if not all(isinstance(choice["text"], str) for choice in answer["choices"]) or "usage" not in answer:
                raise Wrong(f"no texts and usage in {answer}")
        return _right(response, {200})

    async def stream(self, draw: random.Random) -> int:
        """A text in pieces, which some readers take slowly."""
        pause = draw.choice((0, 0, 0.05))
        async with self.client.stream("POST", PATH, json=_body(draw) | {"stream": True}) as response:
            if response.status_code != 200:
                await response.aread()
                return _right(response, {200})
            data = ""
            async for line in response.aiter_lines():
                await asyncio.sleep(pause)
                if line:
                    kind, _, data = line.partition(": ")
                    if kind != "data" or (data != "[DONE]" and "choices" not in json.loads(data)):
                        raise Wrong(f"not an event: {line}")
            if data != "[DONE]":
                raise Wrong(f"a stream ends with {data}")
        return 200

    async def leaving(self, draw: random.Random) -> str:
        """A client that goes before it has all of its answer."""
        body = _body(draw) | {"stream": draw.random() < 0.5, "max_tokens": 64}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(draw.uniform(0, 0.1)), self.client.stream("POST", PATH, json=body) as response:
                await response.aread()
        return "left"

    async def wrong_field(self, draw: random.Random) -> int:
        """A field that is wrong."""
        content = json.dumps(_body(draw) | draw.choice(WRONG_FIELDS)).encode()
        headers = {"Content-Type": "application/json"}
        return _right(await self.client.post(PATH, content=content, headers=headers), {200, 400, 404, 422})

    async def wrong_body(self, draw: random.Random) -> int:
        """A body that is no request, or of another type."""
        headers = {"Content-Type": draw.choice(("application/json", "text/plain", "application/xml"))}
        response = await self.client.post(PATH, content=draw.choice(WRONG_BODIES), headers=headers)
        return _right(response, {400, 415, 422})

    async def huge(self, draw: random.Random) -> int:
        """A body of 3 MB."""
        return _right(await self.client.post(PATH, json={"prompt": "x" * 3_000_000}), {413})

    async def elsewhere(self, draw: random.Random) -> int:
        """Other paths and methods."""
        paths = ("/v1/models", "/health", "/ready", "/v1/nowhere", PATH, "/%00", "/v1/models/x", "/v1/../etc")
        return _right(await self.client.request(draw.choice(("GET", "DELETE")), draw.choice(paths)), {200, 404, 405})

    async def other_work(self, draw: random.Random) -> int:
        """What else the API does."""
        text = _text(draw)
        path, body = draw.choice(
            (
                ("/v1/embeddings", {"input": text}),
                ("/tokenize", {"prompt": text}),
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "max_tokens": 5}),
            )
        )
        return _right(await self.client.post(path, json=body), {200, 400})

    async def ask(self, number: int, seed: int) -> None:
        """One request of a drawn kind."""
        draw = random.Random(f"{seed}-{number}")
        (name,) = draw.choices(list(KINDS), KINDS.values())
        kind: Callable[[random.Random], Awaitable[int | str]] = getattr(self, name)
        try:
            async with asyncio.timeout(HANG_SECONDS):
                status = await kind(draw)
        except (Wrong, TimeoutError, httpx2.HTTPError, ValueError, KeyError) as error:
            status = "wrong"
            self.wrong.append(f"{name} {number}: {type(error).__name__} {one_line(error)}")
        self.statuses.setdefault(name, Counter())[str(status)] += 1


# How often each kind is drawn.
KINDS = {
    **{"good": 30, "stream": 20, "leaving": 15, "wrong_field": 15, "wrong_body": 5},
    **{"huge": 2, "elsewhere": 5, "other_work": 8},
}


def _text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(0, 6)))


def _body(draw: random.Random) -> dict[str, Any]:
    prompt = draw.choice((_text(draw), [0, 1, 2], [_text(draw), _text(draw)]))
    return {"prompt": prompt, "max_tokens": draw.randint(1, 16), "temperature": draw.choice((0, 0.8, 1.5))}


def _json(response: httpx2.Response) -> Any:
    def refuse(constant: str) -> None:
        raise Wrong(f"{constant} is not JSON")

    return json.loads(response.content, parse_constant=refuse)


def _right(response: httpx2.Response, expected: set[int]) -> int:
    """The status of an answer, which may also be that the server is busy."""
    status, answer = response.status_code, _json(response)
    too_long = status == 400 and answer["error"]["code"] == "context_length_exceeded"  # for a model of few positions
    if status not in expected | {BUSY} and not too_long:
        raise Wrong(f"status {status}: {response.text}")
    if status >= 400 and not isinstance(answer["error"]["message"], str):
        raise Wrong(f"status {status} without a message: {response.text}")
    if status == BUSY and "retry-after" not in response.headers:
        raise Wrong("busy without Retry-After")
    return status


async def soak(server: Running, *, requests: int, clients: int, seed: int = 0) -> dict[str, Any]:
    """Asks a server on this machine for texts, and for much that it has to refuse, with several clients at once.

    Args:
        server: of ours, without API keys.
        requests: in all.
        clients: at once.
        seed: of what is asked.

    Returns:
        What can be written as JSON: `statuses` by kind, `wrong` answers as text, `seconds`, memory `after_a_tenth` of
        the requests, `at_the_end` and at most (`peak_bytes`), and the texts `still_written` after all have left.
    """
    numbers, held = iter(range(requests)), []
    async with httpx2.AsyncClient(base_url=server.address, timeout=HANG_SECONDS) as client:
        asked, began = Soak(client), time.perf_counter()

        async def one_client() -> None:
            for number in numbers:
                await asked.ask(number, seed)
                if number % max(1, requests // 100) == 0:
                    held.append(server.resident_bytes())

        await asyncio.gather(*(one_client() for _ in range(clients)))
        seconds, still = time.perf_counter() - began, await _still_written(client)
    memory = {"after_a_tenth": held[len(held) // 10], "at_the_end": server.resident_bytes(), "peak_bytes": max(held)}
    statuses = {kind: dict(counts) for kind, counts in sorted(asked.statuses.items())}
    return {"statuses": statuses, "wrong": asked.wrong, "seconds": seconds, "still_written": still, "memory": memory}


async def _still_written(client: httpx2.AsyncClient) -> float:
    """Texts that are written or wait although nobody asks any more, in the end."""
    until = time.perf_counter() + SETTLE_SECONDS
    while True:
        lines = (await client.get("/metrics")).text.splitlines()
        gauges = ("smallm_slots_in_use ", "smallm_waiting_texts ")
        left = sum(float(line.split()[1]) for line in lines if line.startswith(gauges))
        if not left or time.perf_counter() > until:
            return left
        await asyncio.sleep(0.1)


def soak_model(model: str, *, requests: int, clients: int, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Serves a model and does `soak` with it.

    Args:
        model: a folder or Hub id.
        requests: in all.
        clients: at once.
        say: told what is being set up.
    """
    say(f"serving {model}")
    with started("smallm serve", (*SERVE, model), "/ready") as server:
        results = asyncio.run(soak(server, requests=requests, clients=clients))
    return results | {"requests": requests, "clients": clients, **environment()}


def print_soak(results: dict[str, Any], console: Console) -> None:
    """Shows what `soak` found."""
    table = Table(title=f"{results['requests']:,} requests of {results['clients']} clients: what was answered")
    table.add_column("request")
    table.add_column("statuses")
    for kind, counts in results["statuses"].items():
        table.add_row(kind.replace("_", " "), ", ".join(f"{status}: {counts[status]}" for status in sorted(counts)))
    console.print(table)
    memory = {name: f"{held / 2**20:,.0f} MiB" for name, held in results["memory"].items()}
    console.print(
        f"{results['seconds']:.0f} s; memory {memory['after_a_tenth']} after a tenth, {memory['at_the_end']} at the "
        f"end, {memory['peak_bytes']} at most; {results['still_written']:.0f} texts still written; "
        f"{len(results['wrong'])} wrong answers"
    )
    for line in results["wrong"][:20]:
        console.print(line, markup=False)
