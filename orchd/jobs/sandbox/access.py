"""Which paths a job may use: the fields of its spec that say so by their type.

`base: Readable` and `run: Writable` are strings as before. A path in a field of another type can't be opened by the
job, wherever the files are confined.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import msgspec


class Right(enum.Enum):
    """Stands beside `str` in the type of a field."""

    READ = "read"
    WRITE = "write"


Readable = Annotated[str, Right.READ]
"""A file or folder that the job reads. Empty: none."""

Writable = Annotated[str, Right.WRITE]
"""A folder that the job reads and writes; it is made where it is missing. Empty: none."""


class Granted(NamedTuple):
    """What a spec grants, as absolute paths."""

    read: tuple[Path, ...]
    write: tuple[Path, ...]


def granted(spec: msgspec.Struct) -> Granted:
    """The paths in `spec`, also in the structs within it."""
    found = list(_struct(spec))
    return Granted(
        read=tuple(Path(path).absolute() for right, path in found if right is Right.READ),
        write=tuple(Path(path).absolute() for right, path in found if right is Right.WRITE),
    )


def _struct(value: msgspec.Struct) -> Iterator[tuple[Right, str]]:
    hints = get_type_hints(type(value), include_extras=True)
    for name in value.__struct_fields__:
        yield from _value(hints[name], getattr(value, name))


def _value(hint: Any, value: Any) -> Iterator[tuple[Right, str]]:
    if isinstance(value, msgspec.Struct):
        yield from _struct(value)
    elif isinstance(value, list | tuple):
        for inner in {arg for arg in get_args(hint) if arg is not Ellipsis}:
            for item in value:
                yield from _value(inner, item)
    elif isinstance(value, str) and value:
        rights = hint.__metadata__ if get_origin(hint) is Annotated else ()
        yield from ((right, value) for right in rights if isinstance(right, Right))
        if not rights:  # `Readable | None`
            for inner in get_args(hint):
                yield from _value(inner, value) if get_origin(inner) is Annotated else ()
