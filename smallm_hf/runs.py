"""Joins the rooms: a run config in, token files or a trained model out. What the scripts call."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from filelock import Timeout
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from smallm_hf.base.allocation import keep_freed_memory
from smallm_hf.base.command_line import is_main_process
from smallm_hf.base.environment import environment
from smallm_hf.base.errors import UserError
from smallm_hf.base.folders import lock, require_writable, write_whole
from smallm_hf.base.plain_json import json_text
from smallm_hf.base.settings import RUN_MODELS
from smallm_hf.card import write_card
from smallm_hf.config import CommandOptions, RunConfig, model_config
from smallm_hf.data.prepare import find_or_prepare, wait_for_token_files
from smallm_hf.data.reading.documents import has_splits
from smallm_hf.data.request import DataRequest
from smallm_hf.data.token_files import TokenFiles
from smallm_hf.describing import (
    describe_data,
    describe_end,
    describe_next,
    describe_plan,
    describe_probe,
    describe_repetition,
    describe_results,
)
from smallm_hf.families import family_of, family_of_file
from smallm_hf.hub.training_push import TrainingPush
from smallm_hf.material import Material, material_of
from smallm_hf.pretrained import fresh_model, load_weights, pretrained_model
from smallm_hf.resuming import (
    check_fingerprints,
    counted_before,
    find_checkpoint,
    fingerprints_of,
    resumed_config,
    starting_point,
)
from smallm_hf.tokenizing.encoding import start_token_id
from smallm_hf.tokenizing.schemes import SCHEMES
from smallm_hf.training.checkpoints import LoopState, readable
from smallm_hf.training.configuration import TrainingConfig, plan_steps
from smallm_hf.training.counting import Counting
from smallm_hf.training.devices import (
    hardware,
    model_shares,
    peak_memory_bytes,
    resolve_batch_size,
    resolve_loss,
    resolve_precision,
    set_cpu_threads,
    set_determinism,
)
from smallm_hf.training.launch import build_accelerator, check_launch, process_left_as_found
from smallm_hf.training.loop import SAMPLING, TrainingLoop
from smallm_hf.training.objectives import has_plain_head
from smallm_hf.training.plan import RunPlan, make_plan, memory_bytes
from smallm_hf.training.probe import probe
from smallm_hf.training.progress import Reporter, RunLog
from smallm_hf.training.saving import Saver
from smallm_hf.training.tracking import Trackers
from smallm_hf.training.update import Updater

# A run that was asked to stop, or whose launcher is gone, ends within this time.
OTHERS_END_SECONDS = 40.0
# So long a run that fails or is asked to stop waits for its last push.
LAST_PUSH_SECONDS = 10.0
# What saving adds to a config, or what says nothing of its shape.
UNCOMPARED = {"architectures", "dtype", "transformers_version", "auto_map", "trained_context_length"}


def prepare_run(config: RunConfig, options: CommandOptions) -> TokenFiles | None:
    """Makes the token files of a config, or finds them made, and says what they hold; or only shows a few documents."""
    if options.preview:
        from rich.console import Console

        from smallm_hf.data.preview import show_preview

        show_preview(_request(config), options.preview, Console())
        return None
    files = _token_files(config, print, options.output_dir)
    print(describe_data(files))
    print(describe_next(files))
    return files


@process_left_as_found()
def train_run(config: RunConfig, options: CommandOptions) -> dict[str, Any] | None:
    """Trains what a config describes and leaves a run folder; with `--dry_run` only prints the plan.

    However it ends, the process can train again, with any other config.

    Returns:
        What `results.json` holds, or None after a dry run.

    Raises:
        UserError: every mistake that can be seen before training is raised before the run folder exists.
    """
    check_launch()
    say = print if is_main_process() else _silent
    if options.dry_run:
        config, plan, precision = plan_run(config, say)
        say(describe_plan(plan, config, precision))
        if options.probe and plan.counted:
            raise UserError("--probe times updates, and this model is counted without any; leave it out")
        if options.probe and config.data.is_pairs:
            raise UserError("--probe times updates on windows of made-up tokens, and pairs are none; leave it out")
        if options.probe:
            set_cpu_threads(config.training.cpu_threads)
            keep_freed_memory()
            training = _with_training(config, precision=precision, compile=plan.compiled).training
            say(describe_probe(probe(model_config(config.model), training, precision), plan, training))
        return None
    require_writable(options.output_dir, "--output_dir", folder=True)
    with _alone(options.output_dir, say), ExitStack() as ends:
        return _train(config, options, say, ends)


def plan_run(config: RunConfig, say: Callable[[str], None]) -> tuple[RunConfig, RunPlan, str]:
    """Counts what a run will cost, without data, tokenizer or weights.

    Returns:
        The config with the sizes that were `auto` decided, its plan, and the precision.
    """
    config, precision = _plannable(config, say), resolve_precision(config.training.precision)
    architecture = model_config(config.model)
    config = _with_sizes(config, architecture, precision)
    plan = make_plan(architecture, config.training, precision, plan_steps(config.training, None), say)
    return config, plan, precision


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


def _train(config: RunConfig, options: CommandOptions, say: Callable[[str], None], ends: ExitStack) -> dict[str, Any]:
    """The whole of a run, from its text to its results; `ends` holds what is let go of, however that ends."""
    began, run = time.perf_counter(), options.output_dir
    counted = family_of(model_config(config.model)).counted  # which has no checkpoints
    resumed = ends.enter_context(find_checkpoint(options, _silent if counted else say))
    if resumed is not None:
        config = resumed_config(config, resumed, say)
    precision, requested_loss = resolve_precision(config.training.precision), config.training.loss
    planned = _plannable(config, _silent)
    planned = _with_sizes(planned, model_config(planned.model), precision)  # what does not fit is refused now
    trackers = Trackers(config.logging, run, say)
    _set_up_process(config.training)
    checkpoint, state = starting_point(config.training, resumed)
    began_at = state.step if resumed else 0
    files = _token_files(config, say)
    if is_main_process():
        files.verify()
    if checkpoint is not None:
        check_fingerprints(checkpoint, files, of_text=resumed is not None)
    config = _with_entries(config, files)
    config = planned if planned.model == config.model else _with_sizes(config, model_config(config.model), precision)
    architecture = _architecture(config, files)
    keep_freed_memory()
    accelerator = build_accelerator(precision)
    set_seed(config.training.seed)
    model = _model(config, architecture, checkpoint)
    material = material_of(config, architecture, files)
    material.check(model)
    config = _with_possible_loss(config, requested_loss, model)
    steps = plan_steps(config.training, material.examples_per_epoch)
    plan = make_plan(architecture, config.training, precision, steps, say)
    config = _with_training(config, precision=precision, compile=plan.compiled, sample_prompts=material.sample_prompts)
    say(describe_data(files))
    say(describe_plan(plan, config, precision))
    if not counted and material.examples_per_epoch < config.training.windows_per_step:
        say(describe_repetition(material.examples_per_epoch, config))
    if counted and options.resume and (results := counted_before(run, config, files, say)):
        return results
    parts = _Parts(config, material, model, accelerator, plan, run)
    loop = _build_loop(parts, checkpoint, state, trackers.write)
    ends.enter_context(closing(loop))
    if config.hub.push_every and accelerator.is_main_process:
        loop.pushes = TrainingPush(config.hub, loop.reporter.say)
        ends.callback(loop.pushes.wait, LAST_PUSH_SECONDS)
    origin = {**environment(), "hardware": hardware()}
    if accelerator.is_main_process:  # nothing is written before all that could be refused was
        _claim(options)
        config.save(run / "config.yaml")
        _write_json(run / "environment.json", origin)
    if state.finished(config.training, loop.planned_steps):
        has_results = state.closed and (run / "results.json").is_file()
        say(describe_end(state.step, config.training, has_results))
    with trackers.mirroring(dataclasses.asdict(config), state.step):
        trained = loop.run()
    if loop.pushes:
        loop.pushes.wait()
    measured = {"wall_seconds": time.perf_counter() - began, "peak_memory_bytes": peak_memory_bytes()}
    results = {"name": run.name, **trained, **measured, **_describe_run(parts, trained["tokens"], origin)}
    if accelerator.is_main_process:
        _leave_results(run, results)
        say(describe_results(results, run, config.data.mixture[0].columns, began_at))
    return results


@dataclass(frozen=True)
class _Parts:
    """What a training is made of, ready before anything is written.

    Attributes:
        config: every `auto` decided.
        material: what it trains on.
        model: with the weights to start from.
        accelerator: knows the processes and the precision.
        plan: what it costs.
        run: the folder that its results go to.
    """

    config: RunConfig
    material: Material
    model: PreTrainedModel
    accelerator: Accelerator
    plan: RunPlan
    run: Path


def _build_loop(
    parts: _Parts, checkpoint: Path | None, state: LoopState, mirror: Callable[[str, dict[str, Any]], None]
) -> TrainingLoop | Counting:
    """The parts of a training, each from those before: batches, objective, updater, saver, loop."""
    config, model, accelerator, files = parts.config, parts.model, parts.accelerator, parts.material.files
    training = config.training
    reporter = Reporter(accelerator.is_main_process)
    set_seed(training.seed, device_specific=True)  # dropout differs between processes, weights and order do not
    batches = parts.material.batches(accelerator, reporter.say)
    objective = parts.material.objective(model, training, accelerator, reporter.say)
    counted = parts.plan.counted
    updater = None if counted else Updater.build(objective, batches, training, accelerator, state, reporter.say)
    retakes = not state.closed or state.finished(training, parts.plan.steps)  # validation and samples of its step
    saver = Saver(
        model=model,
        objective=objective,
        tokenizer=files.tokenizer,
        optimizer=updater and updater.optimizer,
        training=training,
        run=parts.run,
        log=RunLog(parts.run, accelerator.is_main_process, state.step, retakes, mirror),
        accelerator=accelerator,
        identity={"config": dataclasses.asdict(config), "fingerprints": fingerprints_of(files)},
        say=reporter.say,
    )
    if counted:
        return Counting(model, files, batches, objective, saver, reporter, accelerator)
    loop = TrainingLoop(
        updater,
        objective,
        saver,
        reporter,
        state,
        flops_per_token=parts.plan.flops_per_token,
        push_every=config.hub.push_every,
    )
    if training.compile:
        updater.warm_up()
    if checkpoint is not None:  # last, so that nothing above disturbs the random state
        updater.load(checkpoint, state)
    return loop


def _set_up_process(training: TrainingConfig) -> None:
    """What holds for the whole process, before its first tensor."""
    set_cpu_threads(training.cpu_threads)
    disable_progress_bar()  # of saving and loading: the run has its own
    if training.deterministic:
        set_determinism()


def _with_possible_loss(config: RunConfig, requested_loss: str, model: PreTrainedModel) -> RunConfig:
    """The config with a loss that this model can be trained by.

    Raises:
        UserError: another was asked for.
    """
    if config.training.loss != "chunked" or has_plain_head(model):
        return config
    if requested_loss == "chunked":
        raise UserError(
            "training.loss=chunked needs logits that are a linear map of the hidden states, and those of "
            f"{type(model).__name__} are not; set it to logits"
        )
    return _with_training(config, loss="logits")


def _leave_results(run: Path, results: dict[str, Any]) -> None:
    """Writes what came out of a run: its results, the cards of its weights, its plots."""
    _write_json(run / "results.json", results)
    for name in RUN_MODELS:
        write_card(run / name)
    from smallm_hf.plots import draw_runs  # matplotlib, which a dry run and the other processes do without

    draw_runs([run])


def _describe_run(parts: _Parts, tokens: int, origin: dict[str, Any]) -> dict[str, Any]:
    """What `results.json` says beside the training itself: what was trained, on what, where, and how it was scored."""
    config, plan, files = parts.config, parts.plan, parts.material.files
    source, init_from = config.data.title, config.init_from
    on_hub = config.data.sources is None and has_splits(source, config.data.mixture[0].columns)
    data = {"source": source, "on_hub": on_hub, "folder": str(files.folder)}
    return {
        "parameters": plan.parameters,
        "embedding_parameters": plan.embedding_parameters,
        "flops": plan.flops_per_token * tokens,
        "protocol": parts.material.protocol,
        "sampling": SAMPLING,
        "base_model": init_from if init_from and not Path(init_from).exists() else None,
        "data": {**data, **dataclasses.asdict(files.meta)},
        "config": dataclasses.asdict(config),
        "environment": origin,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json_text(content, indent=2) + "\n")


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


def _request(config: RunConfig) -> DataRequest:
    return DataRequest(config.data, config.tokenizer, config.vocab_size, config.cleaning, config.selection)


def _with_training(config: RunConfig, **changes: Any) -> RunConfig:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))


def _with_sizes(config: RunConfig, architecture: PreTrainedConfig, precision: str) -> RunConfig:
    """Decides `batch_size: auto` and `loss: auto`, which depend on what fits into memory."""
    model = fresh_model(architecture, "meta")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    needed = partial(memory_bytes, model, precision=precision, compiled=False)
    if family_of(architecture).recurrent and model_shares() > 1:
        raise UserError(
            f"model.model_type={architecture.model_type} cannot be split, as torch's cells read weights past FSDP; "
            "launch with configs/accelerate/ddp.yaml"
        )
    if config.batching.carry_state and processes > 1:
        raise UserError(
            f"batching.carry_state=true keeps the state of every row in one process, and this launch has {processes}; "
            "launch one process, or set batching.carry_state=false"
        )
    training = resolve_batch_size(config.training, needed, processes)
    tokens = training.batch_size * training.context_length
    logits_bytes = 2 * 4 * tokens * architecture.get_text_config().vocab_size
    training = dataclasses.replace(training, loss=resolve_loss(training.loss, logits_bytes=logits_bytes))
    if architecture.is_encoder_decoder:  # its batches have too many shapes
        training = dataclasses.replace(training, compile=False)
    return dataclasses.replace(config, training=training)


def _plannable(config: RunConfig, say: Callable[[str], None]) -> RunConfig:
    """The config with a number of entries for a plan, where it is the text that will decide it."""
    if config.init_from or "vocab_size" in config.model:
        return config
    entries = min(SCHEMES[config.tokenizer.source].planned_entries or config.vocab_size, config.vocab_size)
    say(f"tokenizer.source={config.tokenizer.source}: the text decides the vocabulary; this plan assumes {entries}")
    return dataclasses.replace(config, model={**config.model, "vocab_size": entries})


def _with_entries(config: RunConfig, files: TokenFiles) -> RunConfig:
    """The config with as many entries as the tokenizer has.

    Raises:
        UserError: it states another number.
    """
    entries = files.meta.vocab_size
    stated = config.vocab_size if config.init_from else config.model.get("vocab_size", entries)
    if stated != entries:
        raise UserError(
            f"the tokenizer in {files.folder} has {entries} entries, model.vocab_size={stated}; set it to {entries}, "
            "leave it out, or give another data.folder"
        )
    if config.init_from:
        return config
    return dataclasses.replace(config, model={**config.model, "vocab_size": entries})


def _architecture(config: RunConfig, files: TokenFiles) -> PreTrainedConfig:
    """The model's config, with the special tokens of the tokenizer and the length it is trained at."""
    tokenizer = files.tokenizer
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    if files.is_pairs:
        ids |= {"decoder_start_token_id": start_token_id(tokenizer), "forced_eos_token_id": tokenizer.eos_token_id}
    architecture = model_config(config.model, **ids)
    embedded = architecture.get_text_config().vocab_size
    if embedded < len(tokenizer):
        raise UserError(
            f"the tokenizer of model.init_from={config.init_from} has {len(tokenizer)} entries, its model only "
            f"{embedded}; give a model and a tokenizer that fit"
        )
    # What scores it later takes by default; with a carried state it was trained on no windows.
    architecture.trained_context_length = None if config.batching.carry_state else config.training.context_length
    return architecture


def _model(config: RunConfig, architecture: PreTrainedConfig, checkpoint: Path | None) -> PreTrainedModel:
    """Fresh weights, pretrained ones, or those of a checkpoint of the same architecture; float32."""
    if checkpoint is None:
        return pretrained_model(config.init_from, architecture) if config.init_from else fresh_model(architecture)
    with readable(checkpoint):
        written = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        saved = family_of_file(written).config_class.from_pretrained(checkpoint)
        if saved.model_type != architecture.model_type:
            raise UserError(
                f"{checkpoint} was trained with model.model_type={saved.model_type}, this config says "
                f"{architecture.model_type}; resume with the config of the run or give another --output_dir"
            )
        for field in dataclasses.fields(architecture):
            ours, theirs = getattr(architecture, field.name), getattr(saved, field.name, None)
            if ours != theirs and field.name not in UNCOMPARED:
                raise UserError(
                    f"{checkpoint} was trained with model.{field.name}={theirs}, this config says {ours}; "
                    "resume with the config of the run or give another --output_dir"
                )
        return load_weights(checkpoint, architecture, exact=True)
