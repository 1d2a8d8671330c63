"""The n-gram model, its Kneser-Ney estimates against the definitions and against nltk's."""

import math
from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from smallm_hf.models import modeling_ngram
from smallm_hf.models.configuration_ngram import NgramConfig
from smallm_hf.models.modeling_ngram import NgramForCausalLM
from smallm_hf.training import kneser_ney
from smallm_hf.training.kneser_ney import count_ngrams, estimate_discounts, fill_model

EOS, VOCABULARY = 0, 7  # of which token 6 never occurs
DRAWN = np.random.default_rng(0)
# Forty documents whose tokens depend on those before them, two of them empty.
DOCUMENTS = [[], []] + [
    [int(token) for token in np.minimum(1 + DRAWN.integers(0, 3, size=length).cumsum() % 5, 5)]
    for length in DRAWN.integers(1, 9, size=38)
]
STREAM = np.array([token for document in DOCUMENTS for token in [*document, EOS]], dtype=np.uint16)


def counted_model(order: int, stream: np.ndarray = STREAM, eos: int | None = EOS, vocab_size: int = VOCABULARY):
    model = NgramForCausalLM(NgramConfig(vocab_size=vocab_size, order=order, eos_token_id=eos)).eval()
    fill_model(model, count_ngrams(stream, order, vocab_size, eos))
    return model


class Definition:
    """Interpolated modified Kneser-Ney as the papers write it, by dictionaries and recursion."""

    def __init__(self, texts: list[list[int]], order: int, discounts=None):
        seen = [Counter() for _ in range(order + 1)]  # by length
        for text in texts:
            for end in range(1, len(text)):  # the first token is given
                for size in range(1, min(order, end + 1) + 1):
                    seen[size][tuple(text[end + 1 - size : end + 1])] += 1
        self.counts = [Counter() for _ in range(order + 1)]
        for size in range(1, order + 1):
            before = Counter(ngram[1:] for ngram in (seen[size + 1] if size < order else ()))
            for ngram, times in seen[size].items():
                begins = size > 1 and ngram[0] == EOS
                self.counts[size][ngram] = times if size == order or begins else before[ngram]
        self.followers = [defaultdict(dict) for _ in range(order + 1)]
        for size in range(1, order + 1):
            for ngram, count in self.counts[size].items():
                self.followers[size][ngram[:-1]][ngram[-1]] = count
        self.discounts = [discounts or self.discounts_of(size) for size in range(order + 1)]

    def discounts_of(self, size):
        n = [sum(count == times for count in self.counts[size].values()) for times in range(5)]
        if not (n[1] and n[2] and n[3]):
            return (0.5, 1.0, 1.5)
        y = n[1] / (n[1] + 2 * n[2])
        found = tuple(times - (times + 1) * y * n[times + 1] / n[times] for times in (1, 2, 3))
        return found if min(found) >= 0 else (0.5, 1.0, 1.5)

    def probability(self, word: int, context: tuple[int, ...]) -> float:
        shorter = self.probability(word, context[1:]) if context else 1 / VOCABULARY
        followers = self.followers[len(context) + 1].get(context)
        if not followers:
            return shorter
        discounts, total = self.discounts[len(context) + 1], sum(followers.values())
        count = followers.get(word, 0)
        taken = discounts[min(count, 3) - 1] if count else 0
        left = sum(discounts[min(count, 3) - 1] for count in followers.values())
        return (count - taken) / total + left / total * shorter


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_it_equals_the_definition_after_every_context_seen_or_not(order, block, monkeypatch):
    monkeypatch.setattr(kneser_ney, "BLOCK", block)
    model = counted_model(order)
    definition = Definition([[EOS, *document, EOS] for document in DOCUMENTS], order)
    rows = torch.tensor([*product(range(VOCABULARY), repeat=4)])
    logits = model(rows).logits[:, -1].double()
    assert torch.allclose(logits.exp().sum(dim=-1), torch.ones((), dtype=torch.double), atol=1e-5)
    assert logits.isfinite().all()
    for row, found in zip(rows[::7].tolist(), logits[::7].exp().tolist(), strict=True):
        within = row[max(place for place in range(4) if place == 0 or row[place] == EOS) :]
        context = tuple(within[len(within) - min(order - 1, len(within)) :])
        expected = [definition.probability(word, context) for word in range(VOCABULARY)]
        assert found == pytest.approx(expected, abs=1e-6), row


def test_the_beginning_of_a_row_reads_what_is_there():
    model, definition = counted_model(3), Definition([[EOS, *document, EOS] for document in DOCUMENTS], 3)
    found = model(torch.tensor([[3, 4, EOS, 2]])).logits.exp()[0]
    for position, context in enumerate([(3,), (3, 4), (EOS,), (EOS, 2)]):
        expected = [definition.probability(word, context) for word in range(VOCABULARY)]
        assert found[position].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow  # importing nltk takes longer than all else here
