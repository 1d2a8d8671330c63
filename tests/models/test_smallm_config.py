import re

import pytest
import torch
from transformers.activations import ACT2FN

from smallm_hf import SmaLLMConfig, SmaLLMForCausalLM
from smallm_hf.models.configuration_smallm import from_native, native_type, to_native


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads=3 does not divide hidden_size=256; change one"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention_heads=4; set it"),
        ({"head_dim": 7}, "head_dim=7 is odd, and position_embedding_type='rope' rotates pairs; make it even"),
        ({"hidden_act": "gelo"}, "hidden_act='gelo' is unknown; did you mean 'gelu'"),
        ({"preset": "classical"}, "preset='classical' is unknown; did you mean 'classic'"),
        ({"norm_type": "layernorm"}, "norm_type='layernorm' is unknown; did you mean 'layer'"),
        ({"position_embedding_type": "roper"}, "position_embedding_type='roper' is unknown; did you mean 'rope'"),
        ({"output_projection_init": "zeros"}, "output_projection_init='zeros' is unknown; did you mean 'zero'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 is not a size; set it to 1 or more"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 is not a size"),
        ({"dropout": 1.5}, "dropout=1.5 is not a probability"),
        ({"rope_parameters": {"rope_type": "liner"}}, "rope_parameters.rope_type='liner' is unknown; did you mean 'li"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "of rope_type='yarn' lack 'factor'; add it"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": "4"}}, "'factor': '4'.* do not fit rope_type='yarn'"),
    ],
)
def test_a_contradiction_is_one_line_naming_both_values_and_the_fix(fields, error):
    with pytest.raises(ValueError, match=error) as raised:
        SmaLLMConfig(**fields)
    assert "\n" not in str(raised.value)


def test_a_contradiction_made_later_stops_saving(tmp_path):
    config = SmaLLMConfig()
    config.num_key_value_heads = 3
    with pytest.raises(Exception, match="num_key_value_heads=3 does not divide num_attention_heads=4"):
        config.save_pretrained(tmp_path)


def test_a_contradiction_made_later_stops_the_model_from_being_built():
    config = SmaLLMConfig()
    config.norm_type = "nope"
    with pytest.raises(ValueError, match="norm_type='nope' is unknown; did you mean 'layer'"):
        SmaLLMForCausalLM(config)


def test_a_field_given_while_loading_is_checked_and_completed_as_a_written_one(tmp_path):
    SmaLLMConfig(rope_parameters={"rope_type": "default", "rope_theta": 500.0}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="norm_type='nope' is unknown; did you mean 'layer'"):
        SmaLLMConfig.from_pretrained(tmp_path, norm_type="nope")
    stretched = SmaLLMConfig.from_pretrained(tmp_path, rope_parameters={"rope_type": "linear", "factor": 2.0})
    assert stretched.rope_parameters == {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
    again, unused = SmaLLMConfig.from_pretrained(tmp_path, dropout=0.5, nonsense=1, return_unused_kwargs=True)
    assert (again.dropout, unused) == (0.5, {"nonsense": 1})


def test_modern_is_the_default_and_derives_what_is_not_given():
    config = SmaLLMConfig(hidden_size=384, num_attention_heads=6)
    assert (config.position_embedding_type, config.norm_type, config.gated_mlp, config.qk_norm) == (
        "rope",
        "rms",
        True,
        True,
    )
    assert (config.head_dim, config.num_key_value_heads, config.intermediate_size) == (64, 3, 1024)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert (config.hidden_act, config.dropout, config.attention_dropout) == ("silu", 0.0, 0.0)


def test_classic_is_one_word_and_gpt2s_own_defaults():
    config = SmaLLMConfig(preset="classic", hidden_size=384, num_attention_heads=6)
    assert (config.position_embedding_type, config.norm_type, config.gated_mlp) == ("learned", "layer", False)
    assert (config.attention_bias, config.mlp_bias, config.rope_parameters) == (True, True, None)
    assert (config.head_dim, config.num_key_value_heads, config.intermediate_size) == (64, 6, 1536)
    assert (config.hidden_act, config.dropout, config.attention_dropout, config.rms_norm_eps) == (
        "gelu_new",
        0.1,
        0.1,
        1e-5,
    )


def test_the_length_of_training_is_a_number_of_tokens_or_unknown():
    assert SmaLLMConfig().trained_context_length is None
    with pytest.raises(ValueError, match="trained_context_length=0 is not a size; set it to 1 or more"):
        SmaLLMConfig(trained_context_length=0)


def test_a_stated_field_beats_its_preset():
    config = SmaLLMConfig(preset="classic", hidden_act="relu", dropout=0.0, attention_bias=False)
    assert (config.hidden_act, config.dropout, config.attention_dropout) == ("relu", 0.0, 0.0)
    assert config.attention_bias is False


@pytest.mark.parametrize("name", ["relu", "gelu", "leaky_relu", "tanh", "sigmoid", "silu", "relu2"])
def test_activations_of_the_library_are_accepted(name):
    assert name in ACT2FN
    assert SmaLLMConfig(hidden_act=name).hidden_act == name


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        (
            {"num_hidden_layers": 6, "num_attention_heads": 6, "hidden_size": 384, "max_position_embeddings": 128},
            29_995_392,
        ),
        (
            {
                "num_hidden_layers": 6,
                "num_attention_heads": 6,
                "hidden_size": 384,
                "max_position_embeddings": 128,
                "tie_word_embeddings": False,
            },
            49_294_080,
        ),
        (
            {"num_hidden_layers": 6, "num_attention_heads": 8, "hidden_size": 512, "max_position_embeddings": 512},
            44_909_056,
        ),
        (
            {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768, "max_position_embeddings": 1024},
            124_439_808,
        ),
    ],
)
def test_classic_models_have_the_counted_number_of_parameters(fields, parameters):
    with torch.device("meta"):
        model = SmaLLMForCausalLM(SmaLLMConfig(preset="classic", vocab_size=50257, **fields))
    assert model.num_parameters() == parameters
    embeddings = (50257 + fields["max_position_embeddings"]) * fields["hidden_size"]
    assert model.num_parameters(exclude_embeddings=True) == parameters - embeddings


