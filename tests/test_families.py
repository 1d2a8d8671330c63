"""A family is one entry: what holds for every one of them, and for one that is made up here."""

import dataclasses
import json
from collections.abc import Iterator

import pytest
import torch
from tiny_gru import TinyGRUConfig, TinyGRUForCausalLM, registered
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)

from smallm_hf.base.errors import UserError
from smallm_hf.config import model_config
from smallm_hf.export.exporting import export_model
from smallm_hf.families import FAMILIES, TARGETS, Family, family_of, family_of_file, kind_of, parameter_groups
from smallm_hf.inspection import read_as_text, refuse_lookahead
from smallm_hf.pretrained import find_kind, fresh_model, load_scorable, load_weights, pretrained_config
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.kneser_ney import count_ngrams, fill_model
from smallm_hf.training.optimization import build_optimizer
from smallm_hf.training.plan import embedding_parameters, make_plan

RATES = {"learning_rate": 1e-2, "muon_learning_rate": 2e-2, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95}


@pytest.fixture
def tiny_gru() -> Iterator[Family]:
    with registered() as family:
        yield family


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """300 words, the last of them the end of a text."""
    model = WordLevel({f"w{number}": number for number in range(299)} | {"<eos>": 299}, unk_token="<eos>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="<eos>")


def train_a_little(model: PreTrainedModel, name: str) -> list[float]:
    optimizer, losses = build_optimizer(model.train(), name, **RATES), []
    ids = torch.arange(24).reshape(2, 12)
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def count_a_little(model: PreTrainedModel) -> None:
    ids = torch.arange(24)[None] % 8
    before = model(ids, labels=ids).loss
    fill_model(model, count_ngrams(ids[0].numpy(), model.config.order, model.config.vocab_size, None))
    assert model(ids, labels=ids).loss < before


def test_a_new_family_is_one_entry(tiny_gru, tokenizer, tmp_path):
    config = model_config({"model_type": "tiny_gru", "vocab_size": len(tokenizer)}, eos_token_id=tokenizer.eos_token_id)
    assert family_of(config) is tiny_gru
    torch.manual_seed(0)
    model = fresh_model(config)
    assert (type(model), kind_of(model)) == (TinyGRUForCausalLM, "causal")
    refuse_lookahead(model.eval())

    by_group = {kind: {*map(id, parameters)} for kind, parameters in parameter_groups(model).items()}
    sorted_names = {k: {n for n, p in model.named_parameters() if id(p) in ids} for k, ids in by_group.items()}
    gates = {f"model.gru.weight_{part}_l{layer}" for part in ("ih", "hh") for layer in (0, 1)}
    assert sorted_names["hidden"] == {"model.mix.weight"}  # Muon's; stacked gates are AdamW's
    assert sorted_names["other"] == gates
    assert sorted_names["embedding"] == {"model.embed_tokens.weight", "lm_head.weight"}
    assert len(sorted_names["vector"]) == 5
    losses = train_a_little(model, "muon")
    assert losses[-1] < losses[0]

    training = TrainingConfig(max_steps=5, batch_size=2, context_length=12, compile=False)
    plan = make_plan(config, training, "bf16", 5)
    assert plan.flops_per_token == 6 * (2 * 2 * 3 * 16 * 16 + 16 * 16 + 300 * 16)
    assert (plan.parameters, plan.embedding_parameters) == (model.num_parameters(), 2 * 300 * 16)
    more = make_plan(config, dataclasses.replace(training, batch_size=4, loss="chunked"), "bf16", 5).memory_bytes
    less = make_plan(config, dataclasses.replace(training, loss="chunked"), "bf16", 5).memory_bytes
    assert more - less == 2 * 12 * (4 * 2 * 16) * 78  # the activations of two windows

    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    source = str(tmp_path / "model")
    again = load_weights(source, pretrained_config(source), exact=True)
    loaded, _ = load_scorable(source, device="cpu", dtype="float32")
    ids = torch.arange(12)[None]
    for other in (again, loaded):
        assert type(other) is TinyGRUForCausalLM
        torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(other.eval()(ids).logits, model.eval()(ids).logits)

    for target in ("native", "onnx"):
        with pytest.raises(UserError, match=f"--to {target} cannot express .*: transformers has no recurrent model"):
            export_model(source, target, tmp_path / "export")
    assert not (tmp_path / "export").exists()


# --- what holds for every family -------------------------------------------------------------------------------------

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {**SMALL, "num_attention_heads": 2, "intermediate_size": 48}
T5 = {"num_layers": 1, "num_heads": 2}
SIDE = {"layers": 1, "attention_heads": 2, "ffn_dim": 48}
BOTH_SIDES = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in SIDE.items()}
# A small config of every family of ours, and of others of transformers that are unlike them.
CONFIGS = {
    "smallm": lambda: model_config({"model_type": "smallm", **SMALL}),
    "recurrent": lambda: model_config({"model_type": "recurrent", **SMALL}),
    "feedforward": lambda: model_config({"model_type": "feedforward", **SMALL, "context_size": 4}),
    "ngram": lambda: model_config({"model_type": "ngram", "vocab_size": 64, "order": 3}),
    "llama": lambda: LlamaConfig(**HEADS),
    "gpt2": lambda: GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2),
    "bert": lambda: BertConfig(**HEADS, is_decoder=True),
    "mamba": lambda: MambaConfig(**SMALL, state_size=4),
    "qwen3_moe": lambda: Qwen3MoeConfig(**HEADS, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2),
    "t5": lambda: model_config({"model_type": "t5", "vocab_size": 64, "d_model": 32, "d_ff": 48, "d_kv": 8, **T5}),
    "bart": lambda: model_config({"model_type": "bart", "vocab_size": 64, "d_model": 32, **BOTH_SIDES}),
    "marian": lambda: model_config({"model_type": "marian", "vocab_size": 64, "d_model": 32, **BOTH_SIDES}),
}
SEQ2SEQ = ("t5", "bart", "marian")


