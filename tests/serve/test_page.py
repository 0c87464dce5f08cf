"""The web page in a real browser, on the real application: searching, one result, classify, about."""

from __future__ import annotations

import re
from typing import Any

import pytest

from . import page_world
from .browsing import asked, cards, drop, expect, first_names, query_of, refuse, search
from .page_world import COUNT, picture

# ---------------------------------------------------------------- searching


def test_by_text_while_typing(opened: Any) -> None:
    page = opened()
    expect(page.get_by_role("heading", name="Find pictures by what they show")).to_be_visible()
    page.locator("#words").press_sequentially("something red", delay=5)
    first_names(page, "red")
    expect(cards(page)).to_have_count(24)
    expect(page.locator("#status")).to_have_text(re.compile(rf"^24 of {COUNT + 2} · (under 1|[\d,]+) ms$"))
    assert query_of(page) == {"q": ["something red"]}
    expect(page).to_have_title("something red · Clipette")
    expect(page.locator("#results img.ready").first).to_be_visible()
    assert page.locator("#results img").first.evaluate("image => image.naturalWidth") == page_world.SIZE
    scores = [float(text) for text in page.locator(".score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    page.locator("#words").fill("something red -blue")
    expect(page.locator("#status")).to_contain_text("order also by what is left out")


def test_pictures_are_left_to_the_browser_to_fetch_when_they_come_near(opened: Any) -> None:
    page = opened("?q=red")
    expect(cards(page)).to_have_count(24)
    assert page.locator("#results img").evaluate_all("images => images.every(image => image.loading === 'lazy')")


def test_by_a_dropped_picture_then_words_then_back(opened: Any) -> None:
    page = opened()
    drop(page, picture("blue"))
    first_names(page, "blue")
    expect(page.locator("#asked-picture img")).to_have_attribute("alt", "your picture mine.png")
    search(page, "red")
    expect(page.locator("#balance-row")).to_be_visible()
    first_names(page, "red|blue", 2)
    page.go_back()
    expect(page.locator("#balance-row")).to_be_hidden()
    first_names(page, "blue")
    page.get_by_role("button", name="Remove the picture").click()
    expect(page.locator("#start")).to_be_visible()
    expect(cards(page)).to_have_count(0)


def test_by_a_chosen_and_by_a_pasted_picture(opened: Any) -> None:
    page = opened()
    page.set_input_files("#file", {"name": "one.png", "mimeType": "image/png", "buffer": picture("purple")})
    first_names(page, "purple", 2)
    page.evaluate(
        """bytes => {
          const clipboardData = new DataTransfer();
          clipboardData.items.add(new File([new Uint8Array(bytes)], "pasted.png", { type: "image/png" }));
          document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }""",
        list(picture("green")),
    )
    first_names(page, "green", 2)


def test_more_like_this_and_back(opened: Any) -> None:
    page = opened("?q=red")
    first_names(page, "red")
    key = cards(page).nth(1).get_attribute("data-key")
    page.evaluate("scrollTo(0, 400)")
    cards(page).nth(1).get_by_role("button", name="More like this").click()
    expect(page.locator("#asked-picture img")).to_have_attribute("alt", f"picture {key}")
    assert query_of(page) == {"key": [key]}
    expect(page.locator("#words")).to_have_value("")
    first_names(page, "red")
    assert page.evaluate("scrollY") == 0
    page.go_back()
    expect(page.locator("#words")).to_have_value("red")
    expect(page.locator("#asked-picture")).to_be_hidden()


def test_weights_of_picture_and_words(opened: Any) -> None:
    page = opened("?q=red")
    first_names(page, "red")
    key = cards(page).first.get_attribute("data-key")
    page.goto(f"{page.url.partition('?')[0]}?key={key}&q=blue&balance=80")
    expect(page.locator("#balance")).to_have_value("80")
    request = asked(page, lambda: page.locator("#balance").fill("30"))
    assert request["weights"]["text"] == pytest.approx(0.3)
    assert request["weights"]["image"] == pytest.approx(0.7)
    assert request["image_key"] == key
    assert query_of(page)["balance"] == ["30"]


def test_show_more(opened: Any) -> None:
    page = opened("?q=red")
    expect(cards(page)).to_have_count(24)
    page.get_by_role("button", name="Show more").click()
    expect(cards(page)).to_have_count(COUNT + 1)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    assert query_of(page)["k"] == ["48"]


def test_an_answer_that_comes_late_is_not_shown(opened: Any) -> None:
    page = opened()
    held: list[Any] = []
    page.route("**/v1/search", lambda route: held.append(route) if not held else route.continue_())
    search(page, "red")
    expect(page.locator("#progress")).to_have_js_property("hidden", False)
    search(page, "blue")
    first_names(page, "blue")
    held[0].continue_()
    page.wait_for_timeout(200)
    first_names(page, "blue")
    page.unroute("**/v1/search")


# ---------------------------------------------------------------- one result, classify, about


def test_one_result_large(opened: Any) -> None:
    page = opened("?q=red")
    first_names(page, "red")
    cards(page).nth(1).locator(".shot").click()
    detail = page.locator("#detail")
    expect(detail).to_contain_text("Result 2 of 24")
    expect(page.locator("#detail img")).to_have_js_property("naturalWidth", page_world.SIZE)
    for name in ("colour", "shape", "year", "price", "key", "score"):
        expect(detail.locator("dt", has_text=re.compile(f"^{name}$"))).to_be_visible()
    detail.get_by_role("button", name="Next").click()
    expect(detail).to_contain_text("Result 3 of 24")
    detail.get_by_role("button", name="Right").click()
    expect(detail.get_by_role("button", name="Right")).to_have_attribute("aria-pressed", "true")
    detail.get_by_role("button", name="Close").click()
    expect(detail).to_be_hidden()
    expect(cards(page).nth(2)).to_have_attribute("data-mark", "like")
    cards(page).nth(2).locator(".shot").click()
    detail.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("heading", name="What does it show?")).to_be_visible()
    expect(page.locator(".frame img")).to_be_visible()


def bars(page: Any) -> list[tuple[str, float]]:
    names = page.locator("#view-classify .bars .name").all_inner_texts()
    parts = page.locator("#view-classify .bars .part").all_inner_texts()
    return [(name, float(part.removesuffix(" %"))) for name, part in zip(names, parts, strict=True)]


def test_classify_follows_the_labels(opened: Any) -> None:
    page = opened("?tab=classify")
    drop(page, picture("green"))
    page.fill("#labels", "a red thing")
    expect(page.locator(".verdict")).to_have_text("Two labels or more, and the bars appear.")
    page.fill("#labels", "a red thing, a blue thing")
    expect(page.locator("#view-classify .bars li")).to_have_count(2)
    page.fill("#labels", "a red thing, a blue thing\na green thing\n\na red thing")
    expect(page.locator(".verdict")).to_have_text(re.compile(r"^Most likely: a green thing \(\d"))
    shown = bars(page)
    assert shown[0][0] == "a green thing"
    assert len(shown) == 3
    assert sum(part for _, part in shown) == pytest.approx(100, abs=0.2)
    page.wait_for_function(
        """part => {
          const bar = document.querySelector(".bars .best .track i");
          return Math.abs(bar.offsetWidth / bar.parentElement.offsetWidth - part) < 0.01;
        }""",
        arg=shown[0][1] / 100,
    )
    assert query_of(page)["label"] == ["a red thing", "a blue thing", "a green thing"]
    drop(page, picture("blue"))
    expect(page.locator(".verdict")).to_have_text(re.compile("^Most likely: a blue thing"))


def test_classify_says_what_is_wrong(opened: Any) -> None:
    page = opened("?tab=classify&label=red&label=blue")
    drop(page, b"GIF89a torn", "torn.gif", "image/gif")
    expect(page.locator("#view-classify .notice")).to_contain_text("That picture cannot be read")
    page.route("**/v1/classify", refuse(429, "overloaded", **{"Retry-After": "1"}), times=1)
    drop(page, picture("blue"))
    expect(page.locator("#view-classify .notice")).to_contain_text("The server is busy")
    expect(page.locator(".verdict")).to_have_text(re.compile("^Most likely: blue"))


def test_about_shows_card_and_recall(opened: Any) -> None:
    page = opened("?tab=about")
    about = page.locator("#view-about")
    shown = about.locator(".bars li").all_inner_texts()
    assert [text.split()[-1] for text in shown] == ["1.000"] * 3  # so few rows are searched exactly
    assert "keeps 10 %" in shown[1]
    expect(about).to_contain_text("Asked for: 0.98; met.")
    expect(about.get_by_role("heading", name="Model card")).to_be_visible()
    expect(about.locator(".card-text strong")).to_have_text("card")
    expect(about.locator(".card-text tbody th")).to_have_text("width")
    expect(about).to_contain_text("hues-1")
    with page.expect_response("**/openapi.json") as got:
        about.get_by_role("link", name="its description").click()
    assert got.value.ok
