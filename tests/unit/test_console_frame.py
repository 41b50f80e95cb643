"""The frame of the console's pages: navigation, language, theme and the switch for contents."""

from __future__ import annotations

from tests.unit.console_app import ConsoleApp, look


def test_every_page_has_the_navigation_in_the_language_of_the_browser() -> None:
    """Given a browser that prefers Chinese, I expect the names of the pages in Chinese."""

    async def story(app: ConsoleApp) -> None:
        app.http.headers["accept-language"] = "zh-CN,zh;q=0.9,en;q=0.8"
        await app.user.open("/console/")
        await app.user.should_see("用户")
        await app.user.should_not_see("People")

    look(story)


def test_a_turn_is_reached_from_every_page() -> None:
    """Given an id from a log and any page, I expect the navigation to lead to the page that takes the id."""

    async def story(app: ConsoleApp) -> None:
        assert "/console/turn" in (await app.http.get("/console/settings")).text

    look(story)
