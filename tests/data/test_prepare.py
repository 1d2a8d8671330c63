import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pyarrow
import pytest
from pyarrow import parquet
from transformers import AutoTokenizer

import smallm_hf.data.prepare as prepare_module
import smallm_hf.data.reading.documents as documents_module
import smallm_hf.data.stages as stages
import smallm_hf.data.workers as workers
from smallm_hf.base.errors import UserError
from smallm_hf.data import token_files
from smallm_hf.data.cleaning.cleaning import CleaningConfig
from smallm_hf.data.configuration import DataConfig, Source, TokenizerConfig
from smallm_hf.data.prepare import find_or_prepare, wait_for_token_files
from smallm_hf.data.reading.documents import Document, read_documents
from smallm_hf.data.request import DataRequest, default_folder
from smallm_hf.data.selection.select import SelectionConfig
from smallm_hf.data.token_files import open_token_files
from smallm_hf.tokenizing.loading import save_tokenizer, tokenizer_fingerprint
from smallm_hf.tokenizing.schemes import SCHEMES, train_bpe

BPE = TokenizerConfig("bpe")
DEFAULT = CleaningConfig()
EXACT = SelectionConfig(duplicates="exact")  # the stories are near duplicates
STORIES = [f"Story {number}: the cat sat on mat {number % 7}.\n\nIt was é fine, {number}." for number in range(60)]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(STORIES))
    return path


def prepare(source, folder, vocab_size=270, tokenizer=BPE, cleaning=DEFAULT, selection=EXACT, **options):
    """Prepares with settings fit for a tiny corpus."""
    given = {"sources": source} if isinstance(source, list) else {"source": str(source)}
    data = DataConfig(**given, **{"validation_ratio": 0.2, "workers": 1, **options})
    return find_or_prepare(DataRequest(data, tokenizer, vocab_size, cleaning, selection), folder, 64)


def decoded(files, side):
    """Cuts the ids at eos and decodes what is between."""
    ids = np.array(getattr(files, side)).astype(int)
    assert ids[-1] == files.meta.eos_token_id
    ends = np.flatnonzero(ids == files.meta.eos_token_id)
    return [files.tokenizer.decode(part) for part in np.split(ids, ends + 1)[:-1] for part in [part[:-1]]]


# --- what is written -------------------------------------------------------------------------------------------------


def test_token_files_decode_back_to_the_documents_each_closed_by_eos(source, tmp_path):
    files = prepare(source, tmp_path / "tokens")
    train, validation = decoded(files, "train"), decoded(files, "validation")
    assert sorted(train + validation) == sorted(STORIES)
    assert train
    assert validation


def test_meta_counts_what_is_there(source, tmp_path):
    files = prepare(source, tmp_path / "tokens")
    meta = json.loads((tmp_path / "tokens" / "meta.json").read_text())
    assert (meta["dtype"], meta["vocab_size"]) == ("uint16", 270)
    assert meta["tokenizer_sha256"] == tokenizer_fingerprint(files.tokenizer)
    for side in ("train", "validation"):
        texts, counts = decoded(files, side), meta[side]
        assert counts["documents"] == len(texts)
        assert counts["bytes"] == sum(len(text.encode()) for text in texts)
        assert counts["tokens"] == len(getattr(files, side))
        content = (tmp_path / "tokens" / f"{side}.bin").read_bytes()
        assert counts["sha256"] == hashlib.sha256(content).hexdigest()
        tokens, sizes = files.document_sizes(side).T
        assert sizes.tolist() == [len(text.encode()) for text in texts]
        assert tokens.tolist() == [len(files.tokenizer(text).input_ids) + 1 for text in texts]


def test_sizes_of_documents_that_do_not_add_up_are_refused(source, tmp_path):
    files = prepare(source, tmp_path / "tokens")
    path = tmp_path / "tokens" / "train.npy"
    for damage in (path.read_bytes()[:-8], b"", None):
        path.write_bytes(damage) if damage is not None else path.unlink()
        with pytest.raises(
            UserError, match="train.npy is damaged or of other token files; remove .*tokens and prepare"
        ):
            files.document_sizes("train")
    np.save(path, np.ones((files.meta.train.documents, 2), np.int64))
    with pytest.raises(UserError, match="train.npy is damaged"):
        files.document_sizes("train")


@pytest.mark.parametrize(("vocab_size", "dtype"), [(270, "uint16"), (271, "uint32")])
def test_ids_take_two_bytes_up_to_65536_entries_and_four_beyond(source, tmp_path, monkeypatch, vocab_size, dtype):
    assert token_files.UINT16_ENTRIES == 65_536
    monkeypatch.setattr(token_files, "UINT16_ENTRIES", 270)
    files = prepare(source, tmp_path / "tokens", vocab_size)
    assert files.meta.dtype == files.train.dtype.name == dtype
    assert (files.folder / "train.bin").stat().st_size == len(files.train) * int(dtype[4:]) // 8
    assert sorted(decoded(files, "train") + decoded(files, "validation")) == sorted(STORIES)


def test_the_tokenizer_lies_beside_and_loads_plainly(source, tmp_path):
    prepare(source, tmp_path / "tokens")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokens" / "tokenizer")
    assert len(tokenizer) == 270
    assert tokenizer.model_max_length == 64


def test_the_report_shows_counts_and_examples(source, tmp_path):
    prepare(source, tmp_path / "tokens")
    report = json.loads((tmp_path / "tokens" / "report.json").read_text())
    assert report["train"]["documents"] + report["validation"]["documents"] == 60
    assert report["train"]["share_of_bytes"] + report["validation"]["share_of_bytes"] == pytest.approx(1)
    assert report["train"]["bytes_per_token"] > 1
    assert report["validation"]["examples"][0]["begins"] in STORIES


