"""Other libraries and programs train, score and serve the model; each is optional, and a skip says which is missing."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from datasets import Dataset
from outside import FLAG, NEW_TOKENS, PRESETS, PROMPT, REPO, ask, assert_same
from transformers import AutoModelForCausalLM

import smallm_hf
from smallm_hf import SmaLLMForCausalLM
from smallm_hf.card import Statements
from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.export.exporting import export_model
from smallm_hf.hub.publishing import publish
from smallm_hf.pretrained import load_causal_lm

pytestmark = pytest.mark.ecosystem

# None is longer than the model's 64 positions: lm_eval reads the end of a long text with more context than we do, and
# the stock metric does not read it at all.
TEXTS = ["the cat sat on a mat.", "one red bird saw the blue house.", "the bird and the cat saw its house near a mat."]
# The oldest and the newest release of `transformers` that the code beside the weights works with.
RELEASES = ("5.23", "5.24")
FLAGGED = "`trust_remote_code=True`"
LORA = {"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM"}


# --- scoring ---------------------------------------------------------------------------------------------------------


@pytest.mark.matrix("`lm_eval`, a task of local texts", "no flag", "lm_eval")
def test_lm_eval_finds_our_bits_per_byte(pulled, best, tmp_path):
    lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    task = {
        **{"task": "texts", "dataset_path": "json", "test_split": "test", "output_type": "loglikelihood_rolling"},
        **{"dataset_kwargs": {"data_files": {"test": str(tmp_path / "texts.jsonl")}}},
        **{"doc_to_text": "", "doc_to_target": "{{text}}", "metric_list": [{"metric": "bits_per_byte"}]},
    }
    scored = score_documents(*load_causal_lm(str(best), device="cpu"), TEXTS)
    for flag in ("", ",trust_remote_code=True"):
        arguments = f"pretrained={pulled},dtype=float32{flag}"
        found = lm_eval.simple_evaluate("hf", arguments, tasks=[task], device="cpu", bootstrap_iters=0)
        assert found["results"]["texts"]["bits_per_byte,none"] == pytest.approx(scored["bits_per_byte"], rel=1e-5)


@pytest.mark.matrix("`evaluate`, the stock perplexity", "no flag", "evaluate")
def test_the_stock_metric_agrees_on_texts_that_fit(pulled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # away from folders that are called like it
    try:
        stock = evaluate.load("perplexity", module_type="metric")
    except (OSError, ValueError):
        pytest.skip("the metric is a file on the Hub, which cannot be reached from here")
    ours = evaluate.load(str(Path(smallm_hf.__file__).parent / "evaluation" / "perplexity"))
    asked = {"predictions": TEXTS, "model_id": pulled, "max_length": 64, "device": "cpu"}
    found, scored = stock.compute(**asked), ours.compute(**asked)
    assert found["perplexities"] == pytest.approx(scored["perplexities"], rel=1e-4)


# --- training on -----------------------------------------------------------------------------------------------------


def adapted(model: torch.nn.Module, folder: Path, batch: torch.Tensor, expected: torch.Tensor, **lora) -> None:
    """A fresh adapter changes nothing; trained, it lowers the loss, and is the same once saved, loaded and merged."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    adapter = peft.get_peft_model(model, peft.LoraConfig(**LORA, **lora))
    torch.testing.assert_close(adapter(batch).logits[0], expected, rtol=0, atol=1e-4)
    trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    assert 0 < sum(map(torch.numel, trained)) < adapter.num_parameters() / 4
    optimizer, losses = torch.optim.AdamW(trained, lr=0.01), []
    for _ in range(10):
        losses.append(adapter(batch, labels=batch).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1
    adapter.save_pretrained(folder)
    changed = adapter.eval()(batch).logits
    fresh = type(model).from_pretrained(REPO)
    torch.testing.assert_close(peft.PeftModel.from_pretrained(fresh, folder)(batch).logits, changed)
    torch.testing.assert_close(adapter.merge_and_unload()(batch).logits, changed, rtol=0, atol=1e-4)


@pytest.mark.matrix("PEFT, a LoRA adapter", "no flag, no list of modules", "peft")
def test_peft_adapts_the_native_class_without_being_told_where(pulled, expected, token_ids, tmp_path):
    adapted(AutoModelForCausalLM.from_pretrained(pulled), tmp_path, torch.tensor([token_ids]), expected)


@pytest.mark.matrix(
    'PEFT, a LoRA adapter on our class, `target_modules="all-linear"`', "`trust_remote_code=True`", "peft"
)
def test_peft_adapts_our_class(pulled, expected, token_ids, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(pulled, **FLAG)
    adapted(model, tmp_path, torch.tensor([token_ids]), expected, target_modules="all-linear")


@pytest.mark.matrix("TRL, `SFTTrainer`", "no flag", "trl")
def test_trl_fine_tunes_it_by_name_and_our_class(pulled, tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed")
    arguments = trl.SFTConfig(
        **{"output_dir": str(tmp_path), "max_steps": 8, "per_device_train_batch_size": 2, "learning_rate": 1e-3},
        **{"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "logging_steps": 1},
        **{"max_length": 64, "disable_tqdm": True, "eval_strategy": "steps", "eval_steps": 4},
    )
    data = {"train_dataset": Dataset.from_dict({"text": TEXTS * 4}), "eval_dataset": Dataset.from_dict({"text": TEXTS})}
    for model in (pulled, AutoModelForCausalLM.from_pretrained(pulled, **FLAG)):
        trainer = trl.SFTTrainer(model, args=arguments, **data)
        trainer.train()
        for name in ("loss", "eval_loss"):
            losses = [record[name] for record in trainer.state.log_history if name in record]
            assert losses[-1] < losses[0] - 0.02, name
        trainer.save_model(tmp_path / "tuned")
        tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
        assert type(tuned).__name__ == "Qwen3ForCausalLM"
        for name, tensor in trainer.model.state_dict().items():
            assert torch.equal(tensor, tuned.state_dict()[name]), name


# --- serving ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(*command: str):
    """The address of a server that runs for the length of the block."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        for _ in range(240):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5):
                yield f"http://localhost:{port}"
                return
            assert server.poll() is None, server.stdout.read()[-3000:]
            time.sleep(0.5)
        pytest.fail("no answer after two minutes")
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.matrix("`transformers serve`, asked by the `openai` client", "no flag", "transformers", "openai")
def test_transformers_serve_answers_the_openai_client(hub, continuation):
    openai = pytest.importorskip("openai", reason="openai is not installed")
    pytest.importorskip("fastapi", reason="fastapi, which transformers serve needs, is not installed")
    with served(str(Path(sys.executable).with_name("transformers")), "serve", REPO) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        asked = {"model": REPO, "prompt": PROMPT, "max_tokens": NEW_TOKENS, "temperature": 0}
        whole = client.completions.create(**asked)
        pieces = client.completions.create(**asked, stream=True)
        assert whole.choices[0].text == continuation
        assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == continuation
        # It heeds a temperature only where the generation config draws; a request may bring one that does.
        drawn = json.dumps({"do_sample": True, "max_new_tokens": NEW_TOKENS})
        asked |= {"temperature": 1.5}
        texts = [
            client.completions.create(**asked, seed=seed, extra_body={"generation_config": drawn}).choices[0].text
            for seed in range(4)
        ]
        assert len(set(texts)) > 1


# --- exported files --------------------------------------------------------------------------------------------------


@pytest.mark.matrix("ONNX Runtime, by the exported graph", "no flag", "onnxruntime")
def test_onnx_runtime_computes_the_same(best, tmp_path, token_ids, expected):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    export_model(str(best), "onnx", tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "onnx" / "model.onnx")
    feeds = {
        "input_ids": np.array([token_ids]),
        "attention_mask": np.ones((1, len(token_ids)), np.int64),
        "position_ids": np.arange(len(token_ids))[None],
    }
    for cached in session.get_inputs()[3:]:
        feeds[cached.name] = np.zeros((1, cached.shape[1], 0, cached.shape[3]), np.float32)
    logits = session.run(["logits"], feeds)[0][0]
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-4)


@pytest.mark.matrix("llama.cpp, by the exported GGUF", "no flag", "llama-cpp-python")
def test_llama_cpp_writes_the_same(best, tmp_path, token_ids, continuation):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    export_model(str(best), "gguf", tmp_path / "gguf")
    llama = llama_cpp.Llama(str(tmp_path / "gguf" / "model-F32.gguf"), n_ctx=64, verbose=False)
    assert llama.tokenize(PROMPT.encode()) == token_ids
    written = llama(PROMPT, max_tokens=NEW_TOKENS, temperature=0)
    assert written["choices"][0]["text"] == continuation


# --- the card, and the older transformers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(hub, run, best, tmp_path_factory) -> str:
    """The id of the run's repository, with both exports beside the weights."""
    pytest.importorskip("gguf", reason="gguf, for the exports, is not installed")
    exports = [tmp_path_factory.mktemp("exports") / to for to in ("gguf", "onnx")]
    for folder in exports:
        export_model(str(best), folder.name, folder)
    publish(run, "user/card", Statements(data_license="mit"), checkpoints=False, exports=exports)
    return "user/card"


def run_outside(code: str, folder: Path) -> str:
    """What a program prints that cannot import our package."""
    program = [sys.executable, "-c", f"import sys\nsys.modules['smallm_hf'] = None\n{code}"]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{code}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.matrix("a published card's Python: pipeline, our class, ONNX Runtime", "as the card says", "transformers")
def test_the_python_of_a_published_card_runs_as_written(hub, published, tmp_path):
    card = hub.files(published)["README.md"].decode()
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        run_outside(block, tmp_path)
    for command in ("transformers serve", "vllm serve", "llama-cli -hf"):
        assert f"\n{command} {published}" in card


@pytest.mark.matrix("llama.cpp, by the name of the repository", "no flag", "llama-cpp-python")
def test_llama_cpp_finds_the_published_file(published, tmp_path, continuation):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    code = f"""
from llama_cpp import Llama
llama = Llama.from_pretrained({published!r}, "*.gguf", verbose=False)
print(llama({PROMPT!r}, max_tokens={NEW_TOKENS}, temperature=0)["choices"][0]["text"], end="")
"""
    assert run_outside(code, tmp_path) == continuation


def python_with(transformers: str, folder: Path) -> tuple[str, str]:
    """A Python with another `transformers` and what that needs, and its version; torch, too large, is this one's."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    wanted = f"transformers{transformers}"
    pip = subprocess.run([python, "-m", "pip", "install", wanted], capture_output=True, text=True)
    if pip.returncode:
        pytest.skip(f"pip cannot get {wanted} from a package index")
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "torch-of-the-other.pth").write_text(str(Path(torch.__file__).parent.parent))
    code = "import transformers; print(transformers.__version__)"
    version = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return python, version


@pytest.mark.matrix("transformers 4: plain loading, also of each preset, tokenizer and pipeline", "no flag")
def test_the_newest_transformers_4_loads_them_plainly(
    hub, presets, token_ids, expected, continuation, tmp_path, record_property
):
    python, version = python_with(">=4,<5", tmp_path)
    record_property("version", f"transformers {version}")
    assert version.startswith("4.")
    jobs = {"plain": ("load", REPO, {}), "tokenizer": ("tokenize", REPO, {}), "pipeline": ("generate", REPO, {})}
    answers = ask(token_ids, jobs | {name: ("load", str(folder), {}) for name, (folder, _) in presets.items()}, python)
    assert_same(answers["plain"], "Qwen3ForCausalLM", expected)
    assert (answers["tokenizer"], answers["pipeline"]) == (token_ids, PROMPT + continuation)
    for name, (_, native) in PRESETS.items():
        if native:
            assert_same(answers[name], native, presets[name][1])


@pytest.mark.parametrize(
    "release",
    [
        pytest.param(release, marks=pytest.mark.matrix(f"transformers {release}: our class writes the same", FLAGGED))
        for release in RELEASES
    ],
)
def test_our_code_writes_the_same_text_in_the_oldest_and_the_newest_transformers(
    release, hub, presets, token_ids, expected, tmp_path, record_property
):
    """With a cache and without: the library has renamed what carries it from one release to the other."""
    python, version = python_with(f"=={release}.*", tmp_path)
    record_property("version", f"transformers {version}")
    jobs = {"remote": ("load", REPO, FLAG), "plain": ("write", REPO, {})}
    answers = ask(
        token_ids, jobs | {name: ("write", str(folder), FLAG) for name, (folder, _) in presets.items()}, python
    )
    assert_same(answers["remote"], "SmaLLMForCausalLM", expected)
    assert answers["plain"][0] == answers["plain"][1]
    for name, (folder, _) in presets.items():
        model = SmaLLMForCausalLM.from_pretrained(folder)
        settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
        text = model.generate(torch.tensor([token_ids]), use_cache=False, **settings)[0].tolist()
        assert answers[name] == [text, text], name
