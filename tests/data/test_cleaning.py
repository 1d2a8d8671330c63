import csv
import json
import random
import re
import time

import pytest

from smallm_hf.data import cleaning, gutenberg
from smallm_hf.data.cleaning import Cleaner, CleaningConfig, clean_text, find_repeated_lines, why_dropped
from smallm_hf.data.documents import cut_pieces, read_documents
from smallm_hf.data.edits import apply_edits
from smallm_hf.data.gutenberg import is_gutenberg
from smallm_hf.errors import UserError

DEFAULT = CleaningConfig()
BOOK = CleaningConfig(gutenberg="always")
PROSE = (
    "The old house stood upon the hill above the river, and nobody who lived in\n"
    "the town below had ever been seen to climb the road that led up to its door;\n"
    "but in the evening, when the wind was still, there was a light in a window."
)
JOINED = PROSE.replace("\n", " ")


def run(rule, text):
    """The text after one rule."""
    return apply_edits(text, rule(text))


def book(body, head="*** START OF THIS PROJECT GUTENBERG EBOOK A BOOK ***", tail=None):
    """A file as Project Gutenberg gives it out."""
    tail = tail or "End of the Project Gutenberg EBook of A Book\n\n*** END OF THIS PROJECT GUTENBERG EBOOK A BOOK ***"
    return f"The Project Gutenberg EBook of A Book\n\nTitle: A Book\n\n{head}\n\n\n{body}\n\n\n{tail}\n\nLicence.\n"


def cleaned(text, config=DEFAULT):
    return clean_text(text, config).text


def documents(texts):
    return [piece for n, text in enumerate(texts) for piece in cut_pieces(f"d{n}", {}, [text])]


# --- rules for any text ----------------------------------------------------------------------------------------------


def test_all_line_ends_become_newlines():
    assert run(cleaning.line_ends, "a\r\nb\rc\u2028d\fe\vf\x85g\nh") == "a\nb\nc\nd\ne\nf\ng\nh"


def test_what_cannot_be_seen_goes_and_joiners_stay():
    assert run(cleaning.invisible_characters, "a\0b\u200bc\u00add\ufeffe\xa0f\tg\nh") == "abcde f\tg\nh"
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert run(cleaning.invisible_characters, family) == family


def test_mojibake_is_mended_and_curly_quotes_stay_curly():
    assert run(cleaning.broken_unicode, "She said, â€œHi, cafÃ© peopleâ€\x9d.") == "She said, “Hi, café people”."
    assert (
        run(cleaning.broken_unicode, "“It’s 5 µm — ﬁne”, Ｗide, naïve, 你好！")
        == "“It’s 5 µm — ﬁne”, Ｗide, naïve, 你好！"
    )


def test_a_closing_quote_that_lost_its_last_byte_is_one():
    assert run(cleaning.broken_unicode, "â€œCome here,â€ she said. â€œNow!â€\nHe came.") == (
        "“Come here,” she said. “Now!”\nHe came."
    )


def test_letters_and_their_accents_are_composed():
    assert run(cleaning.broken_unicode, "cafe\u0301\nplain") == "café\nplain"


def test_entities_are_decoded_and_tags_removed_but_code_is_not_touched():
    assert run(cleaning.html_remains, 'Fish &amp; <b>chips</b><br/>for <a href="x">all</a>') == "Fish & chips\nfor all"
    assert run(cleaning.html_remains, "couldn #39;t &lt;p&gt;say &quot;so&quot; &copy") == 'couldn\'t \nsay "so" &copy'
    code = "`<b>` and ```\n<p>&amp;</p>\n``` and a < b, <unk> <name> &unknown; R&D; <a statement>"
    assert run(cleaning.html_remains, code) == code


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


