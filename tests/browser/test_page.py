"""The committed page, docs/index.html, in Chromium: `make browser`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (1100, 768, 360)
SCREENSHOTS = ROOT / "reports" / "latest" / "page"
PLOT = 270  # pixels: least width of a plot, whose text is small
WAIT = 120_000  # milliseconds, for a busy machine
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
pytestmark = pytest.mark.timeout(600)
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    packages = ("playwright", "axe_playwright_python")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    missing += [] if program else ["chromium"]
    if missing:
        reason = f"{', '.join(missing)} is missing: make browser installs it"
        # -m browser asks for these tests: green means that they ran
        ask = pytest.fail if "browser" in request.config.getoption("-m") else pytest.skip
        ask(reason)
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has no sandbox
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=options, timeout=WAIT)
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """opened(width, path, scheme, anchor): the page, with its messages in `page.messages`."""
    contexts = []

    def open_page(
        width: int = 1100, path: Path = DOCS / "index.html", scheme: str = "light", anchor: str = ""
    ) -> Any:
        contexts.append(
            browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
            )
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.messages, page.requested = [], []
        page.on("console", lambda message: page.messages.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: page.messages.append(f"error: {error}"))
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(path.as_uri() + anchor)
        return page

    yield open_page
    for context in contexts:
        context.close()


def findings(page: Any, folder: Path) -> list[str]:
    """A line for each fault: messages, requests, pictures, links, widths, accessibility."""
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate(
        """async () => {
        document.querySelectorAll("details").forEach((part) => { part.open = true; });
        const images = [...document.images];
        images.forEach((image) => { image.loading = "eager"; });
        await Promise.allSettled(images.map((image) => image.decode()));
        }"""
    )
    found = list(page.messages)
    found += [f"request: {url}" for url in page.requested if not url.startswith(("file:", "data:"))]
    found += page.evaluate(
        """() => [...document.images].filter((image) => !image.naturalWidth)
        .map((image) => "broken picture: " + image.getAttribute("src"))"""
    )
    ids = set(page.evaluate("[...document.querySelectorAll('[id]')].map((part) => part.id)"))
    for link in page.evaluate("[...document.links].map((link) => link.getAttribute('href'))"):
        there = (
            link[1:] in ids
            if link.startswith("#")
            else (folder / urllib.parse.unquote(link)).is_file()
        )
        found += [] if there else [f"broken link: {link}"]
    found += page.evaluate(
        """(least) => [...document.querySelectorAll(".plot img")]
        .filter((image) => image.getBoundingClientRect().width < least)
        .map((image) => "small plot: " + image.getAttribute("src"))""",
        PLOT,
    )
    width = page.viewport_size["width"]
    if (needs := page.evaluate("document.documentElement.scrollWidth")) > width:
        found.append(f"sideways: {needs} pixels in {width}")
    found += page.evaluate(  # a part that scrolls sideways says so in the text above its content
        """() => [...document.querySelectorAll("main *")]
        .filter((part) => part.scrollWidth > part.clientWidth
            && ["auto", "scroll"].includes(getComputedStyle(part).overflowX)
            && !getComputedStyle(part, "::before").content.includes("sideways"))
        .map((part) => "scrolls without a word: " + part.outerHTML.slice(0, 80))"""
    )
    result = Axe().run(page).response
    for rule in result["violations"]:
        if rule["impact"] in ("serious", "critical"):
            where = rule["nodes"][0]["target"]
            found.append(f"axe: {rule['id']} at {where}, {len(rule['nodes'])} places")
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_has_no_finding(opened: Open, width: int, scheme: str) -> None:
    page = opened(width, scheme=scheme)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{width}-{scheme}.png")
    assert findings(page, DOCS) == []


@pytest.mark.parametrize(
    ("before", "after", "finding"),
    [
        ("</main>", "</main><img src=nothing.png alt=nothing>", "broken picture: nothing.png"),
        ("</main>", f"</main><p class=plot><img src='{PIXEL}' alt=a></p>", "small plot: data:"),
        ("</main>", "</main><a href=nothing.html>a link</a>", "broken link: nothing.html"),
        ("</main>", "</main><a href='#nothing'>a link</a>", "broken link: #nothing"),
        ("</main>", "</main><script>console.warn('hello')</script>", "console: hello"),
        ("</main>", "</main><script>nothing()</script>", "error: nothing is not defined"),
        ("</main>", "</main><div style='width: 400px'>wide</div>", "sideways: 4"),
        ('toggle("scrolls"', 'toggle("other"', "scrolls without a word: <div"),
        ("</main>", "</main><img src='https://example.org/a.png' alt=a>", "request: https:"),
        ("</main>", "</main><p style='color: #ccc'>pale</p>", "axe: color-contrast"),
        ('<html lang="en">', "<html>", "axe: html-has-lang"),
    ],
)
def test_planted_fault_is_found(
    opened: Open, tmp_path: Path, before: str, after: str, finding: str
) -> None:
    text = (DOCS / "index.html").read_text("utf-8")
    assert before in text, "the planted fault has nothing to replace"
    # one answer is enough, and takes less time
    start, end = text.index('<section class=lab id="tme7"'), text.index("<section id=undecided>")
    short = text[:start] + text[end:]
    (tmp_path / "index.html").write_text(short.replace(before, after), "utf-8")
    page = opened(360, tmp_path / "index.html")
    found = [line for line in findings(page, tmp_path) if line.startswith(finding)]
    assert found, findings(page, tmp_path)


def visible_checks(page: Any) -> int:
    return int(page.evaluate("document.querySelectorAll('.record:not([hidden])').length"))


def test_words_and_choices_hide_other_checks(opened: Open) -> None:
    page = opened()
    every = visible_checks(page)
    page.fill("input[type=search]", "tarentules")
    some = visible_checks(page)
    assert 0 < some < every / 4
    texts = page.locator(".answer:not([hidden])").all_text_contents()
    assert all("tarentules" in text for text in texts)
    page.fill("input[type=search]", "RESEAU DE NEURONES")  # without the accent
    assert visible_checks(page) > 0
    page.fill("input[type=search]", "no such word")
    assert visible_checks(page) == 0
    assert page.locator("form output").text_content() == f"0 of {every} checks shown"
    page.fill("input[type=search]", "")
    for state in page.locator("select[name=sentence] option").all_text_contents()[1:]:
        page.select_option("select[name=sentence]", state)
        here = page.locator(f".record[data-sentence='{state}']").count()
        assert visible_checks(page) == here, state
    page.select_option("select[name=sentence]", "")
    assert visible_checks(page) == every


def in_view(page: Any, anchor: str) -> bool:
    """Whether the top of an element lies in the window."""
    return bool(
        page.evaluate(
            """(id) => { const box = document.getElementById(id).getBoundingClientRect();
            return box.height > 0 && box.top >= -1 && box.top < innerHeight; }""",
            anchor,
        )
    )


def test_deep_links_show_what_filters_hide(opened: Open) -> None:
    page = opened(anchor="#tme9-q3-saturating-claim")
    assert in_view(page, "tme9-q3-saturating-claim")
    assert not in_view(page, "matrix")
    page.fill("input[type=search]", "no such word")
    page.locator("a.cell").first.click()
    page.wait_for_function("document.querySelectorAll('.record:not([hidden])').length > 9")
    assert in_view(page, page.locator("a.cell").first.get_attribute("href")[1:])


def test_keys_reach_everything(opened: Open) -> None:
    page = opened()
    focused = "document.activeElement.className || document.activeElement.name"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#answers"
    page.keyboard.press("/")
    assert page.evaluate(focused) == "words"
    page.keyboard.type("a/b")
    assert page.input_value("input[type=search]") == "a/b"
    page.fill("input[type=search]", "")
    for name in ("lab", "sentence", "check"):
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == name
    fold = page.locator("details:not(.cases) > summary").first
    fold.focus()
    page.keyboard.press("Enter")
    assert fold.evaluate("(summary) => summary.parentElement.open")


def test_pictures_out_of_sight_are_not_read_at_first(opened: Open) -> None:
    page = opened(360)
    read = [url for url in page.requested if "/pictures/" in url]
    assert len(read) < page.evaluate("document.images.length") / 4
