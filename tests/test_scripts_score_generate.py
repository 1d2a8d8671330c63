"""score.py and generate.py as a user runs them."""

import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from smallm_hf.base.errors import UserError
from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.generation.configuration import Asked
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.printing import print_records
from smallm_hf.generation.request import Request
from smallm_hf.pretrained import load_causal_lm

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
STORIES = ["Once upon a time.", "One fish, two fish."]


def run(python: Path, script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [python, SCRIPTS / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=os.environ, timeout=120)


@pytest.fixture(scope="module")
def folder(gpt2_folder, tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=8, n_layer=1, n_head=2)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gpt2_folder).save_pretrained(folder)
    return str(folder)


def test_score_writes_what_the_function_returns_and_where_it_came_from(folder, tmp_path, warm_bin):
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps({"story": text}) + "\n" for text in [*STORIES, "no"]))
    output = tmp_path / "new" / "scores.json"
    arguments = ["--model", folder, "--data", str(tmp_path / "stories.jsonl"), "--text_column", "story"]
    options = ["--max_documents", "2", "--protocol", "packed", "--context_length", "8", "--device", "cpu"]
    finished = run(warm_bin / "python", "score.py", *arguments, *options, "--output", str(output))
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


def test_generate_continues_the_prompt_as_the_engine_does(folder, warm_bin):
    options = ["--max_new_tokens", "24", "--temperature", "0.5", "--num_samples", "2", "--seed", "3", "--device", "cpu"]
    finished = run(warm_bin / "python", "generate.py", "--model", folder, "--prompt", STORIES[0], *options)
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
        (
            "generate.py",
            [
                *("--model", "--prompt", "--prompt_file", "--num_samples", "--batch_size", "--json", "--logprobs"),
                *("--compile", "--max_new_tokens", "--temperature", "--top_k", "--top_p", "--min_p", "--seed"),
            ],
        ),
    ],
)
def test_help_names_every_option(script, options, monkeypatch, capsys):
    assert run_here(script, ["--help_all"], monkeypatch) == 0
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
        (
            "generate.py",
            ["--model", "{model}", "--prompt", "a", "a " * 20, "--json"],
            "text 2 of 2: the prompt takes",
        ),
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


# --- several prompts of generate.py, from wherever they come ---------------------------------------------------------

DRAWN = {"max_new_tokens": 24, "temperature": 0.5, "seed": 3}
OPTIONS = ["--device", "cpu", *(word for name, value in DRAWN.items() for word in (f"--{name}", str(value)))]


def generate_here(arguments: list[str], monkeypatch, capsys) -> str:
    """What generate.py prints on standard output."""
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments, *OPTIONS])
    runpy.run_path(str(SCRIPTS / "generate.py"), run_name="__main__")
    return capsys.readouterr().out


def test_several_prompts_are_continued_in_one_batch_and_shown_one_after_the_other(folder, monkeypatch, capsys):
    batches, stream_batch = [], Engine.stream_batch
    monkeypatch.setattr(Engine, "stream_batch", lambda *given: batches.append(len(given[1])) or stream_batch(*given))
    arguments = ["--model", folder, "--prompt", *STORIES, "--prompt", "", "--num_samples", "2", "--batch_size", "4"]
    printed = generate_here(arguments, monkeypatch, capsys)
    assert batches == [4, 2]
    engine = Engine(*load_causal_lm(folder, device="cpu"))
    expected = ""
    for number, (prompt, seed) in enumerate([(prompt, seed) for prompt in [*STORIES, ""] for seed in (3, 4)], start=1):
        text = engine.write([Request(prompt, **DRAWN | {"seed": seed})])[0].text
        expected += f"--- {number} of 6, seed {seed}\n{prompt}{text}\n"
    assert printed == expected


def test_json_is_an_object_for_each_text_and_nothing_else_is_on_standard_output(folder, tmp_path, monkeypatch, capsys):
    rows = [{"prompt": prompt, "id": 7} for prompt in [*STORIES, "two\u2028lines"]]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    printed = []
    for name in ("rows.jsonl", "rows.json"):
        arguments = ["--model", folder, "--prompt_file", str(tmp_path / name), "--json", "--logprobs", "2"]
        printed.append(generate_here(arguments, monkeypatch, capsys))
    assert printed[0] == printed[1] and printed[0].isascii()
    engine = Engine(*load_causal_lm(folder, device="cpu"))
    for line, row in zip(printed[0].splitlines(), rows, strict=True):
        record, written = json.loads(line), engine.write([Request(row["prompt"], logprobs=2, **DRAWN)])[0]
        told = record.pop("logprobs")
        assert record == {
            "prompt": row["prompt"],
            "text": written.text,
            "tokens": len(written.tokens),
            "seed": 3,
            "finish_reason": written.finish_reason,
        }
        for one, token in zip(told, written.tokens, strict=True):
            assert one["id"] == token.id and one["token"] == engine.tokenizer.decode([token.id])
            assert one["logprob"] == pytest.approx(token.log_probability, rel=1e-5)
            assert [best["id"] for best in one["top_logprobs"]] == [id for id, _ in token.alternatives]


