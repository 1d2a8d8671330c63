"""Laws of the recurrent family, each for every cell."""

import pytest
import tokenizers
import torch
import transformers
from outsider import asked_outside
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from smallm_hf import RecurrentConfig, RecurrentForCausalLM, RecurrentModel
from smallm_hf.base.errors import UserError
from smallm_hf.config import model_config
from smallm_hf.models.modeling_recurrent import CACHE_NAME, RecurrentCache

SIZES = {"vocab_size": 64, "hidden_size": 24, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
KINDS = {
    "rnn": {"cell_type": "rnn", "num_hidden_layers": 1},
    "rnn-relu": {"cell_type": "rnn", "hidden_act": "relu"},
    "gru": {"cell_type": "gru"},
    "lstm": {},
    "lstm-narrow-embeddings": {"embedding_size": 12, "num_hidden_layers": 3},
    "lstm-untied": {"embedding_size": 12, "tie_word_embeddings": False},
}


def make_model(kind: str, **fields) -> RecurrentForCausalLM:
    torch.manual_seed(0)
    model = RecurrentForCausalLM(RecurrentConfig(**SIZES | KINDS[kind] | fields))
    with torch.no_grad():  # so that nothing can be forgotten without a difference, the head's bias for one
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def model(kind) -> RecurrentForCausalLM:
    return make_model(kind)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one - other).abs().max().item() < 1e-5


