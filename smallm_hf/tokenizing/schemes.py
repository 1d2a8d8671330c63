"""Tokenizers that are trained on the text of a run."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from smallm_hf.base.errors import UserError
from smallm_hf.tokenizing.encoding import valid_unicode
from smallm_hf.tokenizing.loading import EOS

PAD = "<|pad|>"
SMALLEST_BPE = 257  # 256 bytes and eos


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
