"""Fixtures of the tests that drive a browser. They are skipped, with the reason, where none is installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from . import page_world

PATIENCE = 15_000  # milliseconds: the machines that run this are busy
BIG = 40_000  # bytes of a picture that the server takes


def browser_path() -> str | None:
    """CLIPETTE_BROWSER, or a Chromium that the system has."""
    found = os.environ.get("CLIPETTE_BROWSER")
    return found or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    path = browser_path()
    if path is None:
        pytest.skip("no Chromium here: install one, or name it in CLIPETTE_BROWSER")
    sync_api.expect.set_options(timeout=PATIENCE)
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with page_world.served(tmp_path_factory.mktemp("page"), max_image_bytes=BIG) as found:
        yield found


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """``opened("?q=red", width=360, color_scheme="dark")``: a page that must log no error and stay with its server."""
    contexts = []
    errors: list[str] = []

    def open_page(where: str = "", *, base: str = address, width: int = 1200, height: int = 800, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("console", lambda said: _note(said, errors))
        page.on("pageerror", lambda error: errors.append(f"uncaught: {error}"))
        page.on("request", lambda asked: _own(asked.url, base, errors))
        page.goto(f"{base}/{where}")
        page.wait_for_selector("html[data-ready]")
        page.wait_for_load_state("networkidle")  # the pictures to begin from have been searched for
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def _note(said: Any, errors: list[str]) -> None:
    # A refused request is logged by the browser itself: what the page makes of it is tested here.
    if said.type in ("error", "warning") and "Failed to load resource" not in said.text:
        errors.append(f"{said.type}: {said.text}")


def _own(url: str, base: str, errors: list[str]) -> None:
    if not url.startswith((f"{base}/", "blob:", "data:")):
        errors.append(f"left the origin: {url}")