def test_what_is_cleaned_away_is_in_the_report_and_not_in_the_tokens(tmp_path):
    rows = [f"{text}\x07  \n\n\n\n1&lt;2" for text in STORIES]
    rows += ["too short", "*** START OF THE PROJECT GUTENBERG EBOOK A ***\n\nOnly a book of six words."]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    (tmp_path / "bad.jsonl").write_text("{")
    cleaning = CleaningConfig(min_words=3, html=True)
    files = prepare(tmp_path / "*.jsonl", tmp_path / "tokens", 300, cleaning=cleaning, on_bad_file="skip")
    found = decoded(files, "train") + decoded(files, "validation")
    assert sorted(found) == sorted([*(f"{text}\n\n1<2" for text in STORIES), "Only a book of six words."])
    report = json.loads((tmp_path / "tokens" / "report.json").read_text())
    (source,) = report["sources"]
    assert source["reading"]["encodings"] == {"ascii": 2}
    assert "bad.jsonl row 1 is not JSON" in source["reading"]["bad_files"][0]
    counts = source["cleaning"]
    assert (counts["documents_in"], counts["documents_out"], counts["gutenberg_books"]) == (62, 61, 1)
    assert counts["rules"]["html_remains"]["edits"] == 60
    assert counts["dropped"]["too short"]["documents"] == 1
    assert report["settings"]["cleaning.min_words"] == files.meta.settings["cleaning.min_words"] == 3
    readable = (tmp_path / "tokens" / "report.md").read_text()
    for line in ("read | 62 |", "cleaned | 61 |", "html remains | 60 | 180 | 60", "too short | 1", "bad.jsonl row 1"):
        assert line in readable
    assert not list((tmp_path / "tokens").glob("cleaned*"))


def test_without_cleaning_the_documents_are_packed_as_they_were_read(source, tmp_path):
    source.write_text(source.read_text().replace("cat", "&amp; \u200b"))
    files = prepare(source, tmp_path / "tokens", cleaning=CleaningConfig(enabled=False))
    assert all("&amp; \u200b" in text for text in decoded(files, "validation"))
    assert "Cleaning was off." in (tmp_path / "tokens" / "report.md").read_text()


def test_a_source_that_cleaning_leaves_nothing_of_is_named_with_the_reasons(source, tmp_path):
    with pytest.raises(UserError, match=r"stories.txt: cleaning left no document \(too short: 60\); change these"):
        prepare(source, tmp_path / "tokens", cleaning=CleaningConfig(min_words=100))


def key(data, tokenizer=BPE, vocab_size=270, **sections):
    return default_folder(DataRequest(data, tokenizer, vocab_size, **sections))


def test_streaming_decides_no_id():
    data = DataConfig(source="a/b")
    assert key(data) == key(dataclasses.replace(data, streaming=True))


def test_special_tokens_written_in_a_document_do_not_end_it(tmp_path):
    texts = [f"{number} a <|endoftext|> <|pad|> b" for number in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    files = prepare(tmp_path / "a.jsonl", tmp_path / "tokens", 258)
    assert sorted(decoded(files, "train") + decoded(files, "validation")) == sorted(texts)


def test_documents_without_text_are_left_out_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*STORIES, "", " \n"]))
    meta = prepare(tmp_path / "a.jsonl", tmp_path / "tokens").meta
    assert meta.train.documents + meta.validation.documents == 60
    assert meta.train.empty_documents + meta.validation.empty_documents == 2


def test_a_document_in_pieces_has_the_ids_of_the_whole_and_one_eos(tmp_path, monkeypatch):
    (tmp_path / "book.txt").write_text("\n\n".join(STORIES))
    (tmp_path / "other.txt").write_text("other\n" * 30)
    given = {"validation_source": str(tmp_path / "other.txt")}
    whole = prepare(tmp_path / "book.txt", tmp_path / "whole", **given)
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 100)
    same = TokenizerConfig(str(whole.folder / "tokenizer"))
    pieces = prepare(tmp_path / "book.txt", tmp_path / "pieces", tokenizer=same, **given)
    assert pieces.meta.train.documents == 1
    assert (pieces.train == whole.train).all()
    assert (pieces.document_sizes("train") == whole.document_sizes("train")).all()


def test_a_given_validation_source_is_the_validation_side(source, tmp_path):
    (tmp_path / "valid.txt").write_text("to validate")
    files = prepare(source, tmp_path / "tokens", validation_source=str(tmp_path / "valid.txt"))
    assert decoded(files, "validation") == ["to validate"]
    assert decoded(files, "train") == STORIES


def test_the_vocabulary_is_learned_from_the_training_side_alone(source, tmp_path):
    (tmp_path / "valid.txt").write_text("zyzzyva " * 500)
    files = prepare(source, tmp_path / "tokens", validation_source=str(tmp_path / "valid.txt"))
    assert not any("zy" in token for token in files.tokenizer.get_vocab())


def test_characters_are_those_of_all_the_training_text_and_of_no_other(source, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "sample_texts", lambda texts, characters: iter(()))
    (tmp_path / "valid.txt").write_text("the cat of Ω")
    given = {"tokenizer": TokenizerConfig("char"), "validation_source": str(tmp_path / "valid.txt")}
    files = prepare(source, tmp_path / "tokens", **given)
    assert set(files.tokenizer.get_vocab()) == {*"".join(STORIES), "<|endoftext|>", "<|pad|>", "<|unk|>"}
    assert decoded(files, "train") == STORIES
    assert decoded(files, "validation") == ["the cat of <|unk|>"]
    report = json.loads((tmp_path / "tokens" / "report.json").read_text())
    assert report["tokenizer"]["unknown_rate"] == {"train": 0, "validation": 1 / 13}