def test_a_probability_of_zero_is_told_as_json_can(folder):
    engine = Engine(*load_causal_lm(folder, device="cpu"))
    engine.model.lm_head.bias = torch.nn.Parameter(torch.zeros(50257).index_fill(0, torch.tensor([7]), -torch.inf))
    printed = []
    print_records(engine, [Request("a", max_new_tokens=1, logprobs=50257)], printed.append)
    (told,) = json.loads(printed[0], parse_constant=pytest.fail)["logprobs"]
    assert told["top_logprobs"][-1] == {"id": 7, "token": engine.tokenizer.decode([7]), "logprob": -9999.0}


class Stdin(io.TextIOWrapper):
    def __init__(self, content: bytes = b"", *, terminal: bool = False):
        super().__init__(io.BytesIO(content))
        self.isatty = lambda: terminal


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        (b"hi\n", "hi"),
        (b"", ""),
        ("\ufeffdeux\r\nlignes é\n\n".encode(), "deux\nlignes é\n"),
    ],
)
def test_what_is_piped_in_is_the_prompt_where_there_is_no_other(content, prompt, monkeypatch, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    assert Asked(prompt=["b"]).read_prompts() == ["b"] and capsys.readouterr().err == ""
    assert Asked().read_prompts() == [prompt]
    assert 'standard input, to its end; --prompt "" lets the model begin' in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    if content:
        assert Asked(prompt_file="-").read_prompts() == [prompt]
        assert Asked(prompt_file=str(tmp_path / "prompt.txt")).read_prompts() == [prompt]


def test_without_a_prompt_a_terminal_gets_a_session_and_a_file_what_the_model_begins(monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stdin(terminal=True))
    assert Asked().read_prompts() == [""]
    monkeypatch.setattr(sys, "stdout", Stdin(terminal=True))
    assert Asked().read_prompts() is None and Asked(prompt=[""]).read_prompts() == [""]
    monkeypatch.setattr(sys, "stdin", None)  # closed
    assert Asked().read_prompts() == [""]


@pytest.mark.parametrize(
    ("given", "name", "content", "message"),
    [
        ({"prompt": ["a"]}, "p.txt", b"a", r"--prompt and --prompt_file \S+p.txt both give prompts; leave out one"),
        ({"logprobs": 2}, "p.txt", b"a", r"--logprobs 2 is told in JSON alone; add --json"),
        ({}, "p.txt", b"", r"p.txt: holds no prompt; --prompt \"\" lets the model begin by itself"),
        ({}, "p.txt", b"caf\xe9", r"p.txt: cannot be read \('utf-8' codec .*\); give text in UTF-8"),
        ({}, "p.txt", None, r"p.txt: cannot be read \(.*No such file.*\); give text in UTF-8"),
        ({}, "p.json", b"[]", r"p.json: holds no prompt"),
        ({}, "p.json", b'{"prompt": "a"}', r"p.json: holds no list; give a list of objects such as .*, or name it"),
        ({}, "p.jsonl", b'{"prompt": "a"}\n{"prompt"', r"p.jsonl: is not JSON \(.*\); give objects such as"),
        ({}, "p.json", b"[" * 100_000, r"p.json: is not JSON \(.*\); give objects such as"),
        (
            {},
            "p.jsonl",
            b'{"prompt": "a"}\n{"text": "b"}',
            r"p.jsonl: number 2 has no prompt that is text, being .*'b'",
        ),
        ({}, "p.jsonl", b'["a"]', r"p.jsonl: number 1 has no prompt that is text, being \['a'\]; give objects such"),
        ({}, "p.jsonl", b'{"prompt": "\\ud800"}', r"p.jsonl: number 1 holds half of a character .*'.ud800'; give"),
    ],
)
def test_prompts_that_cannot_be_had_are_refused_in_a_line(given, name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Asked(prompt_file=str(tmp_path / name), **given).read_prompts()


@pytest.mark.parametrize(("given", "option"), [({"json": True}, "--json"), ({"num_samples": 3}, "--num_samples 3")])
def test_a_session_refuses_what_only_prompts_have_a_use_for(given, option, monkeypatch):
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, Stdin(terminal=True))
    with pytest.raises(UserError, match=f'{option} needs a prompt; give --prompt, "" to let the model begin'):
        Asked(**given).read_prompts()
