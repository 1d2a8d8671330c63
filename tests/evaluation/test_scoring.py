"""The scorer, against arithmetic in float64 and by hand."""

import copy
import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from small_models import LETTERS, TEXTS, Table, gpt2, letter_tokenizer, llama, save
from transformers import (
    AlbertConfig,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
)

from smallm_hf import pretrained
from smallm_hf.base.errors import UserError
from smallm_hf.evaluation import scoring
from smallm_hf.evaluation.readers import CausalReader
from smallm_hf.evaluation.scoring import Sums, score_documents, score_token_stream, summarize
from smallm_hf.evaluation.windows import Window
from smallm_hf.pretrained import load_causal_lm
from smallm_hf.tokenizing.encoding import encode_ordinary, make_encoder
from smallm_hf.tokenizing.schemes import train_word
from smallm_hf.tokenizing.spelling import Speller


def nats_by_hand(model: PreTrainedModel, sequence: list[int], context_length: int) -> float:
    """Float64: each token's own log-probability, from the window of its predecessors and the token before that."""
    model = copy.deepcopy(model).double().eval()
    nats = 0.0
    for begin in range(0, len(sequence) - 1, context_length):
        window = torch.tensor(sequence[begin : begin + context_length + 1])
        logits = model(input_ids=window[None, :-1]).logits[0]
        for position, label in enumerate(window[1:]):
            probabilities = logits[position].exp() / logits[position].exp().sum()
            nats -= math.log(probabilities[label])
    return nats


def spelled(unknown: str) -> float:
    """Nats of characters without an entry, under a tokenizer that has counted nothing."""
    return sum(len(character.encode()) + 1 for character in unknown) * math.log(257)


@pytest.mark.parametrize("model", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_documents_are_scored_alone_after_bos_in_disjoint_windows_with_one_token_of_context(model):
    tokenizer = letter_tokenizer()
    ids = [tokenizer.convert_tokens_to_ids(list(text.strip())) for text in TEXTS]
    nats = sum(nats_by_hand(model, [tokenizer.bos_token_id, *text], 8) for text in ids)
    scores = score_documents(model, tokenizer, TEXTS, context_length=8)
    assert scores["tokens"] == sum(map(len, ids))
    assert scores["bytes"] == sum(len(text.strip().encode()) for text in TEXTS)
    assert scores["loss"] == pytest.approx(nats / scores["tokens"], rel=1e-6)
    assert scores["perplexity"] == pytest.approx(math.exp(nats / scores["tokens"]), rel=1e-5)
    nats += spelled("é日本" * 4)
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / scores["bytes"], rel=1e-6)


@pytest.mark.parametrize("model", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_packed_texts_are_one_stream_after_eos_in_which_every_eos_is_scored_as_one_byte(model):
    tokenizer = letter_tokenizer()
    ids = [tokenizer.convert_tokens_to_ids(list(text)) for text in TEXTS]
    stream = [tokenizer.eos_token_id] + [id for text in ids for id in [*text, tokenizer.eos_token_id]]
    scores = score_documents(model, tokenizer, TEXTS, protocol="packed", context_length=8)
    assert scores["tokens"] == len(stream) - 1
    assert scores["bytes"] == sum(len(text.encode()) for text in TEXTS) + len(TEXTS)
    assert scores["loss"] == pytest.approx(nats_by_hand(model, stream, 8) / scores["tokens"], rel=1e-6)


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_sliding_windows_give_every_token_all_the_context_that_a_window_holds(stride):
    tokenizer, model = letter_tokenizer(), gpt2()
    sequence = torch.tensor([tokenizer.bos_token_id, *tokenizer.convert_tokens_to_ids(list(TEXTS[2].strip()))])
    exact, nats, done, end = copy.deepcopy(model).double().eval(), 0.0, 1, 9
    while done < len(sequence):  # a window of 8 after the token before it, moved on by the stride, never past the end
        end = min(end, len(sequence))
        window = sequence[max(0, end - 9) : end]
        log_probabilities = exact(input_ids=window[None, :-1]).logits[0].log_softmax(-1)
        for label in range(done, end):
            place = label - max(0, end - 9)
            nats -= log_probabilities[place - 1, window[place]].item()
        done, end = end, end + stride
    options = {"protocol": "sliding", "stride": stride, "context_length": 8}
    scores = score_documents(model, tokenizer, TEXTS[2:3], **options)
    assert scores["tokens"] == len(sequence) - 1
    assert scores["loss"] == pytest.approx(nats / scores["tokens"], rel=1e-6)
    assert (scores["protocol"], scores["stride"], scores["context_length"]) == ("sliding", stride, 8)


def test_sliding_by_a_whole_window_is_scoring_documents_where_they_fill_their_windows():
    texts, options = ["ab" * 12, "cab"], {"context_length": 8}  # 24 and 3 tokens
    whole = score_documents(gpt2(), letter_tokenizer(), texts, **options)
    sliding = score_documents(gpt2(), letter_tokenizer(), texts, protocol="sliding", stride=8, **options)
    assert sliding["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert score_documents(gpt2(), letter_tokenizer(), texts, protocol="sliding", **options)["stride"] == 4


@pytest.mark.parametrize("model", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_the_loss_is_the_one_that_transformers_computes_of_a_text_that_fits(model):
    tokenizer = letter_tokenizer()
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.convert_tokens_to_ids(list("cab fed"))]])
    loss = model.eval()(input_ids=ids, labels=ids).loss.item()
    assert score_documents(model, tokenizer, ["cab fed"])["loss"] == pytest.approx(loss, rel=1e-6)


