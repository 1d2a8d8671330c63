"""Both forms of the training loss are one number with one gradient."""

import functools
import math

import pytest
import torch
from torch.nn import functional
from transformers import Gemma2Config, GPT2Config, GPT2LMHeadModel, GraniteConfig, LlamaConfig, PhiConfig

from smallm_hf import SmaLLMConfig
from smallm_hf.pretrained import fresh_model
from smallm_hf.training.objectives import LanguageModelling, has_plain_head

SHAPE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = torch.arange(32).reshape(2, 16)
BATCH = {"input_ids": IDS, "targets": IDS + 1}


def model_of(config):
    torch.manual_seed(0)
    return fresh_model(config)


def loss_and_gradients(model, **form):
    loss = LanguageModelling(model, **{"compile": False, "chunked": False, **form})(**BATCH)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return loss.detach(), gradients


@pytest.mark.parametrize(
    "config",
    [SmaLLMConfig(**SHAPE), SmaLLMConfig(**SHAPE, tie_word_embeddings=False), PhiConfig(**SHAPE, intermediate_size=16)],
    ids=["tied", "untied", "head with a bias"],
)
def test_chunks_give_the_loss_and_the_gradients_of_logits(config):
    model = model_of(config).eval()
    loss, gradients = loss_and_gradients(model)
    assert loss == pytest.approx(32 * math.log(50), rel=0.1)
    chunked, others = loss_and_gradients(model, chunked=True)
    torch.testing.assert_close(chunked, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, msg=name)


@pytest.mark.parametrize("chunked", [False, True])
def test_masked_targets_count_for_nothing(chunked):
    model = model_of(SmaLLMConfig(**SHAPE))
    step_loss = LanguageModelling(model, compile=False, chunked=chunked)
    half = torch.cat([IDS[:1] + 1, torch.full((1, 16), -100)])
    masked = step_loss(IDS, half)
    torch.testing.assert_close(masked, step_loss(IDS[:1], half[:1]))


@pytest.mark.parametrize("config", [SmaLLMConfig(**SHAPE), PhiConfig(**SHAPE, intermediate_size=16)])
def test_negative_log_likelihood_on_log_softmax_is_the_cross_entropy(config):
    model = model_of(config).eval()
    log_probabilities = model(IDS).logits.log_softmax(-1).flatten(0, 1)
    expected = functional.nll_loss(log_probabilities, BATCH["targets"].flatten(), reduction="sum")
    for chunked in (False, True):
        torch.testing.assert_close(loss_and_gradients(model, chunked=chunked)[0], expected.detach())


@pytest.mark.parametrize(
    "config", [SmaLLMConfig(**SHAPE), PhiConfig(**SHAPE, intermediate_size=16)], ids=["tied", "head with a bias"]
)
def test_smoothing_trains_towards_a_share_of_every_token(config):
    """Szegedy et al. 2016: the target has 1 - 0.3, and all V tokens together, the target among them, have 0.3."""
    model = model_of(config).eval()
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    half = {"input_ids": IDS, "targets": torch.where(IDS % 2 == 0, IDS + 1, -100)}
    goal = 0.7 * functional.one_hot(IDS + 1, 50) + 0.3 / 50  # (B, T, V)
    expected = -(goal * model(IDS).logits.log_softmax(-1)).sum(-1)[IDS % 2 == 0].sum()
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    for chunked in (False, True):
        model.zero_grad()
        loss = LanguageModelling(model, compile=False, chunked=chunked, label_smoothing=0.3)(**half)
        loss.backward()
        torch.testing.assert_close(loss, expected)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name], msg=name)


def test_the_loss_is_that_of_the_library():
    model = model_of(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)).eval()
    assert isinstance(model, GPT2LMHeadModel)
    expected = model(input_ids=IDS, labels=IDS).loss
    shifted = {"input_ids": IDS[:, :-1], "targets": IDS[:, 1:]}
    torch.testing.assert_close(LanguageModelling(model, compile=False, chunked=False)(**shifted) / 30, expected)


@pytest.mark.parametrize("chunked", [False, True])
def test_autocast_changes_the_loss_by_rounding_only(chunked):
    model = model_of(SmaLLMConfig(**SHAPE, output_projection_init="scaled"))
    loss, _ = loss_and_gradients(model, chunked=chunked)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, gradients = loss_and_gradients(model, chunked=chunked)
    assert rounded != loss
    torch.testing.assert_close(rounded, loss, rtol=1e-2, atol=1e-2)
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())


@pytest.mark.filterwarnings("error:.*retain_graph.*")
@pytest.mark.parametrize("chunked", [False, True])
def test_a_compiled_step_gives_the_loss_of_the_plain_one_without_graph_breaks(chunked):
    torch._dynamo.reset()
    plain, _ = loss_and_gradients(model_of(SmaLLMConfig(**SHAPE)))
    torch._dynamo.utils.counters.clear()
    step_loss = LanguageModelling(model_of(SmaLLMConfig(**SHAPE)), compile=True, chunked=chunked)
    first = step_loss(**BATCH)
    first.backward()
    second = step_loss(IDS + 3, IDS)
    torch.testing.assert_close(first, plain, rtol=1e-5, atol=1e-6)
    assert math.isfinite(second.item())
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("preset", ["modern", "classic"])
def test_the_compiled_step_keeps_the_causal_fast_path_of_attention(preset, monkeypatch):
    """No mask is built: attention is told that it is causal."""
    seen = []

    def collect(graph, example_inputs):
        seen.extend(n for n in graph.graph.nodes if "scaled_dot_product_attention" in str(n.target))
        return graph.forward

    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend=collect))
    torch._dynamo.reset()
    LanguageModelling(model_of(SmaLLMConfig(**SHAPE, preset=preset)), compile=True, chunked=False)(**BATCH)
    assert len(seen) == SHAPE["num_hidden_layers"]
    for node in seen:
        assert node.kwargs["is_causal"] is True
        assert node.kwargs["attn_mask"] is None


LLAMA = {**SHAPE, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (SmaLLMConfig(**SHAPE), True),
        (SmaLLMConfig(**SHAPE, preset="classic"), True),
        (LlamaConfig(**LLAMA), True),
        (GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2), True),
        (GraniteConfig(**LLAMA, logits_scaling=8.0), False),
        (Gemma2Config(**LLAMA, num_key_value_heads=1, head_dim=8, final_logit_softcapping=5.0), False),
    ],
    ids=["modern", "classic", "llama", "gpt2", "scaled logits", "capped logits"],
)
def test_a_head_that_does_more_than_map_is_recognised(config, plain):
    assert has_plain_head(model_of(config)) is plain
