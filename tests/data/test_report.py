import json

import numpy as np
import pytest

from smallm_hf.data.cleaning.cleaning import CleaningConfig
from smallm_hf.data.configuration import DataConfig, Source, TokenizerConfig
from smallm_hf.data.prepare import find_or_prepare
from smallm_hf.data.report import as_markdown
from smallm_hf.data.request import DataRequest
from smallm_hf.data.selection.select import SelectionConfig
from smallm_hf.data.stages import merged
from smallm_hf.tokenizing.loading import save_tokenizer

CATS = [f"The cat said {number} times that it was hungry." for number in range(40)]
DOGS = ["A dog barked", *(f"Dog number {number} slept" for number in range(39)), "A dog barked", CATS[3], "no"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A mixture of two small sources, as files and as its report."""
    folder = tmp_path_factory.mktemp("mixture")
    for name, rows in (("cats", CATS), ("dogs", DOGS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    sources = [Source(str(folder / "cats.jsonl"), 3), Source(str(folder / "dogs.jsonl"), 1)]
    data = DataConfig(sources=sources, validation_ratio=0.2)
    selection = SelectionConfig(duplicates="exact", max_leakage=1)
    request = DataRequest(data, TokenizerConfig("bpe"), 270, CleaningConfig(min_words=2), selection)
    files = find_or_prepare(request, folder / "tokens", 64)
    return files, json.loads((files.folder / "report.json").read_text())


def test_each_stage_says_how_many_documents_and_words_are_left(prepared):
    _, report = prepared
    cats, dogs = report["sources"]
    counts = [(stage["documents"], stage["words"]) for stage in dogs["stages"]]
    assert counts == [(43, 3 + 39 * 4 + 3 + 9 + 1), (42, 3 + 39 * 4 + 3 + 9), (40, 3 + 39 * 4), (40, 3 + 39 * 4)]
    for row, stage in enumerate(report["stages"]):
        assert stage["documents"] == cats["stages"][row]["documents"] + dogs["stages"][row]["documents"]


def test_shares_tokens_and_lengths_are_those_of_the_files(prepared):
    files, report = prepared
    for source, share in zip(report["sources"], files.meta.sources, strict=True):
        assert source["train"]["tokens"] == share.tokens
        assert source["validation"]["tokens"] == share.validation_tokens
        assert source["train"]["bytes_per_token"] == round(share.bytes / share.tokens, 4)
    assert [share["weight"] for share in report["shares"]] == [0.75, 0.25]
    lengths = report["sources"][1]["lengths"]
    assert (lengths["shortest"], lengths["median"], lengths["longest"], lengths["mean"]) == (3, 4, 4, 4.0)


def test_entries_that_training_never_uses_are_counted(prepared):
    files, report = prepared
    used = set(np.unique(files.train))
    special = {files.meta.eos_token_id, files.tokenizer.pad_token_id}
    unused = set(range(270)) - used - special
    assert report["tokenizer"]["unused_entries"] == len(unused) > 100
    assert report["tokenizer"]["unknown_rate"] == {"train": 0, "validation": 0}


def test_tokens_that_stand_for_the_unknown_are_counted(prepared, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"the": 0, "cat": 1, "<unk>": 2, "<eos>": 3}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>")
    save_tokenizer(tokenizer, tmp_path / "words", 64)
    (tmp_path / "a.txt").write_text("the cat the dog " * 10)
    (tmp_path / "b.txt").write_text("the cat the cat")
    data = DataConfig(source=str(tmp_path / "a.txt"), validation_source=str(tmp_path / "b.txt"))
    request = DataRequest(data, TokenizerConfig(str(tmp_path / "words")), 4)
    said = []
    files = find_or_prepare(request, tmp_path / "tokens", 64, said.append)
    report = json.loads((files.folder / "report.json").read_text())
    assert report["tokenizer"]["unknown_rate"] == {"train": 10 / 41, "validation": 0}
    assert report["sources"][0]["train"]["unknown_tokens"] == 10
    assert not report["tokenizer"]["lossless"]
    assert "- not lossless: " in (files.folder / "report.md").read_text()
    assert [line for line in said if "unknown" in line] == [
        "24.3902% of the train tokens are unknown ones, which stand for what has no entry"
    ]


def test_the_page_to_read_has_what_matters(prepared):
    files, report = prepared
    page = (files.folder / "report.md").read_text()
    assert page == as_markdown(report)
    for line in (
        "83 documents of 532 words were read.",
        "read | 83 | 532 |",
        "without duplicates | 80 | 519 | 2.26%",
        "| 75.00% |",
        "dropped for | documents",
        "too short | 1",
        "Of 82 documents 2 were dropped (12 words): 2 are equal to one before",
        "1 of the originals stand in another source",
        "exact, similarity 1.0: dogs.jsonl#41 and, before it, dogs.jsonl#1: `A dog barked`",
        "Asked for: 20.00% of what has no given side, random.",
        "duplicate | 2 | 12",
        "## Leakage",
        "of its runs in training | validation documents",
        "- never used in training:",
    ):
        assert line in page, line
    assert "None" not in page


def test_parts_are_added_up_and_few_examples_kept():
    parts = [
        {"documents": 1, "rules": {"a": {"edits": 2, "examples": [1, 2]}}, "lines": ["x"], "off": None},
        {
            "documents": 2,
            "rules": {"a": {"edits": 3, "examples": [3, 4]}, "b": {"edits": 1}},
            "lines": ["x"],
            "off": None,
        },
    ]
    assert merged(parts) == {
        "documents": 3,
        "rules": {"a": {"edits": 5, "examples": [1, 2, 3]}, "b": {"edits": 1}},
        "lines": ["x"],
        "off": None,
    }
