"""
`docker compose up` as the README says it, on a real engine: from a fresh clone to a finished study that was disturbed.

The tests of this file share one stack. It is brought up, searches with two workers while one of them is killed, the database is
restarted and the workers are stopped and started again; each test looks at what is left of it.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import psutil
import pytest
from moto.server import ThreadedMotoServer

from tests.laboratory import STUDY
from tests.stack import Stack, docker, engine_answers, free_port

pytestmark = [pytest.mark.compose, pytest.mark.timeout(2400)]  # the first build installs torch

TRIALS = 6
PASSWORDS = ("database-password", "dashboard-password")
SERVICES = ("db", "dashboard")
KILL_A_WORKER = """
import psutil
workers = [each for each in psutil.process_iter() if "worker" in each.cmdline()]
workers[0].kill()
print(len(workers), workers[0].pid)
"""
IMPORTS = "import io, os; from storage.artifact_store import open_artifacts"
MAKE_BUCKET = f"{IMPORTS}; import boto3; boto3.client('s3').create_bucket(Bucket='films')"
STORE = "open_artifacts(os.environ['MAMMOGRAPHY_ARTIFACTS'])"


def owner_of_clones() -> tuple[int, int]:
    """Return who starts the stack: the usual first user where root runs the tests, so that it is not root."""
    return (1000, 1000) if os.geteuid() == 0 else (os.getuid(), os.getgid())


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A fresh clone with an archive and a study file, brought up by the README's first line."""
    assert engine_answers(), "no Docker engine answers"
    owner = owner_of_clones()
    folder = tmp_path_factory.mktemp("stack") / "clone"
    settings: dict[str, object] = {
        "DATABASE_PORT": free_port(),
        "DASHBOARD_PORT": free_port(),
        "STUDY": "small",
        "STUDY_FILE": "./study.yaml",
        "WORKERS": 2,
        "OUTPUTS": folder / "outputs",
    }
    if owner[0] != 1000:
        settings["HOST_USER"] = "{}:{}".format(*owner)
    made = Stack.clone(folder, "mammography-test", owner, settings)
    try:
        made.up()
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def searched(stack: Stack) -> Stack:
    """The stack after a search in which everything happened that compose promises to outlive."""
    archive, study = stack.folder / "data", stack.folder / "study.yaml"
    made = stack.command("data", "phantom", str(archive), "--patients", "24")
    assert made.returncode == 0, made.stderr
    study.write_text(
        STUDY.replace("trials: 4", f"trials: {TRIALS}").replace("epochs: 2", "epochs: 4"), encoding="utf-8"
    )
    stack.give(archive, study)
    stack.ok("run", "--rm", "study")

    stack.ok("--profile", "worker", "up", "--detach", "worker")
    stack.wait(lambda: working(stack) == 2)
    workers, killed = stack.ok("exec", "-T", "worker", "python", "-c", KILL_A_WORKER).split()
    assert workers == "2"
    stack.wait(lambda: finished(stack) >= 1)
    stack.ok("restart", "db")
    stack.wait(lambda: stack.healthy("db"))
    stack.wait(lambda: finished(stack) >= 2)

    stack.ok("--profile", "worker", "stop", "worker")
    # Given back in order, within the grace period. What was killed is at work until its heartbeat is old.
    left = {worker["name"].partition(":")[2] for worker in stack.status()["workers"]}
    assert left <= {killed}, docker("logs", *stack.containers("worker"))
    assert stack.inspect("worker")["State"]["ExitCode"] != 137
    assert 2 <= finished(stack) < TRIALS
    stack.ok("--profile", "worker", "up", "--detach", "--scale", "worker=2", "worker", WORKERS=1)
    stack.wait(lambda: stack.status()["state"] == "finished", 300)
    stack.wait(lambda: not stack.status()["workers"])
    return stack


def working(stack: Stack) -> int:
    """Return how many workers have finished an epoch of the trial that they are at."""
    return sum(worker["epoch"] is not None for worker in stack.status()["workers"])


def finished(stack: Stack) -> int:
    """Return how many trials are finished."""
    spent: int = stack.status()["budget"]["spent"]
    return spent


