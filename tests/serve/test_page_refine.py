"""The web page in a real browser: filters, negatives, variety, marks, and all of it in the address."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs

import pytest

from clipette.index.filters import parse_filter

from .browsing import asked, cards, expect, first_names, query_of
from .page_world import EVIL_COLOUR


def test_filters_come_from_the_columns(opened: Any) -> None:
    page = opened("?q=red")
    expect(cards(page)).to_have_count(24)
    page.get_by_role("button", name="Refine").click()
    legends = {each.lower() for each in page.locator("#refine legend").all_inner_texts()}
    assert legends == {"colour", "shape", "year", "price", "striped"}
    shape = page.locator("fieldset[data-column=shape]")
    request = asked(page, shape.get_by_role("button", name="star").click)
    assert request["where"] == "shape IN ('star')"
    expect(shape.get_by_role("button", name="star")).to_have_attribute("aria-pressed", "true")
    expect(shape.get_by_role("button", name="star")).to_be_focused()
    page.get_by_label("year from").fill("2010")
    request = asked(page, lambda: page.get_by_label("year from").press("Tab"))
    assert request["where"] == "shape IN ('star') AND year >= 2010"
    request = asked(page, page.locator("fieldset[data-column=striped]").get_by_role("button", name="false").click)
    assert request["where"] == "shape IN ('star') AND year >= 2010 AND striped = false"
    expect(page.locator("#chips .chip")).to_have_count(3)
    assert query_of(page)["f.shape"] == ["star"]
    for name in page.locator("#results img").evaluate_all("images => images.map(image => image.alt)"):
        assert "star" in name
    page.get_by_role("button", name="Clear all").click()
    expect(cards(page)).to_have_count(24)


def test_all_values_are_offered_whatever_was_found(opened: Any) -> None:
    page = opened("?q=red&all=1&where=shape+%3D+%27star%27")
    page.get_by_role("button", name="Refine").click()
    shape = page.locator("fieldset[data-column=shape]")
    expect(shape.get_by_role("button", name="star")).to_be_visible()
    expect(shape.get_by_role("button", name="circle")).to_be_visible()


def test_a_filter_in_words_and_a_wrong_one(opened: Any) -> None:
    page = opened("?q=red&all=1&where=year+%3E+2038")
    expect(cards(page)).to_have_count(1)
    page.get_by_role("button", name="Refine").click()
    page.fill("#where", "yeer > 1")
    page.press("#where", "Tab")
    expect(page.locator("#notice")).to_contain_text("did you mean 'year'")
    page.fill("#where", "year > 3000")
    page.press("#where", "Tab")
    expect(page.locator("#notice")).to_contain_text("Nothing passes the filters")
    page.get_by_role("button", name="Remove the filters").click()
    expect(cards(page)).to_have_count(24)


COLUMNS = {
    "colour": "text",
    "year": "int",
    "price": "float",
    "striped": "bool",
    **dict.fromkeys(['odd "name"', "select", "in"], "text"),
}
HOSTILE = ["it's", "' OR 1=1 --", '"', "\\", "a, b", "", "né\u2028", EVIL_COLOUR]


@pytest.mark.parametrize("column", ["colour", 'odd "name"', "select", "in"])
def test_the_page_writes_filters_that_mean_what_was_clicked(opened: Any, column: str) -> None:
    import pyarrow as pa

    page = opened()
    wanted = [value for value in HOSTILE[:-2] if value]
    sentence = page.evaluate(
        "async ([filters, columns]) => (await import('/filters.js')).filterOf(filters, '', columns)",
        [{column: wanted}, COLUMNS],
    )
    rows = pa.array([*HOSTILE, "x", None])
    mask = parse_filter(sentence, COLUMNS).mask(lambda name: rows if name == column else pytest.fail(name))
    assert [value for value, kept in zip(rows.to_pylist(), mask, strict=True) if kept] == wanted


def test_numbers_that_are_none_filter_nothing(opened: Any) -> None:
    page = opened()
    write = "async ([filters, own]) => (await import('/filters.js')).filterOf(filters, own, {year: 'int', on: 'bool'})"
    assert page.evaluate(write, [{"year": ["1e9; DROP..-.5"]}, ""]) == "year <= -.5"
    assert page.evaluate(write, [{"year": [".."], "gone": ["x"], "on": []}, "  "]) is None
    assert page.evaluate(write, [{"on": ["true"]}, "year > 1 OR year < 0"]) == "on = true AND (year > 1 OR year < 0)"


def test_negatives_variety_and_groups(opened: Any) -> None:
    page = opened("?q=red")
    first_names(page, "red")
    page.get_by_role("button", name="Refine").click()
    page.fill("#without", "blue, green sky")
    request = asked(page, lambda: page.press("#without", "Enter"))
    assert request["negatives"] == ["blue", "green sky"]
    expect(page.locator("#chips .chip")).to_have_text(["without blue (remove)", "without green sky (remove)"])
    request = asked(page, lambda: page.locator("#push-slider").fill("160"))
    assert request["weights"]["negative"] == pytest.approx(1.6)
    assert request["negatives"] == ["blue", "green sky"]
    request = asked(page, lambda: page.locator("label.switch", has_text="Varied results").click())
    assert request["mmr"] == pytest.approx(0.6)
    expect(page.locator("#status")).not_to_contain_text("looking closer")
    request = asked(page, lambda: page.locator("label.switch", has_text="Group look-alikes").click())
    assert request["group"] is True
    request = asked(page, lambda: page.locator("#chips .chip", has_text="without blue").click())
    assert request["negatives"] == ["green sky"]
    assert query_of(page)["not"] == ["green sky"]
    grouped = page.locator(".card", has=page.locator(".badge:visible")).first
    expect(grouped.locator(".badge")).to_have_text(re.compile(r"^\+\d+$"))
    assert cards(page).count() < 24
    count = int(grouped.locator(".badge").inner_text())
    grouped.locator(".shot").click()
    expect(page.locator("#detail .alike img")).to_have_count(min(count, 24))


def test_texts_are_found_too(opened: Any) -> None:
    page = opened("?q=purple")
    first_names(page, "purple", 2)
    page.get_by_role("button", name="Refine").click()
    page.locator(".segments label", has_text="Texts").click()
    expect(cards(page)).to_have_count(1)
    expect(cards(page).locator("q")).to_have_text("a purple note, in words only")
    cards(page).locator(".shot").click()
    expect(page.locator("#detail blockquote")).to_have_text("a purple note, in words only")


def test_marks_refine_and_stay_in_the_address(opened: Any) -> None:
    page = opened("?q=red")
    expect(cards(page)).to_have_count(24)
    keys = [cards(page).nth(place).get_attribute("data-key") for place in (0, 5)]
    cards(page).nth(0).get_by_role("button", name="Right").click()
    cards(page).nth(5).get_by_role("button", name="Wrong").click()
    expect(page.locator("#tray")).to_contain_text("1 right, 1 wrong")
    request = asked(page, page.get_by_role("button", name="Refine the search").click)
    assert (request["liked"], request["disliked"]) == ([keys[0]], [keys[1]])
    expect(page.locator("#tray")).to_contain_text("Refined by 1 right, 1 wrong")
    page.reload()
    expect(page.locator("#tray")).to_contain_text("Refined by 1 right, 1 wrong")
    expect(page.locator(".card[data-mark=like]")).to_have_attribute("data-key", keys[0] or "")
    request = asked(page, page.locator("#tray").get_by_role("button", name="Clear").click)
    assert (request["liked"], request["disliked"]) == ([], [])
    expect(page.locator("#tray")).to_be_hidden()


def test_a_shared_address_is_the_whole_search(opened: Any) -> None:
    where = "?kind=any&q=red&not=blue&push=70&variety=30&k=30&group=1&f.shape=star&f.shape=ring"
    where += "&f.year=2001..2030&where=price+%3C+9"
    page = opened()
    request = asked(page, lambda: page.goto(f"{page.url}{where}"))
    assert request["where"] == "shape IN ('star', 'ring') AND year >= 2001 AND year <= 2030 AND (price < 9)"
    assert (request["k"], request["group"], request["kind"]) == (30, True, "any")
    assert request["mmr"] == pytest.approx(0.7)
    expect(page.locator("#words")).to_have_value("red")
    expect(page.locator("#chips .chip")).to_have_count(7)
    again = page.evaluate(
        "async where => { const s = await import('/state.js'); return s.format(s.parse(where)); }", where
    )
    assert parse_qs(again[1:]) == parse_qs(where[1:])


def test_nonsense_in_an_address_is_left_out(opened: Any) -> None:
    page = opened("?tab=nowhere&k=-5&push=x&kind=film&f.gone=1&variety=1000&zzz=1&q=red")
    first_names(page, "red", 1)
