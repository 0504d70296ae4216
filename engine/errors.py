"""Every error that the engine raises on purpose.

::

    EngineError
    ├── ModelError                 the model is at fault: building again will not help
    │   ├── InvalidModelError          not ONNX, truncated, cyclic, dangling, contradictory shapes
    │   ├── MissingDataError           external data that is absent, short or outside its folder
    │   └── UnsupportedOperatorError   an operator nobody knows, with domain and version
    ├── FeedError                  what a caller fed to a context does not fit the engine
    ├── OptionError                a build or load option has a value that means nothing
    ├── PlanError
    │   ├── PlanCorruptError           truncated, altered or inconsistent plan file
    │   ├── PlanVersionError           a plan format that this version does not read
    │   └── TargetMismatchError        a plan for another device
    ├── KernelError                a kernel could not be compiled, or failed while it ran
    ├── DeviceError                no GPU, a driver too old, a fault on the device
    │   └── DeviceMemoryError          a device has too little memory; says how much was needed
    └── MissingExtraError          an optional package is needed; names the line that installs it

A message says what was found, what was expected and what to do.
"""

from __future__ import annotations

__all__ = [
    "EngineError",
    "ModelError",
    "InvalidModelError",
    "MissingDataError",
    "UnsupportedOperatorError",
    "FeedError",
    "OptionError",
    "PlanError",
    "PlanCorruptError",
    "PlanVersionError",
    "TargetMismatchError",
    "KernelError",
    "DeviceError",
    "DeviceMemoryError",
    "MissingExtraError",
]


class EngineError(Exception):
    """Any error raised on purpose by the engine."""


class ModelError(EngineError):
    """The model is at fault; building it again will not help."""


class InvalidModelError(ModelError):
    """The model file is no ONNX, is damaged, or contradicts itself."""


class MissingDataError(ModelError):
    """External data of a model is absent, too short, or lies outside the model's folder."""


class UnsupportedOperatorError(ModelError):
    """A model uses an operator that no schema, function or plugin defines."""


class FeedError(EngineError, ValueError):
    """An array given to a context has a wrong name, dtype, rank or size."""


class OptionError(EngineError, ValueError):
    """An option has a value that the engine does not understand."""


class PlanError(EngineError):
    """A plan file cannot be used."""


class PlanCorruptError(PlanError):
    """A plan file is truncated, altered or inconsistent."""


class PlanVersionError(PlanError):
    """A plan file has a format version that this version of the engine does not read."""


class TargetMismatchError(PlanError):
    """A plan was built for a device that this machine does not have."""


class KernelError(EngineError):
    """A kernel could not be compiled, or failed while it ran."""


class DeviceError(EngineError):
    """There is no such GPU, its driver is too old, or it reported a fault."""


class DeviceMemoryError(DeviceError):
    """A device has too little free memory; the message says how much was needed, and for what."""


class MissingExtraError(EngineError, ImportError):
    """An optional package is needed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"run: pip install 'enginefarm[{extra}]'"
        )
        self.package = package
        self.extra = extra
        self.purpose = purpose

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.package, self.extra, self.purpose)
