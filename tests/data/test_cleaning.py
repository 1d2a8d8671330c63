import ast
import csv
import json
import random
import re
import sysconfig
import tokenize
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from smallm_hf.base.errors import UserError
from smallm_hf.data.cleaning import cleaning
from smallm_hf.data.cleaning.cleaning import Cleaner, CleaningConfig, clean_text
from smallm_hf.data.cleaning.edits import apply_rule
from smallm_hf.data.cleaning.filters import characters_in_repeats, why_dropped
from smallm_hf.data.cleaning.general_rules import (
    broken_unicode,
    find_repeated_lines,
    html_remains,
    invisible_characters,
    line_ends,
)
from smallm_hf.data.reading.documents import Document, cut_pieces, read_documents
from smallm_hf.data.stages import merged

DEFAULT = CleaningConfig()
ENGLISH = (
    "The old house stood upon the hill above the river, and nobody who lived in the town below had ever been seen "
    "to climb the road that led up to its door; but in the evening, when the wind was still, there was a light in "
    "a window."
)


def run(rule, text):
    """The text after one rule."""
    return apply_rule(rule, text)[0]


def book(body):
    """A file as Project Gutenberg gives it out."""
    mark = "*** {} OF THIS PROJECT GUTENBERG EBOOK A BOOK ***"
    end = "End of the Project Gutenberg EBook of A Book"
    head, tail = (mark.format(word) for word in ("START", "END"))
    return f"The Project Gutenberg EBook of A Book\n\n{head}\n\n\n{body}\n\n\n{end}\n\n{tail}\n\nLicence.\n"


def cleaned(text, config=DEFAULT):
    return clean_text(text, config).text


def documents(texts):
    return [piece for n, text in enumerate(texts) for piece in cut_pieces(f"d{n}", {}, [text])]


# --- rules for any text ----------------------------------------------------------------------------------------------


def test_all_line_ends_become_newlines():
    assert run(line_ends, "a\r\nb\rc\u2028d\fe\vf\x85g\nh") == "a\nb\nc\nd\ne\nf\ng\nh"


def test_what_cannot_be_seen_goes_and_joiners_stay():
    assert run(invisible_characters, "a\0b\u200bc\u00add\ufeffe\xa0f\tg\nh") == "abcde f\tg\nh"
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert run(invisible_characters, family) == family


def test_mojibake_is_mended_and_curly_quotes_stay_curly():
    assert run(broken_unicode, "She said, â€œHi, cafÃ© peopleâ€\x9d.") == "She said, “Hi, café people”."
    assert run(broken_unicode, "“It’s 5 µm — ﬁne”, Ｗide, naïve, 你好！") == "“It’s 5 µm — ﬁne”, Ｗide, naïve, 你好！"


def test_a_closing_quote_that_lost_its_last_byte_is_one():
    assert run(broken_unicode, "â€œCome here,â€ she said. â€œNow!â€\nHe came.") == (
        "“Come here,” she said. “Now!”\nHe came."
    )


def test_letters_and_their_accents_are_composed():
    assert run(broken_unicode, "cafe\u0301\nplain") == "café\nplain"


def test_entities_are_decoded_and_tags_removed_but_code_is_not_touched():
    assert run(html_remains, 'Fish &amp; <b>chips</b><br/>for <a href="x">all</a>') == "Fish & chips\nfor all"
    assert run(html_remains, "couldn #39;t &lt;p&gt;say &quot;so&quot; &copy") == 'couldn\'t \nsay "so" &copy'
    code = "`<b>` and ```\n<p>&amp;</p>\n``` and a < b, <unk> <name> &unknown; R&D; <a statement>"
    assert run(html_remains, code) == code


NAMED_GROUP = 'NUMBER = re.compile(r"(?P<I>[0-9]+)(?P<b>x)")\nPAGE = "<p>Fish &amp; chips</p> &lt;br&gt;"'


def test_markup_is_text_wherever_it_is_not_a_page(tmp_path):
    rows = [NAMED_GROUP, f"user: how do I write a paragraph?\n\nassistant: {NAMED_GROUP}", "1&lt;2 and <b> is bold"]
    for text in [*rows, "Write `<html>` first, then <body>."]:
        assert cleaned(text) == text
    for page in ("<p>Fish &amp; chips</p>", "\n<p>Fish &amp; chips</p></html>"):
        for begin in ("<!DOCTYPE html>", "<html lang='en'>", "<?xml version='1.0'?><!-- a page --><html>", "<body>"):
            assert "Fish & chips" in cleaned(begin + page) and "<p>" not in cleaned(begin + page), begin + page
    assert cleaned("<p>Fish &amp; chips</p>", CleaningConfig(html=True)) == "Fish & chips"
    page = f"<!DOCTYPE html>{rows[2]}"
    assert cleaned(page, CleaningConfig(html=False)) == page


