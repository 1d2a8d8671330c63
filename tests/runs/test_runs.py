"""From text to a folder that loads everywhere, through the functions the scripts call."""

import json
import math
import shutil

import pytest
import torch
import yaml
from running import interrupt_at, train, without_time
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from smallm_hf import SmaLLMForCausalLM, runs
from smallm_hf.base import arithmetic
from smallm_hf.base.errors import Interrupted, UserError
from smallm_hf.card import find_weights, read_results
from smallm_hf.config import parse_command_line
from smallm_hf.data.reading.documents import read_texts
from smallm_hf.evaluation.scoring import score_documents
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request, seed_of
from smallm_hf.hub.checks import check_card, check_record, load_own_class
from smallm_hf.pretrained import load_causal_lm
from smallm_hf.runs import prepare_run
from smallm_hf.training.loop import SAMPLING
from smallm_hf.training.progress import read_records
from smallm_hf.training.watch import UpdateWatch

NATIVE = {"modern": "Qwen3ForCausalLM", "classic": "GPT2LMHeadModel"}


def test_a_run_leaves_the_folder_the_readme_promises(recipe, tmp_path, capsys):
    results = train(recipe, tmp_path / "run", figures=True)
    run = tmp_path / "run"
    for name in (
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "samples.jsonl",
        "results.json",
        "figures/loss.png",
    ):
        assert (run / name).is_file(), name
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-3", "step-6"]
    assert json.loads((run / "results.json").read_text())["last"] == results["last"]
    metrics = read_records(run, "metrics")
    assert [record["step"] for record in metrics if "loss" in record] == [1, 2, 3, 4, 6]
    assert [record["step"] for record in metrics if "validation_loss" in record] == [3, 6]
    assert metrics[0]["loss"] == pytest.approx(math.log(280), abs=0.5)
    assert [record["prompt"] for record in read_records(run, "samples")] == ["the cat", ""]
    said = capsys.readouterr().out
    for phrase in (
        "validation        loss",
        "bits per byte",
        "sample | the cat",
        "smallm generate --model",
        "pipeline(",
    ):
        assert phrase in said, phrase


def test_results_carry_config_commit_seed_versions_and_hardware(recipe, tmp_path):
    results = train(recipe, tmp_path / "run")
    assert results["config"]["training"]["seed"] == 42
    assert results["environment"]["versions"]["torch"] == torch.__version__
    assert {"commit", "command"} <= results["environment"].keys()
    assert results["environment"]["hardware"]["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert results["peak_memory_bytes"] > 2**20
    assert results["flops"] > 6 * results["tokens"] * 280 * 32


def test_the_final_numbers_are_those_of_the_scorer_on_the_same_documents(recipe, tmp_path, stories):
    held_out = tmp_path / "held_out.jsonl"
    texts = list(read_texts(str(stories)))
    held_out.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:7]))
    seen = ["--selection.duplicates", "keep", "--selection.max_leakage", 1]  # these stories are in training too
    results = train(recipe, tmp_path / "run", "--data.validation_source", held_out, *seen)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    scored = score_documents(model, tokenizer, texts[:7], protocol="packed", context_length=32, batch_size=3)
    for name in ("loss", "perplexity", "bits_per_byte", "top1_accuracy", "top3_accuracy"):
        assert results["last"][f"validation_{name}"] == pytest.approx(scored[name], rel=1e-6), name
    for name in ("tokens", "bytes"):
        assert results["last"][f"validation_{name}"] == scored[name]


@pytest.mark.parametrize("preset", ["modern", "classic"])
def test_best_loads_natively_with_our_code_and_in_a_pipeline(recipe, tmp_path, preset):
    train(recipe, tmp_path / "run", "--model.preset", preset, "--training.max_steps", 2)
    best = tmp_path / "run" / "best"
    native = AutoModelForCausalLM.from_pretrained(best)
    assert type(native).__name__ == NATIVE[preset]
    ids = torch.arange(10).unsqueeze(0)
    expected = native(ids).logits
    for ours in (
        AutoModelForCausalLM.from_pretrained(best, trust_remote_code=True),
        SmaLLMForCausalLM.from_pretrained(best),
    ):
        torch.testing.assert_close(ours(ids).logits, expected, rtol=0, atol=1e-5)
    text = pipeline("text-generation", model=str(best))("the cat", max_new_tokens=4)[0]["generated_text"]
    assert text.startswith("the cat")


