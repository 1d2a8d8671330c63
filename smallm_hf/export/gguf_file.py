"""A GGUF file for llama.cpp, Ollama and LM Studio, and a Modelfile beside it.

llama.cpp computes a graph chosen by the name of the architecture: a setting that this graph lacks would be dropped
without a word. Every field of a config is therefore named here: written, or held to the values the graph computes
with, or without effect on it. A field that is not named stops the export.
"""

import contextlib
import dataclasses
import importlib.util
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from smallm_hf.base.errors import UserError, one_line
from smallm_hf.base.settings import Sampling
from smallm_hf.export.configuration import OutType
from smallm_hf.export.parity import FLOAT32, GREEDY_TOKENS, PROMPTS, NextLogits, Runtime, Tolerance, torch_runtime
from smallm_hf.inspection import trained_length
from smallm_hf.tokenizing.encoding import encode_ordinary, start_token_id

# --- what the config says --------------------------------------------------------------------------------------------

_ROTARY_WRITTEN = {
    "vocab_size": ["add_vocab_size"],
    "hidden_size": ["add_embedding_length"],
    "intermediate_size": ["add_feed_forward_length"],
    "num_hidden_layers": ["add_block_count"],
    "num_attention_heads": ["add_head_count"],
    "num_key_value_heads": ["add_head_count_kv"],
    "head_dim": ["add_key_length", "add_value_length", "add_rope_dimension_count"],
    "max_position_embeddings": ["add_context_length"],
    "rms_norm_eps": ["add_layer_norm_rms_eps"],
    "rope_theta": ["add_rope_freq_base"],
}
# Field of the config -> methods of the writer that take its value.
WRITTEN = {
    "qwen3": _ROTARY_WRITTEN,
    "llama": _ROTARY_WRITTEN,
    "gpt2": {
        "vocab_size": ["add_vocab_size"],
        "n_embd": ["add_embedding_length"],
        "n_inner": ["add_feed_forward_length"],
        "n_layer": ["add_block_count"],
        "n_head": ["add_head_count"],
        "n_positions": ["add_context_length"],
        "layer_norm_epsilon": ["add_layer_norm_eps"],
    },
}
# Field -> the values with which it means what llama.cpp's graph computes. Its GELU is the approximation by tanh; its
# Qwen3 has no bias behind the attention.
REQUIRED = {
    "qwen3": {
        "hidden_act": ["silu", "swish"],
        "rope_type": ["default"],
        "attention_bias": [False],
        "use_sliding_window": [False],
    },
    "llama": {"hidden_act": ["silu", "swish"], "rope_type": ["default"]},
    "gpt2": {
        "activation_function": ["gelu_new", "gelu_pytorch_tanh", "gelu_fast"],
        "scale_attn_weights": [True],
        "scale_attn_by_inverse_layer_idx": [False],
        "add_cross_attention": [False],
    },
}
# Seen in the tensors, given by the tokenizer, for training only, or of other heads than the language model's.
WITHOUT_EFFECT = {
    *("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "initializer_range"),
    *("attention_bias", "mlp_bias", "attention_dropout", "pretraining_tp"),
    *("sliding_window", "max_window_layers", "layer_types"),  # of use_sliding_window
    *("embd_pdrop", "resid_pdrop", "attn_pdrop", "reorder_and_upcast_attn"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
}


def settings(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a qwen3, llama or gpt2 config, with defaults derived and `rope_parameters` laid flat.

    Raises:
        UserError: llama.cpp would compute one of them otherwise, or it is not known here.
    """
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = [field.name for field in dataclasses.fields(config) if field.name not in inherited]
    fields = {name: getattr(config, name) for name in own}
    fields |= fields.pop("rope_parameters", {})
    if config.model_type == "gpt2":
        fields["n_inner"] = config.n_inner or 4 * config.n_embd
    required = REQUIRED[config.model_type]
    for name, value in fields.items():
        if value not in required.get(name, [value]):
            raise UserError(
                f"{name}={value!r} has no place in a GGUF file: llama.cpp computes {config.model_type} models with "
                f"{name}={required[name][0]!r}; export --to onnx instead"
            )
        if name not in required.keys() | WRITTEN[config.model_type].keys() | WITHOUT_EFFECT:
            raise UserError(
                f"{name}={value!r}: how llama.cpp reads this setting of a {config.model_type} model is not known here; "
                "export --to onnx instead"
            )
    return fields


# --- what the tokenizer says -----------------------------------------------------------------------------------------


def byte_level_bpe(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The contents of `tokenizer.json`, if it is a byte-level BPE that cuts text as GPT-2's does.

    That is the one llama.cpp knows as pre-tokenizer `gpt-2`, of whatever vocabulary.

    Raises:
        UserError: it is another tokenizer, and what is different.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend else {"model": {"type": type(tokenizer).__name__}}
    model, cut, added = content["model"], content.get("pre_tokenizer") or {}, content.get("added_tokens", ())
    of_merges = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    of_spaces = ("lstrip", "rstrip", "single_word")
    differences = {
        f"model type {model['type']}": model["type"] != "BPE",
        "a normalizer": content.get("normalizer"),
        f"pre-tokenizer {cut.get('type')}": cut.get("type") != "ByteLevel" or not cut.get("use_regex", True),
        "add_prefix_space": cut.get("add_prefix_space"),
        "no token for some bytes": not set(bytes_to_unicode().values()) <= set(model.get("vocab", ())),
        "no merges": not model.get("merges"),
        "options of its merges": any(model.get(name) for name in of_merges),
        "special tokens that take in spaces": any(token[name] for token in added for name in of_spaces),
        "no eos": tokenizer.eos_token_id is None,
    }
    if found := [name for name, differs in differences.items() if differs]:
        raise UserError(
            f"this tokenizer cannot be written to GGUF, only a byte-level BPE like GPT-2's can (it has "
            f"{', '.join(found)}); use llama.cpp's own convert_hf_to_gguf.py, or export --to onnx"
        )
    return content


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts bos before a text; anything else it might add cannot be written."""
    added = tokenizer("a")["input_ids"]
    ordinary = encode_ordinary(tokenizer, ["a"])[0]
    if added not in (ordinary, [tokenizer.bos_token_id, *ordinary]):
        raise UserError(
            f"this tokenizer turns 'a' into {tokenizer.convert_ids_to_tokens(added)}, which GGUF cannot express; "
            "only a bos before the text can be written"
        )
    return added != ordinary


def _write_tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    from gguf import TokenType

    content = byte_level_bpe(tokenizer)
    names = {token_id: name for name, token_id in tokenizer.get_vocab().items()}
    added = {token["id"]: token["special"] for token in content["added_tokens"]}
    kinds = {None: TokenType.NORMAL, True: TokenType.CONTROL, False: TokenType.USER_DEFINED}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names.get(token_id, f"[PAD{token_id}]") for token_id in range(vocab_size)])
    writer.add_token_types(
        [kinds[added.get(token_id)] if token_id in names else TokenType.UNUSED for token_id in range(vocab_size)]
    )
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_bos_token_id(start_token_id(tokenizer))
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(_adds_bos(tokenizer))


# --- the weights -----------------------------------------------------------------------------------------------------


def _interleaved(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys for llama.cpp's Llama, which turns entries 2i and 2i + 1 of a head, not i and i + K/2."""
    halves = weights.reshape(heads, 2, -1, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    """Names and float32 weights, laid out as llama.cpp reads them."""
    import gguf

    config = model.config
    architecture = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[config.model_type]
    gguf_names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        gguf_name = gguf_names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise UserError(
                f"{name} has no name in a GGUF file of a {config.model_type} model; export --to onnx instead"
            )
        weights = tensor.float().numpy()
        if config.model_type == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            weights = weights.T
        if config.model_type == "llama" and ".q_proj." in name:
            weights = _interleaved(weights, config.num_attention_heads)
        if config.model_type == "llama" and ".k_proj." in name:
            weights = _interleaved(weights, config.num_key_value_heads)
        yield gguf_name, np.ascontiguousarray(weights)


# Ollama's recipe: a base model continues the text as it is, drawn as scripts/generate.py draws.
MODELFILE = '''FROM ./{file}
TEMPLATE """{{{{ .Prompt }}}}"""
PARAMETER num_ctx {context_length}
PARAMETER temperature {draw.temperature}
PARAMETER top_k {draw.top_k}
PARAMETER top_p {draw.top_p}
PARAMETER repeat_penalty {draw.repetition_penalty}
PARAMETER stop "{eos}"
'''


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, name: str, outtype: OutType
) -> Runtime:
    """Writes `model-OUTTYPE.gguf` and a Modelfile for `ollama create`, and returns what reads the former.

    Matrices get the type asked for (under `q8_0` those whose rows are no multiple of 32 long get f16); vectors and the
    table of positions stay f32, as llama.cpp's converter has it.

    Raises:
        UserError: config or tokenizer cannot be expressed.
    """
    import gguf

    fields = settings(model.config)
    file = folder / f"model-{outtype.upper()}.gguf"
    writer = gguf.GGUFWriter(file, model.config.model_type)
    writer.add_name(name)
    prefix = "ALL" if outtype == "f32" else "MOSTLY"
    writer.add_file_type(gguf.LlamaFileType[f"{prefix}_{outtype.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for field, methods in WRITTEN[model.config.model_type].items():
        for method in methods:
            getattr(writer, method)(fields[field])
    _write_tokenizer(writer, tokenizer, model.config.vocab_size)
    wanted = gguf.GGMLQuantizationType[outtype.upper()]
    for gguf_name, weights in _tensors(model):
        kind = wanted
        if weights.ndim == 1 or gguf_name.startswith("position_embd"):
            kind = gguf.GGMLQuantizationType.F32
        elif weights.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
            kind = gguf.GGMLQuantizationType.F16
        with np.errstate(over="ignore"):  # what float16 cannot hold, the comparison will find
            writer.add_tensor(gguf_name, gguf.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    modelfile = MODELFILE.format(
        file=file.name,
        context_length=trained_length(model) or model.config.max_position_embeddings,
        eos=tokenizer.eos_token,
        draw=Sampling(),
    )
    (folder / "Modelfile").write_text(modelfile, encoding="utf-8")
    return gguf_runtime(file, model.config, outtype)


# --- reading it back -------------------------------------------------------------------------------------------------

# About three times the largest difference and disagreement measured over three trained models (4 to 45 million
# parameters) and four random ones, which amplify rounding several times more, by both readers. As shares of the
# largest logit: f16 0.003, bf16 0.019, q8_0 0.072; llama.cpp also rounds what it multiplies these weights with.
TOLERANCES = {
    "f32": FLOAT32,
    "f16": Tolerance(0.01, top1_agreement=0.95),
    "bf16": Tolerance(0.06, top1_agreement=0.9),
    "q8_0": Tolerance(0.2, top1_agreement=0.75),
}
# llama.cpp looks GELU up in a table of float16: 0.0007 measured at most, over six models.
GELU_TABLE = Tolerance(0.002)

# Fields of the config that transformers does not read from a GGUF file.
UNREAD_BY_TRANSFORMERS = {
    "qwen3": ["head_dim"],
    "llama": ["attention_bias", "mlp_bias"],
    "gpt2": ["n_positions", "n_inner"],
}


def gguf_runtime(file: Path, config: PreTrainedConfig, outtype: OutType) -> Runtime:
    """llama.cpp where llama-cpp-python is installed, else the reader of `transformers`, which dequantises."""
    tolerance = TOLERANCES[outtype]
    if importlib.util.find_spec("llama_cpp"):
        gelu = outtype == "f32" and config.model_type == "gpt2"
        return _llama_cpp_runtime(file, GELU_TABLE if gelu else tolerance)
    unread = {name: getattr(config, name) for name in UNREAD_BY_TRANSFORMERS[config.model_type]}
    runtime = torch_runtime(file.parent, gguf_file=file.name, **unread)
    return dataclasses.replace(runtime, packages=("gguf", *runtime.packages), tolerance=tolerance)


def _llama_cpp_runtime(file: Path, tolerance: Tolerance) -> Runtime:
    from llama_cpp import GGML_TYPE_F32, Llama

    longest = max(len(prompt.encode()) for prompt in PROMPTS) + 1 + GREEDY_TOKENS
    # In float16, its default, the cache would add an error of its own.
    cache = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32, "flash_attn": False}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its warnings come whatever `verbose` says
            llama = Llama(str(file), n_ctx=longest, n_gpu_layers=0, logits_all=True, verbose=False, **cache)
    except ValueError as error:
        raise UserError(
            f"the installed llama-cpp-python cannot load {file.name} ({one_line(error)}); nothing was written, update "
            "it, or uninstall it to have transformers check the file"
        ) from error

    def encode(text: str) -> list[int]:
        return llama.tokenize(text.encode(), add_bos=False, special=False)

    def begin() -> NextLogits:
        llama.reset()

        def step(token_ids: Sequence[int]) -> np.ndarray:
            llama.eval(token_ids)
            return np.array(llama.scores[llama.n_tokens - len(token_ids) : llama.n_tokens])

        return step

    return Runtime(("llama-cpp-python",), encode, begin, tolerance)
