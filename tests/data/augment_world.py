"""A memory in three index shards, and a data set whose samples leak into it in each way that there is."""

import hashlib
import io
import json
from pathlib import Path

import av
from media_files import encode_image, write_folder
from PIL import Image
from shapes import draw, encode

from vimi_diffusers import ImageTextMemory
from vimi_diffusers.data import open_source


WORDS = "fox bear owl crab deer frog".split()
PLACES = "park beach forest city".split()
NUM_PAIRS, NUM_SAMPLES = 60, 26


def pair(number: int) -> dict:
    """Every word has ten pairs and every place fifteen."""
    text = f"A {WORDS[number % 6]} in a {PLACES[number % 4]}, picture {number}"
    return {"id": f"pair{number}", "text": text, "image": encode(draw(number)), "url": f"http://pairs/{number}"}


def encode_clip(first: Image.Image) -> bytes:
    """Eight frames, the first of which is a given picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "10", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *first.size, "yuv420p"
        for picture in [first] + 7 * [Image.new("RGB", first.size)]:
            for packet in stream.encode(av.VideoFrame.from_image(picture)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file.getvalue()


def make_memory(folder: Path, rows=None) -> Path:
    rows = rows or [pair(number) for number in range(NUM_PAIRS)]
    third = len(rows) // 3
    memory = ImageTextMemory.create(folder, rows[:third])
    memory.add(rows[third : 2 * third])
    memory.add(rows[2 * third :])
    return folder


def make_data(folder: Path) -> Path:
    """
    Samples 0 to 25: images, except for the videos 1 and 2. Sample 2 begins with the image of pair 2, 3 is pair 3
    recoded, 4 has the address of pair 4; 5 is an evaluation prompt, 6 has no file, 7 knows no word, 8 no caption, 9
    references and a context of its own, 10 a broken video.
    """
    rows, files = [], {"dog.png": encode_image()}
    for number in range(NUM_SAMPLES):
        name = f"clips/{number}.png"
        files[name] = encode(draw(1000 + number))
        text = f"A {WORDS[number % 6]} walks through a {PLACES[number % 4]}"
        rows.append({"video": name, "caption": text, "url": f"http://clips/{number}"})
    for number, first in ((1, 1001), (2, 2)):
        del files[f"clips/{number}.png"]
        rows[number]["video"] = f"clips/{number}.mp4"
        files[f"clips/{number}.mp4"] = encode_clip(draw(first))
    files["clips/3.png"] = encode(draw(3).resize((80, 80)), "JPEG", quality=80)
    rows[4]["url"] = "http://pairs/4"
    rows[5]["caption"] = "An evaluation prompt of a fox"
    del files["clips/6.png"]
    rows[7]["caption"] = "zyzzyva 🦊 का"
    rows[8]["caption"] = " "
    rows[9] |= {
        "fps": 8,
        "task": "text-to-video",
        "instruction": "Do it",
        "references": [{"image": "dog.png", "name": "crab"}],
        "context": [{"image": "dog.png", "text": "old"}],
    }
    files["clips/10.png"] = b"broken"
    return write_folder(folder, rows, files)


def read_all(path) -> dict[str, tuple]:
    """What a data set says of each sample, by its key in the original data set, for comparisons."""
    source = open_source(path)
    found = {}
    for number in range(len(source)):
        row, record = source.row(number), source.record(number)
        video = record.video if isinstance(record.video, Path) else media_hash(record.video)
        found[row["key"]] = (
            record.caption, video, record.fps, record.task, record.instruction, row["url"],
            [(one.name, media_hash(one.image)) for one in record.references],
            [(item["id"], one.text, round(item["score"], 4), media_hash(one.image))
             for item, one in zip(row.get("context") or (), record.context)],
        )  # fmt: skip
    return found


def media_hash(media) -> str:
    data = media if isinstance(media, bytes) else media.read_bytes() if isinstance(media, Path) else media.read()
    return hashlib.sha256(data).hexdigest()


def shard_hashes(folder: Path) -> dict[str, str]:
    return {file["file"]: file["sha256"] for file in json.loads((folder / "manifest.json").read_text())["shards"]}
