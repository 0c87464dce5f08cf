"""The web page in a real browser: keyboard, phone, themes, names; and its files by themselves."""

from __future__ import annotations

import re
from typing import Any

import pytest

from clipette.serve.pages import STATIC

from .browsing import cards, expect, first_names

# ---------------------------------------------------------------- keyboard, looks, access


def focused(page: Any) -> str:
    found: str = page.evaluate("document.activeElement.closest('[data-key]')?.dataset.key ?? document.activeElement.id")
    return found


def test_the_keyboard_reaches_everything(opened: Any) -> None:
    page = opened("?tab=about")
    page.keyboard.press("/")
    expect(page.locator("#words")).to_be_focused()
    page.keyboard.type("red")
    page.keyboard.press("Enter")
    first_names(page, "red")
    keys = [cards(page).nth(place).get_attribute("data-key") for place in range(24)]
    columns = page.locator("#results").evaluate("grid => getComputedStyle(grid).gridTemplateColumns.split(' ').length")
    assert columns > 2
    steps = [("ArrowDown", 0), ("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0)]
    for key, place in [*steps, ("End", 23), ("Home", 0), ("ArrowLeft", 0)]:
        page.keyboard.press(key)
        assert focused(page) == keys[place], key
    page.keyboard.press("+")
    expect(cards(page).first).to_have_attribute("data-mark", "like")
    page.keyboard.press("-")
    expect(cards(page).first).to_have_attribute("data-mark", "dislike")
    page.keyboard.press("-")
    expect(cards(page).first).to_have_attribute("data-mark", "")
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_contain_text("Result 1 of 24")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#detail")).to_contain_text("Result 2 of 24")
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    assert focused(page) == keys[1]
    page.keyboard.press("m")
    expect(page.locator("#asked-picture")).to_be_visible()
    expect(page.locator("#words")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#asked-picture")).to_be_hidden()
    expect(page.locator("#start")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#words")).not_to_be_focused()


def test_one_tab_stop_for_the_grid_and_a_ring_where_the_focus_is(opened: Any) -> None:
    page = opened("?q=red")
    first_names(page, "red")
    assert page.locator("#results button:not([tabindex='-1'])").count() == 4  # a picture and its three buttons
    page.locator("#words").focus()
    seen = []
    for _ in range(12):
        page.keyboard.press("Tab")
        ring = page.evaluate(
            """() => {
              const style = getComputedStyle(document.activeElement);
              return [document.activeElement.tagName, style.outlineStyle, parseFloat(style.outlineWidth)];
            }"""
        )
        seen.append(ring)
        if ring[0] == "BODY":
            break
        assert ring[1] != "none", ring
        assert ring[2] >= 2, ring
    assert len(seen) >= 8


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window(opened: Any, width: int) -> None:
    page = opened("?q=red&not=blue&f.shape=star&f.shape=ring&variety=30", width=width)
    over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    expect(cards(page).first).to_be_visible()
    if width == 360:
        assert (
            page.locator("#results").evaluate("grid => getComputedStyle(grid).gridTemplateColumns.split(' ').length")
            == 2
        )
    page.get_by_role("button", name="Refine").click()
    expect(page.locator("#refine")).to_be_visible()
    assert page.evaluate(over) == 0
    page.get_by_role("button", name="Refine").click()
    cards(page).first.get_by_role("button", name="Right").click()
    assert page.evaluate(over) == 0
    cards(page).first.locator(".shot").click()
    box = page.locator("#detail").bounding_box()
    assert box["x"] >= 0
    assert box["width"] <= width
    page.keyboard.press("Escape")
    for tab in ("Classify", "About"):
        page.get_by_role("link", name=tab, exact=True).click()
        assert page.evaluate(over) == 0, tab


LUMINANCE = """(pairs) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const style = getComputedStyle(document.documentElement);
  const light = (name) => {
    canvas.fillStyle = style.getPropertyValue(name).trim();
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return pairs.map(([one, other]) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_both_themes(opened: Any, scheme: str) -> None:
    page = opened("?q=red", color_scheme=scheme)
    inks, grounds = ("--ink", "--soft", "--accent", "--good", "--bad"), ("--page", "--surface", "--sunken")
    pairs = [[ink, ground] for ink in inks for ground in grounds] + [["--on-accent", "--accent"], ["--ink", "--tint"]]
    for pair, contrast in zip(pairs, page.evaluate(LUMINANCE, pairs), strict=True):
        assert contrast >= 4.5, (pair, contrast)
    shown = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (shown == "rgb(18, 21, 24)") == (scheme == "dark"), shown


def test_the_theme_can_be_chosen_and_is_kept(opened: Any) -> None:
    page = opened(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    system = page.evaluate(ground)
    button = page.get_by_role("button", name="Colours")
    expect(button).to_have_text("Colours: as the system")
    button.click()
    expect(button).to_have_text("Colours: light")
    light = page.evaluate(ground)
    assert light != system
    page.reload()
    expect(button).to_have_text("Colours: light")
    assert page.evaluate(ground) == light
    button.click()
    assert page.evaluate(ground) == system
    button.click()
    expect(button).to_have_text("Colours: as the system")
    assert page.evaluate("localStorage.getItem('clipette-theme')") == "auto"


NAMELESS = """() => {
  const named = (element) =>
    element.getAttribute("aria-label") || element.labels?.length || element.textContent.trim() || element.alt ||
    (element.getAttribute("aria-labelledby") && document.getElementById(element.getAttribute("aria-labelledby")));
  const ids = [...document.querySelectorAll("[id]")].map((each) => each.id);
  const refers = ["aria-controls", "aria-describedby", "aria-labelledby", "for", "list"];
  return [
    ...[...document.querySelectorAll("button, a, input, textarea, dialog[open]")].filter((each) => !named(each)),
    ...[...document.querySelectorAll("img")].filter((each) => each.checkVisibility() && !each.alt),
    ...[...document.querySelectorAll("[" + refers.join("],[") + "]")].filter((each) =>
      refers.some((name) => each.hasAttribute(name) && !document.getElementById(each.getAttribute(name)))),
  ].map((each) => each.outerHTML).concat(ids.filter((id, place) => ids.indexOf(id) !== place));
}"""


def test_everything_has_a_name(opened: Any) -> None:
    page = opened("?q=red&variety=20&not=blue")
    first_names(page, "red")
    page.get_by_role("button", name="Refine").click()
    assert page.evaluate(NAMELESS) == []
    assert page.locator("h1:visible, [aria-live]").count() >= 1
    cards(page).first.locator(".shot").click()
    assert page.evaluate(NAMELESS) == []
    assert page.locator("html").get_attribute("lang") == "en"


def test_without_motion_where_that_is_asked(opened: Any) -> None:
    page = opened("?q=red", reduced_motion="reduce")
    first_names(page, "red")
    assert page.locator(".shot img").first.evaluate("image => getComputedStyle(image).transitionDuration") in (
        "0s",
        "none",
    )


# ---------------------------------------------------------------- without a browser


def test_the_files_hold_nothing_inline_and_no_other_site() -> None:
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", page)
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    for path in sorted(STATIC.iterdir()):
        text = path.read_text()
        outside = set(
            re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
        )
        assert outside <= {"http://www.w3.org"}, path.name
        if path.suffix == ".js":
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
            ), path.name
    linked = set(re.findall(r'(?:src|href)="([\w.-]+\.\w+)', page))
    imported = {name for path in STATIC.glob("*.js") for name in re.findall(r'from "\./([\w.-]+)"', path.read_text())}
    assert linked | imported <= {path.name for path in STATIC.iterdir()}
    assert {path.name for path in STATIC.glob("*.js")} == {name for name in linked | imported if name.endswith(".js")}
