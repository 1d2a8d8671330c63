import re
import time

import pytest

from smallm_hf.data.cleaning.cleaning import CleaningConfig, clean_text
from smallm_hf.data.cleaning.edits import apply_rule
from smallm_hf.data.cleaning.gutenberg.back_matter import advertisements, indexes
from smallm_hf.data.cleaning.gutenberg.contents import tables_of_contents, unnamed_tables
from smallm_hf.data.cleaning.gutenberg.footnotes import footnotes
from smallm_hf.data.cleaning.gutenberg.frame import is_gutenberg
from smallm_hf.data.cleaning.gutenberg.lines import hard_wraps, hyphenation
from smallm_hf.data.cleaning.gutenberg.marks import bracketed_tags, decorative_lines, emphasis, page_numbers

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
    return apply_rule(rule, text)[0]


def book(body, head="*** START OF THIS PROJECT GUTENBERG EBOOK A BOOK ***", tail=None):
    """A file as Project Gutenberg gives it out."""
    tail = tail or "End of the Project Gutenberg EBook of A Book\n\n*** END OF THIS PROJECT GUTENBERG EBOOK A BOOK ***"
    return f"The Project Gutenberg EBook of A Book\n\nTitle: A Book\n\n{head}\n\n\n{body}\n\n\n{tail}\n\nLicence.\n"


def cleaned(text, config=DEFAULT):
    return clean_text(text, config).text


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
        "Fin de Projet Gutenberg's A Book",
        "Fim do Projeto Gutenberg",
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


README = (
    "# Words of Project Gutenberg\n\nCounts words in eBooks and etexts of Project Gutenberg (public domain).\n\n"
    + "## Use\n\nProduced by `make`, see below. "
    + "It reads each book and counts.\n\n" * 40
)
QUOTED = (
    "Title: Moby Dick\nAuthor: Herman Melville\nRelease Date: June, 2001\n\n"
    "*** START OF THIS PROJECT GUTENBERG EBOOK MOBY DICK ***\n\nCall me Ishmael.\n\n"
    "*** END OF THIS PROJECT GUTENBERG EBOOK MOBY DICK ***\n\nThat is cut off.\n\n"
)
REVIEW = (
    "The Long Night (1999)\n\nProduced by Ida Quell and Tom Reed. Directed by Mo Lind.\n\n[Illustration: a still]\n\n"
    "* Note: contents follow.\n\n_Slow_ at first[1], the film\nthen " + "goes on and on and\n" * 30
)


@pytest.mark.parametrize(
    "text",
    [
        README,
        f"Project Gutenberg eBook counter\n===\n\n{README}",
        f"The Project Gutenberg eBook of Great Expectations is a classic novel.\n\n{README}",
        f"Project Gutenberg's archive is the oldest of all.\n\n{README}",
        f"# Files\n\nThey look so:\n\n```\nThe Project Gutenberg EBook of Moby Dick\n\n{QUOTED}```\n\n{README}",
        f"Markers that are cut:\n\n{QUOTED}{README}",
        f"{README}\n\nEnd of the Project Gutenberg EBook of Moby Dick\n\nis the line to look for.\n\n{README}",
        f"*END*THE SMALL PRINT! is another.\n\n{README}",
        f"Title: How to strip headers\nAuthor: Me\n\nProject Gutenberg's files have them.\n\n{README}",
        f"{REVIEW}\n\nE-text prepared by nobody. See www.pgdp.net.",
        REVIEW,
    ],
)
def test_what_names_the_project_or_quotes_its_marks_is_no_book(text):
    assert not is_gutenberg(text)
    assert cleaned(text).split() == text.split()


