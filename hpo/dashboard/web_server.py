"""A production web server: waitress, with little patience for strangers and an end that no signal can tie up."""

from __future__ import annotations

import copy
import socket
import time
from collections.abc import Callable
from typing import Any
from wsgiref.types import WSGIApplication

import waitress
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.wasyncore import close_all, loop

LARGEST_BODY = 1 << 20
"""Bytes of a request."""
LARGEST_UPLOAD = 128 << 20
"""Bytes of a request of who is trusted, where bodies may be large: waitress keeps them in a file before anybody sees them."""
MOST_CONNECTIONS = 400
"""Each may need a second descriptor, for a body; 1 024 is the usual limit."""
IDLE_S = 30
"""How long a connection on which nothing happens is kept."""
REQUEST_S = 20.0
"""How long a request of a stranger may take to arrive."""

_LOOK_S = 0.2
"""How often is looked whether to end, where nothing else happens."""


class WebServer:
    """
    A server of *application* on *listener* that answers once it runs.

    Args:
        application: What answers, in one of *threads*.
        listener: Where it listens.
        threads: How many requests are answered at a time.
        trusted: Whether who sends these cookies may take time, and send much where *large_bodies*.
        large_bodies: Whether anybody may send more than a form.
    """

    def __init__(
        self,
        application: WSGIApplication,
        listener: socket.socket,
        *,
        threads: int,
        trusted: Callable[[str], bool],
        large_bodies: bool,
    ) -> None:
        self._closing = False
        self._channels: dict[int, Any] = {}
        self._server = waitress.create_server(
            application,
            map=self._channels,
            sockets=[listener],
            threads=threads,
            ident=None,
            connection_limit=MOST_CONNECTIONS,
            channel_timeout=IDLE_S,
            cleanup_interval=5,
            max_request_body_size=LARGEST_UPLOAD if large_bodies else LARGEST_BODY,
            clear_untrusted_proxy_headers=True,  # anybody can say that he was forwarded
        )
        self._server.channel_class = _channels_that_end(trusted, self._server.adj)

    def run(self) -> None:
        """Answer until interrupted, or until `close` is called."""
        try:
            while not self._closing:
                loop(timeout=_LOOK_S, use_poll=True, map=self._channels, count=1)
        except KeyboardInterrupt:
            pass
        finally:
            self._closing = True
            self._server.task_dispatcher.shutdown()
            close_all(self._channels)

    def close(self) -> None:
        """
        Let `run` return soon.

        A flag and no more: the thread that a signal's handler interrupts may hold any lock.
        """
        self._closing = True


def _channels_that_end(trusted: Callable[[str], bool], adjustments: Any) -> type[HTTPChannel]:
    """Return a class of connections on which a stranger says what he wants soon and in few words."""
    stranger = copy.copy(adjustments)
    stranger.max_request_body_size = LARGEST_BODY

    class Request(HTTPRequestParser):  # type: ignore[misc]
        trusted = False

        def parse_header(self, header_plus: bytes) -> None:
            super().parse_header(header_plus)
            self.trusted = trusted(self.headers.get("COOKIE", ""))
            if not self.trusted:
                self.adj = stranger

    class Channel(HTTPChannel):  # type: ignore[misc]
        parser_class = Request
        _began = 0.0

        def received(self, data: bytes) -> bool:
            if self.request is None:
                self._began = time.monotonic()
            arrived: bool = super().received(data)
            return arrived

        def readable(self) -> bool:
            """Return whether more is read; asked at every look."""
            if self.request is not None and not self.request.trusted and time.monotonic() - self._began > REQUEST_S:
                self.will_close = True
            more: bool = super().readable()
            return more

    return Channel
