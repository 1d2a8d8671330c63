"""Filters: why a whole document is dropped, or None."""

import re
from collections import Counter

import numpy as np
from resiliparse.parse.lang import detect_fast

from smallm_hf.data.configuration import CleaningConfig

UNSPACED = re.compile(  # letters of scripts that put no spaces between words
    "[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
LETTERS_AND_BLANKS = bytes(byte for byte in range(128) if chr(byte).isalnum() or chr(byte).isspace())
DIGITS = b"0123456789"
FEWEST_CHARACTERS = 200  # the language of a shorter text would be a guess
BEST_LANGUAGES, LANGUAGE_MARGIN = 5, 1.05  # a language nearly as likely as the likeliest may be it
FEWEST_WORDS = 50  # a shorter text repeats itself by chance
LARGEST_SHARES = {  # Rae et al. 2021, table A1
    "duplicated lines": 0.30,
    "characters in duplicated lines": 0.20,
    "duplicated paragraphs": 0.30,
    "characters in duplicated paragraphs": 0.20,
}
LARGEST_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}  # share of the characters in the commonest n-gram
LARGEST_DUPLICATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # in all repeated n-grams


def why_dropped(text: str, config: CleaningConfig) -> tuple[str, str] | None:
    """Returns the first filter that a text does not pass, and its numbers; None if it passes all, or is empty."""
    words = text.split()
    if not words:
        return None
    number = len(words) if text.isascii() else sum(max(1, len(UNSPACED.findall(word))) for word in words)
    if number < config.min_words:
        return "too short", f"{number} words, min_words={config.min_words}"
    if config.max_words is not None and number > config.max_words:
        return "too long", f"{number} words, max_words={config.max_words}"
    content = text.encode("ascii", "ignore")
    symbols = len(content.translate(None, LETTERS_AND_BLANKS)) / len(text)
    if symbols > config.max_symbols:
        return "symbols", f"{symbols:.3f} of the characters, max_symbols={config.max_symbols}"
    digits = (len(content) - len(content.translate(None, DIGITS))) / len(text)
    if digits > config.max_digits:
        return "digits", f"{digits:.3f} of the characters, max_digits={config.max_digits}"
    if config.languages is not None and len(text) >= FEWEST_CHARACTERS:
        found = detect_fast(text.lower(), cutoff=1 << 30, n_results=BEST_LANGUAGES)  # (code, distance), nearest first
        if not any(code in config.languages and far <= LANGUAGE_MARGIN * found[0][1] for code, far in found):
            return "language", f"{found[0][0]}, languages={config.languages}"
    return _repetition(text, words) if config.repetition and len(words) >= FEWEST_WORDS else None


def _repetition(text: str, words: list[str]) -> tuple[str, str] | None:
    for unit, separator in (("paragraphs", "\n\n"), ("lines", "\n")):
        parts = [part for part in map(str.strip, text.split(separator)) if part]
        repeated = [(part, count - 1) for part, count in Counter(parts).items()]
        number = sum(again for _, again in repeated) / len(parts)
        characters = sum(again * len(part) for part, again in repeated) / len(text)
        for reason, share in ((f"duplicated {unit}", number), (f"characters in duplicated {unit}", characters)):
            if share > LARGEST_SHARES[reason]:
                return reason, f"share {share:.3f}, at most {LARGEST_SHARES[reason]}"
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
    total = int(lengths.sum())
    for n, largest in LARGEST_TOP_NGRAM.items():
        _, first, counts = np.unique(_ngrams(hashes, n), return_index=True, return_counts=True)
        most = counts.max()
        commonest = first[counts == most] if most > 1 else []
        share = most * max((lengths[start : start + n].sum() for start in commonest), default=0) / total
        if share > largest:
            return f"one {n}-gram over and over", f"share {share:.3f}, at most {largest}"
    for n, largest in LARGEST_DUPLICATED_NGRAMS.items():
        share = characters_in_repeats(hashes, lengths, n) / total
        if share > largest:
            return f"duplicated {n}-grams", f"share {share:.3f}, at most {largest}"
        if share <= min(LARGEST_DUPLICATED_NGRAMS.values()):
            return None  # what longer n-grams cover, shorter ones do
    return None


def _ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """One number for each run of `n` words, equal for equal runs."""
    number = len(hashes) - n + 1
    combined = hashes[:number].copy()
    for offset in range(1, n):
        combined = combined * np.uint64(0x9E3779B97F4A7C15) + hashes[offset : offset + number]
    return combined


def characters_in_repeats(hashes: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Returns how many characters have the words in repetitions of an n-gram, each word counted once.

    Args:
        hashes: (words,) uint64, of each word.
        lengths: (words,) int64, its characters.
        n: 2 or more.
    """
    combined = _ngrams(hashes, n)
    is_repeat = np.ones(len(combined), bool)
    is_repeat[np.unique(combined, return_index=True)[1]] = False
    covered = np.zeros(len(lengths) + 1, np.int64)
    starts = np.flatnonzero(is_repeat)
    np.add.at(covered, starts, 1)
    np.add.at(covered, starts + n, -1)
    return int(lengths[np.cumsum(covered[:-1]) > 0].sum())
