import numpy as np
import pytest
import torch
from media_files import encode_image, encode_sound, encode_video

from vimi_diffusers.evaluation.metrics import VideoFiles


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.mp4").write_bytes(encode_video(8, shade=40 * number))
    return tmp_path


def test_the_first_frames_come_in_order(folder):
    files = VideoFiles(sorted(folder.iterdir()), num_frames=5, batch_size=2)
    (first, videos), (second, rest) = files
    assert first.tolist() == [0, 1] and second.tolist() == [2] and rest.shape == (1, 5, 3, 32, 32)
    shades = videos.mean(dim=(2, 3, 4)) * 255
    assert np.allclose(shades, [[8 * t for t in range(5)], [40 + 8 * t for t in range(5)]], atol=3)
    assert files.summary() == "3 of 3 videos read"


def test_bad_files_are_named_skipped_and_counted(folder):
    whole = (folder / "0.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "short.mp4").write_bytes(encode_video(4))
    (folder / "sound.mp4").write_bytes(encode_sound())
    (folder / "still.mp4").write_bytes(encode_image((32, 32)))
    names = ["missing", "cut", "0", "empty", "short", "sound", "1", "still", "2"]
    files = VideoFiles([folder / f"{name}.mp4" for name in names], num_frames=8)
    ((numbers, videos),) = files
    assert numbers.tolist() == [2, 6, 8] and torch.isfinite(videos).all()
    bad = {folder / f"{name}.mp4" for name in ("missing", "cut", "empty", "short", "sound", "still")}
    assert set(files.skipped) == set(map(str, bad))
    assert "short.mp4" in files.skipped[str(folder / "short.mp4")]
    assert files.summary().startswith("3 of 9 videos read; skipped: ")
    assert "1 missing_file" in files.summary() and "1 truncated" in files.summary()
    list(files)
    assert len(files.skipped) == 6  # counted anew


def test_other_sizes_are_an_error_unless_one_is_given(folder):
    (folder / "3.mp4").write_bytes(encode_video(8, height=32, width=48))
    paths = sorted(folder.iterdir())
    for batch_size in (1, 3, 8):
        with pytest.raises(ValueError, match=r"3.mp4 has 48x32 pixels, videos before it 32x32: give `size"):
            list(VideoFiles(paths, num_frames=8, batch_size=batch_size))
    ((_, videos),) = VideoFiles(paths, num_frames=8, size=(24, 24))
    assert videos.shape == (4, 8, 3, 24, 24)


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no video file"):
        VideoFiles([], num_frames=4)
    with pytest.raises(ValueError, match="None of 1 videos could be read, first .*none.mp4: no file"):
        list(VideoFiles([tmp_path / "none.mp4"], num_frames=4))
    with pytest.raises(ValueError, match="at least 1, not 0 and 8"):
        VideoFiles([tmp_path / "none.mp4"], num_frames=0)
