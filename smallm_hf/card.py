"""The model card of a set of weights, filled in from the run's own records; nobody types a number into it."""

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from transformers import AutoConfig

from smallm_hf.base.errors import UserError
from smallm_hf.base.shipped import top_file
from smallm_hf.families import FAMILIES, family_of_file
from smallm_hf.hub.configuration import Statements, require_run
from smallm_hf.training.progress import read_records
from smallm_hf.training.validation import VALIDATION_FILE, figures_of_json

# Texts whose licence and language are known, by data.source.
KNOWN_TEXTS = {
    "python-docs": {"data_license": "psf-2.0", "language": "en"},
    "roneneldan/TinyStories": {"data_license": "cdla-sharing-1.0", "language": "en"},
}
# The metrics by their names in the records: the Hub's name, the card's, digits.
METRICS = {
    "loss": ("loss", "loss (nats per token)", 4),
    "perplexity": ("perplexity", "perplexity", 2),
    "bits_per_byte": ("bits_per_byte", "bits per byte", 4),
    "top1_accuracy": ("accuracy", "top-1 accuracy", 4),
    "top3_accuracy": ("top_3_accuracy", "top-3 accuracy", 4),
}
# The usual licences by the Hub's names; any other is published as `other` with a `license_name`.
HUB_LICENSES = (
    *("apache-2.0", "mit", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "mpl-2.0", "openrail", "unlicense", "unknown"),
    *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-2.0", "odc-by", "odbl", "pddl", "gfdl"),
)
PATH_IN_TEXT = re.compile(r"(?<![\w.:/\\~-])(?:~|[A-Za-z]:)?[\\/](?:[^\s'\"\\/]+[\\/])+([^\s'\"\\/]*)")
TEXT_TO_TEXT = "text2text-generation"
SHAPE = {
    "num_hidden_layers": "layers",
    "decoder_layers": "layers of its decoder",
    "num_decoder_layers": "layers of its decoder",
    "hidden_size": "wide",
    "num_attention_heads": "heads",
    "context_size": "tokens that a prediction reads",
    "vocab_size": "entries in the vocabulary",
    "max_position_embeddings": "positions",
    "trained_context_length": "tokens at once in training",
}


@dataclass(frozen=True)
class Weights:
    """One set of weights of a run, and what the run's records say about it.

    Args:
        name: `best`, `final` or `step-N`.
        folder: where they are.
        step: optimizer updates they have seen.
        tokens: training tokens they have seen.
        scored: their validation; None if they were not validated.
        samples: what they wrote: records with `prompt` and `text`.
    """

    name: str
    folder: Path
    step: int
    tokens: int
    scored: dict[str, float] | None
    samples: list[dict[str, Any]]


def read_results(run: Path) -> dict[str, Any]:
    """What `results.json` of a run holds.

    Raises:
        UserError: not a run, one that has not ended, or a file that is not JSON.
    """
    path = run / "results.json"
    require_run(run)
    if not path.is_file():
        command = f"smallm train --resume --output_dir {shlex.quote(str(run))}"
        raise UserError(f"{run} has not ended (no results.json); finish it with {command}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); finish the run again with smallm train --resume") from error


def find_weights(run: Path, name: str) -> Weights:
    """The weights called `best`, `final` or `step-N`, with what was recorded at their step.

    Raises:
        UserError: they do not exist, or the records lack their step.
    """
    checkpoint = name.startswith("step-")
    folder = run / "checkpoints" / name if checkpoint else run / name
    for file in ["config.json"] if checkpoint else ["config.json", VALIDATION_FILE]:
        if not (folder / file).is_file():
            raise UserError(f"{run} has no whole {name}/ (no {file}); train it to its end, or give another --run")
    scored = None if checkpoint else json.loads((folder / VALIDATION_FILE).read_text(encoding="utf-8"))
    step = int(name.removeprefix("step-")) if checkpoint else scored["step"]
    records = [record for record in read_records(run, "metrics") if record["step"] == step]
    if not records:
        raise UserError(f"{run}/metrics.jsonl has no record of step {step}, at which {name}/ was saved; train it again")
    scored = scored or next((record for record in records if "validation_loss" in record), None)
    samples = [record for record in read_records(run, "samples") if record["step"] == step]
    return Weights(name, folder, step, records[-1]["tokens"], scored and figures_of_json(scored), samples)


