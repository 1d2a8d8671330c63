"""What unknown tokens hide, and what it costs to spell that: by hand, and as a law."""

import itertools
import math

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from smallm_hf.tokenizing.loading import load_tokenizer, lowers, save_tokenizer
from smallm_hf.tokenizing.schemes import train_bpe, train_char, train_word
from smallm_hf.tokenizing.spelling import END, Speller, count_signs

TEXT = "ab, ab, ab b"  # cut into ab 1, "," 2, " ab" 2, " b" 1


def test_each_different_piece_of_the_training_text_is_counted_once_with_its_end():
    counts = count_signs(["ab", "b", "\u00e9"])
    assert {sign: count for sign, count in enumerate(counts) if count} == {97: 1, 98: 2, 0xC3: 1, 0xA9: 1, END: 3}
    tokenizer = train_word([TEXT], 5)  # rarer pieces count too
    assert tokenizer.init_kwargs["spelling"] == count_signs(["ab", ",", " ab", " b"])


def test_a_hidden_piece_costs_its_bytes_and_an_end():
    speller = Speller.of(train_word([TEXT], 5))
    signs = 257 + 12  # 2 spaces, 2 a, 3 b, a comma, 4 ends
    assert speller.cost(" b") == pytest.approx(-math.log(3 / signs) - math.log(4 / signs) - math.log(5 / signs))
    assert speller.cost("\u00e9") == pytest.approx(2 * math.log(signs) - math.log(5 / signs))  # never seen
    text = " ab b, \u00e9"
    ids = speller.tokenizer(text)["input_ids"]
    assert speller.costs(text, ids).tolist() == [speller.cost(" b"), speller.cost(" \u00e9")]
    assert not speller.costs(" ab,", speller.tokenizer(" ab,")["input_ids"]).size


def test_the_probabilities_of_all_that_can_be_spelled_sum_to_at_most_1():
    for tokenizer in (train_word([TEXT], 5), train_char(["aab"], 5)):
        speller = Speller.of(tokenizer)
        assert sum(math.exp(-nats) for nats in speller.nats) == pytest.approx(1)
        spelled = ("".join(letters) for length in range(1, 6) for letters in itertools.product(" ab", repeat=length))
        assert 0 < sum(math.exp(-speller.cost(piece)) for piece in spelled) < 1


def test_a_hidden_character_is_spelled_and_a_tokenizer_without_counts_takes_every_sign_for_equal():
    tokenizer = train_char(["aaab"], 4)
    text = "ab\U0001f642"
    speller = Speller.of(tokenizer)
    assert speller.costs(text, tokenizer(text)["input_ids"]).tolist() == [speller.cost(piece) for piece in text[1:]]
    del tokenizer.init_kwargs["spelling"]
    assert Speller.of(tokenizer).cost("\u00e9") == pytest.approx(3 * math.log(257))


def test_what_has_no_unknown_token_of_its_own_hides_nothing(gpt2_folder):
    assert Speller.of(load_tokenizer(str(gpt2_folder))) is None
    assert Speller.of(train_bpe(["the cat"], 257)) is None
    falls_back = models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>", byte_fallback=True)
    assert Speller.of(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(falls_back), unk_token="<unk>")) is None


def test_the_counts_are_saved_with_the_tokenizer_and_capitals_are_known_to_be_lost(tmp_path):
    tokenizer = train_word(["The the"], 100, lowercase=True)
    save_tokenizer(tokenizer, tmp_path, 16)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (Speller.of(loaded).nats == Speller.of(tokenizer).nats).all()
    assert [lowers(one) for one in (loaded, train_word(["The"], 100), train_bpe(["The"], 257))] == [True, False, False]
