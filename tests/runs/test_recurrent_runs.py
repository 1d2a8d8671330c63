"""Whole runs of a recurrent model, with a carried state and without."""

import json
import os
import signal
from functools import partial

import pytest
import torch
import yaml
from accelerate.utils import set_seed
from running import carrying_a_state, interrupt_at, outcome, train, write_recipe

from smallm_hf import RecurrentConfig, RecurrentForCausalLM, api
from smallm_hf.base.errors import Interrupted, UserError
from smallm_hf.config import parse_command_line
from smallm_hf.data.batches.contiguous import ContiguousRows
from smallm_hf.data.reading.documents import read_texts
from smallm_hf.data.token_files import open_token_files
from smallm_hf.hub.checks import verify_card
from smallm_hf.pretrained import fresh_model
from smallm_hf.runs import plan_run
from smallm_hf.training.checkpoints import list_checkpoints
from smallm_hf.training.progress import read_records

# One epoch of fifteen updates and the beginning of another one; each update in two micro-steps.
LONG = [
    *("--training.batch_size", 4, "--training.accumulation_steps", 2, "--training.max_steps", 18),
    *("--training.checkpoint_every", 5, "--training.evaluate_every", 5, "--training.log_every", 1),
]


@pytest.fixture
def recurrent(recipe):
    """The recipe with a recurrent model that drops something of everything."""
    return carrying_a_state(recipe)


def interrupt_between_micro_steps(monkeypatch) -> None:
    """Sends SIGTERM to this process when it reads the first half of the rows of the thirteenth update."""
    at = ContiguousRows.at

    def interrupted(self, first: int, *rest: int):
        if first == 12 * 8:
            monkeypatch.setattr(ContiguousRows, "at", at)
            os.kill(os.getpid(), signal.SIGTERM)
        return at(self, first, *rest)

    monkeypatch.setattr(ContiguousRows, "at", interrupted)


@pytest.mark.parametrize(
    "interrupt", [interrupt_between_micro_steps, partial(interrupt_at, step=12, where="close_step")]
)
def test_a_run_with_a_carried_state_that_is_stopped_and_resumed_is_the_uninterrupted_one(
    recurrent, tmp_path, monkeypatch, interrupt
):
    train(recurrent, tmp_path / "whole", *LONG)
    interrupt(monkeypatch)
    with pytest.raises(Interrupted):
        train(recurrent, tmp_path / "run", *LONG)
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-12"
    train(recurrent, tmp_path / "run", *LONG, "--resume")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert read_records(tmp_path / "run", "metrics")[-2]["epoch"] == pytest.approx(18 / 16)
    saved = torch.load(list_checkpoints(tmp_path / "run")[-1] / "optimizer.pt", weights_only=True)
    assert [[tuple(part.shape) for part in layer] for layer in saved["carried"]] == [[(1, 8, 24)] * 2] * 2


def test_a_carried_state_is_in_the_loss_and_validations_are_what_score_finds_by_default(recurrent, tmp_path, stories):
    held_out = tmp_path / "held_out.jsonl"
    texts = list(read_texts(str(stories)))[:20]
    held_out.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    seen = ["--selection.duplicates", "keep", "--selection.max_leakage", 1, "--data.validation_source", held_out]
    losses = {}
    for carried, protocol in (("true", "windows of 2048 tokens"), ("false", "windows of 32 tokens")):
        run = tmp_path / carried
        results = train(
            recurrent,
            run,
            *seen,
            "--batching.carry_state",
            carried,
            "--training.log_every",
            1,
            "--training.max_steps",
            2,
        )
        assert results["protocol"] == f"packed, {protocol}, float32"
        scored = api.score(run / "final", texts, protocol="packed")
        assert results["last"]["validation_loss"] == pytest.approx(scored["loss"], rel=1e-6)
        assert verify_card(run)[-1].startswith("validation: scored again on ")
        losses[carried] = read_records(run, "metrics")[1]["loss"]
    assert losses["true"] != losses["false"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.model_type", "smallm"], "needs a recurrent state, and model.model_type=smallm has none"),
        (["--batching.stride", 16], "reads the text from front to back, and batching.stride=16 does not"),
        (["--batching.curriculum", "length"], "and batching.curriculum=length does not"),
        (["--batching.within_documents", "true"], "and batching.within_documents=True does not"),
        (["--training.length_warmup", "[16]"], r"training.length_warmup=\[16\] cuts them into shorter ones"),
        (["--training.context_length", 2000], "fewer than one window of training.context_length=2000"),
    ],
)
def test_what_a_state_cannot_be_carried_through_is_refused(recurrent, tmp_path, words, message):
    if words[1] == "smallm":
        content = yaml.safe_load(recurrent.read_text())
        content["model"] = {"vocab_size": 280}
        recurrent.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message):
        train(recurrent, tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_a_mixture_several_processes_and_a_split_model_are_refused_at_once(recurrent, tmp_path, monkeypatch):
    mixture = '[{"source": "a.txt", "weight": 2}, {"source": "b.txt", "weight": 1}]'
    with pytest.raises(UserError, match=r"data.sources with weights \[2.*, 1.*\] are a mixture"):
        train(recurrent, tmp_path / "run", "--data.source", "null", "--data.sources", mixture)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="the state of every row in one process, and this launch has 2"):
        train(recurrent, tmp_path / "run", "--dry_run")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    config, _ = parse_command_line("test", ["--config", str(recurrent)], training=True)
    with pytest.raises(UserError, match=r"model_type=recurrent cannot be split.*ddp\.yaml"):
        plan_run(config, print)


