"""Tokenizers that are trained on the text of a run: one function each, and one entry in `SCHEMES`."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from smallm_hf.base.errors import UserError
from smallm_hf.tokenizing.encoding import valid_unicode
from smallm_hf.tokenizing.loading import EOS
from smallm_hf.tokenizing.spelling import SPELLING, count_signs

PAD, UNKNOWN = "<|pad|>", "<|unk|>"
SMALLEST_BPE = 257  # 256 bytes and eos
SPECIALS = (EOS, PAD, UNKNOWN)  # behind the entries of `char` and `word`
SMALLEST_OF_UNITS = 1 + len(SPECIALS)
# Where `word` cuts; the pieces, joined, are the text. One space before an entry is part of it, a literal <unk> is a
# word, and a special token that is written out is no entry.
WORD_PIECES = {
    "separate": r" ?<unk>| ?[\p{L}\p{M}]+(?:['’][\p{L}\p{M}]+)*| ?\p{N}+| ?([^\s\p{L}\p{M}\p{N}])\1*|\n\n|\s",
    "attached": r"<(?=\|(?:endoftext|pad|unk)\|>)| ?\S+|\n\n|\s",
}


@dataclass(frozen=True)
class Scheme:
    """A way to train a tokenizer.

    Args:
        title: what comes of it.
        train: called with texts, a limit, the number of entries with all special tokens, and the options; the same
            texts give the same tokenizer.
        lossless: whether every text comes back from its ids as it was.
        units: what it has an entry for, of which a text may have fewer than the limit; None where the limit is always
            reached, or refused.
        default_limit: where none is stated; None takes the `vocab_size` that the model has by default.
        planned_entries: what a plan without the text assumes; None is the limit.
        sample_characters: of text that are enough to train on; None is all of the text.
        options: the fields of `TokenizerConfig` that it takes beside source and vocab_size.
    """

    title: str
    train: Callable[..., PreTrainedTokenizerFast]
    lossless: bool
    units: str | None = None
    default_limit: int | None = None
    planned_entries: int | None = None
    sample_characters: int | None = None
    options: tuple[str, ...] = ()


def train_bpe(texts: Iterable[str], limit: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE with GPT-2's class and pre-tokenisation.

    Entries are 256 bytes, the merges, `<|endoftext|>` (bos, eos and unk, as in GPT-2) and `<|pad|>`:
    `len(tokenizer) == limit`. At 257 there is no room for a pad token of its own and eos pads.

    Raises:
        UserError: a limit below 257, or too little text for that many merges: a model of another size than the one
            that was planned, because a file was missing perhaps, is worse than none.
    """
    if limit < SMALLEST_BPE:
        raise UserError(
            f"model.vocab_size={limit} is below {SMALLEST_BPE}, the 256 bytes and {EOS} of a byte-level BPE; "
            f"raise it to {SMALLEST_BPE} or more"
        )
    specials = [EOS, PAD] if limit > SMALLEST_BPE else [EOS]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=limit - len(specials),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(map(valid_unicode, texts), trainer)
    learned = json.loads(learner.to_str())["model"]
    vocab = learned["vocab"]
    for special in specials:
        vocab[special] = len(vocab)
    if len(vocab) < limit:
        raise UserError(
            f"the corpus has material for {len(vocab)} entries, model.vocab_size={limit} asks for more; "
            f"lower model.vocab_size to {len(vocab)} or bring more text"
        )
    return GPT2Tokenizer(vocab, [tuple(pair) for pair in learned["merges"]], pad_token=specials[-1])


def train_char(texts: Iterable[str], limit: int) -> PreTrainedTokenizerFast:
    """Makes an entry of each Unicode character of the texts, the most frequent first, ties by code point.

    Behind the characters stand `<|endoftext|>` (bos and eos), `<|pad|>` and `<|unk|>`, each character without an
    entry: `len(tokenizer) <= limit`. Nothing is a special character: newlines and spaces have entries like letters.

    Raises:
        UserError: a limit below 4.
    """
    _require_room(limit, "one character")
    counts = Counter()
    for text in texts:
        counts.update(valid_unicode(text))
    # A BPE without merges cuts a text into characters, four times as fast as a pre-tokenizer that splits it.
    backend = Tokenizer(models.BPE(_most_frequent(counts, limit), [], unk_token=UNKNOWN))
    backend.decoder = decoders.Fuse()
    return _of_units(backend, counts)


