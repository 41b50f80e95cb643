"""The page people: found users, a person's memories, facts and profile, and what changes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import pytest
from keepsake_client.errors import RequestFailed, RequestTimeout
from keepsake_client.protocol import clean, decode_user_id
from nicegui import ui
from nicegui.elements.upload_files import SmallFileUpload
from structlog.testing import capture_logs

from services.gateway.access import ALL_RIGHTS, Caller, Right
from tests.support import eventually
from tests.unit.console_app import ConsoleApp, look

HOSTILE = "<script>alert(1)</script>\u202e🐱"
HUGE = 10**400
MEMORY: dict[str, Any] = {
    "id": "m1",
    "content": "My cat is Mochi",
    "timestamp": 86_400,
    "speaker": {"id": "a", "name": "Anna"},
    "metadata": {"session_id": "s1", "message_id": "msg 1"},
}
FACT = {**MEMORY, "id": "f1", "content": "Lives in Porto", "kind": "fact", "metadata": {"evidence": ["m1"]}}
OLD = {**FACT, "id": "f2", "content": "Lives in Lisbon", "metadata": {"superseded_by": "f1", "superseded_at": 9}}
USER = {"user_id": "u1", "memories": 5, "facts": 1, "superseded": 1, "last_at": 86_400, "agents": ["mira"]}
PROFILE = {
    "user_profile": {"name": "Anna", "known": {"home": {"value": "Porto", "evidence": ["m1"], "said_at": 5}}},
    "profile_version": 3,
    "profile_history": [{"version": 3, "changed_at": 7, "source": "service", "patch": {"name": "Anna"}}],
}

FOUND = {**MEMORY, "score": 0.625, "metadata": {"score_parts": {"meaning": 1.5, "other": -0.25}}}
ANSWERS: dict[str, Mapping[str, Any]] = {
    "user_list": {"users": [USER]},
    "profile_get": PROFILE,
    "profile_update": PROFILE,
    "search": {"memories": [FOUND]},
    "user_export": {"records": [{"kind": "memory", "content": "x"}]},
}


def answer(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A user with a message, a fact, one that was superseded, and a profile."""
    if kind == "memory_list":
        of = {"message": MEMORY, "fact": FACT, "superseded": OLD}
        return {"memories": [of[data["filters"]["kind"]]]}
    if kind in ("memory_get", "memory_update"):
        memory = {**MEMORY, "content": data.get("content") or MEMORY["content"]}
        return {"memories": [memory], "history": [{"event": "ADD", "new_content": "Old words"}]}
    return ANSWERS.get(kind, {"count": 5, "known": 2, "deleted": 3})


Story = Callable[[ConsoleApp], Any]


def people(story: Story) -> None:
    """Run a story with the memory above."""

    async def run(app: ConsoleApp) -> None:
        app.memory.answer = answer
        await story(app)

    look(run)


def asked(app: ConsoleApp, kind: str) -> list[dict[str, Any]]:
    """`data` of the requests of a type."""
    return [data for request_type, _, data in app.memory.requests if request_type == kind]


async def settled(app: ConsoleApp, sees: str) -> None:
    await app.user.should_see(sees, retries=30)


def test_users_are_found_by_the_beginning_of_their_ids() -> None:
    """Given a prefix, I expect the users that begin with it, with counts and a link each."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?prefix=u")
        await settled(app, "u1")
        await app.user.should_see("mira")
        assert asked(app, "user_list")[0]["prefix"] == "u"

    people(story)


def test_an_id_that_turns_text_around_reads_as_it_is_written() -> None:
    """Given an override of the writing direction in an id, I expect its escape, in a list and on the user's page."""

    async def story(app: ConsoleApp) -> None:
        app.memory.answer = lambda *_: {"users": [{"user_id": "ab\u202egnp.exe"}], "count": 1}
        for path in ("/console/people", "/console/people?id=ab%25E2%2580%25AEgnp.exe"):
            await app.user.open(path)
            await settled(app, r"ab\u202egnp.exe")

    look(story)


