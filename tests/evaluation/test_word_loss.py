"""The loss of words, by hand."""

import math

import numpy as np
import pytest
from small_models import TEXTS, bert, gpt2, letter_tokenizer, mask_tokenizer
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from smallm_hf.evaluation.scoring import score_corpus
from smallm_hf.evaluation.word_loss import WordLoss, count_words, spell
from smallm_hf.tokenizing.encoding import encode_placed


def test_a_token_belongs_to_the_word_it_begins_in_and_white_space_to_the_word_behind_it():
    words = WordLoss()
    found = words.find("A cat ,A\n", [0, 1, 3, 5, 6, 7, 8])  # tokens A, " c", at, " ", ",", A and the line break
    assert found.tolist() == ["a", "cat", "cat", "a", "a", "a", None]
    assert words.occurrences == {"a": 2, "cat": 1}


def test_words_are_counted_in_small_letters_without_the_marks_at_their_ends():
    spelled = {"Dog,": "dog", "“don't!”": "don't", "--": "--", "Ünder": "ünder", "3.5.": "3.5"}
    assert {word: spell(word) for word in spelled} == spelled
    assert count_words(["The dog. The", "the DOG -"]) == {"the": 3, "dog": 2, "-": 1}


def test_nats_of_all_tokens_of_a_word_are_divided_by_its_occurrences_and_binned_by_powers_of_ten():
    words = WordLoss()
    found = words.find("a a b", [0, 1, 2, 3, 4])
    words.add(np.append(found, None), np.array([1.0, 0.5, 0.5, 4.0, 2.0, 99.0]))
    (only,) = words.table()
    assert only == {"from": 1, "to": 9, "words": 3, "loss": pytest.approx(8 / 3), "entries": 2}
    never, often = words.table({"a": 1000})
    assert never == {"from": 0, "to": 0, "words": 1, "loss": pytest.approx(6.0), "entries": 1}
    assert often == {"from": 1000, "to": 9999, "words": 2, "loss": pytest.approx(1.0), "entries": 1}


def test_the_parts_of_two_processes_add_up():
    first, second = WordLoss(), WordLoss()
    first.add(first.find("a b", [0, 2]), np.array([1.0, 2.0]))
    second.add(second.find("b c", [0, 2]), np.array([3.0, 4.0]))
    first += second
    assert first == WordLoss({"a": 1, "b": 2, "c": 1}, {"a": 1.0, "b": 5.0, "c": 4.0})
    third = WordLoss()
    third.find("a b", [0, 2], counted=False)
    assert third.occurrences == {}


@pytest.mark.parametrize("protocol", ["documents", "sliding", "packed"])
def test_all_words_together_have_the_nats_of_word_perplexity(protocol):
    texts = [text.strip() for text in TEXTS]
    scored = score_corpus(gpt2(), letter_tokenizer(), texts, protocol=protocol, context_length=8, batch_size=3)
    table = scored.profile.tables()["by_word_frequency"]
    assert sum(bin["words"] for bin in table) == scored.figures["words"]
    nats = sum(bin["words"] * bin["loss"] for bin in table)
    if protocol != "packed":  # there the eos belongs to no word
        assert math.exp(nats / scored.figures["words"]) == pytest.approx(scored.figures["word_perplexity"], rel=1e-6)
    else:
        assert nats < scored.figures["loss"] * scored.figures["tokens"]


def test_a_masked_model_has_the_nats_of_its_words_too():
    scored = score_corpus(bert(), mask_tokenizer(), ["abc cab", "abc"])
    (bin,) = scored.profile.tables()["by_word_frequency"]
    assert (bin["words"], bin["entries"]) == (3, 2)
    assert bin["words"] * bin["loss"] == pytest.approx(scored.figures["loss"] * scored.figures["tokens"])


def test_two_vocabularies_have_the_same_words(gpt2_folder):
    text = "The naïve cat 🐱 said:  “Don't!”\n\nThe cat."
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    model = GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=8, n_layer=1, n_head=2))
    pairs = ((model, tokenizer), (gpt2(n_positions=64), letter_tokenizer()))
    counted = [score_corpus(*pair, [text]).profile.by_word for pair in pairs]
    assert counted[0].occurrences == counted[1].occurrences
    assert list(counted[0].occurrences.values()) == [2, 1, 2, 1, 1, 1]
    ((ids, starts),) = encode_placed(tokenizer, [text])
    found, ids = WordLoss().find(text, starts), np.array(ids)
    spelled = [tokenizer.decode(ids[found == word]) for word in counted[0].occurrences]
    assert spelled == ["The\n\nThe", " naïve", " cat cat.", " 🐱", " said:", "  “Don't!”"]
