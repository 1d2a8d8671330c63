"""What is checked before anything is published: that the records agree, and that the weights load anywhere."""

import inspect
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.card import Weights, find_weights, read_results, render_card
from smallm_hf.data.selection.splitting import VALIDATION
from smallm_hf.data.token_files import TokenFiles
from smallm_hf.evaluation.scoring import summarize
from smallm_hf.evaluation.texts import pairs_of
from smallm_hf.families import FAMILIES, family_of, family_of_file
from smallm_hf.generation.request import source_ids
from smallm_hf.generation.search import beam_search
from smallm_hf.hub.repository import find_token
from smallm_hf.hub.text import find_token_files
from smallm_hf.inspection import position_limit
from smallm_hf.pretrained import load_weights
from smallm_hf.training.plan import embedding_parameters
from smallm_hf.training.progress import read_records
from smallm_hf.training.validation import ValidationPairs, ValidationSet, figures_of_json

LARGEST_DIFFERENCE = 1e-4  # of logits, as a share of the largest: float rounding between two ways to compute them
LARGEST_RELATIVE_ERROR = 1e-4  # of a validation that is scored again, perhaps on other hardware
CHECKED_TOKENS = 64
PROMPT = "The"
ANSWERED_TOKENS = 4


# --- the records -----------------------------------------------------------------------------------------------------


def check_record(run: Path, results: dict[str, Any], weights: Weights, model: PreTrainedModel) -> None:
    """Makes sure that `results.json` of a run agrees with `best` or `final`, loaded, and with the other records.

    Raises:
        UserError: naming the first figure that differs, and both values.
    """
    metrics, folder = read_records(run, "metrics"), f"{weights.name}/"
    tokens, stated = metrics[-1]["tokens"], figures_of_json(results["best" if weights.name == "best" else "last"])
    validated = [record for record in metrics if record["step"] == weights.step and "validation_loss" in record][-1:]
    context_length = results["config"]["training"]["context_length"]
    family, config = family_of(model.config), model.config
    flops = family.flops_per_token(model, context_length) * tokens
    found = [
        ("metrics.jsonl", results, {"steps": metrics[-1]["step"], "tokens": tokens}),
        (folder, results, {"parameters": sum(parameter.numel() for parameter in model.parameters())}),
        (folder, results, {"embedding_parameters": embedding_parameters(model)}),
        *([(folder, results, {"ngrams": [config.vocab_size, *config.ngrams]})] if family.counted else []),
        ("the formula", results, {"flops": flops}),
        (f"{folder}validation.json", stated, weights.scored),
        *(("metrics.jsonl", stated, _figures(figures_of_json(record))) for record in validated),
    ]
    for source, said, values in found:
        for name, value in values.items():
            if said.get(name) != value:
                raise UserError(
                    f"{run}/results.json says {name}={said.get(name)} of {weights.name}/, {source} says {value}; "
                    "restore the file as the run wrote it, or finish a run that went on since (smallm train --resume)"
                )


