"""The report as a person sees it: in headless Chromium, from files alone."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vimi_diffusers.evaluation.generation import write_lossless
from vimi_diffusers.evaluation.protocols import load_protocol
from vimi_diffusers.evaluation.report import write_comparison, write_report
from vimi_diffusers.evaluation.results import EvaluationResult, MetricValue, ShownSample, compare_results


sync_api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path")

WIDTHS = {"desktop": 1280, "phone": 390}


def result_in(folder: Path, name: str, shift: float) -> Path:
    """A result with made-up figures and drawn videos."""
    protocol = load_protocol("emoji_world")
    shown = []
    (folder / "samples").mkdir(parents=True)
    for number, colour in enumerate(((220, 90, 40), (60, 120, 220), (40, 160, 90), (200, 170, 30), (150, 60, 170))):
        frames = np.full((16, 64, 64, 3), 235, dtype=np.uint8)
        for place, frame in enumerate(frames):
            frame[24:40, 3 * place : 3 * place + 16] = colour
        write_lossless(frames, folder / f"samples/{number}.mp4", 16 / 3)
        prompt = f"Subject {number} moves to the right on a grassy park, which is not a short prompt at all"
        shown.append(ShownSample(f"s{number}", prompt, f"samples/{number}.mp4", 7, False, {"ssim": 0.4}))
    metrics = (
        MetricValue(
            "colour_top_1", "64x64", 0.4 + shift, 60, "higher", (0.28 + shift, 0.53 + shift), 0.03, 0.7, 0.017
        ),
        MetricValue("first_frame_psnr", "64x64", 21.4 + 10 * shift, 89, "higher", (20.8, 22.9), 11.2),
        MetricValue("fvd", "64x64", 310 - 400 * shift, 89, "lower", extractor="i3d", note="89 real samples"),
        MetricValue("temporal_consistency", "64x64", 0.97, 89, "higher", (0.96, 0.98), ceiling=0.985),
    )
    result = EvaluationResult(
        protocol=protocol.to_dict(),
        protocol_sha256=protocol.sha256,
        changed={"sampling.num_inference_steps": {"protocol": 16, "here": 8}},
        metrics=metrics,
        samples={"planned": 327, "controls": 149, "measured": 475},
        skipped={"generated/samples/subject-003.mp4": "the file is missing"},
        model=name,
        weights={"transformer": "d9ee6f63622edddc7bd64de95e29f59769b9241100adb4d78bdc978b555ff134"},
        versions={"vimi_diffusers": "0.1", "torch": "2.13"},
        settings={"device": "cpu", "data": {"world": "data/emoji_world"}},
        not_comparable_with=protocol.not_comparable_with,
        shown=tuple(shown),
    )
    result.save(folder)
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report and a comparison."""
    root = tmp_path_factory.mktemp("reports")
    a, b = result_in(root / "a", "first weights", 0.0), result_in(root / "b", "other weights", 0.05)
    differences = compare_results(EvaluationResult.load(a), EvaluationResult.load(b))
    return {"report": write_report(a), "comparison": write_comparison(a, b, differences, root / "both")}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        arguments = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
        if os.geteuid() == 0:
            arguments.append("--no-sandbox")  # Chromium's sandbox does not start for root
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_page_is_whole(browser, pages, tmp_path, name, width):
    """`VIMI_SCREENSHOTS=folder pytest ...` keeps the pictures."""
    tab = browser.new_page(viewport={"width": WIDTHS[width], "height": 900})
    asked, errors = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("requestfailed", lambda request: errors.append(f"{request.url} {request.failure}"))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(pages[name].as_uri())
    videos = tab.locator("video")
    assert videos.count() == (5 if name == "report" else 10)
    tab.wait_for_function(
        "() => [...document.querySelectorAll('video')].every(v => v.readyState >= 2 && v.videoWidth > 0)"
    )
    assert tab.locator("#figures tr").count() == 5
    assert tab.locator(".plots svg").count() == 4
    assert tab.locator(".not-comparable li").count() == 3
    assert all(url.startswith("file://") for url in asked)
    assert not [one for one in errors if "ERR_ABORTED" not in one]  # a video's first request is cut short
    videos.first.scroll_into_view_if_needed()  # Chromium plays what is in view
    tab.wait_for_function("() => !document.querySelector('video').paused")
    videos.first.click()
    assert videos.first.evaluate("video => video.paused")
    # nothing wider than the window but tables, which scroll for themselves
    assert tab.evaluate("() => document.documentElement.scrollWidth") <= WIDTHS[width]
    folder = Path(os.environ.get("VIMI_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{width}.png"
    tab.screenshot(path=path, full_page=True)
    assert Image.open(path).width == WIDTHS[width]
    tab.close()


def test_a_result_with_one_value_has_a_plot(tmp_path):
    folder = result_in(tmp_path / "a", "first", 0.0)
    result = EvaluationResult.load(folder)
    zero = dataclasses.replace(result.metrics[2], value=0.0)
    dataclasses.replace(result, metrics=(zero,), shown=()).save(folder)
    page = write_report(folder).read_text()
    assert page.count("<svg") == 1 and "nan" not in page.lower().split("<h2>plots")[1].split("<h2>")[0]
