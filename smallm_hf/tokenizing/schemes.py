"""Tokenizers that are trained on the text of a run: one function each, and one entry in `SCHEMES`."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from smallm_hf.base.errors import UserError
from smallm_hf.tokenizing.encoding import valid_unicode
from smallm_hf.tokenizing.loading import EOS

PAD, UNKNOWN = "<|pad|>", "<|unk|>"
SMALLEST_BPE = 257  # 256 bytes and eos
SMALLEST_CHAR = 4  # one character, eos, pad and unk


@dataclass(frozen=True)
class Scheme:
    """A way to train a tokenizer.

    Args:
        title: what comes of it.
        train: called with texts and a limit, the number of entries with all special tokens; the same texts give the
            same tokenizer.
        lossless: whether every text comes back from its ids as it was.
        units: what it has an entry for, of which a text may have fewer than the limit; None where the limit is always
            reached, or refused.
        default_limit: where none is stated; None takes the `vocab_size` that the model has by default.
        sample_characters: of text that are enough to train on; None is all of the text.
    """

    title: str
    train: Callable[[Iterable[str], int], PreTrainedTokenizerFast]
    lossless: bool
    units: str | None = None
    default_limit: int | None = None
    sample_characters: int | None = None


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
    if limit < SMALLEST_CHAR:
        raise UserError(
            f"model.vocab_size={limit} is below {SMALLEST_CHAR}, one character, {EOS}, {PAD} and {UNKNOWN}; "
            f"raise it to {SMALLEST_CHAR} or more"
        )
    counts = Counter()
    for text in texts:
        counts.update(valid_unicode(text))
    characters = sorted(counts, key=lambda character: (-counts[character], character))
    entries = [*characters[: limit - SMALLEST_CHAR + 1], EOS, PAD, UNKNOWN]
    # A BPE without merges cuts a text into characters, four times as fast as a pre-tokenizer that splits it.
    model = models.BPE({entry: number for number, entry in enumerate(entries)}, [], unk_token=UNKNOWN)
    backend = Tokenizer(model)
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


# By what `tokenizer.source` calls them; 16 million characters bound the memory of merging, and more change few merges.
SCHEMES = {
    "bpe": Scheme("a byte-level BPE", train_bpe, lossless=True, sample_characters=16_000_000),
    "char": Scheme("a tokenizer of characters", train_char, lossless=False, units="characters", default_limit=1 << 16),
}
