"""From a request to an engine of the embedded farm, by a hit or by building."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from scheduler.keys import BuildSpec
from scheduler.model_files import DigestCache, model_files
from scheduler.names import EngineName
from storage import hits
from storage.records import Build, Engine, Json
from workers import settings
from workers.compiler import Compiler
from workers.failures import BuildCancelledError, InfrastructureError, ModelFailedError
from workers.home import Home, is_whole


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user asks for."""

    model: Path
    options: Json
    name: EngineName | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """An engine and how it was come by.

    `answer` is `hit`, `built`, `resumed` (an earlier process began), `attached` (another process
    built while this one waited) or `same` (as an engine under another key).
    """

    answer: str
    engine: Engine
    seconds: float


def spec_of(model: Path, options: Json, compiler: Compiler) -> BuildSpec:
    """Everything that decides what is built from a model, and so its key."""
    description = compiler.describe(options["target"])
    return BuildSpec(
        files=model_files(model, DigestCache(settings.cache_folder() / "digests")),
        options=options,
        target=description.target,
        toolchain=description.toolchain,
        codegen=description.codegen,
        salt=settings.key_salt(),
    )


def make_engine(home: Home, wish: Wish, compiler: Compiler) -> Made:
    """Find the engine by one query, or build it and wait.

    The farm itself, with its ORM, is imported only when the engine is not there.
    """
    began = time.monotonic()
    spec = spec_of(wish.model, wish.options, compiler)
    engine = _hit(home, spec.key, wish)
    if engine is not None:
        return Made("hit", engine, time.monotonic() - began)
    answer, engine = _build(home, wish, spec, compiler)
    return Made(answer, engine, time.monotonic() - began)


def _hit(home: Home, key: str, wish: Wish) -> Engine | None:
    """The engine of a key when it is whole and nothing needs to be written."""
    if wish.force:
        return None
    engine = hits.find_engine(home.database, key)
    if engine is None or not is_whole(home, engine):
        return None
    if wish.name is not None:
        named = hits.find_named_engine(home.database, wish.name.name, wish.name.tag)
        if named != engine:
            return None
    return engine


def _build(home: Home, wish: Wish, spec: BuildSpec, compiler: Compiler) -> tuple[str, Engine]:
    """Submit and wait; a build that another user cancelled meanwhile is not ours to revive."""
    from scheduler.submissions import Answer, Request
    from workers.farm import open_farm
    from workers.progress import progress_on_terminal
    from workers.waiting import Waiter

    farm = open_farm(home)
    request = Request(
        spec=spec,
        model_name=wish.model.stem,
        model_path=str(wish.model.absolute()),
        user=settings.user_name(),
        name=wish.name,
        force=wish.force,
        version=settings.program_version(),
    )
    submitted = farm.submissions.submit(request)
    if submitted.engine is not None:
        return "hit", submitted.engine
    assert submitted.build is not None
    if submitted.answer is Answer.KNOWN_FAILURE:
        raise _failed(submitted.build, remembered=True)
    with progress_on_terminal() as progress:
        waiter = Waiter(farm, submitted.build, compiler, progress)
        build = waiter.wait()
    if build.state != "done":
        from engine.errors import MissingExtraError

        if isinstance(waiter.last_error, MissingExtraError):
            raise waiter.last_error  # which has an exit code of its own
        raise _failed(build) from waiter.last_error
    engine = farm.engine(build.key)
    if engine is None:
        raise InfrastructureError(f"the engine of build {build.id} was removed; build it again")
    if engine.same_as is not None:
        return "same", engine
    if submitted.answer is Answer.ATTACHED:
        return ("resumed" if waiter.has_worked else "attached"), engine
    return "built", engine


def _failed(build: Build, *, remembered: bool = False) -> Exception:
    """The exception for a build that ended without an engine."""
    if build.state == "cancelled":
        return BuildCancelledError(f"build {build.id} of {build.model_name} was cancelled")
    failure = build.failure or {}
    message = f"{build.model_name}: {failure.get('message') or 'no reason was recorded'}"
    if failure.get("kind") == "model":
        again = " (known from an earlier build; --force tries again)" if remembered else ""
        return ModelFailedError(message + again)
    return InfrastructureError(message)