# --- header and footer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    [
        "*** START OF THIS PROJECT GUTENBERG EBOOK A BOOK ***",
        "*** START OF THE PROJECT GUTENBERG EBOOK A BOOK ***",
        "***START OF THE PROJECT GUTENBERG EBOOK A BOOK***",
        "*** START OF THE PROJECT GUTENBERG EBOOK, A VERY LONG BOOK\nOF TWO LINES ***",
        "*** START OF THE PROJECT GUTENBERG EBOOK 12345 ***\n\n\nProduced by A. Person and\nhis team at pgdp.net",
        "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
        "*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*",
        "This Etext was prepared by volunteers.\n\nWe need your donations more than ever!",
    ],
)
@pytest.mark.parametrize(
    "end",
    [
        "*** END OF THE PROJECT GUTENBERG EBOOK A BOOK ***",
        "***END OF THE PROJECT GUTENBERG EBOOK A BOOK***",
        "End of Project Gutenberg's A Book, by Somebody",
        "End of The Project Gutenberg Etext of A Book\nby Somebody",
        "Ende dieses Projekt Gutenberg Etextes",
    ],
)
def test_headers_and_footers_of_all_times_go(start, end):
    text = book("CHAPTER I\n\nIt was night.\n\nTHE END", start, end)
    assert is_gutenberg(text)
    assert cleaned(text) == "CHAPTER I\n\nIt was night.\n\nTHE END"


def test_a_book_without_any_marker_keeps_all_of_its_text():
    text = "A BOOK\n\nCHAPTER I\n\n" + PROSE + "\n\nTHE END"
    assert not is_gutenberg(text)
    assert cleaned(text, BOOK) == text.replace(PROSE, JOINED)


def test_what_only_mentions_the_project_is_no_book_of_it():
    text = "My notes\n\n" + "Something else.\n\n" * 300 + "I read it at Project Gutenberg.\n\n" + "More.\n\n" * 3000
    assert not is_gutenberg(text)


def test_the_small_print_may_stand_at_the_end():
    tail = "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN EBOOKS**START***\n\nYou.\n\n*END THE SMALL PRINT! EBOOKS*END*"
    assert cleaned(book("It was night.", tail=tail)) == "It was night."


def test_several_books_in_one_file_lose_all_that_is_between():
    assert cleaned(book("One.") + book("Two.")) == "One.\n\nTwo."


def test_the_small_print_may_stand_behind_the_start():
    text = book("*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*END*\n\nIt was night.")
    assert cleaned(text) == "It was night."


# --- inside the book -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "note",
    [
        "Produced by A. Person, and the Online Distributed\nProofreading Team at http://www.pgdp.net",
        "E-text prepared by A. Person",
        "Transcribed from the 1910 Publisher edition by A. Person, email a@b.org",
        "[Transcriber's Note: spelling as in\nthe original [sic], see below.]",
        "Transcriber's Notes:\n\nThe spelling was kept.",
        "[Project Gutenberg Editor's Note: another version exists.]",
    ],
)
def test_who_made_the_file_and_how_is_no_text(note):
    assert cleaned(book(f"A BOOK\n\n{note}\n\n\n\nIt was night.")) == "A BOOK\n\nIt was night."


def test_lists_of_errors_at_the_end_go_to_the_end():
    back = "Typographical errors corrected by the etext transcriber:\n\nteh => the\n\nfo => of"
    assert cleaned(book("It was night.\n\n" * 1000 + back)) == "\n\n".join(["It was night."] * 1000)


def test_tags_go_over_lines_and_with_brackets_inside():
    text = "One.\n\n[Illustration: A cat\n\n[_see page 3_] on a mat]\n\n[Illustration]\n\nTwo [he said] three."
    assert run(gutenberg.bracketed_tags, text).split() == ["One.", "Two", "[he", "said]", "three."]


CHAPTERS = "CHAPTER I. The Cat\n\nIt sat.\n\nCHAPTER II. The Mat\n\nIt lay."


@pytest.mark.parametrize(
    "table",
    [
        "CONTENTS\n\nCHAPTER I. The Cat\n\nCHAPTER II. The Mat",
        "Contents.\n\n  CHAPTER                     PAGE\n\n  I. The Cat . . . . .   1\n II. The Mat . . . .  17",
        "TABLE OF CONTENTS:\n\n  The Cat\n  The Mat",
        "_Contents_\n\nI\n\nII",
        "CONTENTS\n\nCHAPTER I  The Cat--He sits--A summary that runs\nOver lines\n\nCHAPTER II  The Mat",
        "CONTENTS\n\nI The Cat\nII The Mat\n\n\nLIST OF ILLUSTRATIONS\n\nA cat seen from far away   3\n\nTail",
    ],
)
def test_tables_of_contents_go_and_headings_stay(table):
    text = f"A BOOK\n\nby Somebody\n\n\n{table}\n\n\n\n\n{CHAPTERS}\n"
    assert run(gutenberg.tables_of_contents, text).split() == f"A BOOK by Somebody {CHAPTERS}".split()


