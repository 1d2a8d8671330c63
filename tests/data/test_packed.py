import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig

from smallm_hf import SmaLLMConfig
from smallm_hf.base.errors import UserError
from smallm_hf.data.batches.base import IGNORED
from smallm_hf.data.batches.packed import PackedWindows, positions_in_documents, refuse_mixing
from smallm_hf.data.batches.windows import WindowOrder


@pytest.fixture
def windows():
    """Windows of four tokens over the numbers from 100 on."""
    return PackedWindows(np.arange(100, 160, dtype=np.uint16), WindowOrder(60, 4, seed=3), separator=107)


def test_targets_are_the_tokens_after_the_inputs(windows):
    batch = windows.at(2, 3)
    starts = windows.order.starts(2, 3)[:, None] + 100
    assert batch.inputs["input_ids"].tolist() == (starts + range(4)).tolist()
    assert batch.targets.tolist() == (starts + range(1, 5)).tolist()
    assert batch.inputs["input_ids"].dtype == batch.targets.dtype == torch.int64


def test_every_target_of_a_packed_window_is_counted_and_known_beforehand(windows):
    batch = windows.at(5, 7)
    assert batch.counted == (batch.targets != IGNORED).sum() == windows.counted(5, 7) == 28


def test_what_a_mask_leaves_out_is_no_target_and_not_counted(windows):
    mask = np.arange(60) % 3 == 0
    masked = PackedWindows(windows.tokens, windows.order, mask=mask)
    batch, whole = masked.at(5, 7), windows.at(5, 7)
    kept = torch.from_numpy(mask)[whole.targets - 100]
    assert torch.equal(batch.targets, torch.where(kept, whole.targets, IGNORED))
    assert batch.counted == masked.counted(5, 7) == kept.sum() < whole.counted
    assert torch.equal(batch.inputs["input_ids"], whole.inputs["input_ids"])


def test_a_batch_is_the_same_wherever_it_is_asked_for(windows):
    whole = windows.at(0, 40).targets
    for first, count in [(0, 1), (17, 5), (39, 1)]:
        assert torch.equal(windows.at(first, count).targets, whole[first : first + count])


def test_rows_count_positions_from_their_own_beginning(windows):
    rows = windows.at(0, 8, 2).inputs
    assert rows["position_ids"].tolist() == positions_in_documents(rows["input_ids"], 107).tolist()
    assert rows["position_ids"].max() == 1


def test_what_a_batch_hands_to_an_objective_is_inputs_and_targets(windows):
    assert windows.at(0, 2).to(torch.device("cpu")).keys() == {"input_ids", "position_ids", "targets"}


# --- attention within documents --------------------------------------------------------------------------------------


def test_positions_begin_again_at_every_end_of_a_document():
    input_ids = torch.tensor([[5, 6, 0, 7, 8, 9], [0, 0, 5, 0, 5, 5], [5, 5, 5, 5, 5, 0]])
    expected = [[0, 1, 0, 1, 2, 3], [0, 0, 1, 0, 1, 2], [0, 1, 2, 3, 4, 0]]
    assert positions_in_documents(input_ids, eos_token_id=0).tolist() == expected


SHAPE = {"vocab_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
MODELS = {
    "modern": lambda: SmaLLMConfig(**SHAPE, hidden_size=16),
    "classic": lambda: SmaLLMConfig(**SHAPE, hidden_size=16, preset="classic", dropout=0.0),
    "llama": lambda: LlamaConfig(**SHAPE, hidden_size=16, intermediate_size=32),
    "gpt2": lambda: GPT2Config(vocab_size=40, n_layer=2, n_head=2, n_embd=16, n_positions=16),
}
ROWS = torch.tensor([[5, 6, 0, 7, 8, 9, 3, 0, 0, 4, 11, 2], [0, 8, 8, 3, 4, 0, 7, 7, 7, 7, 7, 7]])


def make_model(name: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name](), attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_score_as_each_does_alone_behind_its_eos(name, attention, compiled):
    model = make_model(name, attention)
    forward = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    positions = positions_in_documents(ROWS, eos_token_id=0)
    with torch.no_grad():
        packed = forward(input_ids=ROWS, position_ids=positions, use_cache=False).logits
        for row, tokens in enumerate(ROWS):
            bounds = [0, *(index for index in range(1, 12) if tokens[index] == 0), 12]
            for begin, end in itertools.pairwise(bounds):
                alone = model(input_ids=tokens[None, begin:end], use_cache=False).logits[0]
                torch.testing.assert_close(packed[row, begin:end], alone, rtol=1e-5, atol=1e-5)
        assert (packed - model(input_ids=ROWS, use_cache=False).logits).abs().max() > 0.01


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("eos_token_id", [0, 2, 39])
def test_models_that_keep_documents_apart_are_taken(name, eos_token_id):
    refuse_mixing(make_model(name), eos_token_id)


def test_models_that_do_not_are_refused():
    torch.manual_seed(0)
    bloom = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2)).eval()
    with pytest.raises(UserError, match="within_documents=true does not keep documents apart in BloomForCausalLM"):
        refuse_mixing(bloom, 0)
    deaf = make_model("llama")
    forward = deaf.forward
    deaf.forward = lambda input_ids, position_ids=None, **options: forward(input_ids=input_ids, **options)
    with pytest.raises(UserError, match="apart in LlamaForCausalLM under attention sdpa; set it to false"):
        refuse_mixing(deaf, 0)
