"""
optuna-dashboard's pages below a path of a reverse proxy.

The pages know their paths by heart: `/api`, `/artifacts`, `/csv`, `/static` and `/dashboard`, at the root of a host. Below a
prefix these few places in them are rewritten. Each must be found as often as it was in 0.21: with another release this is an
error at the start and no page that half works.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable
from pathlib import Path
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import optuna_dashboard

_PAGE_PLACES = {
    ' src="/static/bundle.js"': (' src="{prefix}/static/bundle.js"', 1),
    "<title>": ('<link rel="icon" href="{prefix}/favicon.ico"><title>', 1),  # else it is looked for at the root
}
_SCRIPT_PLACES = {
    'url_prefix:"/dashboard"': ('url_prefix:"{prefix}/dashboard"', 1),  # the routes of its pages
    '(null!=e?e:"")}handleResponse(': ('(null!=e?e:"{prefix}")}handleResponse(', 1),  # of every call to the API
    "`${e}/artifacts/${t}": ("`{prefix}/artifacts/${t}", 1),  # a link to an artifact
    "`/artifacts/${": ("`{prefix}/artifacts/${", 2),
    "(/artifacts/${": ("({prefix}/artifacts/${", 1),
    "`/csv/${e.id}": ("`{prefix}/csv/${e.id}", 2),
}
"""What is replaced by what, and how often it is there."""


class FrontEndError(RuntimeError):
    """The pages of this release of optuna-dashboard are not those that can be put below a path."""


class FrontEnd:
    """A WSGI application that answers for the pages and their script, and leaves everything else to *application*."""

    def __init__(self, application: WSGIApplication, prefix: str) -> None:
        """
        Rewrite the pages, once.

        Raises:
            FrontEndError: A place is not found as often as expected.
        """
        folder = Path(optuna_dashboard.__file__).parent
        page = rewrite((folder / "index.html").read_text(encoding="utf-8"), _PAGE_PLACES, prefix)
        script = rewrite((folder / "public" / "bundle.js").read_text(encoding="utf-8"), _SCRIPT_PLACES, prefix).encode()
        self._application = application
        self._page = page.encode()
        self._packed = gzip.compress(script, compresslevel=6, mtime=0)
        self._script = script
        self._tag = f'"{hashlib.sha256(script).hexdigest()[:32]}"'

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path = environ["PATH_INFO"].rstrip("/")
        if environ["REQUEST_METHOD"] == "GET" and path == "/static/bundle.js":
            return self._answer_script(environ, start_response)
        if environ["REQUEST_METHOD"] != "GET" or not (path == "/dashboard" or path.startswith("/dashboard/")):
            return self._application(environ, start_response)
        return self._answer_page(environ, start_response)

    def _answer_page(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer with the page, under the headers (the content policy above all) that it comes with."""

        def begin(status: str, headers: list[tuple[str, str]], *error: object) -> object:
            kept = [pair for pair in headers if pair[0].lower() not in _OF_THE_FILE]
            return start_response(status, [*kept, ("Content-Length", str(len(self._page)))], *error)  # type: ignore[arg-type]

        whole = {name: value for name, value in environ.items() if name not in _OF_A_PART}
        original = self._application(whole, begin)  # type: ignore[arg-type]
        if (close := getattr(original, "close", None)) is not None:
            close()
        return [self._page]

    def _answer_script(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        headers = [("ETag", self._tag), ("Cache-Control", "private, no-cache"), ("Vary", "Accept-Encoding")]
        if environ.get("HTTP_IF_NONE_MATCH") == self._tag:
            start_response("304 Not Modified", headers)
            return []
        headers.append(("Content-Type", "text/javascript; charset=utf-8"))
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            start_response(
                "200 OK", [*headers, ("Content-Encoding", "gzip"), ("Content-Length", str(len(self._packed)))]
            )
            return [self._packed]
        start_response("200 OK", [*headers, ("Content-Length", str(len(self._script)))])
        return [self._script]


_OF_A_PART = {"HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_RANGE"}
_OF_THE_FILE = {"content-length", "last-modified", "etag", "accept-ranges", "content-encoding"}


def rewrite(text: str, places: dict[str, tuple[str, int]], prefix: str) -> str:
    """Return *text* with every place put below *prefix*. Raises FrontEndError."""
    for place, (replacement, times) in places.items():
        if text.count(place) != times:
            raise FrontEndError(
                f"this release of optuna-dashboard cannot be served below {prefix}: {place!r} is there"
                f" {text.count(place)} times, {times} were expected; serve it at the root of a host name of its own"
            )
        text = text.replace(place, replacement.replace("{prefix}", prefix))
    return text
