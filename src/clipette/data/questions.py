"""Questions turned into statements that a contrastive model can compare with a picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from clipette.errors import ConfigError

PLACES = r"(?:in|on|at|under|near|behind|beside|above|below|inside|outside|with|next to|in front of)"
DEMONSTRATIVES = r"(?:this|that|it|these|those|shown|depicted|visible|pictured)"
QUALITIES = r"(?:colou?r|size|shape|age|mood|style|material|breed|species)"
BE = r"(is|are|was|were)"
# "there", "this" ... are whole subjects; any other subject ends before a place, an article, or the last word.
PRONOUNS = r"(?:there|this|that|it|he|she|they|these|those|we|you)"
YES, NO = {"yes", "true", "yeah"}, {"no", "false"}

Statement = Callable[[re.Match[str], str], str]

# First match wins; questions come lower-cased, without the question mark.
RULES: tuple[tuple[re.Pattern[str], Statement], ...] = tuple(
    (re.compile(pattern), statement)
    for pattern, statement in (
        (rf"^what {BE} (.+) doing(?P<rest>.*)$", lambda m, a: f"{m[2]} {m[1]} {a}{m['rest']}"),
        (rf"^what {BE} (.+) (\w+ing (?:to|at|for|from|of|into|over|through|{PLACES}))$",
            lambda m, a: f"{m[2]} {m[1]} {m[3]} {a}"),
        (rf"^what {BE} (.+) (\w+ing)(?P<rest>(?: {PLACES} .+)?)$", lambda m, a: f"{m[2]} {m[1]} {m[3]} {a}{m['rest']}"),
        (rf"^what {BE} ({PLACES} .+)$", lambda m, a: f"{a} {m[1]} {m[2]}"),
        (rf"^(?:what|who) {BE} {DEMONSTRATIVES}$", lambda m, a: f"this is {a}"),
        (rf"^(?:what|which) {QUALITIES} {BE} (.+)$", lambda m, a: f"{m[2]} {m[1]} {a}"),
        (rf"^how (?!many|much)(?:\w+) {BE} (.+)$", lambda m, a: f"{m[2]} {m[1]} {a}"),
        (rf"^(?:what|which)(?: kind of| type of| sort of)? ([\w -]+?) {BE} (?:{DEMONSTRATIVES}|there)$",
            lambda m, a: f"the {m[1]} {m[2]} {a}"),
        (rf"^(?:what|which)(?: kind of| type of| sort of)? ([\w -]+?) {BE} ({PLACES} .+)$",
            lambda m, a: f"the {m[1]} {m[3]} {m[2]} {a}"),
        (rf"^(?:what|which)(?: kind of| type of| sort of)? ([\w -]+?) {BE} (.+)$", lambda m, a: f"{m[3]} {m[2]} {a}"),
        (rf"^how many ([\w -]+?) {BE} (?:there|visible|shown)(?P<rest>.*)$",
            lambda m, a: f"there {m[2]} {a} {m[1]}{m['rest']}"),
        (rf"^how many ([\w -]+?) {BE} (.+)$", lambda m, a: f"{a} {m[1]} {m[2]} {m[3]}"),
        (rf"^who {BE} (\w+ing.*|{PLACES} .+)$", lambda m, a: f"{a} {m[1]} {m[2]}"),
        (rf"^(?:what|who|where|how) {BE} (.+)$", lambda m, a: f"{m[2]} {m[1]} {a}"),
    )
)  # fmt: skip


def question_prompts(question: str, answers: Sequence[str]) -> list[str]:
    """One statement an answer: "what is the dog doing?" with "running" is "the dog is running".

    Rules for common English questions (what, which, who, where, how, how many; yes/no). One they do not know becomes
    "question? answer". Answers are taken as they are written: "a dog", "in the park". Raises ``ConfigError`` for an
    empty question, fewer than two answers, an empty answer, or the same one twice.
    """
    asked = " ".join(question.split()).rstrip("?!. ").strip()
    given = [" ".join(answer.split()) for answer in answers]
    if not asked:
        raise ConfigError('the question is empty; ask for example "what is the dog doing?"')
    if len(given) < 2 or not all(given) or len(set(given)) < len(given):
        raise ConfigError(f"answers {list(answers)}: give at least two, none empty, each once")
    lowered = asked[0].lower() + asked[1:]
    if all(answer.lower() in YES | NO for answer in given):
        return [_yes_no(lowered, asked, answer) for answer in given]
    return [_statement(lowered, asked, answer) for answer in given]


def _statement(question: str, asked: str, answer: str) -> str:
    for pattern, statement in RULES:
        match = pattern.match(question)
        if match:
            return statement(match, answer)
    return f"{asked}? {answer}"


def _yes_no(question: str, asked: str, answer: str) -> str:
    match = re.match(rf"^{BE} (.+)$", question)
    split = _subject(match[2]) if match else None
    if match is None or split is None:
        return f"{asked}? {answer}"
    subject, predicate = split
    if answer.lower() in YES:
        return f"{subject} {match[1]} {predicate}"
    if subject == "there":
        return f"there {match[1]} no {re.sub(r'^(?:a|an|any|some) ', '', predicate)}"
    return f"{subject} {match[1]} not {predicate}"


def _subject(text: str) -> tuple[str, str] | None:
    """("the big dog", "running in the snow") of "the big dog running in the snow"; None where there is no predicate."""
    for pattern in (
        rf"^({PRONOUNS}) (.+)$",
        r"^((?:\S+ )*?\S+) (\w+ing(?: .+)?)$",
        rf"^((?:\S+ )*?\S+) ((?:{PLACES}|a|an|the) .+)$",
        r"^(\S+(?: \S+)*) (\S+)$",
    ):
        match = re.match(pattern, text)
        if match and match[1] not in ("the", "a", "an"):
            return match[1], match[2]
    return None
