"""SmaLLM: a decoder-only transformer, modern (Qwen3's architecture) or classic (GPT-2's), in one file.

Shapes: B batch, T query and S key positions, D hidden, H query and G key-value heads, K per head, V vocabulary.
"""

import json
import os
from pathlib import Path

import torch
from huggingface_hub import create_repo, upload_folder
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, Transpose, WeightConverter, WeightRenaming
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.utils import can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_smallm import SmaLLMConfig, native_type, to_native

logger = logging.get_logger(__name__)

AUTO_MAP = {
    "AutoConfig": "configuration_smallm.SmaLLMConfig",
    "AutoModel": "modeling_smallm.SmaLLMModel",
    "AutoModelForCausalLM": "modeling_smallm.SmaLLMForCausalLM",
}
HUB_OPTIONS = ("repo_id", "private", "token", "commit_message", "create_pr")


class SmaLLMRMSNorm(nn.RMSNorm):
    """Division by the root mean square, without mean and bias (Zhang and Sennrich 2019); keeps the input's dtype."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Sums are made in float32; the cast of the weight keeps the fused kernel under autocast."""
        return nn.functional.rms_norm(
            hidden_states, self.normalized_shape, self.weight.to(hidden_states.dtype), self.eps
        )


NORMS = {"rms": SmaLLMRMSNorm, "layer": nn.LayerNorm}


def rope_frequencies(config: SmaLLMConfig) -> torch.Tensor:
    """Radians by which each pair of a head's entries turns per position, (K/2,); Su et al. 2021, section 3.2.2."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
    return config.rope_parameters["rope_theta"] ** -exponents


class SmaLLMRotaryEmbedding(nn.Module):
    """Cosines and sines of the angles at given positions, each (B, T, K)."""

    def __init__(self, config: SmaLLMConfig):
        super().__init__()
        self.inv_freq = nn.Buffer(rope_frequencies(config), persistent=False)

    @torch.no_grad()
    def forward(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """In float32 whatever the precision of the model: bfloat16 cannot tell position 256 from 257."""
        angles = position_ids[..., None].float() * self.inv_freq.float()  # (B, T, K/2)
        angles = torch.cat((angles, angles), dim=-1)  # (B, T, K): entry i is paired with i + K/2
        return angles.cos(), angles.sin()


def rotate(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Turn each pair of entries of `heads`, (B, H, T, K), by its angle, given as cosines and sines, (B, T, K)."""
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (heads * cosines.unsqueeze(1) + turned * sines.unsqueeze(1)).to(heads.dtype)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention as the textbook writes it; the only implementation that returns its weights, (B, H, T, S)."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)  # (B, G, S, K) -> (B, H, S, K)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    weights = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SmaLLMAttention(nn.Module):
    """Causal self-attention (Vaswani et al. 2017); several query heads may share one key-value head."""

    def __init__(self, config: SmaLLMConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        # These three names are read by the attention functions of the library.
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        query_width = config.num_attention_heads * config.head_dim
        key_value_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=config.attention_bias)
        # A mark on the layer itself: the library hands no module without weights of its own to `_init_weights`.
        self.o_proj.writes_to_residual_stream = True
        self.q_norm = SmaLLMRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = SmaLLMRMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what attention writes to the residual stream, (B, T, D), and its weights under eager attention."""
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)  # (B, T, D) -> (B, H, T, K)
        key = self.k_norm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)  # (B, T, D) -> (B, G, T, K)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # (B, G, S, K)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        mixed, weights = attention(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        mixed = mixed.reshape(*hidden_states.shape[:-1], -1).contiguous()  # (B, T, H, K) -> (B, T, H * K)
        return self.o_proj(mixed), weights


class SmaLLMMLP(nn.Module):
    """Two layers applied to every position alone, with a gate (Shazeer 2020) or without."""

    def __init__(self, config: SmaLLMConfig):
        super().__init__()
        if config.gated_mlp:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.down_proj.writes_to_residual_stream = True
        self.act_fn = ACT2FN[config.hidden_act]
        self.gated = config.gated_mlp

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what the MLP writes to the residual stream, (B, T, D)."""
        if self.gated:
            return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class SmaLLMDecoderLayer(GradientCheckpointingLayer):
    """One pre-norm block: attention and MLP each read a normalised copy of the residual stream and add to it."""

    def __init__(self, config: SmaLLMConfig, layer_idx: int):
        super().__init__()
        norm = NORMS[config.norm_type]
        self.input_layernorm = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = SmaLLMAttention(config, layer_idx)
        self.post_attention_layernorm = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = SmaLLMMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """Return the residual stream after this block, (B, T, D)."""
        mixed, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.dropout(mixed)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