def test_it_equals_nltks_kneser_ney_with_one_fixed_discount(monkeypatch):
    """nltk's single tokens have their plain shares, ours are interpolated with the uniform distribution."""
    nltk_lm = pytest.importorskip("nltk.lm")
    from nltk.util import ngrams

    monkeypatch.setattr(kneser_ney, "estimate_discounts", lambda counts: (0.1, 0.1, 0.1))
    stream = np.random.default_rng(1).integers(0, 5, size=200).astype(np.uint16)
    ours = counted_model(2, stream, eos=None, vocab_size=5)
    theirs = nltk_lm.KneserNeyInterpolated(2, discount=0.1)
    words = [str(token) for token in stream]
    theirs.fit([[*ngrams(words, 1), *ngrams(words, 2)]], vocabulary_text=words)
    pairs = {*zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True)}
    shares = torch.tensor([sum(second == word for _, second in pairs) for word in range(5)]) / len(pairs)
    for context in range(5):
        found = ours(torch.tensor([[context]])).logits.exp()[0, 0]
        expected = torch.tensor([theirs.score(str(word), [str(context)]) for word in range(5)])
        uniform_part = ours.tables[0].backoffs[context] * (ours.unigrams - shares)
        assert uniform_part.abs().max() < 0.02
        assert torch.allclose(found - uniform_part, expected, atol=1e-6)


def test_discounts_are_those_of_the_paper_or_none():
    counts = np.repeat([1, 2, 3, 4, 9], [10, 4, 2, 1, 5])
    share = 10 / (10 + 2 * 4)
    expected = (1 - 2 * share * 4 / 10, 2 - 3 * share * 2 / 4, 3 - 4 * share * 1 / 2)
    assert estimate_discounts(counts) == pytest.approx(expected)
    assert estimate_discounts(np.array([1, 1, 2, 5])) is None  # nothing seen three times
    assert estimate_discounts(np.repeat([1, 2, 3], [1, 1, 9])) is None  # would give more than was there


def test_discounts_that_cannot_be_estimated_are_said():
    model, said = NgramForCausalLM(NgramConfig(vocab_size=3, order=2)), []
    fill_model(model, count_ngrams(np.array([1, 2, 1]), 2, 3, None), said.append)
    assert len(said) == 2
    assert "n-grams of 2: too few counts of 1, 2 and 3" in said[1]


def test_a_model_in_which_nothing_was_counted_finds_all_tokens_alike():
    logits = NgramForCausalLM(NgramConfig(vocab_size=8, order=4))(torch.arange(8)[None]).logits
    assert torch.allclose(logits, torch.full((1, 8, 8), -math.log(8)))


def test_a_large_batch_is_worked_on_in_parts(monkeypatch):
    model = counted_model(4)
    rows = torch.from_numpy(STREAM[:120].astype(np.int64)).view(4, 30)
    whole = model(rows).logits
    monkeypatch.setattr(modeling_ngram, "PROBABILITIES_AT_ONCE", 20)
    assert torch.equal(model(rows).logits, whole)


def test_its_size_is_n_grams_and_not_parameters(tmp_path):
    model = counted_model(3)
    expected = [len({tuple(STREAM[i : i + 2]) for i in range(len(STREAM) - 1)} | {(EOS, int(STREAM[0]))})]
    assert model.config.ngrams[:1] == expected
    assert model.num_parameters() == 0
    assert model.config.num_ngrams == VOCABULARY + sum(model.config.ngrams)
    model.save_pretrained(tmp_path)
    assert NgramConfig.from_pretrained(tmp_path).ngrams == model.config.ngrams


def test_it_stays_normalised_where_16_bits_are_asked_for(tmp_path):
    counted_model(3).save_pretrained(tmp_path)
    model = NgramForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.float32
    sums = model(torch.arange(VOCABULARY)[None]).logits.exp().sum(dim=-1)
    assert torch.allclose(sums, torch.ones(()), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"order": 6}, "order=6 is out of range; set it to a number from 1 to 5"),
        ({"order": 0}, "order=0 is out of range"),
        ({"vocab_size": 0}, "vocab_size=0 is not a size"),
        ({"order": 3, "ngrams": [4]}, r"ngrams=\[4\] are no sizes for n-grams of 2 to order=3 tokens; leave them out"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_in_one_line(fields, line):
    with pytest.raises(StrictDataclassClassValidationError, match=line):
        NgramConfig(**fields)
