import io

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM

from smallm_hf import SmaLLMConfig
from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks.training import (
    compare_training,
    library_config,
    plain_factor,
    print_training,
    step_by_foreach,
)
from smallm_hf.config import parse_command_line
from smallm_hf.pretrained import fresh_model
from smallm_hf.runs import prepare_run
from smallm_hf.training.optimization import build_optimizer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The config and the token files of a very small run."""
    folder = tmp_path_factory.mktemp("benchmark")
    stories = [f"story {number}: the cat and dog {number % 7} sat on mat {number % 5}." for number in range(200)]
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories) + "\n")
    content = {
        "data": {"source": str(folder / "stories.txt"), "validation_ratio": 0.2},
        "cleaning": {"enabled": False},
        "selection": {"duplicates": "exact"},
        "model": {"vocab_size": 280, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        "training": {"context_length": 32, "batch_size": 2, "max_seconds": 1, "compile": False, "precision": "fp32"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    words = ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / "tokens")]
    config, options = parse_command_line("test", words, training=False)
    return config, prepare_run(config, options)


def test_everybody_trains_in_turns_and_is_scored_on_the_same_text(run):
    results = compare_training(
        *run,
        seconds=0.6,
        turn=0.2,
        against=["trainer"],  # the README's command has gpt2
        without=["kept_memory"],
        threads=1,
        say=lambda line: None,
    )
    assert list(results["contestants"]) == ["ours", "ours without kept_memory", "trainer"]
    for name, row in results["contestants"].items():
        assert row["rate"] > 0 and row["steps"] > 0, name
        assert 0 < row["bits_per_byte"] < 10, name
        assert row["peak_memory_bytes"] > 2**26, name
        rounds = zip(row["rates"], results["matrix_products"]["rates"], strict=False)
        assert row["mfu"]["highest"] == max(rate * row["flops_per_token"] / most for rate, most in rounds) < 1, name
        assert row["tokens"] == row["steps"] * (64 if name.startswith("ours") else 8 * 32), name
    assert 0 < results["contestants"]["ours"]["optimizer_share"] < 1
    assert results["hardware"]["cpu_threads"]
    assert results["matrix_products"]["dtype"] == "fp32"
    assert {"commit", "versions"} <= results.keys()
    shown = io.StringIO()
    print_training(results, Console(file=shown, width=140))
    assert "ours without kept_memory" in shown.getvalue() and "TFLOP/s in fp32" in shown.getvalue()


@pytest.mark.parametrize("options", [{"against": ["bloom"]}, {"without": ["bloom"]}])
def test_an_unknown_contestant_is_refused(run, options):
    with pytest.raises(UserError, match="bloom is no contestant; choose from"):
        compare_training(*run, **options)


def test_the_library_models_have_our_shape():
    ours = SmaLLMConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    with torch.device("meta"):
        qwen3 = AutoModelForCausalLM.from_config(library_config(ours, "qwen3"))
        gpt2 = AutoModelForCausalLM.from_config(library_config(ours, "gpt2"))
    assert qwen3.num_parameters() == fresh_model(ours, "meta").num_parameters()
    classic = SmaLLMConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        preset="classic",
        max_position_embeddings=ours.max_position_embeddings,
    )
    assert gpt2.num_parameters() == fresh_model(classic, "meta").num_parameters()


def test_the_plain_loop_warms_up_stays_and_decays():
    assert [plain_factor(share) for share in (0.0, 0.02, 0.04, 0.5, 0.75, 1.0)] == [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]


def test_without_the_fused_optimizer_the_same_updates_are_made():
    stepped = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = fresh_model(SmaLLMConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
        rates = {"learning_rate": 0.1, "muon_learning_rate": 0.1, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99}
        optimizer = build_optimizer(model, "muon", **rates)
        if not fused:
            step_by_foreach(optimizer)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        stepped.append(model)
    for one, other in zip(stepped[0].parameters(), stepped[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(one, torch.ones_like(one))  # the last norm has moved
