"""Exports: each format holds the model, is compared with it, and refuses what it cannot hold."""

import importlib.util
import json
import re
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from outsider import asked_outside
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from smallm_hf import SmaLLMConfig, SmaLLMForCausalLM
from smallm_hf.base.errors import UserError
from smallm_hf.export import gguf_file, onnx_file, parity
from smallm_hf.export.exporting import describe_export, export_model
from smallm_hf.tokenizing.encoding import encode_ordinary
from smallm_hf.tokenizing.loading import load_tokenizer, save_tokenizer
from smallm_hf.tokenizing.schemes import train_bpe

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "export.py"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
# Every native layout, with each of its switches in both positions, and one that no native class has.
KINDS = {
    "modern": {},
    "modern-untied": {"tie_word_embeddings": False, "head_dim": 12, "num_key_value_heads": 1},
    "llama": {"qk_norm": False, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "llama-biased": {"qk_norm": False, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "classic": {"preset": "classic", "intermediate_size": 40},
    "classic-untied": {"preset": "classic", "tie_word_embeddings": False, "rms_norm_eps": 1e-3},
    "classic-rms": {"preset": "classic", "norm_type": "rms"},
}
NATIVE = {kind: name for kind, name in zip(KINDS, ["qwen3", "qwen3", "llama", "llama", "gpt2", "gpt2"], strict=False)}
# What pre-tokenisers disagree about: contractions, digits, runs of spaces, newlines, scripts, marks, special tokens.
TEXTS = [
    "It's we'll, O'RE 'tis 12,345.67  and   3³½  ",
    "\n\n \t\r\n a\r  \n",
    "Ünïcödé café cafe\u0301 Привет 你好。 مرحبا हिन्दी ไทย 🙂👍🏽\u200d🌫️",
    "a\u00a0b\u2003c\u3000d\ufeff\x00\x7f_-–—…",
    "<|endoftext|> x<|pad|>",
    "",
]


@pytest.fixture(scope="module")
def own_bpe() -> PreTrainedTokenizerFast:
    return train_bpe([*parity.PROMPTS, *parity.PROMPTS], 300)


def save_model(folder: Path, tokenizer: PreTrainedTokenizerFast, fields: dict, dtype=torch.float32) -> str:
    """A model of random weights large enough that every one of them shows in the logits."""
    torch.manual_seed(0)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = SmaLLMForCausalLM(SmaLLMConfig(**{"vocab_size": len(tokenizer)} | SIZES | ids | fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, 64)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, own_bpe) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save_model(root / kind, own_bpe, fields) for kind, fields in KINDS.items()}


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- a native folder -------------------------------------------------------------------------------------------------

QUESTION = """
model = AutoModelForCausalLM.from_pretrained(folder)
tokens = AutoTokenizer.from_pretrained(folder)("def mean", return_tensors="pt")
report[kind] = [model.config.model_type, model(**tokens).logits.flatten().tolist()]
"""


def test_a_native_folder_loads_without_a_flag_where_our_package_cannot_be_imported(folders, tmp_path):
    for kind in NATIVE:
        export_model(folders[kind], "native", tmp_path / kind)
        wanted = {"config.json", "generation_config.json", "model.safetensors", "parity.json"}
        assert names(tmp_path / kind) == wanted | {"tokenizer.json", "tokenizer_config.json"}
        assert not re.search("smallm|auto_map|preset", (tmp_path / kind / "config.json").read_text(), re.IGNORECASE)
    for kind, (model_type, logits) in asked_outside(QUESTION, tmp_path, NATIVE).items():
        tokens = AutoTokenizer.from_pretrained(folders[kind])("def mean", return_tensors="pt")["input_ids"]
        source = SmaLLMForCausalLM.from_pretrained(folders[kind])
        assert model_type == NATIVE[kind]
        assert (torch.tensor(logits) - source(tokens).logits.flatten()).abs().max() < 1e-5


def test_a_native_folder_keeps_the_dtype_of_the_weights(own_bpe, tmp_path):
    source = save_model(tmp_path / "source", own_bpe, {}, dtype=torch.bfloat16)
    assert export_model(source, "native", tmp_path / "native")["outtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "native").dtype == torch.bfloat16


def test_a_native_config_says_what_older_readers_look_for(folders, tmp_path):
    export_model(folders["llama"], "native", tmp_path / "llama")
    export_model(folders["classic"], "native", tmp_path / "classic")
    assert json.loads((tmp_path / "llama" / "config.json").read_text())["rope_theta"] == 500.0
    assert AutoConfig.from_pretrained(tmp_path / "llama").rope_parameters["rope_theta"] == 500.0
    assert json.loads((tmp_path / "classic" / "config.json").read_text())["n_ctx"] == 64


@pytest.mark.parametrize("to", ["native", "gguf"])
def test_what_no_native_class_can_express_is_refused_with_the_reason(folders, tmp_path, to):
    pytest.importorskip("gguf", reason="writes GGUF")
    with pytest.raises(UserError, match=r"classic-rms: the nearest native class, gpt2, cannot express norm_type='rms'"):
        export_model(folders["classic-rms"], to, tmp_path / "export")
    assert not (tmp_path / "export").exists()


# --- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gguf():
    return pytest.importorskip("gguf", reason="writes and reads GGUF")


@pytest.fixture
def hidden_llama_cpp(monkeypatch):
    """As where llama-cpp-python is not installed."""
    find_spec = gguf_file.importlib.util.find_spec
    monkeypatch.setattr(
        gguf_file.importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else find_spec(name)
    )


@pytest.mark.parametrize("kind", NATIVE)
def test_transformers_reads_from_a_gguf_file_the_model_that_was_written(
    folders, kind, tmp_path, gguf, hidden_llama_cpp
):
    found = export_model(folders[kind], "gguf", tmp_path / "export")
    assert names(tmp_path / "export") == {"model-F32.gguf", "Modelfile", "parity.json"}
    assert list(found["engine"]) == ["gguf", "transformers", "torch"]
    assert found["relative_difference"] < 1e-5
    assert found["greedy_tokens_equal"]
    assert found == json.loads((tmp_path / "export" / "parity.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", NATIVE)
def test_llama_cpp_computes_the_model_that_was_written(folders, kind, tmp_path, gguf):
    pytest.importorskip("llama_cpp", reason="runs the file in llama.cpp")
    found = export_model(folders[kind], "gguf", tmp_path / "export")
    assert list(found["engine"]) == ["llama-cpp-python"]
    if NATIVE[kind] == "gpt2":
        assert found["relative_difference"] < 2e-3  # its GELU is a table
    else:
        assert found["relative_difference"] < 1e-5
        assert found["greedy_tokens_equal"]


def test_a_llama_cpp_that_cannot_load_the_file_is_distinguished_from_a_wrong_file(folders, tmp_path, gguf, monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("Failed to load model from file")

    outdated = types.SimpleNamespace(Llama=refuse, GGML_TYPE_F32=0)
    monkeypatch.setattr(gguf_file.importlib.util, "find_spec", lambda name: outdated)
    monkeypatch.setitem(sys.modules, "llama_cpp", outdated)
    with pytest.raises(UserError, match=r"llama-cpp-python cannot load model-F32.gguf .*; nothing was written, update"):
        export_model(folders["modern"], "gguf", tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("vocabulary", ["own", "gpt2"])
def test_llama_cpp_cuts_text_as_the_tokenizer_does(own_bpe, gpt2_folder, vocabulary, tmp_path, gguf):
    llama_cpp = pytest.importorskip("llama_cpp", reason="tokenises with llama.cpp")
    tokenizer = own_bpe if vocabulary == "own" else load_tokenizer(str(gpt2_folder))
    source = save_model(tmp_path / "source", tokenizer, {})
    export_model(source, "gguf", tmp_path / "export")
    llama = llama_cpp.Llama(str(tmp_path / "export" / "model-F32.gguf"), vocab_only=True, verbose=False)
    for text in TEXTS:
        assert llama.tokenize(text.encode(), add_bos=False, special=False) == encode_ordinary(tokenizer, [text])[0]
        assert llama.tokenize(text.encode(), special=True) == tokenizer(text)["input_ids"]
    assert (llama.token_bos(), llama.token_eos()) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


@pytest.mark.parametrize(
    ("outtype", "below", "above"), [("f16", 0.01, 1e-5), ("bf16", 0.06, 1e-4), ("q8_0", 0.2, 1e-4)]
)
def test_a_rounded_type_is_as_near_as_it_can_be(folders, outtype, below, above, tmp_path, gguf, hidden_llama_cpp):
    found = export_model(folders["llama"], "gguf", tmp_path / "export", outtype)
    assert found["outtype"] == outtype
    assert above < found["relative_difference"] < below
    reader = gguf.GGUFReader(tmp_path / "export" / f"model-{outtype.upper()}.gguf")
    kinds = {tensor.name: tensor.tensor_type.name.lower() for tensor in reader.tensors}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"f32"}
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {outtype}


def test_rows_that_q8_0_cannot_cut_into_blocks_are_f16(folders, tmp_path, gguf, hidden_llama_cpp):
    export_model(folders["classic"], "gguf", tmp_path / "export", "q8_0")
    reader = gguf.GGUFReader(tmp_path / "export" / "model-Q8_0.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"  # rows of 32
    assert kinds["blk.0.ffn_down.weight"] == "F16"  # rows of 40
    assert kinds["position_embd.weight"] == "F32"


def test_a_gguf_file_carries_the_tokenizer_and_names_rows_without_a_token(own_bpe, tmp_path, gguf, hidden_llama_cpp):
    source = save_model(tmp_path / "a-name", own_bpe, {"vocab_size": 302})
    export_model(source, "gguf", tmp_path / "export")
    fields = gguf.GGUFReader(tmp_path / "export" / "model-F32.gguf").fields
    read = {key: fields[f"tokenizer.ggml.{key}"].contents() for key in ("model", "pre", "tokens", "token_type")}
    assert (read["model"], read["pre"]) == ("gpt2", "gpt-2")
    assert read["tokens"][-4:] == ["<|endoftext|>", "<|pad|>", "[PAD300]", "[PAD301]"]
    kind = gguf.TokenType
    assert read["token_type"][-5:] == [kind.NORMAL, kind.CONTROL, kind.CONTROL, kind.UNUSED, kind.UNUSED]
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.ggml.padding_token_id"].contents() == own_bpe.pad_token_id
    assert fields["general.name"].contents() == "a-name"


def test_a_tokenizer_that_begins_texts_with_bos_says_so(own_bpe, gguf):
    backend = tokenizers.Tokenizer.from_str(own_bpe.backend_tokenizer.to_str())
    special = [("<|endoftext|>", own_bpe.bos_token_id)]
    backend.post_processor = tokenizers.processors.TemplateProcessing("<|endoftext|> $A", special_tokens=special)
    begins = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    backend.post_processor = tokenizers.processors.TemplateProcessing("$A <|endoftext|>", special_tokens=special)
    ends = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    assert (gguf_file._adds_bos(own_bpe), gguf_file._adds_bos(begins)) == (False, True)
    with pytest.raises(UserError, match=r"turns 'a' into \['a', '<\|endoftext\|>'\], which GGUF cannot express"):
        gguf_file._adds_bos(ends)


def test_ollama_continues_the_text_as_generate_does(folders, tmp_path, gguf, hidden_llama_cpp):
    export_model(folders["modern"], "gguf", tmp_path / "export")
    assert (tmp_path / "export" / "Modelfile").read_text() == (
        'FROM ./model-F32.gguf\nTEMPLATE """{{ .Prompt }}"""\nPARAMETER num_ctx 64\nPARAMETER temperature 0.8\n'
        'PARAMETER top_k 0\nPARAMETER top_p 1.0\nPARAMETER repeat_penalty 1.0\nPARAMETER stop "<|endoftext|>"\n'
    )


@pytest.mark.parametrize("config_class", [Qwen3Config, LlamaConfig, GPT2Config])
def test_every_field_of_a_config_is_written_or_required_or_known_to_be_without_effect(config_class):
    fields = gguf_file.settings(config_class())
    named = {*gguf_file.WRITTEN[config_class.model_type], *gguf_file.REQUIRED[config_class.model_type]}
    assert named <= fields.keys()
    assert fields.keys() <= named | gguf_file.WITHOUT_EFFECT


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Qwen3Config(hidden_act="relu2"), r"hidden_act='relu2' has no place in a GGUF file: .* qwen3 .*'silu'"),
        (Qwen3Config(attention_bias=True), r"attention_bias=True has no place"),
        (Qwen3Config(use_sliding_window=True), r"use_sliding_window=True has no place"),
        (
            LlamaConfig(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
            r"rope_type='linear' has no place|factor=2.0: how llama.cpp reads",
        ),
        (
            LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
            r"partial_rotary_factor=0.5: how llama.cpp reads this setting of a llama model is not known",
        ),
        (GPT2Config(activation_function="gelu"), r"activation_function='gelu' has no place .*'gelu_new'"),
        (GPT2Config(scale_attn_weights=False), r"scale_attn_weights=False has no place"),
        (GPT2Config(scale_attn_by_inverse_layer_idx=True), r"scale_attn_by_inverse_layer_idx=True has no place"),
    ],
)
def test_a_setting_that_llama_cpp_computes_otherwise_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        gguf_file.settings(config)


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("normalizer", {"type": "NFC"}, "a normalizer"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre-tokenizer Whitespace"),
        ("pre_tokenizer", {"add_prefix_space": True}, "add_prefix_space"),
        ("pre_tokenizer", {"use_regex": False}, "pre-tokenizer ByteLevel"),
        ("model", {"ignore_merges": True}, "options of its merges"),
        ("model", {"merges": []}, "no merges"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(own_bpe, part, changes, reason):
    content = json.loads(own_bpe.backend_tokenizer.to_str())
    content[part] = {**(content[part] or {}), **changes}
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    other = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    with pytest.raises(UserError, match=rf"only a byte-level BPE like GPT-2's can \(it has {reason}"):
        gguf_file.byte_level_bpe(other)


def test_a_tokenizer_of_sentencepiece_is_refused_with_what_is_different(shared_data, tmp_path, gguf):
    with pytest.raises(UserError, match=r"it has a normalizer, pre-tokenizer None, no token for some bytes, options"):
        export_model(str(shared_data / "pretrained" / "stories260K-hf"), "gguf", tmp_path / "export")
    assert not (tmp_path / "export").exists()


# --- ONNX ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def onnxruntime():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="writes ONNX")
    return pytest.importorskip("onnxruntime", reason="runs ONNX")


@pytest.mark.parametrize(
    ("kind", "largest_file_bytes", "files"),
    [
        ("modern-untied", 2**31, {"onnx/model.onnx"}),
        ("classic", 0, {"onnx/model.onnx", "onnx/model.onnx_data"}),  # weights too large for one file
        pytest.param("llama-biased", 2**31, {"onnx/model.onnx"}, marks=pytest.mark.slow),
        pytest.param("classic-rms", 2**31, {"onnx/model.onnx"}, marks=pytest.mark.slow),
    ],
)
def test_onnx_runtime_computes_the_model_whatever_batch_length_and_cache(
    folders, kind, largest_file_bytes, files, tmp_path, onnxruntime, monkeypatch
):
    monkeypatch.setattr(onnx_file, "LARGEST_FILE_BYTES", largest_file_bytes)
    export = tmp_path / "export"
    found = export_model(folders[kind], "onnx", export)
    assert found["relative_difference"] < 1e-5
    assert found["greedy_tokens_equal"]
    configs = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "parity.json"}
    assert names(export) == configs | files
    assert str(Path(onnx_file.__file__).parent).encode() not in (export / "onnx" / "model.onnx").read_bytes()

    source = SmaLLMForCausalLM.from_pretrained(folders[kind])
    config, session = source.config, onnxruntime.InferenceSession(export / "onnx" / "model.onnx")
    parts = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    inputs, outputs = session.get_inputs(), [output.name for output in session.get_outputs()]
    assert [given.name for given in inputs] == [
        *("input_ids", "attention_mask", "position_ids"),
        *(f"past_key_values.{part}" for part in parts),
    ]
    assert outputs == ["logits", *(f"present.{part}" for part in parts)]

    # Two rows, the first padded on the left, read in two parts through the cache.
    tokens = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    past = [np.zeros((2, config.num_key_value_heads, 0, config.head_dim), np.float32)] * 4
    pieces = []
    for start, end in ((0, 6), (6, 9)):
        feeds = [tokens[:, start:end].numpy(), mask[:, :end].numpy(), positions[:, start:end].numpy(), *past]
        logits, *past = session.run(None, {given.name: feed for given, feed in zip(inputs, feeds, strict=True)})
        pieces.append(logits)
    logits = torch.from_numpy(np.concatenate(pieces, axis=1))
    with torch.inference_mode():
        assert (logits[0, 4:] - source(tokens[:1, 4:]).logits[0]).abs().max() < 1e-4
        assert (logits[1] - source(tokens[1:]).logits[0]).abs().max() < 1e-4


# --- the comparison --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(folders, own_bpe) -> tuple[SmaLLMForCausalLM, PreTrainedTokenizerFast]:
    return SmaLLMForCausalLM.from_pretrained(folders["modern"]).eval(), own_bpe


def changed(source, change, tolerance=parity.FLOAT32, encode=None) -> parity.Runtime:
    """The source itself, behind a runtime that changes its logits."""
    model, tokenizer = source

    def begin():
        step = parity.begin_text(model)
        return lambda token_ids: change(step(token_ids))

    encode = encode or (lambda text: encode_ordinary(tokenizer, [text])[0])
    return parity.Runtime(("torch",), encode, begin, tolerance)


def swap_first_two(logits: np.ndarray) -> np.ndarray:
    first, second = np.argsort(-logits, axis=-1)[:, :2].T
    logits, rows = logits.copy(), np.arange(len(logits))
    logits[rows, first], logits[rows, second] = logits[rows, second], logits[rows, first].copy()
    return logits


def test_a_model_equals_itself(source):
    found = parity.check_parity(*source, changed(source, np.copy))
    assert found["relative_difference"] < 1e-5
    assert (found["top1_agreement"], found["ties"], found["greedy_tokens_equal"]) == (1, 0, True)
    assert [record["prompt"] for record in found["prompts"]] == list(parity.PROMPTS)
    assert found["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("error", [0.01, np.nan, np.inf])
def test_logits_too_far_away_or_not_finite_fail(source, error):
    runtime = changed(source, lambda logits: logits + np.float32(error))
    with pytest.raises(UserError, match=r"logits differ from the source's by .* of the largest, 0.0001 is allowed"):
        parity.check_parity(*source, runtime)


def test_another_first_choice_is_accepted_only_within_the_tolerance(source):
    found = parity.check_parity(*source, changed(source, swap_first_two, parity.Tolerance(10.0)))
    assert (found["top1_agreement"], found["greedy_tokens_equal"]) == (0, False)
    assert found["ties"] == sum(record["tokens"] for record in found["prompts"])
    with pytest.raises(UserError, match=r"first choice is the source's at 0.0% of the places, 50.0% is needed"):
        parity.check_parity(*source, changed(source, swap_first_two, parity.Tolerance(10.0, top1_agreement=0.5)))


def test_a_runtime_that_cuts_text_otherwise_fails(source):
    with pytest.raises(UserError, match=r"cuts 'Once upon .* into 3 tokens that are not the \d+ of the source's"):
        parity.check_parity(*source, changed(source, np.copy, encode=lambda text: [1, 2, 3]))


def test_a_failed_comparison_leaves_no_file(folders, tmp_path, gguf, hidden_llama_cpp, monkeypatch):
    monkeypatch.setattr(gguf_file, "_interleaved", lambda weights, heads: weights)
    with pytest.raises(UserError, match="logits differ from the source's by"):
        export_model(folders["llama"], "gguf", tmp_path / "exports" / "gguf")
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_float16_fail_instead_of_becoming_infinite(own_bpe, tmp_path, gguf, hidden_llama_cpp):
    source = save_model(tmp_path / "source", own_bpe, {})
    model = SmaLLMForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(source)
    with pytest.raises(UserError, match="choose another target or type"):
        export_model(source, "gguf", tmp_path / "export", "f16")
    assert not (tmp_path / "export").exists()


# --- a user's mistakes -----------------------------------------------------------------------------------------------


def run_script(arguments: list[str], monkeypatch) -> int | None:
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as ended:
        return ended.code


def test_the_script_writes_and_says_how_near_it_is(folders, tmp_path, monkeypatch, capsys):
    export = tmp_path / "export"
    assert (
        run_script(["--model", folders["modern"], "--to", "native", "--output_dir", str(export)], monkeypatch) is None
    )
    printed = capsys.readouterr().out
    assert f"{export}/model.safetensors" in printed
    assert re.search(
        r"checked with transformers \S+, torch \S+ on 5 prompts: logits within \S+ of the source's", printed
    )
    assert printed == describe_export(json.loads((export / "parity.json").read_text(encoding="utf-8")), export) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "tflite"], "Got value: tflite"),
        (["--to", "gguf", "--outtype", "q4_0"], "Got value: q4_0"),
        (["--to", "onnx", "--outtype", "f16"], "--outtype f16 is for --to gguf; leave it out with --to onnx"),
        (["--to", "native", "--model", "{run}"], "is a run, which holds several models; did you mean {run}/best?"),
        (["--to", "native", "--model", "{empty}"], "holds no config"),
        (["--to", "native", "--model", "{missing}"], "is not a folder"),
        (["--to", "native", "--output_dir", "{full}"], "holds files already; give another, or empty it first"),
        (["--to", "native", "--model", "{encoder}"], "is of type bert; the types that can be exported are"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(folders, own_bpe, tmp_path, arguments, message, monkeypatch, capsys):
    places = {name: tmp_path / name for name in ("run", "empty", "missing", "full", "encoder")}
    for name in ("empty", "full"):
        places[name].mkdir()
    (places["full"] / "kept.txt").write_text("kept")
    if "{run}" in arguments:
        save_model(places["run"] / "best", own_bpe, {})
    if "{encoder}" in arguments:
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        BertLMHeadModel(BertConfig(vocab_size=300, **sizes)).save_pretrained(places["encoder"])
        save_tokenizer(own_bpe, places["encoder"], 64)
    given = {"--model": folders["modern"], "--output_dir": str(tmp_path / "export")}
    given |= {name: value.format(**places) for name, value in zip(arguments[::2], arguments[1::2], strict=True)}
    assert run_script([part for pair in given.items() for part in pair], monkeypatch) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[-1].startswith("error: ")
    assert message.format(**places) in printed[-1]
    assert (places["full"] / "kept.txt").read_text() == "kept"
    assert not (tmp_path / "export").exists()


def test_a_tokenizer_of_another_model_is_refused(own_bpe, tmp_path):
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=290, n_positions=16, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    save_tokenizer(own_bpe, tmp_path, 16)
    with pytest.raises(UserError, match=r"has 300 entries and the model 290; put the tokenizer of this model there"):
        export_model(str(tmp_path), "native", tmp_path / "export")


@pytest.mark.parametrize(("to", "packages"), [("gguf", "gguf"), ("onnx", "onnx, onnxscript, onnxruntime")])
def test_a_missing_package_is_named_with_the_command_that_brings_it(folders, tmp_path, to, packages, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf'--to {to} needs {packages}; pip install "smallm_hf\[export\]"'):
        export_model(folders["modern"], to, tmp_path / "export")


def test_a_foreign_model_of_a_native_class_is_exported(gpt2_folder, tmp_path, gguf, hidden_llama_cpp):
    torch.manual_seed(0)
    foreign = tmp_path / "foreign"
    GPT2LMHeadModel(GPT2Config(n_positions=32, n_embd=8, n_layer=1, n_head=2)).save_pretrained(foreign)
    load_tokenizer(str(gpt2_folder)).save_pretrained(foreign)
    found = export_model(str(foreign), "native", tmp_path / "export")
    assert (found["source_class"], found["greedy_tokens_equal"]) == ("GPT2LMHeadModel", True)
