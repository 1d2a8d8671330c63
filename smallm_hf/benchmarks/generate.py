"""Our decoding against what `generate` does by default, beside the speed at which this machine reads memory."""

import copy
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from smallm_hf.base.arithmetic import slow_dtype
from smallm_hf.base.environment import environment
from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks.rounds import in_rounds, ratio_text
from smallm_hf.generation import decode, decodes_directly, fixed_cache, lay_out_for_decoding
from smallm_hf.inspection import position_limit
from smallm_hf.models.modeling_smallm import CACHE_NAME
from smallm_hf.training.devices import hardware

PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 16, 112, 5
QUICK_NEW_TOKENS, QUICK_ROUNDS = 8, 2
# Larger than the caches of a processor; a quick run only shows that it works.
READ_BYTES, QUICK_READ_BYTES = 2**28, 2**24
BASELINE = "generate, fp32"
MEMORY = "reading memory"


def compare_decoding(
    model: PreTrainedModel,
    *,
    batch_sizes: Sequence[int] = (1, 8),
    compile: bool = True,
    quick: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Times greedy texts of one length by `generate` and by our loop, in float32 and with weights in bfloat16.

    The latter only where the device multiplies it well: elsewhere nobody would write so.

    A text's time is that of its prompt too. All ways take turns with one another and with a sum over a large tensor,
    which tells how fast memory is read; `share_of_bound` is of the texts per second that reading all multiplied weights
    once per step would allow.

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
        UserError: the model is not written with directly, or its context is too short.
    """
    if not decodes_directly(model):
        raise UserError(f"{type(model).__name__} is written with by generate alone; there is nothing to compare")
    limit = position_limit(model)
    new_tokens = QUICK_NEW_TOKENS if quick else NEW_TOKENS
    if limit is not None and limit < PROMPT_TOKENS + new_tokens:
        new_tokens = limit - PROMPT_TOKENS
        if new_tokens < 2:
            raise UserError(f"the model's context of {limit} tokens leaves no room behind {PROMPT_TOKENS} of a prompt")
    plain = copy.deepcopy(model).float().eval()
    models = {"fp32": plain}
    if slow := slow_dtype(torch.bfloat16, model.device):
        say(f"leaving out bf16: {slow}")
    else:
        models["bf16"] = copy.deepcopy(plain).bfloat16()
    ours = models | {"fp32": lay_out_for_decoding(copy.deepcopy(plain))}
    tensor = torch.ones((QUICK_READ_BYTES if quick else READ_BYTES) // 4, device=model.device)
    found: dict[str, Any] = {}
    memory = []
    for batch_size in batch_sizes:
        prompts = torch.randint(
            model.config.get_text_config().vocab_size,
            (batch_size, PROMPT_TOKENS),
            generator=torch.Generator().manual_seed(0),
        ).to(model.device)
        writers: dict[str, Callable[[], torch.Tensor]] = {}
        for dtype in models:
            writers[f"generate, {dtype}"] = functools.partial(_write, models[dtype], prompts, new_tokens)
            writers[f"ours, {dtype}"] = functools.partial(_write, ours[dtype], prompts, new_tokens, compile=False)
            if compile and not quick:
                compiled = functools.partial(_write, ours[dtype], prompts, new_tokens, compile=True)
                writers[f"ours, {dtype}, compiled"] = compiled
        first: dict[str, tuple[torch.Tensor, float]] = {}
        for name, write in writers.items():
            say(f"setting up: {name}, {batch_size} at a time")
            began = time.perf_counter()
            first[name] = write(), time.perf_counter() - began
        ways = {name: functools.partial(_tokens_of, write, new_tokens) for name, write in writers.items()}
        ways[MEMORY] = functools.partial(_read, tensor)
        timed = in_rounds(ways, QUICK_ROUNDS if quick else ROUNDS)
        memory.append(timed.pop(MEMORY))
        expected = first[BASELINE][0]
        for name, numbers in timed.items():
            written, seconds = first[name]
            dtype = name.split(", ")[1]
            steps = memory[-1]["rate"] / multiplied_bytes(models[dtype])
            numbers["share_of_bound"] = numbers["rate"] / (steps * batch_size)
            numbers["same_tokens"] = _same(written[:, PROMPT_TOKENS:], expected[:, PROMPT_TOKENS:])
            usual = batch_size * new_tokens / numbers["rate"]
            numbers["compile_seconds"] = seconds - usual if name.endswith("compiled") else None
        found[str(batch_size)] = timed
    return {
        "model": type(model).__name__,
        "parameters": model.num_parameters(),
        "multiplied_bytes": {dtype: multiplied_bytes(each) for dtype, each in models.items()},
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": new_tokens,
        "quick": quick,
        "memory": {"rates": [rate for each in memory for rate in each["rates"]]},
        "ways": found,
        "hardware": hardware(),
        **environment(),
    }


def multiplied_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights that every step multiplies with, and so must read: all matrices but tables looked up in."""
    matrices = {module.weight for module in model.modules() if isinstance(module, nn.Linear | Conv1D)}
    return sum(weight.nbytes for weight in matrices)


def _write(model: PreTrainedModel, prompts: torch.Tensor, new_tokens: int, compile: bool | None = None) -> torch.Tensor:
    """Texts (B, T) of exactly so many new tokens: by `generate` alone where `compile` is None, else by our loop."""
    length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    loop: dict[str, Any] = {}
    if compile is not None:
        loop["custom_generate"] = functools.partial(decode, compile=compile)
        if compile:
            loop[CACHE_NAME] = fixed_cache(model, prompts.shape[1] + new_tokens)
    with torch.inference_mode():
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            generation_config=GenerationConfig(do_sample=False, pad_token_id=0, **length),
            **loop,
        ).cpu()


def _tokens_of(write: Callable[[], torch.Tensor], new_tokens: int) -> int:
    return len(write()) * new_tokens


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