def test_the_modules_of_the_standard_library_come_through_but_for_blank_lines(tmp_path):
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    random.Random(7).shuffle(modules)
    assert len(modules) > 150
    for path in modules[:150]:
        with tokenize.open(path) as file:
            text = file.read()
        clean = cleaned(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            ast.parse(clean)
        assert re.sub(r"\n{3,}", "\n\n", text).strip() == clean or not text.isascii(), path
    for path in modules[:5]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    code = '# Two  \n\n\n\ndef f():\n    return \'&lt;\' + """a  \n\n\n\nb"""'
    (tmp_path / "two.py").write_text(code)
    found = list(Cleaner(DEFAULT)(read_documents(str(tmp_path / "*.py"))))
    assert {document.id: document.text for document in found} == {
        f"{path.name}#1": path.read_text("utf-8").strip() for path in tmp_path.glob("*.py")
    }


def test_the_first_line_of_code_in_a_row_stays_indented(tmp_path):
    code = "    if wanted:\n        return 1\n    return 2"
    (tmp_path / "code.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in (f"\n\n{code}\n", "  one line"))
    )
    assert [document.text for document in Cleaner(DEFAULT)(read_documents(str(tmp_path)))] == [code, "one line"]


def test_blanks_at_line_ends_and_superfluous_blank_lines_go():
    assert cleaned("a  \n\t\n \n\n  b\tc\n    d") == "a\n\n  b\tc\n    d"


def test_lines_repeated_over_documents_go_from_their_ends_only():
    nav = "Home | About us | Contact"
    middle = "\n".join(f"line {n}" for n in range(60))
    texts = [f"{nav}\ntext {n}\n{middle.replace('line 30', nav)}\nAll rights are reserved.\n" for n in range(20)]
    repeated = find_repeated_lines(documents(texts), 0.3)
    assert repeated == {nav, "All rights are reserved."}
    text = clean_text(texts[3], DEFAULT, frozenset({nav, "All rights are reserved."})).text
    assert text.startswith("text 3\n")
    assert text.endswith("line 59")
    assert nav in text
    assert find_repeated_lines(documents(texts[:9]), 0.3) == frozenset()
    assert find_repeated_lines(documents(texts), 0) == frozenset()


def test_lines_that_many_documents_have_go_only_where_asked_and_never_from_rows_and_code(tmp_path):
    same = "You are a helpful and honest assistant."
    for folder in ("texts", "chats", "tables", "code"):
        (tmp_path / folder).mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number}.md").write_text(f"{same}\n\nText {number}")
        (tmp_path / "code" / f"{number}.py").write_text(f"import numpy as np\n\nprint({number})")
    chats = [[{"role": "system", "content": same}, {"role": "user", "content": f"Say {n}."}] for n in range(20)]
    (tmp_path / "chats" / "a.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    (tmp_path / "tables" / "a.csv").write_text("text\n" + "".join(f'"{same}\n{n}"\n' for n in range(20)))
    asked = CleaningConfig(repeated_lines=0.5)
    for source, config, is_changed in (
        *((source, DEFAULT, False) for source in ("texts", "chats", "tables", "code/*.py")),
        *((source, asked, source == "texts") for source in ("texts", "chats", "tables", "code/*.py")),
    ):
        changed, report = words_changed(read_documents(str(tmp_path / source)), config)
        assert (changed, report.repeated_lines) == ((20, [same]) if is_changed else (0, [])), source


def test_the_marks_of_books_are_not_taken_for_repeated_lines_before_they_have_done_their_work():
    texts = [book(f"It was night number {n}.") for n in range(20)]
    repeated = find_repeated_lines(documents(texts), 0.5)
    assert "*** START OF THIS PROJECT GUTENBERG EBOOK A BOOK ***" in repeated
    assert clean_text(texts[3], DEFAULT, repeated).text == "It was night number 3."


def test_a_plain_note_comes_through_as_it_is():
    note = (
        "# Idea\n\n* one_thing and *another*\n* `x = y_z`  <- look\n\n---\n\n    code(_a_, [1])\n\n1. [x] done (2)\n***"
    )
    assert cleaned(note) == note


def test_cleaning_what_is_clean_changes_nothing(shared_data):
    for name in ("11-0.txt", "1322.txt", "345-8.txt", "1448.txt"):
        text = (shared_data / "books" / name).read_bytes().decode("utf-8" if "-0" in name else "cp1252")
        once = cleaned(text)
        assert cleaned(once) == once, name


# --- spans -----------------------------------------------------------------------------------------------------------


def test_spans_say_where_in_the_raw_text_each_rule_removed_what():
    raw = book("One _two_ three[1] four.\n\n[1] Note.\n\n[Illustration: x]\n\nHav-\ning having.")
    spans = list(clean_text(raw, DEFAULT).spans())
    found = {(span.rule, raw[span.start : span.end]) for span in spans}
    assert {("bracketed_tags", "[Illustration: x]"), ("footnotes", "[1]"), ("footnotes", "[1] Note.")} < found
    assert ("emphasis", "_") in found
    assert ("hyphenation", "-\n") in found
    assert any(rule == "header_and_footer" and removed.endswith("Licence.\n") for rule, removed in found)
    assert [span for span in spans if span.rule == "footnotes"] == list(clean_text(raw, DEFAULT).spans("footnotes"))


def test_edits_come_in_any_order_and_one_inside_another_does_not_count():
    edits = [(6, 7, ""), (0, 5, "X"), (2, 4, "lost"), (0, 1, "lost"), (7, 7, "!")]
    assert apply_rule(lambda text: iter(edits), "01234567") == ("X5!7", [(0, 5, "X"), (6, 7, ""), (7, 7, "!")])
    assert apply_rule(lambda text: (), "01") == ("01", [])


# --- filters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "config", "reason"),
    [
        ("a b", {"min_words": 3}, ("too short", "2 words, min_words=3")),
        ("a b c d", {"max_words": 3}, ("too long", "4 words, max_words=3")),
        ("a{}[]!", {}, ("symbols", "0.833 of the characters, max_symbols=0.5")),
        ("a12345", {}, ("digits", "0.833 of the characters, max_digits=0.5")),
        ("a b c d", {"min_words": 4, "max_words": 4, "repetition": True}, None),
        ("你好！ — «да»", {}, None),
        ("", {"min_words": 3}, None),
        ("老村的河在冬天结冰。人们等着船。", {"min_words": 15}, ("too short", "14 words, min_words=15")),
        ("老村的河在冬天结冰。人们等着船。", {"min_words": 14, "max_words": 14}, None),
        ("老村的河 in winter", {"max_words": 5}, ("too long", "6 words, max_words=5")),
        ("川の町で、ｶﾅ", {"min_words": 6}, None),
    ],
)
def test_each_filter_says_why_and_with_which_numbers(text, config, reason):
    assert why_dropped(text, CleaningConfig(**config)) == reason


