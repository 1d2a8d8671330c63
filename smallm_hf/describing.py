"""What a run holds, costs and has reached, as the lines that a user reads."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from smallm_hf.base.arithmetic import slow_dtype
from smallm_hf.base.command_line import called
from smallm_hf.base.wording import counted
from smallm_hf.config import RunConfig, model_config
from smallm_hf.data.token_files import TokenFiles
from smallm_hf.training.configuration import OF_UPDATES, TrainingConfig
from smallm_hf.training.devices import accelerator_type, held_bytes
from smallm_hf.training.kneser_ney import COUNTING_BYTES
from smallm_hf.training.plan import RunPlan
from smallm_hf.training.probe import Probe
from smallm_hf.training.progress import count, duration


def describe_data(files: TokenFiles) -> str:
    """The size of token files."""
    sides = (("training text", files.meta.train), ("validation text", files.meta.validation))
    unit, texts = ("pair", 2) if files.is_pairs else ("piece" if _is_cut(files) else "document", 1)
    lines = [
        f"{name:<17} {counted(side.documents // texts, unit)}, {side.bytes:,} bytes, {side.tokens:,} tokens "
        f"({side.bytes / side.tokens:.2f} bytes per token)"
        for name, side in sides
    ]
    cut = "                  few documents: they are cut into pieces, some of which validate"
    return "\n".join([*lines, cut] if unit == "piece" else lines)


def _is_cut(files: TokenFiles) -> bool:
    """Whether there were so few documents that each side has pieces of them."""
    try:
        report = json.loads((files.folder / "report.json").read_text(encoding="utf-8"))
        return bool(report["selection"]["split"]["sources_cut_inside"])
    except (OSError, ValueError, KeyError, TypeError):  # it is for people, and may have been taken away
        return False


def describe_next(files: TokenFiles) -> str:
    """What to do with token files that `prepare.py` has made."""
    option = f"--data.folder {shlex.quote(str(files.folder))}"
    return f"read {files.folder / 'report.md'}; train on them with the same settings and {option}"


def describe_plan(plan: RunPlan, config: RunConfig, precision: str) -> str:
    """The plan of a run before it starts."""
    training = config.training
    if plan.counted:
        return _describe_counting(plan, config)
    unit = "pairs of at most" if config.data.is_pairs else "windows of"
    other = plan.parameters - plan.embedding_parameters
    end = f"{count(plan.tokens)} in {plan.steps:,} steps" if plan.tokens else "until time is up"
    if training.epochs and not plan.tokens:
        end = f"{training.epochs:g} epochs of data not counted yet"
    slow = slow_dtype(torch.bfloat16, accelerator_type()) if precision == "bf16" else None
    total_flops = f", {plan.flops:.2e} in all" if plan.flops else ""
    return "\n".join(
        [
            f"parameters        {plan.parameters:,} ({plan.embedding_parameters:,} embedding, {other:,} other)",
            f"tokens per step   {plan.tokens_per_step:,} "
            f"({training.accumulation_steps} x {training.batch_size} {unit} {training.context_length})",
            f"total tokens      {end} ({training.limits})",
            f"FLOPs per token   {plan.flops_per_token:.3e}{total_flops}",
            _describe_memory(plan.memory_bytes),
            f"precision         {precision}, compile {plan.compiled}, loss {training.loss}",
            *([f"                  {slow}; training.precision=fp32 would be faster"] if slow else []),
        ]
    )


def describe_repetition(examples: int, config: RunConfig) -> str:
    """A warning for a text that is shorter than one update."""
    unit, training = "pair" if config.data.is_pairs else "window", config.training
    return (
        f"warning: the training text makes {counted(examples, unit)} of training.context_length="
        f"{training.context_length}, and one update reads {training.windows_per_step:,}: it reads the same ones again; "
        "give more text, or lower training.batch_size"
    )


def _describe_memory(training_bytes: int) -> str:
    """What a process will take, and how much of that is there before a model is made."""
    libraries, training = held_bytes() / 2**30, training_bytes / 2**30
    parts = f", {training:.2f} of it for training, the rest for Python and libraries" if libraries else ""
    return f"memory            about {libraries + training:.2f} GiB per process (estimated){parts}"


def _describe_counting(plan: RunPlan, config: RunConfig) -> str:
    """The plan of a run that counts: what it costs depends on the text, of which a plan knows nothing."""
    order, validating = model_config(config.model).order, (held_bytes() + plan.memory_bytes) / 2**30
    stated, default = config.training, TrainingConfig()
    ignored = [
        f"training.{key}={value}" for key in OF_UPDATES if (value := getattr(stated, key)) != getattr(default, key)
    ]
    return "\n".join(
        [
            f"n-grams           of 1 to {order} tokens, counted in one pass over the training text, without updates;",
            "                  how many different ones there are is known only then",
            f"memory            about {validating:.2f} GiB per process to validate (estimated), and at most",
            f"                  {COUNTING_BYTES} bytes for each different n-gram of {order} tokens",
            "time              unknown before the text is read",
            *([f"ignored           {', '.join(ignored)}: there are no updates"] if ignored else []),
        ]
    )


def describe_probe(probe: Probe, plan: RunPlan, training: TrainingConfig) -> str:
    """What a probe measured, and what follows for the whole run."""
    speed = plan.tokens_per_step / probe.step_seconds
    whole = f"{training.epochs or 0:g} epochs of data not counted yet"
    if plan.steps:
        whole = f"{plan.steps:,} updates take {duration(plan.steps * probe.step_seconds)}"
    elif training.max_seconds:
        whole = f"{duration(training.max_seconds)} are {count(speed * training.max_seconds)} tokens"
    return "\n".join(
        [
            f"probe             {probe.updates} updates of {probe.step_seconds:.3g} s (one in ten above "
            f"{probe.slowest:.3g} s), {count(speed)} tokens/s; set up in {duration(probe.set_up_seconds)}",
            f"                  {whole}, without validation, samples and checkpoints",
            f"                  peak memory {probe.peak_memory_bytes / 2**30:.2f} GiB (measured)",
        ]
    )


def describe_end(step: int, training: TrainingConfig, has_results: bool) -> str:
    """What is left to do for a resumed run that is already at its end."""
    end = f"at step {step} ({training.limits})"
    if has_results:
        return f"nothing left to train {end}; raise the limit that was reached to go on"
    # it was stopped in its last validation, or after its last checkpoint
    return f"all steps are done {end}; only the last validation, samples and saving are left"


def describe_results(results: dict[str, Any], run: Path, columns: Sequence[str] = (), resumed_at: int = 0) -> str:
    """How a run ended, and what to do with it next.

    Args:
        results: what `results.json` holds.
        run: its folder.
        columns: of source and target of the pairs that it trained on; none where it trained on a text.
        resumed_at: the step that it was resumed at; 0 where it was not.
    """
    early = ", stopped early without a lower validation loss" if results["stopped_early"] else ""
    since = f"in all since it was resumed at step {resumed_at:,}" if resumed_at else "in all"
    last, best, ngrams = results["last"], results["best"], results.get("ngrams", [])
    how, sizes = "counted" if ngrams else "trained", ", ".join(f"{number:,}" for number in ngrams)
    windows = sum(source["windows"] for source in results["sources"])
    unknown, prompts = last.get("validation_unknown_rate"), results["config"]["training"]["sample_prompts"]
    drawn = [f"{source['source']} {source['windows'] / windows:.1%}" for source in results["sources"] if windows]
    return "\n".join(
        [
            "",
            f"validation        loss {last['validation_loss']:.4f}, perplexity {last['validation_perplexity']:.2f}, "
            f"bits per byte {last['validation_bits_per_byte']:.4f} ({results['protocol']})",
            *([f"unknown tokens    {unknown:.2%} of them, whose spelling counts in bits per byte"] if unknown else []),
            f"best              loss {best['validation_loss']:.4f} at step {best['step']} (in best/)",
            f"{how:<18}{count(results['tokens'])} tokens in {duration(results['training_seconds'])}, "
            f"{duration(results['wall_seconds'])} {since}{early}",
            *([f"n-grams           {sum(ngrams):,} ({sizes} of 1, 2 ... tokens)"] if ngrams else []),
            *([f"mixture           {', '.join(drawn)}"] if len(drawn) > 1 else []),
            "",
            "next:",
            *(f"  {words}" for words in _next_commands(f"{run}/best", columns, prompts[0])),
        ]
    )


def _next_commands(model: str, columns: Sequence[str], prompt: str) -> list[str]:
    """What to do with a trained model."""
    score = f"{called('score')} --model {shlex.quote(model)} --data"
    if columns:
        source, target = map(shlex.quote, columns)
        return [f"{score} YOUR_PAIRS --source_column {source} --text_column {target} --generate 100 --beams 5"]
    model_in_python = json.dumps(model, ensure_ascii=False)  # which leaves single quotes to the shell
    in_python = (
        "from transformers import pipeline; "
        f'print(pipeline("text-generation", {model_in_python})("The")[0]["generated_text"])'
    )
    return [
        f"{called('generate')} --model {shlex.quote(model)} --prompt {shlex.quote(prompt)}",
        f"{score} YOUR_TEXT.txt",
        f"python -c {shlex.quote(in_python)}",
    ]