@pytest.mark.parametrize(
    "head",
    [
        "The Project Gutenberg EBook of A Book\n\nTitle: A Book\n\nRelease Date: May, 2001 [EBook #1]\n\n",
        "***The Project Gutenberg Etext of A Book***\n\nCopyright laws are changing all over the world, be sure to\n"
        "check those for your country before redistributing these!\n\n*END*THE SMALL PRINT! FOR ETEXTS*END*\n\n",
        "A Book\n\nProject Gutenberg's A Book, by A. Person\n\nThis eBook is for the use of anyone anywhere.\n\n",
        "\ufeffProject Gutenberg’s A Book, by A. Person\n\nThis eBook is for the use of anyone anywhere.\n\n",
        "*** START OF THE PROJECT GUTENBERG EBOOK A BOOK ***\n\n",
        "Title: A Book\n\nAuthor: A. Person\n\n*** START OF THE PROJECT GUTENBERG EBOOK A BOOK ***\n\n",
    ],
)
def test_a_book_needs_no_more_than_two_of_its_marks_in_their_places(head):
    text = f"{head}{PROSE}\n\nEnd of the Project Gutenberg EBook of A Book\n"
    assert is_gutenberg(text.lstrip("\ufeff"))
    assert cleaned(text) == JOINED


def test_the_small_print_may_stand_at_the_end():
    tail = "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN EBOOKS**START***\n\nYou.\n\n*END THE SMALL PRINT! EBOOKS*END*"
    assert cleaned(book("It was night.", tail=tail)) == "It was night."


def test_a_small_print_of_its_own_kind_goes_up_to_its_last_mention():
    terms = "1. LICENCE\n\nYou may give it away.\n\n2. NO WARRANTY\n\nNone at all."
    text = f"Of a library.\n\n**** SMALL PRINT! for A BOOK ****\n\n{terms}\n\n**** SMALL PRINT! ****\n\nIt was night."
    assert cleaned(book(text)) == "It was night."
    assert cleaned(book("He read the SMALL PRINT! and the small print read him.")).startswith("He read")


def test_files_of_australia_and_canada_lose_their_heads():
    laws = "Copyright laws are changing all over the world.\n\nThis eBook is made available at no cost."
    australia = f"Title: A Book\n* A Project Gutenberg of Australia eBook *\n\n{laws}\n\nhttp://gutenberg.net.au\n\n"
    canada = f"* A Distributed Proofreaders Canada eBook *\n\n{laws}\n\nTitle: A Book\nDate first posted: May 1\n\n"
    for head in (australia, canada):
        assert is_gutenberg(head)
        assert cleaned(f"{head}\n\nCHAPTER I\n\nIt was night.\n\n[The end of _A Book_ by A. Person]") == (
            "CHAPTER I\n\nIt was night."
        )


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
        "[This e-text needs a font with\n\nall letters, such as ō.]",
        "Transcriber's note: obvious errors were mended.\n\nWords in italics stand between _underscores_ here.",
        "TRANSCRIBER'S NOTES\n\n\nSigns:\n\n[a] = a letter\n\nFor example, this one.",
        "There are several editions of this ebook in the Project Gutenberg collection.\n\n1  The first\n2  The last",
        "Note: Images of the original pages are available elsewhere.",
        "Anmerkungen zur Transkription: Die Schreibweise wurde beibehalten.",
        "[Anmerkung zur Transkription:\n\nDie Schreibweise wurde beibehalten.]",
        "Nota del transcriptor: se ha respetado todo.",
        "Note de transcription: les erreurs ont été corrigées.",
        "Afskriverens bemærkninger: Åbenlyse trykfejl er rettet i denne\ne-bog.",
        "ERRATA\n\nPage 3, line 4, for teh read the.\nPage 7, for fo read of.",
    ],
)
def test_who_made_the_file_and_how_is_no_text(note):
    assert cleaned(book(f"A BOOK\n\n{note}\n\n\n\nIt was night.")) == "A BOOK\n\nIt was night."


def test_lists_of_errors_at_the_end_go_to_the_end():
    back = "Typographical errors corrected by the etext transcriber:\n\nteh => the\n\nfo => of"
    assert cleaned(book("It was night.\n\n" * 1000 + back)) == "\n\n".join(["It was night."] * 1000)


@pytest.mark.parametrize(
    "back",
    [
        "Errata Noted by Transcriber:\n\n  Air X. ... contreband\n\n_About the Music_\n\nIt is in another file.",
        "Errata:\n\n  All full stops were supplied by the transcriber.\n\nPart 2:\n  shown as printed",
        "Transcriber's Corrections\n\nteh => the",
        "The following typographical errors were corrected:\n\nPage 3: teh changed to the\n\nPage 7: fo changed to of",
        "Im Folgenden werden alle geänderten Zeilen angeführt:\n\npage 3: changed\n\npage 7: changed",
    ],
)
def test_errata_at_the_end_go_by_whatever_name(back):
    assert cleaned(book("It was night.\n\n" * 1000 + back)) == "\n\n".join(["It was night."] * 1000)


