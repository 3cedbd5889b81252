# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where emoji world comes from: pinned npm packages, fetched once, and checked before they are used."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..files import whole_folder


Report = Callable[[str, int, int], None]


class SourceError(RuntimeError):
    """A source of emoji world is missing, changed or broken; the message names it and says what to do."""


@dataclass(frozen=True)
class Package:
    """A pinned package.

    Attributes:
        name (`str`), version (`str`): As the package registry knows them.
        licence (`str`): SPDX expression of the content.
        files (`tuple[str, ...]`): Glob patterns of the files that are used, relative to the package's folder.
        sha256 (`str`): Pinned digest of those files (see [`content_digest`]).
        copyright (`str`): Notice that the licence asks for.
    """

    name: str
    version: str
    licence: str
    files: tuple[str, ...]
    sha256: str
    copyright: str

    @property
    def pin(self) -> str:
        """Name and version, e.g. `"emojilib@4.0.3"`."""
        return f"{self.name}@{self.version}"

    def manifest_entry(self) -> dict[str, str]:
        return {
            "package": self.name,
            "version": self.version,
            "sha256": self.sha256,
            "licence": self.licence,
            "copyright": self.copyright,
        }


_MICROSOFT = "Copyright (c) Microsoft Corporation; npm package copyright (c) 2023 LobeHub"
_PICTURES = ("assets/*.webp",)
_ICONS = ("chars.json", "icons.json")

PACKAGES = (
    Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "MIT",
        _PICTURES,
        "8978a3508bcdbe1d72a69446de2493725afe12c45312cec2b84d56c8cabf089c",
        _MICROSOFT,
    ),
    Package(
        "@lobehub/fluent-emoji-anim-1",
        "1.0.0",
        "MIT",
        _PICTURES,
        "3af3b616852fcc082627116296ae904519f9be4b1fb1160cdf225d15a9ae10d9",
        _MICROSOFT,
    ),
    Package(
        "@lobehub/fluent-emoji-anim-2",
        "1.0.0",
        "MIT",
        _PICTURES,
        "1ff4b353a326a6dc6ce8bd24130bf994ae6903fcfaaa5768381b40dd32cd6542",
        _MICROSOFT,
    ),
    Package(
        "@lobehub/fluent-emoji-anim-3",
        "1.0.0",
        "MIT",
        _PICTURES,
        "6afb71189f92a2cd56d01d481474c4284503421f5b0d0bbfdc171ddeba64b0eb",
        _MICROSOFT,
    ),
    Package(
        "@lobehub/fluent-emoji-anim-4",
        "1.0.0",
        "MIT",
        _PICTURES,
        "1ffb4cd6105fc6aae44ef1cda5174a570c9c2f58a5ca37f8349bd8265dbe9cc2",
        _MICROSOFT,
    ),
    Package(
        "@iconify-json/noto",
        "1.2.9",
        "Apache-2.0",
        _ICONS,
        "41f7e7f1f5c2d75c4f9e26536297c4355297f3d92020c2a688bdd246805fc068",
        "Copyright Google Inc; rasterised",
    ),
    Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "MIT",
        _ICONS,
        "200449b899d0274a3fb264e0631282dfbac537f73ffa69dec51d85481f3979d9",
        "Copyright (c) Microsoft Corporation; rasterised",
    ),
    Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "CC-BY-4.0",
        _ICONS,
        "b25d2266ad5baad1c0d2efbe0c34339424307ee80e1df52e74d868888637573c",
        "Copyright Twitter, Inc and other contributors (jdecked/twemoji); rasterised, resized and re-encoded",
    ),
    Package(
        "emojibase-data",
        "17.0.0",
        "MIT AND Unicode-3.0",
        ("en/data.json", "en/messages.json"),
        "bfd1fa28c932d662a08f2f25caa4eaeb6cbaea2638aa89c3457244eb3ae4c8bd",
        "Copyright (c) 2017-2019 Miles Johnson; labels are Unicode CLDR short names",
    ),
    Package(
        "emojilib",
        "4.0.3",
        "MIT",
        ("dist/emoji-en-US.json",),
        "9ef8ed854dd607bb647c4ceb64bea872b9568268cf89a9f73d4505a9382b3ebb",
        "Copyright (c) 2014 Mu-An Chiou",
    ),
    Package(
        "@pmndrs/assets",
        "1.7.0",
        "CC0-1.0",
        ("hdri/*.exr.js",),
        "42312641104ce53ca10d62268553a563d715b6526cfca66d12cedd37a444a7c0",
        "Poly Haven, via @pmndrs/assets; tone-mapped",
    ),
)


# Debian's package of photos; only the named files are used, the rest has other licences.
PHOTO_PACKAGE = Package(
    "lomiri-wallpapers-16.04",
    "20.04.0-2",
    "CC-BY-4.0 AND CC0-1.0",
    (
        "aitzgorri_by_Aitzol_Berasategi.jpg",
        "life_by_Aitzol_Berasategi.jpg",
        "picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "seeding_by_Clements_Engelhardt.jpg",
        "sunset_by_Aitzol_Berasategi.jpg",
    ),
    "d6d412638c314569f83a44b0446d0712053222878534dccc06b6c41fc095f1cf",
    "Copyright Aitzol Berasategi, 2018 (CC-BY-4.0), Clemens Engelhardt, 2018 (CC0-1.0); cropped and resized",
)
_PHOTO_FOLDER = Path("usr", "share", "backgrounds")


