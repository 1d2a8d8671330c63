import itertools

import numpy as np
import pytest

import smallm_hf.data.reading.documents as documents_module
import smallm_hf.data.selection.select as select_module
from smallm_hf.base.errors import UserError
from smallm_hf.data.reading.documents import Document, cut_pieces
from smallm_hf.data.selection.features import FeatureBuilder
from smallm_hf.data.selection.select import SelectionConfig, select
from smallm_hf.data.selection.splitting import (
    TRAIN,
    VALIDATION,
    hash_fraction,
    plan_inside,
    plan_tail,
    split_by_hash,
    split_by_rare_words,
    validation_blocks,
)


def split(texts, ratio, mode="random"):
    """Returns the texts on either side, pieces joined; nothing is left out."""
    documents = [piece for n, text in enumerate(texts) for piece in cut_pieces(f"d{n}", {}, text.splitlines(True))]
    config = SelectionConfig(duplicates="keep", split=mode, max_leakage=1)
    builder = FeatureBuilder(near_duplicates=False)
    for document in documents:
        builder.add(document)

    def read(source, is_wanted):
        starts = itertools.accumulate(piece.piece == 0 for piece in documents)
        pairs = zip(starts, documents, strict=True)
        return (piece for number, piece in pairs if is_wanted is None or is_wanted[number - 1])

    selection = select(read, [[builder.features()]], [None], config, ratio)
    sides = {TRAIN: [], VALIDATION: []}
    for (side, _), pieces in itertools.groupby(selection.sided(0, documents), lambda p: (p[0], p[1].id)):
        sides[side].append("".join(document.text for _, document in pieces))
    return sides[TRAIN], sides[VALIDATION]


# --- twenty documents and more ---------------------------------------------------------------------------------------


def test_many_documents_are_split_whole_at_about_the_ratio():
    texts = [f"story {number}" for number in range(2000)]
    for ratio in (0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.9):
        train, validation = split(texts, ratio)
        assert sorted(train + validation) == sorted(texts)
        assert abs(len(validation) / 2000 - ratio) < 0.04  # 3.5 standard errors and more


@pytest.mark.parametrize("number", [20, 24, 30, 80])
@pytest.mark.parametrize("ratio", [0.0001, 0.05, 0.2, 0.5, 0.9, 0.9999])
def test_of_few_documents_as_many_bytes_validate_as_whole_ones_allow(number, ratio):
    for seed in range(5):
        lengths = np.random.default_rng(seed).lognormal(5, 1, number).astype(int) + 20
        texts = [f"{seed}-{n:04} ".ljust(length, "x") for n, length in enumerate(lengths)]
        train, validation = split(texts, ratio)
        assert sorted(train + validation) == sorted(texts)
        assert train and validation
        reached, wanted = sum(map(len, validation)), ratio * sum(map(len, texts))
        # No single document could be moved to come nearer.
        nearer = [abs(reached + len(text) - wanted) < abs(reached - wanted) for text in train]
        assert len(train) == 1 or not any(nearer)
        nearer = [abs(reached - len(text) - wanted) < abs(reached - wanted) for text in validation]
        assert len(validation) == 1 or not any(nearer)


def test_the_side_of_a_document_depends_on_its_text_alone():
    texts = [f"story {number}" for number in range(200)]
    _, validation = split(texts, 0.1)
    _, again = split(list(reversed(texts)) * 2 + ["another"], 0.1)
    assert set(validation) == set(again) - {"another"}


def test_a_larger_ratio_keeps_what_a_smaller_one_chose():
    texts = [f"story {number}" for number in range(300)]
    assert set(split(texts, 0.1)[1]) < set(split(texts, 0.3)[1])


def test_all_pieces_of_a_long_document_fall_on_one_side(monkeypatch):
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 50)
    texts = [f"{number} " + "some words " * 20 + "end" for number in range(100)]
    train, validation = split(texts, 0.3)
    assert sorted(train + validation) == sorted(texts)


@pytest.mark.parametrize(("ratio", "side", "verb"), [(0.0001, VALIDATION, "raise"), (0.9999, TRAIN, "lower")])
def test_an_empty_side_is_an_error_whose_fix_works(monkeypatch, ratio, side, verb):
    monkeypatch.setattr(select_module, "FEW_VALIDATE", 0)  # as if they were many
    texts = [f"story {number}" for number in range(30)]
    with pytest.raises(UserError, match=rf"={ratio} leaves the {side} side of 30 documents empty; {verb} it") as info:
        split(texts, ratio)
    assert all(split(texts, float(str(info.value).rpartition(" ")[2])))


