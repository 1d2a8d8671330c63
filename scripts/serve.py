"""Serves a model over HTTP, as OpenAI's clients expect it: python scripts/serve.py --model runs/quickstart/best"""

from jsonargparse import ArgumentParser

from smallm_hf.base.command_line import add_loading_arguments, exit_clearly, take
from smallm_hf.base.settings import MODEL, Loading, require_models
from smallm_hf.serving.configuration import Limits, Serving, require_libraries

DESCRIPTION = """Serves a model over HTTP with the API that OpenAI's clients speak.

Only this machine can reach it, until --host says otherwise, which needs API keys. When it says that it is serving:
curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "Once", "max_tokens": 20}'
"""


def main() -> None:
    parser = ArgumentParser(description=DESCRIPTION, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--model", required=True, help=MODEL)
    parser.add_argument("--demo", action="store_true", help="also a page to try the model on (extra `demo`)")
    parser.add_class_arguments(Serving, as_group=False, skip={"demo"})
    add_loading_arguments(parser)
    parser.add_class_arguments(Limits)
    given = parser.parse_args().as_dict()
    serving, loading, limits = (take(kind, given) for kind in (Serving, Loading, Limits))
    require_models(filter(None, [given["model"], serving.beside]))
    require_libraries("serve", *["demo"] * serving.demo)

    from smallm_hf.serving.keys import read_keys
    from smallm_hf.serving.listening import bind

    keys, listener = read_keys(serving), bind(serving.host, serving.port)

    from smallm_hf.serving.running import serve

    serve(given["model"], loading, serving, limits, keys, listener)


if __name__ == "__main__":
    exit_clearly(main)