def test_the_sample_for_the_vocabulary_is_bounded_and_from_everywhere():
    texts = [f"{number:06}" + "x" * 94 for number in range(10_000)]
    sample = list(stages.sample_texts(iter(texts), 50_000))
    assert 49_900 <= sum(map(len, sample)) <= 50_000
    numbers = sorted(int(text[:6]) for text in sample)
    assert numbers[0] < 200
    assert numbers[-1] > 9800
    assert sorted(stages.sample_texts(reversed(texts), 50_000)) == sorted(sample)


def test_preparing_twice_gives_the_same_files(source, tmp_path):
    first, second = (prepare(source, tmp_path / name) for name in ("one", "two"))
    assert first.meta == second.meta
    for name in ("train.bin", "validation.bin", "tokenizer/tokenizer.json"):
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


# --- several sources ---------------------------------------------------------------------------------------------


@pytest.fixture
def two_sources(tmp_path):
    for name, verb in (("cats", "sat"), ("dogs", "barked")):
        rows = [{"text": f"{name} {verb} {number} times", "other": f"other {name} {number}"} for number in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [Source(str(tmp_path / "cats.jsonl"), 3), Source(str(tmp_path / "dogs.jsonl"), 1, text_column="other")]


def test_documents_of_one_source_lie_together_where_meta_says(two_sources, tmp_path):
    files = prepare(two_sources, tmp_path / "tokens")
    cats, dogs = files.meta.sources
    assert (cats.first_token, dogs.first_token) == (0, cats.tokens)
    assert cats.tokens + dogs.tokens == files.meta.train.tokens
    for share, begins in ((cats, "cats sat"), (dogs, "other dogs")):
        ids = files.train[share.first_token : share.first_token + share.tokens]
        texts = files.tokenizer.decode(ids).split("<|endoftext|>")[:-1]
        assert len(texts) == share.documents
        assert all(text.startswith(begins) for text in texts)
        assert share.bytes == sum(map(len, texts))
    assert sum(share.validation_tokens for share in files.meta.sources) == files.meta.validation.tokens
    assert cats.documents + cats.validation_documents == 40


def test_weights_become_shares_and_may_change_without_preparing_again(two_sources, tmp_path, preparations):
    files = prepare(two_sources, tmp_path / "tokens")
    assert [share.weight for share in files.meta.sources] == [0.75, 0.25]
    other = [dataclasses.replace(source, weight=None) for source in two_sources]
    assert [share.weight for share in prepare(other, tmp_path / "tokens").meta.sources] == [None, None]
    assert len(preparations) == 1
    with pytest.raises(UserError, match=r"data.sources=.*'text_column': 'other'.*this run wants"):
        prepare([other[0], dataclasses.replace(other[1], text_column=None)], tmp_path / "tokens")


def test_what_stands_in_two_sources_trains_once(two_sources, tmp_path):
    cats = (tmp_path / "cats.jsonl").read_text()
    birds = "".join(json.dumps({"text": f"bird {number}"}) + "\n" for number in range(25))
    (tmp_path / "more.jsonl").write_text(cats + birds)
    files = prepare([two_sources[0], Source(str(tmp_path / "more.jsonl"), 1)], tmp_path / "tokens")
    assert [share.documents + share.validation_documents for share in files.meta.sources] == [40, 25]
    (tmp_path / "same.jsonl").write_text(cats)
    with pytest.raises(UserError, match=r"same.jsonl has weight 1 and no document left to train on"):
        prepare([two_sources[0], Source(str(tmp_path / "same.jsonl"), 1)], tmp_path / "others")


def test_a_validation_source_validates_all_of_a_mixture(two_sources, source, tmp_path):
    files = prepare(two_sources, tmp_path / "tokens", validation_source=str(source))
    assert files.meta.train.documents == 80
    assert sorted(decoded(files, "validation")) == sorted(STORIES)


def test_a_source_twice_in_a_mixture_is_refused(two_sources, tmp_path):
    with pytest.raises(UserError, match=r"data.sources has .*cats.jsonl twice; leave one out, .* raise its weight"):
        prepare([two_sources[0], two_sources[0]], tmp_path / "tokens")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "a", "sources": [Source("b")]}, r"data.source=a and data.sources with 1 entries are both given"),
        ({"sources": []}, r"data.sources with 0 entries"),
        ({"source": None}, r"leave nothing to read"),
        ({"sources": [Source("a", 1), Source("b")]}, r"weights \[1, None\]; give every source one above 0, or none"),
        ({"sources": [Source("a", 1), Source("b", 0)]}, r"weights \[1, 0\]"),
        ({"workers": 0}, r"data.workers=0 processes do nothing"),
    ],
)
def test_settings_that_contradict_each_other_are_named(options, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**options)


Memory = namedtuple("Memory", "available")


# --- in parts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(monkeypatch):
    """Cuts the stories into about ten parts."""
    monkeypatch.setattr(stages, "PART_CHARACTERS", 300)


CONTENT = ("train.bin", "validation.bin", "train.npy", "validation.npy", "tokenizer/tokenizer.json", "meta.json")


def content(files):
    return [(files.folder / name).read_bytes() for name in CONTENT]


def report_of(files):
    report = json.loads((files.folder / "report.json").read_text())
    del report["seconds"]
    return report