@pytest.mark.parametrize(
    "last",
    [
        "The following morning everything had changed.\n\nNobody knew why.",
        "ERRATA\n\nSo the old man called the children of his second wife.\n\nThey never knew.",
        "A note of music from the old house.\n\nThen it was still.",
        "The following year the whole house was changed.\n\nOn the last page of her book a line was added.\n\nThe end.",
        "These were the only corrections he ever made.\n\nNo page is missing.",
        "Minor things had changed.\n\nChapter and verse, he read the original line.",
        "The following letter was made by the clerk.\n\nHe had transcribed it in italics.",
        "Spelling errors were all that he left behind.\n\nSo it ended.",
    ],
)
def test_the_end_of_a_story_is_no_list_of_errata(last):
    text = "It was night.\n\n" * 1000 + last
    assert cleaned(book(text)) == text


def test_a_list_of_corrections_of_any_length_goes_and_a_note_about_the_text_does_not_take_the_book_with_it():
    nights = "\n\n".join(["It was night."] * 20_000)
    corrections = "\n\n".join(f"Page {page}: 'teh' changed to 'the'" for page in range(400))
    assert cleaned(book(f"{nights}\n\nTRANSCRIBER'S NOTES\n\n{corrections}")) == nights
    story = "\n\n".join(["It was day and nobody knew."] * 400)
    assert cleaned(book(f"{nights}\n\nTRANSCRIBER'S NOTES\n\n{story}")).endswith(story)
    front = "Transcriber's note: errors were mended.\n\nA BOOK\n\nIt was night."
    assert cleaned(book(front)) == "A BOOK\n\nIt was night."


@pytest.mark.parametrize(
    "words",
    [
        "Created by the moonlight, the shadows ran before them over the grass.",
        "Prepared by his mother for the winter, the boy had everything he needed.",
        "Produced by no hand that they knew, a sound came from the house.",
        "This book was created by her own hand, and she was proud of it.",
        "He looked at the box for long, and then he asked the old man about its\ncontents.\n\nA key\n\nA knife\n\n"
        "The end of a rope, which somebody had cut off with a knife and then thrown into the river.",
        "He looked it up in the\nindex.",
    ],
)
def test_a_sentence_that_begins_or_ends_like_a_mark_of_the_file_is_one_of_the_story(words):
    text = f"CHAPTER I\n\n{words}\n\nThey went on."
    assert cleaned(book(text)).split() == text.split()


def test_tags_go_over_lines_and_with_brackets_inside():
    text = "One.\n\n[Illustration: A cat\n\n[_see page 3_] on a mat]\n\n[Illustration]\n\nTwo [he said] three."
    assert run(bracketed_tags, text).split() == ["One.", "Two", "[he", "said]", "three."]


@pytest.mark.parametrize(
    "tag",
    [
        *(
            "[Sidenote: A cat.]",
            "[Figure 3]",
            "[Abbildung: Katze]",
            "[Illustratie]",
            "[Ilustración]",
            "[Illus.: A cat]",
        ),
        *("[Music illustration]", "[Decoration]", "[Tailpiece]", "[To face p. 12]", "[Nota del transcriptor: sic.]"),
    ],
)
def test_pictures_of_other_names_and_notes_in_the_margin_go(tag):
    assert run(bracketed_tags, f"One {tag} two [Greek: logos] [sic].") == "One  two [Greek: logos] [sic]."


@pytest.mark.parametrize(
    "said",
    [
        *("[_Drawing his sword._]", "[Music, and he sings.]", "[Figure a man in black.]", "[Map in hand]"),
        *("[Drawing back.]", "[Picture falls.]", "[Music.]", "[Music]", "[Figure appears:]", "[Drawing nearer]"),
        *("[Music: Come, o come, and row the boat.]", "[Image fades]", "[Ornament in her hair]", "[Illustrious Sir!]"),
    ],
)
def test_what_is_said_in_brackets_on_a_stage_stays(said):
    assert run(bracketed_tags, f"{said} Stand!") == f"{said} Stand!"


