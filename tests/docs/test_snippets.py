"""The Python of README and documentation runs as it stands, on the tiny pipeline and a drawn memory."""

import re
from pathlib import Path

import pytest
from drawn_memory import draw_memory


ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
PAGES = [
    page.relative_to(ROOT)
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if BLOCK.search(page.read_text("utf-8"))
]


def test_the_pages_have_snippets():
    assert {"README.md", "docs/quicktour.md", "docs/retrieval.md"} <= set(map(str, PAGES))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_snippets_run_in_order(page, tiny_checkpoint, tmp_path, monkeypatch):
    import vimi_diffusers

    pictures = tmp_path / "memory pictures"
    pictures.mkdir()
    draw_memory(pictures).save(tmp_path / "memory")
    monkeypatch.setattr(vimi_diffusers, "default_checkpoint", lambda: tiny_checkpoint)
    monkeypatch.setattr(vimi_diffusers, "default_memory_path", lambda: tmp_path / "memory")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text("utf-8")
    namespace = {}
    for block in BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(ROOT / page), "exec"), namespace)
