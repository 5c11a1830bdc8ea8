"""
Optuna's dashboard, put together: a door before it, our notes and artifacts in it, a production server under it.

optuna-dashboard has no authentication and has endpoints that delete. Here nothing of it answers without a session, and
without `writable` only GET and HEAD pass: none of its GET endpoints writes (read in the source of 0.21: creating, renaming,
deleting, telling, notes, attributes, preferences, uploads and migration are POST, PUT or DELETE). Bottle knows no header
that changes a request's method.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from optuna_dashboard import wsgi

from hpo.dashboard.address import LOOPBACK, Address
from hpo.dashboard.artifact_files import ArtifactFiles
from hpo.dashboard.front_end import FrontEnd
from hpo.dashboard.gate import Gate
from hpo.dashboard.preconditions import Preconditions
from hpo.dashboard.presentation import Presentation
from hpo.dashboard.web_server import WebServer
from storage.artifact_store import ArtifactStore
from storage.study_storage import StudyStorage
from storage.tree import OutputTree

_THREADS = 16
_COMPUTING = re.compile(r"/csv/.*|/api/studies/\d+/(plot/.*|param_importances)/?")
_MOST_WAITING = _THREADS // 2
"""More than one browser asks for at a time; the other threads answer everybody else."""


class Moderation:
    """
    A WSGI application in which what takes long (plots made by the server, importances, CSV) leaves room for the rest.

    One at a time, since a plot of a large study takes a core and hundreds of megabytes; half of the threads may wait for it.
    """

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application
        self._room = threading.BoundedSemaphore(_MOST_WAITING)
        self._turn = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        if not _COMPUTING.fullmatch(environ["PATH_INFO"]):
            return self._application(environ, start_response)
        if not self._room.acquire(blocking=False):
            start_response("503 Service Unavailable", [("Content-Type", "application/json"), ("Retry-After", "10")])
            return [b'{"reason": "too much is being computed: try again"}']
        try:
            with self._turn:
                return self._application(environ, start_response)
        finally:
            self._room.release()


class Dashboard:
    """A dashboard that listens already and answers once it runs."""

    def __init__(self, gate: Gate, listener: socket.socket, address: Address, *, writable: bool) -> None:
        self._gate = gate
        self._server = WebServer(gate, listener, threads=_THREADS, trusted=gate.knows, large_bodies=writable)
        self.url: str = address.url
        """Where it is; asks for the password."""
        self.port: int = listener.getsockname()[1]
        """What it listens on."""

    @property
    def url_with_token(self) -> str:
        """A link that opens it without the password, once."""
        return f"{self.url}?token={self._gate.token}"

    def run(self) -> None:
        """Answer until interrupted, or until `close` is called."""
        self._server.run()

    def close(self) -> None:
        """Let `run` return soon; by another thread, or by a signal's handler at any moment and as often as it likes."""
        self._server.close()


def serve(
    storage: StudyStorage,
    tree: OutputTree,
    *,
    password: str,
    artifacts: ArtifactStore | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    writable: bool = False,
    address: Address | None = None,
) -> Dashboard:
    """
    Return a dashboard of all studies in *storage* that listens on *host* and *port* (0: any free one).

    Args:
        storage: The studies.
        tree: Their folders, as far as they can be seen from here.
        password: What it asks for.
        artifacts: Where the files of finished trials are.
        host: What it listens on.
        port: What it listens on.
        writable: Whether it may change anything.
        address: Where a reverse proxy offers it; None where there is none.

    Raises:
        ValueError: The password is empty.
        FrontEndError: The pages cannot be put below the path of *address*.
        OSError: The address cannot be listened on.
    """
    if not password:
        raise ValueError("a dashboard needs a password")
    application: WSGIApplication = wsgi(storage.optuna, artifact_store=artifacts)
    prefix = "" if address is None else address.prefix
    if artifacts is not None:
        application = ArtifactFiles(application, storage.engine, artifacts)
    application = Presentation(Moderation(application), storage, tree, prefix=prefix)
    application = Preconditions(application, storage)
    if prefix:
        application = FrontEnd(application, prefix)
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    taken = listener.getsockname()[1]
    # Cookies know no ports: two dashboards on one machine must not overwrite each other's.
    gate = Gate(
        application,
        password=password,
        writable=writable,
        cookie=f"mammography_{taken}",
        address=address,
        local=host in LOOPBACK,
    )
    return Dashboard(gate, listener, address or Address.listening(host, taken), writable=writable)