def test_a_tag_between_the_lines_of_a_paragraph_does_not_part_them():
    assert run(bracketed_tags, "One\n[Illustration]\ntwo.\n\n[Music]\n\nThree") == ("One\ntwo.\n\n\n\nThree")
    assert run(bracketed_tags, "One.\n[Illustration]\n\nTwo") == "One.\n\n\nTwo"


def test_names_of_pictures_go_that_stand_alone():
    text = "One.\n\n0023m\n\n\n\nTwo.\n\np012.jpg (99K)\n\nFull Size\n\nThree.\n\n1849\n\n12th\n\nIn 0023m of it."
    assert run(bracketed_tags, text).split("\n\n")[-3:] == ["1849", "12th", "In 0023m of it."]
    assert run(bracketed_tags, text).split()[:3] == ["One.", "Two.", "Three."]


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
        "CONTENTS OF THE FIRST VOLUME.\n\nI. The Cat\nII. The Mat",
        "Contents of the Chapters\n\nThe Cat\n\nThe Mat",
        "CONTENTS AND ILLUSTRATIONS\n\nThe Cat   1\nThe Mat   2",
        "INHOUD.\n\n          Bladz.\nI The Cat   1\nII The Mat   2",
        "Table des matières\n\nI The Cat\n\nII The Mat",
        "CONTENTS\n\nVOLUME I\n\nCHAPTER\n   I. The Dog\n  II. The Log\n\n\n"
        "VOLUME II\n\nCHAPTER\n   I. The Cat\n  II. The Mat",
        "CONTENTS\n\nI The Cat\nII The Mat\n\n\n\nLIST OF COLOUR PLATES\n\n           FACING PAGE\n"
        "A cat that looks at nothing but the sun,\nand sleeps      _Frontispiece_\n\nA cat      7",
        "CONTENTS\n\nI. THE CAT     1\n\n  It sits there for ever--What the\n  dog says of it--Why.\n\nII. THE MAT  7",
        "LIST OF CHAPTERS\n               PAGE\nThe Cat     1\n\nThe Mat     7",
    ],
)
def test_tables_of_contents_go_and_headings_stay(table):
    text = f"A BOOK\n\nby Somebody\n\n\n{table}\n\n\n\n\n{CHAPTERS}\n"
    assert run(tables_of_contents, text).split() == f"A BOOK by Somebody {CHAPTERS}".split()


def test_a_table_ends_where_prose_begins_and_takes_no_heading_with_it():
    text = f"CONTENTS\n\nThe Cat\n\nThe Mat\n\n\n\nPRELUDE\n\n{PROSE}\n\nAnd so on."
    assert run(tables_of_contents, text) == f"PRELUDE\n\n{PROSE}\n\nAnd so on."


def test_a_paragraph_of_somebody_who_says_i_is_no_entry():
    story = (
        "I propose, in what is to follow, to trace the methods adopted by the cat in\n"
        "different ages and countries to come to its mat, to use it, and to make it its\n"
        "own, so that nobody else is able to sit there, or to sleep on\n"
        "the mat.\n\nAnd so on."
    )
    text = f"ILLUSTRATIONS\n\n1. The cat in the sun   3\n\n2. The mat in the sun   7\n\n\n\nPREFACE\n\n{story}"
    assert run(tables_of_contents, text) == f"PREFACE\n\n{story}"


def test_a_second_table_below_the_first_goes_too():
    entries = "INTRODUCTION\n\nCHAPTER I. THE CAT\n\n  Where it sits.\n  Why.\n\nCHAPTER II. THE MAT\n\n  Its use."
    text = f"CONTENTS\n\nINTRODUCTION\nI. THE CAT\nII. THE MAT\n\n\n{entries}\n\n\n\nINTRODUCTION\n\n{PROSE}"
    assert run(tables_of_contents, text) == f"INTRODUCTION\n\n{PROSE}"


def test_a_title_of_several_lines_said_again_stays():
    title = "THE CAT\nAND\nTHE MAT\n\n\n\n"
    text = f"{title}CONTENTS\n\nI. It sat   1\n\nII. It lay   7\n\n\n\nTHE CAT & THE MAT\n\n\n\nI\n\n{PROSE}"
    assert run(tables_of_contents, text) == f"{title}THE CAT & THE MAT\n\n\n\nI\n\n{PROSE}"


