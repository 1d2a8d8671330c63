"""What may be asked: the fields of each endpoint, their types, and what is wanted in the place of a wrong value.

Ranges that the engine knows (`Sampling`, `Request`) are checked by the engine.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from smallm_hf.base.errors import UserError
from smallm_hf.serving.configuration import Limits
from smallm_hf.serving.errors import Refused, shown

SEEDS = {"ge": -(2**63), "lt": 2**63}
# OpenAI allows 300; each costs an addition before the first token.
MAX_BIASES = 300
# Far below, logits divided by it leave the range of float32; what is drawn is what 0 takes long before that.
COLDEST = 1e-3

FIRST_WRONG = Field(fail_fast=True)
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True, min_length=1)]
Inputs = Annotated[
    str
    | Ids
    | Annotated[list[str], Field(fail_fast=True, min_length=1)]
    | Annotated[list[Ids], Field(fail_fast=True, min_length=1)],
    Field(description="a text, a list of texts, a list of token ids, or a list of such lists; none of them empty"),
]


def as_list(texts: str | list) -> list[str] | list[list[int]]:
    """`Inputs` as several, where they are one."""
    return [texts] if isinstance(texts, str) or isinstance(texts[0], int) else texts


def _not_too_cold(temperature: float) -> float:
    if 0 < temperature < COLDEST:
        raise ValueError
    return temperature


def optional(kind: Any, description: str, **bounds: Any) -> Any:
    """A field that may be absent or null."""
    return Annotated[Annotated[kind, Field(**bounds)] | None, Field(description=description)]


class ApiRequest(BaseModel):
    """A request for something, of the model that is served or of one by name."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: optional(str, "the name of a model in /v1/models") = None
    user: optional(str, "a text, which is not used") = None

    @model_validator(mode="wrap")
    @classmethod
    def _say_what_is_wanted(cls, given: Any, validate: ModelWrapValidatorHandler) -> Any:
        try:
            return validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
        if not first["loc"]:
            raise Refused(400, f"the body is {shown(given)}; send a JSON object")
        field = str(first["loc"][0])
        wanted = cls.model_fields[field].description
        if first["type"] == "missing" and len(first["loc"]) == 1:
            raise Refused(400, f"{field} is missing; give {wanted}", param=field)
        raise Refused(400, f"{field}: {shown(first['input'])} is not valid; give {wanted}", param=field)

    def require_known_fields(self, limits: Limits, unsupported: dict[str, str]) -> None:
        """Refuses what cannot be honoured and would change the answer, and in a strict server all that is unknown.

        Args:
            limits: of the server.
            unsupported: fields of OpenAI's API, and why not.

        Raises:
            Refused: naming them.
        """
        for name, value in self.model_extra.items():
            if name in unsupported and value not in (None, [], {}, "", "none", "auto", {"type": "text"}, ["text"]):
                raise Refused(400, f"{name} is not supported: {unsupported[name]}; leave it out", param=name)
        unknown = sorted(self.model_extra.keys() - unsupported.keys())
        if limits.strict and unknown:
            raise Refused(400, f"unknown fields: {shown(unknown)}; leave them out", "unknown_field", unknown[0])