def test_a_user_with_a_lone_surrogate_is_counted() -> None:
    """Given an id that no prefix on the wire can have, I expect the counts of that user, not those of another."""
    strange = {**USER, "user_id": "x\ud800y"}

    def listed(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        prefix, after = clean(data["prefix"]), decode_user_id(data.get("cursor", "")) if kind == "user_list" else ""
        ids = ["x", "x\ud800", "x\ud800x", "x\ud800y"]
        found = [user for user in ids if user.startswith(prefix) and user > after]
        return {"users": [strange if user == "x\ud800y" else {"user_id": user} for user in found[: data["limit"]]]}

    async def story(app: ConsoleApp) -> None:
        app.memory.answer = lambda kind, data: listed(kind, data) if kind == "user_list" else answer(kind, data)
        await app.user.open("/console/people?id=x%25ED%25A0%2580y")
        await settled(app, "Messages 5")

    look(story)


def test_the_page_of_a_user_who_is_forgotten_elsewhere_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given an open page of a user, once nothing is kept of that user I expect nothing of what was shown."""
    monkeypatch.setattr("services.gateway.console.pages.people.person.CHECK_S", 0.01)

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1")
        await settled(app, "Mochi")
        await eventually(lambda: len(asked(app, "user_list")) > 2, description="the page to ask for the user")
        app.memory.answer = lambda *_: {"users": []}
        await settled(app, "Nothing is kept of this user any more")
        for gone in ("Mochi", "Messages"):
            await app.user.should_not_see(gone)

    people(story)


@pytest.mark.parametrize(("query", "says"), [("", "Nothing is remembered"), ("?prefix=x", "“x”")])
def test_no_users_are_said_in_words(query: str, says: str) -> None:
    """Given no user at all, or none of a prefix, I expect that in words."""

    async def story(app: ConsoleApp) -> None:
        app.memory.answer = lambda *_: {"users": []}
        await app.user.open(f"/console/people{query}")
        await settled(app, says)

    look(story)


def test_more_users_come_by_the_cursor() -> None:
    """Given a first page that is not the last one, I expect the next one below it on demand."""

    async def story(app: ConsoleApp) -> None:
        app.memory.answer = lambda _, data: (
            {"users": [{"user_id": "u2"}]} if "cursor" in data else {"users": [USER], "next_cursor": "c1"}
        )
        await app.user.open("/console/people")
        await settled(app, "More")
        app.user.find("More").click()
        await settled(app, "u2")
        await app.user.should_see("u1")
        await app.user.should_not_see("More")

    look(story)


def test_a_key_for_one_user_sees_that_one_at_once() -> None:
    """Given a key for u1, I expect that page at once, no list of people, and none of another user."""

    async def story(app: ConsoleApp) -> None:
        app.keys.of = Caller("k", ALL_RIGHTS, user="u1")
        await app.user.open("/console/people")
        await settled(app, "My cat is Mochi")
        await app.user.should_not_see("All people")
        app.memory.requests.clear()
        await app.user.open("/console/people?user=u2")
        await settled(app, "not for this user")
        assert app.memory.requests == []

    people(story)


def test_a_key_for_one_character_asks_for_that_one_alone() -> None:
    """Given a key for mira, I expect no list of users or counts, and mira's memories only."""

    async def story(app: ConsoleApp) -> None:
        app.keys.of = Caller("k", ALL_RIGHTS, agent="mira")
        await app.user.open("/console/people")
        await app.user.open("/console/people?user=u1")
        await settled(app, "My cat is Mochi")
        assert asked(app, "user_list") == []
        assert [(data["agent_id"]) for data in asked(app, "memory_list")] == ["mira"]
        assert not any(data.get("all_agents") for data in asked(app, "memory_list"))
        await app.user.should_not_see("Export, import, forget")
        await app.user.open("/console/people?user=u1&view=data")
        await settled(app, "one agent only")

    people(story)


def test_a_timeline_has_sessions_and_filters() -> None:
    """Given filters in the URL, I expect them asked for, and memories below their session, with their turn."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1&source=user&contains=cat&scope=agent:mira&since=2024-05-01")
        await settled(app, "My cat is Mochi")
        await app.user.should_see("s1")
        await app.user.should_see("Anna")
        (data,) = asked(app, "memory_list")
        assert data["agent_id"] == "mira"
        assert data["filters"] == {
            "source": "user",
            "contains": "cat",
            "since": "2024-05-01T00:00:00+00:00",
            "kind": "message",
        }
        assert "/console/turn?id=msg+1" in links(app)

    people(story)


def links(app: ConsoleApp) -> list[str]:
    """Where the page leads to."""
    assert app.user.client is not None
    return [str(element.props["href"]) for element in app.user.client.elements.values() if "href" in element.props]


def test_hostile_contents_are_text() -> None:
    """Given markup in every id, name, key and value, I expect it as text, and no element that reads HTML."""

    async def story(app: ConsoleApp) -> None:
        memory = {
            **MEMORY,
            "content": HOSTILE * 1_000,
            "agent_id": HOSTILE,
            "speaker": {"name": HOSTILE},
            "metadata": {
                "session_id": HOSTILE,
                "message_id": HOSTILE,
                "superseded_at": HUGE,
                HOSTILE: HOSTILE,
                "evidence": [HOSTILE],
            },
        }

        def hostile(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
            slot = {"value": HOSTILE, "evidence": HOSTILE, "said_at": HUGE}
            profile = {HOSTILE: {HOSTILE: [HOSTILE]}, "known": {HOSTILE: slot}}
            change = {"version": 1, "changed_at": 1e15, "source": "service", "patch": profile}
            return {
                "memories": [memory],
                "users": [{**USER, "user_id": HOSTILE, "agents": [HOSTILE]}],
                "user_profile": profile,
                "profile_history": [change],
                "history": [{"event": HOSTILE, "new_content": HOSTILE, "changed_at": HOSTILE}],
                "count": 1,
            }

        app.memory.answer = hostile
        for view in ("memories", "facts", "profile", "data"):
            await app.user.open(f"/console/people?user={quote(HOSTILE)}&view={view}")
            await settled(app, HOSTILE.replace("\u202e", r"\u202e") if view == "data" else HOSTILE)
            await app.user.should_not_see("Try again", retries=1)
            assert app.user.client is not None
            assert not [
                element for element in app.user.client.elements.values() if isinstance(element, ui.html | ui.markdown)
            ]

    look(story)


def test_hidden_contents_are_not_sent() -> None:
    """Given the switch for contents, I expect neither contents nor values on the page, nor a way to correct them."""

    async def story(app: ConsoleApp) -> None:
        app.http.cookies.set("keepsake_contents", "hidden")
        for view, waits in (("memories", "characters, hidden"), ("facts", "characters, hidden"), ("profile", "name")):
            await app.user.open(f"/console/people?user=u1&view={view}")
            await settled(app, waits)
            for hidden in ("Mochi", "Porto", "Edit"):
                await app.user.should_not_see(hidden, retries=1)

    people(story)


def test_a_search_shows_scores_and_their_parts() -> None:
    """Given a question, I expect what is found with score and parts, superseded facts included."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1&q=cat&scope=shared&contains=x&source=ai")
        await settled(app, "score 0.62")
        await app.user.should_see("meaning +1.50")
        (data,) = asked(app, "search")
        assert data == {
            "query": "cat",
            "limit": 20,
            "filters": {"source": "ai"},
            "explain": True,
            "include_superseded": True,
        }

    people(story)


