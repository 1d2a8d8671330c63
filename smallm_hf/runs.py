"""Joins the rooms: a run config in, token files or a trained model out. What the scripts call."""

import dataclasses
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from filelock import Timeout
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from smallm_hf.allocation import keep_freed_memory
from smallm_hf.card import write_card
from smallm_hf.command_line import is_main_process
from smallm_hf.config import CommandOptions, RunConfig, model_config
from smallm_hf.data.batching import WindowOrder, refuse_mixing
from smallm_hf.data.documents import has_splits
from smallm_hf.data.packing import TokenFiles
from smallm_hf.data.preparing import find_or_prepare, wait_for_token_files
from smallm_hf.data.request import Request
from smallm_hf.environment import environment
from smallm_hf.errors import UserError
from smallm_hf.evaluation.scoring import evaluation_mode, refuse_lookahead
from smallm_hf.folders import lock, require_writable, write_whole
from smallm_hf.generation import prompt_window
from smallm_hf.hub.training_push import TrainingPush
from smallm_hf.pretrained import fresh_model, is_ours, load_weights, pretrained_model
from smallm_hf.resuming import (
    check_cooldown,
    check_fingerprints,
    cooldown_state,
    find_checkpoint,
    fingerprints_of,
    resumed_config,
)
from smallm_hf.training.checkpoints import LoopState, load_state, readable
from smallm_hf.training.configuration import TrainingConfig, plan_steps
from smallm_hf.training.devices import (
    build_accelerator,
    check_launch,
    hardware,
    held_bytes,
    peak_memory_bytes,
    resolve_batch_size,
    resolve_loss,
    resolve_precision,
    set_cpu_threads,
    set_determinism,
)
from smallm_hf.training.loop import SAMPLING, TrainingLoop
from smallm_hf.training.loss import has_plain_head
from smallm_hf.training.plan import Plan, make_plan, memory_bytes
from smallm_hf.training.probe import Probe, probe
from smallm_hf.training.progress import count, duration
from smallm_hf.training.tracking import Trackers
from smallm_hf.training.validation import ValidationSet


def prepare_run(config: RunConfig, options: CommandOptions) -> TokenFiles | None:
    """Makes the token files of a config, or finds them made, and says what they hold; or only shows a few documents."""
    if options.preview:
        from rich.console import Console

        from smallm_hf.data.preview import show_preview

        show_preview(_request(config), options.preview, Console())
        return None
    files = _token_files(config, print, options.output_dir)
    print(describe_data(files))
    print(f"read {files.folder}/report.md; train on them with the same settings and --data.folder {files.folder}")
    return files


def train_run(config: RunConfig, options: CommandOptions) -> dict[str, Any] | None:
    """Trains what a config describes and leaves a run folder; with `--dry_run` only prints the plan.

    Returns:
        What `results.json` holds, or None after a dry run.

    Raises:
        UserError: every mistake that can be seen before training is raised before the run folder exists.
    """
    check_launch(config.training)
    say = print if is_main_process() else _silent
    if options.dry_run:
        precision, architecture = resolve_precision(config.training.precision), model_config(config.model)
        config = dataclasses.replace(config, training=_resolve_sizes(config.training, architecture, precision))
        plan = make_plan(architecture, config.training, precision, plan_steps(config.training, None))
        say(describe_plan(plan, config, precision))
        if options.probe:
            set_cpu_threads(config.training.cpu_threads)
            keep_freed_memory()
            training = dataclasses.replace(config.training, precision=precision, compile=plan.compiled)
            say(describe_probe(probe(architecture, training, precision), plan, training))
        return None
    require_writable(options.output_dir, "--output_dir", folder=True)
    with _alone(options.output_dir, say):
        return _train(config, options, say)


