"""The socket, its connections and what uvicorn makes of them, on the loopback."""

import socket
import time
from contextlib import contextmanager, suppress

import httpx2
import pytest
from starlette.responses import PlainTextResponse

from smallm_hf.base.errors import UserError
from smallm_hf.serving.configuration import Limits
from smallm_hf.serving.guard import Bodies
from smallm_hf.serving.listening import address_of, bind, listening


@contextmanager
def served(limits: Limits):
    app = Bodies(PlainTextResponse("here"), max_bytes=limits.max_body_bytes, max_seconds=limits.max_receive_seconds)
    listener = bind("127.0.0.1", 0)
    address = address_of(listener)
    with listening(app, listener, limits):
        yield address


@pytest.fixture
def address():
    with served(Limits(max_receive_seconds=0.2, max_body_bytes=1000)) as address:
        yield address


def connect(address: str) -> socket.socket:
    host, _, port = address.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_a_port_in_use_is_named():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use; give another --port, or 0"):
            bind("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(UserError, match=r"cannot listen at 192.0.2.1, port 0 \(.*\); give another --host"):
        bind("192.0.2.1", 0)  # reserved for documentation


def test_a_server_that_has_ended_has_freed_its_port():
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with listening(PlainTextResponse("here"), listener, Limits()):
        assert httpx2.get(f"http://127.0.0.1:{port}").text == "here"
    bind("127.0.0.1", port).close()


def test_more_connections_than_are_allowed_are_told_so():
    with served(Limits(max_connections=2)) as address:
        with connect(address), connect(address):
            response = httpx2.get(address)
            assert response.status_code == 503 and response.headers["retry-after"]
            assert "its 2 connections" in response.json()["error"]["message"]
        until = time.monotonic() + 5
        while (response := httpx2.get(address)).status_code == 503 and time.monotonic() < until:
            time.sleep(0.02)
        assert response.text == "here"


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["at once", "after an answer"])
def test_headers_that_do_not_arrive_are_not_waited_for(address, first):
    with connect(address) as client:
        client.sendall(first)
        read = b""
        while first and not read.endswith(b"here"):
            read += client.recv(4096)
        client.settimeout(0.02)
        until = time.monotonic() + 5
        with pytest.raises(ConnectionError):
            while time.monotonic() < until:
                client.sendall(b"G")
                with suppress(TimeoutError):
                    if not client.recv(1):
                        raise ConnectionError


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_far_too_much_still_reads_the_answer(address, chunked):
    body = b" " * 5_000_000
    response = httpx2.post(
        address, content=(body[place : place + 65536] for place in range(0, len(body), 65536)) if chunked else body
    )
    assert response.status_code == 413


def test_a_client_that_asks_first_whether_it_may_send_is_told_no_at_once(address):
    with connect(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