def test_the_details_are_of_the_same_distribution_whose_cross_entropy_is_the_loss():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 16) * 5, torch.randint(16, (50,))
    nats, ranks, entropies, confidences = scoring._measure(logits.clone(), labels, detailed=True)
    plain_nats, plain_ranks = scoring._measure(logits, labels, detailed=False)
    torch.testing.assert_close(nats, plain_nats)
    assert ranks.equal(plain_ranks)
    exact = torch.distributions.Categorical(logits=logits.double())
    torch.testing.assert_close(entropies.double(), exact.entropy(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(confidences.double(), exact.probs.amax(-1))


def test_eos_stands_before_a_document_where_there_is_no_bos():
    tokenizer = letter_tokenizer(eos_token="</s>")
    expected = nats_by_hand(gpt2(), [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(list("abc"))], 8)
    assert score_documents(gpt2(), tokenizer, ["abc"])["loss"] == pytest.approx(expected / 3, rel=1e-6)


@pytest.mark.parametrize("protocol", ["documents", "packed", "sliding"])
def test_the_batch_size_does_not_change_the_score(protocol):
    scores = [
        score_documents(gpt2(), letter_tokenizer(), TEXTS * 3, protocol=protocol, context_length=8, batch_size=size)
        for size in (1, 3, 16)
    ]
    for other in scores[1:]:
        assert other["loss"] == pytest.approx(scores[0]["loss"], rel=1e-6)
        assert [other[key] for key in ("tokens", "bytes")] == [scores[0][key] for key in ("tokens", "bytes")]
        for key in ("top3_accuracy", "mean_entropy_nats", "calibration_error"):
            assert other[key] == pytest.approx(scores[0][key], rel=1e-5)


def test_padding_side_and_pad_token_of_the_tokenizer_do_not_change_the_score():
    plain, left = letter_tokenizer(), letter_tokenizer()
    left.padding_side, left.pad_token = "left", "<unk>"
    assert plain.pad_token is None
    assert score_documents(gpt2(), left, TEXTS)["loss"] == score_documents(gpt2(), plain, TEXTS)["loss"]


def test_a_small_memory_budget_means_smaller_passes_and_the_same_score(monkeypatch):
    whole = score_documents(gpt2(), letter_tokenizer(), TEXTS, context_length=8)
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 2 * 4 * 16 * 8)  # two windows of float32 logits
    model = Table(torch.randn(16, 16).tolist())
    list(scoring.score_windows(CausalReader(model), [Window(np.arange(9), 8)] * 5, batch_size=16))
    assert model.shapes == [(2, 8), (2, 8), (1, 8)]
    assert score_documents(gpt2(), letter_tokenizer(), TEXTS, context_length=8)["loss"] == pytest.approx(whole["loss"])


def test_memory_does_not_depend_on_one_block_holding_all_texts(monkeypatch):
    whole = [sums.nats for sums in score_each(TEXTS * 2)]
    monkeypatch.setattr(scoring, "TEXTS_PER_BLOCK", 3)
    assert [sums.nats for sums in score_each(TEXTS * 2)] == pytest.approx(whole)


def score_each(texts):
    options = {"protocol": "documents", "context_length": 8, "batch_size": 4}
    return list(scoring.ScoringPlan.make(gpt2(), letter_tokenizer(), scoring.Rules(**options)).score(texts))


def test_each_text_gets_its_own_sums_in_order():
    sums = score_each(TEXTS)
    assert [part.bytes for part in sums] == [len(text.strip().encode()) for text in TEXTS]
    for text, part in zip(TEXTS, sums, strict=True):
        alone = score_documents(gpt2(), letter_tokenizer(), [text], context_length=8)
        assert part.nats / part.tokens == pytest.approx(alone["loss"], rel=1e-6)


@pytest.mark.parametrize("model", [gpt2(), llama()], ids=["gpt2", "llama"])
def test_within_documents_a_packed_text_is_scored_as_if_its_eos_began_a_text_of_its_own(model):
    tokenizer, texts = letter_tokenizer(eos_token="</s>"), ["abc cab", "b", "fed"]
    options = {"protocol": "packed", "context_length": 32}
    apart = score_documents(model, tokenizer, texts, **options, within_documents=True)
    assert (apart["protocol"], apart["within_documents"]) == ("packed", True)
    eos = tokenizer.eos_token_id
    nats = sum(nats_by_hand(model, [eos, *encode_ordinary(tokenizer, [text])[0], eos], 32) for text in texts)
    assert apart["loss"] * apart["tokens"] == pytest.approx(nats, rel=1e-5)
    assert apart["loss"] != pytest.approx(score_documents(model, tokenizer, texts, **options)["loss"], rel=1e-3)


def test_a_token_file_and_its_texts_get_the_same_packed_score(tmp_path):
    tokenizer, model = letter_tokenizer(), gpt2()
    ids = [id for text in TEXTS for id in [*encode_ordinary(tokenizer, [text])[0], tokenizer.eos_token_id]]
    np.array(ids, dtype="<u2").tofile(tmp_path / "validation.bin")
    stream = np.memmap(tmp_path / "validation.bin", dtype="<u2", mode="r")
    sums = score_token_stream(model, stream, context_length=8, batch_size=4)
    scores = score_documents(model, tokenizer, TEXTS, protocol="packed", context_length=8)
    assert sums.nats / sums.tokens == scores["loss"]


def test_a_process_scores_every_other_text_and_all_of_them_score_each_once():
    plan = scoring.ScoringPlan.make(gpt2(), letter_tokenizer(), scoring.Rules(context_length=8, batch_size=4))
    whole = list(plan.score(TEXTS))
    halves = [list(plan.score(TEXTS, shard=(rank, 2))) for rank in range(2)]
    assert [part.tokens for part in halves[0]] == [part.tokens for part in whole[::2]]
    assert sum(map(sum_of, halves)) == pytest.approx(sum_of(whole), rel=1e-6)


def sum_of(parts):
    return sum(part.nats for part in parts)


@pytest.mark.parametrize("processes", [2, 3, 50])
def test_the_sums_of_all_shards_are_the_sums_of_the_stream(processes):
    stream = np.arange(100) % 16
    whole = score_token_stream(gpt2(), stream, context_length=8, batch_size=4)
    shards = [
        score_token_stream(gpt2(), stream, context_length=8, batch_size=4, shard=(rank, processes))
        for rank in range(processes)
    ]
    total = sum(shards, Sums())
    assert (total.tokens, total.top1, total.top3) == (100, whole.top1, whole.top3)
    assert total.nats == pytest.approx(whole.nats, rel=1e-6)


def test_sums_that_were_exchanged_as_floats_keep_whole_counts_and_nats_as_they_are():
    sums = Sums(nats=1.25, tokens=7, top1=1, top3=2, bytes=9, characters=8, words=2, unknown=1, spelling=3.7)
    found = astuple(Sums.of_floats(map(float, astuple(sums))))
    assert found == astuple(sums)
    assert [*map(type, found)] == [float, *[int] * 7, float]


def test_every_pass_over_a_stream_has_one_shape():
    model = Table(torch.randn(16, 16).tolist())
    score_token_stream(model, np.arange(90) % 16, context_length=8, batch_size=5)  # 11 windows and a short one
    assert model.shapes == [(5, 8)] * 3


def test_probabilities_that_can_be_read_off_a_table_give_the_loss_by_hand():
    vocab_size = len(LETTERS)
    table = np.full((vocab_size, vocab_size), -30.0)
    a, b, start = LETTERS.index("a"), LETTERS.index("b"), LETTERS.index("<s>")
    table[start, [a, b]] = math.log(0.25), math.log(0.75)
    table[a, [a, b]] = math.log(0.5), math.log(0.5)  # a tie: a has the lower id and comes first
    table[b, [a, b, 0]] = math.log(0.125), math.log(0.5), math.log(0.375)
    scores = score_documents(Table(table.tolist()), letter_tokenizer(), ["ab", "bba"])
    # ab: 1/4, 1/2 (second of a tie); bba: 3/4, 1/2, 1/8 (third choice)
    assert scores["loss"] == pytest.approx(-math.log(1 / 4 * 1 / 2 * 3 / 4 * 1 / 2 * 1 / 8) / 5, rel=1e-6)
    assert scores["top1_accuracy"] == 2 / 5
    assert scores["top3_accuracy"] == 1


def test_a_model_that_is_sure_and_right_has_no_loss():
    successor = np.roll(np.eye(len(LETTERS)), 1, axis=1) * 100  # each id is followed by the next, the last by the first
    sums = score_token_stream(Table(successor.tolist()), np.arange(len(LETTERS)), context_length=5)
    assert sums.nats == pytest.approx(0, abs=1e-6)
    assert sums.top1 == sums.top3 == sums.tokens == len(LETTERS)


def test_equal_logits_give_ln_v_and_credit_only_to_the_lowest_ids():
    sums = score_token_stream(Table([[0.0] * 8] * 8), np.array([7, 0, 2, 5]), context_length=4)
    assert sums.nats / sums.tokens == pytest.approx(math.log(8))
    assert (sums.top1, sums.top3) == (1, 2)


def test_bits_per_byte_is_nats_over_ln_2_over_bytes():
    figures = summarize(Sums(nats=10 * math.log(2), tokens=4, top1=1, top3=2, bytes=5))
    assert figures == {
        "loss": pytest.approx(2.5 * math.log(2)),
        "perplexity": pytest.approx(2**2.5),
        "bits_per_byte": pytest.approx(2.0),
        "top1_accuracy": 0.25,
        "top3_accuracy": 0.5,
        "tokens": 4,
        "bytes": 5,
    }


def test_bits_per_character_and_word_perplexity_divide_the_same_nats_by_what_a_reader_counts():
    scores = score_documents(gpt2(), letter_tokenizer(), [" é日 ab\n"])
    nats = scores["loss"] * scores["tokens"] + spelled("é日")
    assert (scores["characters"], scores["words"], scores["bytes"]) == (5, 2, 8)
    assert scores["bits_per_character"] == pytest.approx(nats / math.log(2) / 5)
    assert scores["word_perplexity"] == pytest.approx(math.exp(nats / 2))


def test_packed_an_eos_is_one_character_and_no_word():
    scores = score_documents(gpt2(), letter_tokenizer(), ["ab b", "é"], protocol="packed")
    assert (scores["characters"], scores["words"], scores["bytes"]) == (4 + 1 + 2, 3, 4 + 2 + 2)


def test_where_no_text_is_known_there_is_no_figure_per_character_or_word():
    assert not {"bits_per_character", "word_perplexity", "words"} & summarize(Sums(nats=1.0, tokens=1, bytes=1)).keys()


def test_bytes_are_those_of_utf_8():
    assert score_documents(gpt2(), letter_tokenizer(), ["é日"])["bytes"] == 5


def test_special_tokens_written_in_a_text_are_ordinary_text(gpt2_folder):
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    text = "a<|endoftext|>b"
    (ids,) = encode_ordinary(tokenizer, [text])
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == text
    assert ids == list(make_encoder(tokenizer)([text])[0])


def test_scoring_leaves_every_module_in_the_mode_it_had():
    model = gpt2().train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    score_documents(model, letter_tokenizer(), TEXTS)
    assert [module.training for module in model.modules()] == modes


def test_dropout_does_not_touch_the_score():
    model = gpt2(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    first, second = (score_documents(model, letter_tokenizer(), TEXTS)["loss"] for _ in range(2))
    assert first == second


def test_the_default_context_is_the_models_own_and_is_stated():
    assert score_documents(gpt2(), letter_tokenizer(), ["ab"])["context_length"] == 32
    assert score_documents(gpt2(n_positions=4096), letter_tokenizer(), ["ab"])["context_length"] == 2048


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "paged"}, "protocol 'paged' is unknown; choose from documents, packed, sliding"),
        ({"context_length": 33}, "context_length=33 exceeds the model's 32 positions"),
        ({"context_length": 0}, "context_length=0 is out of range"),
        ({"within_documents": True}, "within_documents=true is for protocol packed and not for documents"),
        ({"protocol": "packed", "within_documents": True, "model": Table([[0.0] * 16] * 16)}, "keep documents apart"),
        ({"batch_size": 0}, "batch_size=0 is out of range; give 1 or more"),
        ({"stride": 4}, "stride=4 belongs to protocol sliding and not to documents"),
        ({"protocol": "sliding", "stride": 9, "context_length": 8}, "stride=9 must be from 1 to context_length=8"),
        ({"protocol": "sliding", "stride": 0}, "stride=0 must be from 1"),
        ({"top_k": [1, 17]}, "top_k=17 is out of range; give 1 to 16, the size of the vocabulary"),
        ({"top_k": [0]}, "top_k=0 is out of range"),
        ({"sources": ["a"]}, "GPT2LMHeadModel is causal and reads no source text"),
        ({"texts": []}, "no token to score"),
        ({"texts": [" \n"]}, "no token to score"),
        ({"tokenizer": letter_tokenizer(bos_token="<s>"), "protocol": "packed"}, "no eos token, which protocol packed"),
        ({"tokenizer": letter_tokenizer(pad_token="</s>")}, "no eos token, which protocol documents"),
        ({"model": gpt2(vocab_size=6)}, "token id 6 is outside the model's vocabulary of 6"),
        ({"model": Table(np.full((16, 16), math.nan).tolist())}, "logits are NaN"),
    ],
)
def test_a_mistake_is_an_error_of_one_line(options, message):
    options = {"model": gpt2(), "tokenizer": letter_tokenizer(), "texts": ["abc"], **options}
    with pytest.raises(UserError, match=message) as error:
        score_documents(options.pop("model"), options.pop("tokenizer"), options.pop("texts"), **options)
    assert "\n" not in str(error.value)


