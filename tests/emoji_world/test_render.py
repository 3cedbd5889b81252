import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vimi_diffusers.emoji_world.recipes import Recipe, Reference, Sample, SampleDrawer
from vimi_diffusers.emoji_world.render import EmojiWorldAssets, EmojiWorldRenderer, RenderBatch
from vimi_diffusers.emoji_world.world_index import WorldIndex


MIX = {"text-to-video": 0.3, "subject": 0.4, "prediction": 0.3}
RECIPE = Recipe("anim", "fluent3d", 0, "still", 0.5, 0.5, 0.5, 0.5, 0, 90.0, 40.0, 75.0, 0.0)


@pytest.fixture(scope="module")
def assets(tiny_world):
    return EmojiWorldAssets.load(tiny_world)


@pytest.fixture(scope="module")
def renderer(assets):
    return EmojiWorldRenderer(assets)


@pytest.fixture(scope="module")
def samples(assets):
    drawer = SampleDrawer(assets.index, "train", MIX)
    return [drawer.draw(number) for number in range(24)]


@pytest.fixture(scope="module")
def base(samples):
    """A sample of the fox in the park, to be changed by a test."""
    return dataclasses.replace(samples[0], concept="1f98a", place="park", context=())


def with_recipe(sample: Sample, context=(), **changes) -> Sample:
    video = dataclasses.replace(sample.video, recipe=dataclasses.replace(RECIPE, **changes))
    return dataclasses.replace(sample, video=video, context=tuple(context))


def batch_of(assets, *samples):
    return RenderBatch.from_samples(samples, assets.index)


@pytest.fixture(scope="module")
def white_square(assets):
    """A world of white squares in front of black panoramas: its videos are masks."""
    return EmojiWorldRenderer(
        EmojiWorldAssets(assets.index, torch.full_like(assets.sprites, 255), torch.zeros_like(assets.panoramas))
    )


def centroids(video):
    """Mass and centre of brightness for each frame, in parts of the frame's side."""
    mask = (video[0, 0] + 1) / 2
    axis = (torch.arange(64) + 0.5) / 64
    mass = mask.sum((1, 2))
    return mass / 64**2, (mask.sum(1) * axis).sum(1) / mass, (mask.sum(2) * axis).sum(1) / mass


def expected_path(move, time, dist=0.5, scale=0.3):
    x, y, size = 0.5, 0.5, scale
    if move in ("left", "right"):
        x += (1 if move == "right" else -1) * dist * (time - 0.5)
    elif move in ("up", "down"):
        y += (1 if move == "down" else -1) * dist * (time - 0.5)
    elif move in ("near", "far"):
        size *= 1.35 ** ((1 if move == "near" else -1) * (2 * time - 1))
    elif move == "circle":
        x += 0.14 * math.cos(2 * math.pi * time)
        y += 0.14 * math.sin(2 * math.pi * time)
    elif move == "bounce":
        y += -0.22 * abs(math.sin(2 * math.pi * time)) + 0.11
    return x, y, size


@pytest.mark.parametrize("move", ("still", "right", "left", "up", "down", "near", "far", "circle", "bounce"))
def test_moves_follow_their_paths_to_a_part_of_a_pixel(assets, white_square, base, move):
    video = white_square.videos(batch_of(assets, with_recipe(base, move=move, scale=0.3)))
    assert video.shape == (1, 3, 16, 64, 64)
    mass, x, y = centroids(video)
    for frame in range(16):
        want_x, want_y, size = expected_path(move, frame / 15)
        assert float(x[frame]) == pytest.approx(want_x, abs=0.01 / 64)
        assert float(y[frame]) == pytest.approx(want_y, abs=0.01 / 64)
        assert float(mass[frame]) == pytest.approx(size**2, rel=1e-3)


@pytest.mark.parametrize("num_frames, size", ((1, 64), (8, 64), (16, 32), (5, 48)))
def test_other_numbers_of_frames_and_sizes_show_the_same_motion(assets, base, num_frames, size):
    batch = batch_of(assets, with_recipe(base, move="right"))
    video = EmojiWorldRenderer(assets, num_frames, size).videos(batch)
    full = EmojiWorldRenderer(assets).videos(batch)
    assert video.shape == (1, 3, num_frames, size, size)
    if num_frames > 1:
        full = full[:, :, [0, -1]]
        frames = torch.nn.functional.interpolate(
            full[0].transpose(0, 1), (size, size), mode="bilinear", antialias=True
        )
        assert (frames[0] - video[0, :, 0]).abs().mean() < 0.03


