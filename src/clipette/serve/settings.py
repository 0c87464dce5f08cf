"""What a server accepts and how long it waits: every limit in one place, with defaults that suit a laptop."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic import Field

from clipette.config import StrictModel, apply_override, validate
from clipette.errors import ConfigError

MIB = 2**20
SHORTEST_KEY = 16


class ServeSettings(StrictModel):
    """Limits of one server. Sizes in bytes, times in seconds.

    Requests: at most ``max_in_flight`` are worked on and ``max_held_bytes`` of bodies held; above, 429 before a body is
    read. A quarter batch beside the one at work keeps the model busy; more would only wait longer. As many bytes of
    writes wait for their turn, and of answers for clients that take them slowly.

    Model: ``batch_size`` items a call, of up to ``queue_size`` that wait, none longer than ``queue_wait`` (429 too).
    ``batch_wait``: how long a call that could be larger waits for requests that are about to arrive.
    """

    host: str = "127.0.0.1"
    port: int = Field(8400, ge=0, le=65535)
    read_keys: tuple[str, ...] = ()
    write_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = Field((), description="Further names this server is reached by.")

    max_in_flight: int = Field(40, ge=1)
    max_held_bytes: int = Field(256 * MIB, ge=1)
    max_connections: int = Field(1024, ge=1)
    max_body_bytes: int = Field(32 * MIB, ge=1)
    max_image_bytes: int = Field(16 * MIB, ge=1)
    max_image_pixels: int = Field(40_000_000, ge=1)
    max_k: int = Field(200, ge=1, le=1000)
    max_labels: int = Field(256, ge=2)
    max_inputs: int = Field(256, ge=1)
    max_items: int = Field(256, ge=1, le=1000)

    batch_size: int = Field(32, ge=1)
    batch_wait: float = Field(0.004, ge=0, le=1)
    queue_size: int = Field(512, ge=1)
    queue_wait: float = Field(1.0, gt=0)
    write_queue: int = Field(64, ge=1)
    search_threads: int = Field(4, ge=1)
    decode_threads: int = Field(2, ge=1)

    timeout: float = Field(30.0, gt=0, description="Of a whole request, once its body is there.")
    write_timeout: float = Field(600.0, gt=0, description="How long an answer waits for its write to be on disk.")
    body_timeout: float = Field(20.0, gt=0, description="For a body to arrive.")
    header_timeout: float = Field(10.0, gt=0, description="For a request's head to arrive.")
    stop_timeout: float = Field(30.0, gt=0, description="For requests under way when the server stops.")
    refresh_seconds: float = Field(1.0, gt=0, description="How often writes of another process are looked for.")

    query_cache_entries: int = Field(20_000, ge=0)
    result_cache_bytes: int = Field(64 * MIB, ge=0)
    thumbnail_cache_bytes: int = Field(256 * MIB, ge=0)
    clicks: Path | None = Field(None, description="File that clicks are appended to; none: not logged.")
    max_clicks_bytes: int = Field(64 * MIB, ge=1)

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> ServeSettings:
        if self.max_inputs > self.queue_size:
            raise ValueError(f"max_inputs {self.max_inputs} exceeds queue_size {self.queue_size}: never to be met")
        for key in (*self.read_keys, *self.write_keys):
            if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(f"a bearer key needs {SHORTEST_KEY} or more printable ASCII characters, no spaces")
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """``127.0.0.1``, ``::1``, ``localhost``: not an interface that others reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(settings: ServeSettings, *, without_key: bool = False) -> None:
    """Refuse to show a collection to a network without a read key, unless that is stated.

    Raises ``ConfigError``.
    """
    if not settings.loopback and not settings.read_keys and not without_key:
        raise ConfigError(
            f"--host {settings.host} lets other machines search this collection: give --read-keys FILE (one key a "
            "line) or CLIPETTE_READ_KEY, or say --no-read-key if everyone may"
        )


def read_keys(path: str | Path | None, variable: str) -> tuple[str, ...]:
    """Keys from a file (one a line, ``#`` comments) and from an environment variable: never from the command line,
    which every user of a machine can read. Raises ``ConfigError``.
    """
    lines: Sequence[str] = ()
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: the keys cannot be read ({error}); one ASCII key a line") from error
    keys = [line.strip() for line in [*lines, os.environ.get(variable, "")]]
    keys = [key for key in keys if key and not key.startswith("#")]
    if path is not None and not keys:
        raise ConfigError(f"{path}: no key in this file; write one a line")
    short = [number for number, key in enumerate(keys, 1) if len(key) < SHORTEST_KEY]
    if short:
        raise ConfigError(
            f"{path or variable}: key {short[0]} is shorter than {SHORTEST_KEY} characters; make one with: "
            "python3 -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    return tuple(keys)


def make_settings(
    overrides: Sequence[str] = (),
    *,
    read_keys_file: str | Path | None = None,
    write_keys_file: str | Path | None = None,
    without_read_key: bool = False,
    **given: Any,
) -> ServeSettings:
    """Settings of a command line: ``given`` fields, then ``KEY=VALUE`` overrides, then keys from files and environment.

    Raises ``ConfigError``: an unknown or bad field, unreadable keys, or a collection shown to a network without a key.
    """
    data = dict(given)
    paths = [apply_override(data, override) for override in overrides]
    if {"read_keys", "write_keys"} & data.keys():
        raise ConfigError("--set: keys are given in files or the environment; a command line is no secret")
    data["read_keys"] = read_keys(read_keys_file, "CLIPETTE_READ_KEY")
    data["write_keys"] = read_keys(write_keys_file, "CLIPETTE_WRITE_KEY")
    settings = validate(ServeSettings, data, where="serve", overridden=paths)
    check_exposure(settings, without_key=without_read_key)
    return settings
