import re

import numpy as np
import pytest

from smallm_hf.data.reading.documents import Document
from smallm_hf.data.selection import ngrams
from smallm_hf.data.selection.ngrams import hash_words, join_words, read_ngrams, read_vocabularies

TEXT = "don’t stop—now, l'école 42! 3.14 naïve_word\tx\n\nend, ω" + chr(0x1F600) + "?"


def pieces(*texts, size=None):
    """Documents, each cut before every space if a size is given."""
    for number, text in enumerate(texts):
        parts = re.findall(r"\s*\S+", text) if size and text else [text]
        for place, part in enumerate(parts):
            yield Document(part, str(number), piece=place, is_last=place == len(parts) - 1)


def test_a_word_begins_where_letters_and_digits_do():
    numbers, starts = hash_words(TEXT[:-2])
    assert starts.tolist() == [match.start() for match in re.finditer(r"[^\W_]+", TEXT[:-2])]
    assert len(set(numbers.tolist())) == len(numbers) == 14
    assert hash_words("")[0].tolist() == hash_words("... —")[0].tolist() == []


def test_words_have_the_same_number_wherever_they_stand():
    plain, _ = hash_words("the cat and the dog")
    among, _ = hash_words("“the” – cat… and, the; dog’")
    assert plain.tolist() == among.tolist()
    assert plain[0] == plain[3] == 10493539527412552853  # on every machine: features may come from several


def test_a_letter_of_an_unspaced_script_is_a_word_and_marks_belong_to_their_letter():
    assert len(hash_words("我爱你")[0]) == 3
    assert len(hash_words("กิน")[0]) == 2  # the vowel sign above the first letter is a mark
    assert len(hash_words("हिन्दी भाषा")[0]) == 2


def test_long_words_differ_by_any_letter():
    word = "a" * 3000
    assert len({hash_words(word[:place] + "b" + word[place:])[0][0] for place in range(0, 1000, 50)}) == 20


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize("characters", [1, 7, 1 << 16])
def test_ngrams_stay_within_documents_and_are_the_same_however_text_comes(monkeypatch, size, characters):
    texts = ["a b c d", "", "e f", "g h i", "!", "a b c"]
    abc, bcd, ghi = (join_words(hash_words(text)[0], 3)[0] for text in ("a b c", "b c d", "g h i"))
    monkeypatch.setattr(ngrams, "BATCH_CHARACTERS", characters)
    batches = list(read_ngrams(pieces(*texts, size=size), 3))
    assert np.concatenate([numbers for numbers, _ in batches]).tolist() == [abc, bcd, ghi, abc]
    assert np.concatenate([documents for _, documents in batches]).tolist() == [0, 0, 3, 5]


def test_the_order_of_words_matters_to_an_ngram():
    words, _ = hash_words("a b c c b a")
    assert len(set(join_words(words, 3).tolist())) == 4


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize("characters", [1, 7, 1 << 16])
def test_the_vocabulary_of_a_document_has_each_word_once(monkeypatch, size, characters):
    texts = ["", "b a b", "a", "", "!", "c a c b", ""]
    number = {word: int(hash_words(word)[0][0] >> np.uint64(34)) for word in "abc"}
    monkeypatch.setattr(ngrams, "BATCH_CHARACTERS", characters)
    found = [vocabulary.tolist() for vocabulary in read_vocabularies(pieces(*texts, size=size), 30)]
    assert found == [sorted(number[word] for word in words) for words in ("", "ab", "a", "", "", "abc", "")]
    assert list(read_vocabularies([], 30)) == []
