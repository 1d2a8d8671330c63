"""The `evaluate` metric: of texts, of sums, and called as the stock one is."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evaluate
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import smallm_hf
from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.scoring import Rules, ScoringPlan, Sums, score_documents, summarize

FOLDER = str(Path(smallm_hf.__file__).parent / "evaluation" / "perplexity")
TEXTS = ["Once upon a time there was a pumpkin.", "Ü", "One fish, two fish, " * 5]  # the last exceeds 16 tokens


def load(**options):
    return evaluate.load(FOLDER, **options)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = GPT2Config(n_positions=16, n_embd=8, n_layer=1, n_head=2, initializer_range=0.5)
    return GPT2LMHeadModel(config).requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(gpt2_folder):
    return AutoTokenizer.from_pretrained(gpt2_folder)


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_texts_sums_and_the_scorer_give_the_same_number(model, tokenizer, folder):
    for protocol in ("documents", "packed"):
        of_texts = load().compute(predictions=TEXTS, model_id=folder, protocol=protocol)
        metric = load()
        for sums in ScoringPlan.make(model, tokenizer, Rules(protocol, batch_size=2)).score(TEXTS):
            metric.add_batch(predictions=[{"nats": sums.nats, "tokens": sums.tokens, "bytes": sums.bytes}])
        of_sums = metric.compute()
        scores = score_documents(model, tokenizer, TEXTS, protocol=protocol)
        for key in ("perplexity", "loss", "bits_per_byte", "tokens", "bytes"):
            assert of_texts[key] == pytest.approx(of_sums[key], rel=1e-6)
            assert scores[key] == pytest.approx(of_sums[key], rel=1e-6)


def test_the_window_is_the_length_of_training_where_it_is_known_and_is_stated(model, tokenizer, folder):
    assert load().compute(predictions=TEXTS, model_id=folder)["context_length"] == 16
    model.config.trained_context_length = 8
    try:
        found = load().compute(predictions=TEXTS, model=model, tokenizer=tokenizer)
        longer = load().compute(predictions=TEXTS, model=model, tokenizer=tokenizer, context_length=12)
    finally:
        del model.config.trained_context_length
    expected = score_documents(model, tokenizer, TEXTS, context_length=8)
    assert (found["context_length"], found["loss"]) == (8, pytest.approx(expected["loss"], rel=1e-6))
    assert longer["context_length"] == 12
    assert load().compute(predictions=[{"nats": 1.0, "tokens": 1, "bytes": 1}])["context_length"] is None


def test_it_is_called_as_the_stock_metric_is(folder):
    result = load(module_type="metric").compute(
        model_id=folder, predictions=TEXTS, add_start_token=True, batch_size=1, max_length=8, device="cpu"
    )
    assert result["perplexity"] == pytest.approx(
        load().compute(predictions=TEXTS, model_id=folder, context_length=8, batch_size=16)["perplexity"]
    )
    assert len(result["perplexities"]) == len(TEXTS)
    assert result["mean_perplexity"] == pytest.approx(sum(result["perplexities"]) / len(TEXTS))


def test_each_perplexity_is_what_the_stock_metric_states_where_that_is_right(model, tokenizer):
    """Texts that fit, a pad token, padding on the right; its file is on the Hub alone, so its arithmetic is done here.

    It pads a batch, puts bos before, and takes exp of each text's mean cross entropy over what the mask holds.
    """
    texts = ["One fish, two fish.", "Ü", "Once upon a time there was"]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = max(map(len, ids))
    padded = torch.tensor([[*row, *[tokenizer.eos_token_id] * (width - len(row))] for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    batch = torch.cat([torch.full((len(ids), 1), tokenizer.bos_token_id), padded], dim=1)
    attended = torch.cat([torch.ones(len(ids), 1, dtype=torch.long), mask], dim=1)
    logits = model.eval()(batch, attention_mask=attended).logits[:, :-1]
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
    stock = ((nats * mask).sum(1) / mask.sum(1)).exp().tolist()
    ours = load().compute(predictions=texts, model=model, tokenizer=tokenizer)
    assert ours["perplexities"] == pytest.approx(stock, rel=1e-5)
    assert ours["mean_perplexity"] == pytest.approx(sum(stock) / len(stock), rel=1e-5)


def test_a_loaded_model_needs_no_folder(model, tokenizer, folder):
    of_pair = load().compute(predictions=TEXTS, model=model, tokenizer=tokenizer)
    assert of_pair["perplexity"] == pytest.approx(load().compute(predictions=TEXTS, model_id=folder)["perplexity"])


def test_long_texts_are_scored_to_their_end(model, tokenizer):
    tokens = sum(len(ids) for ids in tokenizer([text.strip() for text in TEXTS])["input_ids"])
    assert load().compute(predictions=TEXTS, model=model, tokenizer=tokenizer, max_length=4)["tokens"] == tokens


def test_each_texts_own_perplexity_is_what_it_gets_alone(model, tokenizer):
    together = load().compute(predictions=TEXTS, model=model, tokenizer=tokenizer)["perplexities"]
    alone = [load().compute(predictions=[text], model=model, tokenizer=tokenizer)["perplexity"] for text in TEXTS]
    assert together == pytest.approx(alone, rel=1e-5)


def test_the_corpus_figure_weighs_tokens_and_the_mean_figure_weighs_texts():
    metric = load()
    metric.add_batch(predictions=[{"nats": math.log(8), "tokens": 1, "bytes": 2}])
    metric.add_batch(predictions=[{"nats": 0.0, "tokens": 2, "bytes": 4}])
    result = metric.compute()
    assert result["perplexity"] == pytest.approx(2)
    assert result["perplexities"] == pytest.approx([8, 1])
    assert result["mean_perplexity"] == pytest.approx(4.5)
    assert result["bits_per_byte"] == pytest.approx(0.5)
    assert (result["tokens"], result["bytes"]) == (3, 6)


def test_sums_need_not_our_package(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("smallm_hf", "evaluate_modules")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "smallm_hf", None)  # an import of it raises
    result = load(keep_in_memory=True).compute(predictions=[{"nats": 6.0, "tokens": 3, "bytes": 12}])
    assert result["perplexity"] == pytest.approx(math.e**2)


def test_processes_add_their_sums_up(tmp_path):
    def work(rank: int):
        metric = load(num_process=2, process_id=rank, experiment_id="sums", cache_dir=str(tmp_path))
        metric.add_batch(predictions=[{"nats": math.log(2) * rank, "tokens": 1, "bytes": 1}])
        return metric.compute()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert second is None
    assert first["loss"] == pytest.approx(math.log(2) / 2)
    assert first["tokens"] == 2


def test_without_bytes_there_is_no_figure_per_byte():
    assert load().compute(predictions=[{"nats": 1.0, "tokens": 1, "bytes": 0}])["bits_per_byte"] is None


def test_a_perplexity_beyond_float_is_infinite_and_no_crash():
    assert load().compute(predictions=[{"nats": 1e4, "tokens": 1, "bytes": 1}])["perplexity"] == math.inf


@pytest.mark.parametrize(
    ("predictions", "options", "message"),
    [
        (["a"], {}, "give either model_id, or model and tokenizer"),
        (["a"], {"model_id": "a", "model": object(), "tokenizer": object()}, "give either model_id"),
        (["a"], {"model": object()}, "give either model_id"),
        (["a"], {"model_id": "/nowhere"}, "/nowhere is not a folder"),
        (["a"], {"model_id": "a", "add_start_token": False}, "first token of each text unscored"),
        (["a"], {"model_id": "a", "max_length": 2, "context_length": 3}, "context_length=3 and max_length=2 differ"),
        ([{"nats": 1.0, "tokens": 1, "bytes": 1}], {"model_id": "a"}, "model_id: sums are counted already"),
        ([{"nats": 0.0, "tokens": 0, "bytes": 0}], {}, r"predictions\[0\] has no token"),
    ],
)
def test_a_mistake_is_an_error(predictions, options, message):
    with pytest.raises(ValueError, match=message):
        load(keep_in_memory=True).compute(predictions=predictions, **options)


def test_an_empty_text_is_named(model, tokenizer):
    with pytest.raises(ValueError, match=r"predictions\[1\] has no token"):
        load(keep_in_memory=True).compute(predictions=["a", " "], model=model, tokenizer=tokenizer)


def test_an_unknown_protocol_is_an_error(model, tokenizer):
    with pytest.raises(UserError, match="protocol 'paged' is unknown"):
        load(keep_in_memory=True).compute(predictions=["a"], model=model, tokenizer=tokenizer, protocol="paged")


def test_the_scorers_summary_is_the_metrics(model, tokenizer):
    (sums,) = ScoringPlan.make(model, tokenizer, Rules("packed", context_length=16, batch_size=2)).score(TEXTS)
    result = load().compute(predictions=[{"nats": sums.nats, "tokens": sums.tokens, "bytes": sums.bytes}])
    assert summarize(sums)["perplexity"] == result["perplexity"]


def test_sums_are_divided_without_a_folder_in_the_users_cache(monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", "/dev/null/home/metrics")
    with pytest.raises(OSError):
        load(keep_in_memory=True)  # what a Metric does by itself
    assert summarize(Sums(nats=6.0, tokens=3, bytes=12))["perplexity"] == pytest.approx(math.e**2)