def test_modern_parameters_are_counted_by_hand():
    with torch.device("meta"):
        model = SmaLLMForCausalLM(SmaLLMConfig(vocab_size=4096, hidden_size=256, num_attention_heads=4))
    attention = 256 * 256 + 2 * 256 * 128 + 256 * 256 + 2 * 64  # q; k, v of two heads; o; two norms
    block = attention + 3 * 256 * 768 + 2 * 256
    assert model.num_parameters() == 4096 * 256 + 4 * block + 256


@pytest.mark.parametrize(
    ("fields", "model_type", "reason"),
    [
        ({}, "qwen3", None),
        ({"attention_bias": True, "hidden_act": "relu"}, "qwen3", None),
        ({"qk_norm": False, "mlp_bias": True}, "llama", None),
        ({"preset": "classic", "hidden_act": "leaky_relu", "tie_word_embeddings": False}, "gpt2", None),
        ({"mlp_bias": True}, None, r"qwen3, cannot express mlp_bias=True \(it needs False\)"),
        ({"norm_type": "layer", "gated_mlp": False}, None, r"norm_type='layer' \(it needs 'rms'\), gated_mlp=False"),
        ({"position_embedding_type": "learned"}, None, r"gpt2, cannot express norm_type='rms'"),
        ({"preset": "classic", "num_key_value_heads": 2}, None, r"num_key_value_heads=2 \(it needs 4\)"),
        ({"preset": "classic", "head_dim": 32}, None, r"hidden_size=256 \(it needs 128\)"),
        ({"preset": "classic", "attention_bias": False}, None, "attention_bias=False"),
    ],
)
def test_the_native_class_is_found_or_the_reason_is_named(fields, model_type, reason):
    found, why = native_type(SmaLLMConfig(**fields))
    assert found == model_type
    if reason is None:
        assert why is None
    else:
        assert re.search(reason, why)


@pytest.mark.parametrize("fields", [{}, {"qk_norm": False}, {"preset": "classic", "dropout": 0.3}])
def test_translation_to_a_native_config_and_back_keeps_every_field(fields):
    config = SmaLLMConfig(
        initializer_range=0.05, embedding_initializer_range=0.003, attention_dropout=0.2, eos_token_id=7, **fields
    )
    native = to_native(config.to_dict(), native_type(config)[0])
    back = SmaLLMConfig(**from_native(native))
    for name in SmaLLMConfig.__annotations__:
        assert getattr(back, name) == getattr(config, name), name


def test_gpt2_config_has_gpt2s_names_and_only_those():
    native = to_native(SmaLLMConfig(preset="classic", dropout=0.3, attention_dropout=0.2).to_dict(), "gpt2")
    assert (native["embd_pdrop"], native["resid_pdrop"], native["attn_pdrop"]) == (0.3, 0.3, 0.2)
    assert (native["n_embd"], native["n_ctx"], native["n_positions"], native["n_inner"]) == (256, 1024, 1024, 1024)
    assert not {"hidden_size", "max_position_embeddings", "rope_parameters", "norm_type"} & native.keys()


def test_to_dict_and_the_configs_own_save_stay_ours(tmp_path):
    config = SmaLLMConfig()
    config.save_pretrained(tmp_path)
    assert config.to_dict()["model_type"] == "smallm"
    assert SmaLLMConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        ({"model_type": "gpt2", "scale_attn_weights": False}, "scale_attn_weights=False of this gpt2 model"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"model_type": "qwen3", "use_sliding_window": True}, "use_sliding_window=True of this qwen3 model"),
        ({"model_type": "mistral"}, "'mistral' is none of smallm, qwen3, llama, gpt2; load it with Auto"),
    ],
)
def test_a_model_we_would_compute_wrongly_is_refused_by_name(foreign, message):
    with pytest.raises(ValueError, match=message):
        from_native(foreign)
