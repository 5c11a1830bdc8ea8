from __future__ import annotations

import threading
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

from hpo.dashboard.serving import Moderation


def test_what_takes_long_leaves_threads_for_the_rest() -> None:
    """Of many plots at a time the last are refused, pages are answered, and later there is room again."""
    go_on = threading.Event()
    statuses: list[str] = []

    def slow(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/dashboard":
            go_on.wait(10)
        start_response("200 OK", [])
        return []

    moderation = Moderation(slow)

    def ask(path: str) -> None:
        moderation({"PATH_INFO": path}, lambda status, *_: statuses.append(status))  # type: ignore[arg-type, func-returns-value]

    plots = [threading.Thread(target=ask, args=("/api/studies/1/plot/contour",)) for _ in range(8)]
    for plot in plots:
        plot.start()
    ask("/api/studies/1/plot/rank")
    ask("/dashboard")
    assert statuses == ["503 Service Unavailable", "200 OK"]
    go_on.set()
    for plot in plots:
        plot.join()
    ask("/csv/1")
    assert statuses[2:] == ["200 OK"] * 9