def test_a_model_that_sees_the_token_it_predicts_is_refused():
    config = BertConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(UserError, match="BertLMHeadModel is not causal"):
        score_documents(BertLMHeadModel(config), letter_tokenizer(), ["abc"])


def test_a_saved_folder_is_loaded_in_evaluation_mode_with_its_dtype(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "multiplies_well", lambda dtype, device: True)  # as a CPU that multiplies bf16
    model, tokenizer = load_causal_lm(str(save(tmp_path, gpt2().bfloat16())))
    assert (model.dtype, model.training) == (torch.bfloat16, False)
    assert score_documents(model, tokenizer, TEXTS)["dtype"] == "bfloat16"
    assert load_causal_lm(str(tmp_path), dtype="float32")[0].dtype == torch.float32


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder; give a folder that save_pretrained wrote"):
        load_causal_lm(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("name", "content"), [("config.json", "config"), ("tokenizer*", "tokenizer")])
def test_a_folder_without_config_or_tokenizer_is_an_error(tmp_path, name, content):
    for file in save(tmp_path).glob(name):
        file.unlink()
    with pytest.raises(UserError, match=f"holds no {content}"):
        load_causal_lm(str(tmp_path))


def test_a_folder_without_weights_is_an_error(tmp_path):
    (save(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot be loaded.*model\.safetensors"):
        load_causal_lm(str(tmp_path))


def test_a_folder_with_damaged_weights_is_an_error(tmp_path):
    (save(tmp_path) / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_causal_lm(str(tmp_path))


def test_a_model_of_another_kind_is_an_error(tmp_path):
    AlbertConfig(vocab_size=16).save_pretrained(tmp_path)
    letter_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"cannot be loaded as a language model: .*AlbertConfig"):
        load_causal_lm(str(tmp_path))


def test_weights_that_would_be_random_are_an_error(tmp_path):
    save(tmp_path, GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=16, tie_word_embeddings=False)))
    with pytest.raises(UserError, match=r"lacks weights of GPT2LMHeadModel, lm_head\.weight"):
        load_causal_lm(str(tmp_path))


