import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import vimi_diffusers
from vimi_diffusers import cli


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    from vimi_diffusers import ImageTextMemory

    folder = tmp_path_factory.mktemp("pairs")
    rows = [("fox.png", "A fox", "subject", (200, 90, 20)), ("park.png", "A grassy park", "place", (20, 160, 40))]
    for name, _, _, colour in rows:
        Image.new("RGB", (8, 8), colour).save(folder / name)
    lines = [json.dumps({"file_name": name, "text": text, "kind": kind}) for name, text, kind, _ in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    ImageTextMemory.from_folder(folder).save(folder / "memory")
    return folder / "memory"


@pytest.fixture
def vimi(capsys):
    """Runs `vimi` in this process: exit code, stdout, stderr."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return exit.value.code or 0, output.out, output.err

    return run


@pytest.fixture
def generate(vimi, tiny_checkpoint, memory):
    def run(prompt, out, *arguments):
        return vimi("generate", prompt, "--out", out, "--model", tiny_checkpoint, "--steps", 1, *arguments)

    return run


def digests(*paths):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_text_to_video_retrieves_and_writes_video_and_strip(generate, memory, tmp_path):
    code, out, err = generate("A fox in a park", tmp_path / "fox.mp4", "--memory", memory)
    assert code == 0, err
    for word in ("Retrieved pairs", "fox.png", "A fox", "park.png", "A grassy park", "4 frames of 16x16 at 5.333 fps"):
        assert word in out
    assert "Error" not in err and "100%" in err  # the progress bar
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox.mp4", "fox.png"]
    strip = np.asarray(Image.open(tmp_path / "fox.png")).reshape(-1, 3).tolist()
    assert strip.count([200, 90, 20]) == strip.count([20, 160, 40]) == 128 * 128  # both retrieved images


def test_same_seed_same_bytes_and_retrieval_matters(generate, memory, tmp_path):
    variants = {
        "a": ["--memory", memory, "--seed", 3],
        "b": ["--memory", memory, "--seed", 3],
        "c": ["--memory", memory, "--seed", 4],
        "d": ["--no-retrieval", "--seed", 3],
        "e": ["--no-retrieval", "--seed", 3, "--guidance-scale", 1, "--num-frames", 8, "--fps", 12, "--scale", 2],
    }
    for name, arguments in variants.items():
        assert generate("A fox in a park", tmp_path / f"{name}.mp4", *arguments)[0] == 0
    a, b, *others = [digests(tmp_path / f"{name}.mp4", tmp_path / f"{name}.png") for name in variants]
    assert a == b
    assert len({video for video, _ in (a, *others)}) == 4


def test_subject_and_prediction_take_images(generate, tmp_path):
    for name, colour in (("dog", (255, 0, 0)), ("park", (0, 200, 0))):
        Image.new("RGB", (12, 12), colour).save(tmp_path / f"{name}.png")
    images = ["--image", tmp_path / "dog.png", "--image", tmp_path / "park.png"]
    code, out, err = generate("A <image_1> is walking in a <image_2>", tmp_path / "walk.mp4", *images)
    assert code == 0, err
    assert "Retrieved" not in out
    strip = np.asarray(Image.open(tmp_path / "walk.png")).reshape(-1, 3).tolist()
    assert strip.count([255, 0, 0]) >= 120 * 120 and strip.count([0, 200, 0]) >= 120 * 120
    swapped = generate("A <image_2> is walking in a <image_1>", tmp_path / "swap.mp4", *images)
    predicted = generate("A dog", tmp_path / "next.mp4", "--task", "prediction", *images[:2])
    assert swapped[0] == predicted[0] == 0
    assert len(set(digests(*(tmp_path / f"{name}.mp4" for name in ("walk", "swap", "next"))))) == 3


def test_images_are_weighed_apart_unless_a_scale_is_given(generate, memory, tmp_path):
    apart, together = ["--guidance-scale", 1, "--image-guidance-scale", 4], ["--guidance-scale", 3]
    variants = {
        "a": ["--memory", memory],
        "b": ["--memory", memory, *apart],
        "c": ["--memory", memory, *together],
        "d": ["--no-retrieval"],
        "e": ["--no-retrieval", *together],
    }
    for name, arguments in variants.items():
        assert generate("A fox in a park", tmp_path / f"{name}.mp4", *arguments)[0] == 0
    a, b, c, d, e = digests(*(tmp_path / f"{name}.mp4" for name in variants))
    assert a == b != c and d == e != a


def test_a_prompt_of_unknown_words_goes_without_pairs(generate, memory, tmp_path):
    code, out, _ = generate("Zzyzx", tmp_path / "a.mp4", "--memory", memory)
    assert code == 0 and "No pair of the memory shares a word with 'Zzyzx'" in out


BAD_INPUT = [
    (["A <image_1>"], "Tag <image_1> has no image"),
    (["A dog", "--image", "dog.png"], "no tag in the prompt"),
    (["A <image_1>", "--image", "dog.png", "--image", "dog.png"], "Image 2 of 2 has no tag"),
    (["A <image_1>", "--image", "broken.png"], "Cannot read image 'broken.png'"),
    (["A <image_1>", "--image", "missing.png"], "Cannot read image 'missing.png': no such file"),
    (["A dog", "--task", "movie"], "Unknown task 'movie'"),
    (["A dog", "--task", "prediction"], "exactly one image"),
    (["A dog", "--memory", "empty"], "empty"),
    (["A dog", "--memory", "nowhere"], "nowhere"),
    (["A dog", "--memory", "empty", "--no-retrieval"], "exclude each other"),
    (["A <image_1>", "--image", "dog.png", "--memory", "empty"], "retrieves nothing: drop --memory"),
    (["A dog", "--no-retrieval", "--model", "nowhere"], "'nowhere' is no folder and no name on the Hub"),
    (["A dog", "--no-retrieval", "--model", "empty"], "holds no pipeline: it has no model_index.json"),
    (["A dog", "--no-retrieval", "--device", "warp"], "warp"),
    (["A dog", "--no-retrieval", "--num-frames", "0"], "`num_frames` 0 does not fit the model"),
    (["A dog", "--no-retrieval", "--steps", "0"], "`num_inference_steps` must be"),
    (["A dog", "--no-retrieval", "--fps", "0"], "fps"),
    (["A dog", "--out", "a.gif"], "must name an .mp4 file, not 'a.gif'"),
    (["A dog", "--out", "nowhere/a.mp4"], "The folder 'nowhere' of --out does not exist"),
    (["A dog", "--out", "folder.mp4"], "'folder.mp4' is a folder"),
]


@pytest.mark.parametrize("arguments, message", BAD_INPUT, ids=[message for _, message in BAD_INPUT])
def test_bad_input_is_one_line_and_writes_nothing(vimi, tiny_checkpoint, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "broken.png").write_text("not a picture")
    Image.new("RGB", (8, 8)).save("dog.png")
    before = sorted(tmp_path.rglob("*"))
    defaults = [] if "--model" in arguments else ["--model", tiny_checkpoint]
    defaults += [] if "--out" in arguments else ["--out", "a.mp4"]
    code, out, err = vimi("generate", *arguments, *defaults)
    assert code == 1
    assert err.startswith("Error: ") and err.count("\n") == 1, err
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate", "A dog"], "Missing option '--out'"),
        (["generate", "--out", "a.mp4"], "Missing argument 'prompt'"),
        (["generate", "A dog", "--out", "a.mp4", "--seed", "x"], "--seed"),
        (["generate", "A dog", "--out", "a.mp4", "--dtype", "int8"], "--dtype"),
        (["generate", "A dog", "--colour"], "--colour"),
        (["paint"], "paint"),
    ],
)
def test_wrong_options_are_one_line(vimi, arguments, message):
    code, out, err = vimi(*arguments)
    assert code == 2
    assert err.startswith("Error: ") and err.count("\n") == 1 and message.lower() in err.lower()


def test_a_checkpoint_of_another_version(vimi, tiny_checkpoint, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    index = json.loads((tiny_checkpoint / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "checkpoint_version": 99}))
    code, _, err = vimi("generate", "A dog", "--no-retrieval", "--model", model, "--out", tmp_path / "a.mp4")
    assert code == 1 and "Error: This checkpoint has version 99" in err and err.count("\n") == 1
    assert not (tmp_path / "a.mp4").exists()


def test_version_and_help(vimi):
    assert vimi("--version") == (0, f"vimi_diffusers {vimi_diffusers.__version__}\n", "")
    code, out, _ = vimi("--help")
    assert code == 0 and all(name in out for name in ("generate", "demo", "memory", "emoji-world"))


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from vimi_diffusers.cli import main\n"
        "try:\n"
        "    main(['generate', '--help'])\n"
        "except SystemExit as exit:\n"
        "    assert not exit.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'datasets', 'gradio', 'cv2', 'pyarrow', 'numpy', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    source = os.path.dirname(os.path.dirname(vimi_diffusers.__file__))
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": source}, capture_output=True
    )
    assert result.returncode == 0, result.stderr.decode()
