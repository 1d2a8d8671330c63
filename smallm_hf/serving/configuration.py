"""How a model is served, and what one request may ask for: known before torch is imported."""

import re
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from smallm_hf.base.errors import UserError

ORIGIN = re.compile(r"https?://[^/\s*]+")
LIBRARIES = {"serve": ("fastapi", "uvicorn", "prometheus_client"), "demo": ("gradio",)}  # by the extra that has them


def require_libraries(*extras: str) -> None:
    """Raises UserError where a library that one of these extras has is not installed."""
    missing = [name for extra in extras for name in LIBRARIES[extra] if find_spec(name) is None]
    if missing:
        raise UserError(f'serving needs {", ".join(missing)}; pip install "smallm_hf[{",".join(extras)}]"')


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and all of them together; what is beyond is refused before any work.

    Args:
        max_body_bytes: of a request's body, as sent; more is answered with 413.
        max_prompts: prompts in one request.
        max_prompt_tokens: tokens of one prompt, however long the model's context is.
        max_tokens: tokens to write for one text.
        default_max_tokens: tokens to write where a request does not say, as OpenAI's completions have it.
        max_n: texts for one prompt.
        max_texts: texts of one request, its prompts times `n`.
        max_stop: stop strings of one request.
        max_stop_characters: characters of one stop string.
        max_logprobs: most probable tokens named beside each token.
        max_seconds: for a whole answer; what is not written by then is cancelled, and the answer says so.
        max_waiting: texts that may wait for a slot; more are answered with 429.
        max_connections: open at once; requests over others are answered with 503.
        max_receive_seconds: for the headers of a request to arrive, and again for its body (408).
        strict: refuse fields that the API does not know; by default they are ignored, as OpenAI does.
    """

    max_body_bytes: int = 1_000_000
    max_prompts: int = 64
    max_prompt_tokens: int = 16_384
    max_tokens: int = 4096
    default_max_tokens: int = 16
    max_n: int = 16
    max_texts: int = 64
    max_stop: int = 16
    max_stop_characters: int = 1000
    max_logprobs: int = 20
    max_seconds: float = 300.0
    max_waiting: int = 64
    max_connections: int = 256
    max_receive_seconds: float = 30.0
    strict: bool = False

    def __post_init__(self) -> None:
        for limit in fields(self):
            if limit.name != "strict" and not getattr(self, limit.name) > 0:
                raise UserError(f"{limit.name}={getattr(self, limit.name)} is out of range; give a number above 0")
        if self.default_max_tokens > self.max_tokens:
            raise UserError(
                f"default_max_tokens={self.default_max_tokens} is more than max_tokens={self.max_tokens} allows; "
                "lower it, or allow more"
            )


@dataclass(frozen=True)
class Serving:
    """Where and how a model is served.

    Args:
        host: address to listen on; one that other machines can reach needs API keys.
        port: to listen on.
        slots: texts that are written side by side; more requests wait.
        compile: compile the step, which takes 10 to 20 s at start; `auto` does where this machine can.
        api_keys_file: a file with one API key per line, for its owner alone (chmod 600); or set SMALLM_API_KEYS.
        allow_origin: pages of these origins, such as https://example.org, may call the API from a browser.
        grace_seconds: for running texts to finish after SIGTERM or Ctrl-C; then they are cut.
        log_prompts: write what was asked into the log, which stays private otherwise.
        demo: also show a page to try the model on, at /demo; Gradio makes it (extra `demo`).
        beside: a second model, for the page to compare with the first.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 8
    compile: bool | Literal["auto"] = "auto"
    api_keys_file: Path | None = None
    allow_origin: list[str] = field(default_factory=list)
    grace_seconds: float = 30.0
    log_prompts: bool = False
    demo: bool = False
    beside: str | None = None

    def __post_init__(self) -> None:
        for name, in_range, wanted in (
            ("port", 0 <= self.port <= 65535, "0 (any that is free) to 65535"),
            ("slots", self.slots >= 1, "1 or more"),
            ("grace_seconds", self.grace_seconds >= 0, "0 or more"),
        ):
            if not in_range:
                raise UserError(f"{name}={getattr(self, name)} is out of range; give {wanted}")
        if self.beside is not None and not self.demo:
            raise UserError(f"beside={self.beside} is compared on the page of --demo; add --demo, or leave it out")
        for origin in self.allow_origin:
            if not ORIGIN.fullmatch(origin):
                raise UserError(f"allow_origin={origin} is not an origin; give scheme and host, as https://example.org")

    @property
    def is_private(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False