def test_the_saved_tokenizer_is_the_models_own(recipe, tmp_path):
    train(recipe, tmp_path / "run", "--training.max_steps", 1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "best")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "best").config
    assert len(tokenizer) == config.vocab_size == 280
    assert tokenizer.model_max_length == 32
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_the_same_config_and_seed_give_the_same_bits(recipe, tmp_path):
    for name in ("one", "two"):
        train(recipe, tmp_path / name, "--model.dropout", 0.1, "--model.preset", "classic")
    one, two = (without_time(read_records(tmp_path / name, "metrics")) for name in ("one", "two"))
    assert one == two
    weights = [(tmp_path / name / "final" / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("one", "two")]
    assert samples[0] == samples[1]


def test_metrics_state_memory_and_the_share_of_a_stated_peak(recipe, tmp_path):
    results = train(recipe, tmp_path / "run", "--training.peak_tflops", 0.5)
    records = [record for record in read_records(tmp_path / "run", "metrics") if "loss" in record]
    flops_per_token = results["flops"] / results["tokens"]
    for record in records:
        assert record["mfu"] == pytest.approx(record["tokens_per_second"] * flops_per_token / 5e11)
        assert 2**20 < record["memory_bytes"] <= results["peak_memory_bytes"]
    train(recipe, tmp_path / "other")
    assert not any("mfu" in record for record in read_records(tmp_path / "other", "metrics"))


def test_samples_during_training_are_said_and_kept(recipe, tmp_path, capsys):
    train(recipe, tmp_path / "run", "--training.sample_every", 2)
    assert [record["step"] for record in read_records(tmp_path / "run", "samples")] == [2, 2, 4, 4, 6, 6]
    assert capsys.readouterr().out.count("sample | the cat") == 3


def test_the_same_update_from_other_micro_steps_and_from_chunks_is_the_same(recipe, tmp_path):
    """Four windows at once, an automatic batch of two in each of two, and a loss without all logits."""
    train(recipe, tmp_path / "whole")
    halves = ["--training.batch_size", 2, "--training.accumulation_steps", 2, "--training.loss", "chunked"]
    train(recipe, tmp_path / "halves", *halves)
    whole, halves = (read_records(tmp_path / name, "metrics") for name in ("whole", "halves"))
    for mine, theirs in zip(whole, halves, strict=True):
        for name in {"loss", "gradient_norm", "validation_loss"} & mine.keys():
            rounding = 3e-3 if name == "gradient_norm" else 1e-3  # Muon multiplies in bfloat16
            assert theirs[name] == pytest.approx(mine[name], rel=rounding), name


def test_an_automatic_batch_is_decided_and_written_down(recipe, tmp_path):
    train(recipe, tmp_path / "run", "--training.batch_size", "auto", "--training.max_steps", 1)
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["training"]
    assert written["batch_size"] * written["accumulation_steps"] == written["global_batch_size"] == 4
    assert written["loss"] == "logits"


def test_another_seed_gives_another_run(recipe, tmp_path):
    train(recipe, tmp_path / "one")
    train(recipe, tmp_path / "two", "--training.seed", 7)
    one, two = (read_records(tmp_path / name, "metrics")[0]["loss"] for name in ("one", "two"))
    assert one != two


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_resumed_run_ends_where_the_whole_one_does(recipe, tmp_path, optimizer):
    words = ["--training.optimizer", optimizer, "--training.schedule", "constant", "--model.preset", "classic"]
    train(recipe, tmp_path / "whole", *words)
    train(recipe, tmp_path / "parts", *words, "--training.max_steps", 3)
    train(recipe, tmp_path / "parts", *words, "--resume")
    weights = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts")]
    for name, expected in weights[0].items():
        assert torch.equal(weights[1][name], expected), name
    whole, parts = (without_time(read_records(tmp_path / name, "metrics")) for name in ("whole", "parts"))
    assert parts[-1] == whole[-1]


def test_resume_takes_the_newest_checkpoint_and_goes_on_counting(recipe, tmp_path, capsys):
    train(recipe, tmp_path / "run")
    results = train(recipe, tmp_path / "run", "--resume", "--training.max_steps", 8)
    assert "resuming from" in capsys.readouterr().out
    assert results["steps"] == 8
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["step-6", "step-8"]


def test_records_after_the_checkpoint_are_taken_again_not_doubled(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-6")  # as if the run had died between step 3 and 6
    train(recipe, tmp_path / "run", "--resume")
    steps = [record["step"] for record in read_records(tmp_path / "run", "metrics") if "loss" in record]
    assert steps == [1, 2, 3, 4, 6]
    assert [record["step"] for record in read_records(tmp_path / "run", "samples")] == [6, 6]


def test_resume_without_a_checkpoint_starts_afresh_and_says_so(recipe, tmp_path, capsys):
    assert train(recipe, tmp_path / "run", "--resume", "--training.max_steps", 1)["steps"] == 1
    assert "starting afresh" in capsys.readouterr().out


def test_auto_choices_are_written_down(recipe, tmp_path):
    train(
        recipe,
        tmp_path / "run",
        "--training.precision",
        "auto",
        "--training.compile",
        "auto",
        "--training.max_steps",
        1,
    )
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["training"]
    assert written["precision"] in ("bf16", "fp16", "fp32")
    assert written["compile"] is False  # one step does not pay for compiling


def test_bf16_is_taken_where_it_is_asked_for_and_said_to_be_slow_where_it_is(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(arithmetic, "multiplies_well", lambda dtype, device: dtype == torch.float32)
    train(recipe, tmp_path / "run", "--training.precision", "bf16", "--dry_run")
    said = "this cpu multiplies bfloat16 far slower than float32; training.precision=fp32 would be faster"
    assert said in (plan := capsys.readouterr().out) and "precision         bf16" in plan
    train(recipe, tmp_path / "run", "--training.precision", "fp32", "--dry_run")
    assert "slow" not in capsys.readouterr().out


def test_a_timed_run_stops_on_time_and_its_rate_ends_at_zero(recipe, tmp_path):
    words = ["--training.max_seconds", 1.5, "--training.max_steps", "null", "--training.evaluate_every", "null"]
    results = train(recipe, tmp_path / "run", *words, "--training.log_every", 1)
    assert 1.5 <= results["training_seconds"] < 4
    rates = [record["learning_rate"] for record in read_records(tmp_path / "run", "metrics") if "loss" in record]
    assert rates[-1] < 0.2 * max(rates)


def test_epochs_end_a_run(recipe, tmp_path):
    results = train(recipe, tmp_path / "run", "--training.epochs", 1, "--training.max_steps", "null")
    assert results["epochs"] == pytest.approx(1, abs=0.2)


def test_a_second_run_uses_the_token_files_of_the_first(recipe, tmp_path, capsys):
    train(recipe, tmp_path / "one", "--training.max_steps", 1)
    before = (tmp_path / "tokens" / "meta.json").stat().st_mtime_ns
    train(recipe, tmp_path / "two", "--training.max_steps", 1)
    assert (tmp_path / "tokens" / "meta.json").stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("training a byte-level BPE") == 1


def test_prepare_alone_makes_the_same_token_files(recipe, tmp_path, capsys):
    arguments = ["--config", str(recipe), "--output_dir", str(tmp_path / "alone")]
    files = prepare_run(*parse_command_line("test", arguments, training=False))
    train(recipe, tmp_path / "run", "--training.max_steps", 1)
    for name in ("train.bin", "validation.bin"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "tokens" / name).read_bytes()
    assert f"{files.meta.train.tokens:,} tokens" in capsys.readouterr().out


def test_a_dry_run_needs_no_data_no_tokenizer_and_writes_nothing(recipe, tmp_path, capsys):
    assert (
        train(recipe, tmp_path / "run", "--dry_run", "--data.source", "nobody/nothing", "--tokenizer.source", "gpt2")
        is None
    )
    said = capsys.readouterr().out
    for phrase in (
        "parameters",
        "embedding",
        "tokens per step   128",
        "total tokens      768 in 6 steps",
        "FLOPs per token",
        "GiB",
    ):
        assert phrase in said, phrase
    assert not (tmp_path / "run").exists() and not (tmp_path / "tokens").exists()


def test_the_card_tells_the_numbers_of_its_own_weights(recipe, tmp_path):
    results = train(recipe, tmp_path / "run")
    for folder, scored in (("best", results["best"]), ("final", results["last"])):
        card = (tmp_path / "run" / folder / "README.md").read_text()
        assert f"{scored['validation_loss']:.4f} | {scored['validation_perplexity']:.2f}" in card
        assert f"{results['parameters']:,} parameters" in card
        assert "None" not in card and "{{" not in card and "{%" not in card


def test_another_family_trains_through_the_same_loop(recipe, tmp_path):
    content = yaml.safe_load(recipe.read_text())
    content["model"] = {
        "model_type": "gpt2",
        "vocab_size": 280,
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 32,
    }
    recipe.write_text(yaml.safe_dump(content))
    train(recipe, tmp_path / "run", "--training.max_steps", 3)
    results = train(recipe, tmp_path / "run", "--resume", "--training.max_steps", 5)
    assert results["steps"] == 5
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "best").config.model_type == "gpt2"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.precision", "fp16"], "training.precision=fp16 needs a GPU, this machine has a CPU only"),
        (["--data.source", "{tmp}/none.txt"], "none.txt: no such file"),
        (["--data.source", "{tmp}/empty.txt"], "empty.txt is empty: there is no text in it"),
        (["--data.source", "{tmp}/rows.jsonl", "--data.text_column", "txt"], "no column 'txt', only 'body'"),
        (["--data.source", "{tmp}/binary.txt"], "looks like a binary file"),
        (["--data.source", "{tmp}/latin.txt"], "neither UTF-8 nor Windows-1252: byte 300 is 0x81"),
        (
            ["--training.context_length", 90000, "--model.max_position_embeddings", 90000],
            "fewer than one window of training.context_",
        ),
        (["--model.vocab_size", 200], "model.vocab_size=200 is below 257"),
        (["--model.num_attention_heads", 3], "num_attention_heads=3 does not divide hidden_size=32"),
        (["--training.context_length", 64], "context_length=64 exceeds model.max_position_embeddings=32"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing_behind(recipe, tmp_path, words, message):
    if torch.cuda.is_available() and "fp16" in words:
        pytest.skip("this machine has a GPU")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "rows.jsonl").write_text('{"body": "text"}\n')
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "latin.txt").write_bytes("café au lait. ".encode() * 20 + b"\x81")
    with pytest.raises(UserError, match=message) as error:
        train(recipe, tmp_path / "run", *[str(word).replace("{tmp}", str(tmp_path)) for word in words])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "tokens").exists() or "fewer than one window" in message


