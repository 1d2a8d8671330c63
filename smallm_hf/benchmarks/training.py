"""Our training step against plain loops over the library's models, its Trainer, and itself with something left out."""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from smallm_hf.base.allocation import keep_freed_memory
from smallm_hf.base.environment import environment
from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks.rounds import ratio_of, ratio_text
from smallm_hf.benchmarks.turns import Contestant, Turns, take_turns
from smallm_hf.config import RunConfig, model_config
from smallm_hf.data.batches.packed import PackedWindows
from smallm_hf.data.batches.windows import WindowOrder
from smallm_hf.data.token_files import TokenFiles, open_token_files
from smallm_hf.families import family_of
from smallm_hf.pretrained import fresh_model
from smallm_hf.training.checkpoints import LoopState
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.devices import accelerator_type, hardware, peak_memory_bytes, resolve_compile, resolve_precision
from smallm_hf.training.launch import build_accelerator, check_launch
from smallm_hf.training.loop import TrainingLoop
from smallm_hf.training.objectives import LanguageModelling
from smallm_hf.training.optimization import parts_of
from smallm_hf.training.update import Updater
from smallm_hf.training.validation import ValidationSet

FUSED, KEPT_MEMORY = "fused", "kept_memory"
# What can be left out of ours, and the settings that do so; those without any are left out in the code.
WITHOUT: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "fp32"},
    "compile": {"compile": False},
    "muon": {"optimizer": "adamw"},
    "length_warmup": {"length_warmup": []},
    "logits": {"loss": "chunked"},
    FUSED: {},
    KEPT_MEMORY: {},
}
# The recipe of the others: AdamW in float32 with a short warm-up and a linear decay over the second half.
PLAIN = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
PLAIN_WINDOWS, PLAIN_WARMUP, PLAIN_DECAY = 8, 0.04, 0.5
AGAINST = ("gpt2", "llama", "qwen3", "trainer")
# The upper bound of a step's speed: products of square matrices so large that only multiplying takes time.
MATRICES = "matrix products"
CPU_MATRIX_WIDTH, MATRIX_WIDTH = 2048, 8192
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compare_training(
    config: RunConfig,
    files: TokenFiles,
    *,
    seconds: float = 60.0,
    turn: float = 5.0,
    against: Sequence[str] = ("gpt2",),
    without: Sequence[str] = (),
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains models of one shape side by side, each for `seconds` of its own clock.

    Args:
        config: of our run; all models have the shape of its model.
        files: what all train on and are scored on.
        seconds: of training for each; compiling, validation and set-up are not counted.
        turn: seconds of work before the next one goes on.
        against: of `AGAINST`: a library model of our shape in a plain float32 loop, or GPT-2 in `transformers.Trainer`.
        without: of `WITHOUT`: ours with something left out.
        threads: of each process on a CPU; None leaves it to torch.
        say: called with the progress.

    Returns:
        `contestants`, by name: tokens per second (`rate`, `rates`), `ratio` of ours over it within each round, updates,
        tokens, `peak_memory_bytes`, `loss` and `bits_per_byte` of the validation set (packed, float32), seconds of
        set-up, and of ours the share of a step that the optimizer takes. `mfu` is a contestant's share of what matrix
        products reach in the precision of ours within the same round, by the operations of full rows (Chowdhery et al.
        2022, 4.1); `matrix_products` says what they reach, in operations per second. And where it was measured.

    Raises:
        UserError: an unknown contestant, one that failed, a launcher's settings that would not hold, or no compiler.
    """
    check_launch()
    wanted = bool(config.training.compile)  # ours is compiled unless that is forbidden, however short the run
    resolve_compile(wanted, planned_flops=None, planned_seconds=None)  # or refused
    precision = resolve_precision(config.training.precision)
    contestants = _contestants(config, files.folder, seconds, against, without)
    contestants[MATRICES] = functools.partial(_multiply, precision=precision)
    results = take_turns(contestants, seconds=seconds, turn=turn, threads=threads, say=say)
    matrices = results.pop(MATRICES)
    for row in results.values():
        shares = zip(row["rates"], matrices["rates"], strict=False)
        row["mfu"] = ratio_of([rate * row["flops_per_token"] / most for rate, most in shares])
    return {
        "seconds": seconds,
        "turn": turn,
        "contestants": results,
        "matrix_products": {"dtype": precision, "rate": matrices["rate"], "rates": matrices["rates"]},
        "context_length": config.training.context_length,
        "config": dataclasses.asdict(config),
        "hardware": hardware(),
        **environment(),
    }


def _contestants(
    config: RunConfig, folder: Path, seconds: float, against: Sequence[str], without: Sequence[str]
) -> dict[str, Contestant]:
    """By name; ours is the first."""
    for name, known in [(n, AGAINST) for n in against] + [(n, tuple(WITHOUT)) for n in without]:
        if name not in known:
            raise UserError(f"{name} is no contestant; choose from {', '.join(known)}")
    ours = functools.partial(_train_ours, folder=folder, seconds=seconds)
    contestants: dict[str, Contestant] = {"ours": functools.partial(ours, config=config)}
    for name in without:
        changed = dataclasses.replace(config, training=dataclasses.replace(config.training, **WITHOUT[name]))
        contestants[f"ours without {name}"] = functools.partial(ours, config=changed, without=name)
    for name in against:
        train = _train_with_trainer if name == "trainer" else functools.partial(_train_plainly, model_type=name)
        contestants[name] = functools.partial(train, config=config, folder=folder)
    return contestants


# --- ours ------------------------------------------------------------------------------------------------------------


def _train_ours(turns: Turns, *, config: RunConfig, folder: Path, seconds: float, without: str = "") -> dict[str, Any]:
    if without != KEPT_MEMORY:
        keep_freed_memory()
    files = open_token_files(folder)
    precision = resolve_precision(config.training.precision)
    compiled = config.training.compile if config.training.compile != "auto" else True
    training = dataclasses.replace(
        config.training,
        **{"precision": precision, "compile": compiled, "max_seconds": seconds, "max_steps": None, "epochs": None},
        loss="logits" if config.training.loss == "auto" else config.training.loss,
    )
    set_seed(training.seed)
    model = fresh_model(model_config(config.model, **_special_tokens(files)))
    flops = family_of(model.config).flops_per_token(model, training.context_length)
    accelerator = build_accelerator(precision)
    batches = PackedWindows(files.train, WindowOrder(len(files.train), training.context_length, training.seed))
    validation = ValidationSet.choose(files, training.validation_tokens, training.context_length)
    objective = LanguageModelling.of_run(model, training, accelerator, validation)
    updater = Updater.build(objective, batches, training, accelerator, LoopState(), print)
    with closing(TrainingLoop(updater, objective, None, None, LoopState(), flops_per_token=flops)) as loop:
        if training.compile:
            updater.warm_up()
        if without == FUSED:
            step_by_foreach(updater.optimizer)
        optimizing = _timed(updater.optimizer, "step")
        turns.begin()
        while (share := turns.share) < 1:
            loop.advance(share)
            turns.did(training.tokens_per_step)
        memory = peak_memory_bytes()
        steps, tokens = loop.state.step, loop.state.tokens
        figures = _scored(model, validation, accelerator)
    return {
        **{"steps": steps, "tokens": tokens, "peak_memory_bytes": memory, **figures},
        **{"parameters": model.num_parameters(), "flops_per_token": flops},
        "optimizer_share": optimizing[0] / seconds if accelerator_type() == "cpu" else None,
    }


def step_by_foreach(optimizer: torch.optim.Optimizer) -> None:
    """Replaces the fused AdamW by torch's foreach one, which does not know `found_inf`; they share their groups."""
    for part in parts_of(optimizer):
        if isinstance(part, torch.optim.AdamW):
            for group in part.param_groups:
                group |= {"fused": False, "foreach": True}
            part.step = torch.optim.AdamW(part.param_groups).step


def _timed(thing: Any, name: str) -> list[float]:
    """Sums the seconds that a method takes on the host."""
    method, total = getattr(thing, name), [0.0]

    def timed(*arguments, **options):
        began = time.perf_counter()
        method(*arguments, **options)
        total[0] += time.perf_counter() - began

    setattr(thing, name, timed)
    return total


# --- the others ------------------------------------------------------------------------------------------------------


def library_config(ours: PreTrainedConfig, model_type: str, **token_ids: int | None) -> PreTrainedConfig:
    """The config of a library model of the same width, depth, heads, positions and vocabulary, tied as ours is."""
    shape = {
        "vocab_size": ours.vocab_size,
        "hidden_size": ours.hidden_size,
        "num_hidden_layers": ours.num_hidden_layers,
        "num_attention_heads": ours.num_attention_heads,
        "max_position_embeddings": ours.max_position_embeddings,
        "tie_word_embeddings": ours.tie_word_embeddings,
    }
    if model_type != "gpt2":
        shape |= {"intermediate_size": ours.intermediate_size, "num_key_value_heads": ours.num_key_value_heads}
    if model_type == "qwen3":
        shape["head_dim"] = ours.hidden_size // ours.num_attention_heads
    return CONFIG_MAPPING[model_type](**shape, **token_ids)


def _train_plainly(turns: Turns, *, config: RunConfig, folder: Path, model_type: str) -> dict[str, Any]:
    files, training = open_token_files(folder), config.training
    model = _library_model(config, files, model_type)
    optimizer = torch.optim.AdamW(model.parameters(), **PLAIN)
    batches = PackedWindows(files.train, WindowOrder(len(files.train), training.context_length, training.seed))
    steps = 0
    turns.begin()
    while (share := turns.share) < 1:
        for group in optimizer.param_groups:
            group["lr"] = PLAIN["lr"] * plain_factor(share)
        batch = batches.at(steps * PLAIN_WINDOWS, PLAIN_WINDOWS).to(model.device)
        model(input_ids=batch["input_ids"], labels=batch["targets"], shift_labels=batch["targets"]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        turns.did(PLAIN_WINDOWS * training.context_length)
    return _plain_result(model, files, training, steps)


def plain_factor(share: float) -> float:
    """The plain loop's learning rate as a share of its peak: linear up, flat, linear down."""
    return max(0.0, min(1.0, share / PLAIN_WARMUP, (1 - share) / PLAIN_DECAY))


def _train_with_trainer(turns: Turns, *, config: RunConfig, folder: Path) -> dict[str, Any]:
    """GPT-2 in `transformers.Trainer` as it comes, with the plain loop's recipe."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    files, training = open_token_files(folder), config.training
    model = _library_model(config, files, "gpt2")
    batches = PackedWindows(files.train, WindowOrder(len(files.train), training.context_length, training.seed))

    class Windows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return batches.examples_per_epoch

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            input_ids = batches.at(index, 1).inputs["input_ids"][0]
            return {"input_ids": input_ids, "labels": input_ids}

    class TakesTurns(TrainerCallback):
        def on_train_begin(self, *arguments, **options) -> None:
            turns.begin()

        def on_step_begin(self, *arguments, optimizer, **options) -> None:
            for group in optimizer.param_groups:
                group["lr"] = PLAIN["lr"] * plain_factor(turns.share)

        def on_step_end(self, args, state, control, **options) -> None:
            turns.did(PLAIN_WINDOWS * training.context_length)
            control.should_training_stop = turns.share >= 1

    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            per_device_train_batch_size=PLAIN_WINDOWS,
            max_steps=1 << 40,
            learning_rate=PLAIN["lr"],
            adam_beta2=PLAIN["betas"][1],
            weight_decay=PLAIN["weight_decay"],
            lr_scheduler_type="constant",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=training.seed,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=Windows(), callbacks=[TakesTurns()])
        trainer.train()
    return _plain_result(model, files, training, trainer.state.global_step)


def _library_model(config: RunConfig, files: TokenFiles, model_type: str) -> PreTrainedModel:
    ours = model_config(config.model)
    torch.manual_seed(config.training.seed)
    model = AutoModelForCausalLM.from_config(library_config(ours, model_type, **_special_tokens(files)))
    return model.to(accelerator_type()).train()


def _plain_result(model: PreTrainedModel, files: TokenFiles, training: TrainingConfig, steps: int) -> dict[str, Any]:
    memory = peak_memory_bytes()
    validation = ValidationSet.choose(files, training.validation_tokens, training.context_length)
    flops = family_of(model.config).flops_per_token(model, training.context_length)
    return {
        "steps": steps,
        "tokens": steps * PLAIN_WINDOWS * training.context_length,
        "peak_memory_bytes": memory,
        **_scored(model, validation, build_accelerator("fp32")),
        **{"parameters": model.num_parameters(), "flops_per_token": flops},
    }


def _multiply(turns: Turns, *, precision: str) -> dict[str, Any]:
    """Multiplies matrices (N, N), and counts operations."""
    width = CPU_MATRIX_WIDTH if accelerator_type() == "cpu" else MATRIX_WIDTH
    left, right = torch.randn(2, width, width, device=accelerator_type(), dtype=DTYPES[precision])
    product = left @ right
    turns.begin()
    while turns.share < 1:
        torch.mm(left, right, out=product)
        turns.did(2 * width**3)
    return {}


# --- for all ---------------------------------------------------------------------------------------------------------


def _special_tokens(files: TokenFiles) -> dict[str, int | None]:
    tokenizer = files.tokenizer
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _scored(model: PreTrainedModel, validation: ValidationSet, accelerator: Accelerator) -> dict:
    figures = validation.score(model, 16, accelerator)
    return {name: figures[f"validation_{name}"] for name in ("loss", "bits_per_byte")}


def print_training(results: dict[str, Any], console: Console) -> None:
    """Prints the comparison as a table."""
    matrices = results["matrix_products"]
    table = Table(
        title=f"{results['seconds']:g} s of training each, in turns of {results['turn']:g} s; matrix products reach "
        f"{matrices['rate'] / 1e12:.3g} TFLOP/s in {matrices['dtype']}"
    )
    table.add_column("")
    headers = ("tokens/s", "ours is faster by", "MFU", "optimizer", "peak MiB", "bits per byte", "updates", "set-up s")
    for header in headers:
        table.add_column(header, justify="right")
    for name, row in results["contestants"].items():
        table.add_row(
            name,
            f"{row['rate']:,.0f}",
            ratio_text(row["ratio"]),
            f"{row['mfu']['median']:.0%}",
            f"{row['optimizer_share']:.0%}" if row.get("optimizer_share") else "",
            f"{row['peak_memory_bytes'] / 2**20:,.0f}",
            f"{row['bits_per_byte']:.4f}",
            f"{row['steps']:,}",
            f"{row['set_up_seconds']:.0f}",
        )
    console.print(table)