NAMES = ["The Cat", "The Mat", "A Dog", "The Log", "An End"]
STORIES = "".join(f"{name.upper()}\n\n{PROSE}\n\n\n\n" for name in NAMES)


@pytest.mark.parametrize(
    "table",
    [
        "".join(f"{number}. {name}\n" for number, name in zip(["I", "II", "III", "IV", "V"], NAMES, strict=True)),
        "".join(f"{name}      {page}\n\n" for page, name in enumerate(NAMES, 7)),
    ],
)
def test_a_table_without_a_heading_goes_if_its_lines_are_headings_later(table):
    text = f"A BOOK\n\nby Somebody\n\n\n\n{table}\n\n\n{STORIES}"
    assert run(unnamed_tables, text).split() == f"A BOOK by Somebody {STORIES}".split()


def test_a_table_of_pages_goes_though_no_line_of_it_is_a_heading():
    table = "".join(f"  {number}. It was there   {number * 7}\n\n" for number in range(1, 7))
    text = f"A BOOK\n\n\n\n{{}}{table}\n\n\n{STORIES}"
    assert run(unnamed_tables, text.format("CHAPTERS.\n\n")).split() == f"A BOOK {STORIES}".split()
    assert run(unnamed_tables, text.format("BALLADS.\n\n")).split() == f"A BOOK BALLADS. {STORIES}".split()


@pytest.mark.parametrize(
    "table",
    [
        "".join(f"{number}. Cats   {cats}\n" for number, cats in enumerate([7, 3, 9, 2, 8, 1], 1)),  # no pages
        "".join(f"{number}. {name}\n" for number, name in enumerate(reversed(NAMES), 1)),  # in another order
        "".join(f"{number}. {name} went home and slept\n" for number, name in enumerate(NAMES, 1)),  # not said again
        "".join(f"{number}. {name}\n" for number, name in enumerate(NAMES[:3], 1)),  # too few
    ],
)
def test_a_numbered_list_that_is_no_table_stays(table):
    text = f"A BOOK\n\n\n\n{table}\n\n\n{STORIES}"
    assert run(unnamed_tables, text) == text


def test_the_persons_of_a_play_stay():
    persons = "".join(f"{number}. {name}\n" for number, name in enumerate(NAMES, 1))
    speeches = "".join(f"{name.upper()}\n\nI am here.\n\n" for name in NAMES * 3)
    text = f"PERSONS\n\n{persons}\n\n\nACT I\n\n{speeches}"
    assert run(unnamed_tables, text) == text


WORDS = ["Abbot", "Bear", "Cat", "Dog", "Eagle", "Fox", "Goat", "Hare", "Jackal", "King", "Monk", "Queen", "Rook"]
LONG = f"{PROSE}\n\n" * 12


@pytest.mark.parametrize("between", ["\n", "\n\n"])
def test_an_index_goes_and_what_follows_it_stays(between):
    index = between.join(f"{word}, {page}, {page + 9};\n  its house, 3" for page, word in enumerate(WORDS))
    assert run(indexes, f"{LONG}INDEX\n\n\n{index}\n\nNOTES\n\n1. One.") == f"{LONG}\n\nNOTES\n\n1. One."


@pytest.mark.parametrize(
    "text",
    [
        f"{LONG}INDEX\n\n{PROSE}",
        f"{LONG}INDEX\n\n" + "\n".join(reversed(WORDS)),
        f"{LONG}GLOSSARY\n\n" + "\n".join(WORDS),
        "INDEX\n\n" + "\n".join(WORDS) + f"\n\n{LONG * 2}",
    ],
    ids=["prose", "not in order", "another heading", "at the front"],
)
def test_what_is_no_index_stays(text):
    assert run(indexes, text) == text


SOLD = "A CAT. With six pictures. Crown 8vo, cloth, gilt edges, price 6s.\n\nA MAT. 12mo, boards, $1.25 net, postpaid."


