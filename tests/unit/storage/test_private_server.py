from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from storage.errors import PrivateServerError
from storage.private_server import PrivateServer, _choose_socket_folder, _telling_line


@pytest.mark.parametrize("name", ["x" * 90, "a,b", "it's", 'a"b', "a\\b", "ä"])
def test_socket_goes_elsewhere_where_the_path_would_not_do(name: str) -> None:
    """Where a path is too long, or holds what means something else to the driver, the socket gets a folder of its own."""
    state = Path("/srv", name)
    folder = _choose_socket_folder(state)
    assert folder.parent == Path(tempfile.gettempdir())
    assert folder == _choose_socket_folder(state)
    assert folder != _choose_socket_folder(Path("/srv", f"{name}2"))


def test_socket_stays_with_the_data_where_it_can() -> None:
    """A short, plain path needs no second folder."""
    assert _choose_socket_folder(Path("/srv/out puts/.postgresql")) == Path("/srv/out puts/.postgresql/socket")


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """A server folder that is another user's is named in one line, whatever is asked of it."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a folder of somebody else")
    folder = tmp_path / ".postgresql"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    server = PrivateServer(tmp_path)
    for ask in (server.start, server.running, server.stop):
        with pytest.raises(PrivateServerError, match="not a folder of user root") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_no_server_is_not_running(tmp_path: Path) -> None:
    """Asking about a server that was never started makes nothing."""
    server = PrivateServer(tmp_path / "outputs")
    assert not server.running()
    server.stop()
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be_made(tmp_path: Path) -> None:
    """Where a file stands in the way of the output folder, one line names it."""
    (tmp_path / "outputs").write_text("")
    with pytest.raises(PrivateServerError, match="outputs") as caught:
        PrivateServer(tmp_path / "outputs").start()
    assert "\n" not in str(caught.value)


def test_the_telling_line_of_a_log() -> None:
    """The line that says what is wrong is found before the server's last words."""
    log = "LOG:  starting\nFATAL:  no space left\nHINT:  make some\nLOG:  database system is shut down\n"
    assert _telling_line(log) == "FATAL:  no space left"
    assert _telling_line("") == "no reason given"
