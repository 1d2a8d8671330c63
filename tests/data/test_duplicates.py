import numpy as np
import pytest

from smallm_hf.data.selection.duplicates import equal_to, estimated_similarity, join_similar, minhash


def sets_of_similarity(similarity, pairs, size=400, seed=0):
    """Pairs of sets of `size` numbers with a given Jaccard similarity; (2 * pairs, size) uint64."""
    common = round(2 * size * similarity / (1 + similarity))
    numbers = np.random.default_rng(seed).integers(0, 2**64, (pairs, 2 * size - common), np.uint64)
    return np.stack([numbers[:, :size], numbers[:, size - common :]], axis=1).reshape(-1, size)


def signatures_of(sets):
    rows = np.repeat(np.arange(len(sets)), sets.shape[1])
    return minhash(sets.ravel(), rows, len(sets), 128).astype(np.uint16)


def join(signatures, *thresholds):
    return join_similar(signatures, np.arange(len(signatures)), thresholds)


@pytest.mark.parametrize("similarity", [0.0, 0.2, 0.5, 0.8, 0.95, 1.0])
def test_signatures_agree_as_much_as_sets_do(similarity):
    signatures = signatures_of(sets_of_similarity(similarity, 200))
    estimates = estimated_similarity(signatures, np.arange(0, 400, 2), np.arange(1, 400, 2))
    standard_error = np.sqrt(similarity * (1 - similarity) / 128)
    assert estimates.mean() == pytest.approx(similarity, abs=0.01)
    assert estimates.std() <= 1.3 * standard_error + 0.002


def test_datasketch_estimates_the_same():
    datasketch = pytest.importorskip("datasketch", reason="the oracle for MinHash; pip install datasketch")
    for similarity in (0.3, 0.6, 0.9):
        left, right = sets_of_similarity(similarity, 1, size=2000)
        ours = estimated_similarity(signatures_of(np.stack([left, right])), np.array([0]), np.array([1]))[0]
        sketches = [datasketch.MinHash(num_perm=128) for _ in range(2)]
        for sketch, numbers in zip(sketches, (left, right), strict=True):
            sketch.update_batch([number.tobytes() for number in numbers])
        theirs = sketches[0].jaccard(sketches[1])
        assert ours == pytest.approx(similarity, abs=0.13)  # three standard errors
        assert theirs == pytest.approx(similarity, abs=0.13)


def test_the_signature_of_a_set_in_two_parts_is_the_smaller_of_theirs():
    numbers = np.random.default_rng(0).integers(0, 2**64, 100, np.uint64)
    whole, first, second = (
        minhash(part, np.zeros(len(part), np.int64), 1, 128) for part in (numbers, numbers[:30], numbers[30:])
    )
    assert (np.minimum(first, second) == whole).all()
    nothing = minhash(numbers[:0], np.zeros(0, np.int64), 1, 128)
    assert (np.minimum(nothing, whole) == whole).all()


def test_sets_have_their_own_rows_and_empty_ones_too():
    numbers = np.array([5, 6, 7], np.uint64)
    matrix = minhash(numbers, np.array([1, 1, 3]), 5, 16)
    assert matrix.shape == (5, 16)
    assert (matrix[1] == minhash(numbers[:2], np.zeros(2, np.int64), 1, 16)[0]).all()
    assert (matrix[3] == minhash(numbers[2:], np.zeros(1, np.int64), 1, 16)[0]).all()
    assert (matrix[0] == matrix[4]).all()


@pytest.mark.parametrize(("similarity", "least"), [(0.4, 0.93), (0.5, 0.996), (0.6, 0.9999)])
def test_similar_documents_meet_as_often_as_is_said(similarity, least):
    pairs = 1000
    signatures = signatures_of(sets_of_similarity(similarity, pairs, size=300))
    (joined,) = join(signatures, 0.0)
    found = (joined[1::2] == joined[::2]).mean()
    assert found >= least - 3 * np.sqrt(least * (1 - least) / pairs)


def test_only_those_above_the_threshold_are_joined():
    signatures = signatures_of(np.concatenate([sets_of_similarity(s, 50, seed=int(s * 10)) for s in (0.95, 0.65, 0.1)]))
    near, related = join(signatures, 0.8, 0.5)
    is_joined = [(firsts[1::2] == firsts[::2]).reshape(3, 50).mean(axis=1).tolist() for firsts in (near, related)]
    assert is_joined == [[1, 0, 0], [1, pytest.approx(1, abs=0.05), 0]]
    assert (near[::2] == np.arange(0, 300, 2)).all()


def test_documents_are_joined_by_way_of_others_to_the_first_of_them():
    numbers = np.random.default_rng(0).integers(0, 2**64, 700, np.uint64)
    chain = np.stack([numbers[start : start + 400] for start in (300, 0, 150, 75, 225)])  # neighbours share 0.68
    (firsts,) = join(signatures_of(chain), 0.5)
    assert firsts.tolist() == [0] * 5
    (apart,) = join(signatures_of(chain[:2]), 0.5)
    assert apart.tolist() == [0, 1]


def test_documents_that_are_not_looked_at_are_joined_to_none():
    signatures = signatures_of(np.repeat(sets_of_similarity(1, 1), 3, axis=0))
    (firsts,) = join_similar(signatures, np.array([1, 4]), (0.5,))
    assert firsts.tolist() == [0, 1, 2, 3, 1, 5]
    assert [len(firsts) for firsts in join(signatures[:0], 0.8, 0.5)] == [0, 0]


def test_the_first_of_equal_hashes_stands_for_all():
    assert equal_to(np.array([7, 3, 7, 3, 9, 7], np.uint64)).tolist() == [0, 1, 0, 1, 4, 0]