GERMAN = (
    "Das alte Haus stand auf dem Hügel über dem Fluss, und niemand, der in der Stadt darunter lebte, war je auf dem "
    "Weg gesehen worden, der zu seiner Tür hinaufführte; doch am Abend, wenn der Wind schwieg, war Licht in einem "
    "Fenster."
)


@pytest.mark.parametrize("change", [str, str.upper])
def test_a_document_in_another_language_is_dropped_and_one_too_short_to_tell_is_not(change):
    english, german = change(ENGLISH), change(GERMAN)
    assert why_dropped(german, CleaningConfig(languages=["en"])) == ("language", "de, languages=['en']")
    assert why_dropped(english, CleaningConfig(languages=["de"])) == ("language", "en, languages=['de']")
    assert why_dropped(english, CleaningConfig(languages=["en"])) is None
    for languages in (["de"], ["en", "de"], ["de", "en"], None):
        assert why_dropped(german, CleaningConfig(languages=languages)) is None
    assert why_dropped(german[:199], CleaningConfig(languages=["en"])) is None


def test_documents_of_another_language_are_counted_with_examples():
    cleaner = Cleaner(CleaningConfig(languages=["en"]))
    assert [document.id for document in cleaner(documents([ENGLISH, GERMAN, ENGLISH]))] == ["d0", "d2"]
    dropped = cleaner.report.dropped["language"]
    assert (dropped.documents, dropped.examples[0]["begins"]) == (1, GERMAN[:160])


