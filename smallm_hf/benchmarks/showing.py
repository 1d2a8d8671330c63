"""Runs each benchmark and prints it, for `scripts/benchmark.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from smallm_hf.base.allocation import keep_freed_memory
from smallm_hf.base.errors import UserError
from smallm_hf.base.folders import require_writable, write_whole
from smallm_hf.base.plain_json import json_text
from smallm_hf.benchmarks.data import compare_preparing, print_preparing
from smallm_hf.benchmarks.generate import compare_decoding, print_decoding
from smallm_hf.benchmarks.serve import compare_servers, print_servers
from smallm_hf.benchmarks.size import measure_size, print_size
from smallm_hf.benchmarks.soak import print_soak, soak_model
from smallm_hf.benchmarks.training import compare_training, print_training
from smallm_hf.config import CommandOptions, RunConfig
from smallm_hf.pretrained import load_causal_lm
from smallm_hf.runs import prepare_run
from smallm_hf.training.devices import accelerator_type, missing_for_compiling


def _show_train(*, run: tuple[RunConfig, CommandOptions], **given: Any) -> dict[str, Any]:
    config, options = run
    asked = {name: given[name] for name in ("seconds", "turn", "against", "without", "threads")}
    results = compare_training(config, prepare_run(config, options), **asked)
    print_training(results, Console())
    return results


def _show_data(*, source: str, tokenizer: str, workers: list[int], quick: bool, **given: Any) -> dict[str, Any]:
    runs = []
    for number in workers:
        runs.append(compare_preparing(source, tokenizer=tokenizer, workers=number, quick=quick))
        print_preparing(runs[-1], Console())
    return {"runs": runs}


def _show_size(*, source: str, tokenizer: str, megabytes: float, workers: list[int], **given: Any) -> dict[str, Any]:
    results = measure_size(source, megabytes=megabytes, workers=workers, tokenizer=tokenizer)
    print_size(results, Console())
    return results


def _show_generate(*, model: str, quick: bool, **given: Any) -> dict[str, Any]:
    missing = missing_for_compiling(accelerator_type())
    if missing and not quick:
        raise UserError(f"smallm benchmark generate compiles, which needs {missing}; install it, or give --quick")
    keep_freed_memory()
    results = compare_decoding(*load_causal_lm(model, dtype="float32"), compile=not quick, quick=quick)
    print_decoding(results, Console())
    return results


def _show_serve(*, model: str, clients: list[int], quick: bool, **given: Any) -> dict[str, Any]:
    results = compare_servers(model, clients=clients, quick=quick)
    print_servers(results, Console())
    return results


def _show_soak(*, model: str, clients: list[int], requests: int, **given: Any) -> dict[str, Any]:
    results = soak_model(model, requests=requests, clients=max(clients))
    print_soak(results, Console())
    return results


# Each measures and prints one thing, with the options of the command line.
SHOWN: dict[str, Callable[..., dict[str, Any]]] = {
    "train": _show_train,
    "data": _show_data,
    "size": _show_size,
    "generate": _show_generate,
    "serve": _show_serve,
    "soak": _show_soak,
}


def show(what: str, output: Path | None, **given: Any) -> None:
    """Measures and prints one of `SHOWN`, and writes the results to `output` as JSON if it is given.

    Raises:
        UserError: `output` cannot be written, found before anything is measured; or what the benchmark raises.
    """
    if output:
        require_writable(output, "--output", folder=False)
        output.parent.mkdir(parents=True, exist_ok=True)
    results = SHOWN[what](**given)
    if output:
        write_whole(output, json_text(results, indent=2) + "\n")
