"""The ladder: every rung, from counts to transformers, trained on one text within one budget, laid into one table."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from smallm_hf.base.environment import environment
from smallm_hf.base.errors import UserError
from smallm_hf.base.folders import write_whole
from smallm_hf.base.plain_json import json_text
from smallm_hf.config import RunConfig, model_config
from smallm_hf.data.configuration import TokenizerConfig
from smallm_hf.data.prepare import find_or_prepare
from smallm_hf.data.request import DataRequest, default_folder
from smallm_hf.data.token_files import TokenFiles
from smallm_hf.evaluation.page import COLOURS, NONE, figure, labels, percent, size
from smallm_hf.evaluation.pair_files import read_paradigms
from smallm_hf.evaluation.speed import in_own_process
from smallm_hf.experiments.configuration import Ladder
from smallm_hf.experiments.measuring import CONTEXT_CHARACTERS, Asked, measure_rung
from smallm_hf.experiments.page import Chart, Line, Page, Points, Table, merged, report
from smallm_hf.experiments.running import Train, claim, having, memory_of, results_of, run_all, train_apart
from smallm_hf.experiments.sizing import TOLERANCE, with_parameters
from smallm_hf.experiments.texts import TRAIN_FILE, VALIDATION_FILE, Texts, make_texts
from smallm_hf.families import family_of
from smallm_hf.plots import read_curves
from smallm_hf.pretrained import find_kind
from smallm_hf.runs import plan_run
from smallm_hf.training.devices import hardware
from smallm_hf.training.progress import count, duration

# The experiments, also folders of runs; those of smaller texts are named by their words.
EQUAL_TIME, EQUAL_PARAMETERS, BY_SIZE = "equal-time", "equal-parameters", "words-{}"
Row = dict[str, Any]
Measure = Callable[[str, Asked], Row]


def measure_apart(model: str, asked: Asked) -> Row:
    """`measure_rung` in a fresh process."""
    return in_own_process(measure_rung, model, asked)


def climb(
    ladder: Ladder, train: Train = train_apart, measure: Measure = measure_apart, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Trains and measures all rungs, and writes `ladder.json`, `.md`, `.html` and `.svg`.

    Args:
        ladder: what is trained; with `dry_run` only its cost is said.
        train: trains one run.
        measure: asks one model.
        say: hears of every step, and the tables.

    Returns:
        What `ladder.json` holds: by experiment the row of each rung, `models`, `text`, and `failed`, by the names of
        runs that failed the reason; empty after a dry run.

    Raises:
        UserError: a model that is not causal or not there, a width that cannot be found, or a folder that holds
            something else.
        Interrupted: it was asked to stop, and its run has saved its state.
    """
    for model in ladder.config.models:
        if (kind := find_kind(model)) != "causal":
            raise UserError(f"models: {model} is {kind}, and a ladder compares causal models; leave it out")
    if ladder.config.minimal_pairs:
        read_paradigms(ladder.config.minimal_pairs, ladder.config.max_pairs)  # refused now, or not at all
    if ladder.dry_run:
        say(planned_costs(ladder).markdown)
        return {}
    folder = ladder.output_dir
    with having(folder):
        claim(folder, "ladder", ladder.rungs, ladder.resume)
        texts = make_texts(next(iter(ladder.rungs.values())), ladder.config.sizes_in_words, folder / "text", say)
        runs, notes = all_runs(ladder, texts, say)
        claim(folder, "ladder", runs, resume=True)
        failed = run_all(runs, folder / "runs", 1, train, say)
        rows = _measured(ladder, runs, texts, measure, failed, say)
        results = {
            **rows,
            "title": folder.name,
            "budget_seconds": ladder.config.budget_seconds,
            "parameters": ladder.config.parameters,
            "text": texts.sizes,
            "notes": notes,
            "failed": failed,
            "hardware": hardware(),
            **environment(),
        }
        report(page_of(results), results, folder / "ladder", say)
    return results


# --- runs ------------------------------------------------------------------------------------------------------------