def test_a_folder_that_holds_a_run_is_not_overwritten(recipe, tmp_path):
    train(recipe, tmp_path / "run", "--training.max_steps", 1)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(
        UserError, match=r"run holds a run that stopped at step-1; add --resume .* another --output_dir"
    ):
        train(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_checkpoint_of_another_architecture_is_refused(recipe, tmp_path):
    train(recipe, tmp_path / "run", "--training.max_steps", 1)
    with pytest.raises(UserError, match=r"step-1 was trained with model.hidden_size=32, this config says 64"):
        train(recipe, tmp_path / "run", "--resume", "--model.hidden_size", 64)


def test_token_files_of_another_tokenizer_are_refused(recipe, tmp_path):
    train(recipe, tmp_path / "one", "--training.max_steps", 1)
    with pytest.raises(UserError, match=r"model.vocab_size=280, this run wants 300"):
        train(recipe, tmp_path / "two", "--model.vocab_size", 300)


def test_truncated_token_files_are_refused(recipe, tmp_path):
    train(recipe, tmp_path / "one", "--training.max_steps", 1)
    path = tmp_path / "tokens" / "train.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"train.bin has \d+ bytes, its meta.json says \d+: it is truncated"):
        train(recipe, tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_a_launcher_that_contradicts_our_precision_is_refused(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UserError, match="training.precision=fp32 contradicts the launcher's mixed precision bf16"):
        train(recipe, tmp_path / "run")


@pytest.mark.parametrize("space", [100_000, 250_000], ids=["of the weights", "of the optimizer"])
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_whole(recipe, tmp_path, space):
    resource = pytest.importorskip("resource")
    train(recipe, tmp_path / "run", "--training.max_steps", 3, "--training.optimizer", "adamw")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The weights of 40,000 parameters take 160,000 bytes, AdamW's moments twice that; torch.save has errors of its own.
    resource.setrlimit(resource.RLIMIT_FSIZE, (space, hard))
    try:
        with pytest.raises(UserError, match="no space left to write .*; free some and run again") as error:
            train(recipe, tmp_path / "run", "--resume", "--training.optimizer", "adamw")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-3"]
    assert train(recipe, tmp_path / "run", "--resume", "--training.optimizer", "adamw")["steps"] == 6


def worsening(monkeypatch):
    """Makes every validation worse than the one before, as in a run that overfits."""
    losses = iter(range(1, 100))
    score = "smallm_hf.training.validation.ValidationSet.score"
    names = ("perplexity", "bits_per_byte", "top1_accuracy", "top3_accuracy", "tokens", "bytes")

    def scored(self, *arguments):
        return {"validation_loss": float(next(losses)), **{f"validation_{name}": 1 for name in names}}

    monkeypatch.setattr(score, scored)


def test_best_keeps_the_weights_and_the_numbers_of_the_best_step(recipe, tmp_path, monkeypatch):
    worsening(monkeypatch)
    results = train(recipe, tmp_path / "run")
    assert (results["best"]["step"], results["last"]["step"]) == (3, 6)
    best, final = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("best", "final"))
    assert any(not torch.equal(best[name], final[name]) for name in best)
    at_3 = load_file(tmp_path / "run" / "checkpoints" / "step-3" / "model.safetensors")
    assert all(torch.equal(best[name], at_3[name]) for name in best)
    assert "| 1.0000 |" in (tmp_path / "run" / "best" / "README.md").read_text()
    assert "## Samples" not in (tmp_path / "run" / "best" / "README.md").read_text()
    assert "## Samples" in (tmp_path / "run" / "final" / "README.md").read_text()


def test_a_resumed_run_remembers_its_best(recipe, tmp_path, monkeypatch):
    worsening(monkeypatch)
    train(recipe, tmp_path / "run", "--training.max_steps", 3)
    assert train(recipe, tmp_path / "run", "--resume")["best"]["step"] == 3


def test_every_prompt_and_step_is_sampled_by_a_seed_of_its_own(recipe, tmp_path):
    prompts = ["the cat", "the", "", "a", "one"]
    words = ["--training.sample_prompts", json.dumps(prompts), "--training.sample_tokens", 8]
    rates = ["--training.learning_rate", 1e-9, "--training.muon_learning_rate", 1e-9]  # hardly a prediction changes
    train(recipe, tmp_path / "run", *words, *rates, "--training.sample_every", 3)
    samples = read_records(tmp_path / "run", "samples")
    assert [record["step"] for record in samples] == [3] * 5 + [6] * 5
    assert len({record["text"] for record in samples}) == 10
    engine = Engine(*load_causal_lm(str(tmp_path / "run" / "final"), dtype="float32", device="cpu"))
    for record in samples[5:]:
        assert record["seed"] == seed_of(42, 6, record["prompt"])
        options = {"seed": record["seed"], "max_new_tokens": 8, **SAMPLING}
        assert engine.write([Request(record["prompt"], **options)])[0].text == record["text"]


def test_what_overflows_is_null_in_every_json_and_the_run_goes_on_from_it(recipe, tmp_path, monkeypatch):
    names = ("bits_per_byte", "top1_accuracy", "top3_accuracy", "tokens", "bytes")
    figures = {"validation_perplexity": math.inf, **{f"validation_{name}": 1 for name in names}}
    losses = iter([math.inf, 800.0, math.inf])
    monkeypatch.setattr(
        "smallm_hf.training.validation.ValidationSet.score",
        lambda *arguments: {"validation_loss": next(losses), **figures},
    )
    judge = UpdateWatch.judge
    monkeypatch.setattr(UpdateWatch, "judge", lambda watch, loss, norm: judge(watch, loss, norm * math.inf))
    train(recipe, tmp_path / "run", "--training.max_steps", 3)
    results = train(recipe, tmp_path / "run", "--resume")
    assert (results["best"]["step"], results["best"]["validation_loss"]) == (6, 800.0)
    assert train(recipe, tmp_path / "run", "--resume", "--training.max_steps", 9)["best"]["step"] == 6
    read = {}
    for path in (tmp_path / "run").rglob("*.json*"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        read[path.name] = [json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in lines]
    assert {"metrics.jsonl", "results.json", "validation.json", "state.json", "manifest.json"} <= read.keys()
    assert read["results.json"][0]["last"]["validation_loss"] is None
    assert read["results.json"][0]["best"]["validation_perplexity"] is None
    card = (tmp_path / "run" / "best" / "README.md").read_text()
    assert "| 800.0000 | inf | 1.0000 |" in card
    assert "inf" not in card.partition("\n---\n")[0]  # its metadata
    weights = find_weights(tmp_path / "run", "best")
    assert weights.scored["validation_perplexity"] == math.inf
    check_record(tmp_path / "run", read_results(tmp_path / "run"), weights, load_own_class(weights.folder))
    check_card(tmp_path / "run", weights)


def test_samples_are_drawn_at_intervals(recipe, tmp_path):
    train(recipe, tmp_path / "run", "--training.sample_every", 2)
    assert [record["step"] for record in read_records(tmp_path / "run", "samples")] == [2, 2, 4, 4, 6, 6]


def test_a_finished_run_can_be_resumed_without_doubling_its_records(recipe, tmp_path):
    first = train(recipe, tmp_path / "run")
    metrics, samples = (read_records(tmp_path / "run", name) for name in ("metrics", "samples"))
    again = train(recipe, tmp_path / "run", "--resume")
    assert (read_records(tmp_path / "run", "metrics"), read_records(tmp_path / "run", "samples")) == (metrics, samples)
    assert (again["steps"], again["last"]) == (first["steps"], first["last"])


def test_a_model_that_sees_later_tokens_is_refused(recipe, tmp_path):
    content = yaml.safe_load(recipe.read_text())
    content["model"] = {
        **{"model_type": "bert", "vocab_size": 280, "hidden_size": 32, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 32},
    }
    recipe.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"model.model_type=bert is masked, .*; take .* or set model.is_decoder=true"):
        train(recipe, tmp_path / "run")


def test_a_prompt_longer_than_the_context_is_refused_before_training(recipe, tmp_path):
    with pytest.raises(UserError, match=r"the prompt takes \d+ tokens and the model's context holds 32"):
        train(recipe, tmp_path / "run", "--training.sample_prompts", '["' + "the cat " * 40 + '"]')
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_cannot_be_is_refused_in_the_first_second(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output_dir .*file is a file; give another --output_dir"):
        train(recipe, tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"--output_dir .*file is a file; give another --output_dir"):
        train(recipe, tmp_path / "file")
    assert not (tmp_path / "tokens").exists()


def test_a_run_out_of_patience_stops_early_and_stays_stopped(recipe, tmp_path, monkeypatch, capsys):
    worsening(monkeypatch)
    words = ["--training.max_steps", 60, "--training.evaluate_every", 2, "--training.patience", 2]
    results = train(recipe, tmp_path / "run", *words)
    assert (results["steps"], results["best"]["step"], results["stopped_early"]) == (6, 2, True)
    assert "stopped early" in capsys.readouterr().out
    assert train(recipe, tmp_path / "run", *words, "--resume")["steps"] == 6


def test_patience_without_validations_is_refused(recipe, tmp_path):
    with pytest.raises(UserError, match="training.patience=2 waits for validations; set training.evaluate_every too"):
        train(recipe, tmp_path / "run", "--training.patience", 2, "--training.evaluate_every", "null")


def test_intervals_may_count_tokens(recipe, tmp_path):
    words = ["--training.interval_unit", "tokens", "--training.evaluate_every", 300, "--training.checkpoint_every", 500]
    train(recipe, tmp_path / "run", *words)  # 128 tokens per step
    steps = [record["step"] for record in read_records(tmp_path / "run", "metrics") if "validation_loss" in record]
    assert steps == [3, 5, 6]
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["step-4", "step-6"]


def test_a_resume_with_another_tokenizer_is_refused(recipe, tmp_path, stories):
    train(recipe, tmp_path / "run", "--training.max_steps", 3)
    other = tmp_path / "other.txt"
    other.write_text(stories.read_text().replace("cat", "zebra").replace("mat", "quilt"))
    words = ["--data.source", other, "--data.folder", tmp_path / "other"]
    with pytest.raises(
        UserError, match=r"step-3 was trained with tokenizer of sha256 \w{12}, .*other holds \w{12}; resume with"
    ):
        train(recipe, tmp_path / "run", "--resume", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.optimizer", "adamw"], "step-3 was trained with training.optimizer=muon, this config says adamw"),
        (["--model", '{"model_type": "gpt2", "vocab_size": 280}'], "model.model_type=smallm, this config says gpt2"),
    ],
)
def test_a_resume_of_another_kind_of_run_names_both_and_leaves_the_run_as_it_was(recipe, tmp_path, words, message):
    train(recipe, tmp_path / "run", "--training.max_steps", 3)
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match=message):
        train(recipe, tmp_path / "run", "--resume", *words)
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_resuming_what_is_finished_says_which_limit_to_raise(recipe, tmp_path, capsys):
    train(recipe, tmp_path / "run")
    capsys.readouterr()
    train(recipe, tmp_path / "run", "--resume")
    said = "nothing left to train at step 6 (training.max_steps=6); raise the limit that was reached to go on"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("where", ["evaluate", "sample"])
