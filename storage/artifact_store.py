"""
Where the files lie that the dashboard shows of a trial: a folder, or a bucket of S3-compatible storage.

Both fit Optuna's `ArtifactStore`, so that its dashboard and any script of its own can use them. What goes wrong there is an
`ArtifactStoreError`, one line; an artifact that is not there is Optuna's `ArtifactNotFound`.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, Protocol

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from storage.errors import ArtifactPlaceError, ArtifactStoreError

_S3 = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CONNECT_S, _READ_S = 3, 10
"""How long a store may take to answer: a trial waits for it."""
_HANDS = 8


class ArtifactStore(Protocol):
    """Optuna's protocol of the same name, which it does not export."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Return the content of an artifact. Raises ArtifactNotFound."""
        ...

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep an artifact, in place of what was kept under that name."""
        ...

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact. May raise ArtifactNotFound."""
        ...


def open_artifacts(place: str) -> ArtifactStore:
    """
    Return the store at *place*: a folder, made when something is first written, or ``s3://BUCKET/PREFIX``.

    Nothing is asked of it yet. Endpoint, region and credentials of S3 are taken from where AWS's own programs take them:
    AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID and so on.

    Raises:
        ArtifactPlaceError: *place* can be none, or what reaches it is not installed.
    """
    if "://" not in place:
        return FolderStore(Path(place))
    bucket, _, prefix = place.removeprefix(_S3).partition("/")
    if not place.startswith(_S3) or not _BUCKET.fullmatch(bucket):
        raise ArtifactPlaceError(place, "expected a folder, or s3://BUCKET/PREFIX")
    if find_spec("boto3") is None:
        raise ArtifactPlaceError(place, "this needs boto3: pip install 'mammography-hpo[s3]'")
    return BucketStore(bucket, prefix.strip("/"))


def remove_all(store: ArtifactStore, artifact_ids: Iterable[str]) -> None:
    """Remove artifacts, as far as they are there. Raises ArtifactStoreError."""

    def remove(one: str) -> None:
        with suppress(ArtifactNotFound):
            store.remove(one)

    with ThreadPoolExecutor(_HANDS) as hands:  # over a network, each takes its time
        list(hands.map(remove, artifact_ids))


class FolderStore:
    """A folder with a file for each artifact, which is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = FileSystemArtifactStore(folder)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Return the open file. Raises ArtifactNotFound, ArtifactStoreError."""
        with self._said():
            return self._files.open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write the file beside its place, then put it there. Raises ArtifactStoreError."""
        part = f".{artifact_id}.{uuid.uuid4()}.part"  # in containers, processes of the same number write here
        with self._said():
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._files.write(part, content_body)
                with (self._folder / part).open("rb") as stream:
                    os.fsync(stream.fileno())
                (self._folder / part).replace(self._folder / artifact_id)
            finally:
                (self._folder / part).unlink(missing_ok=True)

    def remove(self, artifact_id: str) -> None:
        """Remove the file. Raises ArtifactNotFound, ArtifactStoreError."""
        with self._said():
            self._files.remove(artifact_id)

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArtifactStoreError(str(self._folder), error.strerror or str(error)) from error


class BucketStore:
    """The objects of a bucket below a prefix."""

    def __init__(self, bucket: str, prefix: str) -> None:
        # Only here: boto3 takes half a second, and is there only with the extra `s3`.
        import boto3  # noqa: PLC0415
        from boto3.exceptions import Boto3Error  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        self._place = f"{_S3}{bucket}/{prefix}" if prefix else f"{_S3}{bucket}"
        self._prefix = f"{prefix}/" if prefix else ""
        self._faults = (BotoCoreError, ClientError, Boto3Error)
        config = Config(
            connect_timeout=_CONNECT_S,
            read_timeout=_READ_S,
            retries={"total_max_attempts": 1},  # who writes tries again, and knows for how long
            request_checksum_calculation="when_required",  # servers of others do not know the newer ones
            response_checksum_validation="when_required",
        )
        try:
            self._bucket = Boto3ArtifactStore(bucket, boto3.client("s3", config=config))
        except (*self._faults, ValueError) as error:  # a profile that is not there, an endpoint that is no URL
            raise ArtifactPlaceError(self._place, " ".join(str(error).split())) from error

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Return a stream of the object. Raises ArtifactNotFound, ArtifactStoreError."""
        with self._said():
            return self._bucket.open_reader(self._prefix + artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Put the object. Raises ArtifactStoreError."""
        with self._said():
            self._bucket.write(self._prefix + artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """Remove the object, if it is there. Raises ArtifactStoreError."""
        with self._said():
            self._bucket.remove(self._prefix + artifact_id)

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except self._faults as error:
            raise ArtifactStoreError(self._place, " ".join(str(error).split())) from error
