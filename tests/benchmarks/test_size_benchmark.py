"""The benchmark of preparing large texts: that it makes them, and reports every stage."""

import json

import pytest
from rich.console import Console

from smallm_hf.base.errors import UserError
from smallm_hf.benchmarks import size
from smallm_hf.benchmarks.size import measure_size, print_size, repeat_text

STORY = "the small cat went home with seven friends before dinner and everyone slept soundly until morning came again"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(f"{STORY} {number}\n\n{STORY[::-1]}" for number in range(30)))
    return path


def test_a_text_is_repeated_with_other_words_until_it_is_large(source, tmp_path):
    (tmp_path / "text").mkdir()
    written = repeat_text(str(source), tmp_path / "text", 0.02)
    files = sorted((tmp_path / "text").iterdir())
    assert sum(file.stat().st_size for file in files) == written >= 20_000
    first, other = (file.read_text().split("\n<|endoftext|>\n")[0] for file in files[:2])
    assert len(first.split()) == len(other.split()) == len(f"{STORY} 0 {STORY[::-1]}".split())
    same = sum(a == b for a, b in zip(first.split(), other.split(), strict=True))
    assert 0.3 < same / len(first.split()) < 0.9
    with pytest.raises(UserError, match="holds no text to repeat"):
        (tmp_path / "empty.txt").write_text("")
        repeat_text(str(tmp_path / "empty.txt"), tmp_path / "text", 1)


def test_every_stage_and_the_memory_are_reported(source, gpt2_folder):
    results = measure_size(str(source), megabytes=0.02, workers=[1], tokenizer=str(gpt2_folder))
    (run,) = json.loads(json.dumps(results))["runs"]
    assert {"cleaning", "selection", "tokenizer", "tokens", "joining"} <= set(run["stages"])
    assert run["index_bytes"] == 280 * run["documents"] > 0
    console = Console(record=True, width=120)
    print_size(results, console)
    page = console.export_text()
    assert "cleaning, MB/s" in page and "1 process" in page and "peak anonymous memory" in page


def test_token_files_that_depend_on_the_number_of_processes_are_a_bug(source, gpt2_folder, monkeypatch):
    monkeypatch.setattr(size, "_measure", lambda text, size, workers, *rest: {"sha256": workers})
    with pytest.raises(UserError, match="depend on the number of processes"):
        measure_size(str(source), megabytes=0.02, tokenizer=str(gpt2_folder))
