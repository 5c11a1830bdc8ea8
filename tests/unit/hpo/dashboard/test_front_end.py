from __future__ import annotations

import pytest

from hpo.dashboard.front_end import FrontEnd, FrontEndError, rewrite


def test_the_installed_pages_can_be_put_below_a_path() -> None:
    """Every place to rewrite is found in the installed optuna-dashboard: an upgrade cannot break it in silence."""
    below = FrontEnd(lambda _environ, _begin: [], "/lab/hpo")
    (page,) = below({"REQUEST_METHOD": "GET", "PATH_INFO": "/dashboard"}, lambda *_: lambda _: None)
    assert b'src="/lab/hpo/static/bundle.js"' in page
    (script,) = below({"REQUEST_METHOD": "GET", "PATH_INFO": "/static/bundle.js"}, lambda *_: lambda _: None)
    assert b"`/lab/hpo/artifacts/" in script


def test_pages_of_another_release_are_refused() -> None:
    """A place that is missing, or there more often than known, is an error that says so."""
    places = {"`/csv/": ("`{prefix}/csv/", 1)}
    assert rewrite("a`/csv/b", places, "/hpo") == "a`/hpo/csv/b"
    for text in ("nothing", "`/csv/ `/csv/"):
        with pytest.raises(FrontEndError, match="optuna-dashboard"):
            rewrite(text, places, "/hpo")