def test_equal_documents_cannot_be_split():
    with pytest.raises(UserError, match=r"of 20 documents empty; all are equal, so give data.validation_source"):
        split(["same"] * 20, 0.3)


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5])
def test_a_ratio_that_leaves_no_side_is_an_error(ratio):
    with pytest.raises(UserError, match=rf"data.validation_ratio={ratio} leaves one side"):
        split(["a\n\nb"], ratio)


# --- by rare words ---------------------------------------------------------------------------------------------------


def stories(number, rare=200, of_each=20, seed=0):
    """Texts of 40 common words, with `rare` words that stand in `of_each` texts, anywhere."""
    generator = np.random.default_rng(seed)
    words = [[f"common{word}" for word in generator.integers(0, 500, 40)] for _ in range(number)]
    for word in range(rare):
        for text in generator.choice(number, of_each, replace=False):
            words[text].append(f"rare{word}")
    return [" ".join(text) for text in words]


def deviations(texts, validation, ratio):
    """How far the share of each rare word on validation is from the ratio, squared and averaged, and its root."""
    everywhere, there = ([f" {text} ".count for text in side] for side in (texts, validation))
    counts = [[sum(count(f" rare{word} ") for count in side) for side in (everywhere, there)] for word in range(200)]
    return np.sqrt(np.mean([(on_validation / all_of_it - ratio) ** 2 for all_of_it, on_validation in counts]))


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.25, 0.5, 0.8])
def test_the_stratified_split_spreads_rare_words_more_evenly_than_the_random_one(ratio):
    texts = stories(1000)
    train, validation = split(texts, ratio, "stratified")
    assert sorted(train + validation) == sorted(texts)
    assert abs(len(validation) / 1000 - ratio) < 0.01
    assert deviations(texts, validation, ratio) < 0.85 * deviations(texts, split(texts, ratio)[1], ratio)


def test_words_too_rare_to_be_spread_are_shared_by_the_ratio_all_the_same():
    texts = stories(1000, rare=400, of_each=4)
    _, validation = split(texts, 0.1, "stratified")
    assert abs(sum(text.count("rare") for text in validation) / sum(text.count("rare") for text in texts) - 0.1) < 0.02


def test_a_document_that_has_to_go_with_another_does():
    documents = [Document(text, str(number)) for number, text in enumerate(stories(300))]
    followed = np.arange(300) // 3 * 3
    validates = split_by_rare_words(lambda: documents, followed, 0.25)
    assert (validates == validates[followed]).all()
    assert 0.2 < validates.mean() < 0.3


@pytest.mark.parametrize(("number", "words"), [(25, 200), (300, 0)])
def test_a_corpus_too_small_to_be_stratified_is_an_error(number, words):
    texts = [f"alone{n}" for n in range(number)] if not words else stories(number)
    with pytest.raises(UserError, match=rf"stratified has {number} documents .* data.validation_ratio=0.05; set .*ran"):
        split(texts, 0.05, "stratified")
    with pytest.raises(UserError, match=r"stratified needs 20 documents .*, the source has 3; set selection.split to"):
        split(["a b", "c d", "e f"], 0.05, "stratified")


# --- by hash ---------------------------------------------------------------------------------------------------------


def test_a_hash_below_the_ratio_validates():
    hashes = np.array([0, 2**62, 2**63, 2**64 - 1], np.uint64)
    assert split_by_hash(hashes, 0.3).tolist() == [True, True, False, False]
    assert split_by_hash(hashes, 0.25).tolist() == [True, False, False, False]


def test_the_fraction_of_a_text_is_spread_over_all_from_0_to_1():
    fractions = sorted(hash_fraction(str(number)) for number in range(1000))
    assert max(abs(fraction - place / 1000) for place, fraction in enumerate(fractions)) < 0.06


# --- few documents ---------------------------------------------------------------------------------------------------


def test_few_documents_are_split_inside_by_contiguous_runs_of_paragraphs_all_over():
    paragraphs = [f"first line {number}\nsecond line {number}" for number in range(1000)]
    train, validation = split(["\n\n".join(paragraphs)], 0.05)
    assert [len(run.split("\n\n")) for run in validation] == [5] * 10
    assert sorted("\n\n".join(train + validation).split("\n\n")) == sorted(paragraphs)
    first_of_run = [paragraphs.index(run.split("\n\n")[0]) for run in validation]
    assert all(100 * block <= first < 100 * (block + 1) for block, first in enumerate(first_of_run))
    for run in train + validation:
        assert run in "\n\n".join(paragraphs)


