"""A session without a terminal: lines are fed to it, and what it shows is caught."""

import dataclasses
import os
import pty
import string
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from writers import engine_of

from smallm_hf.base.settings import Sampling
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request
from smallm_hf.generation.session import GREETING, Session, line_history

LETTERS = ["</s>", *string.ascii_letters, *" .:|/"]
TOKENS = {"vocab_size": len(LETTERS), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
TEMPLATE = (
    "{% for turn in messages %}"
    "{% if turn.content == 'refuse' %}{{ raise_exception('no such turn') }}{% endif %}"
    "{{ turn.role }}:{{ turn.content }}|"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
NOT_UTF8 = "this line is not UTF-8; set LC_ALL to the encoding of the terminal"


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    letters = Tokenizer(models.WordLevel({letter: id for id, letter in enumerate(LETTERS)}, unk_token="a"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex(""), "isolated")
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="</s>", chat_template=template)


def writer() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**TOKENS, **SIZES, max_position_embeddings=256, initializer_range=0.5)
    return LlamaForCausalLM(config).requires_grad_(False)


@pytest.fixture(scope="module")
def plain() -> Engine:
    return Engine(writer(), tokenizer())


@pytest.fixture(scope="module")
def chat() -> Engine:
    return Engine(writer(), tokenizer(TEMPLATE))


class Talk:
    """A session that is over: what it has shown behind its greeting, and itself.

    A line that is an exception is what reading it raises; `interrupt_at` is the piece at which Ctrl-C is typed.
    """

    def __init__(self, engine: Engine, *lines: str | BaseException, interrupt_at: int | None = None, **sampling):
        self.pieces, coming = [], iter(lines)

        def read(mark: str) -> str:
            line = next(coming, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        def write(text: str) -> None:
            self.pieces.append(text)
            if len(self.pieces) == interrupt_at:
                raise KeyboardInterrupt

        self.session = Session(engine, Sampling(**{"max_new_tokens": 6, "min_new_tokens": 6} | sampling), read, write)
        self.session.run()
        assert self.pieces[0].startswith(GREETING[:12])
        self.shown = "".join(self.pieces[1:])


def text(engine: Engine, prompt: str, **settings) -> str:
    request = Request(
        **{"source" if engine.answers else "prompt": prompt, "max_new_tokens": 6, "min_new_tokens": 6} | settings
    )
    return engine.write([request])[0].text


def test_each_line_is_continued_as_the_engine_does_and_the_end_of_the_lines_leaves(plain):
    talk = Talk(plain, "one", "", "  ", " two", temperature=0.5)
    one, two = (text(plain, prompt, temperature=0.5) for prompt in ("one", " two"))
    assert talk.shown == f"one{one}\n two{two}\n\n"


def test_a_line_that_begins_with_two_strokes_is_a_prompt_that_begins_with_one(plain):
    assert Talk(plain, "//one").shown == f"/one{text(plain, '/one')}\n\n"


def test_that_texts_grow_beyond_what_was_trained_is_said_once(plain, monkeypatch):
    monkeypatch.setattr(plain.model.config, "trained_context_length", 10, raising=False)
    talk = Talk(plain, "one", "four", "three")
    note = "the model was trained on 10 tokens at once, and prompt and continuation take up to 11: it may write worse"
    assert talk.shown.startswith("one") and talk.shown.count(note) == talk.shown.count("trained on") == 1


# --- settings --------------------------------------------------------------------------------------------------------

OTHERS = {
    "max_new_tokens": "9",
    "min_new_tokens": "2",
    "temperature": "1.5",
    "top_k": "3",
    "top_p": "0.5",
    "min_p": "0.2",
    "repetition_penalty": "1.8",
    "seed": "7",
}


def test_every_field_of_sampling_is_a_command_and_changes_what_is_written(plain):
    assert [*OTHERS] == [field.name for field in dataclasses.fields(Sampling)]
    for field in dataclasses.fields(Sampling):
        value = field.type(OTHERS[field.name])
        talk = Talk(plain, f"/{field.name} {value}", "one", f"/{field.name}")
        assert talk.session.sampling == Sampling(**{"max_new_tokens": 6, "min_new_tokens": 6, field.name: value})
        assert (
            talk.shown
            == f"/{field.name} {value}\none{text(plain, 'one', **{field.name: value})}\n/{field.name} {value}\n\n"
        )


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/temperature hot", "temperature=hot is out of range; give a number, 0 or more"),
        ("/temperature -1", "temperature=-1.0 is out of range; give 0 or more"),
        ("/temperature nan", "temperature=nan is out of range; give 0 or more"),
        ("/top_p 2", "top_p=2.0 is out of range; give above 0 and at most 1"),
        ("/top_k 1.5", "top_k=1.5 is out of range; give a whole number, 0 or more"),
        ("/max_new_tokens 3", "min_new_tokens=6 is out of range; give 0 to max_new_tokens=3"),
        (f"/seed {1 << 64}", f"seed={1 << 64} is out of range; give {-(1 << 63)} to {(1 << 64) - 1}"),
        ("/retry", "there is nothing to retry yet; write a prompt first"),
        ("/temprature 1", "/temprature is not a command; /help lists them, and //temprature begins a prompt with /"),
        ("/clear", "/clear is not a command; /help lists them, and //clear begins a prompt with /"),
        ("b" * 300, "the prompt takes 301 tokens and the model's context holds 256, the continuation included; "
         "shorten the prompt"),
        ("caf\udce9", NOT_UTF8),
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), NOT_UTF8),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told_in_a_line_and_changes_nothing(plain, line, answer):
    talk = Talk(plain, line, "one")
    assert talk.shown == f"{answer}\none{text(plain, 'one')}\n\n"


