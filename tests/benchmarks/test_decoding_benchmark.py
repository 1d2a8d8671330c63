"""The decoding benchmark: that its quick run reports, and that what it computes is right. No speed is asserted."""

import json

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from smallm_hf.base import arithmetic
from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks.generate import _same, compare_decoding, multiplied_bytes, print_decoding

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}

WORDS = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="a"))
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=WORDS, eos_token="</s>")


def model(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=100, max_position_embeddings=32, **SIZES, **changes)).eval()


def test_a_quick_run_reports_every_way_beside_the_bound(monkeypatch):
    monkeypatch.setattr(arithmetic, "multiplies_well", lambda dtype, device: True)
    ours = model()
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in ours.state_dict().items()}
    results = json.loads(
        json.dumps(compare_decoding(ours, TOKENIZER, batch_sizes=[1, 3], quick=True, say=lambda line: None))
    )
    assert set(results["ways"]) == {"1", "3"}
    for ways in results["ways"].values():
        assert list(ways) == ["generate, fp32", "ours, fp32", "generate, bf16", "ours, bf16"]
        assert ways["ours, fp32"]["same_tokens"] == 1
        assert ways["generate, fp32"]["ratio"] == {"median": 1, "lowest": 1, "highest": 1}
        for numbers in ways.values():
            assert numbers["share_of_bound"] > 0 and len(numbers["rates"]) == 2
    assert results["multiplied_bytes"]["fp32"] == 2 * results["multiplied_bytes"]["bf16"]
    assert "torch" in results["versions"]
    for name, tensor in ours.state_dict().items():  # ours was copied
        assert torch.equal(tensor, before[name][0]) and tensor.stride() == before[name][1]
    console = Console(record=True, width=160)
    print_decoding(results, console)
    text = console.export_text()
    assert "ours, bf16" in text and "GB/s" in text


def test_weights_in_bfloat16_are_left_out_where_it_is_slow_and_that_is_said(monkeypatch):
    monkeypatch.setattr(arithmetic, "multiplies_well", lambda dtype, device: False)
    said = []
    results = compare_decoding(model(), TOKENIZER, batch_sizes=[1], quick=True, say=said.append)
    assert list(results["ways"]["1"]) == ["generate, fp32", "ours, fp32"]
    assert said[0] == "leaving out bf16: this cpu multiplies bfloat16 far slower than float32"


def test_the_weights_of_a_step_are_its_matrices_and_the_head_once():
    matrices = 4 * 16 * 16 + 3 * 16 * 24 + 100 * 16
    assert multiplied_bytes(model()) == multiplied_bytes(model(tie_word_embeddings=True)) == 4 * matrices
    classic = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    assert multiplied_bytes(classic) == 4 * (12 * 16 * 16 + 100 * 16)  # positions are looked up


def test_a_text_is_the_same_until_it_first_differs():
    expected = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]])
    written = torch.tensor([[1, 2, 0, 4], [1, 2, 3, 4]])
    assert _same(written, expected) == (0.5 + 1) / 2


def test_a_context_without_room_is_refused():
    config = LlamaConfig(vocab_size=100, max_position_embeddings=17, **SIZES)
    with pytest.raises(UserError, match="context of 17 tokens leaves no room behind 16 of a prompt"):
        compare_decoding(LlamaForCausalLM(config), TOKENIZER, quick=True)


def test_a_model_of_another_kind_is_refused(monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "_can_compile_fullgraph", False)
    with pytest.raises(UserError, match="LlamaForCausalLM is written with by generate alone"):
        compare_decoding(model(), TOKENIZER, quick=True)
