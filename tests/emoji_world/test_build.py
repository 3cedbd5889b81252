import hashlib
import json
import os
from pathlib import Path

import pytest
import typer
from PIL import Image
from source_tree import pin, write_source_tree
from typer.testing import CliRunner

from vimi_diffusers.cli import emoji_world as cli
from vimi_diffusers.emoji_world import build, places, sources
from vimi_diffusers.emoji_world.build import build_emoji_world
from vimi_diffusers.emoji_world.sources import SourceError


SIZE = 16


@pytest.fixture(scope="module")
def npm_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("npm")
    return folder, write_source_tree(folder)


@pytest.fixture
def small_world(npm_dir, monkeypatch):
    """Folder of the small packages, which the build takes for the real ones."""
    folder, packages = npm_dir
    monkeypatch.setattr(sources, "PACKAGES", packages)
    monkeypatch.setattr(build, "EXPECTED_COUNTS", {})
    panoramas = tuple(place for place in places.PANORAMAS if place.name in ("park", "dawn"))
    monkeypatch.setattr(build, "PANORAMAS", panoramas)
    return folder


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tables_join_across_spellings(small_world, tmp_path):
    build_emoji_world(tmp_path / "out", SIZE, npm_dir=small_world)
    rows = {row["concept"]: row for row in read_lines(tmp_path / "out/concepts.jsonl")}
    assert rows["1f98a"] == {
        "concept": "1f98a",
        "label": "fox",
        "phrase": "a fox",
        "plural": False,
        "keywords": ["animal", "face", "fox face", "red dog"],
        "group": "animals-nature",
        "subgroup": "animal-mammal",
        "key": "fox",
        "split": "train",
        "styles": ["noto", "twemoji", "flat", "fluent3d"],
        "clip": True,
    }
    assert rows["2764"]["styles"] == ["noto", "twemoji", "flat", "fluent3d"] and not rows["2764"]["clip"]
    assert rows["2764"]["keywords"] == ["love", "valentines day"]
    assert rows["1f469-200d-1f373"]["styles"] == ["twemoji"]
    assert rows["1f415"]["split"] == "held_out" and rows["1f415"]["styles"] == ["noto", "twemoji", "fluent3d"]


def test_memory_and_pictures(small_world, tmp_path):
    manifest = build_emoji_world(tmp_path / "out", SIZE, npm_dir=small_world)
    memory = tmp_path / "out/memory"
    pairs = {row["id"]: row for row in read_lines(memory / "metadata.jsonl")}
    assert len(pairs) == 12 + 2 * 6
    assert pairs["noto/1f98a"] == {
        "id": "noto/1f98a",
        "file_name": "noto/1f98a.webp",
        "text": "A fox",
        "keywords": "animal face fox face red dog",
        "kind": "subject",
        "concept": "1f98a",
        "style": "noto",
        "yaw": None,
        "split": "train",
    }
    view = pairs["place/dawn@60"]
    assert (view["text"], view["yaw"], view["style"], view["split"]) == (
        "A rocky desert at dawn",
        60,
        None,
        "held_out",
    )
    for row in pairs.values():
        with Image.open(memory / row["file_name"]) as image:
            assert image.size == (SIZE, SIZE)
            assert image.mode == ("RGB" if row["kind"] == "place" else "RGBA")
    with Image.open(tmp_path / "out/clips/1f98a.webp") as strip:
        assert (strip.mode, strip.size) == ("RGBA", (SIZE, 16 * SIZE))
    assert sorted(os.listdir(tmp_path / "out/clips")) == ["1f415.webp", "1f98a.webp"]
    with Image.open(tmp_path / "out/places/park.webp") as panorama:
        assert panorama.size == (512, 256)
    assert manifest["counts"]["held_out_pairs"] == 3 and manifest["counts"]["held_out_clips"] == 1


def test_manifest_names_every_file(small_world, tmp_path):
    manifest = build_emoji_world(tmp_path / "out", SIZE, npm_dir=small_world)
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == manifest
    files = read_tree(tmp_path / "out")
    del files["manifest.json"]
    assert [entry["path"] for entry in manifest["files"]] == sorted(files)
    for entry in manifest["files"]:
        data = files[entry["path"]]
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert entry["licence"] and entry["source"]
    by_path = {entry["path"]: entry for entry in manifest["files"]}
    assert by_path["memory/twemoji/1f98a.webp"]["licence"] == "CC-BY-4.0"
    assert by_path["clips/1f415.webp"]["source"] == "@lobehub/fluent-emoji-anim-2@1.0.0"
    assert [source["package"] for source in manifest["sources"]] == [package.name for package in sources.PACKAGES]


def test_building_again_gives_the_same_bytes(small_world, tmp_path):
    (tmp_path / "second").mkdir()  # an empty folder may be there
    build_emoji_world(tmp_path / "first", SIZE, npm_dir=small_world)
    build_emoji_world(tmp_path / "second", SIZE, npm_dir=small_world)
    assert read_tree(tmp_path / "first") == read_tree(tmp_path / "second")


