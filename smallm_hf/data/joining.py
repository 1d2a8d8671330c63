"""The last stage: tokenised parts become the token files of each side, and are counted for each side and source."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from smallm_hf.base.errors import UserError
from smallm_hf.data.report import merged
from smallm_hf.data.request import Request
from smallm_hf.data.selection.splitting import SIDES, TRAIN, VALIDATION
from smallm_hf.data.stages import ENTRIES, REPORT
from smallm_hf.data.token_files import Side, SourceShare

COPIED_BYTES = 1 << 20  # at a time


def join(
    request: Request, encoded: list[list[Path]], folder: Path
) -> tuple[list[dict[str, Any]], dict[str, Side], list[SourceShare]]:
    """Joins the tokenised parts of each source to `train.bin` and `validation.bin` in `folder`.

    Returns:
        The counts of each source, each side, and each share.

    Raises:
        UserError: a side is empty, or a source with a weight has nothing to train on.
    """
    counts, hashes = [], {side: hashlib.sha256() for side in SIDES}
    with (folder / f"{TRAIN}.bin").open("wb") as train, (folder / f"{VALIDATION}.bin").open("wb") as validation:
        for parts in encoded:
            reports = [json.loads((part / REPORT).read_text(encoding="utf-8")) for part in parts]
            entries = sum(np.load(part / ENTRIES) for part in parts)
            counts.append({**merged(reports), "entries": dict(zip(SIDES, entries, strict=True))})
            for part in parts:
                for side, file in zip(SIDES, (train, validation), strict=True):
                    with (part / f"{side}.bin").open("rb") as ids:
                        while content := ids.read(COPIED_BYTES):
                            file.write(content)
                            hashes[side].update(content)
    for side in SIDES:
        sizes = [np.load(part / f"{side}.npy") for parts in encoded for part in parts]
        np.save(folder / f"{side}.npy", np.concatenate(sizes))
    names = ("tokens", "bytes", "documents", "empty_documents")
    sides = {
        side: Side(**{name: sum(one[side][name] for one in counts) for name in names}, sha256=hashes[side].hexdigest())
        for side in SIDES
    }
    for side, total in sides.items():
        if total.documents == 0:
            raise UserError(
                f"the {side} side of the split is empty, the other has {max(s.documents for s in sides.values())} "
                f"documents; give a {'data.source' if side == TRAIN else 'data.validation_source'} that holds text"
            )
    return counts, sides, _shares(request, counts)


def _shares(request: Request, counts: list[dict[str, Any]]) -> list[SourceShare]:
    shares, first_token = [], 0
    for place, (source, weight) in enumerate(zip(request.data.mixture, request.weights, strict=True)):
        mine = [(one, found) for one, found in zip(request.inputs, counts, strict=True) if one.place == place]
        train = mine[0][1][TRAIN]
        if weight is not None and not train["documents"]:
            raise UserError(
                f"of data.sources, {source.source} has weight {source.weight} and no document left to train on (they "
                "may all stand in another source); leave it out"
            )
        validation = {
            name: sum(found[VALIDATION][name] for _, found in mine) for name in ("tokens", "documents", "bytes")
        }
        shares.append(
            SourceShare(
                source.source,
                mine[0][0].source.split,
                weight,
                first_token,
                *(train[name] for name in ("tokens", "documents", "bytes")),
                **{f"validation_{name}": value for name, value in validation.items()},
            )
        )
        first_token += train["tokens"]
    return shares
