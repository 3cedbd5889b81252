"""The demo without a browser: what its buttons do, its page, and the command that opens it."""

import importlib
import importlib.util
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


command = importlib.import_module("vimi_diffusers.cli.demo")  # the package has a function of this name
gr = pytest.importorskip("gradio", reason="the demo needs the extra `demo`")

from vimi_diffusers.cli import main  # noqa: E402
from vimi_diffusers.demo import EXAMPLES, Demo, build_demo, load_demo  # noqa: E402
from vimi_diffusers.media import load_image  # noqa: E402


@pytest.fixture
def demo(pipeline, memory, tmp_path):
    return Demo(pipeline, memory, tmp_path)


def read_video(path: str) -> np.ndarray:
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(path)
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def test_text_to_video_shows_the_pairs_that_it_retrieves(demo, memory):
    video, strip, seen = demo.text_to_video("A sea turtle glides through a park", 1, seed=0, steps=2, guidance=2.0)
    assert [caption for _, caption in seen] == ["A sea turtle", "A grassy park"]
    assert np.array_equal(seen[0][0], load_image(memory["turtle"].image))
    frames = read_video(video)
    assert frames.shape == (4, 512, 512, 3)
    assert frames.std() > 1
    assert Image.open(strip).width > 4 * 128


def test_without_pairs_the_model_sees_none(demo):
    *_, seen = demo.text_to_video("A sea turtle glides through a park", 0, seed=0, steps=2, guidance=2.0)
    assert seen == []


def test_the_seed_decides(demo):
    def run(seed: int, pairs: int = 1) -> bytes:
        return Path(demo.text_to_video("A fox by a calm sea", pairs, seed, steps=2, guidance=2.0)[0]).read_bytes()

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(1) != run(1, pairs=0)  # the retrieved pairs reach the model


def test_subject_binds_images_to_tags_in_order(demo, pictures):
    images = [(path, None) for path in pictures]
    video, _, seen = demo.subject("A <image_1> on <image_2>", images, seed=0, steps=2, guidance=2.0)
    assert [caption for _, caption in seen] == ["<image_1>", "<image_2>"]
    assert seen[0][0].getpixel((0, 0)) == (255, 0, 0)
    swapped, *_ = demo.subject("A <image_1> on <image_2>", images[::-1], seed=0, steps=2, guidance=2.0)
    assert Path(video).read_bytes() != Path(swapped).read_bytes()


def test_prediction_takes_a_first_frame(demo, pictures):
    video, _, seen = demo.prediction("It moves", pictures[0], seed=0, steps=2, guidance=2.0)
    assert seen[0][0].getpixel((0, 0)) == (255, 0, 0)
    assert len(read_video(video)) == 4


@pytest.mark.parametrize(
    "task, arguments, says",
    [
        ("text_to_video", ("", 1), "prompt is empty"),
        ("text_to_video", ("A <image_1>", 0), "&lt;image_1&gt;"),
        ("subject", ("A <image_1> and a <image_2>", None), "&lt;image_1&gt; has no image"),
        ("subject", ("A fox", None), "at least one image"),
        ("prediction", ("A fox", None), "exactly one image"),
    ],
)
def test_bad_input_is_one_line_on_the_page(demo, task, arguments, says):
    with pytest.raises(gr.Error) as error:
        getattr(demo, task)(*arguments, 0, 2, 2.0)
    assert says in error.value.message
    assert "\n" not in error.value.message


