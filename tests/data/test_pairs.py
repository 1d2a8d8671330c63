"""Pairs: two columns or two files become sources and targets, and these become padded batches."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from smallm_hf.base.errors import UserError
from smallm_hf.data.batches.base import IGNORED
from smallm_hf.data.batches.pairs import PaddedPairs, PairOrder, TokenPairs
from smallm_hf.data.configuration import CleaningConfig, DataConfig, SelectionConfig, TokenizerConfig
from smallm_hf.data.prepare import find_or_prepare
from smallm_hf.data.reading.documents import read_documents
from smallm_hf.data.reading.files import ReadingReport
from smallm_hf.data.request import DataRequest
from smallm_hf.tokenizing.encoding import added_around

PAIRS = [("eins", "one"), ("zwei Katzen", "two cats"), ("drei", "three")]


def read(source, source_column="de", target_column="en", **options) -> list[tuple[str, str]]:
    found = read_documents(str(source), source_column=source_column, target_column=target_column, **options)
    return [(document.text, document.target) for document in found]


def write_parallel(folder, pairs, name="train"):
    for side, column in enumerate(("de", "en")):
        (folder / f"{name}.{column}").write_text("".join(f"{pair[side]}\n" for pair in pairs), encoding="utf-8")
    return folder / name


# --- reading ---------------------------------------------------------------------------------------------------------


def test_parallel_texts_are_found_by_their_common_beginning_and_by_the_first_of_them(tmp_path):
    source = write_parallel(tmp_path, PAIRS)
    assert read(source) == read(tmp_path / "train.de") == PAIRS
    assert read(source, "en", "de") == [(target, text) for text, target in PAIRS]


def test_parallel_texts_may_be_compressed(shared_data):
    pairs = read(shared_data / "multi30k" / "val")
    assert len(pairs) == 1014
    first = (
        "Eine Gruppe von Männern lädt Baumwolle auf einen Lastwagen",
        "A group of men are loading cotton onto a truck",
    )
    assert pairs[0] == first


def test_parallel_texts_of_unequal_length_are_refused_with_both_numbers(tmp_path):
    source = write_parallel(tmp_path, PAIRS)
    (tmp_path / "train.en").write_text("one\ntwo cats\nthree\nfour\nfive\n")
    with pytest.raises(UserError, match=r"train\.de has 3 lines and .*train\.en 5; "):
        read(source)


def test_a_parallel_text_without_its_other_half_is_refused(tmp_path):
    (tmp_path / "train.de").write_text("eins\n")
    with pytest.raises(UserError, match=r"there is train\.de, and no train\.en beside it"):
        read(tmp_path / "train")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_two_columns_of_a_table_are_pairs(tmp_path, name):
    rows = Dataset.from_list([{"n": 1, "de": de, "en": en} for de, en in PAIRS])
    write = {"rows.jsonl": rows.to_json, "rows.csv": rows.to_csv, "rows.parquet": rows.to_parquet}[name]
    write(str(tmp_path / name))
    assert read(tmp_path / name) == PAIRS


def test_columns_are_found_by_number_by_dots_and_in_a_text_of_several(tmp_path):
    (tmp_path / "rows.tsv").write_text("".join(f"{de}\t{en}\tsomebody\n" for de, en in PAIRS))
    assert read(tmp_path / "rows.tsv", "1", "2") == PAIRS
    nested = [{"translation": {"de": de, "en": en}, "domain": "cats"} for de, en in PAIRS]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, nested)))
    assert read(tmp_path / "rows.jsonl", "translation.de", "translation.en") == PAIRS
    prefixed = read(tmp_path / "rows.jsonl", "{domain}: {translation.de}", "translation.en")
    assert prefixed[1] == ("cats: zwei Katzen", "two cats")


def test_every_question_of_squad_is_a_pair_and_all_its_answers_are_kept(tmp_path):
    answered = [
        {"question": "Who sat?", "answers": [{"text": "the cat", "answer_start": 0}, {"text": "a cat"}]},
        {"question": "Where?", "answers": [{"text": "on a mat"}]},
        {"question": "Why?", "answers": []},
    ]
    squad = {"data": [{"title": "Cats", "paragraphs": [{"context": "the cat sat on a mat", "qas": answered}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    report = ReadingReport()
    asked = "question: {question} context: {context}"
    options = {"source_column": asked, "target_column": "answers.text", "report": report}
    first, second = read_documents(str(tmp_path / "squad.json"), **options)
    assert (first.text, first.target) == ("question: Who sat? context: the cat sat on a mat", "the cat")
    assert first.metadata["targets"] == ["the cat", "a cat"]
    assert second.target == "on a mat"
    assert report.lines == ["pairs left out because their source or target is empty: squad.json#3"]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (("fr", "en"), r"row 1 has no column 'fr': there is 'de', 'en', 'n' and no 'fr'; set data.source_column"),
        (("de", "en.text"), r"row 1 has no column 'en.text': there is str and no 'text'"),
        (("de", "n"), r"row 1 holds int in column 'n', not text"),
    ],
)
def test_a_column_that_is_not_there_or_no_text_is_named(tmp_path, columns, reason):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"de": "eins", "en": "one", "n": 1}))
    with pytest.raises(UserError, match=reason):
        read(tmp_path / "rows.jsonl", *columns)


def test_a_text_has_no_columns(tmp_path):
    (tmp_path / "story.txt").write_text("the cat")
    with pytest.raises(UserError, match=r"story\.txt is no table, and has no columns de and en; give one of"):
        read(tmp_path / "story.txt")


# --- token files -----------------------------------------------------------------------------------------------------


def prepare(folder, source, validation=None, **cleaning):
    data = DataConfig(
        str(source),
        validation_source=validation and str(validation),
        source_column="de",
        target_column="en",
        workers=1,
        folder=str(folder / "tokens"),
    )
    keep = SelectionConfig(duplicates="exact", max_leakage=1)
    request = DataRequest(data, TokenizerConfig("char"), 99, CleaningConfig(**cleaning), keep)
    return find_or_prepare(request, None, 32)


def test_token_files_hold_source_and_target_in_turns_and_a_pair_is_dropped_whole(tmp_path):
    noisy = [*PAIRS, ("zwei Katzen", "two cats"), ("vier", "\u200b"), ("zwei", "two words"), ("1 2 3 4", "5 6 7 8")]
    source = write_parallel(tmp_path, noisy)
    files = prepare(tmp_path, source, write_parallel(tmp_path, [("sieben", "seven")], "validation"))
    assert files.is_pairs
    texts = files.tokenizer.decode(files.train).split(files.tokenizer.eos_token)[:-1]
    # The duplicate is gone, and so are an empty target and a pair of digits.
    assert texts == [text for pair in [*PAIRS, ("zwei", "two words")] for text in pair]
    assert files.meta.train.documents == 8
    report = json.loads((files.folder / "report.json").read_text())
    dropped = report["sources"][0]["cleaning"]["dropped"]
    assert {reason: found["documents"] for reason, found in dropped.items()} == {"nothing left": 1, "digits": 1}
    assert files.tokenizer("eins")["input_ids"][-1] == files.tokenizer.eos_token_id


def test_too_few_pairs_are_not_cut_inside(tmp_path):
    with pytest.raises(
        UserError, match="train has fewer than 20 pairs, too few to keep some for validation; give more"
    ):
        prepare(tmp_path, write_parallel(tmp_path, PAIRS))


def test_a_source_column_alone_is_refused():
    with pytest.raises(UserError, match="data.source_column=de and data.target_column=null make pairs together only"):
        DataConfig("rows.csv", source_column="de")


def test_the_folder_of_plain_text_is_the_one_that_it_was_before_there_were_pairs():
    settings = DataRequest(DataConfig("a.txt"), TokenizerConfig(), 300).settings
    assert not [name for name in settings if "_column" in name and name != "data.text_column"]


# --- batches ---------------------------------------------------------------------------------------------------------

EOS, PAD, START = 1, 0, 2


def batches_of(lengths, group=4, seed=3) -> PaddedPairs:
    """Pairs of so many tokens (without eos), whose ids count up from 10."""
    sizes, stream, next_id = [], [], 10
    for pair in lengths:
        for length in pair:
            stream += [*range(next_id, next_id + length), EOS]
            sizes.append([length + 1, length])
            next_id += length
    pairs = TokenPairs.of_documents(np.array(stream, np.uint16), np.array(sizes), ([], [EOS]))
    return PaddedPairs(pairs, PairOrder(pairs.lengths, group, seed), START, PAD)


def test_a_batch_is_its_pairs_shifted_and_padded():
    batches = batches_of([(2, 3), (1, 9)], group=2)
    order = batches.order.at(0, 2).tolist()
    batch = batches.at(0, 2)
    rows = {
        name: {pair: row.tolist() for pair, row in zip(order, tensor, strict=True)}
        for name, tensor in [*batch.inputs.items(), ("targets", batch.targets)]
    }
    assert rows["input_ids"] == {0: [10, 11, EOS], 1: [15, EOS, PAD]}
    assert rows["attention_mask"] == {0: [1, 1, 1], 1: [1, 1, 0]}
    assert rows["decoder_input_ids"][0] == [START, 12, 13, 14, *[PAD] * 6]
    assert rows["targets"][0] == [12, 13, 14, EOS, *[IGNORED] * 6]
    assert rows["targets"][1] == [*range(16, 25), EOS]
    assert batch.counted == batches.counted(0, 2) == 4 + 10 == (batch.targets != IGNORED).sum()


def test_what_the_tokenizer_puts_around_a_text_takes_the_place_of_its_eos():
    pairs = TokenPairs.of_documents(np.array([7, EOS, 8, 9, EOS]), np.array([[2, 1], [3, 2]]), ([5], [EOS, 6]))
    assert pairs.rows(0) == ([5, 7, EOS, 6], [5, 8, 9, EOS, 6])
    assert pairs.lengths.tolist() == [[4, 5]]
    assert len(pairs.fitting(4)) == 0 and len(pairs.fitting(5)) == 1


def test_batches_are_the_same_however_they_are_cut_and_each_pair_comes_once_an_epoch():
    draw = np.random.default_rng(0)
    batches = batches_of(draw.integers(1, 30, (50, 2)).tolist())
    epoch = batches.examples_per_epoch
    assert epoch == 48  # two do not fill a group
    whole = batches.order.at(0, 3 * epoch)
    for number in range(3):
        assert len({*whole[number * epoch : (number + 1) * epoch]}) == epoch
    assert (whole[:epoch] != whole[epoch : 2 * epoch]).any()
    apart = np.concatenate([batches_of(np.array(batches.pairs.lengths - 1)).order.at(n, 1) for n in range(3 * epoch)])
    assert (whole == apart).all()
    alone = batches.at(48, 4).targets
    assert torch.equal(batches.at(44, 8).targets[4:, : alone.shape[1]], alone)


def test_neighbours_are_of_like_length_and_groups_come_in_any_order():
    draw = np.random.default_rng(0)
    batches = batches_of(np.repeat(draw.integers(1, 60, (400, 1)), 2, axis=1).tolist(), group=8)
    groups = batches.pairs.lengths[batches.order.at(0, 400), 1].reshape(-1, 8)
    padded = groups.max(axis=1).sum() * 8 / groups.sum()
    assert padded < 1.1  # in random order it is 1.7
    assert 0.3 < np.mean(np.diff(groups.mean(axis=1)) > 0) < 0.7


def test_a_trained_tokenizer_closes_what_an_encoder_reads(tmp_path):
    files = prepare(
        tmp_path, write_parallel(tmp_path, PAIRS), write_parallel(tmp_path, [("sieben", "seven")], "validation")
    )
    assert added_around(files.tokenizer) == ([], [files.tokenizer.eos_token_id])
