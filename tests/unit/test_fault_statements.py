"""The statements of the fault run, and what is found wrong with the facts that are stored for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.resilience.statements import Said, StoredFacts, expected_facts, statement, verify_facts
from services.long_term_memory.extraction.secrets import holds_secret


def said(number: int, user: str = "u1") -> Said:
    """A statement with its facts."""
    content = f"{statement(number)} [{user}:message:{number:06d}]"
    return Said(user, content, added=False, facts=tuple((user, fact) for fact in expected_facts(content)))


def broken(*messages: Said, **known: int) -> dict[str, float]:
    """The figures that are to be 0 and are not."""
    figures = {"without_evidence": 0, "waiting": 0, "set_aside": 0, **known}
    of_all = verify_facts(StoredFacts(list(messages), {"fact": 1}, **figures))
    return {name.strip(): figure for name, figure in of_all.items() if name.isupper() and figure}


def test_no_two_statements_have_a_fact_in_common() -> None:
    """Given a thousand statements, I expect each of eight to state one thing, but one that states two and one that
    states nothing, and no fact twice, nor one that is taken for a secret."""
    facts = [expected_facts(statement(number)) for number in range(1_000)]

    assert [len(of_one) for of_one in facts[:8]] == [1, 1, 1, 1, 1, 1, 2, 0]
    texts = [text for of_one in facts for text in of_one]
    assert len(set(texts)) == len(texts) == 1_000
    assert not any(map(holds_secret, texts))


def test_facts_as_the_rules_give_them_break_no_promise() -> None:
    """Given each statement with its facts, and what a request added without any, I expect nothing wrong."""
    assert broken(*map(said, range(16)), replace(said(3), facts=(), added=True)) == {}


@pytest.mark.parametrize("number", range(7))
def test_a_lost_and_a_doubled_fact_are_found(number: int) -> None:
    """Given a message without one of its facts, and one with a fact twice, I expect each reported."""
    one = said(number)

    assert broken(replace(one, facts=one.facts[1:])) == {"FACTS LOST": 1}
    assert broken(replace(one, facts=(*one.facts, one.facts[0]))) == {"FACTS DOUBLED": 1}
    assert broken(replace(one, facts=(*one.facts, ("u1", "The user likes cake.")))) == {"FACTS DOUBLED": 1}


def test_a_home_may_be_replaced_by_a_later_one_alone() -> None:
    """Given homes of a user, I expect a loss where the last one has no fact, and none where an earlier one has not."""
    first, last = said(2), said(10)

    assert broken(replace(first, facts=()), last) == {}
    assert broken(first, replace(last, facts=())) == {"FACTS LOST": 1}
    assert broken(replace(first, facts=()), said(10, "u2")) == {"FACTS LOST": 1}


def test_facts_of_others_and_without_evidence_are_found() -> None:
    """Given a fact of another user, facts of what a request added, and facts and messages without each other, I expect
    each reported."""
    one = said(0)

    assert broken(replace(one, facts=(("u2", one.facts[0][1]),))) == {"FACTS OF THE WRONG USER": 1}
    assert broken(replace(one, added=True)) == {"FACTS OF WHAT WAS ADDED": 1}
    assert broken(one, without_evidence=2) == {"FACTS WITHOUT EVIDENCE": 2}
    assert broken(one, waiting=3, set_aside=4) == {"MESSAGES NOT READ": 3, "MESSAGES SET ASIDE": 4}
