"""scripts/plot.py: its subcommands, the short form for runs, help, mistakes."""

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "plot.py"
TEXT = "Once upon a time, there was a little girl named Lily."


@pytest.fixture
def plot(monkeypatch, capsys):
    """Runs the script in this process; gives its status, standard output and the errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        status = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, bpe) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    bpe.save_pretrained(folder)
    return folder


COMMANDS = {
    "attention": (
        ["--text", TEXT, "--layer", "1"],
        [f"attention_layer1.{kind}" for kind in ("png", "svg", "html")],
    ),
    "tokens": (["--text", TEXT, "--top_k", "3"], ["tokens.png", "tokens.svg", "tokens.html"]),
    "embeddings": (
        ["--top", "12", "--clusters", "3"],
        ["embeddings_tsne.png", "embeddings_tsne.svg", "embeddings_pca.png", "embeddings_pca.svg", "embeddings.html"],
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_subcommand_writes_its_files_and_prints_them(plot, folder, tmp_path, command):
    options, names = COMMANDS[command]
    status, out, _ = plot(command, "--model", folder, "--device", "cpu", *options, "--output_dir", tmp_path)
    assert status == 0
    assert out.splitlines() == [str(tmp_path / name) for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_the_pretrained_model_is_drawn(plot, shared_data, tmp_path):
    model = shared_data / "pretrained" / "stories260K-hf"
    for command, (options, names) in COMMANDS.items():
        assert plot(command, "--model", model, *options, "--output_dir", tmp_path)[0] == 0
        assert all((tmp_path / name).stat().st_size > 5000 for name in names)
    # A trained model: the story's first words are no surprise, as they would be to chance.
    bits = float(re.search(r"([\d.]+) bits per byte", (tmp_path / "tokens.html").read_text())[1])
    assert bits < 1


def test_runs_are_drawn_with_and_without_the_word(plot, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "tokens": 9, "seconds": 1.0, "loss": 2.0}\n')
    short, long = plot(run), plot("runs", run)
    assert short[:2] == long[:2] == (0, f"{run}/figures/loss.png\n{run}/figures/loss.svg\n")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["runs", "attention", "embeddings", "tokens"]),
        (["runs"], ["RUN", "--output_dir"]),
        (["attention"], ["--model", "--text", "--layer", "--head", "from 0"]),
        (["embeddings"], ["--words", "--data", "--top", "--perplexity", "--clusters", "--seed"]),
        (["tokens"], ["--text", "--data", "--top_k", "--max_documents"]),
    ],
)
def test_help_names_what_can_be_asked(plot, command, words):
    status, out, _ = plot(*command, "--help")
    assert status == 0
    assert all(word in out for word in words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention"], "--model and --text are missing; see --help"),
        (["tokens", "--model", "nowhere/at/all", "--text", "x"], "nowhere/at/all is not a folder"),
        (["tokens", "--modell", "x"], "--modell"),
        (["embedding"], "embedding is no kind of picture and no run; did you mean embeddings?"),
        (["nowhere"], "nowhere is not a run with metrics"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(plot, arguments, message):
    status, _, error = plot(*arguments)
    assert status == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
