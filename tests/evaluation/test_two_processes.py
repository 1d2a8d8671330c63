"""score.py in two processes, as a user starts them: the same numbers as in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import gpt2, save

from smallm_hf.evaluation.configuration import ScoringQuestions
from smallm_hf.evaluation.model_scores import evaluate_models

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TEXTS = [f"{'abc fed ' * (number % 4)}bad {'cafe' * number}. deaf 日" for number in range(23)]
RULES = {
    "documents": {},
    "sliding": {"context_length": 16, "stride": 5},
    "packed": {"context_length": 16},
    "within": {"protocol": "packed", "context_length": 16, "within_documents": True},
}
# Scores by each rule in one launch: starting is what takes long.
SEVERAL_TIMES = """
import json, runpy, sys
script, rules, *given = sys.argv[1:]
for name, rule in json.loads(rules).items():
    options = {"protocol": name, "output": f"{name}.json"} | rule
    sys.argv = [script, *given, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """A folder with a model and its scores by each of the rules, of one launch of two processes."""
    folder = tmp_path_factory.mktemp("launched")
    save(folder / "model", gpt2(n_positions=64))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (folder / "several_times.py").write_text(SEVERAL_TIMES)
    config = str(REPOSITORY / "configs" / "accelerate" / "cpu_2_processes.yaml")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "several_times.py"]
    given = ["--model", "model", "--data", "texts.jsonl", "--device", "cpu", "--batch_size", "3"]
    finished = subprocess.run(
        [*launcher, str(REPOSITORY / "scripts" / "score.py"), json.dumps(RULES), *given],
        **{"cwd": folder, "env": {**os.environ, "ACCELERATE_USE_CPU": "true"}},
        **{"capture_output": True, "text": True, "encoding": "utf-8", "timeout": 240},
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("bits per byte") == len(RULES)  # one of them speaks
    return folder


@pytest.mark.parametrize("name", RULES)
def test_two_processes_count_the_same_and_find_the_same_nats_as_one(launched, name):
    two = json.loads((launched / f"{name}.json").read_text(encoding="utf-8"))
    questions = ScoringQuestions(**{"protocol": name} | RULES[name])
    data, model = (str(launched / file) for file in ("texts.jsonl", "model"))
    (one,) = evaluate_models([model], data, questions, {"device": "cpu"})["models"]
    assert (two["processes"], one["processes"], two["dtype"]) == (2, 1, "float32")
    for count in ("tokens", "bytes", "characters", "words", "documents", "top1_accuracy", "top3_accuracy"):
        assert two[count] == one[count], count
    assert two["loss"] * two["tokens"] == pytest.approx(one["loss"] * one["tokens"], rel=1e-6)
    assert two["mean_entropy_nats"] == pytest.approx(one["mean_entropy_nats"], rel=1e-6)
    for table, bins in one["tables"].items():
        assert len(two["tables"][table]) == len(bins)
        for other, bin in zip(two["tables"][table], bins, strict=True):
            assert other == pytest.approx(bin, rel=1e-5)
    for kind, documents in one["documents_by_difficulty"].items():  # their order is kept
        assert [part["text"] for part in two["documents_by_difficulty"][kind]] == [part["text"] for part in documents]
