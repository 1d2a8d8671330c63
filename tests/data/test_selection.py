import functools
import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest

import smallm_hf.data.reading.documents as documents_module
import smallm_hf.data.selection.select as select_module
from smallm_hf.base.errors import UserError
from smallm_hf.data.reading.documents import Document, cut_pieces, read_documents
from smallm_hf.data.selection.features import FeatureBuilder
from smallm_hf.data.selection.select import DUPLICATE, LEAKED, TRAINS, VALIDATES, SelectionConfig, select


def features_of(documents, config):
    builder = FeatureBuilder(config.duplicates == "near")
    for document in documents:
        builder.add(document)
    return builder.features()


def read(sources, source, is_wanted):
    starts = itertools.accumulate(piece.piece == 0 for piece in sources[source])
    pairs = zip(starts, sources[source], strict=True)
    return (piece for number, piece in pairs if is_wanted[number - 1])


def choose(*sources, sides=(None,), ratio=0.25, **settings):
    """Selects from sources, lists of texts."""
    config = SelectionConfig(**settings)
    documents = [
        [piece for number, text in enumerate(texts) for piece in cut_pieces(f"d{number}", {}, text.splitlines(True))]
        for texts in sources
    ]
    features = [[features_of(source, config)] for source in documents]
    selection = select(functools.partial(read, documents), features, list(sides), config, ratio)
    json.dumps(selection.report)
    return selection


def story(number, words=200, changed=0.0, seed=0):
    """A text of words of its own, some of them changed at random places."""
    own = np.random.default_rng(number).integers(0, 10_000, words)
    generator = np.random.default_rng([number, seed])
    is_changed = generator.random(words) < changed
    return " ".join(f"x{word}" if other else f"w{word}" for word, other in zip(own, is_changed, strict=True))


STORIES = [story(number) for number in range(40)]


# --- duplicates ------------------------------------------------------------------------------------------------------


def test_the_first_of_equal_documents_stays_within_and_across_sources():
    first, second = STORIES[:25] + STORIES[3:5], STORIES[20:40]
    chosen = choose(first, second, sides=(TRAINS, None), duplicates="exact")
    assert np.flatnonzero(chosen.sides[0] == DUPLICATE).tolist() == [25, 26]
    assert np.flatnonzero(chosen.sides[1] == DUPLICATE).tolist() == list(range(5))
    report = chosen.report["duplicates"]
    assert (report["exact"], report["near"], report["dropped"], report["across_sources"]) == (7, 0, 7, 5)
    assert report["dropped_words"] == 1400
    assert report["examples"][0]["other"] == {"source": 0, "id": "d25", "begins": STORIES[3][:160]}


def test_nearly_equal_documents_are_duplicates_only_where_that_is_asked_for():
    texts = [*STORIES, *(f"The {text}!" for text in STORIES)]
    assert (choose(texts).sides[0][40:] == DUPLICATE).all()
    assert (choose(texts).sides[0][:40] != DUPLICATE).all()
    for duplicates in ("exact", "keep"):
        assert (choose(texts, duplicates=duplicates, max_leakage=1).sides[0] <= VALIDATES).all()


def test_a_text_copied_often_leaves_as_a_duplicate_before_it_could_pass_as_a_formula():
    copies = [f"{STORIES[0]} And number {number}." for number in range(8)]
    sources, sides = ([*STORIES, *copies], [STORIES[0], story(99)]), (TRAINS, VALIDATES)
    chosen = choose(*sources, sides=sides)
    assert (chosen.sides[0][40:] == DUPLICATE).all() and chosen.sides[1].tolist() == [DUPLICATE, VALIDATES]
    kept = choose(*sources, sides=sides, duplicates="keep")
    assert kept.report["leakage"]["documents_mostly_formula"] == 1  # said in the report, and kept as asked for


def test_short_documents_are_duplicates_only_if_equal():
    texts = [f"number {number}" for number in range(40)]
    assert (choose([*texts, texts[7]]).sides[0] == DUPLICATE).tolist() == [False] * 40 + [True]


def test_empty_documents_are_no_duplicates_and_train():
    chosen = choose(["", *STORIES, "", ""])
    assert chosen.sides[0][[0, 41, 42]].tolist() == [TRAINS] * 3
    assert chosen.report["duplicates"]["dropped"] == 0


def test_all_is_kept_where_that_is_asked_for_and_equal_documents_are_on_one_side():
    sides = choose(STORIES * 2, duplicates="keep", max_leakage=1).sides[0]
    assert (sides[:40] == sides[40:]).all()
    assert set(sides.tolist()) == {TRAINS, VALIDATES}


def test_a_duplicate_of_training_text_leaves_a_given_validation_source_and_never_the_other_way():
    training, validation = STORIES[:20], [*STORIES[18:30], story(3, changed=0.005, seed=1)]
    for order in (1, -1):
        sources, sides = [training, validation][::order], (TRAINS, VALIDATES)[::order]
        trains, validates = choose(*sources, sides=sides).sides[::order]
        assert trains.tolist() == [TRAINS] * 20
        assert validates.tolist() == [DUPLICATE] * 2 + [VALIDATES] * 10 + [DUPLICATE]
    report = choose(training, validation, sides=(TRAINS, VALIDATES)).report["duplicates"]
    assert report["of_validation_source_in_training"] == 3