def test_facts_have_their_evidence() -> None:
    """Given a fact and one that it superseded, I expect both, and on demand the words that say it."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1&view=facts")
        await settled(app, "Lives in Porto")
        await app.user.should_see("Lives in Lisbon")
        app.user.find("Evidence (1)").click()
        await settled(app, "My cat is Mochi")
        assert asked(app, "memory_get") == [{"id": "m1"}]

    people(story)


def test_a_link_to_a_memory_shows_that_one_alone() -> None:
    """Given the address of a fact, I expect it with its evidence, and no list of the user's memories."""

    async def story(app: ConsoleApp) -> None:
        facts = {"f1": FACT, "m1": MEMORY}
        app.memory.answer = lambda kind, data: (
            {"memories": [facts[data["id"]]]} if kind == "memory_get" else answer(kind, data)
        )
        await app.user.open("/console/people?user=u1&memory=f1")
        await settled(app, "Lives in Porto")
        app.user.find("Evidence (1)").click()
        await settled(app, "My cat is Mochi")
        assert asked(app, "memory_list") == []
        assert "/console/people?user=u1" in links(app)

    people(story)


def test_a_session_that_goes_on_has_its_dates_extended() -> None:
    """Given a session of two pages, I expect one heading, whose dates are those of both once the second is shown."""

    async def story(app: ConsoleApp) -> None:
        newest, oldest = {**MEMORY, "id": "m2", "timestamp": 86_400 * 400}, MEMORY
        app.memory.answer = lambda kind, data: (
            {"memories": [oldest]} if "cursor" in data else {"memories": [newest], "next_cursor": "c", "users": [USER]}
        )
        await app.user.open("/console/people?user=u1")
        await settled(app, "More")
        app.user.find("More").click()

        def dates() -> list[str]:
            places = [one for one in app.user.find(ui.element).elements if "dates" in one.classes]
            return [label.text[:10] for one in places for label in one.descendants() if isinstance(label, ui.label)]

        await eventually(lambda: dates() == ["1970-01-02", "–", "1971-02-05"], description="the dates of both pages")

    look(story)