class SmaLLMPreTrainedModel(PreTrainedModel):
    """What both models share: flags for the library, initialisation, and the one place that writes a folder."""

    config: SmaLLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("SmaLLMDecoderLayer",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": SmaLLMDecoderLayer, "attentions": SmaLLMAttention}  # noqa: RUF012
    _native_classes: dict[str, str]  # model type -> the class of `transformers` that computes the same function

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Linear weights normal and biases zero, norms one, output projections and embeddings as the config says."""
        super()._init_weights(module)
        config = self.config
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=config.embedding_initializer_range)
        elif isinstance(module, SmaLLMRotaryEmbedding):
            init.copy_(module.inv_freq, rope_frequencies(config))  # not in the weights file
        elif getattr(module, "writes_to_residual_stream", False):
            init.normal_(module.weight, std=config.output_projection_range)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ):
        """Write a folder that loads as a native class without a flag, and as this class with `trust_remote_code=True`.

        `config.json` is the native class's, with our `auto_map` and the two files of our code beside it; the weights
        have the native layout. What no native class can express is written as model type `smallm`, with a warning.

        Args:
            save_directory: The folder; made if missing.
            is_main_process: Whether this process writes. All processes call it where the weights are sharded.
            state_dict: Weights to save instead of the model's own, e.g. from `accelerator.get_state_dict`.
            push_to_hub: Whether to upload the folder; `repo_id`, `private` and the like as in `transformers`.
            **kwargs: Passed on to `PreTrainedModel.save_pretrained`.
        """
        native, reason = native_type(self.config)
        if native is None and is_main_process:
            logger.warning(f"{save_directory} holds model type 'smallm' and needs trust_remote_code=True: {reason}")
        hub_options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        state_dict = self.state_dict() if state_dict is None else state_dict
        state_dict = {name.replace("_orig_mod.", ""): tensor for name, tensor in state_dict.items()}  # torch.compile's
        for name in self.all_tied_weights_keys:  # gathered weights have lost their tie
            state_dict.pop(name, None)
        self._weight_conversions = None  # revert the registered layout on save, not only what the last load has used
        super().save_pretrained(
            save_directory,
            is_main_process=is_main_process,
            state_dict=state_dict,
            save_original_format=native == "gpt2",
            **kwargs,
        )
        if not self.should_save_on_this_rank(is_main_process):
            return
        config_file = Path(save_directory, "config.json")
        config_dict = json.loads(config_file.read_text(encoding="utf-8")) | {"auto_map": AUTO_MAP}
        if native is not None:
            config_dict = to_native(config_dict, native) | {"architectures": [self._native_classes[native]]}
        config_file.write_text(json.dumps(config_dict, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if push_to_hub:
            token = hub_options.get("token")
            repo_id = hub_options.pop("repo_id", Path(save_directory).name)
            repo_id = create_repo(repo_id, private=hub_options.pop("private", None), token=token, exist_ok=True).repo_id
            upload_folder(repo_id=repo_id, folder_path=save_directory, **hub_options)


class SmaLLMModel(SmaLLMPreTrainedModel):
    """Embeddings, the blocks and the last norm: token ids in, hidden states out."""

    _native_classes = {"qwen3": "Qwen3Model", "llama": "LlamaModel", "gpt2": "GPT2Model"}  # noqa: RUF012

    def __init__(self, config: SmaLLMConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        else:
            self.rotary_emb = SmaLLMRotaryEmbedding(config)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(SmaLLMDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = NORMS[config.norm_type](config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states of each position, which depend on no later one.

        Args:
            input_ids: Tokens, (B, T). Exactly one of this and `inputs_embeds` is given.
            attention_mask: 1 for tokens, 0 for padding, (B, S); S counts the cached positions too.
            position_ids: Place of each token in its text, (B, T). Where it restarts, and no cache and no mask is given,
                another text begins, and attention does not look across.
            past_key_values: Keys and values of earlier positions; extended in place.
            inputs_embeds: Vectors in place of `input_ids`, (B, T, D).
            use_cache: Whether to return `past_key_values`.
            **kwargs: `output_hidden_states`, `output_attentions` (under eager attention), options of the attention.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        # Only what the caller gave: from derived `position_ids` a compiled step would build a dense (B, 1, T, S) mask
        # instead of taking the causal kernel, and beside a cache of our own packed texts would go unnoticed.
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        learned = self.config.position_embedding_type == "learned"
        places = position_ids
        if places is None:
            past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
            places = token_places(attention_mask, past_length, inputs_embeds)
            if learned and attention_mask is None and places.shape[1] > self.config.max_position_embeddings:
                raise ValueError(
                    f"{places.shape[1]} tokens exceed max_position_embeddings={self.config.max_position_embeddings}; "
                    "shorten the text or use position_embedding_type='rope'"
                )
        if learned:
            inputs_embeds, rotation = inputs_embeds + self.embed_positions(places), None
        else:
            rotation = self.rotary_emb(places)
        hidden_states = self.dropout(inputs_embeds)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                rotation=rotation,
                past_key_values=past_key_values,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


def token_places(attention_mask: torch.Tensor | None, past_length: int, inputs_embeds: torch.Tensor) -> torch.Tensor:
    """Place of each token in its text, (B or 1, T): padding on the left does not count, cached tokens do."""
    columns = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_length  # (T,)
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
        return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, columns]
    return columns.unsqueeze(0)


class SmaLLMForCausalLM(SmaLLMPreTrainedModel, GenerationMixin):
    """SmaLLM with a head that scores every token of the vocabulary as the next one."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _native_classes = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}  # noqa: RUF012

    def __init__(self, config: SmaLLMConfig):
        super().__init__(config)
        self.model = SmaLLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Scores of the next token, and the loss where `labels` are given; the other arguments are `SmaLLMModel`'s.

        Args:
            input_ids: Tokens, (B, T).
            attention_mask: See `SmaLLMModel.forward`.
            position_ids: See `SmaLLMModel.forward`.
            past_key_values: See `SmaLLMModel.forward`.
            inputs_embeds: See `SmaLLMModel.forward`.
            labels: Tokens to predict, (B, T), equal to `input_ids` and shifted in here; -100 is not counted.
            use_cache: See `SmaLLMModel.forward`.
            logits_to_keep: Number of last positions, or indices of positions, to score; 0 scores all.
            **kwargs: `num_items_in_batch`, by which the summed loss is divided instead of the counted labels; the rest
                goes to `SmaLLMModel.forward`.

        Returns:
            `loss` in nats per counted label and `logits`, (B, T, V).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))  # (B, T, D) -> (B, T, V)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def gpt2_layout() -> list[WeightRenaming | WeightConverter]:
    """How weights in GPT-2's layout are read, and, reverted, how a classic model is saved.

    GPT-2 stores linear weights transposed, (in, out), and queries, keys and values as one matrix. Patterns are regular
    expressions; none matches a name of ours, so that a file in our own layout is read as it is.
    """
    projections = [f"self_attn.{name}_proj" for name in "qkv"]
    linear = {"attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}
    return [
        WeightRenaming(r"^transformer\.", r"^model\."),
        WeightRenaming("wte", "embed_tokens"),
        WeightRenaming("wpe", "embed_positions"),
        WeightRenaming(r"(?<!\w)h\.", r"layers\."),
        WeightRenaming("ln_1", "input_layernorm"),
        WeightRenaming("ln_2", "post_attention_layernorm"),
        WeightRenaming("ln_f", r"(?<!\w)norm"),
        WeightConverter("attn.c_attn.weight", [f"{name}.weight" for name in projections], [Transpose(0, 1), Chunk(0)]),
        WeightConverter("attn.c_attn.bias", [f"{name}.bias" for name in projections], [Chunk(0)]),
        *(WeightConverter(f"{gpt2}.weight", f"{ours}.weight", [Transpose(0, 1)]) for gpt2, ours in linear.items()),
        *(WeightRenaming(f"{gpt2}.bias", f"{ours}.bias") for gpt2, ours in linear.items()),
    ]


# By model type, so that it holds for both classes and for the copy of this file in a saved folder.
register_checkpoint_conversion_mapping(SmaLLMConfig.model_type, gpt2_layout(), overwrite=True)