def naive_frame(assets, sample, time, size):
    """One frame, pixel by pixel, straight from the definition: 8 x 8 nearest samples of the sprite in each pixel."""
    recipe, index = sample.video.recipe, assets.index
    panorama = assets.panoramas[index.place_rows[sample.place]].permute(1, 2, 0).double().numpy() / 255
    height, width = panorama.shape[:2]
    focal = size / 2 / math.tan(math.radians(recipe.fov) / 2)
    axis = (np.arange(size) + 0.5 - size / 2) / focal
    x, y = np.meshgrid(axis, axis)
    p = math.radians(recipe.pitch)
    y, z = y * math.cos(p) + math.sin(p), math.cos(p) - y * math.sin(p)
    yaw = math.radians(recipe.yaw + recipe.cam * recipe.pan * (time - 0.5))
    u = ((np.arctan2(x, z) + yaw) / (2 * math.pi) + 0.5) % 1 * width - 0.5
    v = (np.arctan2(y, np.hypot(x, z)) / math.pi + 0.5) * height - 0.5
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    du, dv = (u - left)[..., None], (v - top)[..., None]
    rows = (np.clip(top, 0, height - 1), np.clip(top + 1, 0, height - 1))
    out = sum(
        weight * panorama[rows[i], (left + j) % width]
        for i, j, weight in (
            (0, 0, (1 - dv) * (1 - du)),
            (0, 1, (1 - dv) * du),
            (1, 0, dv * (1 - du)),
            (1, 1, dv * du),
        )
    )
    frame = (round(time * 15) + recipe.phase) % 16
    sprite = assets.sprites[index.image_row(f"clips/{sample.concept}@{frame}")].permute(0, 2, 1).numpy() / 255
    centre_x, centre_y, scale = expected_path(recipe.move, time, recipe.dist, recipe.scale)
    centre_x, centre_y = centre_x + recipe.x - 0.5, centre_y + recipe.y - 0.5
    fine = (np.arange(size * 8) + 0.5) / (size * 8)
    column = np.floor(((fine - centre_x) / scale + 0.5) * len(sprite)).astype(int)
    row = np.floor(((fine - centre_y) / scale + 0.5) * len(sprite)).astype(int)
    inside = ((column >= 0) & (column < len(sprite)))[None, :] & ((row >= 0) & (row < len(sprite)))[:, None]
    picture = sprite[row.clip(0, len(sprite) - 1)][:, column.clip(0, len(sprite) - 1)] * inside[..., None]
    picture = picture.reshape(size, 8, size, 8, 4).mean((1, 3))
    return picture[..., :3] + out * (1 - picture[..., 3:])


@pytest.mark.parametrize(
    "changes",
    [
        {"move": "left", "yaw": 178.0, "cam": 1, "pan": 55.0, "pitch": 7.0},
        {"move": "bounce", "yaw": 3.0, "cam": -1, "fov": 66.0, "pitch": -8.0, "x": 0.43, "y": 0.6},
        {"move": "near", "yaw": 355.0, "fov": 85.0, "scale": 0.41, "phase": 11},
        {"move": "circle", "yaw": 181.5, "scale": 0.47, "phase": 5},
    ],
)
def test_frames_match_the_definition(assets, base, changes):
    sample = with_recipe(base, **changes)
    size = 24  # sprites of 32 pixels shrink to about 11: their mean over each pixel is exact
    renderer = EmojiWorldRenderer(assets, size=size)
    renderer.textures[size] = renderer._panorama_texture(assets.panoramas, 64)  # full resolution, as in the definition
    video = renderer.videos(batch_of(assets, sample))[0]
    for frame in (0, 6, 15):
        want = naive_frame(assets, sample, frame / 15, size)
        got = (video[:, frame].permute(1, 2, 0).numpy() + 1) / 2
        assert np.abs(got - want).mean() < 0.003
        assert np.abs(got - want).max() < 0.06


@pytest.mark.parametrize("cam", (-1, 0, 1))
def test_the_camera_pans_to_its_side(assets, base, cam):
    """Red grows with the longitude in the drawn panoramas."""
    clear = EmojiWorldAssets(assets.index, torch.zeros_like(assets.sprites), assets.panoramas)
    video = EmojiWorldRenderer(clear).videos(batch_of(assets, with_recipe(base, cam=cam)))[0]
    shade = video[2] + video[0] + 2  # red and blue together are constant in a row of the panorama
    longitude = ((video[0] + 1) / shade)[:, 31:33, 31:33].mean((1, 2)) * 360 - 180
    for frame in range(16):
        assert float(longitude[frame]) == pytest.approx(90 + cam * 40 * (frame / 15 - 0.5), abs=1.0)


