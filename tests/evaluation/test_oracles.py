"""The scores of another program on the same texts."""

import json
import math

import numpy as np
import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, set_seed

from smallm_hf import SmaLLMConfig, SmaLLMForCausalLM
from smallm_hf.evaluation.minimal_pairs import CLOSE, judge_pairs
from smallm_hf.evaluation.pair_files import read_paradigms
from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.pretrained import load_causal_lm

TEXTS = [
    "Once upon a time there was a pumpkin that wanted to see the sea.",
    "Ü, said the  owl.\nNobody answered.",
    " ".join(
        f"{number} sheep jumped over the fence," for number in range(40)
    ),  # longer than the context, several times
]
METRICS = ("word_perplexity", "byte_perplexity", "bits_per_byte")


@pytest.mark.ecosystem
@pytest.mark.parametrize(("context_length", "texts"), [(32, TEXTS), (256, TEXTS[:2])])
def test_lm_eval_finds_the_same_of_texts_in_rolling_windows(context_length, texts, gpt2_folder, tmp_path):
    lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e .[test-ecosystem]")
    set_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    GPT2LMHeadModel(GPT2Config(n_positions=context_length, **sizes)).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(gpt2_folder).save_pretrained(tmp_path / "model")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task = {
        **{"task": "texts", "dataset_path": "json", "test_split": "test", "output_type": "loglikelihood_rolling"},
        **{"dataset_kwargs": {"data_files": {"test": str(tmp_path / "texts.jsonl")}}},
        **{"doc_to_text": "", "doc_to_target": "{{text}}", "metric_list": [{"metric": metric} for metric in METRICS]},
    }
    arguments = f"pretrained={tmp_path / 'model'},dtype=float32"
    found = lm_eval.simple_evaluate("hf", arguments, tasks=[task], device="cpu", bootstrap_iters=0)["results"]["texts"]
    # Its windows end with the text, as ours do when they slide by their whole length.
    options = {"protocol": "sliding", "stride": context_length}
    scored = score_documents(*load_causal_lm(str(tmp_path / "model"), device="cpu"), texts, **options)
    assert found["bits_per_byte,none"] == pytest.approx(scored["bits_per_byte"], rel=1e-5)
    assert found["byte_perplexity,none"] == pytest.approx(2 ** scored["bits_per_byte"], rel=1e-5)
    assert math.log(found["word_perplexity,none"]) == pytest.approx(math.log(scored["word_perplexity"]), rel=1e-5)


@pytest.mark.ecosystem
@pytest.mark.parametrize("prefix", ["", " "], ids=["the sentences alone", "behind a space, as its task blimp is"])
@pytest.mark.parametrize("published", [True, False], ids=["stories260K", "a smallm"])
def test_lm_eval_finds_the_same_of_every_minimal_pair(published, prefix, shared_data, gpt2_folder, tmp_path):
    lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e .[test-ecosystem]")
    model = shared_data / "pretrained" / "stories260K-hf"
    if not published:
        model = tmp_path / "model"
        set_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
        SmaLLMForCausalLM(SmaLLMConfig(vocab_size=50257, max_position_embeddings=64, **sizes)).save_pretrained(model)
        AutoTokenizer.from_pretrained(gpt2_folder).save_pretrained(model)
    paradigms = read_paradigms(str(shared_data / "blimp" / "BLiMP.zip"), max_pairs=5)  # 335 pairs
    pairs = [pair for paradigm in paradigms for pair in paradigm.pairs]
    lines = (json.dumps({"sentence_good": good, "sentence_bad": bad}) + "\n" for good, bad in pairs)
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    task = {  # lm_eval/tasks/blimp/_template_yaml, which leaves the delimiter out, so that it is a space
        **{"task": "pairs", "dataset_path": "json", "validation_split": "train", "output_type": "multiple_choice"},
        **{"dataset_kwargs": {"data_files": {"train": str(tmp_path / "pairs.jsonl")}}},
        **{"doc_to_text": "", "doc_to_target": 0, "doc_to_choice": "{{[sentence_good, sentence_bad]}}"},
        **{"metric_list": [{"metric": "acc"}]},
        **({} if prefix else {"target_delimiter": ""}),
    }
    arguments = f"pretrained={model},dtype=float32"
    found = lm_eval.simple_evaluate("hf", arguments, tasks=[task], device="cpu", bootstrap_iters=0, log_samples=True)
    theirs = [(one["resps"][0][0][0], one["resps"][1][0][0]) for one in found["samples"]["pairs"]]
    judged = judge_pairs(*load_causal_lm(str(model), device="cpu"), paradigms, sentence_prefix=prefix)
    margins = np.concatenate([judged.margins[paradigm.uid] for paradigm in paradigms])
    assert margins == pytest.approx([good - bad for good, bad in theirs], abs=CLOSE / 10)
    assert judged.figures["ties"] == 0
    assert found["results"]["pairs"]["acc,none"] == np.mean(margins > 0)
