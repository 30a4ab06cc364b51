"""The page at /docs in a real browser, in front of `ordernumbers up`, as somebody new uses it."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.support.browser import Reader, docs_url, needs_chromium, response_to, running_browser
from tests.support.databases import open_folder
from tests.support.stack import Up, local_settings

SEARCH, ORDERS = "/v1/phone-numbers/search", "/v1/phone-numbers/orders"
EXAMPLE = ["+14155550142", "+14155550143"]
NUMBERS = re.compile(r"\+1415555\d{4}")

pytestmark = needs_chromium


@pytest.fixture
def up():
    with open_folder() as folder, Up(local_settings(folder / ".data", workers=1), folder) as up:
        yield up.until_ready()


@pytest.fixture
def browser():
    with running_browser() as browser:
        yield browser


def test_somebody_new_searches_and_orders_and_sees_a_refusal(up, browser):
    reader = Reader(browser, docs_url(up.banner))
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

    assert key not in reader.page.evaluate("JSON.stringify([localStorage, sessionStorage])")
    assert reader.page.evaluate("indexedDB.databases()") == []
    assert reader.foreign == []
    # The browser itself reports each response with such a status.
    refused = "Failed to load resource: the server responded with a status of"
    assert reader.errors == [f"{refused} 401 (Unauthorized)", f"{refused} 409 (Conflict)"]


def numbers_sold(up):
    ids = json.loads((up.settings.data_dir / "demo.json").read_text())
    return up.command("org", "show", ids["organization_id"])["numbers"]