def test_parts_are_runs_of_whole_documents_of_about_one_size(source, parts):
    texts = list(read_documents(str(source)))
    cut = [list(part) for part in stages.cut_parts(texts)]
    assert [document for part in cut for document in part] == texts
    assert len(cut) > 5
    assert all(300 <= sum(len(document.text) for document in part) < 400 for part in cut[:-1])


def test_a_long_document_is_in_one_part(source, parts, monkeypatch):
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 100)
    source.write_text("\n<|endoftext|>\n".join(["word " * 300, *STORIES]))
    first = next(stages.cut_parts(read_documents(str(source))))
    assert len({piece.id for piece in first}) == 1


def test_files_made_in_parts_are_those_made_at_once(source, tmp_path, monkeypatch):
    whole = prepare(source, tmp_path / "whole")
    monkeypatch.setattr(stages, "PART_CHARACTERS", 300)
    cut = prepare(source, tmp_path / "cut")
    assert content(cut) == content(whole)
    assert report_of(cut) == report_of(whole)


def test_two_processes_make_the_same_files_as_one(source, tmp_path, parts):
    one, two = (prepare(source, tmp_path / f"{number}", workers=number) for number in (1, 2))
    assert content(one) == content(two)
    assert report_of(one) == report_of(two)
    assert not multiprocessing.active_children()
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "stories.txt"}


def test_runs_of_files_are_read_and_cleaned_by_whoever_does_them_with_the_same_outcome(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / f"texts/{number:02}.txt").write_text("\n<|endoftext|>\n".join(STORIES[number * 3 : number * 3 + 3]))
    (tmp_path / "texts" / "a.log").write_text("passed over")
    whole = prepare(tmp_path / "texts", tmp_path / "whole")
    monkeypatch.setattr(stages, "PART_CHARACTERS", 300)
    one, two = (prepare(tmp_path / "texts", tmp_path / f"{number}", workers=number) for number in (1, 2))
    assert content(one) == content(two) == content(whole)
    assert report_of(one) == report_of(two) == report_of(whole)
    assert report_of(one)["sources"][0]["reading"]["passed_over"] == ["1 .log such as a.log"]


