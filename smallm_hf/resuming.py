"""What a run that goes on from a checkpoint must share with the run that wrote it."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from smallm_hf.base.command_line import is_main_process
from smallm_hf.base.environment import versions
from smallm_hf.base.errors import UserError
from smallm_hf.base.folders import restored
from smallm_hf.base.settings import RUN_MODELS
from smallm_hf.config import SECTIONS, CommandOptions, RunConfig
from smallm_hf.data.selection.splitting import SIDES
from smallm_hf.data.token_files import TokenFiles
from smallm_hf.training.checkpoints import (
    MANIFEST_FILE,
    LoopState,
    damage,
    list_checkpoints,
    load_state,
    newest_checkpoint,
    read_manifest,
)
from smallm_hf.training.configuration import TrainingConfig, share_done
from smallm_hf.training.devices import accelerator_type
from smallm_hf.training.optimization import muon_dtype

# The `auto` choices that a run makes once.
DECIDED = ("precision", "compile", "loss", "batch_size")
MUON = "products of Muon in"  # as it is said where they differ
# The main process may have to wait for the end of another run, and to read large checkpoints.
WAIT_SECONDS = 1800.0
# Keys that a resumed run may change: how long it is, how it is watched and kept, and where its text lies.
FREE_ON_RESUME = re.compile(
    r"training\.(max_steps|max_seconds|epochs|patience|cpu_threads|peak_tflops|interval_unit|.*_every|sample_.*"
    r"|keep_.*|on_full_disk|max_skipped_steps)|data\.(source|validation_source|folder|workers|license|language)|(logging|hub|comparison)\..*"
)


@contextmanager
def find_checkpoint(options: CommandOptions, say: Callable[[str], None]) -> Iterator[Path | None]:
    """The checkpoint to resume, on every process; a folder that holds another run is refused.

    The main process alone looks, because it alone holds the run's lock: another run may still be saving there.
    """
    run, name = options.output_dir, ""
    if not options.resume:
        if is_main_process() and run.exists() and any(run.iterdir()):
            checkpoints = list_checkpoints(run)
            held = f"a run that stopped at {checkpoints[-1].name}" if checkpoints else "files already"
            raise UserError(f"{run} holds {held}; add --resume to continue it, or give another --output_dir")
        yield None
        return
    if is_main_process():
        for weights in RUN_MODELS:
            restored(run / weights)
        for left in run.glob(".push-*"):  # by a process that was killed while it pushed
            shutil.rmtree(left, ignore_errors=True)
        checkpoint = newest_checkpoint(run, say)
        say(f"resuming from {checkpoint}" if checkpoint else f"no checkpoint in {run}; starting afresh")
        name = checkpoint.name if checkpoint else ""
    with _told_by_main_process(name) as name:
        yield run / "checkpoints" / name if name else None


@contextmanager
def _told_by_main_process(word: str) -> Iterator[str]:
    """What the main process says, on every process of a launch; they need not form a group yet, which could time out.

    The store through which they will find each other stays open inside the block, for its server to serve both.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield word
        return
    from torch.distributed.elastic.utils.store import synchronize

    store, rank, _ = next(torch.distributed.rendezvous("env://"))
    said = synchronize(store, word.encode(), rank, processes, "smallm_hf/", WAIT_SECONDS)
    yield said[0].decode()


def fingerprints_of(files: TokenFiles) -> dict[str, str]:
    """What gives the tokens of a run their order and meaning."""
    sides = {"train.bin": files.meta.train.sha256, "validation.bin": files.meta.validation.sha256}
    return {"tokenizer": files.meta.tokenizer_sha256, **sides}


def check_fingerprints(checkpoint: Path, files: TokenFiles, *, of_text: bool) -> None:
    """Makes sure that tokens mean what they did and, for a run that is resumed, are the same text.

    Raises:
        UserError: tokenizer or token files are others.
    """
    ours = fingerprints_of(files)
    theirs = read_manifest(checkpoint).fingerprints
    for name in ours if of_text else ["tokenizer"]:
        if ours[name] != theirs[name]:
            raise UserError(
                f"{checkpoint} was trained with {name} of sha256 {theirs[name][:12]}, {files.folder} holds "
                f"{ours[name][:12]}; resume with the text of the run or give another --output_dir"
            )


