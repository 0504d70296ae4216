"""What the workers and the command line learn from their environment, each in one place."""

from __future__ import annotations

import os
from pathlib import Path


def home_folder() -> Path:
    """Where the embedded farm lies: ENGINEFARM_HOME, else the user's data folder."""
    named = os.environ.get("ENGINEFARM_HOME")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("enginefarm"))


def cache_folder() -> Path:
    """Where re-computable files lie: ENGINEFARM_CACHE, else the user's cache folder."""
    named = os.environ.get("ENGINEFARM_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("enginefarm"))


def service_url() -> str | None:
    """The farm service to use instead of a folder: ENGINEFARM_URL, or None."""
    return os.environ.get("ENGINEFARM_URL") or None


def key_salt() -> str:
    """A word mixed into every build key (ENGINEFARM_SALT), to disown a whole set of engines."""
    return os.environ.get("ENGINEFARM_SALT", "")


def compiler_words() -> str:
    """Which compiler builds (ENGINEFARM_COMPILER): `engine`, or `null[:name=value,...]`."""
    return os.environ.get("ENGINEFARM_COMPILER") or "engine"


def wants_traceback() -> bool:
    """Whether errors are shown with their traceback (ENGINEFARM_TRACEBACK=1)."""
    return os.environ.get("ENGINEFARM_TRACEBACK", "") not in ("", "0")


def user_name() -> str:
    """The name under which this process submits builds: ENGINEFARM_USER, USER, or the user id."""
    return os.environ.get("ENGINEFARM_USER") or os.environ.get("USER") or f"uid-{os.getuid()}"


def program_version() -> str:
    """The version of the installed distribution, or `source` when it runs from a checkout."""
    from importlib import metadata

    try:
        return metadata.version("enginefarm")
    except metadata.PackageNotFoundError:
        return "source"
