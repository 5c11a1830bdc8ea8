"""
What is added to optuna-dashboard's answer about a study: the trials' notes, a note of the study, a plot.

Its own way to keep notes is attributes of the study, all of which it looks through for every trial; here they are attributes
of their trials, and are put into the answer (docs/decisions/0010-dashboard.md).
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from wsgiref.headers import Headers
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from pydantic import ValidationError

from hpo import study as studies
from hpo.dashboard.study_note import OBJECTIVE, DataCounts, fold_plot, study_note
from hpo.status import status
from hpo.study import Study
from storage import viewing
from storage.errors import StorageError
from storage.patience import FAULTS
from storage.record import StudyRecord
from storage.study_storage import StudyStorage
from storage.tree import OutputTree

_STUDY = re.compile(r"/api/studies/(\d{1,9})/?")
_FINISHED = {"Complete", "Pruned", "Fail"}
_FRESH_S = 5.0
"""How long what was said of a study is said again: every open page asks each few seconds."""
PLOT = "fold-scores"
"""The plot's id on the page."""


@dataclass
class _Known:
    """A study of ours, and what was last said of it."""

    study: Study
    counts: DataCounts
    lock: threading.Lock = field(default_factory=threading.Lock)
    said_at: float = float("-inf")
    note: str = ""
    plots: list[dict[str, str]] = field(default_factory=list)


class Presentation:
    """
    A WSGI application that adds to what *application* says of a study of ours; everything else passes as it is.

    Args:
        application: optuna-dashboard's.
        storage: The studies that it shows.
        tree: Where `study.json` is looked for.
        prefix: The path below which browsers find the artifacts that a note shows.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        application: WSGIApplication,
        storage: StudyStorage,
        tree: OutputTree,
        *,
        prefix: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._application = application
        self._storage = storage
        self._tree = tree
        self._prefix = prefix
        self._clock = clock
        self._known: dict[int, _Known] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        asked = _STUDY.fullmatch(environ["PATH_INFO"])
        if asked is None or environ["REQUEST_METHOD"] != "GET":
            return self._application(environ, start_response)
        begun: list[Any] = []

        def begin(*arguments: Any) -> Callable[[bytes], object]:
            begun[:] = arguments
            return lambda _: None

        answer = self._application(environ, begin)
        body = b"".join(answer)
        if (close := getattr(answer, "close", None)) is not None:
            close()
        code, headers, *error = begun
        if code.startswith("200"):
            body = self._extended(int(asked[1]), body)
            sized = Headers(list(headers))
            sized["Content-Length"] = str(len(body))
            headers = sized.items()
        start_response(code, headers, *error)
        return [body]

    def _extended(self, study_id: int, body: bytes) -> bytes:
        """Return the answer with what is added; as it was where the study is not ours, or the database just went away."""
        detail = json.loads(body)
        try:
            known = self._find(study_id, detail["name"])
            if known is None:
                return body
            self._add_to_trials([*detail["trials"], *detail["best_trials"]])
            self._add_to_study(known, detail)
        except (StorageError, *FAULTS):  # of the answer that is there nothing is lost
            return body
        return json.dumps(detail).encode()

    def _find(self, study_id: int, name: str) -> _Known | None:
        """Return what is known of the study; None where a script of Optuna's, or another version of ours, made it."""
        if study_id not in self._known:
            try:
                study = studies.load(name, self._tree, self._storage)
            except (StorageError, ValidationError):
                return None
            if study.registration.study_id != study_id:  # deleted and made again meanwhile
                return None
            self._known[study_id] = _Known(study, DataCounts.of(study.registration.folds_csv))
        return self._known[study_id]

    def _add_to_trials(self, trials: list[dict[str, Any]]) -> None:
        """Add our notes where a person wrote none, and the artifacts of trials that had none when they were read first."""
        engine = self._storage.engine
        notes = viewing.notes(engine, {trial["trial_id"] for trial in trials})
        bare = {each["trial_id"] for each in trials if each["state"] in _FINISHED and not each["artifacts"]}
        artifacts = viewing.artifacts(engine, bare) if bare else {}
        for trial in trials:
            number = trial["trial_id"]
            if number in notes and trial["note"]["version"] == 0:
                trial["note"]["body"] = notes[number].replace("](/artifacts/", f"]({self._prefix}/artifacts/")
            if number in artifacts:
                trial["artifacts"] = [artifact.model_dump() for artifact in artifacts[number]]

    def _add_to_study(self, known: _Known, detail: dict[str, Any]) -> None:
        with known.lock:
            if self._clock() - known.said_at >= _FRESH_S:
                self._look(known)
                known.said_at = self._clock()
        if detail["note"]["version"] == 0:
            detail["note"]["body"] = known.note
        detail["plotly_graph_objects"] += known.plots
        detail.setdefault("objective_names", [OBJECTIVE])

    def _look(self, known: _Known) -> None:
        """Say anew what there is to say of a study."""
        study = known.study
        ranked = studies.ranking(study)
        known.note = study_note(study, known.counts, status(study), ranked, _rejected(study))
        known.plots = [{"id": PLOT, "graph_object": json.dumps(fold_plot(ranked))}] if ranked else []


def _rejected(study: Study) -> Mapping[str, int] | None:
    """Return what of the data is not used, by code, as the study's folder says; None where it does not."""
    try:
        return StudyRecord.model_validate_json(study.folder.record.read_bytes()).rejected
    except (OSError, ValidationError):
        return None