def test_languages_of_real_text_are_told_apart(shared_data):
    texts = {
        language: [
            paragraph["context"]
            for article in json.loads((shared_data / "xquad" / f"xquad.{language}.json").read_text("utf-8"))["data"]
            for paragraph in article["paragraphs"]
            if len(paragraph["context"]) >= 200
        ]
        for language in ("de", "en")
    }
    assert min(map(len, texts.values())) > 200
    for wanted, other in (("de", "en"), ("en", "de")):
        config = CleaningConfig(languages=[wanted])
        assert sum(why_dropped(text, config) is None for text in texts[wanted]) / len(texts[wanted]) > 0.99
        assert sum(why_dropped(text, config) is None for text in texts[other]) / len(texts[other]) < 0.01


def words(number, seed=0):
    pick = random.Random(seed)
    return ["".join(pick.choices("etaoinshrdlu", k=7)) for _ in range(number)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" ".join(words(2000)), None),
        ("\n".join(["the same line"] * 4 + words(60)), None),
        ("\n".join(["x y"] * 40 + words(80)), "duplicated lines"),
        (
            "\n".join([" ".join(words(20))] * 2 + [" ".join(words(10, n)) for n in range(1, 5)]),
            "characters in duplicated lines",
        ),
        ("\n\n".join(["x y"] * 40 + words(80)), "duplicated paragraphs"),
        (
            " ".join(word for n, word in enumerate(words(60)) for word in (["of", "the"] * 2 + [word])),
            "one 2-gram over and over",
        ),
        (" ".join(words(300) + words(60)), "duplicated 5-grams"),
    ],
)
def test_repetition_is_measured_as_gopher_does(text, reason):
    why = why_dropped(text, CleaningConfig(repetition=True))
    assert (why and why[0]) == reason


def test_of_ngrams_that_come_equally_often_the_longest_counts():
    others = iter(words(80))
    text = " ".join(f"{next(others)} {next(others)} of the {next(others)} northern mountaineers" for _ in range(20))
    why = why_dropped(text, CleaningConfig(repetition=True))
    assert why == ("one 2-gram over and over", "share 0.435, at most 0.2")


def test_shares_of_ngrams_equal_those_counted_by_hand():
    text = list("abcdefgabcdexy")
    hashes = np.array([hash(word) for word in text]).view(np.uint64)
    lengths = np.ones(len(text), int)
    assert [characters_in_repeats(hashes, lengths, n) for n in (4, 5, 6)] == [5, 5, 0]


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_is_cleaned_and_all_is_counted():
    texts = ["One  \n\n\n\ntwo three", "x", book("It was night."), "", "\u200b", "{}[]()!!"]
    cleaner = Cleaner(CleaningConfig(min_words=2))
    out = list(cleaner(documents(texts)))
    assert [document.text for document in out] == ["One\n\ntwo three", "It was night.", ""]
    assert [document.id for document in out] == ["d0", "d2", "d3"]
    report = asdict(cleaner.report)
    assert (report["documents_in"], report["documents_out"], report["gutenberg_books"]) == (6, 2, 1)
    assert report["words_out"] == 6
    assert {reason: dropped["documents"] for reason, dropped in report["dropped"].items()} == {
        "too short": 2,
        "nothing left": 1,
    }
    assert report["dropped"]["too short"]["examples"][0] == {"id": "d1", "why": "1 words, min_words=2", "begins": "x"}
    example = report["rules"]["header_and_footer"]["examples"][0]
    assert example["removed"].startswith("The Project Gutenberg EBook")
    assert example["behind"].split() == ["It", "was", "night.", "End", "of", "the", "Project", "Gu"]
    assert report["rules"]["trailing_spaces"]["documents"] == 1


def test_a_long_document_is_cleaned_as_a_whole_however_it_comes(monkeypatch):
    monkeypatch.setattr("smallm_hf.data.reading.documents.PIECE_CHARACTERS", 500)
    body = "\n\n".join(f"It was night number {n} -\x00 the end." for n in range(200))
    (raw,) = [book(body)]
    pieces = list(cut_pieces("b", {}, raw.splitlines(True)))
    assert len(pieces) > 5
    out = list(Cleaner(DEFAULT)(pieces))
    assert "".join(piece.text for piece in out) == body.replace("\x00", "")
    assert [piece.piece for piece in out] == list(range(len(out)))
    assert [piece.is_last for piece in out] == [False] * (len(out) - 1) + [True]