def find_package(name: str) -> Package:
    """The pinned package of that name."""
    return next(package for package in PACKAGES if package.name == name)


def cache_dir() -> Path:
    """Folder that keeps fetched packages between builds, under `XDG_CACHE_HOME` or `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "vimi_diffusers" / "emoji_world"


def provide_packages(npm_dir: str | Path | None, report: Report) -> dict[str, Path]:
    """Find every npm package, checked; fetch them into the cache if no folder is given.

    Args:
        npm_dir (`str` or `Path`, *optional*): Folder with a `node_modules` that holds the packages.
        report (`Callable[[str, int, int], None]`): Called with a stage, its steps done, and its steps.

    Returns:
        `dict[str, Path]`: Folders by package name.

    Raises:
        SourceError: npm is missing, or a package is missing, or not the pinned one.
    """
    if npm_dir is None:
        npm_dir = cache_dir() / "npm"
        if not npm_dir.exists():
            report("Fetching npm packages", 0, 1)
            fetch_packages(npm_dir)
            report("Fetching npm packages", 1, 1)
    folders = {}
    for done, package in enumerate(PACKAGES, start=1):
        folders[package.name] = verify_package(package, Path(npm_dir))
        report("Checking packages", done, len(PACKAGES))
    return folders


def fetch_packages(folder: Path) -> None:
    """Install every package into `folder/node_modules` with npm, whole or not at all.

    Args:
        folder (`Path`): Folder to make.

    Raises:
        SourceError: npm is not installed, or could not install a package.
    """
    npm = _find_tool(
        "npm", "emoji world is built from npm packages; install Node.js with npm, or name an npm folder that has them"
    )
    pins = [package.pin for package in PACKAGES]
    with whole_folder(folder) as new:
        # A package.json of its own keeps npm from installing into a project further up.
        (new / "package.json").write_text('{"private": true}\n')
        _run([npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=peer", *pins], new)


def verify_package(package: Package, npm_dir: Path) -> Path:
    """Check that an installed npm package is the pinned one.

    Args:
        package (`Package`): What is expected.
        npm_dir (`Path`): Folder that holds `node_modules`.

    Returns:
        `Path`: The package's folder.

    Raises:
        SourceError: The package is missing, has another version, or has other content.
    """
    folder = npm_dir / "node_modules" / package.name
    remedy = f"remove {folder} if it is there, and run `npm install --ignore-scripts {package.pin}` in {npm_dir}"
    try:
        version = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"package {package.pin} is not installed in {npm_dir}: {remedy}") from error
    if version != package.version:
        raise SourceError(f"package {package.name} has version {version}, but {package.version} is pinned: {remedy}")
    _verify_content(package, folder, remedy)
    return folder


def provide_photos(report: Report) -> Path:
    """Fetch Debian's package of photos with apt-get, once, and check it; nothing is installed.

    Args:
        report (`Callable[[str, int, int], None]`): Called with a stage, its steps done, and its steps.

    Returns:
        `Path`: Folder of the photos.

    Raises:
        SourceError: apt-get or dpkg-deb is missing, or the package is missing or changed.
    """
    folder = cache_dir() / PHOTO_PACKAGE.name
    if not folder.exists():
        report("Fetching photos", 0, 1)
        apt_get, dpkg_deb = (
            _find_tool(name, "the photos come from a Debian package; build without photos on other systems")
            for name in ("apt-get", "dpkg-deb")
        )
        with whole_folder(folder) as new:
            _run([apt_get, "download", PHOTO_PACKAGE.name], new)
            archive = next(new.glob("*.deb"))
            _run([dpkg_deb, "--extract", archive.name, "."], new)
            archive.unlink()
        report("Fetching photos", 1, 1)
    photos = folder / _PHOTO_FOLDER
    _verify_content(PHOTO_PACKAGE, photos, f"remove {folder} and build again, or build without photos")
    return photos


def content_digest(folder: Path, patterns: tuple[str, ...]) -> str:
    """Digest of the files of a folder that match the patterns: of their names and their bytes, in sorted order."""
    digest = hashlib.sha256()
    paths = sorted({path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)})
    for path in paths:
        digest.update(f"{path}\0{hashlib.sha256((folder / path).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _verify_content(package: Package, folder: Path, remedy: str) -> None:
    digest = content_digest(folder, package.files)
    if digest != package.sha256:
        raise SourceError(
            f"the content of package {package.pin} has changed: its files have digest {digest}, but {package.sha256} "
            f"is pinned: {remedy}"
        )


def _find_tool(name: str, remedy: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SourceError(f"{name} was not found: {remedy}")
    return path


def _run(command: list[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr or result.stdout).strip()
        raise SourceError(f"`{Path(command[0]).name} {' '.join(command[1:])}` failed:\n{reason}")
