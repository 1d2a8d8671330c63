"""What preparing a text did, as `report.json` for programs and `report.md` for people."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import reduce
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from smallm_hf.data.reading.files import NOTES
from smallm_hf.data.selection.select import DUPLICATE, Selection
from smallm_hf.data.selection.splitting import SIDES, TRAIN
from smallm_hf.data.token_files import Meta

EXAMPLES = 3
UNUSED_SHOWN = 20
NOTES_SHOWN = 20
STAGES = ("read", "cleaned", "without duplicates", "without leakage")
COUNTED = ("documents", "words")
QUANTILES = {"shortest": 0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1}


def merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Joins the reports of the parts of a source: numbers are added, of lists the first few are kept."""
    return reduce(_merge, reports, {})


def _merge(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {
            key: _merge(one[key], other[key]) if key in one and key in other else (one | other)[key]
            for key in one | other
        }
    if isinstance(one, list):
        return (one + [item for item in other if item not in one])[: max(EXAMPLES, len(one))]
    return one if one is None else one + other


def make_report(
    meta: Meta,
    sources: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]],
    words: list[np.ndarray],
    selection: Selection,
    encoded: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Returns what `report.json` holds.

    Args:
        meta: of the token files.
        sources: of each, what it is, what was met while it was read, and what its parts report.
        words: of each source, the number of words of each cleaned document.
        selection: what was chosen from them.
        encoded: of each source, counts on each side and how often each entry of the vocabulary occurs there.
        tokenizer: that made the ids.
        seconds: that each stage took.
    """
    both = meta.train.bytes + meta.validation.bytes
    parts = []
    for number, ((source, reading, cleaned), one) in enumerate(zip(sources, encoded, strict=True)):
        chosen = selection.sides[number]
        parts.append(
            {
                **{name: source[name] for name in ("source", "split")},
                "reading": reading,
                "cleaning": cleaned["cleaning"],
                "stages": _stages(cleaned, words[number], chosen),
                "lengths": _lengths(words[number][(chosen < DUPLICATE) & (words[number] > 0)]),
                **{side: _tokens(one, side, tokenizer) for side in SIDES},
            }
        )
    total = {
        side: {
            **{name: sum(one[side][name] for one in encoded) for name in ("tokens", "bytes", "documents")},
            "examples": [example for one in encoded for example in one[side]["examples"]][:EXAMPLES],
            "entries": {side: sum(one["entries"][side] for one in encoded)},
        }
        for side in SIDES
    }
    return {
        "settings": meta.settings,
        "stages": [
            {
                "stage": stage,
                **{name: sum(part["stages"][row][name] for part in parts) for name in ("documents", "words")},
            }
            for row, stage in enumerate(STAGES)
        ],
        "sources": parts,
        "shares": [asdict(share) for share in meta.sources],
        **{
            side: {
                **asdict(getattr(meta, side)),
                "bytes_per_token": round(getattr(meta, side).bytes / getattr(meta, side).tokens, 4),
                "share_of_bytes": round(getattr(meta, side).bytes / both, 4),
                "examples": total[side]["examples"],
            }
            for side in SIDES
        },
        "selection": selection.report,
        "tokenizer": _tokenizer(total, tokenizer),
        "seconds": seconds,
    }


def _stages(cleaned: dict[str, Any], words: np.ndarray, chosen: np.ndarray) -> list[dict[str, Any]]:
    """Documents with text, and words, behind each stage."""
    has_text = words > 0
    behind = [(has_text & mask).nonzero()[0] for mask in (chosen >= 0, chosen != DUPLICATE, chosen < DUPLICATE)]
    rows = [(len(kept), int(words[kept].sum())) for kept in behind]
    cleaning = cleaned["cleaning"]
    raw = (cleaning["documents_in"], cleaning["words_in"]) if cleaning else rows[0]
    return [
        {"stage": stage, "documents": documents, "words": number}
        for stage, (documents, number) in zip(STAGES, [raw, *rows], strict=True)
    ]


def _lengths(words: np.ndarray) -> dict[str, float]:
    if not len(words):
        return {}
    quantiles = {name: int(np.quantile(words, q, method="nearest")) for name, q in QUANTILES.items()}
    return {**quantiles, "mean": round(float(words.mean()), 1)}


def _tokens(one: dict[str, Any], side: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    counts = one[side]
    return {
        **{name: counts[name] for name in ("documents", "bytes", "tokens")},
        "bytes_per_token": round(counts["bytes"] / counts["tokens"], 4) if counts["tokens"] else None,
        "unknown_tokens": _unknown(counts, one["entries"][side], tokenizer),
    }


def _unknown(counts: dict[str, Any], entries: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens that stand for what the tokenizer cannot write; eos, where it has two meanings, closes the documents."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return 0
    return int(entries[unknown]) - (counts["documents"] if unknown == tokenizer.eos_token_id else 0)


def _tokenizer(total: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    train = total[TRAIN]
    special = [id for id in tokenizer.all_special_ids if id is not None]
    unused = np.setdiff1d(np.flatnonzero(train["entries"][TRAIN] == 0), special)
    shown = sorted(tokenizer.convert_ids_to_tokens(unused.tolist()), key=lambda token: (-len(token), token))
    return {
        "entries": len(tokenizer),
        "unused_entries": len(unused),
        "unused_share": round(len(unused) / len(tokenizer), 4),
        "unused_examples": shown[:UNUSED_SHOWN],
        "unknown_rate": {
            side: _unknown(total[side], total[side]["entries"][side], tokenizer) / total[side]["tokens"]
            for side in SIDES
        },
    }


# --- to read ---------------------------------------------------------------------------------------------------------


def readable(report: dict[str, Any]) -> str:
    """Returns `report.json` as Markdown."""
    train, validation, stages = report[TRAIN], report[SIDES[1]], report["stages"]
    read, left = stages[0], stages[-1]
    lines = [
        "# What these token files hold",
        "",
        f"{read['documents']:,} documents of {read['words']:,} words were read. {left['words']:,} words "
        f"({_percent(left['words'], read['words'])}) are left: {train['tokens']:,} tokens to train on and "
        f"{validation['tokens']:,} to validate on ({validation['share_of_bytes']:.2%} of the bytes).",
        "",
        *_table(
            ["side", "documents", "tokens", "bytes", "bytes per token", "share of bytes"],
            [
                (
                    side,
                    *(_number(r[n]) for n in ("documents", "tokens", "bytes")),
                    r["bytes_per_token"],
                    f"{r['share_of_bytes']:.2%}",
                )
                for side, r in ((side, report[side]) for side in SIDES)
            ],
        ),
        "## From text to tokens",
        "",
        *_stage_table(stages),
    ]
    if len(report["sources"]) > 1:
        lines += ["## Sources", "", *_sources(report)]
    found = report["selection"]
    lines += [
        *_duplicates(found["duplicates"]),
        *_split(found["split"], report["sources"]),
        *_leakage(found["leakage"]),
    ]
    lines += _tokenizer_lines(report["tokenizer"])
    for source in report["sources"]:
        lines += _source(source, alone=len(report["sources"]) == 1)
    lines += ["## Seconds", "", *_table(["stage", "seconds"], list(report["seconds"].items()))]
    return "\n".join(lines)


def _stage_table(stages: Iterable[dict[str, Any]]) -> list[str]:
    rows, before = [], None
    for stage in stages:
        lost = before["words"] - stage["words"] if before else 0
        share = _percent(lost, before["words"]) if before and lost else ""
        rows.append((stage["stage"], _number(stage["documents"]), _number(stage["words"]), share))
        before = stage
    return _table(["stage", "documents", "words", "words lost"], rows)


def _sources(report: dict[str, Any]) -> list[str]:
    rows = []
    shares = {(share["source"], share["split"]): share for share in report["shares"]}
    for source in report["sources"]:
        share = shares.get((source["source"], source["split"]), {"weight": None})
        for side in SIDES:
            if (counts := source[side])["tokens"]:
                rows.append(
                    (
                        f"{_code(source['source'])} {source['split']}".rstrip(),
                        side,
                        _number(counts["documents"]),
                        _number(counts["tokens"]),
                        _percent(counts["tokens"], report[side]["tokens"]),
                        f"{share['weight']:.2%}" if share["weight"] and side == TRAIN else "by size" * (side == TRAIN),
                        counts["bytes_per_token"],
                        _percent(counts["unknown_tokens"], counts["tokens"]),
                    )
                )
    header = ["source", "side", "documents", "tokens", "of the side", "trained on", "bytes per token", "unknown"]
    return _table(header, rows)


def _duplicates(found: dict[str, Any]) -> list[str]:
    lines = ["## Duplicates", ""]
    if found["duplicates"] == "keep":
        return [*lines, "Duplicates were kept.", ""]
    lines.append(
        f"Of {found['documents']:,} documents {found['dropped']:,} were dropped ({found['dropped_words']:,} words): "
        f"{found['exact']:,} are equal to one before and {found['near']:,} nearly equal"
        + (f" (similarity {found['similarity']} or more)" if found["duplicates"] == "near" else " (not looked for)")
        + f". {found['across_sources']:,} of the originals stand in another source."
    )
    if found["clusters"]:
        lines.append(
            f"Documents of a similarity above {found['related_above']} are kept on one side: {found['clusters']:,} "
            f"groups, the largest of {found['largest_cluster']:,}."
        )
    lines += ["", *_list(_pair(example) for example in found["examples"])]
    return [*lines, f"Memory to find them: {found['index_bytes_per_document']} bytes for each document.", ""]


def _pair(example: dict[str, Any]) -> str:
    first, other = example["first"], example["other"]
    how = f"{example['kind']}, similarity {example['similarity']}"
    return f"{how}: {other['id']} and, before it, {first['id']}: {_code(first['begins'])}"


def _split(found: dict[str, Any], sources: list[dict[str, Any]]) -> list[str]:
    inside = {int(number): cut for number, cut in found["sources_cut_inside"].items()}
    cut = [
        f"{_code(sources[number]['source'])} has few documents and is cut inside them: {plan['runs']} runs of "
        f"{plan['unit']} validate."
        for number, plan in inside.items()
    ]
    rows = [(code, _number(number), _number(found["words"][code])) for code, number in found["documents"].items()]
    note = ["Of the documents, before any is cut inside (those count as train):", ""] if cut else []
    asked = f"Asked for: {found['ratio']:.2%} of what has no given side, {found['split']}."
    return ["## Split", "", asked, "", *_list(cut), *note, *_table(["", "documents", "words"], rows)]


def _leakage(found: dict[str, Any]) -> list[str]:
    n, most = found["ngram_words"], found["formula_documents"]
    lines = [
        "## Leakage",
        "",
        f"{found['share_of_ngrams_leaked']:.2%} of the runs of {n} words of validation stand in training too. "
        f"{found['documents_left_validation']:,} documents with more than {found['max_leakage']:.0%} left validation.",
        "",
    ]
    if not found["looked_at"].startswith("1 of 1 "):
        lines += [f"There are so many that {found['looked_at']} was looked at.", ""]
    rows = [(_edges(name), _number(number)) for name, number in found["distribution"].items() if number]
    lines += _table(["of its runs in training", "validation documents"], rows)
    lines += _list(f"{e['share']:.2%}: {e['id']}: {_code(e['begins'])}" for e in found["examples"])
    if found["formula_ngrams"]:
        lines += [
            f"{found['formula_ngrams']:,} runs stand in more than {most} training documents; they count as formulas, "
            f"which give nothing away ({found['share_of_ngrams_formula']:.2%} of validation; "
            f"{found['documents_mostly_formula']:,} of its documents are mostly made of them). The commonest:",
            "",
            *_list(f"{e['training_documents']:,} documents: {_code(e['text'])}" for e in found["formulas"]),
        ]
    return lines


def _edges(name: str) -> str:
    """`0.01-0.05`, a key of the distribution, for people."""
    return " to ".join(f"{float(edge):.0%}" for edge in name.split("-")) if "-" in name else "none"


def _list(items: Iterable[str]) -> list[str]:
    lines = [f"- {item}" for item in items]
    return [*lines, ""] if lines else []


def _tokenizer_lines(tokenizer: dict[str, Any]) -> list[str]:
    unknown = ", ".join(f"{side} {rate:.4%}" for side, rate in tokenizer["unknown_rate"].items())
    lines = ["## Tokenizer", "", f"- entries: {tokenizer['entries']:,}"]
    lines.append(
        f"- never used in training: {tokenizer['unused_entries']:,} ({tokenizer['unused_share']:.2%})"
        + (
            f", the longest: {' '.join(map(_code, tokenizer['unused_examples']))}"
            if tokenizer["unused_examples"]
            else ""
        )
    )
    return [*lines, f"- unknown tokens: {unknown}", ""]


def _source(source: dict[str, Any], alone: bool) -> list[str]:
    reading, cleaning = source["reading"], source["cleaning"]
    lines = [f"## Source: {source['source']} {source['split']}".rstrip(), ""]
    if not alone:
        lines += _stage_table(source["stages"])
    if source["lengths"]:
        lines += [
            "Words per document:",
            "",
            *_table(list(source["lengths"]), [tuple(map(_number, source["lengths"].values()))]),
        ]
    if reading["files"]:
        lines += _table(["encoding", "files"], sorted(reading["encodings"].items()))
    if reading["foreign_bytes"]:
        lines += [f"{reading['foreign_bytes']:,} bytes were no UTF-8 and were read as Windows-1252.", ""]
    for kind, heading in NOTES.items():
        if found := reading[kind]:
            lines += [f"{heading[0].upper()}{heading[1:]}: {len(found):,}", ""]
            lines += [*(f"- {note}" for note in found[:NOTES_SHOWN]), ""]
    return lines + (_cleaning(cleaning) if cleaning else ["Cleaning was off.", ""])


def _cleaning(cleaning: dict[str, Any]) -> list[str]:
    lines = []
    if cleaning["gutenberg_books"]:
        lines += [f"Books of Project Gutenberg: {cleaning['gutenberg_books']}", ""]
    rules = [(name.replace("_", " "), rule) for name, rule in cleaning["rules"].items()]
    changes = [
        (name, *(_number(rule[count]) for count in ("edits", "characters", "documents"))) for name, rule in rules
    ]
    lines += _table(["rule", "changes", "characters fewer", "documents"], changes)
    lines += _table(["dropped for", "documents"], [(why, d["documents"]) for why, d in cleaning["dropped"].items()])
    if "repeated_lines" in cleaning["rules"]:
        lines += ["Lines that stand in many documents, some of which were still there to remove:", ""]
        lines += [*(f"- {_code(line)}" for line in cleaning["repeated_lines"][:10]), ""]
    if rules:
        lines += ["Examples; what a rule removed is struck out, and what it put there follows.", ""]
    for name, rule in rules:
        lines += [f"### {name}", ""]
        lines += [
            f"- {e['id']}: {_code(e['before'])} ~~{_code(e['removed'])}~~ {_code(e['became'])} {_code(e['behind'])}"
            for e in rule["examples"]
        ]
        lines.append("")
    for why, dropped in cleaning["dropped"].items():
        lines += [f"### Dropped: {why}", ""]
        lines += [f"- {e['id']} ({e['why']}): {_code(e['begins'])}" for e in dropped["examples"]]
        lines.append("")
    return lines


def _table(header: list[str], rows: list[tuple]) -> list[str]:
    if not rows:
        return []
    return [" | ".join(map(str, row)) for row in (header, ["---"] * len(header), *rows)] + [""]


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.2%}" if whole else ""


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _code(text: str) -> str:
    """Text as it is, in one line."""
    return f"`{text.replace('`', chr(39))}`".replace("\n", "⏎") if text else ""