class StreamOptions(BaseModel):
    """How a stream is sent."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class TextRequest(ApiRequest):
    """What all requests for texts have in common."""

    max_tokens: optional(int, "a whole number of 0 or more", ge=0) = None
    temperature: optional(
        Annotated[float, AfterValidator(_not_too_cold)], f"0, or a number of {COLDEST} to 100", ge=0, le=100
    ) = None
    top_p: optional(float, "a number above 0 and at most 1") = None
    top_k: optional(int, "a whole number; 0 for all tokens") = None
    min_p: optional(float, "a number of 0 to 1") = None
    repetition_penalty: optional(float, "a number of 0.01 to 100", ge=0.01, le=100) = None
    presence_penalty: optional(float, "a number of -2 to 2") = None
    frequency_penalty: optional(float, "a number of -2 to 2") = None
    logit_bias: optional(
        dict[Annotated[int, Field(strict=False, ge=0)], float],
        f'at most {MAX_BIASES} token ids with a number of -100 to 100 each, such as {{"50256": -100}}',
        max_length=MAX_BIASES,
    ) = None
    seed: optional(int, "a whole number of 64 bits", **SEEDS) = None
    stop: optional(
        Annotated[str, Field(min_length=1)] | Annotated[list[Annotated[str, Field(min_length=1)]], FIRST_WRONG],
        "a text or a list of texts, none of them empty",
    ) = None
    n: optional(int, "a whole number of 1 or more", ge=1) = None
    stream: optional(bool, "true or false") = None
    stream_options: optional(StreamOptions, '{"include_usage": true} or null') = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def require_allowed(self, limits: Limits) -> None:
        """Raises UserError where it asks for more than the server allows, or for what contradicts itself."""
        longest = max(map(len, self.stops), default=0)
        for what, asked, allowed in (
            ("n", self.n or 1, limits.max_n),
            ("stop strings", len(self.stops), limits.max_stop),
            ("characters of a stop string", longest, limits.max_stop_characters),
        ):
            if asked > allowed:
                raise UserError(f"{what}={asked} is more than the {allowed} that this server allows")
        if self.stream_options is not None and not self.stream:
            raise UserError("stream_options is given without stream=true; leave it out, or stream")


class CompletionRequest(TextRequest):
    """A request of /v1/completions."""

    prompt: Inputs = ""
    logprobs: optional(int, "a whole number of 0 or more", ge=0) = None
    echo: optional(bool, "true or false") = None
    best_of: optional(int, "a whole number of 1 or more", ge=1) = None

    def require_allowed(self, limits: Limits) -> None:
        """As that of `TextRequest`."""
        super().require_allowed(limits)
        if (self.logprobs or 0) > limits.max_logprobs:
            raise UserError(f"logprobs={self.logprobs} is more than the {limits.max_logprobs} that this server allows")
        if self.best_of not in (None, self.n or 1):
            raise UserError(f"best_of={self.best_of} is not n={self.n or 1}; all texts are given back, so leave it out")
        if self.max_tokens == 0 and not self.echo:
            raise UserError("max_tokens=0 asks for no text at all; give 1 or more, or echo=true for the prompt alone")


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def turn(self) -> dict[str, str]:
        """As chat templates read it."""
        parts = self.content
        return {"role": self.role, "content": parts if isinstance(parts, str) else "".join(one.text for one in parts)}


class ChatCompletionRequest(TextRequest):
    """A request of /v1/chat/completions."""

    messages: Annotated[
        list[Message],
        Field(
            fail_fast=True,
            min_length=1,
            description='a list of messages such as {"role": "user", "content": "Hello"}, each with the role system, '
            "user or assistant, and a text or a list of text parts as content",
        ),
    ]
    max_completion_tokens: optional(int, "a whole number of 1 or more", ge=1) = None
    logprobs: optional(bool, "true or false") = None
    top_logprobs: optional(int, "a whole number of 0 or more", ge=0) = None

    @property
    def most_tokens(self) -> int | None:
        """Tokens to write, by either of its names."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def require_allowed(self, limits: Limits) -> None:
        """As that of `TextRequest`."""
        super().require_allowed(limits)
        if (self.top_logprobs or 0) > limits.max_logprobs:
            raise UserError(
                f"top_logprobs={self.top_logprobs} is more than the {limits.max_logprobs} that this server allows"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise UserError(
                f"top_logprobs={self.top_logprobs} is given without logprobs=true; leave it out, or set both"
            )
        if self.most_tokens == 0:
            raise UserError("max_tokens=0 asks for no text at all; give 1 or more")


class EmbeddingRequest(ApiRequest):
    """A request of /v1/embeddings."""

    input: Inputs
    encoding_format: optional(Literal["float", "base64"], "float or base64") = None


class TokenizeRequest(ApiRequest):
    """A request of /tokenize."""

    prompt: Annotated[str, Field(description="a text")]
    add_special_tokens: Annotated[bool, Field(description="true or false")] = True
    parse_special: Annotated[bool, Field(description="true or false")] = True


class DetokenizeRequest(ApiRequest):
    """A request of /detokenize."""

    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True, description="a list of token ids")]
