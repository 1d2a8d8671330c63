"""Scheduled sampling: the model reads a share of its own predictions in training."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BartConfig, PreTrainedConfig, PreTrainedModel

from smallm_hf import SmaLLMConfig
from smallm_hf.models.configuration_recurrent import RecurrentConfig
from smallm_hf.pretrained import fresh_model
from smallm_hf.training import objectives
from smallm_hf.training.carried import CarriedLanguageModelling
from smallm_hf.training.objectives import LanguageModelling, draw_tokens

V, EOS, PAD = 12, 0, 11
TEXT = torch.tensor([[3, 5, 9, EOS, 4, 6], [2, 2, 10, 7, EOS, 8]])
TARGETS = torch.tensor([[5, 9, EOS, 4, 6, 1], [2, 10, 7, EOS, 8, 8]])


class Successor(PreTrainedModel):
    """Is sure that each token is followed by the next number; remembers what it read."""

    config_class = PreTrainedConfig

    def __init__(self):
        super().__init__(PreTrainedConfig(eos_token_id=EOS, pad_token_id=PAD))
        self.table = nn.Embedding.from_pretrained(1000 * torch.eye(V).roll(1, 1))
        self.read = []

    def forward(self, input_ids, attention_mask=None, decoder_input_ids=None, use_cache=None):
        ids = input_ids if decoder_input_ids is None else decoder_input_ids
        self.read.append((ids, input_ids, self.training, torch.is_grad_enabled()))
        return SimpleNamespace(logits=self.table(ids))


def objective_of(model, share: float, progress: float = 1.0, **options) -> LanguageModelling:
    """An objective that replaces this share of the tokens at this share of its run."""
    objective = LanguageModelling(model, **{"compile": False, "chunked": False, **options}, scheduled_sampling=share)
    objective.progress = progress
    return objective.train()


def test_tokens_are_replaced_by_predictions_and_the_targets_stay():
    """Where all may be replaced: each by the number after the one before it, but neither eos, pad nor a first token."""
    model = Successor()
    nats = objective_of(model, share=1.0)(TEXT, TARGETS)
    own = torch.tensor([[3, 4, 6, EOS, 1, 5], [2, 3, 3, 7, EOS, 1]])  # 10 is followed by 11, which is pad
    (first, _, first_trains, with_gradient), (second, _, second_trains, _) = model.read
    assert torch.equal(first, TEXT)
    assert torch.equal(second, own)
    assert (first_trains, with_gradient, second_trains) == (False, False, True)
    assert nats == functional.cross_entropy(model.table(own).flatten(0, 1), TARGETS.flatten(), reduction="sum")


def test_what_is_not_predicted_is_not_replaced():
    model, targets = Successor(), torch.where(torch.arange(6) < 3, TARGETS, -100)
    objective_of(model, share=1.0)(TEXT, targets)
    assert torch.equal(model.read[1][0], torch.tensor([[3, 4, 6, EOS, 4, 6], [2, 3, 3, 7, EOS, 8]]))


def test_of_an_encoder_decoder_the_decoder_alone_reads_its_own():
    model, source = Successor(), torch.tensor([[7, 7], [8, 8]])
    objective_of(model, share=1.0)(source, TARGETS, decoder_input_ids=TEXT)
    assert not torch.equal(model.read[1][0], TEXT)
    assert all(torch.equal(seen, source) for _, seen, _, _ in model.read)


def test_the_share_grows_linearly_over_the_run():
    text = torch.full((100, 101), 5)  # whose own tokens are all 6
    for progress in (0.25, 0.5, 1.0):
        model = Successor()
        objective_of(model, share=0.8, progress=progress)(text, text)
        assert (model.read[1][0][:, 1:] == 6).float().mean().item() == pytest.approx(0.8 * progress, abs=0.02)


@pytest.mark.parametrize(("share", "progress"), [(0.0, 1.0), (0.8, 0.0)])
def test_teacher_forcing_draws_nothing_and_reads_once(share, progress):
    model, before = Successor(), torch.get_rng_state()
    objective_of(model, share, progress)(TEXT, TARGETS)
    assert torch.equal(torch.get_rng_state(), before)
    assert [torch.equal(ids, TEXT) for ids, *_ in model.read] == [True]


def test_tokens_are_drawn_by_their_probabilities():
    torch.manual_seed(0)
    probabilities = torch.tensor([0.1, 0.2, 0.7])
    drawn = draw_tokens(probabilities.log().expand(20, 1000, 3))
    assert drawn.shape == (20, 1000)
    torch.testing.assert_close(drawn.flatten().bincount() / 20_000, probabilities, rtol=0, atol=0.015)


SHAPE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_both_forms_of_the_loss_read_the_same(monkeypatch):
    monkeypatch.setattr(objectives, "draw_tokens", lambda logits: logits.argmax(-1))
    torch.manual_seed(0)
    model, text = fresh_model(SmaLLMConfig(**SHAPE, output_projection_init="scaled")), torch.arange(32).reshape(2, 16)
    losses = []
    for chunked in (False, True):
        torch.manual_seed(0)
        losses.append(objective_of(model, share=0.7, chunked=chunked)(text, text + 1))
    torch.testing.assert_close(*losses)
    assert losses[0] != objective_of(model, share=0.0)(text, text + 1)


def test_a_carried_state_is_that_of_the_second_pass(monkeypatch):
    """With what the text holds as its own tokens, it is as if there were no first pass."""
    text, rows = torch.arange(2, 18).reshape(2, 8), torch.arange(2)
    own = functional.pad(text[:, 1:], (0, 1))
    monkeypatch.setattr(objectives, "draw_tokens", lambda logits: own)
    torch.manual_seed(0)
    model = fresh_model(RecurrentConfig(vocab_size=20, hidden_size=8, embedding_size=8))
    found = []
    for share in (0.0, 1.0):
        objective = CarriedLanguageModelling(model, rows=2, compile=False, chunked=False, scheduled_sampling=share)
        objective.progress = 1.0
        begins = torch.tensor([False, False])
        losses = [objective.eval()(text, text + 1, rows, begins) for _ in range(2)]
        found.append((losses, objective.carried))
    torch.testing.assert_close(found[0], found[1])


def test_a_real_encoder_decoder_trains_on_its_own_tokens():
    torch.manual_seed(0)
    sides = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sides.items()}
    tokens = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD, "decoder_start_token_id": PAD}
    model = fresh_model(BartConfig(vocab_size=V, d_model=16, max_position_embeddings=32, **sizes, **tokens))
    read = []
    model.register_forward_pre_hook(lambda _, __, inputs: read.append(inputs["decoder_input_ids"]), with_kwargs=True)
    begins = torch.tensor([[PAD, 3, 4], [PAD, 5, PAD]])
    targets = torch.tensor([[3, 4, EOS], [5, EOS, -100]])
    nats = objective_of(model, share=1.0)(TEXT, targets, decoder_input_ids=begins, attention_mask=torch.ones_like(TEXT))
    nats.backward()
    assert torch.isfinite(nats)
    assert torch.equal(read[1][begins == PAD], begins[begins == PAD])