def test_a_table_ends_where_prose_begins_and_takes_no_heading_with_it():
    text = f"CONTENTS\n\nThe Cat\n\nThe Mat\n\n\n\nPRELUDE\n\n{PROSE}\n\nAnd so on."
    assert run(gutenberg.tables_of_contents, text) == f"PRELUDE\n\n{PROSE}\n\nAnd so on."


def test_a_heading_named_contents_without_a_table_stays():
    for text in (f"CONTENTS\n\n{PROSE}", "CONTENTS\n\n"):
        assert run(gutenberg.tables_of_contents, text) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("A word[1] and [2] more.\n\n[1] Note one.\n\n[2] Note two\nof two lines.\n\nOn.", "A word and more. On."),
        ("A star[*] here.\n\n     [*] Its note.\n\nOn.", "A star here. On."),
        ("A brace,{1} here.\n\n{1} Its note.\n\nOn.", "A brace, here. On."),
        ("Here [Footnote: in line, [sic]\nover lines.] on.", "Here  on."),
        ("Here [3] on.\n\n[Footnote 3: Apart.]", "Here on."),
        ("The end.(1)\n\n\n(1) Grimm.\n\n\nNext.", "The end. Next."),
        ('"Bonjour," * he said.\n\n* Good day.\n\nOn.', '"Bonjour," he said. On.'),
        (
            "A one(1) and a two.(2)\n\nThe end.\n\n\nFOOTNOTES:\n\n 1 Of one.\n\n 2 Of two,\n   more.\n",
            "A one and a two. The end.",
        ),
        ("From [1854], by [V] and (2) of it: f[x].\n\n(a) One.\n\n* A bullet", None),
        ("1. One\n\n2. Two [A]\n\nThen (3) and (4) in a row.", None),
    ],
)
def test_footnotes_go_with_their_references_and_nothing_else(text, clean):
    assert run(gutenberg.footnotes, text).split() == (text if clean is None else clean).split()


def test_page_numbers_in_brackets_go_and_lone_ones_if_they_count_and_interrupt():
    assert run(gutenberg.page_numbers, "one [Pg 12] two {p. xii} three [Page 13]four [12]") == "one two three four [12]"
    pages = "".join(f"words that go on and\n\n\n{page}\n\n\ninto the next. The end.\n\n" for page in range(5, 17))
    assert run(gutenberg.page_numbers, pages) == "words that go on and\ninto the next. The end.\n\n" * 12
    poems = "\n\n".join(f"{number}\n\nA line of verse.\nAnother one." for number in range(1, 40))
    assert run(gutenberg.page_numbers, poems) == poems


def test_decorative_lines_go_and_words_between_stars_stay():
    text = "One.\n\n   *       *       *\n\nTwo.\n\n-----\n\n=====\nThree *stars*\n. . . . .\n* * * four\n____"
    assert run(gutenberg.decorative_lines, text).split() == ["One.", "Two.", "Three", "*stars*", *"***", "four"]


def test_marks_of_emphasis_go_and_names_keep_their_underscores():
    text = "_One_, sure_ly_, _two\nwords_ and =bold=; a snake_case, Mr. ____, H_{2}O, x = y and a == b."
    assert run(gutenberg.emphasis, text) == (
        "One, surely, two\nwords and bold; a snake_case, Mr. ____, H_{2}O, x = y and a == b."
    )


def test_divided_words_are_joined_with_a_hyphen_where_they_have_one():
    text = "to-day, having, wolf.\nHav-\ning come to-\n  day, the she-\nwolf went on--\nand X-\nRay qqq-\nzzz"
    assert run(gutenberg.hyphenation, text) == (
        "to-day, having, wolf.\nHaving come to-day, the she-wolf went on--\nand X-\nRay qqqzzz"
    )


