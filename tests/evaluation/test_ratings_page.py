"""The page as a rater uses it: opened from a file in headless Chromium, driven by Playwright."""

import csv
import os
import shutil

import pytest
from drawn_memory import draw_memory

from vimi_diffusers.evaluation import ratings


sync_api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
expect = sync_api.expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path")

PROMPTS = {"p1": "A fox in a park", "p2": 'A sea turtle, "swimming" </script><b>bold</b>'}


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    memory = draw_memory(tmp_path_factory.mktemp("drawn"))
    folder = tmp_path_factory.mktemp("export") / "out"
    found = {"first": memory.search_batch(list(PROMPTS.values()), 1)}
    return folder, ratings.export_ratings(memory, PROMPTS, found, folder)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        arguments = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # Chromium's sandbox does not start for root
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, export):
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    page = context.new_page()
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((export[0] / "rate.html").as_uri())
    yield page
    context.close()
    assert errors == [] and not [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]


def pressed(page):
    return page.locator("#scale button[aria-pressed=true]").evaluate_all("all => all.map((one) => one.value)")


def test_rating_by_keyboard_and_mouse_comes_back(page, export, tmp_path):
    folder, items = export
    assert len(items) == 3
    expect(page.locator("#prompt")).to_have_text(items[0].prompt)
    expect(page.locator("#text")).to_have_text(items[0].text)
    assert page.locator("#image").evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
    page.keyboard.press("4")
    expect(page.locator("#count")).to_have_text("2 of 3, 1 rated")
    page.get_by_role("button", name="2 a little").click()
    expect(page.locator("#count")).to_have_text("3 of 3, 2 rated")
    page.keyboard.press("ArrowLeft")
    assert pressed(page) == ["2"]
    page.keyboard.press("0")
    assert pressed(page) == []
    page.keyboard.press("ArrowLeft")
    page.get_by_role("button", name="Next without a rating").click()
    expect(page.locator("#count")).to_have_text("2 of 3, 1 rated")
    page.keyboard.press("5")
    page.reload()  # what was rated is kept
    expect(page.locator("#count")).to_have_text("1 of 3, 2 rated")
    assert pressed(page) == ["4"]

    page.get_by_role("button", name="Download ratings").click()
    expect(page.locator("#message")).to_have_text("Enter your name first.")
    page.keyboard.type('Zoë "3" O., 12')  # digits belong to the name now
    expect(page.locator("#count")).to_have_text("1 of 3, 2 rated")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download ratings").click()
    assert download.value.suggested_filename == "ratings-Zoë_3_O_12.csv"
    download.value.save_as(tmp_path / "ratings.csv")
    with open(tmp_path / "ratings.csv", newline="", encoding="utf-8") as stream:
        assert next(csv.reader(stream)) == ["id", "rater", "rating"]
    expected = {items[0].id: 4, items[1].id: 5}
    assert ratings.read_ratings(folder, [tmp_path / "ratings.csv"]) == {'Zoë "3" O., 12': expected}


def test_all_prompts_are_shown_to_the_letter(page, export):
    for item in export[1]:
        expect(page.locator("#prompt")).to_have_text(item.prompt)
        page.keyboard.press("3")
    expect(page.locator("#message")).to_contain_text("All rated")
    expect(page.get_by_role("button", name="Next without a rating")).to_be_disabled()


@pytest.mark.parametrize("size", [(1000, 900), (390, 844)])
def test_it_fits_the_screen(page, size, tmp_path):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(path=os.environ.get("VIMI_SCREENSHOT", tmp_path / "page.png"))