@contextmanager
def _alone(run: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Has a run folder to itself: a run whose launcher is gone may still be saving there.

    Raises:
        UserError: another process still has it after `OTHERS_END_SECONDS`.
    """
    if not is_main_process():  # which stands for its group
        yield
        return
    try:
        held = lock(run).acquire(timeout=0)
    except Timeout:
        say(f"another process is writing to {run}; waiting for its end")
        try:
            held = lock(run).acquire(timeout=OTHERS_END_SECONDS)
        except Timeout:
            raise UserError(f"another process is training in {run}; stop it, or give another --output_dir") from None
    with held:
        yield


def _train(config: RunConfig, options: CommandOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """The whole of a run, from its text to its results."""
    run = options.output_dir
    checkpoint = find_checkpoint(options, say)
    if checkpoint is not None:
        config = resumed_config(config, checkpoint, say)
    precision = resolve_precision(config.training.precision)
    architecture, requested = model_config(config.model), config.training
    config = dataclasses.replace(config, training=_resolve_sizes(config.training, architecture, precision))
    trackers = Trackers(config.logging, run, say)
    set_cpu_threads(config.training.cpu_threads)
    disable_progress_bar()  # of saving and loading: the run has its own
    began = time.perf_counter()
    if config.training.deterministic:
        set_determinism()
    cools_down = checkpoint is None and config.training.cooldown_from is not None
    if cools_down:
        checkpoint = Path(config.training.cooldown_from)
        check_cooldown(config.training, checkpoint)
    files = _token_files(config, say)
    if is_main_process():
        files.verify()
    fingerprints = fingerprints_of(files)
    if checkpoint is not None:
        check_fingerprints(checkpoint, files, ["tokenizer"] if cools_down else list(fingerprints))
    architecture = _architecture(config, files)
    keep_freed_memory()
    accelerator = build_accelerator(precision)
    set_seed(config.training.seed)
    model = _model(config, architecture, checkpoint)
    with evaluation_mode(model):
        refuse_lookahead(model)
        if config.batching.within_documents:
            refuse_mixing(model, files.meta.eos_token_id)
    if config.training.loss == "chunked" and not has_plain_head(model):
        if requested.loss == "chunked":
            raise UserError(
                "training.loss=chunked needs logits that are a linear map of the hidden states, and those of "
                f"{type(model).__name__} are not; set it to logits"
            )
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, loss="logits"))
    for prompt in config.training.sample_prompts:
        prompt_window(model, files.tokenizer, prompt)  # one that is too long is refused now, not after the training

    shape = (len(files.train), config.training.context_length, config.training.seed)
    order = WindowOrder(*shape, config.batching, files.meta.sources)
    planned_steps = plan_steps(config.training, order.windows_per_epoch)
    plan = make_plan(architecture, config.training, precision, planned_steps)
    training = dataclasses.replace(config.training, precision=precision, compile=plan.compiled)
    config = dataclasses.replace(config, training=training)
    say(describe_data(files))
    say(describe_plan(plan, config, precision))

    if config.batching.curriculum:
        say(f"reading the training text for batching.curriculum={config.batching.curriculum}")
        order.read_difficulty(files.train, files.meta.eos_token_id)
    set_seed(training.seed, device_specific=True)  # dropout differs between processes, weights and order do not
    state = LoopState() if checkpoint is None else load_state(checkpoint)
    if cools_down:
        state = cooldown_state(state)
    all_bytes = files.meta.validation.bytes + files.meta.validation.documents  # an eos counts as one
    loop = TrainingLoop(
        model=model,
        tokenizer=files.tokenizer,
        train_tokens=files.train,
        validation=ValidationSet.choose(
            files.validation, all_bytes, training.validation_tokens, files.tokenizer, config.batching.within_documents
        ),
        training=training,
        run=run,
        accelerator=accelerator,
        flops_per_token=plan.flops_per_token,
        identity={"config": dataclasses.asdict(config), "fingerprints": fingerprints},
        checkpoint=checkpoint,
        state=state,
        mirror=trackers.write,
        push_every=config.hub.push_every,
        order=order,
    )
    if config.hub.push_every and accelerator.is_main_process:
        loop.pushes = TrainingPush(config.hub, loop.reporter.say)
    origin = {**environment(), "hardware": hardware()}
    if accelerator.is_main_process:  # nothing is written before all that could be refused was
        _claim(options)
        config.save(run / "config.yaml")
        _write_json(run / "environment.json", origin)
    if loop.finished():
        end = f"at step {loop.state.step} ({training.limits})"
        if loop.state.closed and (run / "results.json").is_file():
            say(f"nothing left to train {end}; raise the limit that was reached to go on")
        else:  # it ended in its last validation, or behind its last checkpoint
            say(f"all steps are done {end}; only the last validation, samples and saving are left")
    with trackers.mirroring(dataclasses.asdict(config), loop.state.step):
        trained = loop.run()
    if loop.pushes:
        loop.pushes.wait()
    measured = {"wall_seconds": time.perf_counter() - began, "peak_memory_bytes": peak_memory_bytes()}
    results = {"name": run.name, **trained, **measured, **_describe_run(config, plan, files, trained["tokens"], origin)}
    if accelerator.is_main_process:
        _write_json(run / "results.json", results)
        for name in ("best", "final"):
            write_card(run / name)
        from smallm_hf.plots import draw_runs  # matplotlib, which a dry run and the other processes do without

        draw_runs([run])
        say(describe_results(results, run))
    loop.close()
    accelerator.end_training()
    return results


def _describe_run(
    config: RunConfig, plan: Plan, files: TokenFiles, tokens: int, origin: dict[str, Any]
) -> dict[str, Any]:
    """What `results.json` says beside the training itself: what was trained, on what, where, and how it was scored."""
    source, init_from = config.data.title, config.init_from
    data = {"source": source, "on_hub": config.data.sources is None and has_splits(source), "folder": str(files.folder)}
    rule = "attention within documents, " if config.batching.within_documents else ""
    return {
        "parameters": plan.parameters,
        "embedding_parameters": plan.embedding_parameters,
        "flops": plan.flops_per_token * tokens,
        "protocol": f"packed, {rule}windows of {config.training.context_length} tokens, float32",
        "sampling": SAMPLING,
        "base_model": init_from if init_from and not Path(init_from).exists() else None,
        "data": {**data, **dataclasses.asdict(files.meta)},
        "config": dataclasses.asdict(config),
        "environment": origin,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _silent(line: str) -> None:
    """What every process but the main one says."""


def _claim(options: CommandOptions) -> None:
    """Makes the run folder, unless another run has made it since we looked."""
    try:
        options.output_dir.mkdir(parents=True)
    except FileExistsError:
        if not options.resume and any(options.output_dir.iterdir()):
            raise UserError(f"another run has just begun in {options.output_dir}; give another --output_dir") from None


def _token_files(config: RunConfig, say: Callable[[str], None], folder: Path | None = None) -> TokenFiles:
    """Token files that match the config; the main process makes them, before any process group can time out."""
    if is_main_process():
        return find_or_prepare(_request(config), folder, config.training.context_length, say)
    return wait_for_token_files(_request(config), folder)


def _request(config: RunConfig) -> Request:
    return Request(config.data, config.tokenizer, config.vocab_size, config.cleaning, config.selection)


def _resolve_sizes(training: TrainingConfig, architecture: PreTrainedConfig, precision: str) -> TrainingConfig:
    """Decides `batch_size: auto` and `loss: auto`, which depend on what fits into memory."""
    model = fresh_model(architecture, "meta")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    needed = partial(memory_bytes, model, precision=precision, compiled=False)
    training = resolve_batch_size(training, needed, processes)
    tokens = training.batch_size * training.context_length
    logits_bytes = 2 * 4 * tokens * architecture.get_text_config().vocab_size
    return dataclasses.replace(training, loss=resolve_loss(training.loss, logits_bytes=logits_bytes))


def _architecture(config: RunConfig, files: TokenFiles) -> PreTrainedConfig:
    """The model's config, with the special tokens of the tokenizer."""
    tokenizer = files.tokenizer
    if len(tokenizer) != config.vocab_size:
        raise UserError(
            f"the tokenizer in {files.folder} has {len(tokenizer)} entries, model.vocab_size={config.vocab_size}; "
            "set them equal or give another data.folder"
        )
    architecture = model_config(
        config.model,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    embedded = architecture.get_text_config().vocab_size
    if embedded < len(tokenizer):
        raise UserError(
            f"the tokenizer of model.init_from={config.init_from} has {len(tokenizer)} entries, its model only "
            f"{embedded}; give a model and a tokenizer that fit"
        )
    return architecture


def _model(config: RunConfig, architecture: PreTrainedConfig, checkpoint: Path | None) -> PreTrainedModel:
    """Fresh weights, pretrained ones, or those of a checkpoint of the same architecture; float32."""
    if checkpoint is None:
        return pretrained_model(config.init_from, architecture) if config.init_from else fresh_model(architecture)
    with readable(checkpoint):
        written = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        own_type = "smallm" if is_ours(written) else written["model_type"]
        if own_type != architecture.model_type:
            raise UserError(
                f"{checkpoint} was trained with model.model_type={own_type}, this config says "
                f"{architecture.model_type}; resume with the config of the run or give another --output_dir"
            )
        saved = type(architecture).from_pretrained(checkpoint)
        for field in dataclasses.fields(architecture):
            ours, theirs = getattr(architecture, field.name), getattr(saved, field.name, None)
            if ours != theirs and field.name not in UNCOMPARED:
                raise UserError(
                    f"{checkpoint} was trained with model.{field.name}={theirs}, this config says {ours}; "
                    "resume with the config of the run or give another --output_dir"
                )
        return load_weights(checkpoint, architecture, exact=True)


# A run that was asked to stop, or whose launcher is gone, ends within this time.
OTHERS_END_SECONDS = 40.0
# What saving adds to a config, or what says nothing of its shape.
UNCOMPARED = {"architectures", "dtype", "transformers_version", "auto_map"}


def describe_data(files: TokenFiles) -> str:
    """What token files hold, as the lines a user reads."""
    sides = (("training text", files.meta.train), ("validation text", files.meta.validation))
    return "\n".join(
        f"{name:<17} {side.documents:,} documents, {side.bytes:,} bytes, {side.tokens:,} tokens "
        f"({side.bytes / side.tokens:.2f} bytes per token)"
        for name, side in sides
    )


def describe_plan(plan: Plan, config: RunConfig, precision: str) -> str:
    """The plan of a run as the lines a user reads before it starts."""
    training = config.training
    other = plan.parameters - plan.embedding_parameters
    end = f"{count(plan.tokens)} in {plan.steps:,} steps" if plan.tokens else "until time is up"
    if training.epochs and not plan.tokens:
        end = f"{training.epochs:g} epochs of data not counted yet"
    total_flops = f", {plan.flops:.2e} in all" if plan.flops else ""
    return "\n".join(
        [
            f"parameters        {plan.parameters:,} ({plan.embedding_parameters:,} embedding, {other:,} other)",
            f"tokens per step   {plan.tokens_per_step:,} "
            f"({training.accumulation_steps} x {training.batch_size} windows of {training.context_length})",
            f"total tokens      {end} ({training.limits})",
            f"FLOPs per token   {plan.flops_per_token:.3e}{total_flops}",
            f"memory            about {(held_bytes() + plan.memory_bytes) / 2**30:.2f} GiB per process (estimated)",
            f"precision         {precision}, compile {plan.compiled}, loss {training.loss}",
        ]
    )


def describe_probe(probe: Probe, plan: Plan, training: TrainingConfig) -> str:
    """What a probe measured and what follows from it, as the lines a user reads."""
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


def describe_results(results: dict[str, Any], run: Path) -> str:
    """How a run ended, and what to do with it next."""
    early = ", stopped early for want of a lower validation loss" if results["stopped_early"] else ""
    last, best, prompt = results["last"], results["best"], results["config"]["training"]["sample_prompts"][0]
    windows = sum(source["windows"] for source in results["sources"])
    drawn = [f"{source['source']} {source['windows'] / windows:.1%}" for source in results["sources"] if windows]
    return "\n".join(
        [
            "",
            f"validation        loss {last['validation_loss']:.4f}, perplexity {last['validation_perplexity']:.2f}, "
            f"bits per byte {last['validation_bits_per_byte']:.4f} ({results['protocol']})",
            f"best              loss {best['validation_loss']:.4f} at step {best['step']} (in best/)",
            f"trained           {count(results['tokens'])} tokens in {duration(results['training_seconds'])}, "
            f"{duration(results['wall_seconds'])} in all{early}",
            *([f"mixture           {', '.join(drawn)}"] if len(drawn) > 1 else []),
            "",
            "next:",
            f"  python scripts/generate.py --model {run}/best --prompt {shlex.quote(prompt)}",
            f"  python scripts/score.py --model {run}/best --data YOUR_TEXT.txt",
            '  python -c "from transformers import pipeline; '
            f"print(pipeline('text-generation', '{run}/best')('The')[0]['generated_text'])\"",
        ]
    )
