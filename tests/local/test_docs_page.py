"""The page at /docs in a real browser, in front of `ordernumbers up`, as somebody new uses it."""

import json
import re
import shutil
from contextlib import contextmanager

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.support.databases import open_folder
from tests.support.stack import Up, local_settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
TIMEOUT_MS = 120_000
SEARCH, ORDERS = "/v1/phone-numbers/search", "/v1/phone-numbers/orders"
EXAMPLE = ["+14155550142", "+14155550143"]
NUMBERS = re.compile(r"\+1415555\d{4}")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture
def up():
    with open_folder() as folder, Up(local_settings(folder / ".data", workers=1), folder) as up:
        yield up.until_ready()


@pytest.fixture
def browser():
    with sync_playwright() as playwright:
        # It gets a new and empty profile.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS.split(), timeout=TIMEOUT_MS)
        yield browser
        browser.close()


class Reader:
    """Somebody at the page. `errors` are those of the browser's console, `foreign` the requests to other hosts."""

    def __init__(self, page, origin):
        self.page, self.errors, self.foreign = page, [], []
        page.on("console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: _is_local(request.url, origin) or self.foreign.append(request.url))
        page.context.route(lambda url: not _is_local(url, origin), lambda route: route.abort())

    def enter_key(self, key):
        self.page.get_by_role("main").get_by_label("Bearer Token").fill(key)

    @contextmanager
    def call(self, path):
        """Open the form of a POST call, and close it again. Yields the form."""
        self.page.locator(f'a[href$="/POST{path}"]').first.click()
        self.page.get_by_role("button", name=f"Test Request (post {path})").click()
        form = self.page.get_by_role("dialog", name="API Client")
        yield form
        form.get_by_role("button", name="Close Client").click()
        expect(form).to_be_hidden()


def _is_local(url, origin):
    return url.startswith((f"{origin}/", "data:", f"blob:{origin}/"))


def response_to(form, status):
    """Click on "Send", and return the response, as the page shows it."""
    form.get_by_role("button", name=re.compile("^Send post request to ")).click()
    response = form.get_by_role("region", name="Response")
    expect(response.get_by_role("link", name=status)).to_be_visible()
    return response


def test_somebody_new_searches_and_orders_and_sees_a_refusal(up, browser):
    (url,) = re.findall(r"http://\S+/docs", up.banner)
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    expect.set_options(timeout=TIMEOUT_MS)
    reader = Reader(page, up.rest_url)
    page.goto(url)
    expect(page.get_by_role("heading", name="OrderNumbers")).to_be_visible()

    with reader.call(SEARCH) as form:
        expect(response_to(form, "401 Unauthorized")).to_contain_text("authentication failed")
    key = (up.settings.data_dir / "demo.key").read_text().strip()
    reader.enter_key(key)
    with reader.call(SEARCH) as form:
        expect(response_to(form, "200 OK")).to_contain_text(NUMBERS)
    assert numbers_sold(up) == 0
    with reader.call(ORDERS) as form:
        sold = response_to(form, "200 OK")
        for number in EXAMPLE:
            expect(sold).to_contain_text(number)
        assert numbers_sold(up) == len(EXAMPLE)
        expect(response_to(form, "409 Conflict")).to_contain_text("INSUFFICIENT_INVENTORY")
    assert numbers_sold(up) == len(EXAMPLE)

    assert key not in page.evaluate("JSON.stringify([localStorage, sessionStorage])")
    assert page.evaluate("indexedDB.databases()") == []
    assert reader.foreign == []
    # The browser itself reports each response with such a status.
    refused = "Failed to load resource: the server responded with a status of"
    assert reader.errors == [f"{refused} 401 (Unauthorized)", f"{refused} 409 (Conflict)"]


def numbers_sold(up):
    ids = json.loads((up.settings.data_dir / "demo.json").read_text())
    return up.command("org", "show", ids["organization_id"])["numbers"]
