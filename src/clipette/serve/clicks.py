"""What users did with results, appended to a local file for evaluation: one JSON object a line, and a bounded file."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from clipette.errors import ConfigError


class ClickLog:
    """Appends whole lines, so that several processes may write one file. Full at ``most`` bytes: then nothing is added.

    Raises ``ConfigError`` where the file cannot be written.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path, self._most = path, most
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Queries are private: only the owner reads them.
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(f"{path}: clicks cannot be logged here ({error.strerror}); choose another file") from None

    def write(self, click: dict[str, Any]) -> bool:
        """Append one click with the time; whether there was room."""
        line = json.dumps({"time": round(time.time(), 3), **click}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            if self._file < 0 or os.fstat(self._file).st_size + len(line) > self._most:
                return False
            os.write(self._file, line)
            return True

    def close(self) -> None:
        """Let go of the file. Safe to call twice."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
