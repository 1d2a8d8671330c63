"""The API keys of a server: where they come from, and whether a request brings one."""

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from smallm_hf.base.errors import UserError
from smallm_hf.serving.configuration import Serving

VARIABLE = "SMALLM_API_KEYS"


class Keys:
    """The keys that a server takes; none of them means that nobody is asked for one.

    Args:
        keys: any of which opens it.
    """

    def __init__(self, keys: Iterable[str] = ()):
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, key: str) -> bool:
        """Whether this is one of them, in a time that tells neither how much of it is right nor which one it is."""
        given, found = _digest(key), False
        for digest in self._digests:
            found |= hmac.compare_digest(given, digest)
        return found


def _digest(key: str) -> bytes:
    """Of one length for every key, so that comparing does not tell a key's length."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(serving: Serving, environment: Mapping[str, str] = os.environ) -> Keys:
    """The keys of `--api_keys_file` and of `SMALLM_API_KEYS`, together.

    Raises:
        UserError: a file that cannot be read, that others may read, or that holds no key; a key that no client could
            send; or no keys at all where other machines can reach the server.
    """
    keys = []
    if serving.api_keys_file is not None:
        keys += _keys_of(f"--api_keys_file {serving.api_keys_file}", _read_private(serving.api_keys_file).splitlines())
    if VARIABLE in environment:
        keys += _keys_of(VARIABLE, environment[VARIABLE].split(","))
    if not keys and not serving.is_private:
        raise UserError(
            f"--host {serving.host} can be reached from other machines, and no API keys are given; set {VARIABLE} or "
            "--api_keys_file, or leave out --host to serve this machine alone"
        )
    return Keys(keys)


def _read_private(path: Path) -> str:
    try:
        mode = path.stat().st_mode & 0o777
        if os.name == "posix" and mode & 0o077:
            raise UserError(
                f"--api_keys_file {path} can be read or changed by others (mode {mode:o}); run chmod 600 {path}"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"--api_keys_file {path} cannot be read: {reason}") from error


def _keys_of(source: str, entries: Iterable[str]) -> list[str]:
    keys = [entry.strip() for entry in entries if entry.strip()]
    if not keys:
        raise UserError(f"{source} holds no key; put one in, such as the output of: openssl rand -hex 32")
    for number, key in enumerate(keys, 1):
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UserError(f"{source}: key {number} has a space or a character outside ASCII; no client can send it")
    return keys