VERSE = "Of Man's first disobedience, and the fruit\nOf that forbidden tree whose mortal taste\nBrought death to all"
RHYME = "  The cat sat down upon the mat\n    and sang a song of tea,\n  the dog came by\n    and barked from A to C."
PLAY = "ALGERNON.\nDid you hear what I was playing, Lane?"
LETTER = "Dear Sir,\n\n10 High Street,\nLondon."


def test_prose_is_joined_into_paragraphs():
    assert run(gutenberg.hard_wraps, f"{PROSE}\n\n    {PROSE}") == f"{JOINED}\n\n{JOINED}"


@pytest.mark.parametrize("text", [VERSE, RHYME, PLAY, LETTER])
def test_verse_plays_and_addresses_stay_in_lines(text):
    whole = f"{PROSE}\n\n{text}\n\n{PROSE}\n\n{PROSE}"
    lines = [line.strip() for line in run(gutenberg.hard_wraps, whole).split("\n")]
    assert [line.strip() for line in text.split("\n")] == lines[2:-4]


def test_a_whole_book_of_verse_stays_in_lines_and_an_overlong_line_is_made_whole():
    assert run(gutenberg.hard_wraps, "\n\n".join([VERSE] * 20)) == "\n\n".join([VERSE] * 20)
    long = "  Come, I will make the continent indissoluble, I will make the most\n      splendid race\n  The sun shone"
    assert "make the most splendid race\nThe sun" in run(gutenberg.hard_wraps, f"{PROSE}\n\n{long}")


def test_paragraphs_told_by_indentation_alone_stay_apart():
    text = PROSE + "\n   Then came the morning, and with it a letter that had been on its way for a\n" + PROSE
    assert run(gutenberg.hard_wraps, text).count("\n") == 1


def test_a_text_with_a_paragraph_in_each_line_is_not_joined():
    text = "\n".join([JOINED] * 5)
    assert run(gutenberg.hard_wraps, text) == text


def test_a_line_of_blanks_is_no_word():
    assert run(gutenberg.hard_wraps, f"{PROSE}\n   \n\na\n \n  b").startswith(JOINED)


def test_dashes_at_line_ends_are_joined_without_a_space():
    text = PROSE.replace("lived in\nthe", "lived in--\nthe")
    assert "lived in--the town" in run(gutenberg.hard_wraps, text)


@pytest.mark.parametrize(
    "odd",
    [
        "\n" * 200_000,
        " " * 200_000,
        "* \n" * 60_000,
        "[Illustration: " * 20_000,
        "[1] " * 20_000,
        "a-\n" * 60_000,
        "_" * 200_000,
    ],
    ids=["blank lines", "blanks", "stars", "open brackets", "references", "hyphens", "underscores"],
)
def test_odd_texts_take_no_longer_than_others(odd):
    began = time.process_time()
    cleaned(book(f"It was night.{odd}It was day.\n\n" + "The end.\n\n" * 9000))
    assert time.process_time() - began < 10


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


def missing_stretches(raw, text):
    """Aligns the letters of a cleaned text with those of the raw one, knowing nothing of the rules.

    Returns the places in `raw` of the letters in each stretch that is missing, and how many letters of `text` have no
    place in it.
    """
    places = [match.start() for match in re.finditer(r"[^\W_]", raw)]
    letters, wanted = "".join(raw[place] for place in places), "".join(re.findall(r"[^\W_]", text))
    position = at = unknown = 0
    stretches = []
    while at < len(wanted):
        step = 1 << 16
        while step:  # as far as both are equal
            while wanted[at : at + step] == letters[position : position + step] and at + step <= len(wanted):
                position, at = position + step, at + step
            step //= 2
        if at < len(wanted):
            probes = (letters.find(wanted[at : at + length], position) for length in (24, 12, 6, 3, 1))
            found = next((place for place in probes if place >= 0), -1)  # short ones for what is between two gaps
            if found < 0:
                unknown, at = unknown + 1, at + 1
            else:
                stretches.append((position, found))
                position = found
    stretches.append((position, len(letters)))
    return [(places, start, end) for start, end in stretches if end > start], letters, unknown


