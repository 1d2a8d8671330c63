"""What preparing a text did, as `report.json` for programs and `report.md` for people."""

from dataclasses import asdict
from typing import Any

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerFast

from smallm_hf.base.wording import counted
from smallm_hf.data.cleaning.cleaning import MUCH
from smallm_hf.data.reading.files import NOTES
from smallm_hf.data.selection.select import DUPLICATE, Selection
from smallm_hf.data.selection.splitting import SIDES, TRAIN
from smallm_hf.data.stages import CleanedSource, merged
from smallm_hf.data.token_files import EXAMPLES, Meta
from smallm_hf.tokenizing.loading import is_lossless
from smallm_hf.tokenizing.schemes import SCHEMES

UNUSED_SHOWN = 20
NOTES_SHOWN = 20
STAGES = ("read", "cleaned", "without duplicates", "without leakage")
QUANTILES = {"shortest": 0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1}


def make_report(
    meta: Meta,
    cleaned: list[CleanedSource],
    selection: Selection,
    counts: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Returns what `report.json` holds.

    Args:
        meta: of the token files.
        cleaned: the sources.
        selection: what was chosen from them.
        counts: of each source, on each side, and how often each entry of the vocabulary occurs there.
        tokenizer: that made the ids.
        seconds: that each stage took.
    """
    sources = [_source(*facts, tokenizer) for facts in zip(cleaned, selection.sides, counts, strict=True)]
    both = meta.train.bytes + meta.validation.bytes
    return {
        "settings": meta.settings,
        "stages": [
            {"stage": stage}
            | {name: sum(source["stages"][row][name] for source in sources) for name in ("documents", "words")}
            for row, stage in enumerate(STAGES)
        ],
        "sources": sources,
        "shares": [asdict(share) for share in meta.sources],
        **{
            name: {
                **asdict(side),
                "bytes_per_token": round(side.bytes / side.tokens, 4),
                "share_of_bytes": round(side.bytes / both, 4),
                "examples": [example for one in counts for example in one[name]["examples"]][:EXAMPLES],
            }
            for name, side in ((name, getattr(meta, name)) for name in SIDES)
        },
        "selection": selection.report,
        "tokenizer": _tokenizer(meta, counts, tokenizer),
        "seconds": seconds,
    }


def _source(
    cleaned: CleanedSource, chosen: np.ndarray, counts: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    words = np.concatenate([part.words for part in cleaned.features])
    cleaning = merged(cleaned.reports)["cleaning"]
    has_text = words > 0
    behind = [has_text & mask for mask in (chosen >= 0, chosen != DUPLICATE, chosen < DUPLICATE)]
    rows = [(int(kept.sum()), int(words[kept].sum())) for kept in behind]
    rows.insert(0, (cleaning["documents_in"], cleaning["words_in"]) if cleaning else rows[0])
    return {
        "source": cleaned.input.source.source,
        "split": cleaned.input.source.split,
        "reading": asdict(cleaned.reading),
        "cleaning": cleaning,
        "stages": [
            {"stage": stage, "documents": documents, "words": number}
            for stage, (documents, number) in zip(STAGES, rows, strict=True)
        ],
        "lengths": _lengths(words[behind[-1]]),
        **{side: _tokens(counts, side, tokenizer) for side in SIDES},
    }


def _lengths(words: np.ndarray) -> dict[str, float]:
    if not len(words):
        return {}
    quantiles = {name: int(np.quantile(words, q, method="nearest")) for name, q in QUANTILES.items()}
    return {**quantiles, "mean": round(float(words.mean()), 1)}


def _tokens(counts: dict[str, Any], side: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    here = counts[side]
    return {
        **{name: here[name] for name in ("documents", "bytes", "tokens")},
        "bytes_per_token": round(here["bytes"] / here["tokens"], 4) if here["tokens"] else None,
        "unknown_tokens": _unknown([counts], side, tokenizer),
    }


def _unknown(counts: list[dict[str, Any]], side: str, tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens that stand for what the tokenizer cannot write; eos, where it has two meanings, closes the documents."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return 0
    closing = sum(one[side]["documents"] for one in counts) if unknown == tokenizer.eos_token_id else 0
    return sum(int(one["entries"][side][unknown]) for one in counts) - closing


def _tokenizer(meta: Meta, counts: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    special = [id for id in tokenizer.all_special_ids if id is not None]
    found = sum(one["entries"][TRAIN] for one in counts)
    unused = np.setdiff1d(np.flatnonzero(found == 0), special)
    shown = sorted(tokenizer.convert_ids_to_tokens(unused.tolist()), key=lambda token: (-len(token), token))
    scheme = SCHEMES.get(meta.settings["tokenizer.source"])
    return {
        "entries": len(tokenizer),
        "lossless": scheme.lossless if scheme else is_lossless(tokenizer),
        "used_entries": int(np.count_nonzero(found)),
        "unused_entries": len(unused),
        "unused_share": round(len(unused) / len(tokenizer), 4),
        "unused_examples": shown[:UNUSED_SHOWN],
        "unknown_rate": {side: _unknown(counts, side, tokenizer) / getattr(meta, side).tokens for side in SIDES},
    }


# --- to read ---------------------------------------------------------------------------------------------------------


def as_markdown(report: dict[str, Any]) -> str:
    """Returns `report.json` as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("smallm_hf.data", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "counted": counted,
        "number": lambda value: f"{value:,}",
        "percent": lambda share: f"{share:.2%}",
        "share": lambda part, whole: f"{part / whole:.2%}" if whole else "",
        "code": _code,
        "edges": _edges,
    }
    weights = {(share["source"], share["split"]): share["weight"] for share in report["shares"]}
    sides = {side: report[side] for side in SIDES}
    options = {"sides": sides, "weights": weights, "much": MUCH, "notes": NOTES, "notes_shown": NOTES_SHOWN}
    return environment.get_template("report.md.jinja").render(report, **options)


def _edges(name: str) -> str:
    """`0.01-0.05`, a key of the distribution, for people."""
    return " to ".join(f"{float(edge):.0%}" for edge in name.split("-")) if "-" in name else "none"


def _code(text: str) -> str:
    """Text as it is, in one line."""
    return f"`{text.replace('`', chr(39))}`".replace("\n", "⏎") if text else ""
