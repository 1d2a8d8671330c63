"""score.py and generate.py as a user runs them."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request
from smallm_hf.pretrained import load_causal_lm

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
STORIES = ["Once upon a time.", "One fish, two fish."]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=os.environ, timeout=120)


@pytest.fixture(scope="module")
def folder(gpt2_folder, tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=8, n_layer=1, n_head=2)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gpt2_folder).save_pretrained(folder)
    return str(folder)


def test_score_writes_what_the_function_returns_and_where_it_came_from(folder, tmp_path):
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps({"story": text}) + "\n" for text in [*STORIES, "no"]))
    output = tmp_path / "new" / "scores.json"
    arguments = ["--model", folder, "--data", str(tmp_path / "stories.jsonl"), "--text_column", "story"]
    options = ["--max_documents", "2", "--protocol", "packed", "--context_length", "8", "--device", "cpu"]
    finished = run("score.py", *arguments, *options, "--output", str(output))
    assert finished.returncode == 0, finished.stderr
    scores = json.loads(output.read_text())
    model, tokenizer = load_causal_lm(folder, device="cpu")
    expected = score_documents(model, tokenizer, STORIES, protocol="packed", context_length=8)
    for key in ("loss", "perplexity", "bits_per_byte", "top1_accuracy", "top3_accuracy"):
        assert scores[key] == pytest.approx(expected[key], rel=1e-6)
    for key in ("tokens", "bytes", "documents", "protocol", "context_length", "dtype", "model"):
        assert scores[key] == expected[key]
    assert scores["versions"]["torch"] == torch.__version__
    assert f"{expected['bits_per_byte']:.4f}" in finished.stdout


def test_generate_continues_the_prompt_as_the_engine_does(folder):
    options = ["--max_new_tokens", "24", "--temperature", "0.5", "--num_samples", "2", "--seed", "3", "--device", "cpu"]
    finished = run("generate.py", "--model", folder, "--prompt", STORIES[0], *options)
    assert finished.returncode == 0, finished.stderr
    engine = Engine(*load_causal_lm(folder, device="cpu"))
    requests = [Request(STORIES[0], max_new_tokens=24, temperature=0.5, seed=seed) for seed in (3, 4)]
    first, second = (engine.write([request])[0].text for request in requests)
    assert finished.stdout == (f"--- 1 of 2, seed 3\n{STORIES[0]}{first}\n--- 2 of 2, seed 4\n{STORIES[0]}{second}\n")


def run_here(script: str, arguments: list[str], monkeypatch) -> int:
    """The script as `python script` runs it, without paying for another interpreter; gives its exit status."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (
            "score.py",
            [
                *(
                    "--model",
                    "--against",
                    "--data",
                    "--protocol {documents,packed,sliding}",
                    "--stride",
                    "--batch_size",
                ),
                *(
                    "--max_documents",
                    "--top_k",
                    "--source_column",
                    "--training_tokens",
                    "--generate",
                    "--speed",
                    "--report",
                ),
            ],
        ),
        ("generate.py", ["--model", "--prompt", "--max_new_tokens", "--temperature", "--top_k", "--top_p", "--seed"]),
    ],
)
def test_help_names_every_option(script, options, monkeypatch, capsys):
    assert run_here(script, ["--help"], monkeypatch) == 0
    text = capsys.readouterr().out
    for option in [*options, "--trust_remote_code", "--dtype {auto,float32,bfloat16,float16}", "--device"]:
        assert option in text


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("score.py", ["--model", "nowhere/run/best", "--data", "{text}"], "nowhere/run/best is not a folder"),
        ("score.py", ["--model", "{model}", "--data", "nowhere.txt"], "data source nowhere.txt: no such file"),
        ("score.py", ["--model", "{model}", "--data", "{empty}"], "there was no token to score"),
        (
            "score.py",
            ["--model", "{model}", "--data", "{text}", "--top_k", "50258"],
            "top_k=50258 is out of range; give 1 to 50257",
        ),
        (
            "score.py",
            ["--model", "{model}", "--data", "{text}", "--stride", "4"],
            "stride=4 belongs to protocol sliding",
        ),
        ("score.py", ["--model", "nowhere-*/best", "--data", "{text}"], "nowhere-*/best: matches no folder"),
        ("generate.py", ["--model", "{model}", "--prompt", "a " * 20], "and the model's context holds 16"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(folder, tmp_path, script, arguments, message, monkeypatch, capsys):
    text, empty = tmp_path / "text.txt", tmp_path / "empty.txt"
    text.write_text("text")
    empty.write_text("\n")
    arguments = [part.format(model=folder, text=text, empty=empty) for part in arguments]
    assert run_here(script, arguments, monkeypatch) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