def test_every_family_of_ours_is_under_contract():
    assert {*FAMILIES} <= {*CONFIGS}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_family_builds_trains_counts_saves_and_loads(model_type, tokenizer, tmp_path):
    config = CONFIGS[model_type]()
    family = family_of(config)
    torch.manual_seed(0)
    model = fresh_model(config)
    kind = "seq2seq" if model_type in SEQ2SEQ else "causal"
    assert family.kind == kind_of(model) == kind
    refuse_lookahead(model.eval())
    groups, trained = parameter_groups(model), [p for p in model.parameters() if p.requires_grad]
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(map(id, trained))
    assert all(parameter.ndim == 2 for parameter in groups["hidden"])
    if family.counted:
        count_a_little(model)
    for name in ("adamw", "muon") if not family.counted else ():
        losses = train_a_little(fresh_model(config), name)
        assert losses[-1] < losses[0]
    training = TrainingConfig(max_steps=5, batch_size=2, context_length=12, compile=False)
    plan = make_plan(config, training, "bf16", 5)
    head = model.get_output_embeddings()
    weights = [*groups["hidden"], *groups["other"], *([] if head is None else [head.weight])]
    assert (head is None) == (not plan.parameters) == family.counted
    assert plan.flops_per_token >= 6 * sum(weight.numel() for weight in weights)
    assert plan.memory_bytes > 4 * 4 * plan.parameters - 4 * sum(p.numel() for p in groups["hidden"])

    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert family_of_file(written).model_class is family.model_class
    assert find_kind(str(tmp_path)) == kind
    again = load_weights(tmp_path, pretrained_config(str(tmp_path)), exact=True)
    assert type(again) is type(model)
    inputs = read_as_text(model, torch.arange(12)[None])
    torch.testing.assert_close(again.eval()(**inputs).logits, model.eval()(**inputs).logits, rtol=0, atol=0)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_of_ours_is_known_to_transformers_and_says_what_it_exports_to(model_type):
    family, config = FAMILIES[model_type], CONFIGS[model_type]()
    assert type(AutoConfig.for_model(model_type)) is family.config_class
    assert type(AutoModelForCausalLM.from_config(config)) is family.model_class
    native, reason = family.native(config)
    assert (native is None) != (reason is None)
    assert family.exports <= TARGETS
    assert native is None or family_of_file({"model_type": native}).exports == TARGETS


def test_a_file_that_names_a_native_class_is_of_the_family_that_its_auto_map_names():
    native = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    assert family_of_file(native).model_class is AutoModelForCausalLM
    auto_map = {"AutoConfig": "some/repo--configuration_smallm.SmaLLMConfig"}
    assert family_of_file({**native, "auto_map": auto_map}) is FAMILIES["smallm"]
    assert family_of_file({"model_type": "smallm"}) is FAMILIES["smallm"]


@pytest.mark.parametrize(
    ("config", "built", "kind"),
    [
        (BartConfig(d_model=16, encoder_layers=1, decoder_layers=1), "BartForConditionalGeneration", "seq2seq"),
        (BertConfig(**HEADS), "BertForMaskedLM", "masked"),
        (BertConfig(**HEADS, is_decoder=True), "BertLMHeadModel", "causal"),
        (BertConfig(**HEADS, architectures=["BertLMHeadModel"]), "BertLMHeadModel", "causal"),
        (BartConfig(d_model=16, decoder_layers=1, is_encoder_decoder=False), "BartForCausalLM", "causal"),
    ],
)
def test_a_config_builds_the_model_it_says(config, built, kind):
    model = fresh_model(config, "meta")
    assert (type(model).__name__, family_of(config).kind, kind_of(model)) == (built, kind, kind)


def test_stacked_experts_and_convolutions_are_not_muons_and_are_decayed():
    for config, raw in ((CONFIGS["qwen3_moe"](), "experts"), (CONFIGS["mamba"](), "conv1d.weight")):
        model = fresh_model(config, "meta")
        others = {id(parameter) for parameter in parameter_groups(model)["other"]}
        assert any(raw in name for name, parameter in model.named_parameters() if id(parameter) in others)
        optimizer = build_optimizer(model, "muon", **RATES)
        decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
        assert others <= decayed


def test_muon_leaves_everything_to_adamw_where_there_is_no_matrix_for_it(tiny_gru, monkeypatch):
    monkeypatch.setitem(FAMILIES, "tiny_gru", dataclasses.replace(tiny_gru, muon_matrices=lambda model: ()))
    model = fresh_model(TinyGRUConfig())
    assert parameter_groups(model)["hidden"] == []
    losses = train_a_little(model, "muon")
    assert losses[-1] < losses[0]
    assert embedding_parameters(model) == 2 * 300 * 16
