"""From a model's folder to a checked export, or to one line that says why not.

What `scripts/export.py` takes is the signature of `export_model`. What it needs is imported behind its checks, so that
neither `--help` nor a mistake waits for torch.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallm_hf.base.errors import UserError
from smallm_hf.base.folders import replacing, require_writable
from smallm_hf.base.plain_json import write_json
from smallm_hf.base.settings import RUN_MODELS, is_model_folder
from smallm_hf.export.configuration import OutType, Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What a target needs beyond the packages that are always there.
NEEDED = {"native": (), "gguf": ("gguf",), "onnx": ("onnx", "onnxscript", "onnxruntime")}


def export_model(model: str, to: Target, output_dir: Path, outtype: OutType = "f32") -> dict[str, Any]:
    """Writes a model for other programs and compares it with its source; what fails the comparison is not kept.

    Args:
        model: a folder that `save_pretrained` wrote, such as RUN/best, or a Hub id; its tokenizer with it.
        to: `native` is a plain Qwen3, Llama or GPT-2 folder without our code, `gguf` a file for llama.cpp and Ollama,
            `onnx` a graph with a key-value cache for ONNX Runtime and transformers.js.
        output_dir: a new folder, or an empty one.
        outtype: type of a GGUF file's matrices; `f32` holds exactly what was trained.

    Returns:
        What `parity.json` in the folder holds.

    Raises:
        UserError: no such model, one that the target cannot express, a package that is missing, a folder with files
            in it, or a comparison that failed.
    """
    if outtype != "f32" and to != "gguf":
        raise UserError(f"--outtype {outtype} is for --to gguf; leave it out with --to {to}")
    if missing := [package for package in NEEDED[to] if importlib.util.find_spec(package) is None]:
        raise UserError(f'--to {to} needs {", ".join(missing)}; pip install "smallm_hf[export]"')
    require_writable(output_dir, "--output_dir", folder=True)
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise UserError(f"--output_dir {output_dir} holds files already; give another, or empty it first")
    is_model_folder(model)

    from transformers.utils.logging import disable_progress_bar

    from smallm_hf.export.gguf_file import write_gguf
    from smallm_hf.export.native import write_native
    from smallm_hf.export.onnx_file import write_onnx
    from smallm_hf.export.parity import check_parity

    disable_progress_bar()
    exported, source, tokenizer = _load(model, to)
    with replacing(output_dir.absolute()) as folder:
        if to == "gguf":
            path = Path(model).absolute()  # named as its folder is, or the run it lies in
            name = path.parent.name if path.name in RUN_MODELS else path.name
            runtime = write_gguf(exported, tokenizer, folder, name, outtype)
        else:
            runtime = {"native": write_native, "onnx": write_onnx}[to](exported, tokenizer, folder)
        weights = outtype if to == "gguf" else str(exported.dtype).removeprefix("torch.")
        parity = {"source": model, "to": to, "outtype": weights, **check_parity(source, tokenizer, runtime)}
        write_json(folder / "parity.json", parity)
    return parity


def _load(model: str, to: Target) -> "tuple[PreTrainedModel, PreTrainedModel, PreTrainedTokenizerBase]":
    """The model to write, in the class and dtype that anybody would get; its source in float32; their tokenizer.

    The source of a model of ours is the class that was trained.
    """
    from smallm_hf.families import FAMILIES, family_of
    from smallm_hf.inspection import refuse_lookahead
    from smallm_hf.models.configuration_smallm import NATIVE_SWITCHES
    from smallm_hf.pretrained import load_causal_lm, pretrained_config, pretrained_model

    exported, tokenizer = load_causal_lm(model, device="cpu")
    config = exported.config
    exported.to(config.dtype)  # as it is stored: what is written does not depend on what this machine multiplies well
    family = family_of(config)
    if to not in family.exports and config.model_type in FAMILIES:
        other = "".join(f"; export --to {target} instead" for target in family.exports)
        raise UserError(f"--to {to} cannot express {model}: {family.native(config)[1]}{other}")
    if to not in family.exports:
        known = ", ".join([*NATIVE_SWITCHES, *(name for name, ours in FAMILIES.items() if ours.exports)])
        raise UserError(f"--model {model} is of type {config.model_type}; the types that can be exported are {known}")
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"the tokenizer in {model} has {len(tokenizer)} entries and the model {config.vocab_size}; "
            "put the tokenizer of this model there"
        )
    source = pretrained_model(model, pretrained_config(model)).eval()
    refuse_lookahead(source)
    return exported, source, tokenizer


def describe_export(parity: dict[str, Any], output_dir: Path) -> str:
    """What was written and how far it is from its source, as the lines a user reads."""
    files = sorted(file for file in output_dir.rglob("*") if file.is_file())
    runtime = ", ".join(f"{name} {version}" for name, version in parity["engine"].items())
    if parity["greedy_tokens_equal"]:
        greedy = "equal"
    elif parity["tolerance"]["top1_agreement"] is None:
        greedy = f"equal but for {parity['ties']} ties"
    else:
        greedy = "not all equal"
    return "\n".join(
        [
            *(f"{file}  {file.stat().st_size:,} bytes" for file in files),
            f"checked with {runtime} on {len(parity['prompts'])} prompts: logits within "
            f"{parity['max_abs_difference']:.2g} of the source's ({parity['relative_difference']:.2g} of the largest), "
            f"same first choice at {parity['top1_agreement']:.1%} of the places, greedy tokens {greedy}",
        ]
    )
