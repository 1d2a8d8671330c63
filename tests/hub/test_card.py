"""The card says what the records say, and nothing that they do not."""

import configparser
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard, parse_eval_result_entries

from smallm_hf.base import shipped
from smallm_hf.base.errors import UserError
from smallm_hf.base.shipped import top_file
from smallm_hf.card import Statements, eval_results, find_weights, render_card, without_paths
from smallm_hf.hub.checks import verify_card
from smallm_hf.hub.staging import stage

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "publish.py"


def edit(path: Path, **changes) -> None:
    """Changes entries of a JSON file; a dot in a name goes one level down."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        *parents, last = name.split("__")
        inner = content
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    path.write_text(json.dumps(content))


def card(run: Path, name: str = "best", *arguments, **options) -> ModelCard:
    return ModelCard(render_card(run, find_weights(run, name), *arguments, **options))


def test_the_card_of_a_run_is_the_one_that_its_records_give(finished_run):
    for name in ("best", "final"):
        assert (finished_run / name / "README.md").read_text() == render_card(
            finished_run, find_weights(finished_run, name)
        )


def test_the_numbers_are_those_of_the_records(finished_run):
    text, results = card(finished_run).text, json.loads((finished_run / "results.json").read_text())
    best = results["best"]
    for written in (
        f"{results['parameters']:,} parameters, {results['embedding_parameters']:,} of them in tables",
        f"{results['parameters'] - results['embedding_parameters']:,} elsewhere",
        f"| {best['validation_loss']:.4f} | {best['validation_perplexity']:.2f} | ",
        f"| {best['validation_bits_per_byte']:.4f} | {best['validation_top1_accuracy']:.1%} | ",
        f"On {best['validation_tokens']:,} tokens ({best['validation_bytes']:,} bytes)",
        results["protocol"],
        f"{results['flops'] / 2:.2e} FLOPs",  # at half of the run
        f"`{results['data']['content_sha256']}`",
        f"stories.txt: {results['data']['train']['documents']} documents, {results['data']['train']['bytes']:,} bytes",
        f"384 ({results['epochs'] / 2:.2f} epochs) in 3 optimizer steps",
        "Qwen3ForCausalLM, 2 layers, 32 wide, 2 heads, 280 entries in the vocabulary, 32 positions",
    ):
        assert written in text, written


def test_every_set_of_weights_has_its_own_numbers_and_samples(finished_run):
    results = json.loads((finished_run / "results.json").read_text())
    for name, scored in (("step-3", results["best"]), ("step-6", results["last"]), ("final", results["last"])):
        text, step = card(finished_run, name).text, scored["step"]
        assert f"{128 * step} ({results['epochs'] * step / 6:.2f} epochs) in {step} optimizer steps" in text
        assert f"at step {step}:" in text and f"| {scored['validation_loss']:.4f} | " in text
        assert ("## Samples" in text) == (step == 6)  # drawn at the end only
    for sample in map(json.loads, (finished_run / "samples.jsonl").read_text().splitlines()):
        assert f"\n{sample['prompt']}{sample['text']}\n~~~~~~\n" in text
    assert "seed 42, temperature 0.8, top-p 0.95, 5 tokens at most" in text


def test_what_there_is_no_record_of_does_not_appear(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [record for record in records if record["step"] != 3 or "validation_loss" not in record]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    unscored = card(run, "step-3", repo="user/tiny")
    for absent in ("## Results", "## Samples", "## Revisions", "figures/", "llama", "ONNX", "None", "{{", "{%"):
        assert absent not in unscored.text, absent
    assert unscored.data.eval_results is None and unscored.data.metrics is None and unscored.data.datasets is None
    edit(run / "results.json", environment__commit=None)
    assert "| commit |" not in card(run).text and "at the commit" not in card(run).text


def test_the_licence_of_the_text_is_stated_known_or_said_to_be_unknown(run):
    assert "**unknown**: nobody has stated it" in card(run).text
    assert "| its licence | cc0-1.0 |" in card(run, "best", Statements(data_license="cc0-1.0")).text
    edit(run / "results.json", data__source="python-docs", config__data__source="python-docs")
    assert "| its licence | psf-2.0 |" in card(run).text and card(run).data.language == ["en"]
    edit(run / "results.json", config__data__license="mine")
    assert "| its licence | mine |" in card(run).text


def test_a_text_of_the_hub_is_named_and_scored_under_its_name(run):
    source = "roneneldan/TinyStories"
    edit(run / "results.json", data__source=source, config__data__source=source, data__on_hub=True)
    named = card(run, repo="user/tiny")
    assert named.data.datasets == [source] and "cdla-sharing-1.0" in named.text
    assert {result.dataset_type for result in named.data.eval_results} == {source}
    results = json.loads((run / "results.json").read_text())
    entries = parse_eval_result_entries(eval_results(results, find_weights(run, "best"), Statements(), "user/tiny"))
    scores = {entry.task_id: entry.value for entry in entries}
    assert scores["bits_per_byte"] == round(results["best"]["validation_bits_per_byte"], 4)
    assert {entry.dataset_id for entry in entries} == {source}


def test_scores_on_a_text_that_is_not_on_the_hub_are_no_benchmark(run, tmp_path):
    (tmp_path / "tree").mkdir()
    stage(run, find_weights(run, "best"), tmp_path / "tree", Statements(), "user/tiny")
    assert not (tmp_path / "tree" / ".eval_results").exists()
    (tmp_path / "named").mkdir()
    stage(run, find_weights(run, "best"), tmp_path / "named", Statements(data_set="user/text"), "user/tiny")
    entries = yaml.safe_load((tmp_path / "named" / ".eval_results" / "validation.yaml").read_text())
    assert entries[0]["dataset"] == {"id": "user/text", "task_id": "loss"}
    assert entries[0]["source"]["url"] == "https://huggingface.co/user/tiny"


def test_a_licence_the_hub_has_no_name_for_keeps_its_own(hub, run):
    data = card(run, "best", Statements(license="my-own-1.0")).data
    assert (data.license, data.license_name) == ("other", "my-own-1.0")
    HfApi()._validate_yaml(render_card(run, find_weights(run, "best"), Statements(license="my-own-1.0")))


def test_a_fine_tune_names_its_base(run):
    edit(run / "results.json", config__model__init_from="/home/me/base")
    assert card(run).data.base_model is None and "trained from `base`" in card(run).text
    edit(run / "results.json", config__model__init_from="user/base", base_model="user/base")
    assert card(run).data.base_model == "user/base" and "trained from `user/base`" in card(run).text


def test_a_model_that_needs_our_code_says_so_in_every_line_that_loads_it(run):
    edit(run / "best" / "config.json", model_type="smallm", architectures=["SmaLLMForCausalLM"])
    text = card(run, repo="user/tiny").text
    assert 'pipeline("text-generation", model="user/tiny", trust_remote_code=True)' in text
    assert "transformers serve" not in text and "No flag" not in text


def test_exports_are_published_with_their_parity(run, tmp_path):
    export = tmp_path / "gguf"
    export.mkdir()
    (export / "model-F32.gguf").write_bytes(b"GGUF")
    (export / "secret.txt").write_text("not for others")
    parity = {
        **{"source": str(run / "best"), "to": "gguf", "outtype": "f32", "engine": {"llama-cpp-python": "0.3.9"}},
        **{"max_abs_difference": 0.00012, "relative_difference": 0.000034, "top1_agreement": 0.998},
    }
    (export / "parity.json").write_text(json.dumps(parity))
    (tmp_path / "tree").mkdir()
    stage(run, find_weights(run, "best"), tmp_path / "tree", Statements(), "user/tiny", exports=[export])
    files = {path.relative_to(tmp_path / "tree").as_posix() for path in (tmp_path / "tree").rglob("*")}
    assert {"model-F32.gguf", "parity/gguf-f32.json"} <= files and "secret.txt" not in files
    text = (tmp_path / "tree" / "README.md").read_text()
    assert "llama-cli -hf user/tiny --hf-file model-F32.gguf" in text and "ollama run hf.co/user/tiny" in text
    assert "| model-F32.gguf | llama-cpp-python 0.3.9 | 0.00012 | 3.4e-05 | 99.8% |" in text
    assert str(tmp_path) not in (tmp_path / "tree" / "parity" / "gguf-f32.json").read_text()


@pytest.mark.parametrize(
    ("source", "seconds", "message"),
    [
        (None, 0, r"--exports .* holds no export \(no parity.json\)"),
        ("final", 1e10, r"was made from .*final, not from .*best as it is; export it again"),
        ("best", 0, r"was made from .*best, not from .*best as it is; export it again"),  # the weights are newer
    ],
)
def test_an_export_of_other_weights_is_refused(run, tmp_path, source, seconds, message):
    export, tree = tmp_path / "onnx", tmp_path / "tree"
    export.mkdir()
    tree.mkdir()
    if source:
        (export / "parity.json").write_text(json.dumps({"source": str(run / source), "to": "onnx"}))
        os.utime(export / "parity.json", (seconds, seconds))
    with pytest.raises(UserError, match=message):
        stage(run, find_weights(run, "best"), tree, Statements(), "user/tiny", exports=[export])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/texts/a.txt", "a.txt"),
        ("~/texts/a.txt", "a.txt"),
        ("C:\\Users\\me\\a.txt", "a.txt"),
        ("--data.source=/home/me/a.txt", "--data.source=a.txt"),
        ("/home/me/my texts/a b.txt", "a b.txt"),
        ("skipped /home/me/a.gz (damaged), C:\\me\\b.gz", "skipped a.gz (damaged), b.gz"),
        ("either/or 1/2/3 of https://example.org/a/b", "either/or 1/2/3 of https://example.org/a/b"),
        ("../texts/a.txt", "../texts/a.txt"),
        ("user/name", "user/name"),
        ("https://example.org/a", "https://example.org/a"),
        ("--training.max_steps", "--training.max_steps"),
        ({"a": ["/b/c", 1, None]}, {"a": ["c", 1, None]}),
        ({"sample_prompts": ["/usr"]}, {"sample_prompts": ["/usr"]}),
    ],
)
def test_absolute_paths_lose_what_only_one_machine_has(value, expected):
    assert without_paths(value) == expected


# --- verifying -------------------------------------------------------------------------------------------------------


def test_verifying_counts_and_scores_again(finished_run):
    said = "\n".join(verify_card(finished_run))
    tokens = json.loads((finished_run / "results.json").read_text())["best"]["validation_tokens"]
    assert "lines are what the records say" in said and "39,904 parameters (8,960 in tables)" in said
    assert f"scored again on {tokens:,} tokens, the same" in said


def test_verifying_finds_figures_that_were_changed_everywhere_alike(run):
    """Card, validation.json, results.json and metrics.jsonl agree, and only the weights know better."""
    loss = json.loads((run / "results.json").read_text())["best"]["validation_loss"]
    for path in (run / "results.json", run / "metrics.jsonl", run / "best" / "validation.json"):
        path.write_text(path.read_text().replace(str(loss), "1.5"))
    (run / "best" / "README.md").unlink()
    with pytest.raises(UserError, match=rf"the card says validation loss 1.5, scoring .*best again gives {loss:.6g}"):
        verify_card(run)


def test_verifying_says_what_it_could_not_score(run, tmp_path):
    edit(run / "results.json", data__folder=str(tmp_path / "gone"))
    (run / "best" / "README.md").unlink()
    said = verify_card(run)
    assert said[0].startswith("card: none") and "not scored again, its tokens are no longer in" in said[-1]


def test_the_script_ends_with_one_line_and_status_2(run, warm_bin):
    (run / "best" / "README.md").write_text("1.23\n")
    command = [warm_bin / "python", SCRIPT, "--run", run, "--verify_card"]
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith(
        f"error: {run}/best/README.md line 1 says '1.23', the run's records say '---'; undo"
    )
    assert result.stderr.count("\n") == 1


# --- the files it is made from ---------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """An installation of this package, the first that is found, which has put a template below `share`."""
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "model_card.md").write_text("# {{ name }}, installed\n")
    (tmp_path / "smallm_hf-9.dist-info").mkdir()
    (tmp_path / "smallm_hf-9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: smallm_hf\nVersion: 9\n")
    (tmp_path / "smallm_hf-9.dist-info" / "RECORD").write_text("share/model_card.md,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(shipped, "TOP", tmp_path)
    return tmp_path


def test_template_and_licence_are_those_of_the_checkout():
    top = SCRIPT.parent.parent
    assert [top_file(name) for name in ("model_card.md", "LICENSE")] == [top / "model_card.md", top / "LICENSE"]


def test_an_installation_includes_them():
    top = Path(__file__).resolve().parent.parent.parent
    settings = configparser.ConfigParser()
    settings.read(top / "setup.cfg")
    assert settings["options.data_files"]["share/smallm_hf"].split() == ["model_card.md"]
    assert (top / "LICENSE").exists()  # setuptools adds files of this name by itself


def test_a_package_without_its_checkout_takes_them_from_the_installation(installed, finished_run):
    assert "# tiny, installed" in card(finished_run).text


def test_an_installation_that_lacks_one_is_reported_in_one_line(installed):
    with pytest.raises(UserError, match="installation of smallm_hf lacks LICENSE; install it from a") as error:
        top_file("LICENSE")
    assert "\n" not in str(error.value)
