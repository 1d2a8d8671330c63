"""Given tokenizers, GPT-2's or any other fast one; how a tokenizer is saved and told from another.

Every tokenizer that is loaded here is a `PreTrainedTokenizerFast` with an eos and a pad token.
"""

import hashlib
import itertools
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from huggingface_hub import snapshot_download
from tiktoken.load import load_tiktoken_bpe
from tokenizers.processors import Sequence, TemplateProcessing
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from smallm_hf.base.errors import UserError
from smallm_hf.base.hub_access import require_hub

EOS = "<|endoftext|>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
GPT2 = "gpt2"
GPT2_ENTRIES = 50257
GPT2_HUB_IDS = ("openai-community/gpt2", "gpt2")
GPT2_FINGERPRINT = "81a6a21652e9c0621035edc46178e084035ec2e14e2578f0900e4d420a39f1e3"
# Where tiktoken keeps GPT-2's files (under the sha1 of the address) and what they must hash to.
TIKTOKEN_FILES = {
    "encoder.json": (
        "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
    "vocab.bpe": (
        "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
    "r50k_base.tiktoken": (
        "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken",
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    ),
}


def load_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """Loads GPT-2's tokenizer (`gpt2`) or any other by folder or Hub id.

    Looks in a local folder, the local Hugging Face cache, for GPT-2 tiktoken's cache, and only then on the Hub. A
    tokenizer without a pad token pads with eos, as is the custom for GPT-2.

    Raises:
        UserError: not found, not a fast tokenizer, without eos, or called `gpt2` and holding something else.
    """
    tokenizer = _from_folder(source) or _from_huggingface_cache(source)
    if tokenizer is None and source == GPT2:
        tokenizer = _from_tiktoken_cache()
    if tokenizer is None:
        tokenizer = _from_hub(source)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"tokenizer.source={source} is a {type(tokenizer).__name__}, not a fast tokenizer; "
            "use one with a tokenizer.json"
        )
    if tokenizer.eos_token is None:
        raise UserError(f"tokenizer.source={source} has no eos token to close documents; set eos_token in its folder")
    if source == GPT2 and tokenizer_fingerprint(tokenizer) != GPT2_FINGERPRINT:
        raise UserError(
            f"tokenizer.source=gpt2 was found at {tokenizer.name_or_path}, which does not hold GPT-2's vocabulary; "
            f"rename that folder, or give its path as ./{tokenizer.name_or_path} to use it all the same"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _from_folder(source: str) -> PreTrainedTokenizerFast | None:
    folder = Path(source).expanduser()
    found = {name for name in TOKENIZER_FILES if (folder / name).is_file()}
    if found & {"tokenizer.json", "tokenizer_config.json"}:
        return _auto_tokenizer(str(folder), source)
    if {"vocab.json", "merges.txt"} <= found:
        return GPT2Tokenizer.from_pretrained(str(folder))
    if source == GPT2 or (not folder.exists() and not source.startswith((".", "/", "~")) and source.count("/") <= 1):
        return None
    state = "holds neither tokenizer.json nor vocab.json and merges.txt" if folder.is_dir() else "is not a folder"
    raise UserError(f"tokenizer.source={source} {state}; give bpe, gpt2, a tokenizer's folder or a Hub id")


def _from_huggingface_cache(source: str) -> PreTrainedTokenizerFast | None:
    for name in GPT2_HUB_IDS if source == GPT2 else (source,):
        with suppress(OSError, ValueError):  # not cached, not completely, or no name that could be
            return _from_folder(snapshot_download(name, local_files_only=True, allow_patterns=TOKENIZER_FILES))
    return None


def _from_tiktoken_cache() -> PreTrainedTokenizerFast | None:
    folders = [os.environ.get("TIKTOKEN_CACHE_DIR"), os.environ.get("DATA_GYM_CACHE_DIR")]
    for folder in filter(None, [*folders, os.path.join(tempfile.gettempdir(), "data-gym-cache")]):
        files = {}
        for name, (url, sha256) in TIKTOKEN_FILES.items():
            path = Path(folder, hashlib.sha1(url.encode()).hexdigest())
            if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                files[name] = path
        if "encoder.json" in files and "vocab.bpe" in files:
            return GPT2Tokenizer(str(files["encoder.json"]), str(files["vocab.bpe"]))
        if "r50k_base.tiktoken" in files:
            return _from_ranks(load_tiktoken_bpe(str(files["r50k_base.tiktoken"])))
    return None


def _from_ranks(ranks: dict[bytes, int]) -> PreTrainedTokenizerFast:
    """tiktoken stores ranks only; the merge that made a token is what byte pairs of lower rank leave of it."""
    letters = bytes_to_unicode()

    def name(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token in sorted(ranks, key=ranks.get):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
            first = pairs.index(min(pairs))
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        if len(parts) == 2:
            merges.append((name(parts[0]), name(parts[1])))
    return GPT2Tokenizer({**{name(token): rank for token, rank in ranks.items()}, EOS: len(ranks)}, merges)


def _from_hub(source: str) -> PreTrainedTokenizerFast:
    gpt2 = ", a folder named gpt2 with vocab.json and merges.txt, or TIKTOKEN_CACHE_DIR" if source == GPT2 else ""
    require_hub(
        f"tokenizer.source={source}",
        f"give the folder of a local tokenizer as tokenizer.source{gpt2}, or tokenizer.source=bpe to train your own",
    )
    return _auto_tokenizer(GPT2_HUB_IDS[0] if source == GPT2 else source, source)


def _auto_tokenizer(name: str, source: str) -> PreTrainedTokenizerFast:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"tokenizer.source={source} cannot be loaded ({reason}); give bpe, gpt2, a tokenizer's folder or a Hub id"
        ) from error


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | os.PathLike, model_max_length: int) -> None:
    """Writes a folder that plain `AutoTokenizer.from_pretrained` loads, with `model_max_length` (tokens) in it."""
    tokenizer.model_max_length = tokenizer.init_kwargs["model_max_length"] = model_max_length
    for leak in ("is_local", "local_files_only"):  # transformers would write how *we* loaded it into the file
        tokenizer.init_kwargs.pop(leak, None)
    tokenizer.save_pretrained(folder)
    if type(tokenizer) is PreTrainedTokenizerFast:  # transformers 5 writes a name that transformers 4 does not know
        path = Path(folder, "tokenizer_config.json")
        written = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        path.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def close_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    """Makes a tokenizer that adds nothing to a text close it with eos, as an encoder-decoder reads and writes texts."""
    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        return
    eos, backend = tokenizer.eos_token, tokenizer.backend_tokenizer
    closing = TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)])
    backend.post_processor = Sequence([backend.post_processor, closing]) if backend.post_processor else closing


