"""The pages in a real browser, opened from disk."""

import shutil

import pytest
from reportpages import NASTY

BROWSERS = ("chromium", "chromium-headless-shell", "google-chrome")

pytestmark = pytest.mark.slow("it starts a browser, which takes seconds")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


@pytest.fixture
def shown(browser, written):
    """Opens a page of the report and scrolls through it; fails where it logs, raises or fetches anything."""
    said = []
    page = browser.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "blob:", "data:")) or said.append(request.url))

    def open_page(path):
        page.goto((written / path).as_uri())
        page.evaluate("document.querySelectorAll('.chart, .listing').forEach((each) => each.scrollIntoView())")
        for place in page.locator(".chart, .listing").all():
            place.scroll_into_view_if_needed()
            page.wait_for_timeout(200)
        page.wait_for_timeout(1500)
        return page

    yield open_page
    assert said == []


def test_all_charts_and_the_table_are_drawn(shown):
    page = shown("index.html")
    assert page.locator(".drawing svg").count() == page.locator(".chart").count() == 9
    assert page.locator(".listing tbody tr").count() == 14


def test_cells_are_found_by_a_word_and_a_link_leads_to_their_page(shown):
    page = shown("index.html")
    page.get_by_role("searchbox").first.fill("broken")
    (row,) = page.locator(".listing tbody tr").all()
    row.get_by_role("link").click()
    assert page.locator("h1").inner_text() == "digits:resnet20:broken:rtn:hw/w4a4:0"


def test_texts_of_rows_are_shown_as_they_are(shown):
    page = shown("cells/digits-resnet20-broken-rtn-hw-w4a4-0.html")
    assert " ".join(NASTY.split()) in page.locator("main").inner_text()
    assert page.locator("b").count() == 0


def test_a_number_in_the_table_leads_to_its_cell(shown):
    page = shown("index.html")
    page.locator("table.linked td a").first.click()
    assert page.locator("h2").first.inner_text() == "Result"
