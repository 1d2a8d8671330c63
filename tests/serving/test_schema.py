"""What schemathesis makes of the schema of the API: requests that may be odd, and none that breaks the server."""

import pytest
from small_server import served, small_engine

from smallm_hf.serving.app import create_app
from smallm_hf.serving.configuration import Limits

pytestmark = pytest.mark.ecosystem


def test_nothing_that_the_schema_suggests_breaks_the_server():
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    hypothesis = pytest.importorskip("hypothesis")
    one = served(small_engine(chats=True))
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(one, Limits(max_tokens=16)))
    asked = set()

    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(max_examples=20, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.seed(0)
        def ask(case):
            asked.add(case.operation.path)
            response = case.call()
            assert response.status_code < 500, response.text
            assert response.status_code < 400 or response.json()["error"]["message"]

        ask()
    one.writer.close()
    assert {"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize"} <= asked