def planned_costs(ladder: Ladder) -> Table:
    """What the rungs are planned to take, before any text is read."""
    rows = []
    for name, config in ladder.rungs.items():
        try:
            config, plan, _ = plan_run(config, lambda line: None)
        except UserError as error:
            raise UserError(f"rung {name}: {error}") from error
        memory = f"{plan.memory_bytes / 2**30:.2f} GiB"
        size = "counted" if plan.counted else f"{plan.parameters:,}"
        rows.append([name, model_config(config.model).model_type, size, memory])
    config = ladder.config
    each = 1 + bool(config.parameters) + len(config.sizes_in_words)
    seconds = len(rows) * each * config.budget_seconds
    note = f"{len(rows)} rungs, {each} runs each: {duration(seconds)} of training, without preparing and measuring."
    return Table("Planned", ["rung", "model", "parameters", "memory"], rows, note)


def all_runs(ladder: Ladder, texts: Texts, say: Callable[[str], None]) -> tuple[dict[str, RunConfig], list[str]]:
    """Every run by its name, EXPERIMENT/RUNG, in their order, and what cannot be compared.

    The tokenizer of a rung is trained on the whole training text and kept for smaller ones.
    """
    config, tokens = ladder.config, texts.folder.parent / "tokens"
    full, sized, smaller, notes = {}, {}, {}, []
    for name, rung in ladder.rungs.items():
        recipe = texts.recipe(rung)
        recipe, files = _prepared(recipe, tokens, say)
        full[f"{EQUAL_TIME}/{name}"] = recipe
        if config.parameters and (reason := _unsizable(recipe)):
            notes.append(f"{name} has no place among equal parameters: {reason}")
        elif config.parameters:
            try:
                fields = with_parameters({**recipe.model, "vocab_size": files.meta.vocab_size}, config.parameters)
            except UserError as error:
                raise UserError(f"rung {name}: {error}") from error
            sized[f"{EQUAL_PARAMETERS}/{name}"] = replace(recipe, model=fields)
        for words in config.sizes_in_words:
            if texts.reach(words):
                kept = _with_tokenizer(texts.recipe(rung, words), files)
                smaller.setdefault(words, {})[f"{BY_SIZE.format(words)}/{name}"] = _prepared(kept, tokens, say)[0]
    runs = full | sized
    for of_size in smaller.values():
        runs |= of_size
    return runs, notes


def _prepared(recipe: RunConfig, root: Path, say: Callable[[str], None]) -> tuple[RunConfig, TokenFiles]:
    """The recipe with a folder of its token files, which rungs of one tokenizer share, and these files."""
    request = DataRequest(recipe.data, recipe.tokenizer, recipe.vocab_size, recipe.cleaning, recipe.selection)
    data = replace(recipe.data, folder=str(default_folder(request, root)))
    request = dataclasses.replace(request, data=data)
    return replace(recipe, data=data), find_or_prepare(request, None, recipe.training.context_length, say)


def _with_tokenizer(recipe: RunConfig, files: TokenFiles) -> RunConfig:
    """The recipe with the tokenizer of token files; that of a pretrained model is its own."""
    if recipe.init_from:
        return recipe
    tokenizer = TokenizerConfig(str(files.folder / "tokenizer"))
    return replace(recipe, tokenizer=tokenizer, model={**recipe.model, "vocab_size": files.meta.vocab_size})


def _unsizable(recipe: RunConfig) -> str | None:
    """Why a model has no width to choose; None if it has."""
    if recipe.init_from:
        return "its size came with its weights"
    if family_of(model_config(recipe.model)).counted:
        return "its tables are as large as the text makes them"
    return None


# --- figures ---------------------------------------------------------------------------------------------------------


