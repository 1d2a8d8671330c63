"""The benchmark of preparation: that its quick run reports, and that both ways find the same tokens."""

import json

import pytest
from rich.console import Console

from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks import data
from smallm_hf.benchmarks.data import LOOP, OURS, compare_preparing, print_preparing
from smallm_hf.benchmarks.rounds import in_rounds, ratio_text

STORIES = [
    f"Once upon a time there were {number} cats, and don't you forget it: {number * number}." for number in range(60)
]


@pytest.fixture
def stories(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"story": story}) + "\n" for story in STORIES))
    return path


def test_a_quick_run_reports_both_ways_and_the_same_tokens(stories, gpt2_folder):
    settings = {"tokenizer": str(gpt2_folder), "text_column": "story", "workers": 1, "quick": True}
    results = json.loads(json.dumps(compare_preparing(stories, **settings)))
    assert list(results["ways"]) == [LOOP, OURS]
    assert results["bytes"] == sum(len(story.encode()) for story in STORIES)
    assert results["tokens"] > len(STORIES) * 15
    assert all(numbers["rate"] > 0 for numbers in results["ways"].values())
    console = Console(record=True, width=120)
    print_preparing(results, console)
    text = console.export_text()
    assert "MB/s" in text and "stories.jsonl" in text


def test_ways_that_do_not_do_the_same_are_not_compared(stories, gpt2_folder, monkeypatch):
    monkeypatch.setattr(data, "_loop", lambda *_, **__: 7)
    with pytest.raises(UserError, match="must find the same tokens in .*stories.jsonl, and found .* and 7"):
        compare_preparing(stories, tokenizer=str(gpt2_folder), text_column="story", workers=1, quick=True)


def test_a_text_without_documents_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"book\.txt is not one of \.jsonl"):
        compare_preparing(tmp_path / "book.txt")


def test_ways_take_turns_and_are_compared_within_a_round(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("smallm_hf.benchmarks.rounds.time.perf_counter", lambda: next(clock))
    told = []

    def way(name: str, works: list[int]):
        return lambda: told.append(name) or works.pop(0)

    results = in_rounds({"one": way("one", [10, 20, 40]), "two": way("two", [20, 20, 20])}, rounds=3)
    assert told == ["one", "two", "two", "one", "one", "two"]
    assert results["one"]["rates"] == [10, 20, 40] and results["one"]["rate"] == 20
    assert results["two"]["ratio"] == {"median": 1, "lowest": 0.5, "highest": 2}
    assert ratio_text(results["two"]["ratio"]) == "1.00 (0.50 to 2.00)"
