"""A store in memory that refuses, from some moment on, as those of cloud providers do: with errors of their own."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class ForbiddenError(Exception):
    """No OSError, as that of botocore is none."""


class RefusingStore(MemoryFileSystem):
    """Refuses the operations in ``refused``, or those of them whose path has ``part`` in it."""

    protocol = "refusing"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    refused: ClassVar[set[str]] = set()
    part: ClassVar[str] = ""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("refusing://").strip("/") if path.strip("/") else ""

    def _ask(self, operation: str, path: str) -> None:
        if operation in self.refused and self.part in path:
            raise ForbiddenError(f"403 for {operation}")

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        self._ask("read", path)
        content: bytes = super().cat_file(path, *args, **kwargs)
        return content

    def get_file(self, path: str, *args: Any, **kwargs: Any) -> None:
        self._ask("download", path)
        super().get_file(path, *args, **kwargs)

    def pipe_file(self, path: str, *args: Any, **kwargs: Any) -> None:
        self._ask("write", path)
        super().pipe_file(path, *args, **kwargs)

    def put_file(self, lpath: str, path: str, *args: Any, **kwargs: Any) -> None:
        self._ask("upload", path)
        super().put_file(lpath, path, *args, **kwargs)

    def mv(self, path1: str, path2: str, *args: Any, **kwargs: Any) -> None:
        self._ask("move", path2)
        super().mv(path1, path2, *args, **kwargs)

    def exists(self, path: str, *args: Any, **kwargs: Any) -> bool:
        self._ask("look", path)
        found: bool = super().exists(path, *args, **kwargs)
        return found

    def rm(self, path: str, *args: Any, **kwargs: Any) -> None:
        self._ask("delete", path)
        super().rm(path, *args, **kwargs)

    def rm_file(self, path: str) -> None:
        self._ask("delete", path)
        super().rm_file(path)


def willing_store() -> str:
    """The URL of a new place in such a store, which refuses nothing yet."""
    fsspec.register_implementation("refusing", RefusingStore, clobber=True)
    refuse()
    return f"refusing://{uuid.uuid4().hex}/run/int8"


def refuse(*operations: str, part: str = "") -> None:
    """From now on these operations are refused."""
    RefusingStore.refused, RefusingStore.part = set(operations), part
