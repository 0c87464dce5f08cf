"""What the browser tests do to a page and ask of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

expect = pytest.importorskip("playwright.sync_api").expect


def cards(page: Any) -> Any:
    return page.locator("#results .card")


def search(page: Any, words: str) -> None:
    page.fill("#words", words)
    page.press("#words", "Enter")


def asked(page: Any, act: Callable[[], object]) -> dict[str, Any]:
    """The search request that ``act`` leads to."""
    with page.expect_request("**/v1/search") as sent:
        act()
    found: dict[str, Any] = json.loads(sent.value.post_data or "")
    return found


def drop(page: Any, data: bytes, name: str = "mine.png", kind: str = "image/png") -> None:
    carried = page.evaluate_handle(
        """([bytes, name, type]) => {
          const carried = new DataTransfer();
          carried.items.add(new File([new Uint8Array(bytes)], name, { type }));
          return carried;
        }""",
        [list(data), name, kind],
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": carried})
    expect(page.locator("#veil")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": carried})
    expect(page.locator("#veil")).to_be_hidden()


def first_names(page: Any, colour: str, count: int = 4) -> None:
    """The first results' captions name ``colour``."""
    for place in range(count):
        expect(cards(page).nth(place).locator("img")).to_have_attribute("alt", re.compile(colour))


def query_of(page: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def refuse(status: int, kind: str, **headers: str) -> Callable[[Any], None]:
    """A handler of routes that answers as the server refuses."""
    body = json.dumps({"error": {"message": "as a test", "type": kind, "param": None}})
    return lambda route: route.fulfill(status=status, headers=headers, body=body, content_type="application/json")