def test_resuming_what_was_stopped_behind_its_last_step_says_what_is_left(recipe, tmp_path, monkeypatch, capsys, where):
    interrupt_at(monkeypatch, 6, where)
    with pytest.raises(Interrupted, match="at step 6; saved"):
        train(recipe, tmp_path / "run")
    assert train(recipe, tmp_path / "run", "--resume")["last"]["step"] == 6
    said = capsys.readouterr().out
    assert "all steps are done at step 6 (training.max_steps=6); only the last validation, samples and saving" in said
    assert "nothing left to train" not in said


def test_resuming_what_was_killed_behind_its_last_checkpoint_leaves_its_results(recipe, tmp_path, capsys):
    expected = train(recipe, tmp_path / "run")["last"]
    (tmp_path / "run" / "results.json").unlink()
    capsys.readouterr()
    assert train(recipe, tmp_path / "run", "--resume")["last"] == expected
    assert "only the last validation, samples and saving are left" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "results.json").read_text())["last"] == expected


def test_of_two_runs_that_begin_in_one_folder_the_second_is_refused(recipe, tmp_path, monkeypatch):
    def meanwhile(*arguments, **options):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text("")
        return describe(*arguments, **options)

    describe = runs.describe_plan
    monkeypatch.setattr(runs, "describe_plan", meanwhile)
    with pytest.raises(UserError, match="another run has just begun in"):
        train(recipe, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
