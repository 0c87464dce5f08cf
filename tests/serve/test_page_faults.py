"""The web page in a real browser when something is wrong: with the server, the picture, the words, the key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from . import page_world
from .browsing import cards, drop, expect, first_names, query_of, refuse, search
from .conftest import BIG, PATIENCE
from .page_world import EVIL_CAPTION, EVIL_COLOUR, EVIL_KEY, picture

KEY = "a-read-key-of-the-page"


def test_nothing_close_enough(opened: Any) -> None:
    page = opened("?q=a+wooden+chair")
    expect(page.locator("#notice")).to_contain_text("Nothing close enough")
    expect(page.locator("#notice")).to_contain_text(re.compile(r"a match in this collection has 0\.\d{3} or more"))
    expect(cards(page)).to_have_count(0)
    page.get_by_role("button", name="Show the nearest anyway").click()
    expect(cards(page)).to_have_count(24)
    assert query_of(page)["all"] == ["1"]


def test_a_busy_server_is_asked_again(opened: Any) -> None:
    page = opened()
    page.route("**/v1/search", refuse(429, "overloaded", **{"Retry-After": "1"}), times=1)
    search(page, "red")
    expect(page.locator("#notice")).to_contain_text("The server is busy")
    expect(page.locator("#notice")).to_contain_text("Trying again in 1 s")
    first_names(page, "red")
    expect(page.locator("#notice")).to_be_empty()


def test_a_server_that_stays_busy_is_left_in_peace(opened: Any) -> None:
    page = opened()
    sent: list[str] = []
    page.route("**/v1/search", lambda route: (sent.append("x"), refuse(429, "overloaded")(route)))
    search(page, "red")
    for _ in range(3):
        page.get_by_role("button", name="Try now").click()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    assert len(sent) == 4
    page.unroute("**/v1/search")
    page.get_by_role("button", name="Try again").click()
    first_names(page, "red")


def test_a_server_that_is_gone(opened: Any) -> None:
    page = opened("?q=red")
    first_names(page, "red")
    page.route("**/v1/**", lambda route: route.abort())
    search(page, "blue")
    expect(page.locator("#notice")).to_contain_text("The server cannot be reached")
    expect(page.locator("#notice")).to_contain_text("Is clipette serve still running?")
    expect(cards(page)).to_have_count(0)
    page.unroute("**/v1/**")
    page.get_by_role("button", name="Try again").click()
    first_names(page, "blue")


def test_a_server_that_is_gone_at_the_start(browser: Any, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.route("**/v1/info", lambda route: route.abort(), times=1)
    page.goto(f"{address}/?q=red")
    page.get_by_role("button", name="Try again").click(timeout=PATIENCE)
    first_names(page, "red")
    context.close()


def test_pictures_that_cannot_be_used(opened: Any) -> None:
    page = opened()
    drop(page, b"%PDF", "notes.pdf", "application/pdf")
    expect(page.locator("#notice")).to_contain_text("notes.pdf is not a picture.")
    drop(page, bytes(BIG + 1), "huge.png")
    expect(page.locator("#notice")).to_contain_text("huge.png has 39 kB; this server takes up to 39 kB.")
    drop(page, b"<svg xmlns='http://www.w3.org/2000/svg'/>", "sly.png")
    expect(page.locator("#notice")).to_contain_text("That picture cannot be read")
    drop(page, picture("red")[:60], "torn.png")
    expect(page.locator("#notice")).to_contain_text("It is damaged")
    page.route("**/v1/search", refuse(413, "too_large"), times=1)
    drop(page, picture("red"))
    expect(page.locator("#notice")).to_contain_text("That picture is too large")
    drop(page, picture("red"))
    first_names(page, "red")


def test_a_broken_server_says_so(opened: Any) -> None:
    page = opened()
    page.route("**/v1/search", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"), times=1)
    search(page, "red")
    expect(page.locator("#notice")).to_contain_text("Something broke on the server")
    page.route("**/v1/search", refuse(504, "timeout"), times=1)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#notice")).to_contain_text("That took too long")


def test_a_key_is_asked_for_and_pictures_come_with_it(opened: Any, browser: Any, tmp_path: Path) -> None:
    with page_world.served(tmp_path, read_keys=(KEY,)) as base:
        page = browser.new_context().new_page()
        page.goto(f"{base}/?q=red")
        page.get_by_label("It is kept until you close this tab").fill("wrong", timeout=PATIENCE)
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_role("heading", name="That key is not known here")).to_be_visible()
        page.get_by_label("It is kept until you close this tab").fill(KEY)
        page.get_by_role("button", name="Use it").click()
        first_names(page, "red")
        expect(page.locator("#results img.ready").first).to_be_visible()
        cards(page).first.locator(".shot").click()
        expect(page.locator("#detail img")).to_have_js_property("naturalWidth", page_world.SIZE)
        with page.context.expect_page() as other:
            page.get_by_role("link", name="Original").click()
        expect(other.value.locator("img")).to_have_js_property("naturalWidth", page_world.SIZE)
        page.reload()
        first_names(page, "red")
        page.context.close()


def test_a_model_without_texts_searches_by_pictures(opened: Any, tmp_path: Path) -> None:
    with page_world.served(tmp_path, page_world.Hues(can_encode_text=False)) as base:
        page = opened(base=base)
        expect(page.locator("#words")).to_be_disabled()
        expect(page.locator("#start")).not_to_contain_text("Say it")
        drop(page, picture("blue"))
        first_names(page, "blue")
        page.get_by_role("link", name="Classify").click()
        expect(page.locator("#view-classify")).to_contain_text("This model cannot classify")
        expect(page.locator("#labels")).to_be_disabled()
        page.context.close()


def test_hostile_words_stay_words(opened: Any) -> None:
    page = opened("?" + urlencode({"q": "red", "all": 1, "f.colour": EVIL_COLOUR}))
    expect(cards(page)).to_have_count(1)
    expect(cards(page).locator("img")).to_have_attribute("alt", EVIL_CAPTION)
    expect(page.locator("#results img.ready")).to_be_visible()
    cards(page).locator(".shot").click()
    expect(page.locator("#detail h2")).to_have_text(EVIL_CAPTION)
    expect(page.locator("#detail dd", has_text=EVIL_KEY)).to_be_visible()
    page.keyboard.press("Escape")
    cards(page).get_by_role("button", name="More like this").click()
    assert query_of(page)["key"] == [EVIL_KEY]
    expect(page.locator("#asked-picture img")).to_be_visible()
    page.goto(page.url.partition("?")[0] + "?tab=about")
    expect(page.locator("#view-about")).to_contain_text("<script>window.hacked=1</script>")
    assert page.evaluate("window.hacked") is None