def is_logged(stretch, letters, covered):
    """Whether a missing stretch, or one that is equal after sliding it, is covered by what was logged."""
    places, start, end = stretch
    while True:
        if all(covered[places[index]] for index in range(start, end)):
            return True
        if start == 0 or letters[start - 1] != letters[end - 1]:
            return False
        start, end = start - 1, end - 1


def test_the_alignment_finds_what_is_missing_and_what_was_made_up():
    raw = "A long enough beginning of the text, which stays. [This goes away.] A long enough ending of it all."
    ((places, start, end),), letters, unknown = missing_stretches(raw, raw.replace("[This goes away.]", ""))
    missing = slice(places[start], places[end - 1] + 1)
    assert unknown == 0
    assert raw[missing] == "This goes away"
    covered = bytearray(len(raw))
    assert not is_logged((places, start, end), letters, covered)
    covered[missing] = b"\1" * (missing.stop - missing.start)
    assert is_logged((places, start, end), letters, covered)
    assert missing_stretches(raw, "zz" + raw)[2] == 2


# Labelled by hand: where the first sentence of the body begins and the last one ends, found by reading the raw files.
BODIES = {
    "11-0.txt": ("Alice was beginning to get very tired", "child-life, and the happy summer days."),
    "1342-0.txt": ("It is a truth universally acknowledged", "had been the means of uniting them."),
    "1322.txt": ("Come, said my soul,", "Good-bye--and hail! my Fancy."),
    "120-0.txt": ("SQUIRE TRELAWNEY, Dr. Livesey, and the rest", "“Pieces of eight! Pieces of eight!”"),
    "1448.txt": ('"Heidi" is a delightful story for children', 'all the mercies he has shown\nus!"'),
    "2701-0.txt": ("The pale Usher—threadbare in coat", "only found another orphan."),
    "old-plrabn12.txt": ("Of Man's first disobedience", "Through Eden took their solitary way."),
    "503-0.txt": ("Once upon a time in a certain country there lived", "lived happily a’ the rest o’ their\ndays."),
    "28054-8.txt": ("Alexey Fyodorovitch Karamazov was the third son", 'exclamation: "Hurrah for Karamazov!"'),
    "345-8.txt": ("(_Kept in shorthand._)", "they did dare much for her sake."),
}
BOILERPLATE_RULES = {"footnotes", "bracketed_tags", "tables_of_contents", "page_numbers", "decorative_lines"}
LEFT_OVER = re.compile(
    r"gutenberg|pgdp|proofreading team|\betext|\[illustration|\[footnote|transcriber's note|small print|^\W*\*\*\*",
    re.IGNORECASE,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_nothing_but_boilerplate_is_removed_from_real_books(shared_data, name):
    raw = (shared_data / "books" / name).read_bytes().decode("utf-8-sig" if "-0" in name else "cp1252")
    raw = raw.replace("\r\n", "\n")
    first, last = BODIES[name]
    begin, end = raw.index(first), raw.rindex(last) + len(last)
    result = clean_text(raw, DEFAULT)
    stretches, letters, unknown = missing_stretches(raw, result.text)
    assert unknown == 0
    covered, expected = bytearray(len(raw)), bytearray(len(raw))
    for span in result.spans():
        length = span.end - span.start
        covered[span.start : span.end] = b"\1" * length
        if span.rule in BOILERPLATE_RULES:
            expected[span.start : span.end] = b"\1" * length
    unlogged = [raw[p[a] : p[b - 1] + 1] for p, a, b in stretches if not is_logged((p, a, b), letters, covered)]
    assert unlogged == []
    lost = [
        raw[p[a] : p[b - 1] + 1] for p, a, b in stretches if begin <= p[a] and p[b - 1] < end and not expected[p[a]]
    ]
    lost_share = sum(len(words.split()) for words in lost) / len(raw[begin:end].split())
    lines = result.text.split("\n")
    left_share = sum(bool(LEFT_OVER.search(line)) for line in lines) / len(lines)
    print(
        f"{name}: {lost_share:.3%} of the words lost outside of boilerplate {lost[:3]}, {left_share:.3%} of lines left"
    )
    assert lost_share <= 0.001
    assert left_share <= 0.001


@pytest.mark.slow
def test_boilerplate_is_gone_from_every_shared_book(shared_data):
    for path in sorted((shared_data / "books").glob("*.txt")):
        content = path.read_bytes()
        try:
            text = cleaned(content.decode("utf-8-sig"))
        except UnicodeDecodeError:
            text = cleaned(content.decode("cp1252"))
        left = [line for line in text.split("\n") if LEFT_OVER.search(line)]
        assert len(left) <= 0.001 * text.count("\n"), (path.name, left[:3])


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
    english, german = change(JOINED), change(GERMAN)
    assert why_dropped(german, CleaningConfig(languages=["en"])) == ("language", "de, languages=['en']")
    assert why_dropped(english, CleaningConfig(languages=["de"])) == ("language", "en, languages=['de']")
    assert why_dropped(english, CleaningConfig(languages=["en"])) is None
    for languages in (["de"], ["en", "de"], ["de", "en"], None):
        assert why_dropped(german, CleaningConfig(languages=languages)) is None
    assert why_dropped(german[:199], CleaningConfig(languages=["en"])) is None


def test_documents_of_another_language_are_counted_with_examples():
    cleaner = Cleaner(CleaningConfig(languages=["en"]))
    assert [document.id for document in cleaner(documents([JOINED, GERMAN, JOINED]))] == ["d0", "d2"]
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


def test_shares_of_ngrams_equal_those_counted_by_hand():
    text = list("abcdefgabcdexy")
    hashes = cleaning.np.array([hash(word) for word in text]).view(cleaning.np.uint64)
    lengths = cleaning.np.ones(len(text), int)
    assert [cleaning._duplicated(hashes, lengths, n) for n in (4, 5, 6)] == [5, 5, 0]


# --- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_is_cleaned_and_all_is_counted():
    texts = ["One  \n\n\n\ntwo three", "x", book("It was night."), "", "\u200b", "{}[]()!!"]
    cleaner = Cleaner(CleaningConfig(min_words=2))
    out = list(cleaner(documents(texts)))
    assert [document.text for document in out] == ["One\n\ntwo three", "It was night.", ""]
    assert [document.id for document in out] == ["d0", "d2", "d3"]
    report = cleaner.report.as_dict()
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
    monkeypatch.setattr("smallm_hf.data.documents.PIECE_CHARACTERS", 500)
    body = "\n\n".join(f"It was night number {n} -\x00 the end." for n in range(200))
    (raw,) = [book(body)]
    pieces = list(cut_pieces("b", {}, raw.splitlines(True)))
    assert len(pieces) > 5
    out = list(Cleaner(DEFAULT)(pieces))
    assert "".join(piece.text for piece in out) == body.replace("\x00", "")
    assert [piece.piece for piece in out] == list(range(len(out)))
    assert [piece.is_last for piece in out] == [False] * (len(out) - 1) + [True]


def test_a_document_too_long_to_hold_is_cleaned_in_parts_and_loses_no_word(monkeypatch):
    monkeypatch.setattr("smallm_hf.data.documents.PIECE_CHARACTERS", 300)
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
            r"cleaning.languages has 'english', which is none of the codes .*: af, ar, .*, en, ",
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
    assert report.gutenberg_books == 0
    assert changed <= 4  # four modules that explain HTML


def test_stories_come_through_but_for_their_mojibake(shared_data):
    changed, report = words_changed(read_documents(str(shared_data / "tinystories" / "tinystories_train.txt")))
    assert report.documents_out == report.documents_in == 6802
    assert report.gutenberg_books == 0
    assert changed == report.rules["broken_unicode"].documents
    assert set(report.rules) == {"broken_unicode", "trailing_spaces", "blank_lines"}


def test_news_and_encyclopedia_come_through_but_for_html(shared_data):
    with (shared_data / "agnews" / "ag_news_test.csv").open(newline="") as file:
        news = documents(row[2] for row in csv.reader(file))
    changed, report = words_changed(news)
    assert report.documents_out == len(news)
    assert changed <= report.rules["html_remains"].documents
    changed, report = words_changed(read_documents(str(shared_data / "wikitext2" / "wikitext2_valid.txt")))
    assert (changed, report.gutenberg_books) == (0, 0)
