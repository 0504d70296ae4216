"""Plugins: modules of the user's that register operators, fusions, kernels or tactics.

A plugin is any importable module whose decorators run when it is imported. It is named in
``ENGINEFARM_PLUGINS`` (module names, separated by commas) or by an installed package's entry point
in the group ``enginefarm.plugins``. A plan never names one: what it needs must be registered on
the machine that runs it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from functools import cache

from engine.errors import OptionError

__all__ = ["GROUP", "VARIABLE", "load_plugins"]

VARIABLE = "ENGINEFARM_PLUGINS"
GROUP = "enginefarm.plugins"


@cache
def load_plugins() -> tuple[str, ...]:
    """Import every plugin once; the names of the modules.

    Raises OptionError naming a plugin that cannot be imported.
    """
    named = [item.strip() for item in os.environ.get(VARIABLE, "").split(",") if item.strip()]
    installed = [entry.value for entry in importlib.metadata.entry_points(group=GROUP)]
    names = tuple(dict.fromkeys([*named, *sorted(installed)]))
    for name in names:
        try:
            importlib.import_module(name.partition(":")[0])
        except ImportError as error:
            raise OptionError(
                f"the plugin {name!r} cannot be imported: {error}; check {VARIABLE}"
            ) from error
    return names
