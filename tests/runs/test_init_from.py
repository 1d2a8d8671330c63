"""`model.init_from` goes on training a model of any causal family, with its own tokenizer."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from running import train
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, LlamaConfig, T5Config, ViTConfig

from smallm_hf.base.errors import UserError
from smallm_hf.config import parse_command_line
from smallm_hf.data.configuration import TokenizerConfig
from smallm_hf.data.reading.documents import read_texts
from smallm_hf.pretrained import fresh_model, load_weights, pretrained_config
from smallm_hf.tokenizing.loading import save_tokenizer
from smallm_hf.tokenizing.schemes import train_bpe
from smallm_hf.training.progress import read_records

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture
def pretrained(tmp_path, stories):
    """Saves a model of some family with a tokenizer of 270 entries, and an embedding of a few more."""
    tokenizer = train_bpe(iter(read_texts(str(stories))), 270)

    def save(config_class=LlamaConfig, vocab_size=280, **fields) -> Path:
        torch.manual_seed(0)
        ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
        model = fresh_model(config_class(vocab_size=vocab_size, max_position_embeddings=64, **SHAPE, **ids, **fields))
        model.save_pretrained(tmp_path / "pretrained")
        save_tokenizer(tokenizer, tmp_path / "pretrained", model_max_length=64)
        return tmp_path / "pretrained"

    return save


def first_loss(run: Path) -> float:
    return read_records(run, "metrics")[0]["loss"]


@pytest.mark.parametrize("family", [LlamaConfig, GPTNeoXConfig])
def test_the_recipe_is_set_aside_for_the_models_own_shape_and_tokenizer(pretrained, recipe, tmp_path, family):
    source = pretrained(family)
    train(recipe, tmp_path / "run", "--model.init_from", source)
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "best")
    assert (best.config.model_type, best.config.hidden_size, best.config.vocab_size) == (family.model_type, 16, 280)
    assert best.config.trained_context_length == 32  # of its 64 positions, which it was not said to be trained on
    assert len(AutoTokenizer.from_pretrained(tmp_path / "run" / "best")) == 270
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["model"] == {"init_from": str(source)}
    assert written["tokenizer"] == dataclasses.asdict(TokenizerConfig(source=str(source), vocab_size=270))


def test_training_begins_with_the_weights_of_the_model(pretrained, recipe, tmp_path):
    source = pretrained()
    frozen = ["--training.learning_rate", 1e-9, "--training.muon_learning_rate", 1e-9, "--training.max_steps", 1]
    train(recipe, tmp_path / "run", "--model.init_from", source, *frozen)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "run" / "final" / "model.safetensors")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)


def test_a_model_of_ours_stays_ours_and_goes_on_better_than_afresh(recipe, tmp_path):
    train(recipe, tmp_path / "first", "--training.max_steps", 40, "--training.learning_rate", 1e-2)
    words = ["--model.init_from", tmp_path / "first" / "best", "--data.folder", tmp_path / "others"]
    train(recipe, tmp_path / "second", *words, "--model.dropout", 0.1)
    assert first_loss(tmp_path / "second") < first_loss(tmp_path / "first") - 1
    saved = json.loads((tmp_path / "second" / "best" / "config.json").read_text())
    assert "SmaLLMForCausalLM" in saved["auto_map"]["AutoModelForCausalLM"]
    assert saved["dropout"] == 0.1


def test_it_resumes_from_its_own_config(pretrained, recipe, tmp_path):
    train(recipe, tmp_path / "run", "--model.init_from", pretrained())
    assert train(None, tmp_path / "run", "--resume", "--training.max_steps", 8)["steps"] == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model.hidden_size", 32],
            "model.hidden_size=32 does not fit the weights of model.init_from=.*which has 16",
        ),
        (["--model.hidden_sizes", 32], "unknown key model.hidden_sizes for model_type llama; did you mean"),
        (["--tokenizer.source", "gpt2"], "tokenizer.source=gpt2 is not the tokenizer of model.init_from"),
        (["--training.context_length", 65], "training.context_length=65 exceeds model.max_position_embeddings=64"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(pretrained, recipe, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        train(recipe, tmp_path / "run", "--model.init_from", pretrained(), *words)
    assert not (tmp_path / "run").exists()


def test_a_tensor_too_few_is_refused_and_one_too_many_where_it_must_be_exact(pretrained, recipe, tmp_path):
    source = pretrained()
    config = pretrained_config(str(source))
    weights = load_file(source / "model.safetensors")
    save_file({**weights, "model.layers.9.extra": torch.ones(1)}, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"holds weights that LlamaForCausalLM does not have, model.layers.9.extra for one"
    ):
        load_weights(source, config, exact=True)
    weights.pop("model.norm.weight")
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights of LlamaForCausalLM, model.norm.weight for one"):
        train(recipe, tmp_path / "run", "--model.init_from", source)


def test_a_table_smaller_than_its_tokenizer_is_refused(pretrained, recipe, tmp_path):
    with pytest.raises(UserError, match="has 270 entries, its model only 260"):
        train(recipe, tmp_path / "run", "--model.init_from", pretrained(vocab_size=260))


def test_a_model_that_predicts_no_next_token_is_refused(pretrained, recipe, tmp_path):
    source = pretrained()
    T5Config(d_model=16, num_layers=1).save_pretrained(source)
    with pytest.raises(UserError, match="is an encoder-decoder and trains on pairs, and data.target_column is null"):
        train(recipe, tmp_path / "run", "--model.init_from", source)
    ViTConfig(hidden_size=16, num_hidden_layers=1).save_pretrained(source)
    with pytest.raises(UserError, match="cannot be loaded as a language model: .*ViTConfig"):
        train(recipe, tmp_path / "run", "--model.init_from", source)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["t5"], r"model.model_type=t5 is an encoder-decoder and trains on pairs, and data.target_column is null; set"),
        (["bert"], r"model.model_type=bert is masked, .* or set model.is_decoder=true"),
        (["modernbert"], r"model.model_type=modernbert is masked, .* gpt2 \.\.\.$"),
        (["vit"], r"model.model_type=vit does not predict the next token; take one of smallm, llama"),
    ],
)
def test_a_model_type_of_another_kind_is_refused_before_any_work(words, message):
    words = ["--training.max_steps", "1", "--model.vocab_size", "300", "--model.model_type", *words]
    if "vit" in words:
        words = [word for word in words if word not in ("--model.vocab_size", "300")]
    with pytest.raises(UserError, match=message):
        parse_command_line("test", words, training=True)


def test_a_folder_without_model_or_tokenizer_is_refused(pretrained, recipe, tmp_path):
    with pytest.raises(UserError, match="is not a folder; give a folder that save_pretrained wrote"):
        train(recipe, tmp_path / "run", "--model.init_from", tmp_path / "nowhere")
    source = pretrained()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="tokenizer"):
        train(recipe, tmp_path / "run", "--model.init_from", source)
    shutil.rmtree(source)


def test_a_real_pretrained_model_goes_on_with_its_tokenizer(shared_data, recipe, tmp_path):
    source = shared_data / "pretrained" / "stories260K-hf"
    train(recipe, tmp_path / "run", "--model.init_from", source, "--training.max_steps", 2)
    assert pretrained_config(str(tmp_path / "run" / "best")).model_type == "llama"
