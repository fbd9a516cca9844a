"""Pages, opened in a browser that has no network."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
OPTIONS += ["--disable-sync", "--no-first-run"]


class Opened(NamedTuple):
    """A page in the browser, what its console says, and what it asked the network for."""

    page: Page
    problems: list[str]
    requests: list[str]


@contextmanager
def started() -> Iterator[Browser]:
    """The browser; without one, the test is skipped."""
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser, path: Path, width: int = 1200, scheme: Any = "light", local: bool = False
) -> Iterator[Opened]:
    """Open a page; with `local` it may load files beside it."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    context.set_offline(True)
    page, problems, requests = context.new_page(), list[str](), list[str]()

    def answer(route: Route) -> None:
        url = route.request.url
        if url == path.as_uri() or (local and url.startswith("file:")):
            route.continue_()
        else:
            requests.append(url)
            route.abort()

    def listen(message: ConsoleMessage) -> None:
        if message.type in ("warning", "error"):
            problems.append(message.text)

    page.on("console", listen)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.route("**/*", answer)
    page.goto(path.as_uri())
    yield Opened(page, problems, requests)
    context.close()


def words(browser: Browser, path: Path) -> str:
    """All that a page says without its charts, folded parts too."""
    page = browser.new_page(java_script_enabled=False)
    page.goto(path.as_uri())
    page.locator("summary").evaluate_all("all => all.forEach(each => { each.parentElement.open = true; })")
    text = " ".join(page.locator("body").inner_text().split())
    page.close()
    return text