def kept(stack: Stack) -> tuple[dict[str, Any], list[str]]:
    """Return what nobody may lose: the study with its trials, and the passwords."""
    return stack.status(), [stack.secret(name) for name in PASSWORDS]


def records(stack: Stack) -> list[dict[str, Any]]:
    """Return the record of every trial."""
    files = sorted((stack.folder / "outputs" / "small").glob("trial_*/optuna_trial.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def test_the_study_ends_with_its_budget(searched: Stack) -> None:
    """Exactly so many trials, all complete, each epoch trained once; the killed worker and the stopped ones are on record."""
    assert searched.status()["trials"] == {"running": 0, "waiting": 0, "complete": TRIALS, "pruned": 0, "fail": 0}
    found = records(searched)
    assert [record["number"] for record in found] == list(range(TRIALS))
    attempts = [attempt for record in found for attempt in record["attempts"]]
    endings = [attempt["ending"] for attempt in attempts]
    assert endings.count("complete") == TRIALS
    assert len(endings) > TRIALS, "nothing was interrupted"
    for record in found:
        told = [
            (int(fold), epoch)
            for attempt in record["attempts"]
            for fold, epochs in attempt["epochs"].items()
            for epoch in epochs
        ]
        assert sorted(told) == [(fold, epoch) for fold in range(3) for epoch in range(4)]
    workers = [docker("inspect", "--format", "{{.State.ExitCode}}", name) for name in searched.containers("worker")]
    assert [code.strip() for code in workers] == ["0", "0"]


def test_results_say_which_code_they_come_from(searched: Stack) -> None:
    """No git is in the image, and the clone's commit is in every record; nothing was changed in it."""
    assert {record["git_commit"] for record in records(searched)} == {searched.commit}
    summaries = list((searched.folder / "outputs" / "small").glob("trial_*/summary.json"))
    assert len(summaries) == TRIALS
    for summary in summaries:
        said = json.loads(summary.read_text(encoding="utf-8"))
        assert (said["git_commit"], said["git_dirty"]) == (searched.commit, False)


def test_files_belong_to_who_started_the_stack(searched: Stack) -> None:
    """Outputs and passwords are the user's own; the passwords are nobody else's to read."""
    folder = searched.folder
    made = [path for root in ("outputs", "secrets") for path in (folder / root, *(folder / root).rglob("*"))]
    assert len(made) > 50
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in made} == {searched.owner}
    assert stat.S_IMODE((folder / "secrets").stat().st_mode) == 0o700
    for name in (*PASSWORDS, "database.pgpass"):
        assert stat.S_IMODE((folder / "secrets" / name).stat().st_mode) == 0o600


def test_nothing_listens_beyond_loopback(searched: Stack) -> None:
    """Two ports are published, and from another address of this machine they cannot be reached."""
    published = {}
    for service in SERVICES:
        for port, bindings in searched.inspect(service)["NetworkSettings"]["Ports"].items():
            assert [binding["HostIp"] for binding in bindings] == ["127.0.0.1"]
            published[service, port] = int(bindings[0]["HostPort"])
    assert set(published) == {("db", "5432/tcp"), ("dashboard", "8080/tcp")}
    assert not searched.inspect("setup")["NetworkSettings"]["Ports"]
    outside = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    }
    for address in outside:
        for port in published.values():
            with socket.socket() as probe:
                probe.settimeout(5)
                assert probe.connect_ex((address, port)) != 0


def test_the_dashboard_asks_for_the_password(searched: Stack) -> None:
    """Nothing without it; with it the study and its trials."""
    port = searched.inspect("dashboard")["NetworkSettings"]["Ports"]["8080/tcp"][0]["HostPort"]
    url = f"http://127.0.0.1:{port}"
    for path in ("/", "/dashboard", "/api/studies", "/static/bundle.js"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url + path)  # noqa: S310 - of this machine
        assert refused.value.code == 401
        refused.value.close()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    form = urllib.parse.urlencode({"password": searched.secret("dashboard-password")}).encode()
    with browser.open(f"{url}/login", form) as page:
        assert page.status == 200
    with browser.open(f"{url}/api/studies") as answer:
        studies = json.load(answer)["study_summaries"]
    assert [study["study_name"] for study in studies] == ["small"]
    with browser.open(f"{url}/api/studies/{studies[0]['study_id']}") as answer:
        trials = json.load(answer)["trials"]
    assert [trial["state"] for trial in trials if trial["state"] == "Complete"] == ["Complete"] * TRIALS


