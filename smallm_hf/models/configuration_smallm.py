"""Configuration of SmaLLM, and its translation to and from the configuration of a class that `transformers` ships.

One family spans two architectures. What tells them apart is a handful of switches: a preset names a full set of them,
and a native class of `transformers` (Qwen3, Llama, GPT-2) computes any model whose switches match its own.
"""

import difflib
import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

# The switches each native class is built for. A switch that is missing here is a field of that class too.
NATIVE_SWITCHES = {
    "qwen3": {
        "position_embedding_type": "rope",
        "norm_type": "rms",
        "gated_mlp": True,
        "qk_norm": True,
        "mlp_bias": False,
    },
    "llama": {"position_embedding_type": "rope", "norm_type": "rms", "gated_mlp": True, "qk_norm": False},
    "gpt2": {
        "position_embedding_type": "learned",
        "norm_type": "layer",
        "gated_mlp": False,
        "qk_norm": False,
        "attention_bias": True,
        "mlp_bias": True,
    },
}

# Settings of the native classes that change what they compute and that we do not have, at the one value we agree with.
NATIVE_ONLY = {
    "qwen3": {"use_sliding_window": False},
    "llama": {},
    "gpt2": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
}

PRESETS = {
    "modern": {
        **NATIVE_SWITCHES["qwen3"],
        "attention_bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "dropout": 0.0,
        "output_projection_init": "zero",
    },
    "classic": {
        **NATIVE_SWITCHES["gpt2"],
        "hidden_act": "gelu_new",
        "rms_norm_eps": 1e-5,
        "dropout": 0.1,
        "output_projection_init": "scaled",
    },
}

CHOICES = {
    "preset": tuple(PRESETS),
    "position_embedding_type": ("rope", "learned"),
    "norm_type": ("rms", "layer"),
    "output_projection_init": ("scaled", "zero"),
    "hidden_act": tuple(ACT2FN),
}

# GPT-2's names for our fields. `n_ctx` is read by GGUF converters only.
GPT2_NAMES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_ctx": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "rms_norm_eps",
    "attn_pdrop": "attention_dropout",
    "resid_pdrop": "dropout",
    "embd_pdrop": "dropout",
}


@strict
class SmaLLMConfig(PreTrainedConfig):
    """Shape, switches and initialisation of a SmaLLM model.

    A field left at `None` takes the value of its preset, or is derived from the others, when the configuration is made.

    Args:
        preset: `modern` (Qwen3's architecture: RMSNorm, rotary positions, grouped-query attention, QK-norm, gated MLP,
            no biases) or `classic` (GPT-2's: learned positions, LayerNorm, plain MLP, biases, dropout).
        vocab_size: Number of tokens V, equal to `len(tokenizer)`.
        hidden_size: Width D of the residual stream.
        intermediate_size: Width of the MLP; default 4 D without a gate (Radford et al. 2019), with one 8/3 D rounded up
            to a multiple of 128, so that both have about the same number of weights (Shazeer 2020, section 3).
        num_hidden_layers: Number of blocks.
        num_attention_heads: Number of query heads.
        num_key_value_heads: Number of key and value heads (Ainslie et al. 2023); default half the query heads in
            `modern` where that is a whole number, else all of them.
        head_dim: Width K of one head; default `hidden_size / num_attention_heads`.
        hidden_act: Activation of the MLP, any name in `transformers.activations.ACT2FN`.
        max_position_embeddings: Longest context, in tokens.
        position_embedding_type: `rope` (Su et al. 2021) or `learned`, a table of `max_position_embeddings` rows.
        rope_parameters: `{"rope_type": "default", "rope_theta": 10000.0}`; `None` with learned positions.
        norm_type: `rms` (Zhang and Sennrich 2019) or `layer` (Ba et al. 2016, with a bias).
        rms_norm_eps: Epsilon of the norm, of either type.
        qk_norm: RMSNorm over each head of the queries and keys (Henry et al. 2020, as in Qwen3).
        gated_mlp: `down(act(gate(x)) * up(x))` (Shazeer 2020) instead of `down(act(up(x)))`.
        attention_bias: Biases in the four attention projections.
        mlp_bias: Biases in the MLP projections.
        dropout: Probability of dropping an entry of the embeddings and of what a block adds to the residual stream.
        attention_dropout: Probability of dropping an attention weight; default `dropout`.
        tie_word_embeddings: Whether the output head is the embedding matrix (Press and Wolf 2017).
        initializer_range: Standard deviation of linear weights.
        embedding_initializer_range: Standard deviation of embeddings; default `initializer_range`, and with zero output
            projections and a tied head at most `ln(V) / 2D`: there a token's normalised embedding meets itself in the
            head, so that its own logit starts at D times this number and must stay well under ln V.
        output_projection_init: How the projections that write to the residual stream start: `scaled`,
            `initializer_range / sqrt(2 * num_hidden_layers)` (Radford et al. 2019, section 2.3), or `zero`, each block
            an identity (Zhang et al. 2019, Fixup; Yang et al. 2022, appendix D.2).
        use_cache: Whether `forward` returns keys and values for the next call.
        bos_token_id: Token that begins a text.
        eos_token_id: Token that ends a text.
        pad_token_id: Token that fills a batch.

    Raises:
        ValueError: a field has no valid value, or two contradict each other; one line that names both and the fix.
    """

    model_type = "smallm"
    keys_to_ignore_at_inference = ("past_key_values",)

    preset: str = "modern"
    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int | None = None
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str | None = None
    max_position_embeddings: int = 1024
    position_embedding_type: str | None = None
    rope_parameters: dict | None = None
    norm_type: str | None = None
    rms_norm_eps: float | int | None = None
    qk_norm: bool | None = None
    gated_mlp: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    dropout: float | int | None = None
    attention_dropout: float | int | None = None
    tie_word_embeddings: bool = True
    initializer_range: float | int = 0.02
    embedding_initializer_range: float | int | None = None
    output_projection_init: str | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        check_choice("preset", self.preset)
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self._check_sizes()
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size}; "
                    "change one of them or set head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            halve = self.preset == "modern" and self.num_attention_heads % 2 == 0
            self.num_key_value_heads = self.num_attention_heads // (2 if halve else 1)
        if self.intermediate_size is None:
            self.intermediate_size = math.ceil(self.hidden_size / 48) * 128 if self.gated_mlp else 4 * self.hidden_size
        if self.attention_dropout is None:
            self.attention_dropout = self.dropout
        if self.embedding_initializer_range is None:
            own_logit_bound = math.log(self.vocab_size) / (2 * self.hidden_size)
            meets_itself = self.tie_word_embeddings and self.output_projection_init == "zero"
            self.embedding_initializer_range = (
                min(self.initializer_range, own_logit_bound) if meets_itself else self.initializer_range
            )
        super().__post_init__(**kwargs)
        if self.position_embedding_type != "rope":
            self.rope_parameters = None  # the base class has just filled it in
        self.validate_architecture()

    @property
    def output_projection_range(self) -> float:
        """Standard deviation of the projections that write to the residual stream, see `output_projection_init`."""
        if self.output_projection_init == "zero":
            return 0.0
        return self.initializer_range / math.sqrt(2 * self.num_hidden_layers)

    def _check_sizes(self):
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} is not a size; set it to 1 or more")

    def validate_architecture(self):
        """Raise a `ValueError` where the fields contradict each other; `transformers` calls it before saving too."""
        self._check_sizes()
        for name in CHOICES:
            check_choice(name, getattr(self, name))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} does not divide "
                f"num_attention_heads={self.num_attention_heads}; set it to a divisor of that number"
            )
        if self.position_embedding_type == "rope":
            if self.head_dim % 2:
                raise ValueError(
                    f"head_dim={self.head_dim} is odd, and position_embedding_type='rope' rotates pairs; make it even "
                    "through hidden_size / num_attention_heads or head_dim, or use position_embedding_type='learned'"
                )
            if (rope_type := self.rope_parameters["rope_type"]) != "default":
                raise ValueError(
                    f"rope_parameters.rope_type={rope_type!r} is not supported; set it to 'default' and tune rope_theta"
                )
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a probability; set it to 0 or more and below 1")

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Read the `config.json` of a folder or Hub id; one written for a native class comes back in our own fields."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return from_native(config_dict), kwargs