def resumed_config(config: RunConfig, checkpoint: Path, say: Callable[[str], None]) -> RunConfig:
    """The config to go on with: what is `auto` stays as it was decided, and nothing but `FREE_ON_RESUME` has changed.

    Raises:
        UserError: another key has.
    """
    manifest = read_manifest(checkpoint)
    # An option that is younger than the checkpoint was at its default then, whatever that run did.
    record = {name: _defaults(section) | manifest.config.get(name, {}) for name, section in SECTIONS.items()}
    written = record["training"]
    decided = {name: written[name] for name in DECIDED if getattr(config.training, name) == "auto"}
    if "batch_size" in decided:
        decided |= {name: written[name] for name in ("accumulation_steps", "global_batch_size")}
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, **decided))
    for section, before in record.items():  # without the model, which is compared as it is built
        ours = dataclasses.asdict(getattr(config, section))
        for key, value in before.items():
            name = f"{section}.{key}"
            if key not in ours:
                say(f"{checkpoint} was trained with {name}={value}, which this version does not know")
            elif ours[key] != value and not FREE_ON_RESUME.fullmatch(name):
                raise UserError(
                    f"{checkpoint} was trained with {name}={value}, this config says {ours[key]}; resume with "
                    "the config of the run (--resume --output_dir alone takes it) or give another --output_dir"
                )
    then, now = manifest.versions, versions()
    if config.training.optimizer == "muon":  # it follows the machine: kept, it could be hundreds of times slower here
        dtype = str(muon_dtype(accelerator_type())).removeprefix("torch.")
        then, now = then | {MUON: manifest.muon_dtype}, now | {MUON: dtype}
    others = [f"{name} {then.get(name)} then, {ours} now" for name, ours in now.items() if then.get(name) != ours]
    if others:
        say(f"the resumed run may differ from an uninterrupted one: {', '.join(others)}")
    return config


def _defaults(section: type) -> dict[str, Any]:
    """The keys of a section that has been left to itself."""
    return dataclasses.asdict(section())


def counted_before(
    run: Path, config: RunConfig, files: TokenFiles, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """The results of a finished run of a model that is counted; None where it was not finished.

    Raises:
        UserError: it counted another text, or otherwise.
    """
    path = run / "results.json"
    if not path.is_file():
        say(f"{run} was not counted to the end; starting afresh")
        return None
    results = json.loads(path.read_text(encoding="utf-8"))
    written, data = results["config"], results["data"]
    then = {f"model.{name}": value for name, value in written["model"].items()}
    now = {f"model.{name}": value for name, value in config.model.items()}
    then |= {f"training.{name}": written["training"][name] for name in ("context_length", "validation_tokens")}
    now |= {f"training.{name}": getattr(config.training, name) for name in ("context_length", "validation_tokens")}
    then |= {"tokenizer": data["tokenizer_sha256"], **{f"{side}.bin": data[side]["sha256"] for side in SIDES}}
    now |= fingerprints_of(files)
    for name in {**then, **now}:
        if then.get(name) != now.get(name):
            raise UserError(
                f"{run} was counted with {name} {then.get(name)}, this config says {now.get(name)}; resume with the "
                "config of the run or give another --output_dir"
            )
    say(f"nothing left to count: {run} is finished")
    return results


def starting_point(training: TrainingConfig, resumed: Path | None) -> tuple[Path | None, LoopState]:
    """The checkpoint whose weights a run begins with, and its counters: those of a run that is resumed or cooled down.

    Raises:
        UserError: a checkpoint that a run cannot cool down from.
    """
    if resumed is not None:
        return resumed, load_state(resumed)
    if training.cooldown_from is None:
        return None, LoopState()
    checkpoint = Path(training.cooldown_from)
    check_cooldown(training, checkpoint)
    return checkpoint, cooldown_state(load_state(checkpoint))


def check_cooldown(training: TrainingConfig, checkpoint: Path) -> None:
    """Refuses a checkpoint that a run cannot cool down from.

    Raises:
        UserError: none, a damaged one, of another schedule or optimizer, not at its full rate, or too late.
    """
    if not (checkpoint / MANIFEST_FILE).is_file():
        raise UserError(
            f"training.cooldown_from={checkpoint} is no checkpoint; give a folder such as RUN/checkpoints/step-1000"
        )
    if reason := damage(checkpoint):
        raise UserError(f"training.cooldown_from={checkpoint} is damaged ({reason}); give another checkpoint")
    before = read_manifest(checkpoint).config["training"]
    for name in ("schedule", "optimizer"):
        if before[name] != getattr(training, name):
            raise UserError(
                f"training.cooldown_from={checkpoint} was trained with training.{name}={before[name]}, this run has "
                f"{getattr(training, name)}; give a checkpoint of the same {name}"
            )
    state = load_state(checkpoint)
    if state.rate_factor < 1:
        raise UserError(
            f"training.cooldown_from={checkpoint} was at {state.rate_factor:.2f} of its peak rate, warming up or "
            "decaying already; give a checkpoint from between"
        )
    if share_done(training, training.max_steps, state.step, state.seconds) >= 1:
        raise UserError(
            f"training.cooldown_from={checkpoint} is at step {state.step} after {state.seconds:.0f} s, and the run "
            f"ends at {training.limits}; raise that to leave room for the decay"
        )


def cooldown_state(state: LoopState) -> LoopState:
    """The counters that a run begins with which cools down from a checkpoint: where that is, not how it fared."""
    return LoopState(
        **{name: getattr(state, name) for name in ("step", "windows", "tokens", "seconds", "rate_factor")},
        logged_step=state.step,
        logged_tokens=state.tokens,
        logged_seconds=state.seconds,
        cooldown_step=state.step,
        cooldown_seconds=state.seconds,
    )
