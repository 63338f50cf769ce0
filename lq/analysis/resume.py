"""Results that survive an interruption, in a JSON file that knows what it belongs to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn


class ResultFile:
    """Name -> number, written after every result.

    Args:
        path: of the file, or None to keep nothing.
        key: plain data that says what the results are of; a file with another key is refused.
        replace_other: whether such a file is started anew instead.

    Raises:
        ValueError: if the file is not one of these, or belongs to something else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ResultFile(Path(folder, "rows.json"), {"model": "a"}).add("fc", 1.5)
        ...     print(ResultFile(Path(folder, "rows.json"), {"model": "a"}).results)
        {'fc': 1.5}
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, key: Mapping[str, object], replace_other: bool = False
    ) -> None:
        self.path = None if path is None else Path(path)
        self.key = dict(key)
        self.results: dict[str, float] = {}
        if self.path is not None and self.path.exists():
            self.results = self._read(self.path, replace_other)

    def add(self, name: str, value: float) -> None:
        """Keep a result, whatever happens next."""
        self.results[name] = value
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_name(self.path.name + ".part")
        half.write_text(json.dumps({"key": self.key, "results": self.results}, indent=1))
        os.replace(half, self.path)

    def _read(self, path: Path, replace_other: bool) -> dict[str, float]:
        try:
            found = json.loads(path.read_text())
            key, results = found["key"], {str(name): float(value) for name, value in found["results"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"resume_file={str(path)!r} holds no results ({error!r}); delete it.") from error
        different = [name for name in self.key if key.get(name) != json.loads(json.dumps(self.key[name]))]
        if different and replace_other:
            return {}
        if different:
            raise ValueError(
                f"resume_file={str(path)!r} belongs to something else: {', '.join(different)} differ. "
                "Delete it, or give another file."
            )
        return results


def fingerprint(module: nn.Module) -> str:
    """A short hash of all parameters and buffers.

    Example:
        >>> fingerprint(nn.ReLU())
        'e3b0c44298fc'
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:12]
