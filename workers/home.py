"""The embedded farm's folder: where its database, blobs, engines, keys and locks lie."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scheduler.keys import BuildSpec
from storage.blobs import FolderBlobs, save_blob
from storage.disk import disk_errors
from storage.records import Engine
from workers import settings

STATEMENT_SUFFIX = ".statement.json"


@dataclass(frozen=True, slots=True)
class Home:
    """The layout of a farm's folder."""

    folder: Path

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self.folder / "farm.db"

    @property
    def blobs(self) -> FolderBlobs:
        """The blobs by digest."""
        return FolderBlobs(self.folder / "blobs")

    @property
    def engines(self) -> Path:
        """Engines under readable names, linked to their blobs."""
        return self.folder / "engines"

    @property
    def keys(self) -> Path:
        """The machine's signing key and the keys that are trusted."""
        return self.folder / "keys"

    @property
    def locks(self) -> Path:
        """One lock file per build that somebody works on."""
        return self.folder / "locks"

    @property
    def work(self) -> Path:
        """Files of builds that are under way."""
        return self.folder / "work"

    def engine_path(self, engine: Engine) -> Path:
        """The readable name of an engine."""
        return self.engines / f"{engine.model_name}-{engine.key[:12]}.engine"


def present_home() -> Home:
    """The home that the settings name."""
    return Home(settings.home_folder())


def is_whole(home: Home, engine: Engine) -> bool:
    """Whether an engine's file and its statement are there and of the right length."""
    try:
        found = home.blobs.path_of(engine.digest).stat().st_size
    except OSError:
        return False
    return found == engine.nbytes and not home.blobs.missing([engine.statement_digest])


def place_engine(home: Home, engine: Engine, destination: Path | None) -> Path:
    """Put an engine and its statement where the user wants them; returns the engine's path.

    Without a destination the engine gets a readable name within the farm, a link to its blob. A
    copy is checked against its digest while it is written.
    """
    if destination is not None:
        save_blob(home.blobs, engine.digest, destination)
        save_blob(home.blobs, engine.statement_digest, statement_path(destination))
        return destination
    path = home.engine_path(engine)
    _link(home, engine.digest, path)
    _link(home, engine.statement_digest, statement_path(path))
    return path


def statement_path(engine: Path) -> Path:
    """Where the statement of an engine file lies."""
    return engine.with_name(engine.name + STATEMENT_SUFFIX)


def lock_path(home: Home, spec: BuildSpec) -> Path:
    """The lock that proves the builder of a key alive."""
    return home.locks / f"{spec.key}.lock"


def _link(home: Home, digest: str, path: Path) -> None:
    """Give a blob a readable name, replacing what had it; a copy where links are impossible."""
    blob = home.blobs.path_of(digest)
    with suppress(OSError):
        if path.samefile(blob):
            return
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        try:
            os.link(blob, aside)
            aside.replace(path)
        except OSError:
            save_blob(home.blobs, digest, path)
        finally:
            aside.unlink(missing_ok=True)