def test_a_document_too_long_to_hold_is_cleaned_in_parts_and_loses_no_word(monkeypatch):
    monkeypatch.setattr("smallm_hf.data.reading.documents.PIECE_CHARACTERS", 300)
    monkeypatch.setattr(cleaning, "WHOLE_CHARACTERS", 1000)
    text = "\n\n".join(f"It was  night number {n}\x00.  " for n in range(400))
    longest = 0
    pieces = list(cut_pieces("b", {}, text.splitlines(True)))
    original = cleaning.clean_text

    def measured(part, *rest):
        nonlocal longest
        longest = max(longest, len(part))
        return original(part, *rest)

    monkeypatch.setattr(cleaning, "clean_text", measured)
    cleaner = Cleaner(CleaningConfig(max_words=3))
    out = "".join(piece.text for piece in cleaner(pieces))
    assert longest <= 1300
    assert out.split() == text.replace("\x00", "").split()
    assert (cleaner.report.documents_in, cleaner.report.documents_out) == (1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repeated_lines": 1.5}, r"cleaning.repeated_lines=1.5 is a share; set it between 0 and 1"),
        ({"max_digits": -1}, r"cleaning.max_digits=-1 is a share"),
        ({"min_words": 9, "max_words": 5}, r"cleaning.max_words=5 is below cleaning.min_words=9 and drops all"),
        (
            {"languages": ["english"]},
            r"cleaning.languages has 'english', which is not one of the known codes: af, ar, .*, en, ",
        ),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Cleaner(CleaningConfig(**change))


# --- what must come through unharmed ---------------------------------------------------------------------------------


def words_changed(sources, config=DEFAULT):
    """The number of documents whose words are not the same after cleaning, and the report."""
    sources = list(sources)
    cleaner = Cleaner(config, find_repeated_lines(sources, config.repeated_lines))
    before, after = ({}, {})
    for texts, stream in ((before, sources), (after, cleaner(sources))):
        for document in stream:
            texts[document.id] = texts.get(document.id, "") + document.text
    return sum(before[id].split() != after.get(id, "").split() for id in before), cleaner.report


def test_the_documentation_of_python_comes_through():
    changed, report = words_changed(read_documents("python-docs"))
    assert report.documents_in == report.documents_out
    assert (changed, report.gutenberg_books) == (0, 0)


def test_stories_come_through_but_for_their_mojibake(shared_data):
    changed, report = words_changed(read_documents(str(shared_data / "tinystories" / "tinystories_train.txt")))
    assert report.documents_out == report.documents_in == 6802
    assert report.gutenberg_books == 0
    assert changed == report.rules["broken_unicode"].documents
    assert set(report.rules) == {"broken_unicode", "trailing_spaces", "blank_lines"}


def test_news_and_encyclopedia_come_through(shared_data):
    with (shared_data / "agnews" / "ag_news_test.csv").open(newline="") as file:
        news = documents(row[2] for row in csv.reader(file))
    changed, report = words_changed(news)
    assert (changed, report.documents_out) == (0, len(news))
    changed, report = words_changed(news, CleaningConfig(html=True))
    assert 0 < changed <= report.rules["html_remains"].documents
    changed, report = words_changed(read_documents(str(shared_data / "wikitext2" / "wikitext2_valid.txt")))
    assert (changed, report.gutenberg_books) == (0, 0)


def test_documents_that_lose_much_are_counted_and_the_largest_losses_named_whichever_part_has_them():
    def report(*texts):
        cleaner = Cleaner(CleaningConfig(html=True))
        list(cleaner(Document(text=text, id=str(len(text))) for text in texts))
        return asdict(cleaner.report)

    kept = "plain words " * 30
    losing = [kept + '<b class="x y z">' * number for number in (10, 20, 40, 80)]
    joined = merged([report(kept, *losing[:3]), report(losing[3])])
    assert (joined["documents_in"], joined["lost_much"], joined["lost_much_no_book"]) == (5, 4, 4)
    assert [loss["id"] for loss in joined["largest_losses"]] == [str(len(text)) for text in losing[:0:-1]]
    assert {loss["rule"] for loss in joined["largest_losses"]} == {"html_remains"}
    assert report(kept)["lost_much"] == 0
