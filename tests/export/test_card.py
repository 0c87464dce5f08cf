"""The page for people: what is known, in their words; nothing invented."""

from __future__ import annotations

from clipette.export.card import told, write_origin

CARD = {
    "reference": "runs/student",
    "teacher": {"name": "big", "space": "abc"},
    "data": "folder:a|b",
    "trained_on": {"images": 6000, "classes": 0},
    "recipe": "default",
    "paper": None,
    "dev": {"mean_recall": 0.43912, "note": "best"},
    "clipette": {"version": "1", "commit": "beef"},
}


def test_the_record_is_a_table() -> None:
    page = told({**CARD, "licences": ["data: CC BY 4.0", "teacher: MIT"]})
    for line in (
        "| made from | runs/student |",
        "| teacher | big |",
        "| data | folder:a\\|b (6,000 images) |",
        "| on dev data | mean_recall 0.439 |",
        "| trained by | Clipette 1, commit beef |",
        "- data: CC BY 4.0",
        "- teacher: MIT",
    ):
        assert line in page.splitlines()
    assert "| paper |" not in page


def test_what_is_not_known_is_said() -> None:
    page = write_origin("m", "load()", {"reference": "x", "teacher": "not a mapping"})
    assert "None were stated (`clipette export --licence" in page
    assert "| made from | x |" in page
    assert "teacher |" not in page.split("```json")[0]