def test_no_password_is_anywhere_else(searched: Stack) -> None:
    """Not in logs, in what the engine knows of containers and images, in a process's arguments or environment, or in outputs."""
    passwords = [searched.secret(name).encode() for name in PASSWORDS]
    containers = searched.containers()
    images = sorted({docker("inspect", "--format", "{{.Image}}", name).strip() for name in containers})
    said = [docker("logs", name) for name in containers]
    said += [docker("inspect", *containers), docker("inspect", *images)]
    said += [docker("history", "--no-trunc", image) for image in images]
    said += [
        docker("top", name, "-eo", "pid,args") for name in searched.containers("dashboard") + searched.containers("db")
    ]
    said.append(searched.ok("exec", "-T", "dashboard", "sh", "-c", "cat /proc/1/environ /proc/[0-9]*/cmdline"))
    files = [path for path in (searched.folder / "outputs").rglob("*") if path.is_file()]
    for content in [*(text.encode() for text in said), *(path.read_bytes() for path in files)]:
        assert not any(password in content for password in passwords)


def test_logs_of_the_database_repeat_nothing_that_is_stored(searched: Stack) -> None:
    """Which error there was, but neither the statement nor the row: they name patients."""
    sql = "create temporary table folds (patient text check (patient = '')); insert into folds values ('patient-4711')"
    psql = ("psql", "-X", "-h", "127.0.0.1", "-U", "mammography", "-d", "mammography", "-c", sql)
    refused = searched.run("exec", "-T", "db", *psql)
    assert (refused.returncode, "patient-4711" in refused.stderr) == (1, True)
    log = docker("logs", *searched.containers("db"))
    assert "violates check constraint" in log
    assert "4711" not in log


def test_artifacts_can_be_in_a_bucket(searched: Stack) -> None:
    """`.env` names it, the keys are in a file beside the passwords, and what a worker puts there the dashboard's image reads."""
    (network,) = json.loads(docker("network", "inspect", f"{searched.project}_default"))
    bucket = ThreadedMotoServer(ip_address=network["IPAM"]["Config"][0]["Gateway"], port=0, verbose=False)
    bucket.start()
    keys = searched.folder / "secrets" / "aws-credentials"
    keys.write_text("[default]\naws_access_key_id = k3y\naws_secret_access_key = s3cr3t\n", encoding="utf-8")
    searched.give(keys)
    settings = {
        "ARTIFACTS": "s3://films/ours",
        "AWS_ENDPOINT_URL_S3": "http://{}:{}".format(*bucket.get_host_and_port()),
    }
    python = ("run", "--rm", "--no-deps", "-T", "--entrypoint", "python")
    try:
        searched.ok(
            *python, "study", "-c", f"{MAKE_BUCKET}; {STORE}.write('curve', io.BytesIO(b'falling'))", **settings
        )
        said = searched.ok(
            *python, "dashboard", "-c", f"{IMPORTS}; print({STORE}.open_reader('curve').read())", **settings
        )
        assert "falling" in said
    finally:
        keys.unlink()
        bucket.stop()


def test_images_run_as_a_user_and_hold_no_source(searched: Stack) -> None:
    """Each of our images says who it runs as; none has the repository, a setting or a password in it."""
    for service in ("setup", "dashboard", "worker"):
        image = docker("inspect", "--format", "{{.Image}}", searched.containers(service)[0]).strip()
        assert docker("inspect", "--format", "{{.Config.User}}", image).strip() == "1000:1000"
        look = "find / -xdev '(' -name .git -o -name '.env*' -o -name '*.pgpass' -o -name built -prune ')' 2>/dev/null || true"
        assert docker("run", "--rm", "--entrypoint", "sh", image, "-c", look).split() in ([], ["/built"])
    has_torch = "import importlib.util; print(importlib.util.find_spec('torch') is not None)"
    assert searched.ok("exec", "-T", "dashboard", "python", "-c", has_torch).strip() == "False"