def test_a_memory_is_corrected_and_what_was_typed_stays_until_it_is() -> None:
    """Given a correction that fails at first, I expect what was typed kept, then stored, shown and logged."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1")
        await settled(app, "Details")
        app.user.find("Details").click()
        await settled(app, "Old words")
        app.user.find("Correct").click()
        await settled(app, "Correct this memory")
        app.memory.fails(RequestTimeout("no response"))
        app.user.find(ui.textarea).type(" indeed")
        with capture_logs() as logs:
            app.user.find("Save").click()
            await settled(app, "No answer came in time")
        assert [line["outcome"] for line in logs if line["event"] == "console_change"] == ["timeout"]
        app.memory.answer = answer
        with capture_logs() as logs:
            app.user.find("Save").click()
            await app.user.should_not_see("Correct this memory", retries=30)
        await app.user.should_see("My cat is Mochi indeed")
        assert asked(app, "memory_update")[-1] == {"id": "m1", "content": "My cat is Mochi indeed"}
        assert logs[-1] == {
            "event": "console_change",
            "log_level": "info",
            "what": "memory_update",
            "key": "open",
            "user_id": "u1",
            "memory_id": "m1",
        }

    people(story)


def test_a_memory_is_deleted_once_it_is_confirmed() -> None:
    """Given a deletion, I expect nothing deleted before it is confirmed."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1")
        await settled(app, "Details")
        app.user.find("Details").click()
        await settled(app, "Old words")
        app.user.find("Delete").click()
        await settled(app, "Delete this memory?")
        assert asked(app, "memory_delete") == []
        click_last(app, "Delete")
        await settled(app, "Deleted.")
        assert asked(app, "memory_delete")[0]["ids"] == ["m1"]

    people(story)


def click_last(app: ConsoleApp, label: str) -> None:
    """Click the newest button of this label, such as that of a question."""
    click(app, max(app.user.find(kind=ui.button, content=label).elements, key=lambda element: element.id))


def click(app: ConsoleApp, element: ui.element) -> None:
    interaction = app.user.find(ui.element)
    interaction.elements = {element}
    interaction.click()


def test_memories_of_filters_are_counted_before_they_are_deleted() -> None:
    """Given filters, I expect the number that goes in the question, then the same filters deleted."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1&session_id=s1&scope=shared")
        page = app.user.client
        await settled(app, "Delete all that meet these filters")
        app.user.find("Delete all that meet these filters").click()
        await settled(app, "Delete 5 memories")
        click_last(app, "Delete")
        await settled(app, "5 memories deleted")
        assert app.user.client is page  # which says it, and reads the list again
        assert len(asked(app, "memory_list")) == 2
        counted, deleted = asked(app, "memory_delete")
        assert counted == {"filters": {"session_id": "s1"}, "dry_run": True}
        assert deleted == {"filters": {"session_id": "s1"}}

    people(story)


def test_a_value_of_the_profile_is_edited_in_its_place() -> None:
    """Given a value that is no JSON, then one that is, I expect the first refused, the second stored by the version."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1&view=profile&scope=agent:mira")
        await settled(app, "written as version 3")
        app.user.find("Edit").click()
        assert len(app.user.find("Edit").elements) == 1  # of the other value: nothing begins this one anew
        (field,) = (one for one in app.user.find(ui.textarea).elements if one.value == '"Anna"')
        field.value = "Anne"
        click_last(app, "Save")
        await settled(app, "This is not JSON")
        assert asked(app, "profile_update") == []
        field.value = '"Anne"'
        click_last(app, "Save")
        await app.user.should_not_see('"Anne"', retries=30)
        assert asked(app, "profile_update") == [
            {"updates": {"name": "Anne"}, "expected_version": 3, "agent_id": "mira"}
        ]

    people(story)


