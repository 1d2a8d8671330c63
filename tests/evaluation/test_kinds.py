"""Seq2seq and masked models, against each token's probability in float64."""

import copy

import pytest
import torch
from small_models import TEXTS, bart, bert, gpt2, letter_tokenizer, mask_tokenizer, save, t5

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.families import kind_of
from smallm_hf.pretrained import find_kind, load_scorable


def t5_tokenizer():
    return letter_tokenizer("$A </s>", eos_token="</s>", pad_token="</s>")


def bart_tokenizer():
    return letter_tokenizer("<s> $A </s>", bos_token="<s>", eos_token="</s>", pad_token="</s>")


SEQ2SEQ = pytest.mark.parametrize(
    ("model", "tokenizer", "before"),
    [(t5(), t5_tokenizer(), [0]), (bart(), bart_tokenizer(), [0, 1])],
    ids=["t5", "bart"],
)


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer.convert_tokens_to_ids(list(text))


@SEQ2SEQ
def test_a_seq2seq_model_is_scored_on_what_its_decoder_says_of_the_text_beside_the_source(model, tokenizer, before):
    exact, nats = copy.deepcopy(model).double(), 0.0
    pairs = [("abc", "cab"), ("b", "fed cab"), ("cabfed", "a")]
    for source, text in pairs:
        sequence = [*before, *ids_of(tokenizer, text)]
        read = {"input_ids": tokenizer(source, return_tensors="pt")["input_ids"]}
        logits = exact(**read, decoder_input_ids=torch.tensor([sequence[:-1]])).logits[0].log_softmax(-1)
        nats -= sum(logits[place - 1, sequence[place]].item() for place in range(len(before), len(sequence)))
    texts, sources = [text for _, text in pairs], [source for source, _ in pairs]
    scores = score_documents(model, tokenizer, texts, sources=sources)
    assert scores["kind"] == "seq2seq"
    assert scores["tokens"] == sum(map(len, texts))
    assert scores["loss"] == pytest.approx(nats / scores["tokens"], rel=1e-5)


@SEQ2SEQ
def test_without_a_source_the_encoder_reads_an_empty_text(model, tokenizer, before):
    alone = score_documents(model, tokenizer, ["cab"])
    assert alone["loss"] == score_documents(model, tokenizer, ["cab"], sources=[""])["loss"]
    assert alone["loss"] != score_documents(model, tokenizer, ["cab"], sources=["fed"])["loss"]


def test_a_masked_model_is_scored_on_each_token_masked_alone():
    model, tokenizer, nats = bert(), mask_tokenizer(), 0.0
    exact = copy.deepcopy(model).double()
    for text in ("cab", "fed a"):
        ids = tokenizer(text)["input_ids"]
        for place in range(1, len(ids) - 1):
            masked = torch.tensor([[*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]])
            nats -= exact(input_ids=masked).logits[0, place].log_softmax(-1)[ids[place]].item()
    scores = score_documents(model, tokenizer, ["cab", " fed a\n"], top_k=[1, 16])
    assert (scores["kind"], scores["tokens"], scores["bytes"]) == ("masked", 8, 8)
    assert scores["loss"] == pytest.approx(nats / 8, rel=1e-5)
    assert scores["top16_accuracy"] == 1


def test_a_masked_model_reads_as_many_tokens_as_fit_between_its_special_ones():
    assert score_documents(bert(), mask_tokenizer(), ["cab"])["context_length"] == 16  # of 18 positions
    tokenizer = mask_tokenizer()
    tokenizer.model_max_length = 12  # as RoBERTa's, whose positions begin at 2
    assert score_documents(bert(), tokenizer, ["cab"])["context_length"] == 10
    with pytest.raises(UserError, match="context_length=17 exceeds the model's 16 positions"):
        score_documents(bert(), mask_tokenizer(), ["cab"], context_length=17)


@pytest.mark.parametrize(
    ("model", "tokenizer"),
    [(t5(), t5_tokenizer()), (bart(), bart_tokenizer()), (bert(), mask_tokenizer())],
    ids=["t5", "bart", "bert"],
)
@pytest.mark.parametrize("protocol", ["documents", "sliding"])
def test_batch_size_and_padding_side_change_no_score(model, tokenizer, protocol):
    options = {"protocol": protocol, "context_length": 8}
    if kind_of(model) == "seq2seq":
        options["sources"] = ["abc", "", "fedcab", "a"]
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    one = score_documents(model, tokenizer, TEXTS, batch_size=1, **options)
    for other in (
        score_documents(model, tokenizer, TEXTS, batch_size=16, **options),
        score_documents(model, left, TEXTS, batch_size=3, **options),
    ):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["tokens"] == one["tokens"]


@pytest.mark.parametrize(
    ("model", "tokenizer", "kind"),
    [(gpt2(), letter_tokenizer(), "causal"), (t5(), t5_tokenizer(), "seq2seq"), (bert(), mask_tokenizer(), "masked")],
    ids=["gpt2", "t5", "bert"],
)
def test_a_folder_is_loaded_as_its_family_and_scores_the_same(model, tokenizer, kind, tmp_path):
    folder = str(save(tmp_path, model, tokenizer))
    loaded = load_scorable(folder, device="cpu")
    assert find_kind(folder) == kind_of(loaded[0]) == kind
    expected = score_documents(model, tokenizer, ["cab"])
    assert score_documents(*loaded, ["cab"])["loss"] == pytest.approx(expected["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("model", "tokenizer", "options", "message"),
    [
        (bert(), mask_tokenizer(), {"protocol": "packed"}, "packed is for causal models, BertForMaskedLM is masked"),
        (
            t5(),
            t5_tokenizer(),
            {"protocol": "packed"},
            "packed is for causal models, T5ForConditionalGeneration is seq",
        ),
        (bert(), mask_tokenizer(), {"sources": ["a"]}, "BertForMaskedLM is masked and reads no source text"),
        (bert(), letter_tokenizer(), {}, "whose tokenizer has no mask token"),
        (t5(), t5_tokenizer(), {"sources": ["a", "b"]}, "not as many source texts as texts"),
        (bart(), bart_tokenizer(), {"sources": ["a" * 31]}, "takes 33 tokens and the encoder reads 32; shorten it"),
    ],
)
def test_what_a_family_cannot_do_is_an_error(model, tokenizer, options, message):
    with pytest.raises(UserError, match=message):
        score_documents(model, tokenizer, ["abc"], **options)


def test_a_decoder_without_a_beginning_is_an_error():
    model = t5()
    model.config.decoder_start_token_id = None
    with pytest.raises(UserError, match="has no decoder_start_token_id"):
        score_documents(model, t5_tokenizer(), ["abc"])
