import pytest

from smallm_hf.base.errors import UserError
from smallm_hf.serving.configuration import Limits, Serving
from smallm_hf.serving.keys import Keys, read_keys


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text("one-key\n\n  other-key \n")
    path.chmod(0o600)
    return path


def test_keys_come_from_the_file_and_the_environment_together(key_file):
    keys = read_keys(Serving(api_keys_file=key_file), {"SMALLM_API_KEYS": "third-key, fourth-key,"})
    for key in ("one-key", "other-key", "third-key", "fourth-key"):
        assert keys.accept(key)
    for key in ("", "one", "one-key2", "third-key, fourth-key", "\udcff"):
        assert not keys.accept(key)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_file_that_others_may_open_is_refused(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(UserError, match=rf"by others \(mode {mode:o}\); run chmod 600 .*keys$"):
        read_keys(Serving(api_keys_file=key_file), {})


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_a_key_is_refused(key_file, content):
    key_file.write_text(content)
    with pytest.raises(UserError, match="holds no key; put one in"):
        read_keys(Serving(api_keys_file=key_file), {})


@pytest.mark.parametrize("listed", ["", " , "])
def test_a_variable_without_a_key_is_refused(listed):
    with pytest.raises(UserError, match="SMALLM_API_KEYS holds no key"):
        read_keys(Serving(), {"SMALLM_API_KEYS": listed})


def test_a_key_that_no_client_could_send_is_refused():
    with pytest.raises(UserError, match="SMALLM_API_KEYS: key 2 has a space or a character outside ASCII"):
        read_keys(Serving(), {"SMALLM_API_KEYS": "good,schlüssel"})


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "binary").chmod(0o600)
    for name, why in (("nowhere", "No such file"), ("binary", "it is not UTF-8")):
        with pytest.raises(UserError, match=f"{name} cannot be read: {why}"):
            read_keys(Serving(api_keys_file=tmp_path / name), {})


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org"])
def test_a_server_that_others_can_reach_needs_keys(host):
    with pytest.raises(UserError, match=f"--host {host} can be reached from other machines, and no API keys"):
        read_keys(Serving(host=host), {})
    assert read_keys(Serving(host=host), {"SMALLM_API_KEYS": "key"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_private_server_needs_none(host):
    keys = read_keys(Serving(host=host), {})
    assert not keys and not keys.accept("")


def test_without_keys_none_is_right():
    assert not Keys().accept("")


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Serving, {"port": 70000}, r"port=70000 is out of range; give 0 \(any that is free\) to 65535"),
        (Serving, {"slots": 0}, "slots=0 is out of range; give 1 or more"),
        (Serving, {"grace_seconds": -1.0}, "grace_seconds=-1.0 is out of range"),
        (Serving, {"allow_origin": ["*"]}, r"allow_origin=\* is not an origin; give scheme and host"),
        (Serving, {"allow_origin": ["https://a.org/"]}, "allow_origin=https://a.org/ is not an origin"),
        (Limits, {"max_n": 0}, "max_n=0 is out of range; give a number above 0"),
        (Limits, {"max_seconds": float("nan")}, "max_seconds=nan is out of range"),
        (Limits, {"max_tokens": 8}, "default_max_tokens=16 is more than max_tokens=8 allows"),
    ],
)
def test_what_makes_no_sense_is_refused(kind, given, message):
    with pytest.raises(UserError, match=message):
        kind(**given)
