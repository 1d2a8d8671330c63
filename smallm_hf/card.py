"""The model card of a set of weights, filled from the run's own record; nobody types a number into it."""

import importlib.metadata
import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import (
    DatasetCard,
    DatasetCardData,
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from transformers import AutoConfig

from smallm_hf.base.errors import UserError
from smallm_hf.families import FAMILIES
from smallm_hf.hub.configuration import Statements, require_run
from smallm_hf.training.progress import read_records
from smallm_hf.training.validation import VALIDATION_FILE, figures_of_json

TOP = Path(__file__).resolve().parent.parent  # of the checkout, if this is one

# Texts whose licence and language are known, by what data.source calls them.
KNOWN_TEXTS = {
    "python-docs": {"data_license": "psf-2.0", "language": "en"},
    "roneneldan/TinyStories": {"data_license": "cdla-sharing-1.0", "language": "en"},
}
# What is scored, by its name in the record: the Hub's name of the metric, the card's, digits.
METRICS = {
    "loss": ("loss", "loss (nats per token)", 4),
    "perplexity": ("perplexity", "perplexity", 2),
    "bits_per_byte": ("bits_per_byte", "bits per byte", 4),
    "top1_accuracy": ("accuracy", "top-1 accuracy", 4),
    "top3_accuracy": ("top_3_accuracy", "top-3 accuracy", 4),
}
# The usual licences by the Hub's names; any other is `other` with a name of its own, which the Hub takes too.
HUB_LICENSES = (
    *("apache-2.0", "mit", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "mpl-2.0", "openrail", "unlicense", "unknown"),
    *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-2.0", "odc-by", "odbl", "pddl", "gfdl"),
)
PATH_IN_TEXT = re.compile(r"(?<![\w.:/\\~-])(?:~|[A-Za-z]:)?[\\/](?:[^\s'\"\\/]+[\\/])+([^\s'\"\\/]*)")
SHAPE = {
    "num_hidden_layers": "layers",
    "hidden_size": "wide",
    "num_attention_heads": "heads",
    "vocab_size": "entries in the vocabulary",
    "max_position_embeddings": "positions",
    "trained_context_length": "tokens at once in training",
}


@dataclass(frozen=True)
class Weights:
    """One set of weights of a run, and what the run's records say of it.

    Args:
        name: `best`, `final` or `step-N`.
        folder: where they lie.
        step: optimizer updates they have seen.
        tokens: training tokens they have seen.
        scored: their validation; None where they were not validated.
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
        UserError: no run, one that has not ended, or a file that is no JSON.
    """
    path = run / "results.json"
    require_run(run)
    if not path.is_file():
        command = f"train.py --resume --output_dir {shlex.quote(str(run))}"
        raise UserError(f"{run} has not ended (no results.json); finish it with {command}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); finish the run again with train.py --resume") from error


def find_weights(run: Path, name: str) -> Weights:
    """The weights called `best`, `final` or `step-N`, with what was recorded at their step.

    Raises:
        UserError: they are not there, or the records do not know their step.
    """
    checkpoint = name.startswith("step-")
    folder = run / "checkpoints" / name if checkpoint else run / name
    needed = ["config.json"] if checkpoint else ["config.json", VALIDATION_FILE]
    for file in needed:
        if not (folder / file).is_file():
            raise UserError(f"{run} has no whole {name}/ (no {file}); train it to its end, or give another --run")
    scored = None if checkpoint else json.loads((folder / VALIDATION_FILE).read_text(encoding="utf-8"))
    step = int(name.removeprefix("step-")) if checkpoint else scored["step"]
    records = [record for record in read_records(run, "metrics") if record["step"] == step]
    if not records:
        raise UserError(f"{run}/metrics.jsonl has no record of step {step}, at which {name}/ was saved; train it again")
    scored = scored or next((record for record in records if "validation_loss" in record), None)
    scored = scored and figures_of_json(scored)
    samples = [record for record in read_records(run, "samples") if record["step"] == step]
    return Weights(name, folder, step, records[-1]["tokens"], scored, samples)


def without_paths(value: Any, key: str = "") -> Any:
    """A record without the places of one machine: an absolute path becomes its last part, everywhere but in prompts."""
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


def top_file(name: str) -> Path:
    """A file from the top of the checkout, or from where the installation has put it.

    Raises:
        UserError: it has put it nowhere.
    """
    if (TOP / "setup.cfg").is_file():
        return TOP / name
    for file in importlib.metadata.files("smallm_hf") or ():
        if file.name == name and (path := Path(file.locate())).is_file():
            return path
    raise UserError(f"this installation of smallm_hf lacks {name}; install it from a checkout with pip install -e .")


def write_card(folder: Path) -> None:
    """Writes `README.md` of `best/` or `final/` from the records of the run that they lie in."""
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
    """The card of one set of weights; sections for which there is nothing do not appear.

    Args:
        run: the run folder.
        weights: whose card.
        statements: what no artefact knows.
        repo: the Hub id they are published under; None for the folder they lie in.
        files: names of all files that are published with them.
        exports: what `parity.json` says of each export among these, and its `files`.
        revisions: what else the repository has, by name of the revision.
    """
    results = without_paths(read_results(run))
    config = json.loads((weights.folder / "config.json").read_text(encoding="utf-8"))
    facts = resolve_statements(results, statements or Statements())
    share = weights.tokens / results["tokens"]
    name = repo.split("/")[-1] if repo else results.pop("name", run.name)
    card = ModelCard.from_template(
        _card_data(results, weights, facts, name),
        template_path=str(top_file("model_card.md")),
        **{**results, "name": name},
        **facts,
        weights=asdict(weights),
        repo=repo,
        native=config["model_type"] not in FAMILIES,
        own_class=config.get("auto_map", {}).get("AutoModelForCausalLM", "").split(".")[-1],
        shape=_shape(weights.folder, config),
        weights_epochs=results["epochs"] * share,
        weights_flops=results["flops"] * share,
        exports=exports,
        gguf=[name for name in files if name.endswith(".gguf")],
        onnx=[name for name in files if name.endswith(".onnx")],
        figures=[name for name in files if name.endswith(".png")],
        report="report.html" if "report.html" in files else None,
        revisions=revisions,
    )
    return f"{card}\n"


def resolve_statements(results: dict[str, Any], statements: Statements) -> dict[str, Any]:
    """`Statements` with what the run's config or common knowledge says where they say nothing; unknown is None."""
    config = results["config"]
    data, source = config["data"], results["data"]["source"]
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
    """The scores in the form of the Hub's `.eval_results/*.yaml`; empty where the text has no place on the Hub."""
    data_set = resolve_statements(without_paths(results), statements)["data_set"]
    if not (data_set and weights.scored):
        return []
    url, tokens = f"https://huggingface.co/{repo}", weights.scored["validation_tokens"]
    notes = f"{tokens:,} tokens that were kept from training; {results['protocol']}"
    return eval_result_entries_to_yaml(
        [
            EvalResultEntry(data_set, name, value, source_url=url, source_name="results.json", notes=notes)
            for name, value in _scores(weights.scored).items()
        ]
    )


def _scores(scored: dict[str, float]) -> dict[str, float]:
    """The figures of a validation as the card's metadata has them, where none is infinite."""
    figures = {name: round(scored[f"validation_{name}"], digits) for name, (_, _, digits) in METRICS.items()}
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _card_data(results: dict[str, Any], weights: Weights, facts: dict[str, Any], name: str) -> ModelCardData:
    """The metadata that the Hub reads; what is not known is left out."""
    scored, training = [], results["config"]["training"]
    for metric, value in _scores(weights.scored).items() if weights.scored else ():
        hub_name, title, _ = METRICS[metric]
        scored.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=facts["data_set"] or Path(results["data"]["source"]).stem,
                dataset_name=f"{facts['data_set'] or results['data']['source']} (held out)",
                metric_type=hub_name,
                metric_name=f"{title}; {results['protocol']}",
                metric_value=value,
            )
        )
    return ModelCardData(
        language=facts["language"].split(",") if facts["language"] else None,
        **_license(facts["license"]),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["smallm"],
        datasets=[facts["data_set"]] if facts["data_set"] else None,
        metrics=["perplexity", "accuracy"] if scored else None,
        base_model=results.get("base_model"),
        widget=[{"text": prompt} for prompt in training["sample_prompts"] if prompt] or None,
        model_name=name if scored else None,
        eval_results=scored or None,
    )