# --- the split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["random", "stratified"])
@pytest.mark.parametrize("ratio", [0.25, 0.2, 0.1, 0.05, 0.37, 0.8])
def test_the_ratio_is_kept_and_two_editions_never_sit_on_both_sides(ratio, split):
    editions = [(story(n, 400), story(n, 400, changed=0.035, seed=1)) for n in range(400)]  # similarity about 0.72
    texts = [text for pair in editions for text in pair]
    chosen = choose(texts, ratio=ratio, split=split, max_leakage=1)
    first, second = chosen.sides[0].reshape(-1, 2).T
    assert (np.delete(first, np.flatnonzero(second == DUPLICATE)) == second[second != DUPLICATE]).all()
    assert (second == DUPLICATE).mean() < 0.2
    assert abs((first == VALIDATES).mean() - ratio) < 0.06


def test_documents_stay_on_their_side_when_others_are_appended(monkeypatch):
    monkeypatch.setattr(select_module, "FEW_VALIDATE", 0)  # as if they were many
    texts, others = (
        [story(number, 400, changed=0.035, seed=seed) for seed in seeds for number in range(40)]
        for seeds in ((1, 2), (3, 4))
    )
    before = choose(texts, max_leakage=1).sides[0]
    after = choose([*texts, *others, *STORIES], max_leakage=1).sides[0]
    assert before.tolist() == after[:80].tolist()


def test_what_is_related_to_a_given_source_goes_to_its_side():
    given = [story(number, 400) for number in range(40)]
    related = [story(number, 400, changed=0.03, seed=1) for number in range(80)]
    for side in (TRAINS, VALIDATES):
        chosen = choose(given, related, sides=(side, None), ratio=0.5, max_leakage=1)
        pairs = np.stack([chosen.sides[0], chosen.sides[1][:40]])
        pairs = pairs[:, (pairs != DUPLICATE).all(axis=0)]
        assert pairs.shape[1] > 30
        assert (pairs == side).all()
        assert set(chosen.sides[1][40:].tolist()) == {TRAINS, VALIDATES}


def test_few_documents_are_cut_inside_and_duplicates_of_them_left_out():
    texts = ["one\n\ntwo\n\nthree", "four\n\nfive", "four\n\nfive"]
    chosen = choose(texts, STORIES, sides=(None, None), ratio=0.4)
    assert [chosen.is_inside(source) for source in (0, 1)] == [True, False]
    documents = [Document(text, str(number)) for number, text in enumerate(texts)]
    sided = [(side, document.text.strip()) for side, document in chosen.sided(0, documents)]
    assert sorted(word for _, text in sided for word in text.split()) == sorted(["one", "two", "three", "four", "five"])
    assert {side for side, _ in sided} == {"train", "validation"}
    assert chosen.report["split"]["sources_cut_inside"] == {0: {"unit": "paragraphs", "runs": 2}}


def test_what_duplicates_leave_of_a_source_among_others_trains():
    for texts in (STORIES, STORIES[1:]):  # all of the second source stands in the first, or all but one
        first, second = choose(texts, STORIES[:25], sides=(None, None)).sides
        assert set(first.tolist()) == {TRAINS, VALIDATES}
        assert second.tolist() == [TRAINS] * (len(STORIES) - len(texts)) + [DUPLICATE] * (
            25 - len(STORIES) + len(texts)
        )
    with pytest.raises(
        UserError, match=r"of 25 documents empty; all are near duplicates, so give data.validation_source"
    ):
        choose(STORIES, STORIES[:25], sides=(TRAINS, None))


def test_parts_of_a_source_have_the_sides_of_the_whole():
    chosen = choose([*STORIES, STORIES[0]])
    documents = [Document(text, str(number)) for number, text in enumerate([*STORIES, STORIES[0]])]
    whole = list(chosen.sided(0, documents))
    assert len(whole) == 40
    parts = [
        sided
        for stretch in (slice(7), slice(7, 30), slice(30, None))
        for sided in replace(chosen, sides=[chosen.sides[0][stretch]]).sided(0, documents[stretch])
    ]
    assert parts == whole


def test_pieces_follow_their_document(monkeypatch):
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 100)
    chosen = choose(STORIES)
    pieces = [piece for n, text in enumerate(STORIES) for piece in cut_pieces(str(n), {}, re.split(r"(?= )", text))]
    assert len(pieces) > 200
    sides = {piece.id: side for side, piece in chosen.sided(0, pieces) if piece.piece == 0}
    assert all(sides[piece.id] == side for side, piece in chosen.sided(0, pieces))
    assert list(sides.values()) == [("train", "validation")[side] for side in chosen.sides[0]]


# --- leakage ---------------------------------------------------------------------------------------------------------