def test_a_conflict_shows_what_is_there_and_keeps_what_was_typed() -> None:
    """Given a profile that has changed since, I expect its new value beside what was typed, which is stored again."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1&view=profile")
        await settled(app, "written as version 3")
        app.user.find("Edit").click()
        (field,) = (one for one in app.user.find(ui.textarea).elements if one.value == '"Anna"')
        field.value = '"Anne"'

        def conflict(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
            if kind == "profile_update":
                raise RequestFailed("conflict: the profile is at version 4")
            return {"user_profile": {"name": "Annika"}, "profile_version": 4}

        app.memory.answer = conflict
        click_last(app, "Save")
        await settled(app, "at version 4")
        await app.user.should_see("Annika")
        assert field.value == '"Anne"'
        app.memory.answer = answer
        click_last(app, "Save")
        await app.user.should_not_see('"Anne"', retries=30)
        assert asked(app, "profile_update")[-1] == {"updates": {"name": "Anne"}, "expected_version": 4}

    people(story)


def test_a_conflict_over_one_value_lets_no_other_be_replaced_unseen() -> None:
    """Given two values that are edited, and a conflict over the first, I expect the second stored by what was seen."""

    async def story(app: ConsoleApp) -> None:
        versions = iter([3, 4, 5])

        def conflict(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
            if kind == "profile_update":
                raise RequestFailed("conflict: the profile has changed")
            profile = {"name": "Anna", "city": "Porto"}
            return {"user_profile": profile, "profile_version": next(versions)} if kind == "profile_get" else {}

        app.memory.answer = conflict
        await app.user.open("/console/people?user=u1&view=profile")
        await settled(app, "Edit")
        for edit in app.user.find("Edit").elements:
            click(app, edit)
        _, *saves = sorted(app.user.find(kind=ui.button, content="Save").elements, key=lambda save: save.id)
        for save, version in zip(saves, (4, 5), strict=True):
            click(app, save)
            await settled(app, f"at version {version}")
        assert [data["expected_version"] for data in asked(app, "profile_update")] == [3, 3]

    look(story)


def test_a_conflict_over_a_new_value_says_that_nothing_is_there() -> None:
    """Given a profile that has changed elsewhere, I expect no `null` in the place of the value that I add."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1&view=profile")
        await settled(app, "written as version 3")

        def conflict(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
            if kind == "profile_update":
                raise RequestFailed("conflict: the profile is at version 4")
            return {"user_profile": {"name": "Annika"}, "profile_version": 4}

        app.memory.answer = conflict
        app.user.find(kind=ui.input, content="Key").type("city")
        app.user.find(kind=ui.textarea, content="Value, as JSON").type('"Lisbon"')
        click_last(app, "Save")
        await settled(app, "at version 4")
        await app.user.should_see("nothing")
        await app.user.should_not_see("null")

    people(story)


def test_a_user_is_forgotten_when_the_id_is_typed() -> None:
    """Given a preview, I expect what goes, and nothing deleted until the id is typed."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u%20%201&view=data")
        app.user.find("Show what goes").click()
        await settled(app, "5 memories with their history")
        typed = app.user.find(kind=ui.input, content="User id")
        typed.type("u")
        app.user.find("Forget everything").click()
        await settled(app, "not the id of this user")
        typed.type(" 1")
        app.user.find("Forget everything").click()
        await settled(app, "Forgotten: 5")
        assert asked(app, "user_forget") == [{"dry_run": True}, {}]

    people(story)


def test_a_double_click_forgets_once() -> None:
    """Given two clicks in a row, I expect one deletion, and its count left on the page."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1&view=data")
        app.user.find("Show what goes").click()
        await settled(app, "5 memories with their history")
        app.user.find(kind=ui.input, content="User id").type("u1")
        app.user.find("Forget everything").click()
        app.user.find("Forget everything").click()
        await settled(app, "Forgotten: 5")
        assert asked(app, "user_forget") == [{"dry_run": True}, {}]

    people(story)


def test_an_id_that_cannot_be_typed_is_confirmed_by_its_escape() -> None:
    """Given an override of the writing direction in an id, I expect it confirmed as the page shows it."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?id=a%25E2%2580%25AEb&view=data")
        app.user.find("Show what goes").click()
        await settled(app, "5 memories with their history")
        app.user.find(kind=ui.input, content="User id").type(r"a\u202eb")
        app.user.find("Forget everything").click()
        await settled(app, "Forgotten: 5")

    people(story)


def records(number: int) -> bytes:
    return b"".join(json.dumps({"kind": "memory", "content": f"x {n}"}).encode() + b"\n" for n in range(number))


async def upload(app: ConsoleApp, content: bytes) -> None:
    (element,) = app.user.find(ui.upload).elements
    await element.handle_uploads([SmallFileUpload("a.jsonl", "", content)])


def test_a_file_is_imported_page_by_page() -> None:
    """Given 100 records, I expect two pages sent, and what became of them."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1&view=data")
        with capture_logs() as logs:
            await upload(app, records(100))
            await settled(app, "The whole file is imported")
        await app.user.should_see("100 records read: 10 new, 4 known, 6 stay deleted")
        assert [len(data["records"]) for data in asked(app, "user_import")] == [64, 36]
        assert [log["records"] for log in logs if log["event"] == "console_change"] == [100]

    people(story)


