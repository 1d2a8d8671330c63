import pytest
import torch

from smallm_hf import SmaLLMConfig
from smallm_hf.data.batches.packed import PackedWindows
from smallm_hf.training import probe as probe_module
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.probe import probe

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

SHAPE = SmaLLMConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
TRAINING = TrainingConfig(max_steps=9, context_length=8, batch_size=2, compile=False, length_warmup=[2])


def test_a_probe_times_whole_updates_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measured = probe(SHAPE, TRAINING, "fp32")
    assert measured.updates == probe_module.UPDATES - probe_module.UNCOUNTED
    assert 0 < measured.step_seconds <= measured.slowest < 10
    assert measured.peak_memory_bytes > 2**26
    assert list(tmp_path.iterdir()) == []


def test_a_probe_trains_rows_of_full_length(monkeypatch):
    shapes = []
    at = PackedWindows.at

    def noted(self, first, count, row_length):
        shapes.append(row_length)
        return at(self, first, count, row_length)

    monkeypatch.setattr(PackedWindows, "at", noted)
    torch.manual_seed(0)
    probe(SHAPE, TRAINING, "fp32")
    assert set(shapes[probe_module.UNCOUNTED :]) == {8}