def test_clips_run_from_their_phase_and_stills_stand(assets, base):
    empty = EmojiWorldAssets(assets.index, assets.sprites.clone(), torch.zeros_like(assets.panoramas))
    first = assets.index.image_row("clips/1f98a@0")
    for frame in range(16):
        empty.sprites[first + frame] = 10 * frame
    clip, still = EmojiWorldRenderer(empty).videos(
        batch_of(assets, with_recipe(base, phase=3), with_recipe(base, kind="still", style="noto"))
    )
    shades = (clip[0, :, 32, 32] + 1) / 2 * 255
    assert shades.round().tolist() == [10 * ((k + 3) % 16) for k in range(16)]
    assert torch.equal(still[:, :1].expand_as(still), still)
    assert not torch.equal(clip, still)


def test_a_video_does_not_depend_on_its_batch(assets, renderer, samples):
    batch = batch_of(assets, *samples)
    videos, references = renderer.videos(batch), renderer.references(batch)
    alone = batch_of(assets, samples[5])
    torch.testing.assert_close(renderer.videos(alone)[0], videos[5], rtol=0, atol=1e-5)
    torch.testing.assert_close(renderer.references(alone), references[10:12], rtol=0, atol=1e-5)
    assert torch.equal(renderer.videos(batch), videos)
    assert videos.min() >= -1 - 1e-5 and videos.max() <= 1 + 1e-5


def test_a_json_line_gives_the_same_pixels(assets, renderer, samples):
    batch = batch_of(assets, *samples)
    again = batch_of(assets, *(Sample.from_json(sample.to_json()) for sample in samples))
    for before, after in zip(batch, again):
        assert torch.equal(before, after)
    assert torch.equal(renderer.references(batch), renderer.references(again))


def test_unused_slots_are_white_and_first_frames_are_exact(assets, renderer, base):
    sample = with_recipe(base, [Reference("first_frame", "frame/0")], move="left", cam=1)
    batch = batch_of(assets, sample, with_recipe(base))
    videos = renderer.videos(batch)
    references = renderer.references(batch, videos)
    assert torch.equal(references[0], videos[0, :, 0])
    assert torch.equal(references[1:], torch.ones(3, 3, 64, 64))
    torch.testing.assert_close(renderer.references(batch)[0], videos[0, :, 0], rtol=0, atol=1e-6)


def test_a_place_crop_is_the_background_without_the_subject(assets, renderer, base):
    crop = Reference("place", "places/city", yaw=90.0, fov=75.0, pitch=3.0)
    sample = dataclasses.replace(with_recipe(base, [crop], pitch=3.0), place="city")
    clear = EmojiWorldAssets(assets.index, torch.zeros_like(assets.sprites), assets.panoramas)
    batch = batch_of(assets, sample)
    plate = EmojiWorldRenderer(clear).videos(batch)[0, :, 0]
    torch.testing.assert_close(renderer.references(batch)[0], plate, rtol=0, atol=1e-5)


def test_a_view_straight_down_stays_in_its_own_panorama(assets, base):
    only = EmojiWorldAssets(assets.index, assets.sprites, assets.panoramas.clone())
    only.panoramas[[row for place, row in assets.index.place_rows.items() if place != "city"]] = 0
    crops = [Reference("place", "places/city", yaw=10.0, fov=80.0, pitch=pitch) for pitch in (88.0, -88.0)]
    batch = batch_of(assets, with_recipe(base, crops))
    views = [EmojiWorldRenderer(world).references(batch) for world in (assets, only)]
    assert torch.equal(*views)


def reference_image(assets, base, **fields):
    sample = with_recipe(base, [Reference(**fields)])
    return EmojiWorldRenderer(assets, reference_size=32).references(batch_of(assets, sample))[0]


def test_a_memory_image_is_shown_as_it_is_on_white(assets, tiny_world, base):
    image = Image.open(tiny_world / "memory/noto/1f98a.webp").convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    want = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    got = reference_image(assets, base, role="retrieved_subject", image="memory/noto/1f98a", text="A fox")
    assert np.abs(((got + 1) * 127.5).permute(1, 2, 0).numpy() - want).max() < 1.5
    view = reference_image(assets, base, role="retrieved_place", image="memory/place/park@60", text="A park")
    want = np.asarray(Image.open(tiny_world / "memory/place/park@60.webp").convert("RGB"))
    assert np.abs(((view + 1) * 127.5).permute(1, 2, 0).numpy() - want).max() < 0.5


