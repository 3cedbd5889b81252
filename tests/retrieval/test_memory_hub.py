"""Memories to and from the Hub, against a small one on loopback."""

import json

import datasets
import huggingface_hub
import numpy as np
import pytest
from fake_hub import TOKEN, FakeHub
from PIL import Image

from vimi_diffusers.retrieval import ImageTextMemory


REPO = "user/little-memory"
STORED = f"datasets/{REPO}"
NUM_PAIRS = 250


def pair(number, word="fox"):
    pixels = np.random.default_rng(number).integers(0, 255, (24, 24, 3), dtype=np.uint8)  # of some size when encoded
    pixels[0, 0] = number % 256, 7, 9
    return {
        "id": f"p{number}",
        "text": f"A {word} number{number}",
        "image": Image.fromarray(pixels),
        "source": f"book {number % 3}",
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "saved"
    ImageTextMemory.create(folder, map(pair, range(NUM_PAIRS)))
    return folder


@pytest.fixture
def memory(saved, tmp_path):
    """A copy of one's own."""
    ImageTextMemory.load(saved).save(tmp_path / "memory")
    return ImageTextMemory.load(tmp_path / "memory")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with FakeHub(tmp_path / "hub") as hub:
        hub.connect(monkeypatch, tmp_path / "cache")
        yield hub


def assert_same(one, other):
    for prompt in ("A fox", "number177", "number3 of a wolf"):
        for left, right in zip(one.search(prompt, k=5), other.search(prompt, k=5), strict=True):
            assert (left.id, left.text, left.score, left.metadata) == (
                right.id, right.text, right.score, right.metadata
            )  # fmt: skip
            assert left.image.tobytes() == right.image.tobytes()


def test_push_then_pull_is_exact(hub, memory):
    assert memory.push_to_hub(REPO).endswith(STORED)
    pulled = ImageTextMemory.from_pretrained(REPO)
    with pytest.raises(ValueError, match="is the Hub's cache: save the memory"):
        pulled.add([pair(900)])
    assert pulled.ids == memory.ids and pulled.recipe == memory.recipe
    assert_same(pulled, memory)
    hub.requests.clear()
    ImageTextMemory.from_pretrained(REPO)
    assert not [path for _, path in hub.requests if "/resolve/" in path]  # all is in the cache
    assert_same(ImageTextMemory.from_pretrained(REPO, local_files_only=True), memory)


def test_what_lies_on_the_hub_is_a_data_set_of_images(hub, memory, tmp_path):
    memory.push_to_hub(REPO, license="cc-by-4.0")
    folder = hub.folder(STORED)
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "datasets"))
    assert len(rows) == NUM_PAIRS and isinstance(rows.features["image"], datasets.Image)
    assert rows[3]["image"].getpixel((0, 0)) == (3, 7, 9) and rows[3]["id"] == "p3"
    assert json.loads(rows[3]["metadata"]) == {"source": "book 0"}

    card = huggingface_hub.DatasetCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.size_categories == ["n<1K"]
    assert card.data.configs == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}
    ]  # fmt: skip
    assert f'from_pretrained("{REPO}")' in card.text and "250 image-text pairs" in card.text


def test_remote_images_are_read_by_ranges(hub, memory):
    memory.push_to_hub(REPO)
    hub.requests.clear()
    remote = ImageTextMemory.from_pretrained(REPO, images="remote")
    assert not [path for _, path in hub.requests if path.endswith(".parquet")] and not hub.ranges
    (found,) = remote.search("number177")
    num_bytes = (hub.folder(STORED) / "data/train-00000-of-00001.parquet").stat().st_size
    texts = sum(size for _, size in hub.ranges)
    assert found.image.getpixel((0, 0)) == (177, 7, 9)
    assert {path for path, _ in hub.ranges} == {"data/train-00000-of-00001.parquet"}
    assert 0 < texts < sum(size for _, size in hub.ranges) < num_bytes
    asked = len(hub.ranges)
    assert remote["p176"].image.size == (24, 24) and len(hub.ranges) == asked  # of the same row group
    assert_same(remote, memory)
    for change in (lambda: remote.add([pair(900)]), lambda: remote.save("x"), lambda: remote.push_to_hub(REPO)):
        with pytest.raises(ValueError, match="are on the Hub"):
            change()


def test_what_is_read_later_fits_what_was_read_before(hub, memory):
    memory.push_to_hub(REPO)
    remote = ImageTextMemory.from_pretrained(REPO, images="remote")
    ImageTextMemory.create(memory._folder, [pair(number, "wolf") for number in range(90)])
    ImageTextMemory.load(memory._folder).push_to_hub(REPO)
    assert [found.text for found in remote.search("number177")] == ["A fox number177"]
    assert len(ImageTextMemory.from_pretrained(REPO)) == 90


