import json

import numpy as np
import pytest
from PIL import Image
from source_tree import write_panorama

from vimi_diffusers.emoji_world.art import IconSet, find_pictures, is_clip, read_clip, read_panorama, read_still
from vimi_diffusers.emoji_world.places import panorama_view, tone_map
from vimi_diffusers.emoji_world.sources import SourceError


def icon_set(folder, icons, characters, **fields):
    folder.mkdir(exist_ok=True)
    (folder / "icons.json").write_text(json.dumps({"icons": icons, "width": 32, "height": 32, **fields}))
    (folder / "chars.json").write_text(json.dumps(characters))
    return IconSet(folder)


SQUARE = '<path d="M0 0h32v32H0z" fill="#f00"/>'


def test_icons_are_drawn_at_the_size_asked_for(tmp_path):
    image = icon_set(tmp_path, {"box": {"body": SQUARE}}, {"2764-fe0f": "box"}).render("2764", 24)
    assert (image.mode, image.size) == ("RGBA", (24, 24))
    assert (np.asarray(image) == (255, 0, 0, 255)).all()


def test_a_narrow_icon_is_centred(tmp_path):
    icons = {"bar": {"body": SQUARE, "width": 16}}
    alpha = np.asarray(icon_set(tmp_path, icons, {"1f98a": "bar"}).render("1f98a", 32))[..., 3]
    assert (alpha[:, 8:24] == 255).all()


def test_an_icon_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SourceError, match="icons.json has no icon 'fox', but chars.json names it"):
        icon_set(tmp_path, {"box": {"body": SQUARE}}, {"1f98a": "fox"})


@pytest.mark.parametrize(
    ("body", "message"), [('<path d="M0', "icon 'box' .* cannot be rendered"), ("<g/>", "icon 'box' .* is blank")]
)
def test_a_broken_icon_is_named(tmp_path, body, message):
    icons = icon_set(tmp_path, {"box": {"body": body}}, {"1f98a": "box"})
    with pytest.raises(SourceError, match=message):
        icons.render("1f98a", 16)


def test_find_pictures_drops_skin_tones_and_variation_selectors(tmp_path):
    (tmp_path / "assets").mkdir()
    for name in ("2764-fe0f", "1f44b", "1f44b-1f3fd", "1f44b-1f3fd-200d-2640"):
        (tmp_path / "assets" / f"{name}.webp").touch()
    assert sorted(find_pictures(tmp_path)) == ["1f44b", "2764"]


def grey_frames(path, count):
    frames = [Image.new("RGBA", (32, 32), (level, level, level, 255)) for level in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    return path


@pytest.mark.parametrize("count", [13, 16, 72])
def test_a_clip_is_sixteen_even_steps_of_its_loop(tmp_path, count):
    path = grey_frames(tmp_path / "clip.webp", count)
    assert is_clip(path)
    strip = np.asarray(read_clip(path, 8))
    assert strip.shape == (16 * 8, 8, 4)
    assert [int(level) for level in strip[::8, 0, 0]] == [step * count // 16 for step in range(16)]


def test_a_single_frame_is_no_clip(tmp_path):
    assert not is_clip(grey_frames(tmp_path / "still.webp", 1))


@pytest.mark.parametrize("read", [is_clip, lambda path: read_clip(path, 8), lambda path: read_still(path, 8)])
def test_a_broken_picture_is_named(tmp_path, read):
    path = grey_frames(tmp_path / "clip.webp", 20)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SourceError, match="clip.webp is not a readable"):
        read(path)


def test_resizing_keeps_the_colour_of_edges(tmp_path):
    # Transparent pixels are black inside: without premultiplication the edge would darken.
    image = Image.new("RGBA", (256, 256))
    image.paste((200, 100, 50, 255), (0, 0, 130, 256))
    image.save(tmp_path / "half.webp", lossless=True)
    edge = read_still(tmp_path / "half.webp", 16).getpixel((8, 8))
    assert 0 < edge[3] < 255
    assert edge[:3] == pytest.approx((200, 100, 50), abs=8)


def test_panorama_survives_its_wrapping(tmp_path):
    radiance = np.random.default_rng(0).uniform(0, 4, (256, 512, 3)).astype(np.float16)
    write_panorama(tmp_path / "park.exr.js", radiance)
    np.testing.assert_array_equal(read_panorama(tmp_path / "park.exr.js"), radiance)


@pytest.mark.parametrize("text", ["export default 7", "'base64,AAAA'", "'base64,A'"])
def test_a_broken_panorama_is_named(tmp_path, text):
    (tmp_path / "park.exr.js").write_text(text)
    with pytest.raises(SourceError, match="park.exr.js is not a readable panorama"):
        read_panorama(tmp_path / "park.exr.js")


def test_tone_map_is_monotonic_and_paints_over_ringing():
    radiance = np.tile(np.linspace(0, 100, 64, dtype=np.float16)[None, :, None], (32, 1, 3))
    assert (np.diff(tone_map(radiance)[0, :, 0].astype(int)) >= 0).all()
    ringing = radiance.copy()
    ringing[16, 32] = -5
    assert abs(tone_map(ringing)[16, 32].astype(int) - tone_map(radiance)[16, 32]).max() <= 3


def test_yaw_looks_to_the_right_and_wraps():
    # Brightness is the direction: 0 at the left edge (yaw -180), 255 at the right edge.
    panorama = np.repeat(np.tile(np.linspace(0, 255, 512)[None, :, None], (256, 1, 3)).round(), 1, axis=0).astype(
        "uint8"
    )
    centre = {yaw: int(panorama_view(panorama, yaw, 75.0, 64)[32, 32, 0]) for yaw in (0, 60, 300)}
    assert centre[0] == pytest.approx(255 * 0.5, abs=3)
    assert centre[60] == pytest.approx(255 * (0.5 + 60 / 360), abs=3)
    assert centre[300] == pytest.approx(255 * (0.5 - 60 / 360), abs=3)
    np.testing.assert_array_equal(panorama_view(panorama, 10, 75.0, 32), panorama_view(panorama, 370, 75.0, 32))


def test_field_of_view_is_measured_across_the_view():
    panorama = np.tile(np.linspace(0, 255, 512)[None, :, None], (256, 1, 3)).round().astype("uint8")
    row = panorama_view(panorama, 0, 90.0, 64)[32, :, 0].astype(float)
    assert (row[-1] - row[0]) / 255 * 360 == pytest.approx(90, abs=3)
