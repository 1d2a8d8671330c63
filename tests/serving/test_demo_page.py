"""The page in a browser, behind all that guards a server; `SMALLM_SCREENSHOTS=FOLDER` keeps what it looked like."""

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from small_server import BYTES, EOS, NAME, POSITIONS, served
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from smallm_hf.demo.page import build_demo, mount_demo
from smallm_hf.generation import slots
from smallm_hf.generation.engine import Engine
from smallm_hf.generation.request import Request
from smallm_hf.serving.app import create_app
from smallm_hf.serving.configuration import Limits, Serving
from smallm_hf.serving.guard import Gate, guarded
from smallm_hf.serving.keys import Keys
from smallm_hf.serving.listening import address_of, bind, listening
from smallm_hf.serving.observing import Metrics

playwright = pytest.importorskip("playwright.sync_api", reason="pip install the extra test-ecosystem")
pytestmark = pytest.mark.ecosystem

CARD = "---\nlicense: mit\nwidget:\n- text: Once upon a time\n---\n# tiny\n"
STEP_SECONDS = 0.005  # so that a text can be stopped
WAIT = 60_000  # milliseconds, for a busy machine


def printable_engine(seed: int = 0) -> Engine:
    """Random; it never ends a text, and every token is a character that a page shows as it is."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    printable = {letter: byte - 32 for letter, byte in BYTES.items() if 32 <= byte < 127}
    backend = Tokenizer(models.BPE(printable, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(EOS, special=True)])
    config = LlamaConfig(
        vocab_size=96, max_position_embeddings=POSITIONS, initializer_range=0.5, eos_token_id=95, **sizes
    )
    engine = Engine(LlamaForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS))
    engine.eos_token_ids = []  # so that no text ends by chance before it is stopped
    return engine


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A server with two models and the page."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "README.md").write_text(CARD)
    for name in ("config.json", "tokenizer.json"):  # marks of a model's folder
        (folder / name).write_text("{}")
    limits, gate, listener = Limits(), Gate(300), bind("127.0.0.1", 0)
    both = served(printable_engine(), slots=4), served(printable_engine(1), slots=2)
    app = create_app(both[0], limits)
    mount_demo(app, build_demo(both[0], str(folder), limits, both[1]))
    step = slots.Slots.step
    patch = pytest.MonkeyPatch()
    patch.setattr(slots.Slots, "step", lambda self: (time.sleep(STEP_SECONDS), step(self))[1])
    with listening(guarded(gate, Keys(), Metrics(), Serving(), limits), listener, limits) as loop:
        ended = asyncio.run_coroutine_threadsafe(gate.serve(app, 0), loop)
        yield address_of(listener)
        loop.call_soon_threadsafe(gate.stop)
        ended.result()
    patch.undo()
    for one in both:
        one.writer.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")], ids=lambda p: f"{p[0]}-{p[1]}")
def page(request, browser, address):
    """The page in a window of a desktop or a phone; nothing of it may come from elsewhere, nor overflow the window."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, asked, errors = context.new_page(), [], []
    page.set_default_timeout(WAIT)
    page.on("request", lambda one: asked.append(one.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.locator("#write").wait_for()

    def show(name: str) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if folder := os.environ.get("SMALLM_SCREENSHOTS"):
            page.screenshot(path=Path(folder, f"{width}-{scheme}-{name}.png"), full_page=True)

    page.show = show
    yield page
    context.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:", "about:"))] == []
    assert errors == []


def text_of(page, place: str) -> str:
    return page.locator(f"{place} .written").text_content()


def wait_for(page, place: str, text: str) -> None:
    page.locator(place, has_text=text).wait_for()


def written(prompt: str, seed: int, **options) -> str:
    """What the model writes by itself."""
    (text,) = printable_engine().write([Request(prompt, seed=seed, **options)])
    return prompt + text.text


def test_a_visitor_writes_stops_steps_compares_and_looks(page):
    # Example, write, again.
    page.get_by_role("button", name="Once upon a time").or_(
        page.get_by_text("Once upon a time", exact=True)
    ).first.click()
    page.locator("#write").click()
    wait_for(page, "#line", "with seed 42.")
    assert text_of(page, "#text") == written("Once upon a time", 42)
    page.locator("#again").click()
    wait_for(page, "#line", "with seed 43.")
    assert text_of(page, "#text") == written("Once upon a time", 43)
    page.show("write")

    # Too long a prompt is a line; braces and tags are text.
    page.locator("#prompt textarea").fill("x" * POSITIONS)
    page.locator("#write").click()
    wait_for(page, "#line [role=alert]", f"the prompt takes {POSITIONS + 1} tokens and the model's context holds")
    page.show("problem")
    page.locator("#prompt textarea").fill("{{x}} ${1} <b>")
    page.locator("#write").click()
    wait_for(page, "#line", "with seed 43.")
    assert text_of(page, "#text") == written("{{x}} ${1} <b>", 43)

    # Stop.
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("spinbutton", name="Length").or_(page.get_by_label("number input for Length")).first.fill("1000")
    page.show("settings")
    page.get_by_role("button", name="Settings").click()
    page.locator("#write").click()
    wait_for(page, "#line", "Writing …")
    page.locator("#stop").click()
    wait_for(page, "#line", "You stopped it.")

    # Step by step, by keyboard alone.
    page.locator("#prompt textarea").fill("The cat")
    page.get_by_role("tab", name="Steps").focus()
    page.keyboard.press("Enter")
    page.locator("#begin").focus()
    page.keyboard.press("Enter")
    page.locator("#choice-0").wait_for()
    for length in (1, 2, 3):
        page.locator("#choice-0").focus()
        page.keyboard.press("Enter")
        page.locator(f"#steps ins >> nth={length - 1}").wait_for()
    assert text_of(page, "#steps") == written("The cat", 0, temperature=0, max_new_tokens=3)
    page.show("steps")
    page.locator("#back").click()
    page.locator("#steps ins >> nth=2").wait_for(state="detached")
    assert text_of(page, "#steps") == written("The cat", 0, temperature=0, max_new_tokens=2)

    # The pictures of that text.
    text = text_of(page, "#steps")
    page.get_by_role("tab", name="Inside").click()
    assert page.locator("#read textarea").input_value() == text
    page.locator("#look").click()
    heat = page.frame_locator("#surprise iframe")
    heat.locator(".text span").first.wait_for()
    assert heat.locator(".text span").count() == len(text.encode()) and heat.locator(".detail div").count() == 5
    assert page.frame_locator("#attention iframe").locator(".heads > div").count() == 1 + 2 * 2
    page.show("inside")

    # Both models, the same seed.
    page.locator("#prompt textarea").fill("She")
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("spinbutton", name="Length").or_(page.get_by_label("number input for Length")).first.fill("20")
    page.get_by_role("button", name="Settings").click()
    page.locator("#write-both").click()
    for number in (0, 1):
        wait_for(page, f"#line-{number}", "with seed 43.")
    texts = [text_of(page, f"#text-{number}") for number in (0, 1)]
    assert texts[0] == written("She", 43, max_new_tokens=20) != texts[1] and texts[1].startswith("She")
    page.show("compare")

    page.get_by_role("tab", name="About").click()
    wait_for(page, ".facts", f"{printable_engine().model.num_parameters():,}")
    assert "mit" in page.locator(".facts").inner_text() and page.title() == NAME
    page.show("about")
