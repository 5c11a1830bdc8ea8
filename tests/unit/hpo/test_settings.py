"""Settings: flags first, the environment second, defaults last."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.cli import run
from hpo.settings import ARTIFACTS, DATABASE_URL, OUTPUTS, Settings, allowed_gpus, child_environment
from storage.compose_stack import PRIVATE


def test_flag_wins_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given on the command line is what counts."""
    monkeypatch.setenv(DATABASE_URL, "postgresql://environment/x")
    monkeypatch.setenv(OUTPUTS, "/environment")
    monkeypatch.setenv(ARTIFACTS, "s3://environment")
    said = Settings.resolve(database=None, outputs=None)
    assert said == Settings("postgresql://environment/x", Path("/environment"), "s3://environment")
    flags = Settings.resolve(database="postgresql://flag/x", outputs=Path("/flag"), artifacts="/flag/there")
    assert flags == Settings("postgresql://flag/x", Path("/flag"), "/flag/there")


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without anything the private server serves, `outputs` is in the current folder and holds the artifacts."""
    monkeypatch.delenv(ARTIFACTS, raising=False)
    monkeypatch.delenv(DATABASE_URL, raising=False)
    monkeypatch.delenv(OUTPUTS, raising=False)
    monkeypatch.chdir(tmp_path)
    outputs = tmp_path / "outputs"
    assert Settings.resolve(database=None, outputs=None) == Settings(None, outputs, str(outputs / "artifacts"))


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The current folder, in which a compose stack has run."""
    monkeypatch.delenv(DATABASE_URL, raising=False)
    for name in (OUTPUTS, ARTIFACTS, "DATABASE_PORT", "OUTPUTS", "ARTIFACTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docker-compose.yml").touch()
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "database.pgpass").touch()
    return tmp_path


def test_in_the_folder_of_the_compose_stack_its_database_is_meant(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the passwords that its first run made; a shell's DATABASE_PORT counts for compose, and so here."""
    monkeypatch.setenv("DATABASE_PORT", "5499")
    passfile = stack / "secrets" / "database.pgpass"
    found = Settings.resolve(database=None, outputs=None).database
    assert found == f"postgresql://mammography@127.0.0.1:5499/mammography?passfile={passfile}"
    monkeypatch.setenv(DATABASE_URL, "postgresql://environment/x")
    assert Settings.resolve(database=None, outputs=None).database == "postgresql://environment/x"
    assert Settings.resolve(database="postgresql://flag/x", outputs=None).database == "postgresql://flag/x"


def test_with_the_stacks_database_go_its_outputs(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `.env` says of them counts for commands on the host, unless they are told otherwise or use another database."""
    (stack / ".env").write_text("OUTPUTS=./big\nARTIFACTS=s3://films\n", encoding="utf-8")
    found = Settings.resolve(database=None, outputs=None)
    assert (found.outputs, found.artifacts) == (stack / "big", "s3://films")
    told = Settings.resolve(database=None, outputs=Path("here"), artifacts="there")
    assert (told.outputs, told.artifacts) == (stack / "here", "there")
    for other in (PRIVATE, "postgresql://flag/x"):
        unlike = Settings.resolve(database=other, outputs=None)
        assert (unlike.outputs, unlike.artifacts) == (stack / "outputs", str(stack / "outputs" / "artifacts"))
    monkeypatch.setenv(OUTPUTS, "/environment")
    assert Settings.resolve(database=None, outputs=None).outputs == Path("/environment")


@pytest.mark.parametrize(("command", "code"), [("start", 1), ("stop", 0)])
def test_the_private_server_says_that_nobody_uses_it(
    stack: Path, capsys: pytest.CaptureFixture[str], command: str, code: int
) -> None:
    """In the stack's folder `db start` and `db stop` first name the database that commands use there."""
    if command == "start":
        (stack / "outputs").touch()  # it does not start, and the test is done at once
    assert run(["db", command]) == code
    used = "mammography: commands here use postgresql://mammography@127.0.0.1:5432/mammography"
    assert capsys.readouterr().err.startswith(f"{used}, and this server only with --database private\n")
    assert run(["--database", PRIVATE, "db", command]) == code
    assert "commands here" not in capsys.readouterr().err


def test_the_private_server_can_be_asked_for(stack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`private` is the private server, also where the stack's database is near; a worker does what its launcher does."""
    settings = Settings.resolve(database=PRIVATE, outputs=None)
    assert settings.database is None
    monkeypatch.setenv(DATABASE_URL, child_environment(settings, cuda_device=None, threads=1)[DATABASE_URL])
    assert Settings.resolve(database=None, outputs=None).database is None


def test_worker_gets_its_device_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device and the threads are in the environment before torch is loaded, and the database is the launcher's."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    settings = Settings("postgresql://flag/x", Path("/flag"), "s3://flag")
    environment = child_environment(settings, cuda_device="3", threads=2)
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment[DATABASE_URL] == "postgresql://flag/x"
    assert environment[OUTPUTS] == "/flag"
    assert environment[ARTIFACTS] == "s3://flag"


@pytest.mark.parametrize(
    ("said", "allowed"),
    [(None, None), ("", []), ("-1", []), ("NoDevFiles", []), ("2, 0", ["2", "0"]), ("GPU-7a,1", ["GPU-7a", "1"]),
     ("1,-1,0", ["1"])],
)  # fmt: skip
def test_gpus_that_a_scheduler_allows(
    monkeypatch: pytest.MonkeyPatch, said: str | None, allowed: list[str] | None
) -> None:
    """A launcher keeps to the GPUs that it was given, read as CUDA reads them."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if said is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert allowed_gpus() == allowed
