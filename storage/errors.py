"""Every error that storage raises on purpose.

::

    StorageError
    ├── NotFoundError        no such row or blob
    ├── ConflictError        a row that must be unique exists already
    ├── CorruptError         bytes that do not have the digest under which they are kept
    ├── DiskFullError        no space left for a row or a blob
    ├── ReadOnlyError        a folder or database that may not be written
    ├── LockedError          another process held the database longer than we wait
    └── NewerSchemaError     a database written by a newer version
"""

from __future__ import annotations


class StorageError(Exception):
    """Any error raised on purpose by storage."""


class NotFoundError(StorageError):
    """No such row or blob."""


class ConflictError(StorageError):
    """A row that must be unique exists already."""


class CorruptError(StorageError):
    """Stored bytes do not have the digest under which they are kept, or are no database."""


class DiskFullError(StorageError):
    """No space is left for a row or a blob."""


class ReadOnlyError(StorageError):
    """A folder or a database may not be written."""


class LockedError(StorageError):
    """Another process held the database for longer than this one waits."""


class NewerSchemaError(StorageError):
    """The database was written by a newer version of this program."""
