"""Our server against others that speak OpenAI's API, under the load of several clients at once."""

import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from smallm_hf.base.environment import environment
from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks.servers import Running, started
from smallm_hf.export.exporting import export_model
from smallm_hf.training.devices import hardware

SERVE = (sys.executable, "-m", "smallm_hf", "serve", "--model")
OURS = "ours"
# Texts of each client in a turn, tokens of each text, and rounds; a quick run only shows that it works.
FULL, QUICK = (2, 64, 3), (1, 8, 1)
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Contestant:
    """A server that speaks OpenAI's API; only how it is started differs.

    Attributes:
        command: starts it; a port is added.
        ready: a path that it answers with 200 once it can be used.
        asked: fields that its requests need.
    """

    command: tuple[str, ...]
    ready: str
    asked: dict[str, Any] = field(default_factory=dict)


@dataclass
class Turn:
    """What one server did under one load.

    Attributes:
        tokens: written in all, counted by the model's tokenizer in the texts.
        first: seconds to the first piece of each text.
        between: seconds between two pieces of a text.
    """

    tokens: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


def compare_servers(
    model: str,
    *,
    clients: Sequence[int] = (1, 2, 4, 8, 32),
    quick: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Asks our server, `transformers serve` and llama-cpp-python's for streams of the same prompts, in turns.

    All of them run all the time, and one is asked at a time: in each round every number of clients asks every server,
    in another order each round. llama.cpp has the model as a GGUF in float32. Those not installed are left out.

    Args:
        model: folder of a causal model.
        clients: how many ask at once.
        quick: a few seconds, to see that it works, without compiling.
        say: told what is left out and what is being set up.

    Returns:
        What can be written as JSON: `servers`, by name and number of clients, each with `rates` in tokens per second,
        their median `rate`, percentiles of `first` and `between` in seconds, and `peak_bytes`; `left_out`.

    Raises:
        UserError: a server does not start, or refuses what it is asked for.
    """
    texts, tokens, rounds = QUICK if quick else FULL
    tokenizer = AutoTokenizer.from_pretrained(model)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        contestants, left_out = _contestants(model, folder, say, compile="false" if quick else "auto")
        servers = {}
        for name, one in contestants.items():
            say(f"setting up: {name}")
            servers[name] = stack.enter_context(started(name, one.command, one.ready))
            _load(name, servers[name], one.asked, tokenizer, clients=1, texts=1, tokens=tokens)  # its first is slow
        turns: dict[str, dict[str, list[Turn]]] = {name: {str(count): [] for count in clients} for name in contestants}
        order = list(contestants)
        for count in itertools.chain.from_iterable(itertools.repeat(clients, rounds)):
            for name in order:
                asked = contestants[name].asked
                turn = _load(name, servers[name], asked, tokenizer, clients=count, texts=texts, tokens=tokens)
                turns[name][str(count)].append(turn)
            order = order[1:] + order[:1]
    found = {name: {count: _summary(each) for count, each in loads.items()} for name, loads in turns.items()}
    about = {"model": Path(model).name, "new_tokens": tokens, "texts": texts, "rounds": rounds, "quick": quick}
    return about | {"servers": found, "left_out": left_out, "hardware": hardware(), **environment()}


def _contestants(
    model: str, folder: Path, say: Callable[[str], None], *, compile: str
) -> tuple[dict[str, Contestant], dict[str, list[str]]]:
    """Those that can be started here, ours first, and what the others lack."""
    file = folder / "gguf" / "model-F32.gguf"
    served = str(Path(sys.executable).with_name("transformers"))
    threads = str(torch.get_num_threads())  # as ours and transformers take; its own default is half of the cores
    llama = ("-m", "llama_cpp.server", "--model", str(file), "--interrupt_requests", "false", "--n_threads", threads)
    own = (model, "--max_waiting", "1000", "--compile", compile)
    ours = Contestant((*SERVE, *own), "/ready")
    others = {
        "transformers serve": (Contestant((served, "serve", model), "/health", {"model": model}), ["fastapi"]),
        "llama-cpp-python": (
            Contestant((sys.executable, *llama), "/v1/models"),
            ["llama_cpp", "gguf", "sse_starlette", "starlette_context", "pydantic_settings"],
        ),
    }
    contestants, left_out = {OURS: ours}, {}
    for name, (one, needed) in others.items():
        if missing := [library for library in needed if find_spec(library) is None]:
            left_out[name] = missing
            say(f"leaving out {name}: {', '.join(missing)} not installed")
        else:
            contestants[name] = one
    if "llama-cpp-python" in contestants:
        export_model(model, "gguf", file.parent)
    return contestants, left_out


def _load(
    name: str,
    server: Running,
    asked: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    clients: int,
    texts: int,
    tokens: int,
) -> Turn:
    """What a server does while so many clients ask for so many texts each, one after the other."""
    turn = Turn()

    async def one_client(client: httpx2.AsyncClient, number: int) -> None:
        for text in range(texts):
            prompt = f"Story {number * texts + text}: once upon a time there was"
            body = {"prompt": prompt, "max_tokens": tokens, "temperature": 1.0, "seed": number * texts + text}
            began = time.perf_counter()
            written, times = await _stream(client, body | asked)
            turn.tokens += len(tokenizer(written, add_special_tokens=False).input_ids)
            turn.first.append(times[0] - began)
            turn.between += [later - earlier for earlier, later in itertools.pairwise(times)]

    async def watch() -> None:
        while True:
            turn.peak_bytes = max(turn.peak_bytes, server.resident_bytes())
            await asyncio.sleep(SAMPLE_SECONDS)

    async def everybody() -> None:
        limits = httpx2.Limits(max_connections=clients)
        async with httpx2.AsyncClient(base_url=server.address, timeout=600, limits=limits) as client:
            watching = asyncio.create_task(watch())
            began = time.perf_counter()
            await asyncio.gather(*(one_client(client, number) for number in range(clients)))
            turn.seconds = time.perf_counter() - began
            watching.cancel()

    try:
        asyncio.run(everybody())
    except httpx2.HTTPError as error:
        raise UserError(f"{name} does not write as it is asked to ({type(error).__name__}: {error})") from error
    return turn


async def _stream(client: httpx2.AsyncClient, body: dict[str, Any]) -> tuple[str, list[float]]:
    """A text, and when each of its pieces came."""
    pieces, times = [], []
    async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            data = line.removeprefix("data:").strip()
            if line.startswith("data:") and data != "[DONE]":
                for choice in json.loads(data).get("choices", ()):
                    times.append(time.perf_counter())
                    pieces.append(choice.get("text") or "")
    return "".join(pieces), times or [time.perf_counter()]


def _summary(turns: list[Turn]) -> dict[str, Any]:
    rates = [turn.tokens / turn.seconds for turn in turns]
    numbers: dict[str, Any] = {"rates": rates, "rate": float(np.median(rates))}
    for name in ("first", "between"):
        seconds = [second for turn in turns for second in getattr(turn, name)]
        numbers[name] = {f"p{part}": float(np.percentile(seconds, part)) if seconds else None for part in (50, 95)}
    return numbers | {"peak_bytes": max(turn.peak_bytes for turn in turns)}


def print_servers(results: dict[str, Any], console: Console) -> None:
    """Shows what `compare_servers` found."""
    table = Table(
        title=f"{results['model']}: streams of {results['new_tokens']} tokens; seconds as median and 95th percentile"
    )
    table.add_column("server")
    for column in ("clients", "tokens/s", "to the first token", "between tokens", "peak MiB"):
        table.add_column(column, justify="right")
    for name, loads in results["servers"].items():
        for clients, numbers in loads.items():
            first, between = (_percentiles(numbers[each]) for each in ("first", "between"))
            peak = f"{numbers['peak_bytes'] / 2**20:,.0f}"
            table.add_row(name, clients, f"{numbers['rate']:,.0f}", first, between, peak)
    console.print(table)
    for name, missing in results["left_out"].items():
        console.print(f"left out: {name} ({', '.join(missing)} not installed)")


def _percentiles(numbers: dict[str, float | None]) -> str:
    return " ".join("-" if number is None else f"{number:.3f}" for number in numbers.values())
