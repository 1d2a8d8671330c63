"""A run on pairs becomes a repository as any other: what is checked, what its card says, what a push brings."""

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import DatasetCard, HfApi, ModelCard
from letters import MODELS, write_letters, write_recipe
from pyarrow import parquet
from running import train
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from smallm_hf.base.errors import UserError
from smallm_hf.card import Statements, find_weights, render_card
from smallm_hf.data.selection.splitting import SIDES
from smallm_hf.evaluation import texts
from smallm_hf.generation.search import beam_search
from smallm_hf.hub import checks
from smallm_hf.hub.checks import Check, check_elsewhere, verify_card
from smallm_hf.hub.publishing import publish
from smallm_hf.hub.staging import TOKENIZER_FILES, copy_files
from smallm_hf.hub.text import stage_text
from smallm_hf.pretrained import fresh_model, load_scorable


@pytest.fixture(scope="module")
def answering(tmp_path_factory) -> Path:
    """A run on pairs of four steps; not to be changed."""
    folder = tmp_path_factory.mktemp("answering")
    train(write_recipe(folder, write_letters(folder), "marian", max_steps=4), folder / "letters")
    return folder / "letters"


@pytest.fixture
def run(answering, tmp_path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(answering, tmp_path / "letters"))


@pytest.fixture
def in_this_process(monkeypatch):
    """What the checking process runs, without starting one, which takes seconds."""

    def execute(command, **options):
        said = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
            patch.setitem(sys.modules, "smallm_hf", sys.modules["smallm_hf"])  # and back, after that code hid it
            try:
                exec(command[-1], {})
            except Exception as error:
                return SimpleNamespace(returncode=1, stderr=f"{type(error).__name__}: {error}")
        return SimpleNamespace(returncode=0, stdout=said.getvalue())

    monkeypatch.setattr(checks, "subprocess", SimpleNamespace(run=execute))


def test_a_run_on_pairs_is_published_with_every_check_and_the_lines_of_its_card_run(hub, run, in_this_process, capsys):
    publish(run, "user/letters", Statements(language="de,en", license="mit"))
    said = capsys.readouterr().out
    assert "the card says what the records say" in said and "downloaded into an empty cache: the same files" in said
    repository = hub.repositories["model", "user/letters"]
    assert set(repository.tags) == {"best", "final", "step-3", "step-4"}
    files = hub.files("user/letters")
    assert files["model.safetensors"] == (run / "best" / "model.safetensors").read_bytes()
    card = ModelCard(files["README.md"].decode())
    said, best = card.data, json.loads((run / "results.json").read_text())["best"]
    assert (said.pipeline_tag, said.library_name, said.tags) == (
        "translation",
        "transformers",
        ["smallm"],
    )
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    exec(code, {})
    model, tokenizer = load_scorable(str(run / "best"), device="cpu")
    (source,) = re.findall(r'tokenizer\("(\w+)", return', code)
    assert capsys.readouterr().out == f"{beam_search(model, tokenizer, [source], beams=5, max_new_tokens=8)[0]}\n"
    scores = {result.metric_type: result.metric_value for result in said.eval_results}
    assert scores["perplexity"] == round(best["validation_perplexity"], 2)
    assert {result.task_type for result in said.eval_results} == {"translation"}
    assert HfApi().model_info("user/letters").pipeline_tag == "translation"


def test_a_card_says_of_an_encoder_decoder_only_what_holds_for_one(answering):
    card = ModelCard(render_card(answering, find_weights(answering, "best"), repo="user/letters"))
    assert card.data.pipeline_tag is None and card.data.tags == ["smallm", "text2text-generation"]
    assert {result.task_type for result in card.data.eval_results} == {"text2text-generation"}
    assert "MarianMTModel, 1 layers, 1 layers of its decoder, 32 wide" in card.text
    assert not re.search("serve|pipeline|ends a document", card.text)