# --- the same in plain PyTorch ---------------------------------------------------------------------------------------


def plain_losses(
    tokens: torch.Tensor, initial: RecurrentForCausalLM, rows: int, length: int, steps: int
) -> list[float]:
    """An LSTM as tutorials write it, from the same weights: text in columns, the hidden state detached and kept."""
    width = initial.config.hidden_size
    embedding, head = (
        torch.nn.Embedding(*initial.lm_head.weight.shape),
        torch.nn.Linear(width, len(initial.lm_head.bias)),
    )
    lstm = torch.nn.LSTM(width, width, num_layers=2)
    head.weight = embedding.weight
    embedding.weight.data.copy_(initial.lm_head.weight)
    head.bias.data.copy_(initial.lm_head.bias)
    for layer, ours in enumerate(initial.model.layers):
        for name, weight in ours.cell.named_parameters():
            lstm.get_parameter(name.replace("_l0", f"_l{layer}")).data.copy_(weight)
    parameters = [embedding.weight, head.bias, *lstm.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    stretch = (len(tokens) - 1) // (rows * length) * length
    inputs, targets = (tokens[begin : begin + rows * stretch].view(rows, stretch).T for begin in (0, 1))
    hidden, losses = None, []
    for step in range(steps):
        cut = slice(step * length, (step + 1) * length)
        outputs, hidden = lstm(embedding(inputs[cut]), hidden)
        hidden = tuple(part.detach() for part in hidden)
        loss = torch.nn.functional.cross_entropy(head(outputs).flatten(0, 1), targets[cut].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_a_run_over_words_loses_what_the_same_lstm_in_plain_pytorch_loses(shared_data, tmp_path):
    rows, length, steps = 10, 35, 40
    folder = shared_data / "wikitext2"
    source, held_out = tmp_path / "train.txt", tmp_path / "validation.txt"
    for path, name, size in ((source, "wikitext2_valid.txt", 300_000), (held_out, "wikitext2_test.txt", 20_000)):
        path.write_text((folder / name).read_text(encoding="utf-8")[:size], encoding="utf-8")
    recipe = write_recipe(
        tmp_path,
        source,
        data={"validation_source": str(held_out)},
        tokenizer={"source": "word", "vocab_size": 2000, "punctuation": "attached"},
        batching={"carry_state": True},
        training={
            **{"max_steps": steps, "context_length": length, "batch_size": rows, "log_every": 1, "optimizer": "adamw"},
            **{"schedule": "constant", "warmup_steps": 0, "evaluate_every": None, "sample_prompts": [""]},
        },
    )
    content = yaml.safe_load(recipe.read_text())
    content["model"] = {"model_type": "recurrent", "hidden_size": 100}
    recipe.write_text(yaml.safe_dump(content))
    results = train(recipe, tmp_path / "run")
    ours = [record["loss"] for record in read_records(tmp_path / "run", "metrics") if "loss" in record]

    files = open_token_files(results["data"]["folder"])
    set_seed(42)
    initial = fresh_model(RecurrentConfig(vocab_size=files.meta.vocab_size, hidden_size=100))
    first = ContiguousRows(files.train, rows, length, seed=42).offset(0)
    tokens = torch.from_numpy(files.train[first:].astype("int64"))
    assert ours == pytest.approx(plain_losses(tokens, initial, rows, length, steps), rel=1e-4)
    assert ours[-1] < ours[0] - 0.5