def check_choice(name: str, value: str) -> None:
    """Raise a `ValueError` that names the nearest valid value if `value` is not a choice of the field `name`."""
    if value not in CHOICES[name]:
        nearest = difflib.get_close_matches(str(value), CHOICES[name], n=1, cutoff=0)[0]
        raise ValueError(
            f"{name}={value!r} is unknown; did you mean {nearest!r}? Valid are {', '.join(sorted(CHOICES[name]))}"
        )


def native_type(config: SmaLLMConfig) -> tuple[str | None, str | None]:
    """The model type of the class in `transformers` that computes the same function as a SmaLLM of this configuration.

    What only training sees (dropout, initialisation) does not count.

    Returns:
        `(model type, None)`, or `(None, reason)` where no native class can express the model.
    """
    learned = config.position_embedding_type == "learned"
    model_type = "gpt2" if learned else "qwen3" if config.qk_norm else "llama"
    needed = dict(NATIVE_SWITCHES[model_type])
    if model_type == "gpt2":
        needed["num_key_value_heads"] = config.num_attention_heads
        needed["hidden_size"] = config.num_attention_heads * config.head_dim
    differences = [
        f"{name}={getattr(config, name)!r} (it needs {value!r})"
        for name, value in needed.items()
        if getattr(config, name) != value
    ]
    if differences:
        return None, f"the nearest native class, {model_type}, cannot express {', '.join(differences)}"
    return model_type, None


def to_native(config_dict: dict, model_type: str) -> dict:
    """Our `config.json` as that of a native class; what that class does not know rides along as extra keys."""
    native = {name: value for name, value in config_dict.items() if name not in NATIVE_SWITCHES[model_type]}
    if model_type == "gpt2":
        native |= {name: native[ours] for name, ours in GPT2_NAMES.items()}
        for name in {*GPT2_NAMES.values(), "rope_parameters"}:
            del native[name]
    return {**native, "model_type": model_type}


def from_native(config_dict: dict) -> dict:
    """The inverse of `to_native`; a `config.json` of model type smallm, or of none, comes back unchanged.

    Raises:
        ValueError: a model type that is none of these, or a setting of a native class that ours does not have.
    """
    model_type = config_dict.get("model_type")
    if model_type in (None, SmaLLMConfig.model_type):
        return config_dict
    if model_type not in NATIVE_SWITCHES:
        raise ValueError(
            f"a model of type {model_type!r} is none of smallm, {', '.join(NATIVE_SWITCHES)}; "
            "load it with AutoModelForCausalLM"
        )
    for name, value in NATIVE_ONLY[model_type].items():
        if config_dict.get(name, value) != value:
            raise ValueError(
                f"{name}={config_dict[name]!r} of this {model_type} model cannot be computed by smallm, which needs "
                f"{value!r}; load it with AutoModelForCausalLM"
            )
    names = GPT2_NAMES if model_type == "gpt2" else {}
    return {
        "preset": "classic" if model_type == "gpt2" else "modern",
        **NATIVE_SWITCHES[model_type],
        **{names.get(name, name): value for name, value in config_dict.items()},
        "model_type": SmaLLMConfig.model_type,
    }
