"""A browser, and somebody at the page /docs in it."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Locator, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
TIMEOUT_MS = 120_000
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser with a new and empty profile."""
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS.split(), timeout=TIMEOUT_MS)
        yield browser
        browser.close()


class Reader:
    """Somebody at the page. `errors` are those of the browser's console, `foreign` the requests to other hosts."""

    def __init__(self, browser: Browser, url: str) -> None:
        page = self.page = browser.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        self.errors: list[str] = []
        self.foreign: list[str] = []
        origin = url.removesuffix("/docs")
        page.on("console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: _is_local(request.url, origin) or self.foreign.append(request.url))
        page.context.route(lambda url: not _is_local(url, origin), lambda route: route.abort())
        page.goto(url)
        expect(page.get_by_role("heading", name="OrderNumbers")).to_be_visible()

    def enter_key(self, key: str) -> None:
        self.page.get_by_role("main").get_by_label("Bearer Token").fill(key)

    @contextmanager
    def call(self, path: str) -> Iterator[Locator]:
        """Open the form of a POST call, and close it again. Yields the form."""
        self.page.locator(f'a[href$="/POST{path}"]').first.click()
        self.page.get_by_role("button", name=f"Test Request (post {path})").click()
        form = self.page.get_by_role("dialog", name="API Client")
        yield form
        form.get_by_role("button", name="Close Client").click()
        expect(form).to_be_hidden()


def _is_local(url: str, origin: str) -> bool:
    return url.startswith((f"{origin}/", "data:", f"blob:{origin}/"))


def response_to(form: Locator, status: str) -> Locator:
    """Click on "Send", and return the response, as the page shows it."""
    form.get_by_role("button", name=re.compile("^Send post request to ")).click()
    response = form.get_by_role("region", name="Response")
    expect(response.get_by_role("link", name=status)).to_be_visible()
    return response


def docs_url(banner: str) -> str:
    """The address of the page, as the banner of `ordernumbers up` has it."""
    (url,) = re.findall(r"http://\S+/docs", banner)
    return url
