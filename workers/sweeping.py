"""Deleting what nothing refers to: blobs, unfinished files, work folders, links, idle locks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from storage.disk import disk_errors
from workers.farm import Farm
from workers.home import Home, statement_path


def sweep(farm: Farm, *, grace_s: float, dry_run: bool) -> dict[str, int]:
    """Delete, or only find, what nothing refers to; returns paths with their lengths.

    What was written within the grace is kept: a build may be about to refer to it.
    """
    home = farm.home
    before = time.time() - grace_s
    with farm.database.reading() as rows:
        referenced = rows.engines.referenced_blobs()
        engines = rows.engines.newest(limit=1_000_000)
        open_builds = {build.id for build in rows.builds.open()}
        open_keys = {build.key for build in rows.builds.open()}
    linked = {home.engine_path(engine) for engine in engines}
    linked |= {statement_path(path) for path in linked}
    strays = [
        *(path for path in _files(home.folder / "blobs" / "sha256") if path.name not in referenced),
        *_files(home.folder / "blobs" / "unfinished"),
        *(path for path in _files(home.work) if not _belongs(path, home, open_builds)),
        *(path for path in _files(home.engines) if path not in linked),
        *(path for path in _files(home.keys) if path.suffix == ".part"),
        *(path for path in _files(home.locks) if path.stem not in open_keys),
    ]
    swept = {str(path): size for path in strays if (size := _old_size(path, before)) is not None}
    if not dry_run:
        _delete(farm, [Path(path) for path in swept])
    return swept


def _delete(farm: Farm, paths: list[Path]) -> None:
    """Forget the blobs among the files in one transaction, unless used again; then delete all."""
    with farm.database.transaction() as rows:
        kept = rows.engines.referenced_blobs()
        going = [path for path in paths if path.name not in kept]
        for path in going:
            rows.engines.forget_blob(path.name)
        for path in going:
            with disk_errors(str(path)):
                path.unlink(missing_ok=True)
    for folder in sorted({path.parent for path in going}, reverse=True):
        with suppress(OSError):
            folder.rmdir()


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, in order."""
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


def _belongs(path: Path, home: Home, open_builds: set[str]) -> bool:
    """Whether a work file is of a build that is still open."""
    return path.relative_to(home.work).parts[0] in open_builds


def _old_size(path: Path, before: float) -> int | None:
    """The length of a file that was written before a time, else None."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if status.st_mtime < before else None
