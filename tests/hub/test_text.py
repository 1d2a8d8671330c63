"""The text of a run becomes a data set that `load_dataset` reads, when it may be given away."""

import json
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import DatasetCard, HfApi

from smallm_hf.base.errors import UserError
from smallm_hf.card import Statements
from smallm_hf.data.reading.documents import read_texts
from smallm_hf.evaluation import texts
from smallm_hf.hub import publishing, text
from smallm_hf.hub.publishing import publish
from smallm_hf.hub.text import stage_text, write_text

GIVEN = Statements(data_license="cc0-1.0")


@pytest.fixture
def unchecked(monkeypatch):
    monkeypatch.setattr(publishing, "check_elsewhere", lambda *arguments, **options: 0.0)


def test_the_text_comes_back_through_load_dataset_and_the_card_names_it(hub, run, unchecked, elsewhere, finished_run):
    publish(run, "user/tiny", GIVEN, checkpoints=False, data_repo="user/tiny-text")
    code = """
import json
from datasets import load_dataset
text = load_dataset("user/tiny-text")
print(json.dumps({split: rows["text"][:] for split, rows in text.items()}))
"""
    found = json.loads(elsewhere(code).splitlines()[-1])
    counts = json.loads((run / "results.json").read_text())["data"]
    assert {split: len(rows) for split, rows in found.items()} == {
        split: counts[split]["documents"] for split in ("train", "validation")
    }
    assert sorted(found["train"] + found["validation"]) == sorted(read_texts(str(finished_run.parent / "stories.txt")))
    files = hub.files("user/tiny-text", kind="dataset")
    assert set(files) == {"README.md", "meta.json", "data/train-00000.parquet", "data/validation-00000.parquet"}
    assert b"stories.txt" in files["README.md"] and str(finished_run.parent).encode() not in b"".join(files.values())
    assert HfApi().model_info("user/tiny").card_data.datasets == ["user/tiny-text"]
    assert ".eval_results/validation.yaml" in hub.files("user/tiny")
    hub.bytes_received = 0
    publish(run, "user/tiny", GIVEN, checkpoints=False, data_repo="user/tiny-text")
    assert hub.bytes_received == 0


def test_a_dry_run_shows_the_text_too(run, unchecked, capsys):
    publish(run, "user/tiny", GIVEN, dry_run=True, data_repo="user/tiny-text")
    said = capsys.readouterr().out
    assert "  data/train-00000.parquet\n" in said and 'load_dataset("user/tiny-text")' in said


def test_the_card_of_a_licence_without_a_name_on_the_hub_is_valid(hub, run, tmp_path):
    (tmp_path / "text").mkdir()
    results = json.loads((run / "results.json").read_text())
    stage_text(results, tmp_path / "text", replace(GIVEN, data_license="psf-2.0", language="en"), "user/text")
    content = (tmp_path / "text" / "README.md").read_text()
    HfApi()._validate_yaml(content, repo_type="dataset")
    data = DatasetCard(content).data
    assert (data.license, data.license_name, data.language) == ("other", "psf-2.0", ["en"])
    assert "None" not in content and "{{" not in content


@pytest.mark.parametrize(
    ("change", "statements", "message"),
    [
        (
            {},
            Statements(),
            r"nobody has stated the licence of .*stories.txt, which --data_repo gives away; add --data_l",
        ),
        ({"on_hub": True}, GIVEN, r"data.source=.*stories.txt is on the Hub already, .*; leave out --data_repo"),
        ({"folder": "gone"}, GIVEN, r"the token files of the run are no longer in gone; leave out --data_repo"),
    ],
)
def test_text_that_is_not_to_be_given_away_is_refused(run, tmp_path, change, statements, message):
    results = json.loads((run / "results.json").read_text())
    with pytest.raises(UserError, match=message):
        stage_text(results | {"data": results["data"] | change}, tmp_path, statements, "user/text")
    assert not (tmp_path / "data").exists()


def test_a_tokenizer_that_loses_something_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "decode_blocks", lambda *_: [["a"]])
    results = json.loads((run / "results.json").read_text())
    with pytest.raises(UserError, match=r"does not reproduce the train text: 1 documents of 1 bytes, \d+ of"):
        stage_text(results, tmp_path, GIVEN, "user/text")


def test_documents_longer_than_a_block_and_more_than_a_file_come_back_whole(tmp_path, monkeypatch):
    from pyarrow import parquet

    class Letters:
        name_or_path = "letters"

        eos_token_id, unk_token_id, unk_token = 0, None, None

        def decode(self, ids, **options):
            return "".join(chr(96 + id) for id in ids)

    monkeypatch.setattr(texts, "TOKENS_AT_A_TIME", 3)
    monkeypatch.setattr(text, "SHARD_BYTES", 2)
    tokens = np.array([1, 2, 0, 3, 4, 5, 6, 7, 8, 0, 9, 0], dtype=np.uint16)
    assert write_text(texts.decode_blocks(tokens, Letters()), tmp_path, "train") == (3, 9)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["train-00000.parquet", "train-00001.parquet"]
    rows = [row for file in files for row in parquet.read_table(file)["text"].to_pylist()]
    assert rows == ["ab", "cdefgh", "i"]