def test_an_unreachable_hub_is_an_error_that_names_the_local_alternative():
    with pytest.raises(UserError, match=r"model distilgpt2 is not on this machine.*give the folder of a local model"):
        load_causal_lm("distilgpt2")


def test_an_unknown_dtype_or_device_is_an_error(tmp_path):
    with pytest.raises(UserError, match="dtype 'float33' is unknown; choose from auto, float32"):
        load_causal_lm(str(save(tmp_path)), dtype="float33")
    with pytest.raises(UserError, match="device 'quantum' cannot be used here"):
        load_causal_lm(str(tmp_path), device="quantum")


@pytest.fixture(scope="module")
def stories(shared_data):
    """The pretrained model on which the reference figures were made, and the first 300 stories."""
    model, tokenizer = load_causal_lm(str(shared_data / "pretrained/stories260K-hf"), device="cpu")
    text = (shared_data / "tinystories/tinystories_valid.txt").read_text(encoding="utf-8")
    return model, tokenizer, [story.strip() for story in text.split("<|endoftext|>") if story.strip()][:300]


def test_the_reference_figure_of_documents_comes_out(stories):
    scores = score_documents(*stories)
    assert scores["loss"] == pytest.approx(1.3204, abs=5e-5)
    assert scores["bits_per_byte"] == pytest.approx(0.9198, abs=5e-5)