def test_no_second_file_is_chosen_while_one_is_imported() -> None:
    """Given an import, I expect no button for another file until it has ended."""
    seen: list[bool] = []

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1&view=data")
        (pick,) = app.user.find("Choose a file").elements

        def importing(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
            if kind == "user_import":
                seen.append(pick.visible)
            return answer(kind, data)

        app.memory.answer = importing
        await upload(app, records(1))
        await settled(app, "The whole file is imported")
        assert (seen, pick.visible) == ([False], True)

    people(story)


def test_a_line_that_is_no_record_is_named() -> None:
    """Given a bad line, I expect its number and reason, and what is stored by then."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1&view=data")
        await upload(app, records(2) + b"<b>\n")
        await settled(app, "line 3: not JSON")
        await app.user.should_see("2 records read")

    people(story)


def test_an_import_stops_when_it_is_cancelled() -> None:
    """Given an import that is cancelled while its first page is stored, I expect that said, and no second page."""
    stopping: list[ui.element] = []

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1&view=data")

        def cancel(kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
            if kind == "user_import" and not stopping:
                app.user.find("Cancel").click()
                stopping.extend(app.user.find("Stops after this page").elements)
            return answer(kind, data)

        app.memory.answer = cancel
        await upload(app, records(200))
        await settled(app, "Stopped.")
        assert stopping
        assert len(asked(app, "user_import")) == 1

    people(story)


def test_an_export_is_a_file_behind_the_guard() -> None:
    """Given a key that may export and one that may not, I expect the file, then a refusal; the first is logged."""

    async def story(app: ConsoleApp) -> None:
        with capture_logs() as logs:
            response = await app.http.get("/console/people/export?user=..%2Fu%0D%0A1%E2%80%AE")
        assert response.text == '{"kind": "memory", "content": "x"}\n'
        assert response.headers["Content-Disposition"] == "attachment; filename*=UTF-8''_u_1_.jsonl"
        assert [log["what"] for log in logs if log["event"] == "console_change"] == ["user_export"]
        app.keys.of = Caller("k", frozenset(Right) - {Right.EXPORT})
        assert (await app.http.get("/console/people/export?user=u1")).status_code == 403

    people(story)


def test_what_a_key_may_not_do_is_not_shown() -> None:
    """Given a key that may read alone, I expect no search, nothing that changes, and no page for all that is kept."""

    async def story(app: ConsoleApp) -> None:
        app.keys.of = Caller("k", frozenset({Right.READ}))
        await app.user.open("/console/people?user=u1&session_id=s1")
        await settled(app, "Details")
        app.user.find("Details").click()
        await settled(app, "Old words")
        for absent in ("Ask this memory", "Correct", "Delete", "Export"):
            await app.user.should_not_see(absent, retries=1)
        assert "/console/turn" in links(app)
        assert not [link for link in links(app) if link.startswith("/console/turn?")]
        await app.user.open("/console/people?user=u1&view=profile")
        await settled(app, "Porto")
        for absent in ("Edit", "Add a value"):
            await app.user.should_not_see(absent, retries=1)

    people(story)


def test_a_key_that_is_revoked_changes_nothing() -> None:
    """Given a page whose key loses its rights, I expect the next action refused in words, and nothing sent."""

    async def story(app: ConsoleApp) -> None:
        await app.user.open("/console/people?user=u1&view=data")
        app.user.find("Show what goes").click()
        await settled(app, "5 memories with their history")
        app.user.find(kind=ui.input, content="User id").type("u1")
        app.keys.of = Caller("k", frozenset({Right.READ}))
        app.user.find("Forget everything").click()
        await settled(app, "does not permit forget")
        assert asked(app, "user_forget") == [{"dry_run": True}]

    people(story)


def test_a_memory_that_does_not_answer_says_so() -> None:
    """Given no answer, I expect the reason in words in place of the list."""

    async def story(app: ConsoleApp) -> None:
        app.memory.fails(RequestTimeout("no response"))
        await app.user.open("/console/people?user=u1")
        await settled(app, "No answer came in time")

    look(story)