def _measured(
    ladder: Ladder,
    runs: Iterable[str],
    texts: Texts,
    measure: Measure,
    failed: dict[str, str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The rows of all runs that have ended and of the pretrained models; what fails is added to `failed`."""
    folder, config = ladder.output_dir, ladder.config
    brief = Asked(str(texts.validation))
    pairs = {"minimal_pairs": config.minimal_pairs, "max_pairs": config.max_pairs}
    whole = replace(brief, word_positions=config.word_positions, prompts=tuple(config.prompts), **pairs)

    def ask(name: str, model: str, asked: Asked, written: Path) -> Row | None:
        """What a model answers, now or before."""
        questions = json.loads(json_text(asdict(asked)))
        before = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else {"asked": None}
        if before["asked"] != questions:
            say(f"measuring {name}")
            try:
                answers = measure(model, asked)
            except UserError as error:
                failed[name] = str(error)
                return None
            written.parent.mkdir(exist_ok=True)
            write_whole(written, json_text({"asked": questions, "answers": answers}, indent=2) + "\n")
            before = json.loads(written.read_text(encoding="utf-8"))
        return before["answers"]

    experiments: dict[str, list[Row]] = {}
    for run in runs:
        experiment, name = run.split("/")
        path, asked = folder / "runs" / run, whole if experiment in (EQUAL_TIME, EQUAL_PARAMETERS) else brief
        if run not in failed and (answers := ask(run, str(path / "best"), asked, path / "measured.json")):
            experiments.setdefault(experiment, []).append({"rung": name, **answers, **_of_training(path)})
    models, pretrained = [], list(dict.fromkeys(config.models))
    for model, label in zip(pretrained, labels(pretrained), strict=True):
        if answers := ask(model, model, whole, folder / "models" / f"{label.replace('/', '-')}.json"):
            models.append({"rung": f"{label} (pretrained)", **answers})
    return {"experiments": experiments, "models": models}


def _of_training(run: Path) -> Row:
    """What the training of a run says of itself."""
    results = results_of(run)
    train = results["data"]["train"]
    curve = read_curves(run).get("validation_bits_per_byte")
    speed = results.get("tokens_per_second")
    return {
        "training_tokens": results["tokens"],
        **{key: results.get(key) for key in ("training_seconds", "epochs")},
        "peak_memory_bytes": memory_of(run),
        "tokens_per_second": speed,
        "bytes_per_second": speed and speed * train["bytes"] / train["tokens"],
        "vocabulary": results["data"]["vocab_size"],
        "ngrams": sum(results.get("ngrams", ())),
        "curve": [] if curve is None else curve.T.tolist(),
    }


# --- page ------------------------------------------------------------------------------------------------------------


def page_of(results: dict[str, Any]) -> Page:
    """The tables, curves and samples that show the results of `climb`."""
    experiments, models = results["experiments"], results["models"]
    first = experiments.get(EQUAL_TIME, [])
    names = [row["rung"] for row in [*first, *models]]
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    budget = duration(results["budget_seconds"])
    tables = [_table(f"Equal time: {budget} of training each", [*first, *models])]
    if sized := experiments.get(EQUAL_PARAMETERS):
        title = f"Equal parameters: about {results['parameters']:,} each (within {TOLERANCE:.0%}), and equal time"
        tables.append(_table(title, sized))
    if smaller := {name: rows for name, rows in experiments.items() if name not in (EQUAL_TIME, EQUAL_PARAMETERS)}:
        tables.append(_by_size(smaller, first, results["text"]))
    charts = []
    for title, column, log in (("training seconds", 1, False), ("training tokens", 0, True)):
        lines = [Line(row["rung"], colours[row["rung"]], _curve(row["curve"], column)) for row in first]
        if any(line.points for line in lines):
            up = "bits per byte of the validation text, lower is better"
            charts.append(Chart(f"Over {title}", up, title, lines, log))
    samples: dict[str, list[dict[str, str]]] = {}
    for row in [*first, *models]:
        for prompt, text in row.get("samples", {}).items():
            samples.setdefault(prompt, []).append({"label": row["rung"], "colour": colours[row["rung"]], "text": text})
    notes = [*results["notes"], *(f"{name} failed: {reason}" for name, reason in results["failed"].items())]
    return Page(f"The ladder: {results['title']}", _lead(results), tables, charts, notes, results, samples)


def _curve(points: Sequence[Sequence[float | None]], column: int) -> Points:
    """Bits per byte over the tokens (column 0) or seconds (1) of validation records; what is not finite is left out."""
    pairs = [[point[column], math.nan if point[2] is None else point[2]] for point in points if point[column]]
    return merged([np.array(pairs).T] if pairs else [])


def _lead(results: dict[str, Any]) -> str:
    text, threads = results["text"], results["hardware"]["cpu_threads"]
    return (
        f"One text for all: {text[TRAIN_FILE]['words']:,} words to train on, and {text[VALIDATION_FILE]['bytes']:,} "
        f"bytes in {text[VALIDATION_FILE]['documents']:,} documents to be scored on; on {results['hardware']['cpu']}, "
        f"{threads} thread{'s' if threads != 1 else ''}, one run at a time."
    )


def _table(title: str, rows: Sequence[Row]) -> Table:
    """A row for each rung; columns for which nothing was measured are left out."""
    columns: dict[str, Callable[[Row], str]] = {
        "parameters": lambda row: f"{row['ngrams']:,} n-grams" if row.get("ngrams") else f"{row['parameters']:,}",
        "vocabulary": lambda row: f"{row['vocabulary']:,}",
        "unknown tokens": lambda row: percent(row["unknown_rate"]),
        "bits per byte ↓": lambda row: f"{row['bits_per_byte']:.3f}",
        "word perplexity ↓": lambda row: figure(row["word_perplexity"], ",.1f"),
        "word top-1 ↑": lambda row: percent(row["word_accuracy"]["top1"]),
        "word top-3 ↑": lambda row: percent(row["word_accuracy"]["top3"]),
        "minimal pairs ↑": lambda row: percent(row["minimal_pairs"]["accuracy"]),
        "tokens seen": lambda row: count(row["training_tokens"]),
        "epochs": lambda row: f"{row['epochs']:.2g}",
        "tokens/s": lambda row: count(row["tokens_per_second"]),
        "text bytes/s ↑": lambda row: count(row["bytes_per_second"]),
        "peak memory": lambda row: size(row["peak_memory_bytes"]),
    }
    cells = {name: [_cell(row, write) for row in rows] for name, write in columns.items()}
    cells = {name: column for name, column in cells.items() if set(column) != {NONE}}
    words = next((row["word_accuracy"]["words"] for row in rows if row.get("word_accuracy")), 0)
    note = (
        "Bits per byte and word perplexity: all of the validation text, each document on its own, by the best weights."
    )
    if words:
        error = math.sqrt(0.25 / words)
        note += (
            f" Word accuracy: of {words:,} words drawn from it, the same for all, how many were the most probable next "
            f"word, or among the three most probable, summed over all token paths that spell a word, behind up to "
            f"{CONTEXT_CHARACTERS} characters; the standard error is at most {error:.1%}."
        )
    lines = [[row["rung"], *column] for row, *column in zip(rows, *cells.values(), strict=True)]
    return Table(title, ["rung", *cells], lines, note)


def _cell(row: Row, write: Callable[[Row], str]) -> str:
    try:
        return write(row)
    except (KeyError, TypeError):  # not measured, or infinite and so null
        return NONE


def _by_size(smaller: Mapping[str, Sequence[Row]], first: Sequence[Row], text: Mapping[str, Any]) -> Table:
    """Bits per byte of each rung by the words it was trained on, and the best rung of each number."""
    columns = {f"{count(int(name.rpartition('-')[2]))} words": rows for name, rows in smaller.items()}
    columns[f"all {count(text[TRAIN_FILE]['words'])} words"] = first
    bits = {name: {row["rung"]: row["bits_per_byte"] for row in rows} for name, rows in columns.items()}
    rungs = list(dict.fromkeys(rung for of_rungs in bits.values() for rung in of_rungs))
    rows = [[rung, *(_bits(of_rungs.get(rung)) for of_rungs in bits.values())] for rung in rungs]
    best = [
        min((value, rung) for rung, value in of_rungs.items() if value is not None)[1] for of_rungs in bits.values()
    ]
    note = (
        "Bits per byte of the same validation text, after the same time on the first words of the training text; the "
        "best weights by validation, so that a model that learns a small text by heart is not blamed for going on. "
        "Tokenizers are those of the whole text."
    )
    return Table("By the size of the text", ["rung", *columns], [*rows, ["lowest", *best]], note)


def _bits(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"