@pytest.mark.parametrize(
    "back",
    [
        f"Printed by Clay & Sons, Bungay.\n\n\nWORKS BY SOMEBODY\n\n{SOLD}",
        f"BOOKS BY THE SAME AUTHOR\n\n{SOLD}",
        "_Printed in Great Britain by\nClay & Sons, Limited_",
    ],
)
def test_what_publishers_say_behind_the_end_goes(back):
    story = f"{LONG}THE END"
    assert run(advertisements, f"{story}\n\n\n{back}\n").rstrip() == story


@pytest.mark.parametrize(
    "back",
    [
        f"APPENDIX\n\n{LONG}",
        "NOTE\n\nThe price of a cat was then six pounds, and nobody in the town below had ever paid it or "
        "been seen to climb the road that led up to its door with so much money, or with any, in a bag or a box.",
        "",
    ],
    ids=["appendix", "one word of trade", "nothing"],
)
def test_what_an_author_says_behind_the_end_stays(back):
    text = f"{LONG * 2}THE END\n\n\n{back}\n"
    assert run(advertisements, text) == text
    assert run(advertisements, f"{LONG}BOOKS BY THE FIRE\n\n{PROSE}") == f"{LONG}BOOKS BY THE FIRE\n\n{PROSE}"


def test_other_books_of_the_author_go_from_the_front_and_his_preface_does_not():
    text = f"A BOOK\n\n_By the Same Author_\n\n  A CAT\n  A MAT\n  A DOG\n\n\n\nCHAPTER I\n\n{PROSE}"
    assert run(advertisements, text).split() == f"A BOOK CHAPTER I {PROSE}".split()
    preface = f"ADVERTISEMENT.\n\n{PROSE}\n\n\n\nCHAPTER I"
    assert run(advertisements, preface) == preface
    letter = f"STORIES BY THE FIRE\n\n{PROSE}\n\n\n\nCHAPTER I"
    assert run(advertisements, letter) == letter


def test_the_title_said_again_behind_a_table_and_lists_of_other_things_stay():
    title = "EPOCH THE FIRST.\n\n1703.\n\n\n\nTHE CAT\n\n\n\n"
    text = f"The Cat\n\n\n\nCONTENTS\n\nEPOCH THE FIRST, 1703.\n\nI. It sat   1\n\n\n\n{title}{PROSE}"
    assert run(tables_of_contents, text) == f"The Cat\n\n\n\n{title}{PROSE}"
    words = "LIST OF WORDS\n\n  Cat    1842   C.\n  Mat    1843   M.\n\n\n\n"
    text = f"CONTENTS\n\nI. It sat   1\n\nII. It lay   7\n\n\n\n{words}CHAPTER I\n\n{PROSE}"
    assert run(tables_of_contents, text) == f"{words}CHAPTER I\n\n{PROSE}"


def test_a_table_may_stand_at_the_end():
    assert run(tables_of_contents, f"{PROSE}\n\n\nINDICE\n\nI. Il gatto  1\n\nII. La stuoia  7\n") == f"{PROSE}\n\n\n"


def test_a_heading_named_contents_without_a_table_stays():
    for text in (f"CONTENTS\n\n{PROSE}", "CONTENTS\n\n"):
        assert run(tables_of_contents, text) == text


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
        ("A word[A] here.\n\n[Footnote A: Its note.]\n\nOn.", "A word here. On."),
        ("Songs:[2]\n\n1-3. A tale.\n\n2. A war song.\n\n[Footnote 2: Of both.]", "Songs: 1-3. A tale. 2. A war song."),
        (
            "A word[1] here.\n\n1. The first of a list.\n\n2. The second.",
            "A word here. 1. The first of a list. 2. The second.",
        ),
        ("Ein Wort[1] hier.\n\n[Fußnote 1: Seine Note.]\n\nWeiter.", "Ein Wort hier. Weiter."),
        ("Un mot[1] ici.\n\n[Note 1: Sa note.]\n\nSuite.", "Un mot ici. Suite."),
        ("He said [Note the cat] this.", None),
        (
            "A one[1] and a two.[2]\n\n\nNOTES\n\n[1] Of one:\n\nA letter.\n\nCAT.\n\n[2] Of two.\n\n\n\n\nCHAPTER II",
            "A one and a two. CHAPTER II",
        ),
        (
            "A one.[1]\n\n\nNOTES\n\n[1] Of one.\n\nThe story goes on.\n\n[9] The ninth of them.",
            "A one. The story goes on. [9] The ninth of them.",
        ),
        ("Water is H_{2}O, x^{2} grows, a[0] and a[1] are, v{2} too, and see [3].", None),
        ("The item a[1] first.\n\n1. Take it.\n\n2. Water is H_{2}O.", None),
        ("A star[*] here.\n\n     * Its note.\n\nOn.", "A star here. On."),
        ("From [1854], by [V] and (2) of it: f[x].\n\n(a) One.\n\n* A bullet", None),
        ("1. One\n\n2. Two [A]\n\nThen (3) and (4) in a row.", None),
    ],
)
def test_footnotes_go_with_their_references_and_nothing_else(text, clean):
    assert run(footnotes, text).split() == (text if clean is None else clean).split()