def test_progress_ends_at_its_steps(small_world, tmp_path):
    last = {}
    build_emoji_world(
        tmp_path / "out",
        SIZE,
        npm_dir=small_world,
        report=lambda stage, done, steps: last.update({stage: (done, steps)}),
    )
    assert "Drawing" in last and all(done == steps > 0 for done, steps in last.values())


@pytest.mark.parametrize("size", [0, 15, 257])
def test_sizes_out_of_range_are_refused(tmp_path, size):
    with pytest.raises(ValueError, match=f"size is {size}, but must be from 16 to 256"):
        build_emoji_world(tmp_path / "out", size)


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        build_emoji_world(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_wrong_counts_are_named(small_world, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "EXPECTED_COUNTS", {"clips": 734})
    with pytest.raises(SourceError, match="clips 2 instead of 734"):
        build_emoji_world(tmp_path / "out", SIZE, npm_dir=small_world)
    assert not (tmp_path / "out").exists()


def test_a_broken_picture_leaves_no_folder(tmp_path, small_world, monkeypatch):
    broken = tmp_path / "npm"
    write_source_tree(broken)
    picture = broken / "node_modules/@lobehub/fluent-emoji-3d/assets/1f415.webp"
    picture.write_bytes(picture.read_bytes()[:30])
    monkeypatch.setattr(sources, "PACKAGES", pin(broken))
    with pytest.raises(SourceError, match="fluent-emoji-3d/assets/1f415.webp is not a readable picture"):
        build_emoji_world(tmp_path / "out", SIZE, npm_dir=broken)
    assert os.listdir(tmp_path) == ["npm"]


def test_photos_are_added_on_request(tmp_path, small_world, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    for place in places.PHOTOS:
        Image.new("RGB", (800, 600), (10, 200, 30)).save(folder / place.file)
    monkeypatch.setattr(sources, "provide_photos", lambda report: folder)
    manifest = build_emoji_world(tmp_path / "out", SIZE, photos=True, npm_dir=small_world)
    assert manifest["counts"]["places"] == 7 and manifest["counts"]["held_out_places"] == 2
    with Image.open(tmp_path / "out/places/life.webp") as photo:
        assert photo.size == (384, 288)
    with Image.open(tmp_path / "out/memory/place/life.webp") as photo:
        assert photo.size == (SIZE, SIZE)
    licences = {entry["path"]: entry["licence"] for entry in manifest["files"]}
    assert licences["places/life.webp"] == "CC-BY-4.0" and licences["places/seeding.webp"] == "CC0-1.0"
    assert manifest["sources"][-1]["package"] == "lomiri-wallpapers-16.04"


@pytest.fixture
def run():
    app = typer.Typer()
    app.add_typer(cli.app, name="emoji-world")
    return lambda *arguments: CliRunner().invoke(app, ["emoji-world", *map(str, arguments)])


def test_command_builds(run, small_world, tmp_path):
    result = run("build", tmp_path / "out", "--size", 24, "--npm-dir", small_world)
    assert result.exit_code == 0, result.output
    assert "4 concepts, 12 pairs, 2 clips, 2 places" in result.output
    assert json.loads((tmp_path / "out/manifest.json").read_text())["size"] == 24


def test_command_reports_one_error(run, small_world, tmp_path, monkeypatch):
    changed = tuple(
        package if package.name != "emojilib" else build.sources.Package(**{**vars(package), "sha256": "0" * 64})
        for package in sources.PACKAGES
    )
    monkeypatch.setattr(sources, "PACKAGES", changed)
    result = run("build", tmp_path / "out", "--npm-dir", small_world)
    assert result.exit_code == 1
    assert result.output.count("Error: the content of package emojilib@4.0.3 has changed") == 1
    assert "Traceback" not in result.output and not (tmp_path / "out").exists()


def installed_packages() -> Path | None:
    folder = Path(os.environ.get("VIMI_NPM_DIR") or sources.cache_dir() / "npm")
    return folder if (folder / "node_modules").is_dir() else None


@pytest.mark.slow
@pytest.mark.skipif(installed_packages() is None, reason="needs the npm packages: build once, or set VIMI_NPM_DIR")
def test_the_real_packages_give_the_known_world(tmp_path):
    counts = build_emoji_world(tmp_path / "out", 32, npm_dir=installed_packages())["counts"]
    assert {name: counts[name] for name in ("concepts", "pairs", "clips", "groups", "held_out_groups")} == {
        "concepts": 1923,
        "pairs": 7012,
        "clips": 734,
        "groups": 248,
        "held_out_groups": 36,
    }
    assert (counts["held_out_concepts"], counts["held_out_pairs"], counts["held_out_clips"]) == (138, 548, 89)
    rows = read_lines(tmp_path / "out/concepts.jsonl")
    sides = {}
    for row in rows:
        sides.setdefault(row["key"], set()).add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    phrases = [row["phrase"] for row in rows]
    assert len(set(phrases)) == len(phrases)
