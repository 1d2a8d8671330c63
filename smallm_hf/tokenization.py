"""Tokenizers: GPT-2's, one's own byte-level BPE in the same class, or any fast tokenizer of others.

Every tokenizer that leaves this file is a `PreTrainedTokenizerFast` with an eos and a pad token. The corpus is encoded
as ordinary text: a document that happens to contain the characters `<|endoftext|>` does not end there.
"""

import hashlib
import itertools
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import tiktoken
from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils import get_session
from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext.openai_public import r50k_pat_str
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from smallm_hf.errors import UserError

EOS = "<|endoftext|>"
PAD = "<|pad|>"
SMALLEST_BPE = 257  # 256 bytes and eos

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")

GPT2 = "gpt2"
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

HUB_ANSWER_SECONDS = 5  # for each of connect and read
HUB_PROBE_SECONDS = 8  # for all of it: a name server that never answers heeds no timeout of the HTTP client

Encoder = Callable[[list[str]], list[Sequence[int]]]


# --- the Hub, asked once and briefly ---------------------------------------------------------------------------------


def require_hub(wanted: str, alternative: str) -> None:
    """Returns when the Hugging Face Hub answers; the libraries would retry an unreachable one for most of a minute.

    Args:
        wanted: what is looked for, the beginning of the message.
        alternative: what to do without the Hub, its end.

    Raises:
        UserError: no answer within 10 seconds, or `HF_HUB_OFFLINE` is set.
    """
    failure = [f"no answer in {HUB_PROBE_SECONDS} seconds"]

    def probe():
        try:
            get_session().head(constants.ENDPOINT, timeout=HUB_ANSWER_SECONDS)
            failure.clear()  # any status is an answer
        except Exception as error:  # whatever the HTTP library of the day raises, there was none
            failure[0] = str(error).partition("\n")[0].rstrip(". ") or type(error).__name__

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(HUB_PROBE_SECONDS)
    if failure:
        raise UserError(
            f"{wanted} is not on this machine and the Hub at {constants.ENDPOINT} cannot be reached ({failure[0]}); "
            f"{alternative}"
        )


# --- loading ---------------------------------------------------------------------------------------------------------


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
    state = "holds neither tokenizer.json nor vocab.json and merges.txt" if folder.is_dir() else "is no folder"
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


# --- training, saving, recognising -----------------------------------------------------------------------------------


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE with GPT-2's class and pre-tokenisation; the same texts give the same vocabulary.

    Entries are 256 bytes, the merges, `<|endoftext|>` (bos, eos and unk, as in GPT-2) and `<|pad|>`:
    `len(tokenizer) == vocab_size`. At 257 there is no room for a pad token of its own and eos pads.

    Raises:
        UserError: `vocab_size` below 257, or texts too few for that many merges.
    """
    if vocab_size < SMALLEST_BPE:
        raise UserError(
            f"model.vocab_size={vocab_size} is below {SMALLEST_BPE}, the 256 bytes and {EOS} of a byte-level BPE; "
            f"raise it to {SMALLEST_BPE} or more"
        )
    specials = [EOS, PAD] if vocab_size > SMALLEST_BPE else [EOS]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(map(valid_unicode, texts), trainer)
    learned = json.loads(learner.to_str())["model"]
    vocab = learned["vocab"]
    for special in specials:
        vocab[special] = len(vocab)
    if len(vocab) < vocab_size:
        raise UserError(
            f"the corpus has material for {len(vocab)} entries, model.vocab_size={vocab_size} asks for more; "
            f"lower model.vocab_size to {len(vocab)} or bring more text"
        )
    return GPT2Tokenizer(vocab, [tuple(pair) for pair in learned["merges"]], pad_token=specials[-1])


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | os.PathLike, model_max_length: int) -> None:
    """Writes a folder that plain `AutoTokenizer.from_pretrained` loads, with `model_max_length` (tokens) in it."""
    tokenizer.model_max_length = tokenizer.init_kwargs["model_max_length"] = model_max_length
    for leak in ("is_local", "local_files_only"):  # transformers would write how *we* loaded it into the file
        tokenizer.init_kwargs.pop(leak, None)
    tokenizer.save_pretrained(folder)


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


# --- encoding --------------------------------------------------------------------------------------------------------


def make_encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """Returns a function that encodes a batch of texts on all cores; no eos is added, the tokenizer stays as it is.

    `TOKENIZERS_PARALLELISM=false` keeps it to one thread, where several processes share the cores. Special tokens
    written out in a text are ordinary text. GPT-2 goes through tiktoken, three times as fast and with the same ids;
    every other tokenizer through its own `tokenizers` backend.
    """
    if tokenizer_fingerprint(tokenizer) == GPT2_FINGERPRINT:
        return _tiktoken_encoder(tokenizer)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()

    def encode(texts: list[str]) -> list[Sequence[int]]:
        encodings = backend.encode_batch_fast([valid_unicode(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    return encode


def _tiktoken_encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    codes = {ord(letter): byte for byte, letter in bytes_to_unicode().items()}
    vocab = tokenizer.get_vocab()
    eos = vocab.pop(EOS)
    ranks = {token.translate(codes).encode("latin-1"): rank for token, rank in vocab.items()}
    encoding = tiktoken.Encoding(GPT2, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={EOS: eos})
    threads = 1 if os.environ.get("TOKENIZERS_PARALLELISM") == "false" else os.cpu_count() or 1
    executor = ThreadPoolExecutor(threads)

    def encode_share(texts: list[str]) -> list[Sequence[int]]:
        # Straight into arrays: lists of integers would be built under the interpreter's lock, one thread at a time.
        return [
            encoding.encode_to_numpy(valid_unicode(text), allowed_special=set(), disallowed_special=())
            for text in texts
        ]

    def encode(texts: list[str]) -> list[Sequence[int]]:
        return [ids for share in executor.map(encode_share, _even_shares(texts, threads)) for ids in share]

    return encode


def _even_shares(texts: list[str], number: int) -> Iterator[list[str]]:
    """Cuts a list into at most `number` consecutive parts of about the same number of characters."""
    goal = sum(map(len, texts)) / number
    share, characters = [], 0
    for text in texts:
        share.append(text)
        characters += len(text)
        if characters >= goal:
            yield share
            share, characters = [], 0
    if share:
        yield share


def valid_unicode(text: str) -> str:
    """Returns the text with lone surrogates, which UTF-8 cannot hold, replaced by U+FFFD; JSON can bring them in."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
