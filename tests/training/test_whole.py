"""What a split model gives back whole; tests/runs/test_sharding.py trains one."""

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, LlamaConfig

from smallm_hf import SmaLLMConfig
from smallm_hf.pretrained import fresh_model
from smallm_hf.training.sharding import is_sharded, whole

SHAPE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.arange(16).reshape(2, 8)


@pytest.fixture
def a_process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "config",
    [
        SmaLLMConfig(**SHAPE),
        SmaLLMConfig(**SHAPE, preset="classic", max_position_embeddings=8),
        LlamaConfig(**SHAPE, intermediate_size=16, tie_word_embeddings=False),
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=8),
    ],
    ids=["modern", "classic", "Llama untied", "GPT-2"],
)
def test_the_copy_of_a_split_model_is_the_model_and_saves_as_it_does(a_process_group, tmp_path, config):
    torch.manual_seed(0)
    model = fresh_model(config).eval()
    expected = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path / "before")
    with whole(model) as same:
        assert same is model
    for block in model.modules():
        if type(block).__name__ in model._no_split_modules:
            fully_shard(block)
    fully_shard(model)
    assert is_sharded(model)
    with whole(model) as copy:
        assert not any(isinstance(tensor, DTensor) for tensor in copy.state_dict().values())
        assert torch.equal(copy.eval()(input_ids=IDS).logits, expected)
        copy.save_pretrained(tmp_path / "after")
    for path in (tmp_path / "before").iterdir():
        assert path.read_bytes() == (tmp_path / "after" / path.name).read_bytes(), path.name
    assert is_sharded(model)
