"""Splits a text into the tokens that a model reads, and names models and tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm_hf.base.errors import UserError
from smallm_hf.comparison.words import read_vocabulary
from smallm_hf.evaluation.page import labels
from smallm_hf.inspection import require_known, vocabulary_size
from smallm_hf.pictures.picture import signs
from smallm_hf.tokenizing.encoding import valid_unicode


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text, without those that the tokenizer would add around it.

    Attributes:
        ids: their ids.
        pieces: what each adds to the text; joined they are the text up to what the tokenizer drops at its end. A token
            that is a part of a character adds the character, or nothing if another token has added it.
    """

    ids: list[int]
    pieces: list[str]


def read_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    """Splits a text without the white space around it.

    Raises:
        UserError: it has no token, or one outside the model's vocabulary.
    """
    text = valid_unicode(text).strip()
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    encoded = tokenizer(text, return_offsets_mapping=tokenizer.is_fast, **options)
    ids = encoded["input_ids"]
    if not ids:
        raise UserError("the text is empty; give a text of at least one token")
    require_known(max(ids), vocabulary_size(model))
    if not tokenizer.is_fast:  # it has no offsets
        return Tokens(ids, tokenizer.convert_ids_to_tokens(ids))
    pieces, done = [], 0
    for _, end in encoded["offset_mapping"]:  # a space that offsets leave out belongs to the token behind it
        pieces.append(text[done:end])
        done = max(done, end)
    return Tokens(ids, pieces)


def model_name(model: PreTrainedModel) -> str:
    """What a caption calls the model: the end of its folder's path or Hub id, or its class."""
    source = model.config.name_or_path
    return labels([source])[0] if source else type(model).__name__


def token_labels(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    """How each token of the vocabulary is written: as text, else as bytes, a special one by its name."""
    vocabulary = read_vocabulary(tokenizer, vocabulary_size(model))
    return [_label(piece, name) for piece, name in zip(vocabulary.pieces, vocabulary.names, strict=True)]


def _label(piece: bytes | None, name: str) -> str:
    if not piece:
        return name
    try:
        return signs(piece.decode())
    except UnicodeDecodeError:  # a part of a character
        return f"<{piece.hex(' ')}>"
