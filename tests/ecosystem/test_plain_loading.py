"""Whoever has `transformers` loads a published model, and without a flag wherever a native class fits."""

from pathlib import Path

import evaluate
import pytest
import torch
from outside import FLAG, PRESETS, PROMPT, REPO, ask, assert_same
from transformers import AutoModelForCausalLM

import smallm_hf
from smallm_hf import SmaLLMForCausalLM
from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.pretrained import load_causal_lm

TEXTS = ["the cat sat on", "one red bird."]


def matrix_of_device_map(addition: str, flag: str) -> pytest.MarkDecorator:
    return pytest.mark.matrix(f'`device_map="auto"`, also with layers on disk{addition}', flag, "accelerate")


@pytest.fixture(scope="module")
def answers(hub, presets, token_ids) -> dict:
    """What a process without our package gets, in one go, since its imports take seconds."""
    jobs = {
        **{"plain": ("load", REPO, {}), "remote": ("load", REPO, FLAG)},
        **{"tokenizer": ("tokenize", REPO, {}), "pipeline": ("generate", REPO, {})},
        **{f"{name}, plain": ("load", str(folder), {}) for name, (folder, _) in presets.items()},
        **{f"{name}, remote": ("load", str(folder), FLAG) for name, (folder, _) in presets.items()},
    }
    return ask(token_ids, jobs)


def loaded(model: torch.nn.Module, token_ids: list[int]) -> list:
    """The answer of a model in this process."""
    return [type(model).__name__, model(torch.tensor([token_ids])).logits[0].tolist()]


@pytest.mark.matrix("`AutoModelForCausalLM.from_pretrained`", "no flag", "transformers")
def test_plain_loading_gives_a_native_class_with_the_same_logits(answers, expected):
    assert_same(answers["plain"], "Qwen3ForCausalLM", expected)


@pytest.mark.matrix("`AutoTokenizer.from_pretrained`", "no flag", "transformers", "tokenizers")
def test_the_tokenizer_loads_plainly_and_cuts_the_same(answers, token_ids):
    assert answers["tokenizer"] == token_ids


@pytest.mark.matrix('`pipeline("text-generation")`', "no flag", "transformers")
def test_pipeline_writes_what_the_trained_class_writes(answers, continuation):
    assert answers["pipeline"] == PROMPT + continuation


@pytest.mark.matrix("our class, by the code in the repository", "`trust_remote_code=True`", "transformers")
def test_our_class_loads_where_our_package_is_not(answers, expected):
    assert_same(answers["remote"], "SmaLLMForCausalLM", expected)


@pytest.mark.matrix("our class, by import", "no flag; `from smallm_hf import SmaLLMForCausalLM`", "transformers")
def test_our_class_loads_by_import(pulled, expected, token_ids):
    assert_same(loaded(SmaLLMForCausalLM.from_pretrained(pulled), token_ids), "SmaLLMForCausalLM", expected)


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        pytest.param({}, "Qwen3ForCausalLM", marks=matrix_of_device_map("", "no flag")),
        pytest.param(FLAG, "SmaLLMForCausalLM", marks=matrix_of_device_map(", our class", "`trust_remote_code=True`")),
    ],
    ids=["native", "remote"],
)
def test_accelerate_places_the_layers(flag, name, pulled, expected, token_ids, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(pulled, device_map="auto", **flag)
    assert model.device.type == "cpu"
    assert_same(loaded(model, token_ids), name, expected)
    too_little = {"max_memory": {"cpu": 120_000}, "offload_folder": tmp_path}  # of 159,488 bytes of weights
    model = AutoModelForCausalLM.from_pretrained(pulled, device_map="auto", **too_little, **flag)
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert_same(loaded(model, token_ids), name, expected)


@pytest.mark.matrix("`evaluate`, our perplexity", "no flag", "evaluate")
def test_our_metric_scores_it_by_name(pulled, best):
    metric = evaluate.load(str(Path(smallm_hf.__file__).parent / "evaluation" / "perplexity"))
    found = metric.compute(predictions=TEXTS, model_id=pulled)
    scored = score_documents(*load_causal_lm(str(best), device="cpu"), TEXTS)
    assert found["loss"] == pytest.approx(scored["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(name, marks=pytest.mark.matrix(f"preset {name}, as `{native}`", "no flag", "transformers"))
        for name, (_, native) in PRESETS.items()
        if native
    ],
)
def test_every_preset_with_a_native_twin_loads_plainly_and_by_its_own_code(preset, answers, presets):
    assert_same(answers[f"{preset}, plain"], PRESETS[preset][1], presets[preset][1])
    assert_same(answers[f"{preset}, remote"], "SmaLLMForCausalLM", presets[preset][1])


@pytest.mark.matrix(
    "a model no native class can express (here: learned positions with RMSNorm)",
    "`trust_remote_code=True` only; without it, an error",
    "transformers",
)
def test_what_no_native_class_expresses_loads_by_its_own_code_and_not_without(answers, presets):
    assert_same(answers["no native class, remote"], "SmaLLMForCausalLM", presets["no native class"][1])
    assert answers["no native class, plain"].startswith("ValueError: "), answers["no native class, plain"]
