"""The feed-forward model of Bengio et al. 2003."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from short_context_models import make_feedforward

from smallm_hf.base.errors import UserError
from smallm_hf.config import read_config
from smallm_hf.models.configuration_feedforward import ACTIVATIONS, FeedForwardConfig


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_computes_what_the_paper_writes(activation, tokens):
    model = make_feedforward(hidden_act=activation)
    table, hidden, head = model.model.embed_tokens.weight, model.model.layers[0], model.lm_head
    function = {name: getattr(torch.nn.functional, name) for name in ACTIVATIONS if name not in ("tanh", "sigmoid")}
    function |= {"tanh": torch.tanh, "sigmoid": torch.sigmoid}
    for position in (0, 1, 2, 7):
        read = [table[token] for token in tokens[0, max(0, position - 2) : position + 1]]
        read = [torch.zeros(8)] * (3 - len(read)) + read
        joined = torch.stack(read, dim=-1).flatten()  # (E, n): the n values of an entry stand together
        expected = head.weight @ function[activation](hidden.weight @ joined + hidden.bias) + head.bias
        assert torch.allclose(model(tokens).logits[0, position], expected, atol=1e-5)


def test_every_parameter_gets_a_gradient_and_dropout_acts_in_training_only(tokens):
    model = make_feedforward(num_hidden_layers=2, dropout=0.5)
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    model(tokens, labels=tokens).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_embeddings_may_come_in_place_of_tokens_but_not_beside_them(tokens):
    model = make_feedforward()
    vectors = model.get_input_embeddings()(tokens)
    assert torch.equal(model(inputs_embeds=vectors).logits, model(tokens).logits)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(tokens, inputs_embeds=vectors)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"hidden_act": "softplus"}, "hidden_act='softplus' is unknown; choose from relu, gelu, leaky_relu, tanh, sig"),
        ({"context_size": 0}, "context_size=0 is not a size; set it to 1 or more"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 is not a size"),
        ({"dropout": 1.0}, "dropout=1.0 is not a probability"),
        ({"tie_word_embeddings": True}, "embedding_size=64 differs from hidden_size=256; make them equal"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_in_one_line(fields, line):
    with pytest.raises(StrictDataclassClassValidationError, match=line):
        FeedForwardConfig(**fields)


def test_a_context_larger_than_the_windows_it_is_trained_on_is_refused():
    model = {"model_type": "feedforward", "context_size": 40}
    with pytest.raises(UserError, match=r"model.context_size=40 reads 40 tokens, .*context_length=32 hold fewer"):
        read_config([{"model": model, "training": {"context_length": 32, "max_steps": 1}}])