def test_a_run_of_files_that_is_done_is_not_read_again(tmp_path, monkeypatch, parts):
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / f"texts/{number:02}.txt").write_text(" ".join(STORIES[number * 3 : number * 3 + 3]))
    encode = stages.Stages.encode
    monkeypatch.setattr(stages.Stages, "encode", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(tmp_path / "texts", tmp_path / "tokens")
    monkeypatch.setattr(stages.Stages, "encode", encode)
    monkeypatch.setattr(stages, "clean_run", None)
    assert prepare(tmp_path / "texts", tmp_path / "tokens").meta.train.documents


def test_a_text_of_one_part_starts_no_process(source, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "ProcessPoolExecutor", None)
    assert prepare(source, tmp_path / "tokens", workers=2).meta.train.documents


def test_a_mistake_in_the_last_part_is_told_by_two_processes_too(tmp_path, parts):
    rows = "".join(json.dumps({"text": text}) + "\n" for text in STORIES)
    (tmp_path / "a.jsonl").write_text(rows + "broken")
    with pytest.raises(UserError, match=r"a.jsonl row 61 is not JSON"):
        prepare(tmp_path / "a.jsonl", tmp_path / "tokens", workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("stage", ["clean_part", "encode_part"])
def test_after_an_interruption_finished_parts_are_not_done_again(source, tmp_path, monkeypatch, parts, stage):
    expected = content(prepare(source, tmp_path / "uninterrupted"))
    done, original = [], getattr(stages, stage)

    def stop_at_third(part, *arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(part.name)
        return original(part, *arguments)

    monkeypatch.setattr(stages, stage, stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()
    assert not list(tmp_path.glob(".tokens.partial"))
    again = []
    monkeypatch.setattr(stages, stage, lambda part, *rest: (again.append(part.name), original(part, *rest))[1])
    assert content(prepare(source, tmp_path / "tokens")) == expected
    assert done == ["00-00000", "00-00001"] if stage == "clean_part" else ["00-00000.tokens", "00-00001.tokens"]
    assert again
    assert not set(again) & set(done)
    assert not list(tmp_path.glob(".tokens*"))


def test_finished_parts_of_other_settings_or_another_text_are_not_taken(source, tmp_path, monkeypatch, parts):
    original = stages.Stages.encode
    for change in (lambda: source.write_text(source.read_text().replace("cat", "dog")), lambda: None):
        monkeypatch.setattr(stages.Stages, "encode", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(source, tmp_path / "tokens")
        assert list(tmp_path.glob(".tokens.parts/00-*"))
        change()
    monkeypatch.setattr(stages.Stages, "encode", original)
    files = prepare(source, tmp_path / "tokens", cleaning=CleaningConfig(min_words=3))
    assert all("dog" in text for text in decoded(files, "train"))


KILLED = """
import multiprocessing, os, signal, sys
import smallm_hf.data.stages as stages
from smallm_hf.data.configuration import DataConfig, TokenizerConfig
from smallm_hf.data.prepare import find_or_prepare
from smallm_hf.data.request import DataRequest
from smallm_hf.data.selection.select import SelectionConfig

def kill(*arguments):
    print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

stages.PART_CHARACTERS, stages.Stages.choose = 300, kill
data = DataConfig(source=sys.argv[1], workers=2, validation_ratio=0.2)
request = DataRequest(data, TokenizerConfig("bpe"), 270, selection=SelectionConfig(duplicates="exact"))
find_or_prepare(request, sys.argv[2], 64)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills as Unix does")
def test_after_a_kill_no_process_is_left_and_the_next_run_goes_on(source, tmp_path, monkeypatch, parts):
    arguments = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "tokens")]
    killed = subprocess.run(arguments, capture_output=True, text=True)
    workers = [int(pid) for pid in killed.stdout.split()]
    assert len(workers) == 2, killed.stderr
    deadline = time.monotonic() + 20
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(psutil.pid_exists, workers))
    assert len(list(tmp_path.glob(".tokens.parts/00-*"))) > 5
    monkeypatch.setattr(stages, "clean_part", None)
    assert prepare(source, tmp_path / "tokens", workers=2).meta.train.documents


def test_there_are_no_more_processes_than_cores_and_gibibytes(monkeypatch):
    monkeypatch.setattr(workers.psutil, "virtual_memory", lambda: Memory(available=3 << 30))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert workers.Workers(None).number == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
    assert workers.Workers(None).number == 2
    assert workers.Workers(5).number == 5


def test_a_process_that_is_killed_is_named():
    with (
        workers.Workers(2) as pool,
        pytest.raises(UserError, match=r"one of the 2 processes .* was killed, .* run again with fewer data.workers"),
    ):
        list(pool.map(os._exit, [(9,), (9,)]))


def test_the_work_of_a_process_that_is_killed_is_kept(source, tmp_path, monkeypatch):
    def killed(*arguments):
        raise workers.WorkerKilled("gone")

    monkeypatch.setattr(stages, "encode_part", killed)
    with pytest.raises(UserError, match="gone"):
        prepare(source, tmp_path / "tokens")
    assert list(tmp_path.glob(".tokens.parts/00-*"))


def test_the_documents_that_are_wanted_are_read_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "ROWS_CHARACTERS", 10)
    documents = [
        Document("first", "a"),
        Document("second ", "b", is_last=False),
        Document("goes on", "b", piece=1),
        Document("", "c"),
        Document("fourth \u2019", "d"),
    ]
    path = tmp_path / "text.arrow"
    stages.write_documents(path, documents)
    assert list(stages.read_part(path)) == documents
    assert list(stages.read_part(path, np.array([False, True, False, True]))) == [*documents[1:3], documents[4]]
    assert list(stages.read_part(path, np.zeros(4, bool))) == []
    stages.write_documents(path, [])
    assert list(stages.read_part(path)) == []


def test_lines_that_are_removed_since_many_documents_have_them_are_told(tmp_path):
    texts = [f"All rights are reserved.\n\n{text}" for text in STORIES]
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(texts))
    asked, said = CleaningConfig(repeated_lines=0.5), []
    for cleaning, wanted in ((DEFAULT, texts), (asked, STORIES)):
        data = DataConfig(source=str(tmp_path / "a.txt"), validation_ratio=0.2, workers=1)
        folder = tmp_path / str(cleaning.repeated_lines)
        files = find_or_prepare(DataRequest(data, BPE, 270, cleaning, EXACT), folder, 64, said.append)
        assert sorted(decoded(files, "train") + decoded(files, "validation")) == sorted(wanted)
    line, lost = [line for line in said if "repeated_lines" in line]
    assert "documents lost more than 5% of their words" in lost and "most to repeated_lines" in lost
    assert "removes 1 lines that many documents have, such as 'All rights are reserved.'" in line


def test_a_corpus_of_equal_documents_says_what_became_of_them(tmp_path):
    (tmp_path / "same.txt").write_text("\n<|endoftext|>\n".join(["The same story about a cat and a dog."] * 30))
    message = r"left no document \(nothing left: 30\); they are made of the same lines; .* cleaning.repeated_lines to 0"
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "same.txt", tmp_path / "tokens", cleaning=CleaningConfig(repeated_lines=0.5))
    with pytest.raises(UserError, match="all are equal, so give data.validation_source"):
        prepare(tmp_path / "same.txt", tmp_path / "tokens")


# --- found again -----------------------------------------------------------------------------------------------------


@pytest.fixture
def preparations(monkeypatch):
    """Counts how often token files were made."""
    made = []
    original = prepare_module._write
    monkeypatch.setattr(prepare_module, "_write", lambda *arguments: (made.append(1), original(*arguments)))
    return made


def test_token_files_are_used_again_when_nothing_changed(source, tmp_path, monkeypatch, preparations):
    monkeypatch.chdir(tmp_path)
    first = prepare(source, None)
    assert prepare(source, None).folder == first.folder
    assert first.folder.parent == Path("data")
    source.touch()
    prepare(source, None)  # another time, the same bytes
    assert len(preparations) == 1


def test_two_runs_that_want_the_same_token_files_make_them_once(source, tmp_path, preparations):
    with ThreadPoolExecutor(2) as runs:
        first, second = runs.map(lambda _: prepare(source, tmp_path / "tokens"), range(2))
    assert first.meta == second.meta
    assert len(preparations) == 1


def test_a_changed_source_is_prepared_again_in_the_default_folder(source, tmp_path, monkeypatch, preparations):
    monkeypatch.chdir(tmp_path)
    before = prepare(source, None)
    source.write_text(source.read_text().replace("cat", "dog"))
    after = prepare(source, None)
    assert len(preparations) == 2
    assert after.folder == before.folder
    assert "dog" in decoded(after, "train")[0]
    assert list(Path("data").iterdir()) == [after.folder]


def test_other_settings_have_another_default_folder(source):
    data = DataConfig(source=str(source))
    folders = {
        key(data),
        key(data, vocab_size=271),
        key(data, TokenizerConfig("gpt2")),
        key(dataclasses.replace(data, validation_ratio=0.3)),
        key(data, cleaning=CleaningConfig(min_words=3)),
        key(data, selection=SelectionConfig(duplicates="keep")),
    }
    assert len(folders) == 6
    assert all(folder.name.startswith("stories-") for folder in folders)
    assert key(dataclasses.replace(data, folder="x")) in folders


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 280}, r"model.vocab_size=270, this run wants 280"),
        ({"text_column": "story"}, r"data.text_column=text, this run wants story"),
        ({"tokenizer": TokenizerConfig("gpt2")}, r"tokenizer.source=bpe, this run wants gpt2"),
        ({"cleaning": CleaningConfig(html=False)}, r"cleaning.html=auto, this run wants False"),
    ],
)
def test_a_given_folder_that_holds_other_token_files_is_refused(source, tmp_path, change, message):
    prepare(source, tmp_path / "tokens")
    with pytest.raises(UserError, match=rf"tokens holds token files with {message}; give another data.folder"):
        prepare(source, tmp_path / "tokens", **change)


def test_a_given_folder_made_from_a_source_that_has_changed_is_refused(source, tmp_path):
    prepare(source, tmp_path / "tokens")
    source.write_text(source.read_text() + "more")
    with pytest.raises(UserError, match=r"content \w{12}, .*stories.txt now has \w{12}"):
        prepare(source, tmp_path / "tokens")


@pytest.mark.parametrize("how", ["more of it", "as long and as old"])
def test_a_source_that_changes_while_it_is_prepared_is_refused_and_then_prepared_as_it_is(
    source, tmp_path, monkeypatch, how
):
    def write_meanwhile(*arguments):
        before, written = source.read_text(), source.stat().st_mtime_ns
        source.write_text(before + "more" if how == "more of it" else before.replace("cat", "dog"))
        if how != "more of it":
            os.utime(source, ns=(written, written))
        monkeypatch.undo()
        return train_bpe(*arguments)

    monkeypatch.setitem(SCHEMES, "bpe", dataclasses.replace(SCHEMES["bpe"], train=write_meanwhile))
    with pytest.raises(
        UserError, match=r"stories.txt was changed while it was prepared \(content \w{12} before, \w{12}"
    ):
        prepare(source, tmp_path / "tokens")
    assert [path.name for path in tmp_path.iterdir()] == ["stories.txt"]
    files = prepare(source, tmp_path / "tokens")
    assert sorted(decoded(files, "train") + decoded(files, "validation")) == sorted(
        text.strip() for text in source.read_text().split("\n<|endoftext|>\n")
    )


def test_token_files_of_an_older_format_are_made_again_in_the_default_folder_alone(
    source, tmp_path, monkeypatch, preparations
):
    monkeypatch.chdir(tmp_path)
    for folder in (None, tmp_path / "given"):
        files = prepare(source, folder)
        meta = json.loads((files.folder / "meta.json").read_text())
        (files.folder / "meta.json").write_text(json.dumps(meta | {"format": 2}))
    prepare(source, None)
    assert len(preparations) == 3
    with pytest.raises(UserError, match=r"given holds token files of format 2, this version reads 3; remove it and"):
        prepare(source, tmp_path / "given")


def test_token_files_of_another_tokenizer_are_refused(source, tmp_path):
    given = TokenizerConfig(str(tmp_path / "given"))
    save_tokenizer(train_bpe(STORIES, 270), given.source, 64)
    files = prepare(source, tmp_path / "tokens", tokenizer=given)
    other = train_bpe([text.upper() for text in STORIES], 270)
    with pytest.raises(UserError, match=r"made by tokenizer \w{12} \(270 entries\), not by \w{12} \(270 entries\)"):
        files.check_tokenizer(other)
    save_tokenizer(other, given.source, 64)
    with pytest.raises(UserError, match=r"holds token files with tokenizer \w{12}, .*given is now \w{12}"):
        prepare(source, tmp_path / "tokens", tokenizer=given)
    save_tokenizer(other, files.folder / "tokenizer", 64)
    with pytest.raises(UserError, match=r"were made by tokenizer"):
        _ = open_token_files(files.folder).tokenizer


def test_a_folder_with_other_files_is_left_alone(source, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(UserError, match=r"photos holds other files and no token files"):
        prepare(source, tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]


def test_waiting_ends_with_the_files_of_the_source_as_it_is_not_as_it_was(source, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "POLL_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    request = DataRequest(DataConfig(source=str(source)), BPE, 270, selection=EXACT)
    stale = find_or_prepare(request, None, 64)
    source.write_text(source.read_text() + "\n<|endoftext|>\nOne more story about a fox.\n")
    with pytest.raises(TimeoutError):
        wait_for_token_files(request, timeout_seconds=0.2)
    later = threading.Timer(0.2, find_or_prepare, (request, None, 64))
    later.start()
    files = wait_for_token_files(request, timeout_seconds=60)
    later.join()
    assert files.meta.content_sha256 != stale.meta.content_sha256


# --- bad input and interruptions -------------------------------------------------------------------------------------


def test_a_source_without_text_is_named(tmp_path):
    (tmp_path / "a.txt").write_text(" \n<|endoftext|>\n\n")
    with pytest.raises(UserError, match=r"a.txt is empty"):
        prepare(tmp_path / "a.txt", tmp_path / "tokens")


def test_of_equal_documents_none_is_left_to_validate(tmp_path):
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(["same again"] * 30))
    with pytest.raises(UserError, match=r"validation side of 30 documents empty; all are .*data.validation_source"):
        prepare(tmp_path / "a.txt", tmp_path / "tokens")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_what_is_guessed_skipped_and_odd_in_a_text_is_said_and_kept_in_the_report(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    try:
        polish = "Ile cię trzeba cenić, ten tylko się dowie, kto cię stracił. Dziś piękność twą w całej ozdobie widzę. "
        Path(os.fsdecode(os.fsencode(folder) + b"/\xc8\xfd.txt")).write_bytes(polish.encode("cp1250") * 3)
    except OSError:
        pytest.skip("this file system wants names of Unicode")
    (folder / "a.csv").write_text("id;text\n" + "".join(f"{n};{text!r}\n" for n, text in enumerate(STORIES)))
    (folder / "b.jsonl").write_text(json.dumps({"text": "one <|endoftext|> two"}))
    (folder / "c.txt").write_text("many words\n" * 20 + "on\0e\n")
    (folder / "d.epub").write_bytes(b"no zip")
    (folder / "info.json").write_text("{}")
    said = []
    data = DataConfig(source=str(folder), validation_ratio=0.2, workers=1, on_bad_file="skip")
    files = find_or_prepare(DataRequest(data, BPE, 300, DEFAULT, EXACT), tmp_path / "tokens", 64, said.append)
    texts = [text for side in ("train", "validation") for text in decoded(files, side)]
    assert [text[-14:] for text in texts if "many" in text] == ["many words\none"]
    assert any("piękność twą" in text for text in texts)
    notes = (
        "guessed (data.encoding states it): \\udcc8\\udcfd.txt: read as windows-1250, as in line 1: 'Ile cię trzeba",
        "guessed (data.separator states it): a.csv: ';'",
        "separates no documents, being inside a line or a row: b.jsonl: 1 of them, the first is number 1",
        "NUL bytes or characters (cleaning, if it is on, removes them): c.txt: 1 of them, the first in line 21",
        "files skipped, or left from a fault on: ",
        "tables without the text column passed over: info.json",
    )
    readable = (tmp_path / "tokens" / "report.md").read_text()
    for note in notes:
        assert any(note in line for line in said), note
        assert note.partition(": ")[2] in readable, note


def test_a_working_folder_may_have_a_name_of_any_bytes(source, tmp_path, monkeypatch):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system wants names of Unicode")
    shutil.copy(source, folder)
    monkeypatch.chdir(folder)
    files = prepare("stories.txt", "tokens")
    assert sorted(decoded(files, "train") + decoded(files, "validation")) == sorted(STORIES)


def test_saved_splits_train_and_validate(tmp_path):
    import datasets

    rows = datasets.Dataset.from_dict({"text": STORIES})
    splits = {"train": rows.select(range(50)), "validation": rows.select(range(50, 60)), "test": rows}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    files = prepare(tmp_path / "saved", tmp_path / "tokens", validation_split="validation")
    assert decoded(files, "train") == STORIES[:50]
    assert decoded(files, "validation") == STORIES[50:]
    other = prepare(tmp_path / "saved", tmp_path / "other", split="test")
    assert sorted(decoded(other, "train") + decoded(other, "validation")) == sorted(STORIES)


def test_each_source_may_state_how_it_is_read(tmp_path):
    rows = "id|text\n" + "\n".join(f'1|"{story} łódź"' for story in STORIES)
    (tmp_path / "a.csv").write_bytes(rows.encode("iso8859-2"))
    (tmp_path / "b.txt").write_text("\n<|endoftext|>\n".join(f"Text {n} of many words" for n in range(20)))
    sources = [
        Source(str(tmp_path / "a.csv"), encoding="iso8859-2", separator="|"),
        Source(str(tmp_path / "b.txt"), encoding="utf-8"),
    ]
    files = prepare(sources, tmp_path / "tokens", encoding="koi8-r")
    assert sum("łódź" in text for side in ("train", "validation") for text in decoded(files, side)) == len(STORIES)
    with pytest.raises(UserError, match="data.encoding=latin99 is not the name of an encoding"):
        DataConfig(encoding="latin99")
    with pytest.raises(UserError, match="data.separator=';;' is not one character"):
        Source("a.csv", separator=";;")


def test_bad_files_are_counted_in_the_report(source, tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(25):
        (tmp_path / "texts" / f"{number}.epub").write_bytes(b"no zip")
    source.rename(tmp_path / "texts" / "stories.txt")
    prepare(tmp_path / "texts", tmp_path / "tokens", on_bad_file="skip")
    report = json.loads((tmp_path / "tokens" / "report.json").read_text())
    assert len(report["sources"][0]["reading"]["bad_files"]) == 25
    readable = (tmp_path / "tokens" / "report.md").read_text()
    assert "Files skipped, or left from a fault on: 25" in readable
    assert readable.count("is a broken EPUB") == 20


def test_an_empty_validation_source_is_named(source, tmp_path):
    (tmp_path / "valid.txt").touch()
    with pytest.raises(UserError, match=r"valid.txt is empty"):
        prepare(source, tmp_path / "tokens", validation_source=str(tmp_path / "valid.txt"))


def test_a_source_is_not_its_own_validation(source, tmp_path):
    for name in (source, source.parent / "." / ".." / source.parent.name / source.name):
        with pytest.raises(UserError, match=r"would be its own validation"):
            prepare(source, tmp_path / "tokens", validation_source=str(name))
    with pytest.raises(UserError, match=r"would be its own validation"):
        prepare("some/stories", tmp_path / "tokens", validation_split="train")


def test_a_split_to_validate_on_is_nothing_to_a_local_file(source, tmp_path):
    files = prepare(source, tmp_path / "tokens", validation_split="validation")
    assert sorted(decoded(files, "train") + decoded(files, "validation")) == sorted(STORIES)


def test_a_tokenizer_of_another_size_than_the_model_is_refused_before_any_work(
    source, tmp_path, gpt2_folder, monkeypatch
):
    monkeypatch.setattr(prepare_module, "_write", None)
    with pytest.raises(UserError, match=r"model.vocab_size=270, but tokenizer.source=.* has 50257 entries; set"):
        prepare(source, tmp_path / "tokens", tokenizer=TokenizerConfig(str(gpt2_folder)))


@pytest.mark.parametrize("error", [UserError("no"), OSError(28, "No space left on device")])
def test_a_preparation_that_fails_leaves_nothing_behind(source, tmp_path, monkeypatch, error):
    def stop(*arguments):
        raise error

    monkeypatch.setattr(token_files.SideWriter, "close", stop)
    with pytest.raises(UserError):
        prepare(source, tmp_path / "below" / "tokens")
    assert not (tmp_path / "below").exists()


def test_an_interruption_leaves_older_token_files_as_they_were(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = DataRequest(DataConfig(source=str(source)), BPE, 270, selection=EXACT)
    before = find_or_prepare(request, None, 64)
    source.write_text(source.read_text() + "\n<|endoftext|>\nOne more story about a fox.\n")
    monkeypatch.setattr(token_files.SideWriter, "close", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        find_or_prepare(request, None, 64)
    assert open_token_files(before.folder).meta == before.meta


def test_what_a_killed_process_left_is_cleared_away(source, tmp_path):
    (tmp_path / ".tokens.partial").mkdir()
    (tmp_path / ".tokens.partial" / "train.bin").touch()
    prepare(source, tmp_path / "tokens")
    assert not (tmp_path / ".tokens.partial").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as Unix does")
def test_a_full_disk_is_named_and_leaves_nothing(source, tmp_path):
    program = (
        "import resource, sys; from smallm_hf.data.request import *; from smallm_hf.data.prepare import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "request = DataRequest(DataConfig(source=sys.argv[1]), TokenizerConfig('bpe'), 258)\n"
        "try: find_or_prepare(request, sys.argv[2], 64)\n"
        "except UserError as error: print(error)\n"
    )
    source.write_text(source.read_text() * 50)
    arguments = [sys.executable, "-c", program, str(source), str(tmp_path / "tokens")]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("no space left to write")
    assert not any(path.name.endswith((".partial", "tokens")) for path in tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(source, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data.folder .*file is a file; give another data.folder"):
        prepare(source, tmp_path / "file" / "tokens")


# --- memory ----------------------------------------------------------------------------------------------------------


def anonymous_bytes(process):
    """Memory of a process and its children that no file backs; mapped pages, which can be dropped, are not in it."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{member.pid}/status").read_text().splitlines()
        except FileNotFoundError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    return total


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads RssAnon from Linux' /proc")
@pytest.mark.parametrize(("tokenizer", "form"), [("bpe", "one text"), ("gpt2", "many texts"), ("gpt2", "rows")])
def test_peak_memory_is_the_same_for_20_and_200_megabytes(tmp_path, gpt2_folder, tokenizer, form):
    program = (
        "import sys; from smallm_hf.data.request import *; from smallm_hf.data.prepare import *\n"
        "data, tokenizer = DataConfig(source=sys.argv[1], workers=1), TokenizerConfig(sys.argv[2])\n"
        "find_or_prepare(DataRequest(data, tokenizer, int(sys.argv[3])), sys.argv[4], 256)\n"
    )
    pick = np.random.default_rng(0)
    words = np.array(["".join(pick.choice(list("etaoinshrdlu"), pick.integers(2, 9))) for _ in range(20_000)])
    chosen = [str(gpt2_folder), "50257"] if tokenizer == "gpt2" else ["bpe", "1024"]
    peaks, index = {}, {}
    for megabytes in (20, 200):
        texts = [" ".join(pick.choice(words, 200)) for _ in range(megabytes * 834)]
        source = tmp_path / (f"{megabytes}.parquet" if form == "rows" else f"{megabytes}.txt")
        if form == "rows":
            parquet.write_table(pyarrow.table({"text": texts}), source)
        else:
            source.write_text(("\n\n" if form == "one text" else "\n<|endoftext|>\n").join(texts))
        process = psutil.Popen([sys.executable, "-c", program, str(source), *chosen, str(tmp_path / f"{megabytes}")])
        peaks[megabytes] = 0
        while process.poll() is None:
            peaks[megabytes] = max(peaks[megabytes], anonymous_bytes(process))
            time.sleep(0.02)
        assert process.returncode == 0
        duplicates = json.loads((tmp_path / f"{megabytes}" / "report.json").read_text())["selection"]["duplicates"]
        index[megabytes] = duplicates["documents"] * duplicates["index_bytes_per_document"]
        source.unlink()
    print({megabytes: f"{peak / 1e6:.0f} MB" for megabytes, peak in peaks.items()})
    assert peaks[200] - index[200] < 1.07 * (peaks[20] - index[20])


@pytest.mark.parametrize("name", ["tinystories_valid.txt", "tinystories_valid.parquet"])
def test_real_stories_go_in_and_come_out(shared_data, tmp_path, name):
    files = prepare(shared_data / "tinystories" / name, tmp_path / "tokens", 1024)
    assert files.meta.train.documents + files.meta.validation.documents == 1500
    assert decoded(files, "validation")[0] in (shared_data / "tinystories" / "tinystories_valid.txt").read_text()
    shutil.rmtree(files.folder)