def test_seeds_at_the_edge_of_their_range_write(plain):
    for seed in (-(1 << 63), (1 << 64) - 1):
        assert Talk(plain, "one", seed=seed).shown == f"one{text(plain, 'one', seed=seed)}\n\n"


def test_retry_writes_behind_the_newest_prompt_with_the_next_seed(plain):
    talk = Talk(plain, "one", "/retry", "/retry", seed=3)
    first, second, third = (text(plain, "one", seed=seed) for seed in (3, 4, 5))
    assert talk.shown == f"one{first}\n/seed 4\none{second}\n/seed 5\none{third}\n\n"


def test_reset_shows_the_settings_that_it_began_with_as_lines_that_would_set_them(plain):
    talk = Talk(plain, "/temperature 2", "/seed 5", "/reset")
    assert talk.session.sampling == Sampling(max_new_tokens=6, min_new_tokens=6)
    lines = talk.shown.splitlines()[2:-1]
    assert "/temperature 0.8" in lines and Talk(plain, *lines).shown.splitlines()[:-1] == lines


def test_help_names_every_command_on_a_line(plain, chat):
    for engine in (plain, chat):
        talk = Talk(engine, "/help")
        lines = talk.shown.splitlines()
        assert [line.split()[0].lstrip("/") for line in lines[:-2]] == [*talk.session.commands]
    assert any("0 always takes the most probable token" in line for line in lines)


def test_quit_leaves_before_the_next_line(plain):
    assert Talk(plain, "/quit", "one").shown == ""


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_the_text_and_the_session_goes_on(plain):
    talk = Talk(plain, "one", KeyboardInterrupt(), "two", interrupt_at=4)
    one, two = text(plain, "one"), text(plain, "two")
    assert talk.shown == f"one{one[:2]}\n\ntwo{two}\n\n"


# --- chats -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def heard(chat, monkeypatch) -> list[str]:
    """What the model of a chat has read at each turn."""
    heard, stream = [], chat.stream

    def listen(request: Request):
        heard.append(chat.tokenizer.decode(request.prompt))
        return stream(request)

    monkeypatch.setattr(chat, "stream", listen)
    return heard


