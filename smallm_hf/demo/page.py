"""The page itself, by Gradio: nothing of it comes from another machine, and nothing is told to one."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.requests import Request as WebRequest
from starlette.responses import RedirectResponse, Response

from smallm_hf.base.errors import UserError
from smallm_hf.base.settings import Loading, Sampling
from smallm_hf.demo.asking import CHOICES, Asking, Steps, Stop
from smallm_hf.demo.facts import examples_of, facts_of, read_card
from smallm_hf.demo.showing import (
    choice_bars,
    choice_labels,
    facts_html,
    framed,
    header_html,
    help_html,
    notice,
    plain,
    problem,
    steps_told,
    text_html,
    told,
)
from smallm_hf.inspection import trained_length
from smallm_hf.serving.configuration import Limits, Serving
from smallm_hf.serving.loading import load_to_serve, served_name
from smallm_hf.serving.observing import Metrics
from smallm_hf.serving.served import Served

PAGES = "/demo"  # of the server
MOST_TOKENS = 1000  # of the slider
SEEDS = 2**32
SETTINGS = ("max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed")  # of `Sampling`, in their order
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="4" fill="#2563eb"/>'
    '<path d="M3 5h10M3 8h7M3 11h4" stroke="#fff" stroke-width="1.6"/></svg>'
)
LOOK = {
    "theme": gr.themes.Soft(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_padding="0",
        block_label_text_color="*body_text_color",
        block_label_text_color_dark="*body_text_color",
        body_background_fill="*neutral_50",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_700",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_600",
        button_border_width="1px",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        button_secondary_background_fill_hover="*neutral_200",
    ),
    "css_paths": Path(__file__).with_name("page.css"),
    "footer_links": [],
    "run_history": False,
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
    "max_file_size": 1,  # bytes: there is nothing to upload here
}
QUIET = {"api_visibility": "private", "show_progress": "hidden"}


def build_demo(served: Served, source: str, limits: Limits, beside: Served | None = None) -> gr.Blocks:
    """The page of a model.

    Args:
        served: the model.
        source: the folder or Hub id that it was loaded from, for its card.
        limits: of the server.
        beside: a second model, to be compared with it.
    """
    card, asking = read_card(source), Asking(served, limits)
    examples = examples_of(card)
    with gr.Blocks(title=served.name, analytics_enabled=False) as demo:
        gr.HTML(header_html(served.name))
        prompt = gr.Textbox(
            label="Beginning",
            info="The model goes on from here. Left empty, it begins by itself.",
            value=examples[0] if examples else "",
            lines=2,
            max_lines=8,
            elem_id="prompt",
        )
        if examples:
            gr.Examples([[example] for example in examples], prompt, label="Try one of these", api_visibility="private")
        settings = _settings(served, limits)
        read = gr.Textbox(label="Text", lines=3, max_lines=8, value=prompt.value, render=False, elem_id="read")
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Write"):
                _writing(asking, prompt, settings, read)
            with gr.Tab("Steps"):
                _stepping(asking, prompt, read)
            if beside is not None:
                with gr.Tab("Compare"):
                    _comparing([asking, Asking(beside, limits)], prompt, settings)
            with gr.Tab("Inside"):
                _looking(asking, read)
            with gr.Tab("About"):
                gr.HTML(facts_html(facts_of(served, card)))
    demo.queue(max_size=limits.max_waiting, default_concurrency_limit=served.writer.slots, api_open=False)
    return demo


def add_demo(app: FastAPI, served: Served, source: str, loading: Loading, serving: Serving, limits: Limits) -> None:
    """Adds the page of a model that is served to its app, with the model of `serving.beside` where there is one.

    Raises:
        UserError: that one cannot be loaded, or is not causal.
    """
    beside = None
    if serving.beside is not None:  # its thread ends with the process
        writer = load_to_serve(serving.beside, loading, serving, limits, Metrics())
        beside = Served(writer, served_name(serving.beside))
    mount_demo(app, build_demo(served, source, limits, beside))


def mount_demo(app: FastAPI, demo: gr.Blocks) -> None:
    """Adds a page to an app at `PAGES`; who asks for nothing in particular is sent there."""

    async def to_the_page(request: WebRequest) -> RedirectResponse:
        return RedirectResponse(f"{PAGES}/")

    async def icon(request: WebRequest) -> Response:
        return Response(ICON, media_type="image/svg+xml")

    app.add_route("/", to_the_page, include_in_schema=False)
    app.add_route("/favicon.ico", icon, include_in_schema=False)
    gr.mount_gradio_app(app, demo, PAGES, **LOOK)


def launch(model: str) -> None:
    """Shows the page of a model, alone: what the app of a Space calls.

    Args:
        model: a folder or a Hub id.
    """
    limits = Limits()
    served = Served(load_to_serve(model, Loading(), Serving(), limits, Metrics()), served_name(model))
    build_demo(served, model, limits).launch(share=False, **LOOK)


def _settings(served: Served, limits: Limits) -> dict[str, gr.components.Component]:
    """What can be set for a text: fields of `Sampling`, in words for somebody who has never set them."""
    usual, trained, most = Sampling(), trained_length(served.engine.model), min(MOST_TOKENS, limits.max_tokens)
    length = "How much to write at most, in tokens: words and pieces of words."
    if trained is not None:
        length += f" This model was trained on {trained:,} at once, and may get worse beyond."
    with gr.Accordion("Settings", open=False), gr.Row(elem_classes="settings"):
        return {
            "max_new_tokens": gr.Slider(1, most, min(usual.max_new_tokens, most), step=1, label="Length", info=length),
            "temperature": gr.Slider(
                0,
                2,
                usual.temperature,
                step=0.05,
                label="Temperature",
                info="How daring it is. At 0 it always takes the likeliest token; above 1 it gets wild.",
            ),
            "top_p": gr.Slider(
                0.05,
                1,
                usual.top_p,
                step=0.05,
                label="Top-p",
                info="It draws from the likeliest tokens that together have this probability; at 1 from all of them.",
            ),
            "repetition_penalty": gr.Slider(
                1,
                2,
                usual.repetition_penalty,
                step=0.05,
                label="Repetition penalty",
                info="Above 1, tokens that are there already become less likely.",
            ),
            "seed": gr.Number(
                usual.seed,
                precision=0,
                minimum=0,
                maximum=SEEDS - 1,
                label="Seed",
                info="Decides every random choice. The same seed and settings write the same text again.",
                elem_id="seed",
            ),
        }


def _sampling(settings: Iterable[str], values: Sequence[Any]) -> Sampling:
    """The settings as they were sent; a field that was emptied has its usual value."""
    return Sampling(**{name: value for name, value in zip(settings, values, strict=True) if value is not None})


async def write_shown(
    asking: Asking, settings: Iterable[str], stop: Stop, prompt: str, *values: Any
) -> AsyncIterator[tuple[str, str, str]]:
    """A text while it is written: as HTML, with a line on how far it is, and as plain text."""
    shown, text, stop.wanted = text_html(prompt, []), prompt, False
    yield shown, notice("Reading the beginning …"), text
    try:
        sampling = _sampling(settings, values)
        async with aclosing(asking.write(prompt, sampling, stop)) as writing:
            async for progress in writing:
                shown, text = text_html(prompt, [progress.text]), prompt + progress.text
                yield shown, told(progress, sampling.seed), text
    except UserError as error:
        yield shown, problem(error), text


def _writing(asking: Asking, prompt: gr.Textbox, settings: dict[str, Any], read: gr.Textbox) -> None:
    """The tab in which the model writes a text."""
    with gr.Row(elem_classes="actions"):
        write = gr.Button("Write", variant="primary", elem_id="write")
        again = gr.Button("Again", elem_id="again")
        stop = gr.Button("Stop", elem_id="stop")
    shown = gr.HTML(text_html("", []), elem_id="text")
    line = gr.HTML(notice("Press Write. Again writes another text, by the next seed."), elem_id="line")
    wish = gr.State(Stop())
    write_it, asked = partial(write_shown, asking, SETTINGS), [wish, prompt, *settings.values()]
    seed, outputs = settings["seed"], [shown, line, read]
    gr.on([write.click, prompt.submit], write_it, asked, outputs, **QUIET)
    again.click(_next_seed, seed, seed, **QUIET).then(write_it, asked, outputs, **QUIET)
    stop.click(_stop, wish, **QUIET)


def _stop(wish: Stop) -> None:
    wish.wanted = True


def _next_seed(seed: int | None) -> int:
    return (Sampling.seed if seed is None else seed + 1) % SEEDS


def _comparing(both: Sequence[Asking], prompt: gr.Textbox, settings: dict[str, Any]) -> None:
    """The tab in which two models go on from the same beginning, with the same settings and seed."""
    gr.HTML(help_html("Both models go on from the same beginning, with the same settings and the same seed."))
    with gr.Row(elem_classes="actions"):
        write = gr.Button("Write both", variant="primary", elem_id="write-both")
        stop = gr.Button("Stop", elem_id="stop-both")
    wish = gr.State(Stop())
    with gr.Row():
        for number, asking in enumerate(both):
            with gr.Column(min_width=280):
                gr.HTML(f"<h2>{plain(asking.served.name)}</h2>")
                shown = gr.HTML(text_html("", []), elem_id=f"text-{number}")
                line = gr.HTML(notice("Press Write both."), elem_id=f"line-{number}")
            show = partial(_without_text, asking, SETTINGS)
            write.click(show, [wish, prompt, *settings.values()], [shown, line], **QUIET)
    stop.click(_stop, wish, **QUIET)


async def _without_text(asking: Asking, settings: Iterable[str], *asked: Any) -> AsyncIterator[tuple[str, str]]:
    async with aclosing(write_shown(asking, settings, *asked)) as writing:
        async for shown, line, _ in writing:
            yield shown, line


async def step_shown(asking: Asking, steps: Steps | None, do: Callable[[], Awaitable[Steps]]) -> list[Any]:
    """The text after something was done to it, and what the tab shows of it; where that fails, why."""
    try:
        steps = await do()
    except UserError as error:
        return [steps, *[gr.skip()] * 2, problem(error), gr.skip(), *[gr.skip()] * CHOICES]
    before, pieces = asking.pieces(steps)
    labels = choice_labels(asking, steps)
    buttons = [gr.update(value=label, visible=True) for label in labels]
    buttons += [gr.update(visible=False)] * (CHOICES - len(labels))
    text = before + "".join(pieces)
    return [steps, text_html(before, pieces), choice_bars(steps), steps_told(steps), text, *buttons]


def _stepping(asking: Asking, prompt: gr.Textbox, read: gr.Textbox) -> None:
    """The tab in which a visitor chooses the tokens."""
    gr.HTML(
        help_html(
            "A model writes in tokens: words and pieces of words. Here you choose them, from those that it finds "
            "likeliest; the longer the bar, the likelier. ␣ is the space before a word, ↵ a new line."
        )
    )
    with gr.Row(elem_classes="actions"):
        begin = gr.Button("Begin", variant="primary", elem_id="begin")
        back = gr.Button("Take one back", elem_id="back")
    steps = gr.State()
    shown = gr.HTML(text_html("", []), elem_id="steps")
    bars = gr.HTML("", elem_classes="unseen")
    with gr.Column(elem_classes="choices"):
        buttons = [gr.Button("", visible=False, elem_id=f"choice-{place}") for place in range(CHOICES)]
    line = gr.HTML(notice("Press Begin."), elem_id="steps-line")
    outputs = [steps, shown, bars, line, read, *buttons]

    async def begun(prompt: str, steps: Steps | None) -> list[Any]:
        return await step_shown(asking, steps, lambda: asking.begin(prompt))

    async def taken(place: int, steps: Steps) -> list[Any]:
        return await step_shown(asking, steps, lambda: asking.take(steps, place))

    async def taken_back(prompt: str, steps: Steps | None) -> list[Any]:
        return await step_shown(asking, steps, lambda: asking.take_back(steps) if steps else asking.begin(prompt))

    begin.click(begun, [prompt, steps], outputs, **QUIET)
    back.click(taken_back, [prompt, steps], outputs, **QUIET)
    for place, button in enumerate(buttons):
        button.click(partial(taken, place), steps, outputs, **QUIET)


async def look(asking: Asking, text: str) -> AsyncIterator[tuple[str, str]]:
    """The pictures of a text, one after the other; in place of one that cannot be made, why."""
    shown = [notice("Drawing …"), ""]
    yield tuple(shown)
    for place, (title, draw) in enumerate((("Surprise", asking.surprise), ("Attention", asking.attention))):
        try:
            shown[place] = framed(title, await draw(text))
        except UserError as error:
            shown[place] = problem(f"No picture: {error}")
        yield tuple(shown)


def _looking(asking: Asking, read: gr.Textbox) -> None:
    """The tab that shows what happens in the model while it reads a text."""
    gr.HTML(help_html("Here is the text that was written last. You can change it, or type one of your own."))
    read.render()
    with gr.Row(elem_classes="actions"):
        button = gr.Button("Look inside", variant="primary", elem_id="look")
    gr.HTML(
        "<h2>How surprised was it?</h2>" + help_html("The warmer the colour, the less the model expected the word.")
    )
    surprise = gr.HTML(notice("Press Look inside."), elem_id="surprise")
    gr.HTML(
        "<h2>Where does it look?</h2>"
        + help_html(
            "To choose a next word, the model looks back at earlier ones, in many ways at once. Each card is one of "
            "these ways: from the framed word, it looks at the blue ones."
        )
    )
    attention = gr.HTML("", elem_id="attention")
    button.click(partial(look, asking), read, [surprise, attention], **QUIET)
