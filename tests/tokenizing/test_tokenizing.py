import copy
import hashlib
import json
import random
import shutil
import socket
import subprocess
import sys
import time

import pytest
from huggingface_hub import constants
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2Tokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from smallm_hf.base.errors import UserError
from smallm_hf.base.hub_access import require_hub
from smallm_hf.tokenizing.encoding import make_encoder
from smallm_hf.tokenizing.loading import (
    GPT2_FINGERPRINT,
    TIKTOKEN_FILES,
    is_lossless,
    load_tokenizer,
    save_tokenizer,
    tokenizer_fingerprint,
)
from smallm_hf.tokenizing.schemes import SCHEMES, train_bpe, train_char, train_word

TEXTS = [
    "the cat sat on the mat. the cat sat on the hat.\n\n",
    "don't they're  it's 1234 日本語 é\u0301 🙂\tx = [1, 2]\n",
] * 5
ODD = [
    "",
    " ",
    "  two  spaces ",
    "a\n\nb \n c",
    "\u2028\u3000\x1c x",
    "don't DON'T they'll ’s",
    "日本語テキスト",
    "🙂🙃" * 3,
    "x <|endoftext|> y <|pad|>",
    "\x00\x7f\xa0",
]


@pytest.fixture(scope="module")
def gpt2(gpt2_folder):
    return load_tokenizer(str(gpt2_folder))


@pytest.fixture(scope="module")
def own():
    return train_bpe(TEXTS, 280)


@pytest.fixture(scope="module")
def characters():
    return train_char(TEXTS, 1000)


@pytest.fixture(scope="module")
def words():
    return train_word(TEXTS, 1000)


