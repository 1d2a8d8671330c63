"""Exact duplicates by a hash, near duplicates by MinHash, joined to clusters."""

import numpy as np
import rensa

SEED = 1
BAND = 3  # signature entries that documents must share to be compared
COMPARED = 1 << 16  # pairs at a time


def minhash(numbers: np.ndarray, rows: np.ndarray, number: int, permutations: int) -> np.ndarray:
    """Returns the MinHash signatures, (number, permutations) uint32, of sets of numbers; of an empty set the largest.

    Args:
        numbers: uint64, the members of all sets.
        rows: the set that each belongs to, ascending.
        number: of sets.
        permutations: length of a signature.
    """
    if not number:
        return np.zeros((number, permutations), np.uint32)
    offsets = np.searchsorted(rows, np.arange(number + 1)).astype(np.uint64)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(numbers, offsets, permutations, SEED)
    return np.array(matrix.to_rows(), np.uint32)


def equal_to(hashes: np.ndarray) -> np.ndarray:
    """Returns the first document equal to each, which may be itself; (N,) int64."""
    _, firsts, groups = np.unique(hashes, return_index=True, return_inverse=True)
    return firsts[groups]


def join_similar(signatures: np.ndarray, among: np.ndarray, thresholds: tuple[float, ...]) -> list[np.ndarray]:
    """Joins documents whose signatures agree, directly or through others, at each of several thresholds.

    A document is compared with the previous and the first one that share a band of its signature. Two documents of
    Jaccard similarity 0.4 meet in one of the 42 bands with probability 0.93, of 0.5 with 0.996, of 0.6 or more with
    0.9999.

    Args:
        signatures: (N, 128) uint16.
        among: which of the documents are compared, ascending.
        thresholds: shares of the signature that have to be equal, which estimate the Jaccard similarity.

    Returns:
        For each threshold the first document in the cluster of each document, (N,) int64.
    """
    firsts = [np.arange(len(signatures)) for _ in thresholds]
    for band in range(0, signatures.shape[1] - BAND + 1, BAND):
        keys = np.zeros(len(among), np.uint64)
        for permutation in range(band, band + BAND):
            keys = keys << np.uint64(16) | signatures[among, permutation]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        order = among[order]
        is_same = np.append(False, keys[1:] == keys[:-1])[: len(keys)]
        members = np.flatnonzero(is_same)
        run_starts = np.maximum.accumulate(np.where(is_same, 0, np.arange(len(order))))
        left = np.concatenate([order[members - 1], order[run_starts[members]]])
        right = np.concatenate([order[members]] * 2)
        is_apart = np.any([first[left] != first[right] for first in firsts], axis=0)
        left, right = left[is_apart], right[is_apart]
        similarity = estimated_similarity(signatures, left, right)
        for first, threshold in zip(firsts, thresholds, strict=True):
            _join(first, left[similarity >= threshold], right[similarity >= threshold])
    return firsts


def estimated_similarity(signatures: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the share of equal entries in the signatures of each pair of documents, (pairs,) float64."""
    shares = [
        np.mean(signatures[left[some : some + COMPARED]] == signatures[right[some : some + COMPARED]], axis=1)
        for some in range(0, len(left), COMPARED)
    ]
    return np.concatenate([np.zeros(0), *shares])


def _join(firsts: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Joins the clusters of each pair in place; `firsts` names the first member of each document's cluster."""
    while True:
        a, b = firsts[left], firsts[right]
        is_apart = a != b
        if not is_apart.any():
            return
        left, right, a, b = left[is_apart], right[is_apart], a[is_apart], b[is_apart]
        np.minimum.at(firsts, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(further := firsts[firsts], firsts):
            firsts[:] = further