def test_verifying_the_card_of_a_run_on_pairs_counts_and_scores_again(answering):
    said = "\n".join(verify_card(answering))
    assert "lines are what the records say" in said and "scored again on 160 tokens, the same" in said


def test_other_weights_than_those_of_the_card_are_found(run):
    shutil.copy(run / "checkpoints" / "step-3" / "model.safetensors", run / "best")
    stated = json.loads((run / "results.json").read_text())["best"]["validation_loss"]
    with pytest.raises(UserError, match=rf"the card says validation loss {stated:.6g}, scoring .*best again gives \d"):
        verify_card(run)


@pytest.mark.parametrize("model", ["bart", "t5"])
def test_other_encoder_decoders_load_elsewhere(model, answering, tmp_path, in_this_process):
    trained = AutoConfig.from_pretrained(answering / "best")
    names = ("vocab_size", "pad_token_id", "eos_token_id", "decoder_start_token_id")
    config = AutoConfig.for_model(**MODELS[model], **{name: getattr(trained, name) for name in names})
    folder = tmp_path / model
    fresh_model(config).save_pretrained(folder)
    copy_files(answering / "best", folder, TOKENIZER_FILES)
    assert check_elsewhere([Check(str(folder), folder, folder)], tmp_path / "home") < 1e-5


def _other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights = {name: tensor * 1.01 if "decoder.layers" in name else tensor for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _other_tokenizer(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 19, "content": "The"})
    (folder / "tokenizer.json").write_text(json.dumps(content))


def _other_answer(folder: Path) -> None:
    content = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(content | {"forced_bos_token_id": 15}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_weights, r"the logits of .*other differ from those of .*best by \d"),
        (_other_tokenizer, r"not load where smallm_hf is not installed: .*its tokenizer reads 'The' as \[.*, not as"),
        (_other_answer, r"not load where smallm_hf is not installed: .*it answers '[a-h].*' to 'The', the run"),
    ],
)
def test_what_answers_otherwise_elsewhere_is_refused(change, reason, answering, tmp_path, in_this_process):
    other = Path(shutil.copytree(answering / "best", tmp_path / "other"))
    change(other)
    with pytest.raises(UserError, match=reason):
        check_elsewhere([Check(str(other), other, answering / "best")], tmp_path / "home")


def test_the_pairs_become_a_data_set_of_two_columns(answering, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "TOKENS_AT_A_TIME", 6)  # one text, and half of the next
    results = json.loads((answering / "results.json").read_text())
    stage_text(results, tmp_path, Statements(data_license="mit", language="de,en"), "user/letters-text")
    rows = {side: parquet.read_table(tmp_path / "data" / f"{side}-00000.parquet").to_pylist() for side in SIDES}
    assert {side: len(found) for side, found in rows.items()} == {"train": 400, "validation": 40}
    assert all(row["source"].upper() == row["target"] for found in rows.values() for row in found)
    lines = [(answering.parent / f"validation.{name}").read_text().split() for name in ("low", "high")]
    assert [tuple(row.values()) for row in rows["validation"]] == list(zip(*lines, strict=True))
    card = DatasetCard((tmp_path / "README.md").read_text())
    assert card.data.task_categories == ["translation"]
    assert "one pair per row (`source`, `target`)" in card.text and "| 800 |" in card.text


def test_a_run_on_pairs_pushes_while_it_trains(hub, tmp_path):
    words = ["--hub.repo", "user/letters", "--hub.push_every", 2]
    train(write_recipe(tmp_path, write_letters(tmp_path), "marian", max_steps=2), tmp_path / "run", *words)
    pushed = hub.files("user/letters", "training")
    assert pushed["model.safetensors"] == (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    assert "tokenizer.json" in pushed


@pytest.mark.slow
def test_it_loads_in_a_process_that_cannot_import_the_package(answering, tmp_path):
    assert check_elsewhere([Check(f"{answering}/best", answering / "best", answering / "best")], tmp_path) < 1e-5