@pytest.fixture
def no_hub(monkeypatch):
    """A Hub at a port where nobody listens, and nothing that says so beforehand."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A working folder, temporary folder and caches in which there is no tokenizer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    return tmp_path


# --- GPT-2 -----------------------------------------------------------------------------------------------------------


def test_gpt2_has_50257_entries_and_pads_with_eos(gpt2):
    assert isinstance(gpt2, GPT2Tokenizer)
    assert len(gpt2) == 50257
    assert gpt2.pad_token_id == gpt2.eos_token_id == 50256
    assert gpt2("Hello world")["input_ids"] == [15496, 995]
    assert tokenizer_fingerprint(gpt2) == GPT2_FINGERPRINT


def test_gpt2_is_found_in_a_folder_of_that_name(elsewhere, gpt2_folder):
    shutil.copytree(gpt2_folder, elsewhere / "gpt2")
    assert len(load_tokenizer("gpt2")) == 50257


def test_vocabulary_and_merges_alone_are_a_tokenizer_folder(elsewhere, gpt2_folder):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(gpt2_folder / name, elsewhere)
    assert tokenizer_fingerprint(load_tokenizer(".")) == GPT2_FINGERPRINT


def test_a_folder_named_gpt2_with_another_vocabulary_is_refused(elsewhere, own):
    save_tokenizer(own, elsewhere / "gpt2", 16)
    with pytest.raises(UserError, match=r"does not hold GPT-2's vocabulary.*\./gpt2"):
        load_tokenizer("gpt2")


@pytest.mark.parametrize("repository", ["openai-community/gpt2", "gpt2"])
def test_gpt2_is_found_in_the_hugging_face_cache(elsewhere, gpt2_folder, monkeypatch, repository):
    cached = elsewhere / "hub" / f"models--{repository.replace('/', '--')}"
    shutil.copytree(gpt2_folder, cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(elsewhere / "hub"))
    assert len(load_tokenizer("gpt2")) == 50257


@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", None])
def test_gpt2_is_found_in_a_tiktoken_cache(elsewhere, gpt2_folder, monkeypatch, variable):
    cache = elsewhere / ("anywhere" if variable else "data-gym-cache")
    if variable:
        monkeypatch.setenv(variable, str(cache))
    write_tiktoken_cache(cache, gpt2_folder)
    assert load_tokenizer("gpt2").pad_token_id == 50256


def test_gpt2_is_rebuilt_from_tiktokens_ranks(elsewhere, gpt2_folder, shared_data, monkeypatch):
    name = hashlib.sha1(TIKTOKEN_FILES["r50k_base.tiktoken"][0].encode()).hexdigest()
    shutil.copy(shared_data / "gpt2" / "tiktoken_cache" / name, elsewhere)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(elsewhere))
    assert tokenizer_fingerprint(load_tokenizer("gpt2")) == GPT2_FINGERPRINT


def test_a_damaged_file_in_the_tiktoken_cache_is_not_used(elsewhere, gpt2_folder, monkeypatch):
    write_tiktoken_cache(elsewhere, gpt2_folder, damage=b" ")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(elsewhere))
    with pytest.raises(UserError, match=r"tokenizer.source=gpt2 is not on this machine"):
        load_tokenizer("gpt2")


def write_tiktoken_cache(cache, gpt2_folder, damage=b""):
    cache.mkdir(exist_ok=True)
    for name, file in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        key = hashlib.sha1(TIKTOKEN_FILES[name][0].encode()).hexdigest()
        (cache / key).write_bytes((gpt2_folder / file).read_bytes() + damage)


# --- the Hub ---------------------------------------------------------------------------------------------------------


def test_an_unreachable_hub_fails_at_once_and_names_the_local_ways(elsewhere, no_hub):
    began = time.monotonic()
    alternatives = r"cannot be reached.*folder of a local tokenizer.*TIKTOKEN_CACHE_DIR.*bpe"
    with pytest.raises(UserError, match=alternatives) as info:
        load_tokenizer("gpt2")
    assert time.monotonic() - began < 10
    assert "\n" not in str(info.value)


def test_a_hub_that_accepts_and_never_answers_fails_within_ten_seconds(monkeypatch, no_hub):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(UserError, match=r"it is not on this machine.*cannot be reached.*do otherwise"):
            require_hub("it", "do otherwise")
        assert time.monotonic() - began < 10


def test_offline_mode_is_named_as_the_reason(elsewhere):
    with pytest.raises(UserError, match=r"(?i)offline mode"):
        load_tokenizer("someone/something")


def test_a_folder_without_a_tokenizer_is_named(elsewhere):
    (elsewhere / "empty").mkdir()
    with pytest.raises(UserError, match=r"tokenizer.source=./empty holds neither tokenizer.json nor vocab.json"):
        load_tokenizer("./empty")
    with pytest.raises(UserError, match=r"tokenizer.source=./missing is not a folder"):
        load_tokenizer("./missing")


def test_a_tokenizer_without_eos_is_refused(elsewhere, own):
    save_tokenizer(own, elsewhere / "t", 16)
    path = elsewhere / "t" / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    with pytest.raises(UserError, match=r"has no eos token"):
        load_tokenizer(str(elsewhere / "t"))


# --- one's own BPE ---------------------------------------------------------------------------------------------------


def test_own_tokenizer_has_the_stated_size_with_eos_and_pad_inside(own):
    assert isinstance(own, GPT2Tokenizer)
    assert len(own) == 280
    assert own.eos_token == own.bos_token == own.unk_token == "<|endoftext|>"
    assert (own.eos_token_id, own.pad_token, own.pad_token_id) == (278, "<|pad|>", 279)


def test_own_tokenizer_cuts_text_into_words_as_gpt2_does(own, gpt2):
    cut = [[word for word, _ in t.backend_tokenizer.pre_tokenizer.pre_tokenize_str(TEXTS[1])] for t in (own, gpt2)]
    assert cut[0] == cut[1]


def test_the_same_texts_give_the_same_vocabulary(own):
    again = train_bpe(iter(TEXTS), 280)
    assert again.get_vocab() == own.get_vocab()
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(own)
    assert tokenizer_fingerprint(train_bpe(TEXTS, 279)) != tokenizer_fingerprint(own)


def test_every_text_survives_encoding_and_decoding(own):
    for text in TEXTS + ODD:
        assert own.decode(make_encoder(own)([text])[0]) == text


def test_the_smallest_vocabulary_is_bytes_and_eos(own):
    smallest = train_bpe(["text"], 257)
    assert len(smallest) == 257
    assert smallest.pad_token_id == smallest.eos_token_id == 256
    assert len(train_bpe(["text"], 258)) == 258
    with pytest.raises(UserError, match=r"model.vocab_size=256 is below 257"):
        train_bpe(["text"], 256)


def test_a_corpus_too_small_for_the_vocabulary_names_the_size_it_can_have():
    with pytest.raises(UserError, match=r"model.vocab_size=5000 asks for more; lower model.vocab_size to \d+") as info:
        train_bpe(TEXTS, 5000)
    possible = int(str(info.value).partition("for ")[2].split()[0])
    assert len(train_bpe(TEXTS, possible)) == possible


# --- characters ------------------------------------------------------------------------------------------------------


def test_each_character_of_the_text_is_an_entry_the_most_frequent_first(characters):
    tokens = characters.convert_ids_to_tokens(range(len(characters)))
    assert set(tokens) == {*"".join(TEXTS), "<|endoftext|>", "<|pad|>", "<|unk|>"}
    assert train_char(["bca cb\n"], 100).convert_ids_to_tokens(range(5)) == ["b", "c", "\n", " ", "a"]
    assert characters.eos_token == characters.bos_token == "<|endoftext|>"
    assert [characters.eos_token_id, characters.pad_token_id, characters.unk_token_id] == [
        len(tokens) + place for place in (-3, -2, -1)
    ]


def test_a_limit_leaves_out_the_rarest_characters_which_are_then_unknown():
    tokenizer = train_char(["aaabbc"], 5)
    assert len(tokenizer) == 5
    assert tokenizer("abcz")["input_ids"] == [0, 1, 4, 4]
    with pytest.raises(UserError, match=r"model.vocab_size=3 is below 4, one character"):
        train_char(["a"], 3)


def test_the_order_of_the_texts_does_not_matter_for_characters(characters):
    again = train_char(reversed(TEXTS), 1000)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(characters)


def test_known_characters_come_back_as_they_were_and_stand_where_they_did(characters):
    text = "🙂 the\n\that\n\n  日 é\u0301 "
    encoded = characters(text, return_offsets_mapping=True)
    assert characters.decode(encoded["input_ids"]) == text
    assert encoded["offset_mapping"] == [(place, place + 1) for place in range(len(text))]
    assert set(encoded) == {"input_ids", "attention_mask", "offset_mapping"}
    assert characters.decode(characters("QQ")["input_ids"]) == "<|unk|>" * 2


# --- words -----------------------------------------------------------------------------------------------------------

SPOKEN = (
    "\"Don't,\" she said -- 'tis 1984...  The <unk> cat's;\n\n\ta (b)  well-known\r\n"
    " \u00e9\u0301t\u00e9 \u65e5\u672c\u8a9e \U0001f642!?"
)


def pieces(tokenizer, text):
    return [text[slice(*place)] for place in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]


def test_words_numbers_and_marks_are_entries_with_the_space_before_them():
    tokenizer = train_word([SPOKEN], 1000, min_count=1)
    assert pieces(tokenizer, SPOKEN)[:12] == [
        '"',
        "Don't",
        ",",
        '"',
        " she",
        " said",
        " --",
        " '",
        "tis",
        " 1984",
        "...",
        " ",
    ]
    assert {" <unk>", " cat's", "\n\n", "\t", "a", " (", "b", ")", "-"} <= set(tokenizer.get_vocab())
    assert tokenizer.convert_ids_to_tokens(range(2)) == [" ", '"']  # the most frequent first, ties in order


@pytest.mark.parametrize("options", [{}, {"punctuation": "attached"}])
def test_a_text_of_known_words_comes_back_as_it_was(options, shared_data):
    verses = (shared_data / "shakespeare" / "tinyshakespeare.txt").read_text()[:50_000]
    articles = (shared_data / "wikitext2" / "wikitext2_valid.txt").read_text(encoding="utf-8")[:50_000]
    texts = [verses, articles, SPOKEN, *ODD]
    tokenizer = train_word(texts, 100_000, min_count=1, **options)
    for text, ids in zip(texts, make_encoder(tokenizer)(texts), strict=True):
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_token_id not in ids  # one that is written out is text
    assert "".join(pieces(tokenizer, verses)) == verses


def test_attached_punctuation_leaves_wikitext_as_it_was_cut():
    text = "the <unk> 's 1 @,@ 000 @-@ ton ship , U.S."
    tokenizer = train_word([text], 100, min_count=1, punctuation="attached")
    assert pieces(tokenizer, text) == ["the", *(f" {word}" for word in text.split()[1:])]


def test_rare_words_are_unknown_and_read_as_words():
    tokenizer = train_word(["the cat, the dog, the end"], 100)
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == [
        " the",
        ",",
        "<|endoftext|>",
        "<|pad|>",
        "<|unk|>",
    ]
    encoded = tokenizer("a cat, the <|unk|>", return_offsets_mapping=True, split_special_tokens=True)
    assert tokenizer.decode(encoded["input_ids"][:4]) == " <|unk|> <|unk|>, the"
    assert encoded["offset_mapping"][:4] == [(0, 1), (1, 5), (5, 6), (6, 10)]
    assert len(train_word(["a b c d e f"], 5, min_count=1)) == 5
    with pytest.raises(UserError, match=r"model.vocab_size=3 is below 4, one word"):
        train_word(["a"], 3)


def test_lowered_words_lose_their_capitals_alone():
    text = "The THE the \u00c9t\u00e9"
    tokenizer = train_word([text], 100, lowercase=True, min_count=1)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text.lower()
    assert pieces(tokenizer, text) == ["The", " THE", " the", " \u00c9t\u00e9"]


@pytest.mark.parametrize("option", [{"lowercase": True}, {"min_count": 1}, {"punctuation": "attached"}])
def test_every_option_of_words_makes_another_tokenizer(words, option):
    assert tokenizer_fingerprint(train_word(reversed(TEXTS), 1000)) == tokenizer_fingerprint(words)
    assert tokenizer_fingerprint(train_word([*TEXTS, "Rare, word"], 1000, **option)) != tokenizer_fingerprint(words)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_says_truly_whether_it_is_lossless(name):
    tokenizer = SCHEMES[name].train(TEXTS, 280)
    encode = make_encoder(tokenizer)
    comes_back = all(tokenizer.decode(encode([text])[0]) == text for text in ODD)
    assert comes_back == SCHEMES[name].lossless == is_lossless(tokenizer)


def test_what_changes_or_may_lack_bytes_is_not_lossless(gpt2, own):
    assert is_lossless(gpt2)
    for part, other in (("normalizer", normalizers.NFC()), ("pre_tokenizer", pre_tokenizers.ByteLevel())):
        changed = copy.deepcopy(own)
        setattr(changed.backend_tokenizer, part, other)
        assert not is_lossless(changed)
    unigram = Tokenizer(models.Unigram([("a", 0.0), ("b", 0.0)], 0, False))
    assert not is_lossless(PreTrainedTokenizerFast(tokenizer_object=unigram))


# --- saved -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["own", "gpt2", "characters", "words"])
def test_a_saved_tokenizer_loads_plainly_with_eos_pad_and_length(request, tmp_path, which):
    tokenizer = request.getfixturevalue(which)
    before = tokenizer_fingerprint(tokenizer)
    save_tokenizer(tokenizer, tmp_path / "first", 77)
    save_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "first"), tmp_path / "second", 78)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "second")
    assert type(loaded) is (PreTrainedTokenizerFast if which in ("characters", "words") else GPT2Tokenizer)
    assert loaded.model_max_length == 78
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert loaded(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert tokenizer_fingerprint(loaded) == before


def test_characters_and_words_load_in_a_process_without_our_package(tmp_path, characters, words):
    for name, tokenizer in (("characters", characters), ("words", words)):
        save_tokenizer(tokenizer, tmp_path / name, 16)
        # The name that transformers 4 knows too.
        written = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    program = (
        "import sys; from transformers import AutoTokenizer\n"
        "for name in ('characters', 'words'):\n"
        "    t = AutoTokenizer.from_pretrained(name); text = 'the cat 🙂\\n'.replace(' 🙂', ' 🙂' * (name[0] == 'c'))\n"
        "    print(t.decode(t(text).input_ids) == text, len(t))\n"
        "assert not any(name.startswith('smallm') for name in sys.modules)\n"
    )
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert printed.split() == ["True", str(len(characters)), "True", str(len(words))]


def test_nothing_about_our_machine_leaks_into_a_saved_tokenizer(tmp_path, own):
    save_tokenizer(own, tmp_path / "first", 16)
    save_tokenizer(load_tokenizer(str(tmp_path / "first")), tmp_path / "second", 16)
    written = (tmp_path / "second" / "tokenizer_config.json").read_text()
    assert "is_local" not in written
    assert "local_files_only" not in written
    assert str(tmp_path) not in written


@pytest.mark.parametrize("config", [Qwen3Config, LlamaConfig, GPT2Config])
@pytest.mark.parametrize("which", ["own", "characters"])
def test_beside_a_native_model_config_it_still_encodes_the_same(request, tmp_path, which, config):
    tokenizer = request.getfixturevalue(which)
    save_tokenizer(tokenizer, tmp_path, 16)
    config(vocab_size=280).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)


# --- encoding --------------------------------------------------------------------------------------------------------


def test_tiktoken_and_the_tokenizers_library_give_the_same_ids(gpt2):
    pick = random.Random(0)
    letters = "ab zé日🙂'\n\t 0.<|>\u00a0\u2028"
    texts = ODD + ["".join(pick.choices(letters, k=pick.randint(1, 40))) for _ in range(3000)]
    backend = gpt2.backend_tokenizer
    backend.encode_special_tokens = True
    expected = [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]
    backend.encode_special_tokens = False
    assert [list(ids) for ids in make_encoder(gpt2)(texts)] == expected


@pytest.mark.parametrize("which", ["own", "gpt2", "characters", "words"])
def test_special_tokens_written_in_a_text_are_ordinary_text(request, which):
    tokenizer = request.getfixturevalue(which)
    ids = list(make_encoder(tokenizer)(["a<|endoftext|>b<|pad|>"])[0])
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.pad_token_id not in ids
    assert tokenizer.eos_token_id in tokenizer("a<|endoftext|>b")["input_ids"]  # as before for everybody else


@pytest.mark.parametrize("which", ["own", "gpt2"])
def test_lone_surrogates_become_the_replacement_character(request, which):
    tokenizer = request.getfixturevalue(which)
    encode = make_encoder(tokenizer)
    assert list(encode(["a\ud800b"])[0]) == list(encode(["a\ufffdb"])[0])


def test_neither_eos_nor_truncation_is_applied(own, tmp_path):
    save_tokenizer(own, tmp_path, 4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.enable_truncation(4)
    ids = make_encoder(tokenizer)(["the cat " * 50])[0]
    assert len(ids) > 4
    assert ids[-1] != tokenizer.eos_token_id