def test_two_paragraphs_are_enough_for_both_sides():
    for ratio in (0.01, 0.5, 0.99):
        assert split(["one\none\n\n\ntwo"], ratio) == (["two"], ["one\none"])


def test_without_blank_lines_lines_are_split_and_without_lines_words():
    train, validation = split(["\n".join(map(str, range(100)))], 0.1)
    assert len(validation) == 10
    assert sorted(map(int, "\n".join(train + validation).split("\n"))) == list(range(100))
    train, validation = split([" ".join(map(str, range(100)))], 0.1)
    assert len(validation) == 10
    assert sorted(map(int, " ".join(train + validation).split(" "))) == list(range(100))


def test_a_run_never_spans_two_documents():
    train, validation = split(["a\n\nb\n\nc", "d\n\ne\n\nf"], 0.5)
    assert sorted("".join(train + validation).replace("\n", "")) == list("abcdef")
    assert not any(set(run) & set("abc") and set(run) & set("def") for run in train + validation)


def test_where_pieces_end_does_not_change_the_split(monkeypatch):
    text = "\n\n".join(f"first line {number}\nsecond line {number}" for number in range(50))
    whole = split([text], 0.1)
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 37)
    assert split([text], 0.1) == whole


def test_a_single_word_cannot_be_split():
    with pytest.raises(UserError, match=r"fewer than two words"):
        split(["word"], 0.1)


def test_runs_have_ids_of_their_own():
    documents = [Document("a\n\nb\n\nc", "x"), Document("d", "y")]
    ids = [document.id for _, document in plan_inside(lambda: documents, 0.3)(documents)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("units", [2, 3, 7, 10, 99, 1000])
@pytest.mark.parametrize("ratio", [0.001, 0.05, 0.3, 0.5, 0.95, 0.999])
def test_blocks_are_disjoint_in_order_and_leave_both_sides_something(units, ratio):
    chosen = [unit for block in validation_blocks(units, ratio) for unit in block]
    assert chosen == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < units
    assert 0 < len(chosen) < units
    assert abs(len(chosen) - ratio * units) <= 1


# --- the tail --------------------------------------------------------------------------------------------------------


def test_the_last_tenth_of_one_text_validates_from_the_character_on_at_which_nanogpt_cuts(shared_data):
    text = (shared_data / "shakespeare" / "tinyshakespeare.txt").read_text().strip()
    cut = int(0.9 * len(text))
    assert split([text], 0.1, "tail") == ([text[:cut]], [text[cut:]])


def test_a_tail_is_cut_in_any_piece_of_any_of_few_documents(monkeypatch):
    texts = ["ab cd ef gh ij", "kl  mn\n\nop", "q"]
    whole = "".join(texts)
    for held in (1000, 4):
        monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", held)
        for cut in range(1, len(whole)):
            train, validation = split(texts, 1 - (cut + 0.5) / len(whole), "tail")
            assert ("".join(train), "".join(validation)) == (whole[:cut], whole[cut:])
            assert len(train) + len(validation) in (3, 4)


def test_pieces_of_a_tail_are_numbered_and_closed(monkeypatch):
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 5)
    documents = [piece for name in "xy" for piece in cut_pieces(name, {}, ["ab cd ef gh ij"])]
    cut = list(plan_tail(lambda: documents, 0.75)(documents))
    for _, run in itertools.groupby(cut, lambda pair: pair[1].id):
        run = [document for _, document in run]
        assert [document.piece for document in run] == list(range(len(run)))
        assert [document.is_last for document in run] == [False] * (len(run) - 1) + [True]
    assert [(side, id) for (side, id), _ in itertools.groupby(cut, lambda pair: (pair[0], pair[1].id))] == [
        (TRAIN, "x:1"),
        (VALIDATION, "x:2"),
        (VALIDATION, "y:2"),
    ]


def test_of_many_documents_the_last_validate_whole():
    texts = [f"story {number} " + "word " * (number % 3) for number in range(100)]
    train, validation = split([text.strip() for text in texts], 0.1, "tail")
    assert train + validation == [text.strip() for text in texts]
    words = sum(len(text.split()) for text in texts)
    assert 0 <= 0.1 * words - sum(len(text.split()) for text in validation) < 4
    assert split(["a b " * 50, *map(str, range(30))], 0.9, "tail")[1] == [*map(str, range(30))]
    assert split([*map(str, range(30)), "a b " * 50], 0.1, "tail")[1] == [("a b " * 50).strip()]


def test_a_tail_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"data.validation_ratio=0.1 of 1 characters leaves one side empty"):
        split(["a"], 0.1, "tail")
