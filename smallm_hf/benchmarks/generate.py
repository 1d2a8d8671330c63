"""Our engine against what `generate` does by default, beside the speed at which this machine reads memory."""

import copy
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from smallm_hf.base.arithmetic import slow_dtype
from smallm_hf.base.environment import environment
from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks.rounds import in_rounds, ratio_text
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request
from smallm_hf.generation.steps import decodes_directly, lay_out_for_decoding
from smallm_hf.inspection import position_limit, vocabulary_size
from smallm_hf.training.devices import hardware

PROMPT_TOKENS = 16
# New tokens, rounds, and bytes of the tensor that is summed, more than the caches of a processor hold; a quick run only
# shows that it works.
FULL, QUICK = (112, 5, 2**28), (8, 2, 2**24)
BASELINE = "generate, fp32"
MEMORY = "reading memory"

Write = Callable[[Sequence[list[int]], int], list[list[int]]]  # prompts and number of new tokens, to these tokens


def compare_decoding(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    compile: bool = True,
    quick: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Times greedy texts of one length, prompt included, by `generate` and by our engine.

    All ways take turns with one another and with a sum over a large tensor, which tells how fast memory is read;
    `share_of_bound` is of the texts per second that reading all multiplied weights once per step would allow. Weights
    in bfloat16 are only timed where the device multiplies them well: elsewhere nobody would write so.

    Args:
        model: any causal model that `decodes_directly`; is left as it was.
        batch_sizes: texts at a time.
        compile: also with a compiled step.
        quick: seconds instead of minutes: few tokens, few rounds, no compiling.
        say: told what is being set up.

    Returns:
        What can be written as JSON: `ways` by batch size and name, each with the numbers of `in_rounds` in tokens per
        second, `share_of_bound`, `compile_seconds`, and `same_tokens`, the mean share of a text before it first differs
        from that of `generate` in float32; `memory` in bytes per second.

    Raises:
        UserError: the model is written with by `generate`'s own methods, or its context is too short.
    """
    wanted, rounds, read_bytes = QUICK if quick else FULL
    new_tokens = _new_tokens(model, wanted)
    models = {"fp32": copy.deepcopy(model).float().eval()}
    if slow := slow_dtype(torch.bfloat16, model.device):
        say(f"leaving out bf16: {slow}")
    else:
        models["bf16"] = copy.deepcopy(models["fp32"]).bfloat16()
    writers: dict[str, Write] = {}
    for dtype, each in models.items():
        ours = lay_out_for_decoding(copy.deepcopy(each))
        writers[f"generate, {dtype}"] = functools.partial(_generate, each)
        writers[f"ours, {dtype}"] = functools.partial(_write, Engine(ours, tokenizer))
        if compile and not quick:
            writers[f"ours, {dtype}, compiled"] = functools.partial(_write, Engine(ours, tokenizer, compile=True))
    tensor = torch.ones(read_bytes // 4, device=model.device)
    weights = {dtype: multiplied_bytes(each) for dtype, each in models.items()}
    found = {str(size): _time_ways(writers, weights, tensor, size, new_tokens, rounds, say) for size in batch_sizes}
    memory = [ways.pop(MEMORY) for ways in found.values()]
    return {
        "model": type(model).__name__,
        "parameters": model.num_parameters(),
        "multiplied_bytes": weights,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": new_tokens,
        "quick": quick,
        "memory": {"rates": [rate for each in memory for rate in each["rates"]]},
        "ways": found,
        "hardware": hardware(),
        **environment(),
    }


def _new_tokens(model: PreTrainedModel, wanted: int) -> int:
    """How many tokens can be compared."""
    if not decodes_directly(model):
        raise UserError(f"{type(model).__name__} is written with by generate alone; there is nothing to compare")
    limit = position_limit(model)
    if limit is not None and limit < PROMPT_TOKENS + 2:
        raise UserError(f"the model's context of {limit} tokens leaves no room behind {PROMPT_TOKENS} of a prompt")
    return wanted if limit is None else min(wanted, limit - PROMPT_TOKENS)


def _time_ways(
    writers: dict[str, Write],
    weights: dict[str, int],
    tensor: torch.Tensor,
    batch_size: int,
    new_tokens: int,
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """The numbers of each way of writing so many texts at a time, and of reading memory."""
    draw, vocab_size = torch.Generator().manual_seed(0), vocabulary_size(writers[BASELINE].args[0])
    prompts = torch.randint(vocab_size, (batch_size, PROMPT_TOKENS), generator=draw).tolist()
    first, ways = {}, {}
    for name, write in writers.items():
        say(f"setting up: {name}, {batch_size} at a time")
        began = time.perf_counter()
        first[name] = write(prompts, new_tokens), time.perf_counter() - began
        ways[name] = lambda write=write: len(write(prompts, new_tokens)) * new_tokens
    timed = in_rounds(ways | {MEMORY: functools.partial(_read, tensor)}, rounds)
    for name, (written, seconds) in first.items():
        numbers = timed[name]
        steps = timed[MEMORY]["rate"] / weights[name.split(", ")[1]]
        numbers["share_of_bound"] = numbers["rate"] / (steps * batch_size)
        numbers["same_tokens"] = _same(*map(torch.tensor, (written, first[BASELINE][0])))
        usual = batch_size * new_tokens / numbers["rate"]
        numbers["compile_seconds"] = seconds - usual if name.endswith("compiled") else None
    return timed


def multiplied_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights that every step multiplies with, and so must read: all matrices but tables looked up in."""
    matrices = {module.weight for module in model.modules() if isinstance(module, nn.Linear | Conv1D)}
    return sum(weight.nbytes for weight in matrices)


def _generate(model: PreTrainedModel, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    config = GenerationConfig(do_sample=False, pad_token_id=0, **length)
    ids = torch.tensor(prompts, device=model.device)
    written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return written[:, PROMPT_TOKENS:].tolist()


def _write(engine: Engine, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    texts = engine.write([Request(prompt, temperature=0, **length) for prompt in prompts])
    return [[token.id for token in text.tokens] for text in texts]


def _read(tensor: torch.Tensor) -> int:
    tensor.sum().item()
    return tensor.nbytes


def _same(written: torch.Tensor, expected: torch.Tensor) -> float:
    """The mean share of rows (B, T) before the first difference."""
    return (written == expected).cumprod(dim=1).double().mean().item()


def print_decoding(results: dict[str, Any], console: Console) -> None:
    """Shows what `compare_decoding` found."""
    rates = sorted(results["memory"]["rates"])
    table = Table(
        title=f"{results['model']}, {results['parameters']:,} parameters: {results['new_tokens']} tokens after "
        f"{results['prompt_tokens']}, greedy; memory is read at {rates[len(rates) // 2] / 1e9:.1f} GB/s "
        f"({rates[0] / 1e9:.1f} to {rates[-1] / 1e9:.1f})"
    )
    table.add_column("way")
    for column in ("texts", "tokens/s", f"times {BASELINE}", "of the bound", "same tokens", "compiling"):
        table.add_column(column, justify="right")
    for batch_size, ways in results["ways"].items():
        for name, numbers in ways.items():
            seconds = numbers["compile_seconds"]
            table.add_row(
                name,
                batch_size,
                f"{numbers['rate']:,.0f}",
                ratio_text(numbers["ratio"]),
                f"{numbers['share_of_bound']:.0%}",
                f"{numbers['same_tokens']:.0%}",
                "" if seconds is None else f"{seconds:.0f} s",
            )
    console.print(table)
