"""That nothing is multiplied in a dtype which the machine multiplies slowly, unless somebody asks for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from smallm_hf.base.arithmetic import multiplies_well, slow_dtype
from smallm_hf.pretrained import load_causal_lm, load_scorable

PROGRAM = Path(__file__).parent / "count_products.py"
# What makes torch and oneDNN compute as on a CPU with AVX2 and no more.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ACCELERATE_USE_CPU": "true"}


def test_a_cpu_without_bfloat16_multiplies_in_float32_wherever_matrices_are_multiplied(tmp_path):
    command = [sys.executable, str(PROGRAM), str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | AVX2, timeout=300)
    assert finished.returncode == 0, finished.stderr
    counts = json.loads(finished.stdout.splitlines()[-1])
    assert set(counts) == {"training", "scoring", "writing", "comparing", "benchmark"}
    for name, (sixteen, thirty_two) in counts.items():
        assert sixteen == 0, name
        assert thirty_two > 0, name


@pytest.fixture
def cpu_with(monkeypatch):
    """Pretends that the CPU has some instructions, and that oneDNN uses them or not."""

    def pretend(onednn: bool = True, **features: bool) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
        for name in ("bf16", "fp16"):
            monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: onednn)

    return pretend


def test_a_cpu_multiplies_what_both_it_and_onednn_know(cpu_with):
    cpu_with(avx512_bf16=True)
    assert multiplies_well(torch.bfloat16, "cpu") and not multiplies_well(torch.float16, "cpu")
    cpu_with(avx512_fp16=True)
    assert multiplies_well(torch.float16, "cpu") and not multiplies_well(torch.bfloat16, "cpu")
    cpu_with(avx512_bf16=True, amx_fp16=True, onednn=False)
    assert not multiplies_well(torch.bfloat16, "cpu") and not multiplies_well(torch.float16, "cpu")
    assert multiplies_well(torch.float32, "cpu")


def test_a_gpu_without_bfloat16_multiplies_float16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not multiplies_well(torch.bfloat16, "cuda:0") and multiplies_well(torch.float16, "cuda:0")
    assert slow_dtype(torch.bfloat16, "cuda:0") and not slow_dtype(torch.float16, "cuda:0")


@pytest.fixture(scope="module")
def tokenizer(gpt2_folder):
    return AutoTokenizer.from_pretrained(gpt2_folder)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("load", [load_causal_lm, load_scorable])
def test_auto_keeps_the_dtype_of_the_weights_only_where_it_is_multiplied_well(
    load, stored, tokenizer, cpu_with, tmp_path, capsys
):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).to(stored)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    name = str(stored).removeprefix("torch.")
    cpu_with(avx512_bf16=True, avx512_fp16=True)
    assert load(str(tmp_path), device="cpu")[0].dtype == stored
    assert load(str(tmp_path), device="cpu", dtype=name)[0].dtype == stored
    assert "slow" not in capsys.readouterr().err
    cpu_with()
    loaded = load(str(tmp_path), device="cpu")[0]
    assert loaded.dtype == torch.float32
    for got, weights in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(got, weights.float())
    assert "slow" not in capsys.readouterr().err
    assert load(str(tmp_path), device="cpu", dtype=name)[0].dtype == stored  # obeyed, and told
    told = [line for line in capsys.readouterr().err.splitlines() if "slow" in line]
    assert told == [f"this cpu multiplies {name} far slower than float32; leave out --dtype to be faster"]
