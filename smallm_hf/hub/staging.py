"""Staging: all that is published of one set of weights, in a folder, as it will be on the Hub."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from smallm_hf import models
from smallm_hf.base.errors import UserError
from smallm_hf.base.plain_json import write_json
from smallm_hf.base.shipped import top_file
from smallm_hf.card import Weights, eval_results, read_results, render_card, without_paths
from smallm_hf.evaluation.results_page import scored_validation
from smallm_hf.hub.configuration import Statements
from smallm_hf.hub.repository import files_below, find_token

# All that is ever published of a folder.
MODEL_FILES = (
    *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", "configuration_*.py", "modeling_*.py"),
)
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
)
EXPORT_FILES = ("*.gguf", "Modelfile", "onnx/model.onnx", "onnx/model.onnx_data")
CURVES = ("loss", "bits_per_byte", "training")  # figures of the run itself; others may show somebody's text
RECORD_FILES = (
    *("metrics.jsonl", "samples.jsonl"),
    *(f"figures/{name}.{suffix}" for name in CURVES for suffix in ("png", "svg")),
)
REPORT_PAGE = "report.html"  # a page of scripts/score.py
TEXT_SUFFIXES = (".json", ".jsonl", ".yaml", ".md", ".py", ".txt", ".jinja", ".svg", ".html")
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")  # of the Hub


def stage(
    run: Path,
    weights: Weights,
    folder: Path,
    statements: Statements,
    repo: str,
    *,
    report: Path | None = None,
    exports: Sequence[Path] = (),
    revisions: Sequence[str] = (),
) -> None:
    """Writes all that is published of one set of weights, as it will be on the Hub, into an empty folder.

    Args:
        run: the run folder.
        weights: one of its sets of weights.
        folder: created unless it exists.
        statements: what the card says and no record knows.
        repo: the id of the repository.
        report: what `choose_report` returned.
        exports: folders that scripts/export.py has made from the best weights; published with these.
        revisions: names of all revisions, for the card.

    Raises:
        UserError: something that looks like an access token in one of the files, or an export of other weights.
    """
    folder.mkdir(exist_ok=True)
    for source, patterns in ((weights.folder, MODEL_FILES), (run / "best", TOKENIZER_FILES), (run, RECORD_FILES)):
        copy_files(source, folder, patterns)
    if report:  # it shows the paths its models were given by
        page = report.read_text(encoding="utf-8")
        for place in (run.resolve().parent, Path.cwd()):
            page = page.replace(f"{place}/", "")
        (folder / REPORT_PAGE).write_text(page, encoding="utf-8")
    settle_auto_map(folder)
    shutil.copy(top_file("LICENSE"), folder)
    results = read_results(run)
    write_json(folder / "results.json", without_paths(results))
    write_json(folder / "environment.json", without_paths(results["environment"]))
    _write_yaml(folder / "config.yaml", without_paths(yaml.safe_load((run / "config.yaml").read_text("utf-8"))))
    scores = eval_results(results, weights, statements, repo)
    if scores:
        (folder / ".eval_results").mkdir()
        _write_yaml(folder / ".eval_results" / "validation.yaml", scores)
    compared = [_stage_export(weights, export, folder) for export in exports if weights.name == "best"]
    files = files_below(folder)
    card = render_card(run, weights, statements, repo=repo, files=files, exports=compared, revisions=revisions)
    (folder / "README.md").write_text(card, encoding="utf-8")
    refuse_tokens(folder)


def choose_report(run: Path, results: dict[str, Any], include: bool) -> Path | None:
    """Returns the page of scores that is published, and prints whether it is and which pictures are not.

    A page quotes the text that was scored. One on the run's own validation text is published; any other, and an older
    one that does not say what it quotes, only with `include`. Pictures of texts never are.

    Raises:
        UserError: `include` without a page.
    """
    pictures = {path.relative_to(run).as_posix() for path in run.glob("figures/*")} - set(RECORD_FILES)
    if pictures:
        print(f"not published, since they may show a text of yours: {', '.join(sorted(pictures))}")
    page = run / REPORT_PAGE
    if not page.is_file():
        if include:
            raise UserError(f"--include_report: there is no {page}; make it with smallm score --report {page}")
        return None
    if scored_validation(page.read_text(encoding="utf-8")) == results["data"]["validation"]["sha256"]:
        print(f"{page} is published: it quotes the validation text of this run")
    elif include:
        print(f"{page} is published, as you ask, with all that it quotes of a text that is not this run's own")
    else:
        print(
            f"{page} is not published: it does not say that the text it quotes is this run's validation text; "
            f"--include_report publishes it all the same, smallm score --data {run} makes one that is published"
        )
        return None
    return page


def _stage_export(weights: Weights, export: Path, folder: Path) -> dict[str, Any]:
    """Adds the files of an export, and returns its comparison with these weights and the names of its files."""
    record, trained = export / "parity.json", weights.folder / "model.safetensors"
    if not record.is_file():
        raise UserError(f"--exports {export} holds no export (no parity.json); give one that smallm export made")
    parity = json.loads(record.read_text(encoding="utf-8"))
    made_from = Path(parity["source"])
    if made_from.resolve() != weights.folder.resolve() or record.stat().st_mtime < trained.stat().st_mtime:
        raise UserError(
            f"--exports {export} was made from {made_from}, not from {weights.folder} as it is; export it again"
        )
    parity = without_paths(parity) | {"files": copy_files(export, folder, EXPORT_FILES)}
    (folder / "parity").mkdir(exist_ok=True)
    write_json(folder / "parity" / f"{'-'.join(filter(None, (parity['to'], parity.get('outtype'))))}.json", parity)
    return parity


def copy_files(source: Path, folder: Path, patterns: Sequence[str]) -> list[str]:
    """Copies the files of a folder that match, or links weights, which nobody changes in place; returns their names."""
    names = sorted(path.relative_to(source).as_posix() for pattern in patterns for path in source.glob(pattern))
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            (os.link if target.suffix == ".safetensors" else shutil.copy)(source / name, target)
        except OSError:  # another disk, or one without links
            shutil.copy(source / name, target)
    return names


def settle_auto_map(folder: Path) -> None:
    """Adds the files that `auto_map` of a config names, or drops it: a native class saves it without them."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    auto_map = {name: value.split("--")[-1] for name, value in config.get("auto_map", {}).items()}
    files = {f"{value.split('.')[0]}.py" for value in auto_map.values()}
    for ours in map(Path(models.__file__).with_name, files):
        if ours.is_file() and not (folder / ours.name).exists():
            shutil.copy(ours, folder)
    if not all((folder / file).exists() for file in files):
        auto_map = {}
    if auto_map != config.pop("auto_map", {}):
        write_json(path, config | ({"auto_map": auto_map} if auto_map else {}))


def refuse_tokens(folder: Path) -> None:
    """Raises a UserError if a text file in a folder holds an access token."""
    for name in files_below(folder):
        content = (folder / name).read_text(encoding="utf-8") if name.endswith(TEXT_SUFFIXES) else ""
        if TOKEN.search(content) or (find_token() or "\0") in content:
            raise UserError(f"{name} of the run holds an access token; revoke it, and remove it before you publish")


def _write_yaml(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