def test_a_chat_keeps_its_turns_until_they_are_cleared(chat, heard):
    talk = Talk(chat, "one", "two", "/clear", "three")
    one, two, *_ = talk.shown.split("\n")
    assert heard == ["user:one|assistant:", f"user:one|assistant:{one}|user:two|assistant:", "user:three|assistant:"]
    assert len(one) == len(two) == 6


def test_retry_takes_the_place_of_the_newest_answer(chat, heard):
    talk = Talk(chat, "one", "/retry", "two")
    first, seed, second, *_ = talk.shown.split("\n")
    assert first != second and seed == "/seed 43"
    assert heard == ["user:one|assistant:"] * 2 + [f"user:one|assistant:{second}|user:two|assistant:"]


def test_an_answer_that_ctrl_c_stops_counts_as_far_as_it_went(chat, heard):
    Talk(chat, "one", "two", interrupt_at=3)
    assert heard[1] == f"user:one|assistant:{text(chat, chat.tokenizer.encode(heard[0]))[:2]}|user:two|assistant:"


def test_the_system_text_stands_before_all_turns(chat, heard):
    talk = Talk(chat, "/system be short", "one", "/show", "/system", "/clear", "two")
    assert heard == ["system:be short|user:one|assistant:", "user:two|assistant:"]
    assert "/system be short\n2 turns so far\n/system \n" in talk.shown


def test_a_turn_that_cannot_be_read_is_not_kept(chat, heard):
    talk = Talk(chat, "one", "b" * 300, "refuse", "two")
    one, long, refused, _, _, _ = talk.shown.split("\n")
    assert "tokens and the model's context holds 256" in long
    assert refused == "the model's chat template does not take this turn: no such turn"
    assert heard[1:] == [f"user:one|assistant:{one}|user:two|assistant:"]


def test_an_encoder_decoder_answers_each_line():
    engine = engine_of("bart")
    engine.tokenizer.chat_template = TEMPLATE
    talk = Talk(engine, "abba", "a" * 40)
    assert talk.shown.startswith(text(engine, "abba") + "\na source text takes ") and "abba" not in talk.shown


# --- the lines of earlier sessions -----------------------------------------------------------------------------------


def test_lines_are_kept_for_the_next_session_where_they_can_be(tmp_path, monkeypatch):
    readline = pytest.importorskip("readline")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    file = tmp_path / "state" / "smallm_hf" / "history"
    readline.clear_history()
    with line_history():
        readline.add_history("one line")
    assert file.read_text().splitlines()[-1] == "one line"
    readline.clear_history()
    with line_history():
        assert readline.get_history_item(1) in ("one line", "_HiStOrY_V2_")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with line_history():
        readline.add_history("another")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with line_history():
        pass
    assert (tmp_path / "home" / ".local" / "state" / "smallm_hf" / "history").exists()


@pytest.mark.slow
def test_generate_without_a_prompt_is_a_session_on_a_terminal(tmp_path):
    model = writer()
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    script = Path(__file__).resolve().parent.parent / "scripts" / "generate.py"
    command = [sys.executable, script, "--model", tmp_path / "model", "--device", "cpu"]
    command += ["--max_new_tokens", "1000000", "--min_new_tokens", "1000000"]
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path), "TERM": "dumb"}
    ours, its = pty.openpty()
    shown = b""

    def wait_for(words: bytes) -> None:
        nonlocal shown
        while words not in shown:
            shown += os.read(ours, 1 << 16)
        shown = shown.partition(words)[2]

    with subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True
    ) as running:
        wait_for(b"Ctrl-D leaves.\r\n> ")
        os.write(ours, b"one\n")
        wait_for(b"one\r\none")
        running.send_signal(2)  # what a terminal sends to the programs before it at Ctrl-C
        wait_for(b"\r\n> ")
        os.write(ours, b"/seed 7\n")
        wait_for(b"/seed 7\r\n> ")
        os.write(ours, b"\x04")
        assert running.wait(60) == 0
    assert (tmp_path / "smallm_hf" / "history").read_text().splitlines()[-2:] == ["one", "/seed 7"]
