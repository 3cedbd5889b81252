"""The demo as a person sees it: opened in headless Chromium on loopback, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
from PIL import Image


gr = pytest.importorskip("gradio", reason="the demo needs the extra `demo`")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
expect = sync_api.expect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path")

VIDEO_PLAYS = """() => {
    const video = document.querySelector("#video video");
    return video && video.readyState >= 2 && video.videoWidth > 0;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        arguments = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # Chromium's sandbox does not start for root
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tiny_url(pipeline, memory) -> Iterator[str]:
    from vimi_diffusers.demo import build_demo, launch

    page = build_demo(pipeline, memory, title="tiny")
    launch(page, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield page.local_url
    page.close()


@pytest.fixture
def tab(browser, tiny_url) -> Iterator["sync_api.Page"]:
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    page.goto(tiny_url)
    page.get_by_role("tab", name="Text to video").wait_for()
    yield page
    page.close()


def prompt_of(page: "sync_api.Page") -> "sync_api.Locator":
    return page.locator("textarea").filter(visible=True)


def set_steps(page: "sync_api.Page", steps: int) -> None:
    page.get_by_label("number input for Steps").fill(str(steps))


def wait_for_video(page: "sync_api.Page", seconds: float) -> None:
    page.wait_for_function(VIDEO_PLAYS, timeout=1000 * seconds)
    page.wait_for_function("() => document.querySelector('#strip img')?.naturalWidth > 0", timeout=10_000)


def screenshot(page: "sync_api.Page", path: Path) -> None:
    page.screenshot(path=path, full_page=True)
    width, height = Image.open(path).size
    assert width >= 1400 and height >= 800


def test_an_example_becomes_a_video(tab, tmp_path):
    elsewhere = []
    tab.on("request", lambda request: elsewhere.append(request.url) if is_elsewhere(request.url) else None)
    tab.get_by_role("button", name="A sea turtle glides through a park").click()
    expect(prompt_of(tab)).to_have_value("A sea turtle glides through a park")
    set_steps(tab, 2)
    tab.locator("#generate-text_to_video").click()
    wait_for_video(tab, 60)
    expect(tab.locator("#seen .caption-label")).to_have_text(["A sea turtle", "A grassy park"])
    screenshot(tab, tmp_path / "text-to-video.png")
    assert elsewhere == []


def is_elsewhere(url: str) -> bool:
    return urlparse(url).scheme in ("http", "https") and urlparse(url).hostname != "127.0.0.1"


def test_uploaded_pictures_become_subjects(tab, pictures, tmp_path):
    tab.get_by_role("tab", name="Subject").click()
    prompt_of(tab).fill("A <image_1> on <image_2>")
    tab.locator("#images input[type=file]").set_input_files(pictures)
    tab.wait_for_function("() => document.querySelectorAll('#images img').length >= 2")
    set_steps(tab, 2)
    tab.locator("#generate-subject").click()
    wait_for_video(tab, 60)
    expect(tab.locator("#seen .caption-label")).to_have_text(["<image_1>", "<image_2>"])
    screenshot(tab, tmp_path / "subject.png")


def test_a_first_frame_is_continued(tab, pictures, tmp_path):
    tab.get_by_role("tab", name="Prediction").click()
    prompt_of(tab).fill("It moves to the right")
    tab.locator("#first-frame input[type=file]").set_input_files(pictures[0])
    tab.wait_for_function("() => document.querySelector('#first-frame img')?.naturalWidth > 0")
    set_steps(tab, 2)
    tab.locator("#generate-prediction").click()
    wait_for_video(tab, 60)
    screenshot(tab, tmp_path / "prediction.png")


def test_an_error_is_shown_with_its_tag(tab, tmp_path):
    tab.get_by_role("tab", name="Subject").click()
    prompt_of(tab).fill("A <image_1> falls")
    tab.locator("#generate-subject").click()
    toast = tab.get_by_test_id("toast-body")
    toast.wait_for(timeout=30_000)
    expect(toast).to_contain_text("Tag <image_1> has no image")
    tab.wait_for_timeout(500)  # it fades in
    screenshot(tab, tmp_path / "error.png")


@pytest.mark.slow
def test_the_embedded_default(browser, tmp_path):
    """Also what makes the picture of the documentation: `VIMI_SCREENSHOT=docs/images/demo.png pytest -m slow ...`."""
    from vimi_diffusers.demo import launch, load_demo

    served = load_demo(device="cpu")
    launch(served, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    page = browser.new_page(viewport={"width": 1400, "height": 1100})
    try:
        page.goto(served.local_url)
        page.get_by_role("button", name="A sea turtle glides through a park").click()
        expect(prompt_of(page)).to_have_value("A sea turtle glides through a park")
        page.locator("#generate-text_to_video").click()
        wait_for_video(page, 300)
        screenshot(page, Path(os.environ.get("VIMI_SCREENSHOT", tmp_path / "demo.png")))
    finally:
        page.close()
        served.close()
