"""
The artifacts of trials and studies, as files that a browser may show.

optuna-dashboard's own answers let any page read them and call every file what its uploader called it, HTML too; and they know
nothing of what was attached after a trial was read first.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from wsgiref.util import FileWrapper

import sqlalchemy as sa
from optuna.artifacts.exceptions import ArtifactNotFound

from storage import viewing
from storage.artifact_store import ArtifactStore
from storage.errors import ArtifactStoreError

logger = logging.getLogger(__name__)

_PATH = re.compile(r"/artifacts/(\d{1,18})/(?:(\d{1,18})/)?([0-9a-fA-F-]+)/?")
_SHOWN = re.compile(r"(image/(png|jpeg|gif|webp|avif|bmp)|(audio|video)/[a-z0-9.+-]+)")
"""What is opened where it is linked; everything else is a download, since HTML and SVG would run scripts in our name."""
_KIND = re.compile(r"[a-z]+/[a-z0-9.+-]+")
_WORDS = [("Content-Type", "text/plain")]
_BLOCK = 1 << 16


class ArtifactFiles:
    """A WSGI application that answers for the artifacts of trials and studies, and leaves everything else to *application*."""

    def __init__(self, application: WSGIApplication, engine: sa.Engine, store: ArtifactStore) -> None:
        self._application = application
        self._engine = engine
        self._store = store

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        asked = _PATH.fullmatch(environ["PATH_INFO"])
        if asked is None or environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return self._application(environ, start_response)
        trial_id = None if asked[2] is None else int(asked[2])
        artifact = viewing.artifact(self._engine, int(asked[1]), trial_id, asked[3])
        if artifact is None:
            start_response("404 Not Found", _WORDS)
            return [b"There is no such artifact."]
        try:
            reader = self._store.open_reader(artifact.artifact_id)
        except ArtifactNotFound:
            start_response("404 Not Found", _WORDS)
            return [b"The artifact store does not have this file."]
        except ArtifactStoreError as error:
            logger.warning("%s", error, extra={"action": "artifact_unread"})
            start_response("502 Bad Gateway", _WORDS)
            return [b"The artifact store does not answer."]
        start_response("200 OK", _headers(artifact))
        if environ["REQUEST_METHOD"] == "HEAD":
            reader.close()
            return []
        return FileWrapper(reader, _BLOCK)


def _headers(artifact: viewing.Artifact) -> list[tuple[str, str]]:
    plain = artifact.encoding is None and _KIND.fullmatch(artifact.mimetype)
    kind = artifact.mimetype if plain else "application/octet-stream"
    headers = [("Content-Type", kind)]
    if not _SHOWN.fullmatch(kind):
        name = re.sub(r"[^A-Za-z0-9._-]", "_", artifact.filename)
        headers.append(("Content-Disposition", f'attachment; filename="{name}"'))
    return headers
