"""What must be so before optuna-dashboard is asked: it answers what it does not expect with a traceback in its log."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import sqlalchemy as sa

from storage.errors import DatabaseUnavailableError
from storage.patience import FAULTS, first_line
from storage.study_storage import StudyStorage

logger = logging.getLogger(__name__)

_FROM_DATABASE = ("/api/", "/artifacts/", "/csv/")
_CSV = re.compile(r"/csv/(\d{1,9})/?")


class Preconditions:
    """A WSGI application that asks *application* where the database is there, and where it can say what it is asked for."""

    def __init__(self, application: WSGIApplication, storage: StudyStorage) -> None:
        self._application = application
        self._storage = storage

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path = environ["PATH_INFO"]
        if not path.startswith(_FROM_DATABASE):
            return self._application(environ, start_response)
        try:
            with self._storage.engine.connect() as connection:
                connection.execute(sa.text("select 1"))
            if (asked := _CSV.fullmatch(path)) and not self._fits_a_header(int(asked[1])):
                return _reason(start_response, "404 Not Found", "a study of such a name has no CSV")
            return self._application(environ, start_response)
        except (DatabaseUnavailableError, *FAULTS) as error:
            logger.warning("the database is away: %s", first_line(error), extra={"action": "database_away"})
            return _reason(start_response, "503 Service Unavailable", "the database is away")

    def _fits_a_header(self, study_id: int) -> bool:
        """Return whether the study's name, which becomes the file's, has no line breaks; also where there is no such study."""
        try:
            return self._storage.optuna.get_study_name_from_id(study_id).isprintable()
        except KeyError:
            return True


def _reason(start_response: StartResponse, status: str, reason: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps({"reason": reason}).encode()]