def test_a_push_leaves_nothing_of_the_memory_before(hub, memory):
    memory.push_to_hub(REPO)
    memory.add([pair(1000, "wolf")])
    memory.push_to_hub(REPO)
    files = memory._manifest.files(memory._folder)
    assert {*files, "README.md"} == set(hub.files(STORED))
    pulled = ImageTextMemory.from_pretrained(REPO)
    assert pulled.search("wolf")[0].id == "p1000" and len(pulled) == NUM_PAIRS + 1
    assert "251 image-text pairs" in (hub.folder(STORED) / "README.md").read_text()


def test_a_card_that_someone_edited_stays(hub, memory):
    memory.push_to_hub(REPO)
    readme = hub.folder(STORED) / "README.md"
    readme.write_text("---\nlicense: mit\n---\nMine.")
    memory.push_to_hub(REPO)
    assert readme.read_text().endswith("Mine.")
    (memory._folder / "README.md").write_text("Of the folder.")
    memory.push_to_hub(REPO)
    assert readme.read_text() == "Of the folder."


def test_many_files_come_before_their_manifest(hub, memory, monkeypatch):
    monkeypatch.setattr("vimi_diffusers.retrieval.memory.hub._FILES_PER_COMMIT", 3)
    memory.push_to_hub(REPO)
    before, after = (hub.folder(STORED, name) for name in (hub_commits(hub)[0], "main"))
    assert not (before / "manifest.json").exists() and any((before / "data").iterdir())
    assert (after / "manifest.json").is_file()
    assert_same(ImageTextMemory.from_pretrained(REPO), memory)


def hub_commits(hub):
    return [folder.name.partition("@")[2] for folder in hub.root.glob(f"{STORED}@*")]


def test_revisions(hub, memory):
    memory.push_to_hub(REPO)
    memory.add([pair(1000, "wolf")])
    memory.push_to_hub(REPO, revision="larger", commit_message="More")
    assert len(ImageTextMemory.from_pretrained(REPO)) == NUM_PAIRS
    assert len(ImageTextMemory.from_pretrained(REPO, revision="larger")) == NUM_PAIRS + 1
    with pytest.raises(OSError, match=f"{REPO} on the Hub has no revision 'nowhere'"):
        ImageTextMemory.from_pretrained(REPO, revision="nowhere")


@pytest.mark.parametrize("images", ["download", "remote"])
def test_private_memories(hub, memory, monkeypatch, images):
    memory.push_to_hub(REPO, private=True)
    hub.private.add(STORED)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match=f"no data set '{REPO}' on the Hub, or it is private.*token"):
        ImageTextMemory.from_pretrained(REPO, images=images)
    found = ImageTextMemory.from_pretrained(REPO, token=TOKEN, images=images)
    assert found.search("number5")[0].image.size == (24, 24)


def test_what_is_no_memory(hub, memory, tmp_path):
    other = hub.root / "datasets/user/pictures"
    other.mkdir(parents=True)
    (other / "README.md").write_text("Pictures")
    with pytest.raises(ValueError, match="user/pictures on the Hub is no memory"):
        ImageTextMemory.from_pretrained("user/pictures")
    with pytest.raises(OSError, match="no data set 'user/nothing' on the Hub"):
        ImageTextMemory.from_pretrained("user/nothing")
    with pytest.raises(FileNotFoundError, match="no memory at ./nowhere"):
        ImageTextMemory.from_pretrained("./nowhere")
    with pytest.raises(ValueError, match="`images` is"):
        ImageTextMemory.from_pretrained(REPO, images="none")
    with pytest.raises(ValueError, match="needs the Hub"):
        ImageTextMemory.from_pretrained(REPO, images="remote", local_files_only=True)
    assert len(ImageTextMemory.from_pretrained(memory._folder)) == NUM_PAIRS


def test_a_hub_that_went_away(hub, memory, monkeypatch):
    memory.push_to_hub(REPO)
    remote = ImageTextMemory.from_pretrained(REPO, images="remote")
    hub.private.add(STORED)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="data/train-00000-of-00001.parquet cannot be read: .*token"):
        remote.search("number5")
    hub.private.clear()
    assert remote.search("number5")[0].id == "p5"


def test_offline(hub, memory, monkeypatch, tmp_path):
    with pytest.raises(OSError, match=f"{REPO} is not in the cache and the Hub cannot be asked"):
        ImageTextMemory.from_pretrained(REPO, local_files_only=True)
    memory.push_to_hub(REPO)
    ImageTextMemory.from_pretrained(REPO)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_same(ImageTextMemory.from_pretrained(REPO), memory)
    with pytest.raises(OSError, match="not in the cache and the Hub cannot be asked"):
        ImageTextMemory.from_pretrained(REPO, cache_dir=tmp_path / "other cache")
