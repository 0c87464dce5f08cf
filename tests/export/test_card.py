"""The page for people: what is known, in their words; nothing invented."""

from __future__ import annotations

from clipette.export.card import portable, told, write_card, write_origin

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


def test_no_places_of_the_machine_travel() -> None:
    card = {
        "reference": "/home/ann/runs/A-0",
        "data": "wds:/data/f-{000..005}.tar,csv:~/x/y.csv,runs/own.csv",
        "two": "folder:/a/b + csv:/c/d.csv",
        "list": ["run:/a/b", "https://example.org/a/b", "a photo / a drawing"],
        "seed": 0,
    }
    assert portable(card) == {
        "reference": "A-0",
        "data": "wds:f-{000..005}.tar,csv:y.csv,runs/own.csv",
        "two": "folder:b + csv:d.csv",
        "list": ["run:b", "https://example.org/a/b", "a photo / a drawing"],
        "seed": 0,
    }


def test_what_the_gate_measured_is_said() -> None:
    facts = {
        "name": "m", "clipette": "1", "space": "s", "dim": 4, "logit_scale": 1.0, "logit_bias": 0.0, "opset": 20,
        "precision": "int8", "image": None, "text": None, "card": {},
    }  # fmt: skip
    gate = {"cosine_images": 0.99871, "cosine_texts": None, "figure": "top1", "before": 0.5, "after": 0.4981}
    line = "| against fp32 | median cosine of images 0.9987, top1 0.5000 → 0.4981 |"
    assert line in write_card({**facts, "gate": gate}).splitlines()
    assert "against fp32" not in write_card(facts)
