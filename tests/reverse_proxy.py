"""A small reverse proxy, as nginx or Caddy would stand before the dashboard."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_OF_THE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "date", "server"}


@contextmanager
def reverse_proxy(target: str, prefix: str, *, strips: bool, port: int = 0) -> Iterator[str]:
    """
    Offer *target* below *prefix* on a free port of this machine while the block runs, and give the address.

    Args:
        target: Where requests go.
        prefix: Everything else is answered by 404.
        strips: Whether *target* sees paths without the prefix.
        port: Where to listen; 0 for any free one.
    """
    goal = urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            """Pass one request on, and its answer back."""
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404, "not below the prefix")
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = http.client.HTTPConnection(goal, timeout=20)
            headers = {
                **dict(self.headers),
                "Host": goal,
                "X-Forwarded-Host": "elsewhere.example",
                "Connection": "close",
            }
            connection.request(self.command, self.path.removeprefix(prefix if strips else ""), body, headers)
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {*_OF_THE_CONNECTION, "content-length"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_POST = do_PUT = do_DELETE = forward  # noqa: N815 - the names that http.server looks for

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{prefix}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
