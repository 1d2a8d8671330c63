"""What the estimate of memory counts; that it meets what was measured is in docs/speed.md."""

import pytest

from smallm_hf import NgramConfig, RecurrentConfig, SmaLLMConfig
from smallm_hf.families import family_of
from smallm_hf.pretrained import fresh_model
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.plan import compilable_share, memory_bytes


@pytest.mark.parametrize(("optimizer", "floats"), [("adamw", 4), ("muon", 3)])
def test_processes_that_share_a_model_hold_their_share_of_it_and_once_the_whole(monkeypatch, optimizer, floats):
    shape = {"vocab_size": 8, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = fresh_model(SmaLLMConfig(**shape), "meta")
    training = TrainingConfig(max_steps=1, batch_size=1, context_length=8, optimizer=optimizer)

    def estimate() -> int:
        return memory_bytes(model, training, "fp32", compiled=False)

    parameters = sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setenv("WORLD_SIZE", "4")
    alone = estimate()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    held = 4 * floats * parameters  # weights, gradients and moments; the few that Muon leaves to AdamW have one more
    assert alone - estimate() == pytest.approx(held - held / 4 - 4 * parameters, rel=0.01)


@pytest.mark.parametrize(
    ("config", "share"),
    [
        (SmaLLMConfig(vocab_size=8, hidden_size=64, num_hidden_layers=2, num_attention_heads=2), 1.0),
        (RecurrentConfig(cell_type="lstm", vocab_size=40, hidden_size=10, num_hidden_layers=1), 400 / (800 + 400)),
        (RecurrentConfig(cell_type="gru", vocab_size=40, hidden_size=10, num_hidden_layers=2), 400 / (1200 + 400)),
        (NgramConfig(vocab_size=8, order=2), 0.0),
    ],
)
def test_torchs_cells_are_not_compiled(config, share):
    model = fresh_model(config, "meta")
    flops = family_of(config).flops_per_token(model, 16)
    assert compilable_share(model, flops) == pytest.approx(share)