def test_subjects_are_rotated_scaled_and_brightened(assets, base):
    """The drawn fox has a white mark left of its middle, above the centre."""

    def shown(**augmentation):
        fields = {"rotation": 0.0, "scale": 1.0, "brightness": 1.0, **augmentation}
        return reference_image(assets, base, role="subject", image="clips/1f98a@0", **fields)

    plain, small, bright = shown(), shown(scale=0.7), shown(brightness=1.1)

    def ink(image):
        return (image[2] < 0.5).float()  # blue is lacking in the fox alone

    assert ink(small).sum() / ink(plain).sum() == pytest.approx(0.49, abs=0.06)
    centre = (slice(None), 20, 20)
    assert torch.allclose((bright[centre] + 1) / (plain[centre] + 1), torch.full((3,), 1.1), atol=0.01)
    mark = assets.index.image_row("clips/1f98a@0")
    marked = EmojiWorldAssets(assets.index, torch.zeros_like(assets.sprites), assets.panoramas)
    marked.sprites[mark, 15:17, 3, 26:28] = 255  # a black spot at the right
    spot = (1 - reference_image(marked, base, role="subject", image="clips/1f98a@0", rotation=15.0)[0]).numpy()
    rows, columns = np.mgrid[:32, :32] + 0.5
    x, y = (spot * columns).sum() / spot.sum() - 16, (spot * rows).sum() / spot.sum() - 16
    assert math.degrees(math.atan2(-y, x)) == pytest.approx(15, abs=1)  # counter-clockwise: it goes up


def test_reference_sizes(assets, base):
    sample = with_recipe(base, [Reference("first_frame", "frame/0"), Reference("subject", "clips/1f98a@0")])
    batch = batch_of(assets, sample)
    large = EmojiWorldRenderer(assets, size=64, reference_size=64).references(batch)
    small = EmojiWorldRenderer(assets, size=64, reference_size=16).references(batch)
    assert small.shape == (2, 3, 16, 16)
    pooled = torch.nn.functional.avg_pool2d(large, 4)
    assert (pooled - small).abs().mean() < 0.03


def test_no_step_needs_a_value_on_the_host(assets, samples):
    """Tensors of the meta device have no values: whatever would synchronise fails on them."""
    batch = RenderBatch(*(tensor.to("meta") for tensor in batch_of(assets, *samples)))
    nowhere = EmojiWorldAssets(assets.index, assets.sprites.to("meta"), assets.panoramas.to("meta"))
    renderer = EmojiWorldRenderer(nowhere)
    videos = renderer.videos(batch)
    assert videos.shape == (24, 3, 16, 64, 64)
    assert renderer.references(batch, videos).shape == renderer.references(batch).shape == (48, 3, 64, 64)


def test_too_many_images_are_refused(assets, base):
    sample = with_recipe(base, [Reference("first_frame", "frame/0")] * 3)
    with pytest.raises(ValueError, match="shows 3 images, but there are 2 slots"):
        batch_of(assets, sample)


@pytest.mark.parametrize("place", ("volcano", "aitzgorri"))
def test_a_place_without_panorama_is_refused(assets, base, place):
    with pytest.raises(ValueError, match=place):
        batch_of(assets, dataclasses.replace(with_recipe(base), place=place))
    with pytest.raises(ValueError, match=place):
        batch_of(assets, with_recipe(base, [Reference("place", f"places/{place}", yaw=0.0, fov=75.0, pitch=0.0)]))


def test_impossible_sizes_are_refused(assets):
    with pytest.raises(ValueError, match="`num_frames` is 0"):
        EmojiWorldRenderer(assets, num_frames=0)
    with pytest.raises(ValueError, match="`size` is -1"):
        EmojiWorldRenderer(assets, size=-1)


@pytest.mark.parametrize("file_name, content", (("clips/1f98a.webp", "short"), ("memory/noto/1f98a.webp", "broken")))
def test_a_broken_world_names_the_file(tiny_world, tmp_path, file_name, content):
    root = tmp_path / "world"
    shutil.copytree(tiny_world, root)
    if content == "broken":
        (root / file_name).write_bytes(b"RIFF")
        message = "cannot be read"
    else:
        Image.new("RGBA", (32, 64)).save(root / file_name, lossless=True)
        message = "is 32x64 pixels, not 32x512"
    with pytest.raises(ValueError, match=f"{file_name} {message}"):
        EmojiWorldAssets.load(root)


def test_panoramas_of_different_shapes_are_refused(tiny_world, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(tiny_world, root)
    Image.new("RGB", (256, 128)).save(root / "places/sky.webp")
    with pytest.raises(ValueError, match="sky.webp has shape"):
        EmojiWorldAssets.load(WorldIndex.load(root))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rendering_can_be_captured_in_a_cuda_graph(assets, renderer, samples):
    batch = batch_of(assets, *samples)
    on_gpu = EmojiWorldAssets(assets.index, assets.sprites.cuda(), assets.panoramas.cuda())
    cuda, static = EmojiWorldRenderer(on_gpu), batch.to("cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            cuda.references(static, cuda.videos(static))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        videos = cuda.videos(static)
        references = cuda.references(static, videos)
    graph.replay()
    torch.testing.assert_close(videos.cpu(), renderer.videos(batch), rtol=0, atol=2e-3)
    torch.testing.assert_close(references.cpu(), renderer.references(batch), rtol=0, atol=2e-3)
