"""The click log of a server: ``index.clicks`` within a bound, and where it cannot be written, said at the start."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from clipette.errors import ConfigError
from clipette.index.clicks import Click, ClickLog


class BoundedClicks:
    """Appends clicks until the file has ``most`` bytes: no client can fill the disk.

    Raises ``ConfigError`` where the file cannot be written.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path, self._most = path, most
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Queries are private: only the owner reads them.
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        except OSError as error:
            raise ConfigError(f"{path}: clicks cannot be logged here ({error.strerror}); choose another file") from None
        self._log = ClickLog(path)

    def append(self, click: Click) -> bool:
        """Whether there was room. Raises ``DataError`` where the file cannot be written any more."""
        with contextlib.suppress(FileNotFoundError):  # moved away, by a person or a log rotation: begun anew
            if self.path.stat().st_size >= self._most:
                return False
        self._log.append(click)
        return True
