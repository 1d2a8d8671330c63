"""A process that cannot import this package, of this Python or of another, and what is asked of it."""

import json
import os
import subprocess
import sys

import torch

REPO = "user/everywhere"
PROMPT = "the cat sat on"
NEW_TOKENS = 8
# Name -> (fields of the config, the class that plain from_pretrained gives, None where it needs the flag).
PRESETS = {
    "modern": ({}, "Qwen3ForCausalLM"),
    "llama": ({"qk_norm": False, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, "LlamaForCausalLM"),
    "classic": ({"preset": "classic"}, "GPT2LMHeadModel"),
    "no native class": ({"preset": "classic", "norm_type": "rms"}, None),
}

PROGRAM = """
import json, sys
sys.modules["smallm_hf"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

jobs, prompt, token_ids, new_tokens = json.loads(sys.argv[1])

def load(model, **flag):
    loaded = AutoModelForCausalLM.from_pretrained(model, **flag)
    return [type(loaded).__name__, loaded(torch.tensor([token_ids])).logits[0].tolist()]

def write(model, **flag):  # with a cache and without
    loaded = AutoModelForCausalLM.from_pretrained(model, **flag)
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    return [loaded.generate(torch.tensor([token_ids]), use_cache=use, **settings)[0].tolist() for use in (True, False)]

def tokenize(model):
    return AutoTokenizer.from_pretrained(model)(prompt)["input_ids"]

def generate(model):
    write = pipeline("text-generation", model=model)
    return write(prompt, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)[0]["generated_text"]

answers = {}
for name, (road, model, flag) in jobs.items():
    try:
        answers[name] = globals()[road](model, **flag)
    except Exception as error:
        answers[name] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(answers))  # on a line of its own, whatever transformers has asked before
"""
FLAG = {"trust_remote_code": True}


def ask(token_ids: list[int], jobs: dict[str, tuple[str, str, dict]], python: str = sys.executable) -> dict:
    """Does each job, (`load`, `write`, `tokenize` or `generate`; model; flag), and says what came of it."""
    command = [python, "-I", "-c", PROGRAM, json.dumps([jobs, PROMPT, token_ids, NEW_TOKENS])]
    silent = {"env": os.environ, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command, **silent, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_same(answer: list | str, class_name: str, expected: torch.Tensor) -> None:
    """A model was loaded of this class, and its logits are those of the class that was trained, to float rounding."""
    assert answer[0] == class_name, answer
    torch.testing.assert_close(torch.tensor(answer[1]), expected, rtol=0, atol=1e-4)
