"""A trained temperature divides the logits, and is a part of the last norm where a native class has to know it."""

import pytest
import torch
from smallm_kinds import SIZES, make_model
from test_smallm_saving import ROADS, class_of, expected_class, load

from smallm_hf import SmaLLMConfig, SmaLLMForCausalLM
from smallm_hf.families import parameter_groups
from smallm_hf.training.objectives import LanguageModelling, has_plain_head

KIND = pytest.mark.parametrize("kind", ["modern", "classic"])


def make(kind: str, temperature: float = 1.0, **fields) -> SmaLLMForCausalLM:
    model = make_model(kind, trainable_temperature=True, **fields).eval()
    torch.nn.init.constant_(model.model.temperature.log_temperature, torch.tensor(temperature).log())
    return model


@KIND
def test_logits_are_divided_by_it_and_it_starts_at_1(kind, tokens):
    plain, hot = make_model(kind), make(kind, 1.6)
    torch.testing.assert_close(hot(tokens).logits, plain(tokens).logits / 1.6)
    fresh = []
    for field in (False, True):
        torch.manual_seed(0)
        fresh.append(SmaLLMForCausalLM(SmaLLMConfig(**SIZES, preset=kind, trainable_temperature=field)).eval())
    assert torch.equal(fresh[0](tokens).logits, fresh[1](tokens).logits)
    assert fresh[1].num_parameters() == fresh[0].num_parameters() + 1


@KIND
def test_its_gradient_is_that_of_the_loss(kind, tokens):
    """By hand: the derivative of the loss of logits / T by log T is the sum of (one-hot - softmax) * logits / T."""
    model = make(kind, 1.6)
    logits, targets = model(tokens).logits.flatten(0, 1).double().detach(), tokens.roll(-1, 1).flatten()
    expected = logits[torch.arange(len(targets)), targets] - (logits.softmax(-1) * logits).sum(-1)
    for chunked in (False, True):
        model.zero_grad()
        LanguageModelling(model, compile=False, chunked=chunked)(tokens, tokens.roll(-1, 1)).backward()
        found = model.model.temperature.log_temperature.grad
        assert found.item() == pytest.approx(expected.sum().item(), rel=1e-4)


@KIND
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("road", ROADS)
def test_a_saved_folder_is_of_the_native_class_with_equal_logits(kind, road, tied, tokens, tmp_path):
    model = make(kind, 1.6, tie_word_embeddings=tied)
    assert has_plain_head(model)
    norm = model.model.norm
    torch.nn.init.normal_(norm.weight)
    if kind == "classic":
        torch.nn.init.normal_(norm.bias)
    expected = model(tokens).logits
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, road)
    assert class_of(loaded) == expected_class(kind, road)
    torch.testing.assert_close(loaded(tokens).logits, expected, rtol=0, atol=1e-5)
    assert torch.equal(model(tokens).logits, expected)  # saving has changed nothing
    if road != "flagless":
        assert loaded.model.temperature.log_temperature.item() == 0


@KIND
def test_what_a_run_goes_on_from_has_it_to_the_bit(kind, tmp_path):
    model = make(kind, 1.6)
    torch.nn.init.normal_(model.model.norm.weight)
    model.save_pretrained(tmp_path, save_original_format=False)
    loaded, info = SmaLLMForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_a_model_that_no_native_class_expresses_keeps_it(tokens, tmp_path):
    model = make("modern", 1.6, norm_type="layer")
    model.save_pretrained(tmp_path)
    loaded = SmaLLMForCausalLM.from_pretrained(tmp_path)
    assert loaded.model.temperature.log_temperature.item() == pytest.approx(0.47, abs=1e-3)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_it_is_not_decayed_towards_1():
    model = make("modern", 1.6)
    assert any(parameter is model.model.temperature.log_temperature for parameter in parameter_groups(model)["vector"])
