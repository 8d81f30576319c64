"""The example in examples/streaming, in a browser: words arrive once and in order, whatever becomes of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.browser import Browser
from tests.acceptance.processes import Launcher, free_port

SOURCE = Path(__file__).parents[2] / "examples" / "streaming"

WORDS = "return document.querySelector('#story').textContent.split(' ').filter(Boolean)"
COUNT = "document.querySelector('#story').textContent.split(' ').filter(Boolean).length"
DONE = "document.querySelector('#status').textContent === 'The end.'"


@pytest.fixture
def browser(launcher: Launcher, tmp_path: Path) -> Iterator[Browser]:
    folder = tmp_path / "browser"
    folder.mkdir()
    browser = Browser(launcher, folder)
    yield browser
    browser.close()


@pytest.fixture
def url(launcher: Launcher, tmp_path: Path) -> str:
    folder = tmp_path / "streaming"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
    port = free_port()
    command = ("celeriac", "dev", "main:app", "--port", str(port))
    process = launcher.start(command, cwd=folder, env={"WORD_SECONDS": "0.04"})
    process.wait_for_line(r"^celeriac \| http://127\.0\.0\.1:\d+ is up")
    process.wait_for_line(r"^worker   \| .* ready\.$")
    return f"http://127.0.0.1:{port}/"


def story(hero: str) -> list[str]:
    text = (SOURCE / "main.py").read_text().split('STORY = """')[1].split('"""')[0]
    return text.replace("{hero}", hero).split()


def begin(browser: Browser, url: str, hero: str = "Ada") -> None:
    browser.open(url)
    browser.run("document.querySelector('input').value = arguments[0]", hero)
    browser.run("document.querySelector('button').click()")


def test_a_reload_in_the_middle_loses_and_doubles_no_word(browser: Browser, url: str) -> None:
    begin(browser, url)
    for words in (5, 30, 60):
        browser.wait_for(f"{COUNT} >= {words}")
        assert not browser.run(f"return {DONE}")
        browser.reload()
    browser.wait_for(DONE)

    assert browser.run(WORDS) == story("Ada")

    browser.reload()
    browser.wait_for(DONE)
    assert browser.run(WORDS) == story("Ada")


def test_two_tabs_see_the_same_story(browser: Browser, url: str) -> None:
    first = browser.tab()
    begin(browser, url, "Alan")
    browser.wait_for(f"{COUNT} >= 10")
    address = browser.run("return location.href")
    second = browser.new_tab()
    browser.open(address)

    for tab in (second, first):
        browser.go_to_tab(tab)
        browser.wait_for(DONE)
        assert browser.run(WORDS) == story("Alan")


def test_a_story_that_nobody_knows_says_so(browser: Browser, url: str) -> None:
    browser.open(f"{url}#nothing")

    browser.wait_for("document.querySelector('#status').textContent === 'Nobody knows this story.'")
    assert browser.run("return document.querySelector('#story').ariaBusy") == "false"