def test_documents_that_share_too_much_leave_validation_and_never_training():
    training = [f"{STORIES[number]} {STORIES[number + 10]}" for number in range(10)]  # two tales in one
    validation = [*STORIES[5:15], *STORIES[30:35]]
    settings = {"sides": (TRAINS, VALIDATES), "similarity": 0.99}
    trains, validates = choose(training, validation, **settings).sides
    assert trains.tolist() == [TRAINS] * 10
    assert validates.tolist() == [LEAKED] * 10 + [VALIDATES] * 5
    chosen = choose(training, validation, **settings)
    report = chosen.report["leakage"]
    assert (report["documents_left_validation"], report["distribution"]["0.8-1"]) == (10, 10)
    assert len(report["examples"]) == 5
    assert report["examples"][0]["share"] == 1
    assert choose(training, validation, max_leakage=1, **settings).sides[1].tolist() == [VALIDATES] * 15
    assert len(list(chosen.sided(1, [Document(text, text) for text in validation]))) == 5


def test_leakage_of_a_split_source_is_that_of_its_own_sides():
    quote = story(1000, 100)
    texts = [f"{text} {quote} {number}" for number, text in enumerate(STORIES)]  # 100 of 301 words
    assert LEAKED not in choose(texts).sides[0]  # it is a formula
    with pytest.raises(UserError, match=r"no document of 40 is left for the validation side: 0 are .* 10 share more"):
        choose(texts, formula_documents=100)
    sides = choose([*texts, *(story(number) for number in range(2000, 2040))], formula_documents=100).sides[0]
    assert set(sides[:40].tolist()) == {TRAINS, LEAKED}
    assert set(sides[40:].tolist()) == {TRAINS, VALIDATES}


def test_nothing_leaves_a_source_that_is_cut_inside_but_leakage_is_measured():
    text = "\n\n".join(STORIES[:2] * 3)
    chosen = choose([text], ratio=0.4)
    assert chosen.report["leakage"]["quantiles"]["1"] > 0.9
    assert {side for side, _ in chosen.sided(0, [Document(text, "x")])} == {"train", "validation"}


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicates", ["exact", "near", "keep"])
def test_a_corpus_of_duplicates_leaves_nothing_to_validate_on(duplicates):
    kind = "near duplicates" if duplicates == "near" else "equal"
    match = rf"=0.25 leaves the validation side of 30 documents empty; all are {kind}, so give data.validation_source"
    with pytest.raises(UserError, match=match):
        choose(STORIES[:1] * 30, duplicates=duplicates)


def test_a_corpus_of_one_text_in_many_versions_leaves_nothing_to_validate_on():
    texts = [story(0, 400, changed=0.05, seed=seed) for seed in range(30)]  # similarity to each other about 0.4
    match = (
        r"=0.25 leaves the validation side of \d\d documents empty; all are related \(similarity above 0.4\), so give"
    )
    with pytest.raises(UserError, match=match):
        choose([story(0, 400), *texts], similarity=1)
    sides = choose([story(0, 400), *texts], duplicates="exact", max_leakage=1).sides[0]
    assert set(sides.tolist()) == {TRAINS, VALIDATES}


def test_a_validation_source_that_is_all_in_training_is_an_error():
    match = (
        r"no document of 25 is left for the validation side: 5 are duplicates \(selection.duplicates=near\), 0 share"
    )
    with pytest.raises(UserError, match=match):
        choose(STORIES[:20], STORIES[:5], sides=(TRAINS, VALIDATES))
    with pytest.raises(
        UserError, match=r"left for the validation side: 0 are .*, 5 share more than .*max_leakage=0.2 "
    ):
        choose([" ".join(STORIES)], STORIES[:5], sides=(TRAINS, VALIDATES))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"ratio": 0}, r"data.validation_ratio=0 leaves one side of the split empty; set it between 0 and 1"),
        ({"ratio": 1.5}, r"data.validation_ratio=1.5 leaves one side"),
        ({"similarity": 0.3}, r"selection.similarity=0.3 is not a share above 0.4 and up to 1; set it to 0.8"),
        ({"similarity": 1.2}, r"selection.similarity=1.2 is not a share"),
        ({"max_leakage": -0.1}, r"selection.max_leakage=-0.1 is a share; set it between 0 and 1"),
        ({"formula_documents": -1}, r"selection.formula_documents=-1 is negative; set it to 0 or more"),
    ],
)
def test_a_setting_out_of_range_is_an_error(settings, match):
    with pytest.raises(UserError, match=match):
        choose(STORIES, **settings)


# --- real text -------------------------------------------------------------------------------------------------------


def test_editions_of_a_book_are_found_and_different_books_are_not(shared_data):
    names = ("98-0", "98-8", "84-0", "1342-0", "old-pandp12", "46-0", "2591-0", "pg-grimm")
    documents = [
        replace(piece, id=name)
        for name in names
        for piece in read_documents(str(shared_data / "books" / f"{name}.txt"))
    ]
    config = SelectionConfig()
    features = features_of(documents, config)
    chosen = select(functools.partial(read, [documents]), [[features]], [None], config, 0.3)
    assert chosen.sides[0].tolist() == [0, DUPLICATE, 0, 0, DUPLICATE, 0, 0, DUPLICATE]