def train_word(
    texts: Iterable[str],
    limit: int,
    *,
    lowercase: bool = False,
    min_count: int = 2,
    punctuation: Literal["separate", "attached"] = "separate",
) -> PreTrainedTokenizerFast:
    """Makes an entry of each word, number and mark of the texts, the most frequent first, ties in alphabetical order.

    As in GPT-2's pre-tokenisation a space belongs to what it stands before: ` the` and `the` are two entries, and the
    entries of a text, joined, are the text. It comes back from its ids as it was but for words without an entry, which
    are `<|unk|>`, and for capitals where they are lowered. Other white space has entries of its own, a blank line
    (two line ends) too.

    Args:
        texts: to count in.
        limit: entries at most, with `<|endoftext|>` (bos and eos), `<|pad|>` and `<|unk|>` behind the words.
        lowercase: whether texts are lowered first.
        min_count: fewest occurrences of an entry. With 1 the training text has no unknown word, and a model never
            learns to expect one.
        punctuation: `separate` cuts it off words, but for apostrophes inside of them, and into runs of one mark (`...`,
            `--`); `attached` cuts at white space alone, for texts that are cut into words already, such as WikiText.

    Raises:
        UserError: a limit below 4.
    """
    _require_room(limit, "one word")
    normalizer = normalizers.Lowercase() if lowercase else None
    cut = pre_tokenizers.Split(Regex(WORD_PIECES[punctuation]), "isolated")
    counts = Counter()
    for text in map(valid_unicode, texts):
        text = normalizer.normalize_str(text) if normalizer else text
        counts.update(piece for piece, _ in cut.pre_tokenize_str(text))
    frequent = {piece: count for piece, count in counts.items() if count >= min_count}
    backend = Tokenizer(models.WordLevel(_most_frequent(frequent, limit), unk_token=UNKNOWN))
    if normalizer:
        backend.normalizer = normalizer
    backend.pre_tokenizer = cut
    backend.decoder = decoders.Sequence([decoders.Replace(UNKNOWN, f" {UNKNOWN}"), decoders.Fuse()])
    return _of_units(backend, counts)


def _require_room(limit: int, unit: str) -> None:
    if limit < SMALLEST_OF_UNITS:
        raise UserError(
            f"model.vocab_size={limit} is below {SMALLEST_OF_UNITS}, {unit}, {EOS}, {PAD} and {UNKNOWN}; "
            f"raise it to {SMALLEST_OF_UNITS} or more"
        )


def _most_frequent(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    """Numbers the most frequent units, ties in their order, and behind them the special tokens."""
    units = sorted(counts, key=lambda unit: (-counts[unit], unit))
    return {entry: number for number, entry in enumerate([*units[: limit - len(SPECIALS)], *SPECIALS])}


def _of_units(backend: Tokenizer, units: Iterable[str]) -> PreTrainedTokenizerFast:
    """The tokenizer, which keeps how units of the text are spelled: some of them have no entry."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **{SPELLING: count_signs(units)},
    )


# By what `tokenizer.source` calls them; 16 million characters bound the memory of merging, and more change few merges.
SCHEMES = {
    "bpe": Scheme("a byte-level BPE", train_bpe, lossless=True, sample_characters=16_000_000),
    "char": Scheme(
        "a tokenizer of characters",
        train_char,
        lossless=False,
        units="characters",
        default_limit=1 << 16,
        planned_entries=256,
    ),
    "word": Scheme(
        "a tokenizer of words",
        train_word,
        lossless=False,
        units="words",
        default_limit=1 << 16,
        options=("lowercase", "min_count", "punctuation"),
    ),
}