def test_the_reference_figure_of_packed_comes_out(stories):
    scores = score_documents(*stories, protocol="packed", context_length=256)
    assert scores["bits_per_byte"] == pytest.approx(1.1031, abs=5e-5)


def test_a_real_model_scores_the_same_for_batches_of_1_3_and_16(stories):
    model, tokenizer, texts = stories
    one, three, sixteen = (score_documents(model, tokenizer, texts[:40], batch_size=size) for size in (1, 3, 16))
    for key in ("loss", "perplexity", "bits_per_byte"):
        assert three[key] == pytest.approx(one[key], abs=1e-5)
        assert sixteen[key] == pytest.approx(one[key], abs=1e-5)


@pytest.mark.parametrize("protocol", ["documents", "packed", "sliding"])
def test_what_unknown_tokens_hide_is_spelled_in_figures_of_the_text_and_not_in_those_of_tokens(protocol):
    tokenizer = train_word(["a b, a b, A B c"], 16)
    texts = ["a b, zz a b", "\u00e9, b"]
    speller, model = Speller.of(tokenizer), gpt2()
    spelling = sum(map(speller.cost, ["a", " zz", " a", "\u00e9"]))
    scores = score_documents(model, tokenizer, texts, protocol=protocol, context_length=8)
    ends = len(texts) if protocol == "packed" else 0
    assert (scores["tokens"], scores["bytes"]) == (9 + ends, 16 + ends)
    assert scores["unknown_rate"] == 4 / scores["tokens"]
    assert scores["spelling_bits_per_byte"] == pytest.approx(spelling / math.log(2) / scores["bytes"])
    nats = scores["loss"] * scores["tokens"]
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert scores["bits_per_byte"] == pytest.approx((nats + spelling) / math.log(2) / scores["bytes"])
    assert scores["bits_per_character"] * scores["characters"] == pytest.approx((nats + spelling) / math.log(2))
    assert math.log(scores["word_perplexity"]) == pytest.approx((nats + spelling) / 7)


def test_figures_of_a_lossless_tokenizer_and_of_lowered_text_say_so():
    lowered = score_documents(gpt2(), train_word(["a a a"], 16, lowercase=True), ["A a"], context_length=8)
    assert (lowered["lowered"], lowered["unknown_rate"]) == (True, 0.5)
    assert "unknown_rate" not in summarize(Sums(nats=1.0, tokens=1, bytes=1))
