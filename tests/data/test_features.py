import numpy as np
import pytest

import smallm_hf.data.reading.documents as documents_module
from smallm_hf.data.reading.documents import Document, cut_pieces
from smallm_hf.data.selection import ngrams
from smallm_hf.data.selection.features import FeatureBuilder, Features


def features_of(documents, near_duplicates=True):
    builder = FeatureBuilder(near_duplicates)
    for document in documents:
        builder.add(document)
    return builder.features()


def story(number, words=200):
    return " ".join(f"w{word}" for word in np.random.default_rng(number).integers(0, 10_000, words))


@pytest.mark.parametrize("near_duplicates", [False, True])
@pytest.mark.parametrize("characters", [1, 300, 1 << 16])
def test_features_are_the_same_however_the_text_comes(monkeypatch, characters, near_duplicates):
    texts = ["", "a b", *(story(number, 10 * number) for number in range(1, 12)), "!", "one two three four five"]
    whole = features_of([Document(text, str(number)) for number, text in enumerate(texts)], near_duplicates)
    assert whole.words.tolist() == [0, 2, *range(10, 120, 10), 1, 5]
    assert whole.signatures.shape == (15, 128 if near_duplicates else 0)
    monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(ngrams, "BATCH_CHARACTERS", characters)
    pieces = [
        piece for number, text in enumerate(texts) for piece in cut_pieces(str(number), {}, text.splitlines(True))
    ]
    middle = next(place for place, piece in enumerate(pieces) if piece.id == "7")
    parts = [features_of(some, near_duplicates) for some in (pieces[:middle], pieces[middle:])]
    for features in (features_of(pieces, near_duplicates), Features.joined(parts)):
        for name, array in vars(whole).items():
            assert np.array_equal(getattr(features, name), array), name


def test_features_are_saved_in_one_file_and_stay_there(tmp_path):
    for texts in ([], [story(number) for number in range(3)]):
        features = features_of([Document(text, text) for text in texts])
        features.save(tmp_path / "features.part")
        loaded = Features.load(tmp_path / "features.part")
        assert [path.name for path in tmp_path.iterdir()] == ["features.part"]
        assert isinstance(loaded.signatures, np.memmap) or not texts
        for name, array in vars(features).items():
            assert np.array_equal(getattr(loaded, name), array)
            assert getattr(loaded, name).dtype == array.dtype


def test_a_document_without_text_is_known_by_its_hash():
    assert features_of([Document("", "0"), Document("a", "1"), Document("", "2")]).has_text.tolist() == [0, 1, 0]


def test_blanks_alone_make_no_difference_to_the_hash_but_all_else_does():
    texts = ["a b\nc", "a  b c", "A b c", "a b, c", "ab c"]
    hashes = features_of([Document(text, text) for text in texts]).hashes.tolist()
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4
