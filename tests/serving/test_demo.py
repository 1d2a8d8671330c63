"""What the page asks of a model and shows of it, without a browser."""

import asyncio
import html
import re
from dataclasses import replace

import pytest
import torch
from small_server import POSITIONS, byte_tokenizer, served, shared, small_engine, small_model
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from smallm_hf.base.errors import UserError
from smallm_hf.demo.asking import CHOICES, Asking, Stop
from smallm_hf.demo.facts import examples_of, facts_of, read_card
from smallm_hf.demo.page import SETTINGS, build_demo, look, mount_demo, step_shown, write_shown
from smallm_hf.demo.showing import END, choice_bars, choice_labels, framed, text_html
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request
from smallm_hf.models.configuration_recurrent import RecurrentConfig
from smallm_hf.models.modeling_recurrent import RecurrentForCausalLM
from smallm_hf.serving.app import create_app
from smallm_hf.serving.configuration import Limits, Serving, require_libraries
from smallm_hf.serving.guard import Locked
from smallm_hf.serving.keys import Keys

EOS_ID = 256
USUAL = [20, 0.8, 1.0, 1.0, 42]  # the settings of the page, in their order
CARD = """---
license: other
license_name: mine
datasets: [user/stories]
widget:
- text: Once
- text: "\\n"
- text: The cat
model-index:
- name: tiny
  results:
  - task: {type: text-generation}
    dataset: {type: stories, name: stories (held out)}
    metrics:
    - {type: loss, value: 2.5}
    - {type: bits_per_byte, value: 1.2345}
---
# tiny
"""


async def all_of(stream) -> list:
    return [one async for one in stream]


@pytest.fixture
def asking():
    return Asking(shared(), Limits())


def written(asking: Asking, *asked, stop: Stop | None = None) -> list[tuple[str, str, str]]:
    return asyncio.run(all_of(write_shown(asking, SETTINGS, stop or Stop(), *asked)))


# --- writing ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_writes_what_the_engine_writes(asking):
    for seed in (42, 43):
        shown, line, text = written(asking, "The cat", *USUAL[:-1], seed)[-1]
        (alone,) = small_engine().write([Request("The cat", max_new_tokens=20, seed=seed)])
        assert text == "The cat" + alone.text and text_html("The cat", [alone.text]) == shown
        assert f"{len(alone.tokens)} tokens with seed {seed}." in line


def test_a_text_that_is_stopped_ends_at_once_and_frees_its_slot():
    one = served(slots=1)
    stop, lines = Stop(), []

    async def press_stop():
        async for _, line, _ in write_shown(Asking(one, Limits()), SETTINGS, stop, "The", 4000, *USUAL[1:]):
            lines.append(line)
            stop.wanted = len(lines) > 1

    asyncio.run(press_stop())
    assert "You stopped it." in lines[-1] and not re.search("4,?000 tokens", lines[-1])
    assert written(Asking(one, Limits()), "The", *USUAL)  # a slot is free for another text
    one.writer.close()