def test_commands_on_the_host_use_the_stacks_database(searched: Stack) -> None:
    """In the clone nothing need be said; the URL has no password unless asked for, and with it other programs get in."""
    status = searched.command("db", "status")
    assert (status.returncode, status.stdout.rstrip().endswith("of the compose stack: running")) == (0, True), (
        status.stderr
    )
    url = searched.command("db", "url").stdout
    assert searched.secret("database-password") not in url
    assert searched.secret("database-password") in searched.command("db", "url", "--show-password").stdout
    assert searched.command("study", "list").stdout == "small\n"


def test_down_and_up_again_keeps_everything(searched: Stack) -> None:
    """The study, its trials and the passwords: `down` removes containers, not data. In between one line says what to do."""
    before = kept(searched)
    searched.ok("--profile", "worker", "down")
    assert searched.containers() == []
    gone = searched.command("study", "list")
    assert (gone.returncode, gone.stdout, gone.stderr.count("\n")) == (1, "", 1)
    assert "`docker compose up -d` starts it" in gone.stderr
    searched.up()
    assert kept(searched) == before


def test_an_upgrade_keeps_everything(searched: Stack) -> None:
    """New images of the new commit, as the README says it; the study, its trials and the passwords are those of before."""
    before, commit = kept(searched), searched.commit_anew()
    searched.ok("--profile", "worker", "--profile", "study", "build")
    searched.up()
    assert kept(searched) == before
    asked = "from trainer.provenance import commit; print(commit())"
    for image in (("exec", "-T", "dashboard", "python"), ("run", "--rm", "-T", "--entrypoint", "python", "study")):
        assert searched.ok(*image, "-c", asked).strip() == f"git_commit='{commit}' git_dirty=False"


def test_lost_passwords_are_named(searched: Stack) -> None:
    """Where `secrets/` is not that of the volume, commands say this, and not how to start what runs."""
    passfile = searched.folder / "secrets" / "database.pgpass"
    right = passfile.read_bytes()
    passfile.write_text("*:*:*:mammography:new", encoding="utf-8")
    refused = searched.command("study", "list")
    passfile.write_bytes(right)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "password authentication failed" in refused.stderr
    assert "secrets/ is not what its volume was made with" in refused.stderr
    assert "docker compose up" not in refused.stderr


def test_a_worker_that_cannot_work_gives_up(searched: Stack) -> None:
    """What is wrong for good, as a study that is not there, is tried five times again, and not for ever."""
    searched.ok("--profile", "worker", "up", "--detach", "worker", STUDY="nothing", WORKERS=1)
    searched.wait(lambda: searched.inspect("worker")["State"]["Status"] == "exited")
    ended = searched.inspect("worker")
    assert (ended["RestartCount"], ended["State"]["ExitCode"]) == (5, 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a clone to another user")
def test_a_clone_of_another_user_is_told_the_line(tmp_path: Path, stack: Stack) -> None:
    """The stack does not start, says the one line of `.env`, has made nothing, and starts once the line is there."""
    other = Stack.clone(tmp_path / "clone", f"{stack.project}-other", (4711, 4712), {"DATABASE_PORT": free_port()})
    try:
        refused = other.run("up", "--detach", "db")
        assert refused.returncode != 0
        said = docker("logs", *other.containers("setup"))
        assert said.count("\n") == 1
        assert "write the line HOST_USER=4711:4712 into the file .env" in said
        assert not (other.folder / "outputs").exists()
        assert [path.name for path in (other.folder / "secrets").iterdir()] == [".gitignore"]
        with (other.folder / ".env").open("a", encoding="utf-8") as settings:
            settings.write("HOST_USER=4711:4712\n")
        other.ok("up", "--detach", "db")
        other.wait(lambda: other.healthy("db"))
        made = [other.folder / "outputs", *(other.folder / "secrets").iterdir()]
        assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(4711, 4712)}
    finally:
        other.remove()
