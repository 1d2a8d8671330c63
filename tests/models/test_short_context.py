"""What holds for every model that reads the last few tokens only."""

import pytest
import tokenizers
import torch
import transformers
from outsider import asked_outside
from short_context_models import CONTEXT_SIZE, MODELS, make_model
from transformers import AutoModelForCausalLM, PreTrainedModel, pipeline

from smallm_hf.training.objectives import has_plain_head


@pytest.fixture(params=MODELS)
def short_kind(request) -> str:
    return request.param


@pytest.fixture
def short_model(short_kind) -> PreTrainedModel:
    return make_model(short_kind)


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def test_what_lies_beyond_its_context_and_what_comes_later_do_not_matter(short_model, tokens):
    logits = short_model(tokens).logits
    for position in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 7) % 61 + 3
        differs = (short_model(changed).logits - logits).abs().amax(dim=-1) > 1e-6  # (B, T)
        reached = torch.arange(12)
        reached = (reached >= position) & (reached < position + CONTEXT_SIZE)
        assert not differs[:, ~reached].any()
        assert differs[:, position].all()


@pytest.mark.parametrize("padding", [1, 5])
def test_padding_on_the_left_reads_as_nothing_before_the_text(short_model, tokens, padding):
    padded = torch.cat([torch.full((2, padding), 7), tokens], dim=1)
    mask = (torch.arange(12 + padding) >= padding).long().expand(2, -1)
    expected = short_model(tokens).logits
    assert largest_difference(short_model(padded, attention_mask=mask).logits[:, padding:], expected) < 1e-6
    places = (torch.arange(12 + padding) - padding).clamp(min=0).expand(2, -1)
    assert largest_difference(short_model(padded, position_ids=places).logits[:, padding:], expected) < 1e-6
    assert largest_difference(short_model(padded).logits[:, padding:], expected) > 1e-3


def test_packed_documents_equal_each_document_alone(short_model, tokens):
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12)
    packed = short_model(tokens, position_ids=positions).logits
    assert largest_difference(packed[:, :5], short_model(tokens[:, :5]).logits) < 1e-6
    assert largest_difference(packed[:, 5:], short_model(tokens[:, 5:]).logits) < 1e-6


@pytest.mark.parametrize("unknown", ["cach", "past_key_values", "attention_maks", "output_attentions"])
def test_an_argument_that_nothing_reads_is_refused(short_model, tokens, unknown):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{unknown}'"):
        short_model(tokens, **{unknown: tokens})


def test_the_loss_is_that_of_the_next_tokens(short_model, tokens):
    labels = tokens.clone()
    labels[0, :4] = -100
    nats = -short_model(tokens).logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    counted = labels[:, 1:] != -100
    loss = short_model(tokens, labels=labels).loss
    assert loss.item() == pytest.approx(nats[counted].mean().item(), rel=1e-5)
    by_number = short_model(tokens, labels=labels, num_items_in_batch=5).loss
    assert by_number.item() == pytest.approx(nats[counted].sum().item() / 5, rel=1e-5)
    assert short_model(tokens, logits_to_keep=2).logits.shape == (2, 2, 64)


WAYS = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "top_k": 5},
}


@pytest.mark.parametrize("way", WAYS)
def test_generate_writes_what_the_plain_forward_says_batched_and_padded(short_model, tokens, way):
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False} | WAYS[way]
    alone = []
    for row in (tokens[:1], tokens[1:, 4:]):
        torch.manual_seed(0)
        alone.append(short_model.generate(row, attention_mask=torch.ones_like(row), **options)[0, -6:])
    if way != "sampling":  # whose draws depend on the batch
        mask = torch.ones_like(tokens)
        mask[1, :4] = 0
        together = short_model.generate(tokens * mask, attention_mask=mask, **options)[:, -6:]
        assert torch.equal(together, torch.stack(alone))
    if way in ("greedy", "without a cache"):
        text = tokens[:1]
        for _ in range(6):
            logits = short_model(text).logits[0, -1]
            logits[2] = -torch.inf  # eos, before min_new_tokens
            text = torch.cat([text, logits.argmax()[None, None]], dim=1)
        assert torch.equal(text[0, -6:], alone[0])


def test_a_step_of_generate_reads_no_more_than_the_last_tokens(short_model, tokens):
    read = []
    short_model.register_forward_pre_hook(lambda m, a, k: read.append(k["input_ids"].shape[1]), with_kwargs=True)
    short_model.generate(tokens, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert set(read) == {CONTEXT_SIZE}


def test_what_generate_cannot_do_is_refused(short_model, tokens):
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        short_model.generate(tokens[:1], prompt_lookup_num_tokens=2, max_new_tokens=3)
    with pytest.raises(ValueError, match="inputs_embeds"):
        short_model.generate(inputs_embeds=torch.zeros(1, 3, 8), max_new_tokens=3)


QUESTION = """
writer = pipeline("text-generation", model=folder, trust_remote_code=True)
text = writer("w5 w9", max_new_tokens=4, min_new_tokens=4, do_sample=False)[0]["generated_text"]
logits = writer.model(torch.tensor([[5, 9, 33, 12]])).logits.flatten().tolist()
report[kind] = [type(writer.model).__name__, logits, text]
"""


def test_a_saved_folder_loads_here_and_by_remote_code_in_a_process_without_our_package(tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w1"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    models, tokens = {kind: make_model(kind) for kind in MODELS}, torch.tensor([[5, 9, 33, 12]])
    texts = {}
    for kind, model in models.items():
        model.save_pretrained(tmp_path / kind)
        transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / kind)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / kind)
        assert type(again) is type(model)
        assert torch.equal(again(tokens).logits, model(tokens).logits)
        writer = pipeline("text-generation", model=str(tmp_path / kind))
        texts[kind] = writer("w5 w9", max_new_tokens=4, min_new_tokens=4, do_sample=False)[0]["generated_text"]
        assert texts[kind].count("w") == 6
    for kind, (name, logits, text) in asked_outside(QUESTION, tmp_path, models).items():
        assert name == type(models[kind]).__name__
        assert (torch.tensor(logits) - models[kind](tokens).logits.flatten()).abs().max() < 1e-6
        assert text == texts[kind]


def test_only_a_head_that_is_a_linear_map_is_taken_for_one():
    assert has_plain_head(make_model("feedforward"))
    assert not has_plain_head(make_model("ngram"))
