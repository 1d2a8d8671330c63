"""Serves a model over HTTP, as OpenAI's clients expect it."""

from smallm_hf.base.command_line import take
from smallm_hf.base.parser import CommandParser
from smallm_hf.base.settings import MODEL, Loading, require_models
from smallm_hf.serving.configuration import Limits, Serving, require_libraries

DESCRIPTION = """Serves a model over HTTP with the API that OpenAI's clients speak.

Only this machine can reach it, until --host says otherwise, which needs API keys. When it says that it is serving:
curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "Once", "max_tokens": 20}'
"""
EXAMPLES = (
    "serve --model runs/quickstart/best",
    "serve --model runs/quickstart/best --demo",
    "serve --model runs/quickstart/best --host 0.0.0.0 --api_keys_file keys.txt",
)


def main() -> None:
    """Serves what the line names."""
    parser = CommandParser(DESCRIPTION, EXAMPLES, usage="--model MODEL [OPTIONS]")
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_argument("--demo", action="store_true", help="also a page to try the model on (extra `demo`)")
    parser.add_class_arguments(Serving, as_group=False, skip={"demo"})
    parser.add_section("limits", "What one request may ask for, and all of them together", Limits)
    parser.add_loading()
    given = parser.parse_args().as_dict()
    serving, loading, limits = (take(kind, given) for kind in (Serving, Loading, Limits))
    require_models(filter(None, [given["model"], serving.beside]))
    require_libraries("serve", *["demo"] * serving.demo)

    from smallm_hf.serving.keys import read_keys
    from smallm_hf.serving.listening import bind

    keys, listener = read_keys(serving), bind(serving.host, serving.port)

    from smallm_hf.serving.running import serve

    serve(given["model"], loading, serving, limits, keys, listener)
