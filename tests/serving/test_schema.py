"""What schemathesis makes of the schema of the API: requests that fit it or do not, and none that breaks the server."""

import pytest
from small_server import served, small_engine

from smallm_hf.serving.app import create_app
from smallm_hf.serving.configuration import Limits

pytestmark = pytest.mark.ecosystem


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_nothing_that_the_schema_suggests_breaks_the_server(mode):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    hypothesis = pytest.importorskip("hypothesis")
    one, asked = served(small_engine(chats=True)), {}
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(one, Limits(max_tokens=16)))
    every = list(hypothesis.HealthCheck)

    def ask(case):
        response = case.call()
        asked.setdefault(case.operation.path, set()).add(response.status_code)
        assert response.status_code < 500, response.text
        assert response.status_code < 400 or response.json()["error"]["message"]

    for found in schema.get_all_operations():
        cases = found.ok().as_strategy(generation_mode=schemathesis.GenerationMode(mode))
        settings = hypothesis.settings(max_examples=20, deadline=None, suppress_health_check=every, database=None)
        with_cases = hypothesis.given(case=cases)(ask)
        try:
            hypothesis.seed(0)(settings(with_cases))()
        except hypothesis.errors.Unsatisfiable:  # a path that nothing can be wrong with
            assert mode == "negative"
    one.writer.close()
    assert {"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize"} <= asked.keys()
    assert (400 in asked["/v1/completions"]) or mode == "positive"