@pytest.mark.parametrize(
    ("asked", "limits", "message"),
    [
        (("x" * POSITIONS, *USUAL), {}, f"the prompt takes {POSITIONS + 1} tokens and the model&#x27;s context holds"),
        (("x", 21, *USUAL[1:]), {"max_tokens": 20}, "a text may have 20 tokens here; lower the length"),
        (("x" * 9, *USUAL), {"max_prompt_tokens": 9}, "a prompt of 10 tokens is longer than the 9"),
        (("\ud800", *USUAL), {}, "half of a character"),
        (("x", 20, -1.0, *USUAL[2:]), {}, "temperature=-1.0 is out of range"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line_of_the_page(asked, limits, message):
    _, line, text = written(Asking(shared(), Limits(default_max_tokens=1, **limits)), *asked)[-1]
    assert message in line and 'role="alert"' in line and "\n" not in line and text == asked[0]


def test_a_field_that_was_emptied_has_its_usual_value(asking):
    assert "with seed 42." in written(asking, "The", 5, *[None] * 4)[-1][1]


def test_what_a_text_holds_is_never_a_part_of_the_page():
    shown = text_html("<b>{{x}}", ["${1}", "`</p>"])
    assert not re.search(r"[{}$`]|<b>&|</p>.", shown.replace("<b>", "", 1))
    assert html.unescape(re.sub("<.*?>", "", shown)) == "<b>{{x}}${1}`</p>"


# --- step by step ----------------------------------------------------------------------------------------------------


def test_the_most_probable_choices_are_what_the_model_writes_and_each_can_be_taken_back(asking):
    async def walk():
        begun = steps = await asking.begin("The cat")
        for _ in range(3):
            steps = await asking.take(steps, 0)
        back = steps
        for _ in range(5):
            back = await asking.take_back(back)
        return begun, steps, back

    begun, steps, back = asyncio.run(walk())
    (greedy,) = small_engine().write([Request("The cat", max_new_tokens=3, temperature=0)])
    assert steps.token_ids[steps.given :] == tuple(token.id for token in greedy.tokens)
    assert asking.pieces(steps) == ("The cat", [token.text for token in greedy.tokens])
    assert back == begun and len(begun.choices) == CHOICES
    with torch.no_grad():
        expected = small_model()(torch.tensor([begun.token_ids])).logits[0, -1].log_softmax(-1).topk(CHOICES)
    assert [token_id for token_id, _ in begun.choices] == expected.indices.tolist()
    assert [value for _, value in begun.choices] == pytest.approx(expected.values.tolist(), abs=1e-5)


def test_choices_are_told_in_per_cent_with_bars_as_long(asking):
    steps = replace(asyncio.run(asking.begin("x")), choices=((EOS_ID, -0.5), (ord(" "), -1.5), (0xE2, -9.0)))
    labels = [label.split() for label in choice_labels(asking, steps)]
    assert labels == [["60.7%", *END.split()], ["22.3%", "␣"], ["0.0%", r"bytes:\xe2"]]
    assert re.findall(r"--share: ([\d.]+)%", choice_bars(steps)) == ["100.0", "36.8", "0.0"]


def test_behind_the_end_of_the_text_nothing_is_offered_until_it_is_taken_back(asking):
    steps = replace(asyncio.run(asking.begin("x")), choices=((EOS_ID, -0.1),))
    ended = asyncio.run(asking.take(steps, 0))
    _, _, _, line, text, *buttons = asyncio.run(step_shown(asking, steps, lambda: asking.take(steps, 0)))
    assert ended.choices == () and "The text ends here." in line and text == "x"
    assert [button["visible"] for button in buttons] == [False] * CHOICES
    assert len(asyncio.run(asking.take_back(ended)).choices) == CHOICES


def test_a_text_that_fills_the_context_says_so_and_stays(asking):
    full = replace(asyncio.run(asking.begin("x" * (POSITIONS - 2))), choices=((65, 0.0),))
    steps, _, _, line, *_ = asyncio.run(step_shown(asking, full, lambda: asking.take(full, 0)))
    assert steps == full and "the model&#x27;s context holds 64" in line


# --- looking inside --------------------------------------------------------------------------------------------------


def test_both_pictures_are_pages_in_frames_that_need_nothing_else(asking):
    shown = asyncio.run(all_of(look(asking, "The cat </iframe>")))[-1]
    for picture, word in zip(shown, ("surprise", "mean of all"), strict=True):
        (page,) = re.findall(r'srcdoc="([^"]*)"', picture)
        assert word in html.unescape(page) and picture.count("</iframe>") == 1
        assert not re.search(r"""(src|href)=["'](?!data:)|url\(""", html.unescape(page))


def test_a_picture_that_a_family_has_not_is_replaced_by_a_line():
    config = RecurrentConfig(vocab_size=257, hidden_size=16, num_hidden_layers=1, eos_token_id=EOS_ID)
    one = served(Engine(RecurrentForCausalLM(config).eval(), byte_tokenizer()))
    surprise, attention = asyncio.run(all_of(look(Asking(one, Limits()), "The cat")))[-1]
    assert "<iframe" in surprise and "No picture: " in attention and "returns no attention maps" in attention
    one.writer.close()


def test_an_empty_text_has_no_picture(asking):
    assert all("the text is empty" in picture for picture in asyncio.run(all_of(look(asking, " ")))[-1])


def test_a_frame_grows_with_its_page():
    assert "scrollHeight" in framed("Title", "<p>text</p>") and "<p>text</p>" in html.unescape(
        framed("", "<p>text</p>")
    )


# --- what is known of the model --------------------------------------------------------------------------------------


def test_facts_and_examples_are_those_of_the_card(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    card = read_card(str(tmp_path))
    facts = {fact.name: fact.value for fact in facts_of(shared(), card)}
    assert examples_of(card) == ["Once", "The cat"]
    known = {"Trained on": "user/stories", "Bits per byte": "1.234", "Licence": "mine"}
    assert facts.items() >= known.items()
    assert facts["Parameters"] == f"{small_model().num_parameters():,}" and facts["Context"] == str(POSITIONS)
    (tmp_path / "README.md").write_text(CARD.replace("datasets: [user/stories]", "").replace("license: other", ""))
    facts = {fact.name: fact.value for fact in facts_of(shared(), read_card(str(tmp_path)))}
    assert facts["Trained on"] == "stories" and "Licence" not in facts


@pytest.mark.parametrize("card", [None, "---\n: [\n---\n"])
def test_without_a_card_that_can_be_read_the_config_alone_speaks(tmp_path, card):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    if card:
        (tmp_path / "README.md").write_text(card)
    assert read_card(str(tmp_path)) is None and examples_of(None) == []
    assert [fact.name for fact in facts_of(shared(), None)] == ["Kind", "Parameters", "Vocabulary", "Context"]


# --- the page in its server ------------------------------------------------------------------------------------------


def test_the_page_stands_beside_the_api_and_loads_nothing_from_elsewhere(tmp_path):
    app = create_app(shared(), Limits())
    mount_demo(app, build_demo(shared(), str(tmp_path), Limits(), shared()))
    client = TestClient(app)
    page = client.get("/")
    assert page.url.path == "/demo/" and page.status_code == 200
    assert not re.findall(r"""<(?:script|link)[^>]*(?:src|href)=["']https?://(?!testserver)""", page.text)
    assert client.get("/favicon.ico").text.startswith("<svg")
    assert client.get("/v1/models").json()["data"][0]["id"] == shared().name
    assert client.get("/nothing").json()["error"]["code"] == "unknown_url"


def test_a_browser_is_asked_for_a_key_as_password_and_programs_for_a_token():
    client = TestClient(Locked(PlainTextResponse("here"), Keys(["secret"])))
    for path in ("/", "/demo/", "/demo/config"):
        assert client.get(path).headers["www-authenticate"].startswith("Basic realm=")
        assert [client.get(path, auth=("anybody", key)).status_code for key in ("secret", "", "wrong")] == [
            200,
            401,
            401,
        ]
        assert client.get(path, headers={"Authorization": "Basic %"}).status_code == 401
        assert client.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200
    refused = client.get("/v1/models", auth=("anybody", "secret"))
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")


def test_a_second_model_without_the_page_is_refused():
    with pytest.raises(UserError, match="beside=runs/other/best is compared on the page of --demo; add --demo"):
        Serving(beside="runs/other/best")


def test_a_library_that_the_page_needs_is_named(monkeypatch):
    monkeypatch.setattr("smallm_hf.serving.configuration.find_spec", lambda name: None if name == "gradio" else "here")
    require_libraries("serve")
    with pytest.raises(UserError, match=r'serving needs gradio; pip install "smallm_hf\[serve,demo\]"'):
        require_libraries("serve", "demo")