def is_lossless(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether every text is known to come back from its ids as it was: a BPE of bytes that normalises nothing."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model, cut = backend["model"], backend["pre_tokenizer"] or {}
    steps = cut.get("pretokenizers", [cut])
    return (
        model["type"] == "BPE"
        and set(bytes_to_unicode().values()) <= set(model["vocab"])
        and any(step.get("type") == "ByteLevel" for step in steps)
        and not any(step.get("add_prefix_space") for step in steps)
        and backend["normalizer"] is None
    )


def lowers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer reads capitals as small letters."""
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    return normalizer is not None and "A" not in normalizer.normalize_str("A")


def count_entries(source: str) -> int:
    """How many entries a given tokenizer has; GPT-2's need not be at hand."""
    return GPT2_ENTRIES if source == GPT2 else len(load_tokenizer(source))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns a sha256 over all that decides which ids a text becomes, and over eos, which is put between texts.

    Loading from other files, saving again, the pad token and `model_max_length` leave it as it is.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if isinstance(backend["pre_tokenizer"], dict):
        backend["pre_tokenizer"].pop("trim_offsets", None)  # says where a token stood, not which it is
    content = {
        "model": {key: value for key, value in backend["model"].items() if value},
        "normalizer": backend["normalizer"],
        "pre_tokenizer": backend["pre_tokenizer"],
        "added_tokens": [(token["id"], token["content"]) for token in backend["added_tokens"]],
        "eos_token": tokenizer.eos_token,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