def _license(name: str) -> dict[str, str]:
    """The metadata for a licence."""
    return {"license": name} if name in HUB_LICENSES else {"license": "other", "license_name": name}


def _shape(folder: Path, config: dict[str, Any]) -> str:
    """The architecture in words, with the sizes that it has."""
    loaded = AutoConfig.from_pretrained(folder, local_files_only=True)
    sizes = [f"{getattr(loaded, name):,} {word}" for name, word in SHAPE.items() if getattr(loaded, name, None)]
    return f"{config['architectures'][0]}, {', '.join(sizes)}"


DATA_CARD = """---
{{ card_data }}
---

# {{ name }}

The text that a language model was trained and validated on with smallm_hf: `{{ data.source }}`, one document per row,
in the order and on the side they had. Licence: {{ data_license }}.

```python
from datasets import load_dataset

text = load_dataset({{ repo | tojson }})
```

| split | documents | bytes | tokens |
|---|---|---|---|
{%- for side in ("train", "validation") %}
| {{ side }} | {{ "{:,} | {:,} | {:,}".format(data[side].documents, data[side].bytes, data[side].tokens) }} |
{%- endfor %}

Tokens are those of the model's tokenizer (sha256 `{{ data.tokenizer_sha256 }}`), one for the end of each document
included. The source had the sha256 `{{ data.content_sha256 }}` (names and contents).
{%- if not config.data.validation_source and not config.data.validation_split %}
About {{ "%g" | format(100 * config.data.validation_ratio) }} % of the documents validate, chosen by a hash of each;
where there were few, the text itself was cut.
{%- endif %}
`meta.json` has these figures and the versions of the software.
"""


def render_data_card(results: dict[str, Any], facts: dict[str, Any], repo: str) -> str:
    """The card of a run's text, published as data set `repo`."""
    files = [{"split": side, "path": f"data/{side}-*.parquet"} for side in ("train", "validation")]
    data = DatasetCardData(
        language=facts["language"].split(",") if facts["language"] else None,
        **_license(facts["data_license"]),
        task_categories=["text-generation"],
        tags=["smallm"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    named = {**results, "name": repo.split("/")[-1]}
    return f"{DatasetCard.from_template(data, template_str=DATA_CARD, repo=repo, **named, **facts)}\n"