def without_paths(value: Any, key: str = "") -> Any:
    """A record without paths of this machine: an absolute path becomes its last part, everywhere but in prompts."""
    if isinstance(value, dict):
        return {name: without_paths(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple) and key != "sample_prompts":
        return [without_paths(item, key) for item in value]
    if not isinstance(value, str):
        return value
    option, equals, path = value.rpartition("=") if value.startswith("--") else ("", "", value)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(path).is_absolute() or path.startswith("~"):
            return option + equals + kind(path).name
    return PATH_IN_TEXT.sub(r"\1", value)


def write_card(folder: Path) -> None:
    """Writes `README.md` of `best/` or `final/` from the records of the run they are in."""
    card = render_card(folder.parent, find_weights(folder.parent, folder.name))
    (folder / "README.md").write_text(card, encoding="utf-8")


def render_card(
    run: Path,
    weights: Weights,
    statements: Statements | None = None,
    *,
    repo: str | None = None,
    files: Sequence[str] = (),
    exports: Sequence[dict[str, Any]] = (),
    revisions: Sequence[str] = (),
) -> str:
    """The card of one set of weights; sections without content are left out.

    Args:
        run: the run folder.
        weights: whose card.
        statements: what no record knows.
        repo: the Hub id they are published under; None for the folder they are in.
        files: names of all files that are published with them.
        exports: what `parity.json` says of each export among these, and its `files`.
        revisions: names of all revisions of the repository.
    """
    results = without_paths(read_results(run))
    config = json.loads((weights.folder / "config.json").read_text(encoding="utf-8"))
    facts = resolve_statements(results, statements or Statements())
    share = weights.tokens / results["tokens"]
    name = repo.split("/")[-1] if repo else results.pop("name", run.name)
    answers = family_of_file(config).kind == "seq2seq"
    card = ModelCard.from_template(
        _card_data(results, weights, facts, name, task_of(facts, answers)),
        template_path=str(top_file("model_card.md")),
        **{**results, "name": name},
        **facts,
        weights=asdict(weights),
        repo=repo,
        native=config["model_type"] not in FAMILIES,
        answers=answers,
        own_class=config.get("auto_map", {}).get("AutoModelForCausalLM", "").split(".")[-1],
        shape=_shape(weights.folder, config),
        weights_epochs=results["epochs"] * share,
        weights_flops=results["flops"] * share,
        exports=exports,
        gguf=[name for name in files if name.endswith(".gguf")],
        onnx=[name for name in files if name.endswith(".onnx")],
        figures=[name for name in files if name.endswith(".png")],
        report="report.html" if "report.html" in files else None,
        revisions=[revision for revision in revisions if revision != weights.name],
    )
    return f"{card}\n"


def resolve_statements(results: dict[str, Any], statements: Statements) -> dict[str, Any]:
    """`Statements`, completed from the run's config and from common knowledge; what is unknown is None."""
    config, source = results["config"], results["data"]["source"]
    data = config["data"]
    said = {
        "license": config.get("hub", {}).get("license", "apache-2.0"),
        "data_license": data.get("license"),
        "data_set": source if results["data"].get("on_hub") else None,
        "language": data.get("language"),
    }
    given = {name: value for name, value in asdict(statements).items() if value}
    named = {name: value for name, value in said.items() if value}
    known = KNOWN_TEXTS.get(source) or KNOWN_TEXTS.get(given.get("data_set"), {})
    return dict.fromkeys(said) | known | named | given


def eval_results(results: dict[str, Any], weights: Weights, statements: Statements, repo: str) -> list[dict[str, Any]]:
    """The scores in the form of the Hub's `.eval_results/*.yaml`; empty if the text is not on the Hub."""
    data_set = resolve_statements(without_paths(results), statements)["data_set"]
    if not (data_set and weights.scored):
        return []
    url, tokens = f"https://huggingface.co/{repo}", weights.scored["validation_tokens"]
    notes = f"{tokens:,} tokens held out from training; {results['protocol']}"
    return eval_result_entries_to_yaml(
        [
            EvalResultEntry(data_set, name, value, source_url=url, source_name="results.json", notes=notes)
            for name, value in _scores(weights.scored).items()
        ]
    )


def task_of(facts: dict[str, Any], answers: bool) -> str:
    """What the Hub calls what a model does: an encoder-decoder for which two languages are stated translates."""
    if not answers:
        return "text-generation"
    return "translation" if (facts["language"] or "").count(",") == 1 else TEXT_TO_TEXT


def _scores(scored: dict[str, float]) -> dict[str, float]:
    """The finite figures of a validation, rounded as in the card's metadata."""
    figures = {name: round(scored[f"validation_{name}"], digits) for name, (_, _, digits) in METRICS.items()}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _card_data(results: dict[str, Any], weights: Weights, facts: dict[str, Any], name: str, task: str) -> ModelCardData:
    """The metadata that the Hub reads; what is unknown is left out.

    `text2text-generation` is a tag like any other there: as `pipeline_tag` the Hub no longer knows it, and its task
    `text-generation` would make it show a pipeline that takes no encoder-decoder.
    """
    scored, training = [], results["config"]["training"]
    for metric, value in _scores(weights.scored).items() if weights.scored else ():
        hub_name, title, _ = METRICS[metric]
        scored.append(
            EvalResult(
                task_type=task,
                dataset_type=facts["data_set"] or Path(results["data"]["source"]).stem,
                dataset_name=f"{facts['data_set'] or results['data']['source']} (held out)",
                metric_type=hub_name,
                metric_name=f"{title}; {results['protocol']}",
                metric_value=value,
            )
        )
    return ModelCardData(
        language=facts["language"].split(",") if facts["language"] else None,
        **license_metadata(facts["license"]),
        library_name="transformers",
        pipeline_tag=None if task == TEXT_TO_TEXT else task,
        tags=["smallm", *([task] if task == TEXT_TO_TEXT else [])],
        datasets=[facts["data_set"]] if facts["data_set"] else None,
        metrics=["perplexity", "accuracy"] if scored else None,
        base_model=results.get("base_model"),
        widget=[{"text": prompt} for prompt in training["sample_prompts"] if prompt] or None,
        model_name=name if scored else None,
        eval_results=scored or None,
    )


def license_metadata(name: str) -> dict[str, str]:
    """A licence as the Hub's metadata has it."""
    return {"license": name} if name in HUB_LICENSES else {"license": "other", "license_name": name}


def _shape(folder: Path, config: dict[str, Any]) -> str:
    """The architecture in words, with its sizes."""
    loaded = AutoConfig.from_pretrained(folder, local_files_only=True)
    sizes = [f"{getattr(loaded, name):,} {word}" for name, word in SHAPE.items() if getattr(loaded, name, None)]
    return f"{config['architectures'][0]}, {', '.join(sizes)}"
