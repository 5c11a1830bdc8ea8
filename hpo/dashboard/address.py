"""Where people find the dashboard: its own address, or the one that a reverse proxy gives it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
"""What only this machine reaches."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_OUR_OWN = (
    "api",
    "artifacts",
    "csv",
    "dashboard",
    "favicon.ico",
    "incompatible-rdb-schema",
    "login",
    "logout",
    "static",
)
"""What the dashboard's own paths begin with: below such a prefix nobody could tell which of the two a path means."""


@dataclass(frozen=True)
class Address:
    """Where a browser finds the dashboard."""

    origin: str
    """As browsers send it: scheme, host, and the port where it is not the scheme's own."""
    prefix: str
    """The path below which it is; empty at the root, else with a slash before and none behind."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Return the address that a person wrote down.

        Raises:
            ValueError: It is no such address; one line that says what was expected.
        """
        expected = "expected https://HOST[:PORT][/PATH]"
        try:
            parts = urlsplit(text)
            port = parts.port
            host = _host(parts.hostname or "")
        except ValueError as error:
            raise ValueError(f"{text!r} is no address: {expected}; {error}") from error
        if parts.scheme not in _DEFAULT_PORTS or port == 0 or parts.query or parts.fragment:
            raise ValueError(f"{text!r} is no address: {expected}")
        if parts.username is not None:
            raise ValueError(f"an address with a user or password in it is seen by everybody: {expected}")
        prefix = parts.path.rstrip("/")
        if not _PATH.fullmatch(prefix) or {".", ".."} & set(prefix.split("/")):
            raise ValueError(f"{text!r}: a path of letters, digits, '.', '_', '~' and '-' was expected")
        if prefix.split("/")[1:2] and prefix.split("/")[1] in _OUR_OWN:
            raise ValueError(f"{text!r}: the dashboard has pages of its own below {prefix}: choose another path")
        shown_port = "" if port in {None, _DEFAULT_PORTS[parts.scheme]} else f":{port}"
        return cls(f"{parts.scheme}://{host}{shown_port}", prefix)

    @classmethod
    def listening(cls, host: str, port: int) -> Self:
        """Return the address of a dashboard that listens on *host*, as a browser on the same machine finds it."""
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # nosec # noqa: S104 - what a browser can open
        return cls(f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}", "")

    @property
    def url(self) -> str:
        """Its first page."""
        return f"{self.origin}{self.prefix}/"

    @property
    def encrypted(self) -> bool:
        """Whether browsers reach it by TLS."""
        return self.origin.startswith("https:")

    def inside(self, path: str) -> str:
        """Return *path* without the prefix: some proxies take it away, others leave it."""
        if self.prefix and (path == self.prefix or path.startswith(f"{self.prefix}/")):
            return path.removeprefix(self.prefix) or "/"
        return path


def _host(name: str) -> str:
    """Return *name* as browsers write it in an origin. Raises ValueError."""
    if ":" in name:
        return (
            f"[{ipaddress.IPv6Address(name.replace('%', ' ')).compressed}]"  # one with a zone is no host to a browser
        )
    if not _HOST.fullmatch(name):
        raise ValueError("letters beyond a to z are written as in xn--mnchen-3ya.de")
    return name