def test_page_numbers_in_brackets_go_and_lone_ones_if_they_count_and_interrupt():
    assert run(page_numbers, "one [Pg 12] two {p. xii} three [Page 13]four [12]") == "one two three four [12]"
    pages = "".join(f"words that go on and\n\n\n{page}\n\n\ninto the next. The end.\n\n" for page in range(5, 17))
    assert run(page_numbers, pages) == "words that go on and\ninto the next. The end.\n\n" * 12
    poems = "\n\n".join(f"{number}\n\nA line of verse.\nAnother one." for number in range(1, 40))
    assert run(page_numbers, poems) == poems


def test_bracketed_numbers_that_count_up_are_pages_wherever_they_stand():
    pages = "".join(f"{{{page}}} Words that go on{{{page + 1}}} and on.\n\n" for page in range(1, 40, 2))
    assert run(page_numbers, pages).split() == ("Words that go on and on. " * 20).split()
    notes = "\n\n".join(f"[{note}] A note." for note in range(1, 30))
    text = " ".join(f"word[{note}]" for note in range(1, 30)) + "\n\n" + notes
    assert run(page_numbers, text) == text


def test_pages_of_other_languages_go_and_what_looks_like_them_stays():
    assert run(page_numbers, "one [S. 12] two [Seite 13] three [Blz. 14]") == "one two three"
    assert run(page_numbers, "one [sic] two [pix] three [s 5]") == "one [sic] two [pix] three [s 5]"


def test_pages_that_the_author_names_stay_and_lines_of_them_join_the_sentence_they_broke():
    assert run(page_numbers, "as said elsewhere (p. 57), and (page 12)") == "as said elsewhere (p. 57), and (page 12)"
    for line in ("Page {}", "[{}]", "[Pg {}]", "- {} -", "| {} |"):
        pages = "".join(
            f"words that go on and\n\n{line.format(page)}\n\ninto the next. The end.\n\n" for page in range(5, 17)
        )
        assert run(page_numbers, pages) == "words that go on and\ninto the next. The end.\n\n" * 12, line


def test_decorative_lines_go_and_words_between_stars_stay():
    text = "One.\n\n   *       *       *\n\nTwo.\n\n-----\n\n=====\nThree *stars*\n. . . . .\n* * * four\n____"
    assert run(decorative_lines, text).split() == ["One.", "Two.", "Three", "*stars*", *"***", "four"]


def test_marks_of_emphasis_go_and_names_keep_their_underscores():
    text = "_One_, sure_ly_, _two\nwords_ and =bold=; a snake_case, Mr. ____, H_{2}O, x = y and a == b."
    assert run(emphasis, text) == (
        "One, surely, two\nwords and bold; a snake_case, Mr. ____, H_{2}O, x = y and a == b."
    )


def test_marks_of_other_types_go_and_sums_and_numbers_stay():
    assert run(emphasis, "#Honesty# and +the cat+ on ~a mat~.") == "Honesty and the cat on a mat."
    text = "C# and F# are notes, #1 and #2, a + b + c = d, x+y+z, ~5 or ~6 days"
    assert run(emphasis, text) == text
    text = '#550. Signal. A sign.\n#551. Record. The mark "#", which means pounds, and +-----+ and +---+'
    assert run(emphasis, text) == text