def test_an_unreadable_picture_is_named(demo, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(gr.Error, match="broken.png"):
        demo.subject("A <image_1>", [(str(broken), None)], 0, 2, 2.0)


@pytest.mark.parametrize("seed", [-1, None])
def test_a_seed_that_cannot_be_used(demo, seed):
    with pytest.raises(gr.Error, match="seed"):
        demo.text_to_video("A fox", 1, seed, 2, 2.0)


def test_examples_come_from_the_memory(demo):
    examples = demo.examples()
    assert [one["prompt"] for one in examples] == [EXAMPLES[0][0]]  # no meadow, rocket or robot in this memory
    subject, place = map(Image.open, examples[0]["images"])
    assert subject.getpixel((128, 128)) == (0, 128, 0, 255)
    frame = Image.open(examples[0]["first_frame"])
    assert frame.getpixel((0, 0)) == place.getpixel((0, 0))[:3]
    assert (0, 128, 0) in {color for _, color in frame.getcolors(1 << 16)}


def test_the_served_page_answers(pipeline, memory, pictures):
    from gradio_client import Client, handle_file

    page = build_demo(pipeline, memory, title="tiny")
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, show_error=True)
    try:
        client = Client(url, verbose=False)
        video, strip, seen = client.predict("A fox on a calm sea", 1, 0, 2, 2.0, api_name="/text_to_video")
        assert len(read_video(video["video"] if isinstance(video, dict) else video)) == 4
        assert [one["caption"] for one in seen] == ["A fox", "A calm sea"]
        images = [{"image": handle_file(path), "caption": None} for path in pictures]
        *_, seen = client.predict("A <image_1> on <image_2>", images, 0, 2, 2.0, api_name="/subject")
        assert [one["caption"] for one in seen] == ["<image_1>", "<image_2>"]
        *_, seen = client.predict("It moves", handle_file(pictures[0]), 0, 2, 2.0, api_name="/prediction")
        assert len(seen) == 1
        with pytest.raises(Exception, match="has no image"):
            client.predict("A <image_1>", None, 0, 2, 2.0, api_name="/subject")
    finally:
        page.close()


def test_a_saved_checkpoint_and_memory_open(pipeline, memory, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    memory.save(tmp_path / "memory")
    page = load_demo(str(tmp_path / "model"), tmp_path / "memory", device="cpu")
    assert {"text_to_video", "subject", "prediction"} <= {function.api_name for function in page.fns.values()}


def run_command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["demo", *map(str, arguments)])
    assert exit.value.code == 1


def test_command_names_a_missing_memory(capsys, tmp_path):
    run_command("--memory", tmp_path / "nowhere")
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and "nowhere" in error and error.count("\n") == 1


def test_command_names_a_missing_model(capsys, memory, tmp_path):
    memory.save(tmp_path / "memory")
    run_command("--memory", tmp_path / "memory", "--model", tmp_path / "no_model")
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and "no_model" in error and error.count("\n") == 1


def test_command_without_gradio_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    run_command()
    assert "pip install 'vimi_diffusers[demo]'" in capsys.readouterr().err


def test_command_names_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        run_command("--port", port)
    assert f"port {port} (Address already in use" in capsys.readouterr().err


def test_command_serves_what_it_was_given(monkeypatch):
    import vimi_diffusers.demo as module

    launched = {}
    monkeypatch.setattr(module, "load_demo", lambda *arguments: launched.setdefault("load", arguments))
    monkeypatch.setattr(module, "launch", lambda page, **options: launched.update(options))
    with pytest.raises(SystemExit) as exit:
        main(["demo", "--model", "user/repo", "--host", "127.0.0.1", "--port", "0"])
    assert not exit.value.code
    assert launched == {
        "load": ("user/repo", None, None),
        "server_name": "127.0.0.1",
        "server_port": None,
        "share": False,
    }


def test_space_entry_uses_its_environment(monkeypatch, pipeline, memory, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    memory.save(tmp_path / "memory")
    monkeypatch.setenv("VIMI_MODEL", str(tmp_path / "model"))
    monkeypatch.setenv("VIMI_MEMORY", str(tmp_path / "memory"))
    path = Path(__file__).parents[2] / "demo" / "app.py"
    spec = importlib.util.spec_from_file_location("space_app", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "space_app", module)
    spec.loader.exec_module(module)
    assert isinstance(module.demo, gr.Blocks)