def _figures(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says of a validation, and at which step."""
    return {name: value for name, value in record.items() if name == "step" or name.startswith("validation_")}


def check_card(run: Path, weights: Weights) -> int:
    """Makes sure that the card of `best/` or `final/`, if there is one, says what the run's records say.

    Returns:
        How many lines were compared.

    Raises:
        UserError: naming the first line that differs, as it is and as it should be.
    """
    path = weights.folder / "README.md"
    if not path.exists():
        return 0
    written = path.read_text(encoding="utf-8").splitlines()
    expected = render_card(run, weights).splitlines()
    for number, (line, right) in enumerate(itertools.zip_longest(written, expected, fillvalue="(nothing)"), start=1):
        if line != right:
            raise UserError(
                f"{path} line {number} says {line!r:.100}, the run's records say {right!r:.100}; "
                "undo your change, or remove the file to have it written again"
            )
    return len(expected)


def verify_card(run: Path) -> list[str]:
    """Recomputes what the card of the best weights says, from the run's records, its weights and its validation text.

    Returns:
        Lines that say what was compared.

    Raises:
        UserError: naming the first thing that differs from the card, and both values.
    """
    results, best = read_results(run), find_weights(run, "best")
    model = load_own_class(best.folder)
    check_record(run, results, best, model)
    number = check_card(run, best)
    size = f"{results['parameters']:,} parameters ({results['embedding_parameters']:,} in tables)"
    size = f"{sum(results['ngrams']):,} n-grams" if "ngrams" in results else size
    lines = [
        f"card: its {number} lines are what the records say" if number else "card: none, it will be written again",
        f"{size}, FLOPs: counted again",
    ]
    files = find_token_files(results)
    if files is None:
        return [*lines, f"validation: not scored again, its tokens are no longer in {results['data']['folder']}"]
    validation = _validation(files, results["config"], model)
    sums = validation.sums(model, results["config"]["training"]["batch_size"]) + validation.size
    for name, value in summarize(sums, validation.hidden is not None).items():
        stated = best.scored[f"validation_{name}"]
        # Of two logits that are nearly equal, other hardware may find the other one larger.
        if not math.isclose(value, stated, rel_tol=LARGEST_RELATIVE_ERROR, abs_tol=2 / sums.tokens):
            raise UserError(
                f"the card says validation {name} {stated:.6g}, scoring {best.folder} again gives {value:.6g}; "
                "these are not the weights, or not the text, that were scored"
            )
    return [*lines, f"validation: scored again on {sums.tokens:,} tokens, the same"]


def _validation(files: TokenFiles, config: dict[str, Any], model: PreTrainedModel) -> ValidationSet | ValidationPairs:
    """What a run of this config has scored."""
    training, batching = config["training"], config.get("batching", {})  # older runs have no such section
    if files.is_pairs:
        fitting = pairs_of(files, VALIDATION).fitting(training["context_length"])
        return ValidationPairs.choose(fitting, training["validation_tokens"], model.config.decoder_start_token_id)
    return ValidationSet.of_run(files, training, batching)


# --- the weights -----------------------------------------------------------------------------------------------------


def load_own_class(folder: Path) -> PreTrainedModel:
    """The model as the class that trained it, in float32.

    Raises:
        UserError: weights or config are damaged.
    """
    disable_progress_bar()  # of loading: a moment each
    try:
        family = family_of_file(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        return load_weights(folder, family.config_class.from_pretrained(folder)).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded ({one_line(error)}); restore the files of the run") from error


def load_elsewhere(request: str) -> None:
    """What the checking process runs: it is given the source of this function and cannot import the package.

    Prints JSON: for each model and flag, the name and the largest difference of logits as a share of the largest logit.

    Args:
        request: JSON with `revision`, `prompt`, `max_new_tokens`, and for each of `models` its `name`, `flags` (of
            trust_remote_code) and `expected`, a safetensors file with `logits` and the inputs that give them; of an
            encoder-decoder also `source_ids`, the tokens of the prompt, and its `answer`.
    """
    import json
    import sys

    sys.modules["smallm_hf"] = None  # importing it is an error from here on
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

    wanted, differences = json.loads(request), []
    prompt, revision = wanted["prompt"], {"revision": wanted["revision"]}
    length = {"max_new_tokens": wanted["max_new_tokens"]}
    for checked in wanted["models"]:
        name, inputs = checked["name"], load_file(checked["expected"])
        expected = inputs.pop("logits")
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False not in checked["flags"], **revision)
        for flag in checked["flags"]:
            options = {**revision, "trust_remote_code": flag}
            auto_class = AutoModelForSeq2SeqLM if "answer" in checked else AutoModelForCausalLM
            model = auto_class.from_pretrained(name, dtype=torch.float32, **options).eval()
            with torch.no_grad():
                difference = (model(**inputs).logits - expected).abs().max()
            if "answer" in checked:
                source = tokenizer(prompt, return_tensors="pt")
                ids, trained = source["input_ids"][0].tolist(), checked["source_ids"]
                assert ids == trained, f"its tokenizer reads {prompt!r} as {ids}, not as {trained}"
                text = tokenizer.decode(model.generate(**source, **length)[0], skip_special_tokens=True)
                assert text == checked["answer"], f"it answers {text!r} to {prompt!r}, the run {checked['answer']!r}"
            else:
                text = pipeline("text-generation", model=name, **options)(prompt, **length)[0]["generated_text"]
                assert text.startswith(prompt), f"pipeline answers {text!r} to {prompt!r}"
            differences.append((name, (difference / expected.abs().max()).item()))
    print(json.dumps(differences))


class Check(NamedTuple):
    """What is loaded elsewhere: a folder or repository, its files as published, the run's folder of these weights."""

    name: str
    folder: Path
    trained: Path


def check_elsewhere(checks: Sequence[Check], home: Path, revision: str | None = None) -> float:
    """Loads models in a process that cannot import this package, every way they promise, and compares the logits.

    Args:
        checks: the models.
        home: an empty `HF_HOME` for that process; created unless it exists.
        revision: of repositories; None for folders, which are loaded without the network.

    Returns:
        The largest difference of logits from those of the class that trained them, as a share of the largest logit.

    Raises:
        UserError: one does not load there, or differs by more than rounding.
    """
    home.mkdir(parents=True, exist_ok=True)
    asked = [_question(check, home / f"{number}.safetensors") for number, check in enumerate(checks)]
    request = {"models": asked, "revision": revision, "prompt": PROMPT, "max_new_tokens": ANSWERED_TOKENS}
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0" if revision else "1"}
    if revision:
        environment["HF_TOKEN"] = find_token()  # it may be kept in the usual HF_HOME
    code = f"{inspect.getsource(load_elsewhere)}\nload_elsewhere({json.dumps(request)!r})"
    result = subprocess.run([sys.executable, "-I", "-c", code], env=environment, capture_output=True, errors="replace")
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise UserError(f"it does not load where smallm_hf is not installed: {reason:.300}; fix that, then publish")
    differences, trained = json.loads(result.stdout.splitlines()[-1]), {check.name: check.trained for check in checks}
    for name, difference in differences:
        if not difference <= LARGEST_DIFFERENCE:  # nor NaN
            raise UserError(
                f"the logits of {name} differ from those of {trained[name]} by {difference:.1e} of the "
                f"largest (allowed: {LARGEST_DIFFERENCE:.0e}); these are not the weights or the config of the run"
            )
    return max(difference for _, difference in differences)


@torch.inference_mode()
def _question(check: Check, file: Path) -> dict[str, Any]:
    """What the checking process is asked about one model; writes `expected`."""
    config = json.loads((check.folder / "config.json").read_text(encoding="utf-8"))
    promised = {False: config["model_type"] not in FAMILIES, True: "auto_map" in config}
    model = load_own_class(check.trained)
    length = min(CHECKED_TOKENS, position_limit(model) or CHECKED_TOKENS)
    input_ids = (torch.arange(length) * 7919 % model.config.vocab_size)[None]  # from all over the vocabulary
    inputs, question = {"input_ids": input_ids}, {}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = input_ids.flip(1)
        tokenizer = AutoTokenizer.from_pretrained(check.folder, local_files_only=True)
        (question["answer"],) = beam_search(model, tokenizer, [PROMPT], beams=1, max_new_tokens=ANSWERED_TOKENS)
        question["source_ids"] = source_ids(model, tokenizer, PROMPT)
    save_file(inputs | {"logits": model(**inputs).logits.contiguous()}, file)
    flags = [flag for flag in promised if promised[flag]]
    return question | {"name": check.name, "flags": flags, "expected": str(file)}