def padded_on_the_left(tokens: torch.Tensor, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    padded = nn.functional.pad(tokens, (padding, 0))
    return padded, nn.functional.pad(torch.ones_like(tokens), (padding, 0))


# --- what it computes ------------------------------------------------------------------------------------------------


def test_two_layers_are_torchs_own_two_layers_between_embeddings_and_a_tied_head(tokens):
    for kind, cell, options in (
        ("lstm", nn.LSTM, {}),
        ("gru", nn.GRU, {}),
        ("rnn-relu", nn.RNN, {"nonlinearity": "relu"}),
    ):
        model, plain = make_model(kind), cell(24, 24, num_layers=2, batch_first=True, **options)
        for layer in (0, 1):
            for name, weight in model.model.layers[layer].cell.named_parameters():
                plain.get_parameter(name.replace("_l0", f"_l{layer}")).data.copy_(weight)
        outputs, _ = plain(model.model.embed_tokens(tokens))
        expected = outputs @ model.model.embed_tokens.weight.T + model.lm_head.bias
        assert close(model(tokens).logits, expected)


def test_a_narrow_embedding_makes_a_tied_last_layer_as_narrow_and_an_untied_one_not():
    assert make_model("lstm-narrow-embeddings").config.layer_widths == [24, 24, 12]
    assert make_model("lstm-untied").config.layer_widths == [24, 24]


def test_a_text_in_pieces_or_token_by_token_is_read_as_at_once(model, tokens):
    expected = model(tokens).logits
    for name in ("cache", "past_key_values"):
        cache = model(tokens[:, :5], use_cache=True)[CACHE_NAME]
        size = sum(part.numel() for state in cache.states for part in state)
        parts = [model(tokens[:, place : place + 1], **{name: cache}).logits for place in range(5, 12)]
        assert close(torch.cat(parts, dim=1), expected[:, 5:])
        assert cache.get_seq_length() == 12
        assert sum(part.numel() for state in cache.states for part in state) == size
    assert CACHE_NAME not in model(tokens, use_cache=False)
    with pytest.raises(ValueError, match="cache and past_key_values are two names of one argument"):
        model(tokens, cache=RecurrentCache(), past_key_values=RecurrentCache())


@pytest.mark.parametrize("pieces", [(16,), (2, 5, 9)])  # the first of three holds nothing but padding
def test_padding_on_the_left_does_not_move_the_state(model, tokens, pieces):
    padded, mask = padded_on_the_left(tokens, 4)
    cache, end, logits = RecurrentCache(), 0, []
    for length in pieces:
        start, end = end, end + length
        logits.append(model(padded[:, start:end], attention_mask=mask[:, :end], cache=cache).logits)
    alone = RecurrentCache()
    assert close(torch.cat(logits, dim=1)[:, 4:], model(tokens, cache=alone).logits)
    for one, other in zip(cache.states, alone.states, strict=True):
        assert all(close(a, b) for a, b in zip(one, other, strict=True))


def test_padding_on_the_right_or_in_between_does_not_move_it_either(model, tokens):
    holes = torch.tensor([0, 1, 1, 0, 0] + [1] * 10 + [0, 0])
    padded = torch.zeros(2, 17, dtype=torch.long)
    padded[:, holes.bool()] = tokens
    assert close(model(padded, attention_mask=holes.expand(2, 17)).logits[:, holes.bool()], model(tokens).logits)


@pytest.mark.parametrize("unknown", ["cach", "position_ids", "cache_params", "attention_maks"])
def test_an_argument_that_nothing_reads_is_refused(tokens, unknown):
    model = make_model("gru")
    for reads in (model, model.model):
        with pytest.raises(TypeError, match=f"forward\\(\\) got an unexpected keyword argument '{unknown}'"):
            reads(tokens, **{unknown: tokens})


def test_hidden_states_are_those_between_the_layers(model, tokens):
    hidden = model(tokens, output_hidden_states=True).hidden_states
    assert len(hidden) == model.config.num_hidden_layers + 1
    assert close(model.lm_head(hidden[-1]), model(inputs_embeds=hidden[0]).logits)


def test_the_loss_is_the_mean_over_counted_labels_or_over_the_number_given(model, tokens):
    labels = tokens.clone()
    labels[:, 6:] = -100
    log_probabilities = model(tokens).logits.log_softmax(dim=-1)
    expected = -log_probabilities[:, :5].gather(-1, tokens[:, 1:6, None])
    assert model(tokens, labels=labels).loss.item() == pytest.approx(expected.mean().item(), abs=1e-5)
    by_number = model(tokens, labels=labels, num_items_in_batch=torch.tensor(100)).loss
    assert by_number.item() == pytest.approx(expected.sum().item() / 100, abs=1e-5)
    assert close(model(tokens, logits_to_keep=3).logits, model(tokens).logits[:, -3:])


def test_the_first_loss_is_that_of_a_uniform_guess(kind):
    torch.manual_seed(1)
    model = RecurrentForCausalLM(RecurrentConfig(**{**SIZES, **KINDS[kind], "vocab_size": 5000, "hidden_size": 200}))
    ids = torch.randint(0, 5000, (2, 32))
    assert model(ids, labels=ids).loss.item() == pytest.approx(torch.tensor(5000.0).log().item(), abs=0.1)


# --- dropout ---------------------------------------------------------------------------------------------------------


def test_dropout_of_entries_is_one_for_all_positions_of_a_row_and_another_for_each_row():
    model = make_model("lstm", embedding_dropout=0.5).train()
    read = []
    model.model.layers[0].cell.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    model(torch.full((2, 9), 5))
    embedding = model.model.embed_tokens.weight[5]
    kept = read[0] != 0
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert not torch.equal(kept[0], kept[1])
    assert close(read[0][kept], (2 * embedding).expand(2, 9, 24)[kept])  # scaled, so that the mean stays


def test_dropped_recurrent_weights_are_those_of_the_state_alone_the_same_at_all_positions(kind, tokens):
    model = make_model(kind, recurrent_dropout=0.5).train()
    cell = model.model.layers[0].cell
    torch.manual_seed(3)
    first = model(tokens).logits
    torch.manual_seed(3)
    dropped = [nn.functional.dropout(layer.cell.weight_hh_l0, 0.5) for layer in model.model.layers]
    plain = make_model(kind).train()
    for layer, weight in zip(plain.model.layers, dropped, strict=True):
        layer.cell.weight_hh_l0.data.copy_(weight)
    assert close(first, plain(tokens).logits)
    model(tokens, labels=tokens).loss.backward()
    gradients = [parameter.grad for parameter in cell.parameters()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    assert (gradients[1] == 0).float().mean() > 0.3  # of weights that were dropped
    assert close(model.eval()(tokens).logits, make_model(kind)(tokens).logits)  # nothing of it stays


def test_checkpointed_activations_give_the_same_gradients(kind, tokens):
    found = []
    for checkpointed in (False, True):
        model = make_model(kind, hidden_dropout=0.2, recurrent_dropout=0.2).train()
        if checkpointed:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(close(found[0][name], found[1][name]) for name in found[0])


# --- generate --------------------------------------------------------------------------------------------------------


def generate(model, tokens, **options):
    torch.manual_seed(0)
    defaults = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    return model.generate(tokens, **{"attention_mask": torch.ones_like(tokens)} | defaults | options)


def test_greedy_text_is_the_argmax_of_the_plain_forward_with_the_state_and_without(model, tokens):
    written = generate(model, tokens)
    for step in range(12, 18):
        logits = model(written[:, :step]).logits[:, -1]
        logits[:, 2] = -torch.inf  # the end is forbidden by min_new_tokens
        assert torch.equal(logits.argmax(dim=-1), written[:, step])
    assert torch.equal(generate(model, tokens, use_cache=False), written)


def test_every_step_of_generate_reads_one_token(tokens):
    model, read = make_model("lstm"), []
    model.model.embed_tokens.register_forward_pre_hook(lambda module, given: read.append(given[0].shape[1]))
    generate(model, tokens)
    assert read == [12, 1, 1, 1, 1, 1]


def test_prompts_of_different_length_write_in_one_left_padded_batch_what_they_write_alone(model, tokens):
    short = tokens[:1, :8]
    batch = torch.cat([nn.functional.pad(short, (4, 0)), tokens[1:]])
    for options in ({}, {"num_beams": 3}):
        written = generate(model, batch, attention_mask=(batch != 0).long(), **options)
        assert torch.equal(written[:1, 4:], generate(model, short, **options))
        assert torch.equal(written[1:], generate(model, tokens[1:], **options))


def test_beams_take_their_state_along(model, tokens):
    for options in ({"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 4, "length_penalty": 2.0}):
        assert torch.equal(generate(model, tokens, **options), generate(model, tokens, use_cache=False, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.7, "top_k": 5},
        {"do_sample": True, "top_p": 0.9, "num_return_sequences": 3},
        {"num_beams": 3, "do_sample": True},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_sampling_continues_the_prompt_with_the_state_as_without(tokens, options):
    model = make_model("gru")
    written = generate(model, tokens, **options)
    copies = options.get("num_return_sequences", 1)
    assert torch.equal(written[:, :12], tokens.repeat_interleave(copies, dim=0))
    assert torch.equal(written, generate(model, tokens, use_cache=False, **options))


def test_a_state_that_generate_returned_goes_on(tokens):
    model = make_model("lstm")
    first = generate(model, tokens, return_dict_in_generate=True)
    going_on = {"attention_mask": torch.ones_like(first.sequences), CACHE_NAME: first[CACHE_NAME]}
    again = generate(model, first.sequences, **going_on)
    assert torch.equal(again, generate(model, tokens, max_new_tokens=12, min_new_tokens=12))


def test_assisted_generation_is_refused(tokens):
    model = make_model("gru")
    for options in ({"assistant_model": make_model("gru")}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
            generate(model, tokens[:1], **options)


# --- saving ----------------------------------------------------------------------------------------------------------

QUESTION = """
generator = pipeline("text-generation", model=folder, trust_remote_code=True)
generator.tokenizer.padding_side = "left"
asked = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
texts = [generator(["w5 w9", "w7 w8 w9"], batch_size=size, **asked) for size in (1, 2)]
tokens = torch.tensor([[5, 9, 33, 12]])
report[kind] = {
    "class": type(generator.model).__name__,
    "logits": generator.model(tokens).logits.flatten().tolist(),
    "beams": generator.model.generate(tokens, num_beams=3, **asked).tolist(),
    "texts": [[text[0]["generated_text"] for text in each] for each in texts],
}
"""


def test_where_our_package_is_not_installed_pipeline_and_remote_code_work(tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{n}": n for n in range(64)}, unk_token="w1"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    models = {kind: make_model(kind) for kind in ("rnn", "gru", "lstm-narrow-embeddings")}
    for kind, model in models.items():
        model.save_pretrained(tmp_path / kind)
        transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0").save_pretrained(tmp_path / kind)
    assert {file.name for file in (tmp_path / "gru").iterdir()} >= {
        "configuration_recurrent.py",
        "modeling_recurrent.py",
        "model.safetensors",
        "generation_config.json",
    }
    report = asked_outside(QUESTION, tmp_path, models)
    for kind, model in models.items():
        found, tokens = report[kind], torch.tensor([[5, 9, 33, 12]])
        assert found["class"] == "RecurrentForCausalLM"
        assert close(torch.tensor(found["logits"]), model(tokens).logits.flatten())
        asked = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 3}
        assert found["beams"] == model.generate(tokens, **asked).tolist()
        assert found["texts"][0] == found["texts"][1]
        assert found["texts"][0][1].startswith("w7 w8 w9")


def test_a_saved_folder_loads_with_every_field_and_equal_logits(kind, tokens, tmp_path):
    model = make_model(kind, embedding_dropout=0.1, hidden_dropout=0.2, recurrent_dropout=0.3, initializer_range=0.05)
    model.save_pretrained(tmp_path)
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path), RecurrentForCausalLM.from_pretrained(tmp_path)):
        assert type(loaded) is RecurrentForCausalLM
        assert torch.equal(loaded.eval()(tokens).logits, model(tokens).logits)
        tied = loaded.lm_head.weight is loaded.model.embed_tokens.weight
        assert tied == model.config.tie_word_embeddings
    config = AutoConfig.from_pretrained(tmp_path)
    for name in RecurrentConfig.__annotations__:
        assert getattr(config, name) == getattr(model.config, name), name
    assert torch.equal(RecurrentModel.from_pretrained(tmp_path)(tokens)[0], model.model(tokens)[0])


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cell_type": "elman"}, "cell_type='elman' is unknown; set it to one of rnn, gru, lstm"),
        ({"cell_type": "rnn", "hidden_act": "gelu"}, "hidden_act='gelu' is unknown; set it to one of tanh, relu"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is for cell_type='rnn', and cell_type='lstm' has tanh"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 is not a size"),
        ({"recurrent_dropout": 1.0}, "recurrent_dropout=1.0 is not a probability"),
        ({"num_hidden_layers": 1, "embedding_size": 8}, "so is embedding_size=8 wide, not hidden_size=256"),
        ({"cell": "gru"}, "unknown key model.cell for model_type recurrent"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_in_one_line(fields, message):
    with pytest.raises(UserError, match=message) as refused:
        model_config({"model_type": "recurrent", **fields})
    assert "\n" not in str(refused.value)