def test_divided_words_are_joined_with_a_hyphen_where_they_have_one():
    text = "to-day, having, wolf.\nHav-\ning come to-\n  day, the she-\nwolf went on--\nand X-\nRay qqq-\nzzz"
    assert run(hyphenation, text) == (
        "to-day, having, wolf.\nHaving come to-day, the she-wolf went on--\nand X-\nRay qqqzzz"
    )


VERSE = "Of Man's first disobedience, and the fruit\nOf that forbidden tree whose mortal taste\nBrought death to all"
RHYME = "  The cat sat down upon the mat\n    and sang a song of tea,\n  the dog came by\n    and barked from A to C."
PLAY = "ALGERNON.\nDid you hear what I was playing, Lane?"
LETTER = "Dear Sir,\n\n10 High Street,\nLondon."


def test_prose_is_joined_into_paragraphs():
    assert run(hard_wraps, f"{PROSE}\n\n    {PROSE}") == f"{JOINED}\n\n{JOINED}"


@pytest.mark.parametrize("text", [VERSE, RHYME, PLAY, LETTER])
def test_verse_plays_and_addresses_stay_in_lines(text):
    whole = f"{PROSE}\n\n{text}\n\n{PROSE}\n\n{PROSE}"
    lines = [line.strip() for line in run(hard_wraps, whole).split("\n")]
    assert [line.strip() for line in text.split("\n")] == lines[2:-4]


def test_a_whole_book_of_verse_stays_in_lines_and_an_overlong_line_is_made_whole():
    assert run(hard_wraps, "\n\n".join([VERSE] * 20)) == "\n\n".join([VERSE] * 20)
    long = "  Come, I will make the continent indissoluble, I will make the most\n      splendid race\n  The sun shone"
    assert "make the most splendid race\nThe sun" in run(hard_wraps, f"{PROSE}\n\n{long}")


def test_capitals_of_any_alphabet_begin_verse():
    lines = ["À l'heure où le soleil se couche sur la mer et les bois"] * 6
    text = "\n\n".join(["\n".join(lines)] * 9)
    assert run(hard_wraps, text) == text


def test_verse_of_small_letters_stays_in_lines():
    lines = ["In the midst of the road that we go", "i found me again in a wood", "for the straight way was lost to me"]
    text = "\n\n".join(["\n".join(lines)] * 20)
    assert run(hard_wraps, text) == text


def test_paragraphs_told_by_indentation_alone_stay_apart():
    text = PROSE + "\n   Then came the morning, and with it a letter that had been on its way for a\n" + PROSE
    assert run(hard_wraps, text).count("\n") == 1


def test_a_text_with_a_paragraph_in_each_line_is_not_joined():
    text = "\n".join([JOINED] * 5)
    assert run(hard_wraps, text) == text


PIPES = "Letter |From the mill    |From the boat\n-------+-----------------+--------\nAM     |Bring the grain. |We do."
RANGES = (
    "0 to 600 yards, close water, for any boat that is there and has two oars.\n"
    "600 to 1,200 yards, middle water, with two oars and a sail that is not wet.\n"
    "1,200 to 2,000 yards, long water, with four oars and nobody in the water."
)
PAIRS = (
    "the glass,                      das Glas.\nas they walked with a           da sie in gutem Schritt gingen.\n"
    "the winter,                     der Winter.\nto give somebody a hand,        jemandem die Hand reichen, oder"
)


@pytest.mark.parametrize("table", [PIPES, RANGES, PAIRS])
def test_tables_and_lists_stay_in_lines(table):
    text = cleaned(book("\n\n".join([PROSE, PROSE, table, PROSE, PROSE])))
    lines = [" ".join(line.split()) for line in table.split("\n")]
    assert [" ".join(line.split()) for line in text.split("\n")[4:-4]] == lines


def test_a_line_of_blanks_is_no_word():
    assert run(hard_wraps, f"{PROSE}\n   \n\na\n \n  b").startswith(JOINED)


def test_dashes_at_line_ends_are_joined_without_a_space():
    text = PROSE.replace("lived in\nthe", "lived in--\nthe")
    assert "lived in--the town" in run(hard_wraps, text)


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


# --- real books ------------------------------------------------------------------------------------------------------


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
BOILERPLATE_RULES = {
    "footnotes",
    "bracketed_tags",
    "tables_of_contents",
    "unnamed_tables",
    "page_numbers",
    "decorative_lines",
}
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
