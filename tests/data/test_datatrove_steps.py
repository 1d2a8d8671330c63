import json

import pytest

import smallm_hf.data.stages as stages
from smallm_hf.base.errors import UserError
from smallm_hf.data.configuration import DataConfig, Source, TokenizerConfig
from smallm_hf.data.prepare import find_or_prepare, parts_folder, shared_stages
from smallm_hf.data.reading import formats
from smallm_hf.data.request import DataRequest
from smallm_hf.data.selection.select import SelectionConfig
from smallm_hf.data.workers import Workers

CONTENT = ("train.bin", "validation.bin", "tokenizer/tokenizer.json", "meta.json")


@pytest.fixture
def request_of_two(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "PART_CHARACTERS", 300)
    for name in ("cats", "dogs"):
        rows = "".join(json.dumps({"text": f"{name} were there {number} times"}) + "\n" for number in range(60))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    sources = [Source(str(tmp_path / f"{name}.jsonl")) for name in ("cats", "dogs")]
    data = DataConfig(sources=sources, validation_ratio=0.2, workers=1)
    return DataRequest(data, TokenizerConfig("bpe"), 270, selection=SelectionConfig(duplicates="exact"))


def content(folder):
    return [(folder / name).read_bytes() for name in CONTENT]


def test_tasks_that_share_the_work_leave_what_one_would(request_of_two, tmp_path):
    find_or_prepare(request_of_two, tmp_path / "one", 64)
    for rank in (1, 0, 2):
        shared_stages(request_of_two, tmp_path / "many", 64, Workers(1)).clean(rank, 3)
        assert len(list(parts_folder(tmp_path / "many").glob("0?-?????"))) >= 3
    for rank in (2, 1, 0):
        shared = shared_stages(request_of_two, tmp_path / "many", 64, Workers(1))
        cleaned = shared.cleaned()
        selection = shared.choose(cleaned)
        shared.encode(cleaned, selection, shared.tokenizer(cleaned, selection), rank, 3)
    find_or_prepare(request_of_two, tmp_path / "many", 64)
    assert content(tmp_path / "many") == content(tmp_path / "one")
    assert not parts_folder(tmp_path / "many").exists()


def test_parts_of_other_settings_are_not_shared(request_of_two, tmp_path):
    shared_stages(request_of_two, tmp_path / "many", 64, Workers(1))
    with pytest.raises(UserError, match=r".many.parts holds parts of other settings, .*; remove it"):
        shared_stages(request_of_two, tmp_path / "many", 128, Workers(1))


def test_the_stages_run_on_the_local_executor_of_datatrove(request_of_two, tmp_path, monkeypatch):
    executors = pytest.importorskip("datatrove.executor", reason="needs the extra `datatrove`")
    from smallm_hf.data.datatrove_steps import prepare_with

    def executor(name, pipeline, tasks, depends):
        logs = str(tmp_path / "logs" / name)
        return executors.LocalPipelineExecutor(pipeline, tasks, workers=1, logging_dir=logs, depends=depends)

    prepare_with(executor, request_of_two, tmp_path / "many", 64, tasks=3).run()
    made = content(tmp_path / "many")
    find_or_prepare(request_of_two, tmp_path / "one", 64)
    assert made == content(tmp_path / "one")
    assert (tmp_path / "logs" / "encode" / "completions" / "00002").exists()


def test_of_many_files_each_of_64_tasks_reads_its_share_and_no_other_reads_again(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    for number in range(128):
        (tmp_path / f"texts/{number:03}.txt").write_text(
            f"{number} " + f"words of text {number} and more of them " * 10
        )
    data = DataConfig(source=str(tmp_path / "texts"), validation_ratio=0.2, workers=1)
    request = DataRequest(data, TokenizerConfig("bpe"), 270, selection=SelectionConfig(duplicates="exact"))
    find_or_prepare(request, tmp_path / "one", 64)
    monkeypatch.setattr(stages, "PART_CHARACTERS", 300)
    opened, original = [], formats._read_file
    monkeypatch.setattr(formats, "_read_file", lambda path, *rest: (opened.append(path), original(path, *rest))[1])
    sizes = []
    for rank in range(64):
        shared_stages(request, tmp_path / "many", 64, Workers(1)).clean(rank, 64)
        sizes.append(sum(path.stat().st_size for path in opened))
        opened.clear()
    assert sum(sizes) == sum(path.stat().st_size for path in (tmp_path / "texts").iterdir())
    assert max(sizes) <= 1.1 * sum(sizes) / 64
    find_or_prepare(request, tmp_path / "many", 64)
    assert not opened
    assert content(tmp_path / "many") == content(tmp_path / "one")
