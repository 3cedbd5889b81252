import dataclasses
import os
import stat
from pathlib import Path

import pytest

from vimi_diffusers.emoji_world import sources
from vimi_diffusers.emoji_world.sources import Package, SourceError


PACKAGE = Package("@maker/drawings", "1.2.3", "MIT", ("assets/*.webp",), "", "Copyright a maker")


def quiet(stage, done, steps):
    pass


@pytest.fixture
def npm_dir(tmp_path):
    folder = tmp_path / "npm/node_modules/@maker/drawings"
    (folder / "assets").mkdir(parents=True)
    (folder / "package.json").write_text('{"version": "1.2.3"}')
    (folder / "assets/a.webp").write_bytes(b"a")
    (folder / "assets/b.webp").write_bytes(b"b")
    return tmp_path / "npm"


@pytest.fixture
def package(npm_dir):
    digest = sources.content_digest(npm_dir / "node_modules" / PACKAGE.name, PACKAGE.files)
    return dataclasses.replace(PACKAGE, sha256=digest)


def write_tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_pinned_package_passes(npm_dir, package):
    assert sources.verify_package(package, npm_dir) == npm_dir / "node_modules/@maker/drawings"


def test_files_that_are_not_used_may_change(npm_dir, package):
    (npm_dir / "node_modules/@maker/drawings/README.md").write_text("new")
    sources.verify_package(package, npm_dir)


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename"])
def test_changed_content_is_named(npm_dir, package, change):
    assets = npm_dir / "node_modules/@maker/drawings/assets"
    if change == "edit":
        (assets / "a.webp").write_bytes(b"A")
    elif change == "add":
        (assets / "c.webp").write_bytes(b"")
    elif change == "remove":
        (assets / "b.webp").unlink()
    else:
        (assets / "b.webp").rename(assets / "c.webp")
    message = r"content of package @maker/drawings@1\.2\.3 has changed: .*remove .*drawings .*run `npm install"
    with pytest.raises(SourceError, match=message):
        sources.verify_package(package, npm_dir)


def test_another_version_is_named(npm_dir, package):
    (npm_dir / "node_modules/@maker/drawings/package.json").write_text('{"version": "2.0.0"}')
    with pytest.raises(SourceError, match=r"@maker/drawings has version 2\.0\.0, but 1\.2\.3 is pinned"):
        sources.verify_package(package, npm_dir)


def test_a_package_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"package @maker/drawings@1\.2\.3 is not installed in"):
        sources.verify_package(PACKAGE, tmp_path)


def test_missing_npm(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="npm was not found: .*install Node.js"):
        sources.provide_packages(None, quiet)
    assert not sources.cache_dir().exists()


FAKE_NPM = """
for pin; do case "$pin" in @maker/drawings@1.2.3) asked=yes;; --ignore-scripts) safe=yes;; esac; done
[ "$asked" = yes ] && [ "$safe" = yes ] || exit 3
/bin/mkdir -p node_modules/@maker
/bin/cp -r "$DRAWINGS" node_modules/@maker/drawings
echo run >> "$RUNS"
"""


def test_packages_are_fetched_once(tmp_path, npm_dir, package, monkeypatch):
    write_tool(tmp_path / "bin", "npm", FAKE_NPM)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DRAWINGS", str(npm_dir / "node_modules/@maker/drawings"))
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(sources, "PACKAGES", (package,))
    for _ in range(2):
        folders = sources.provide_packages(None, quiet)
    assert (folders[package.name] / "assets/a.webp").read_bytes() == b"a"
    assert (tmp_path / "runs").read_text() == "run\n"
    assert os.listdir(sources.cache_dir()) == ["npm"]


def test_a_failed_fetch_leaves_nothing_and_shows_why(tmp_path, monkeypatch):
    write_tool(tmp_path / "bin", "npm", "echo 'npm error 404 emojilib@4.0.3 is not here' >&2; touch half; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(SourceError, match=r"npm install .* failed:\nnpm error 404 emojilib@4\.0\.3 is not here"):
        sources.provide_packages(None, quiet)
    assert list(sources.cache_dir().iterdir()) == []


def test_photos_need_apt_get(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="apt-get was not found: .*Debian package; build without photos"):
        sources.provide_photos(quiet)


def test_a_missing_photo_package_is_named(tmp_path, monkeypatch):
    write_tool(tmp_path / "bin", "apt-get", 'echo "E: Unable to locate package $2" >&2; exit 100')
    write_tool(tmp_path / "bin", "dpkg-deb", "exit 1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SourceError, match="Unable to locate package lomiri-wallpapers-16.04"):
        sources.provide_photos(quiet)


def test_changed_photos_are_named(tmp_path, monkeypatch):
    write_tool(tmp_path / "bin", "apt-get", ": > photos.deb")
    write_tool(tmp_path / "bin", "dpkg-deb", "/bin/mkdir -p usr/share/backgrounds")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SourceError, match="content of package lomiri-wallpapers-16.04@20.04.0-2 has changed"):
        sources.provide_photos(quiet)


def test_whole_folder_appears_only_without_an_error(tmp_path):
    with pytest.raises(RuntimeError), sources.whole_folder(tmp_path / "deep/out") as new:
        (new / "file").touch()
        raise RuntimeError
    assert list((tmp_path / "deep").iterdir()) == []
    with sources.whole_folder(tmp_path / "deep/out") as new:
        (new / "file").touch()
        assert not (tmp_path / "deep/out").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    # Readable as any other new folder is, although temporary folders are private.
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE((tmp_path / "deep/out").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_every_package_is_pinned():
    for package in (*sources.PACKAGES, sources.PHOTO_PACKAGE):
        assert len(package.sha256) == 64 and package.licence and package.copyright
