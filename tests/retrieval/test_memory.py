"""The memory: building from folders and data sets, saving, loading, searching, and what it refuses."""

import io
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vimi_diffusers.retrieval import BM25Field, ImageTextMemory, ImageTextPair, RetrievalRecipe


STYLES = ("noto", "twemoji")
SUBJECTS = {
    "fox": ("A fox", "animal wild"),
    "dog": ("A dog", "animal puppy pet"),
    "turtle": ("A turtle", "animal sea slow"),
    "old-woman": ("An old woman", "granny person"),
    "sunset": ("A sunset", "dusk evening sun"),
    "lens": ("A black lens", "photo"),
    "thumbs-down": ("A thumbs down", "hand"),
    "thumbs-up": ("A thumbs up", "hand approval of a kind"),
}
PLACES = {
    "park": "A grassy park",
    "sea": "A calm sea",
    "lab": "An old laboratory",
    "square": "An old stone square at sunset",
    "studio": "A studio with black curtains",
}
PLACE_KEYWORDS = {"lab": "lab old room"}


def color_of(number: int) -> tuple[int, int, int]:
    return (10 * number, 255 - 10 * number, 128)


def write_folder(folder, rows):
    """A folder with a metadata.jsonl; a row's file is written as an image of its own colour unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        file = folder / row["file_name"]
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), color_of(number)).save(file)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def emoji_rows():
    rows = [
        {"id": f"{style}/{name}", "file_name": f"{style}/{name}.png", "text": text, "keywords": keywords,
         "kind": "subject", "concept": name, "style": style}
        for style in STYLES
        for name, (text, keywords) in SUBJECTS.items()
    ]  # fmt: skip
    rows += [
        {"id": f"place/{name}@{yaw}", "file_name": f"place/{name}@{yaw}.png", "text": text, "kind": "place",
         "keywords": PLACE_KEYWORDS.get(name), "concept": name, "yaw": yaw}
        for name, text in PLACES.items()
        for yaw in (0, 180)
    ]  # fmt: skip
    return rows


def ids(pairs):
    return [pair.id for pair in pairs]


@pytest.fixture(scope="module")
def emoji_folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("emoji") / "memory", emoji_rows())


@pytest.fixture(scope="module")
def emoji(emoji_folder):
    return ImageTextMemory.from_folder(emoji_folder)


@pytest.fixture
def plain_folder(tmp_path):
    texts = ["a red fox in the snow", "a grey wolf", "a fox beside a red barn", "a red kite"]
    return write_folder(tmp_path / "plain", [{"file_name": f"{n}.png", "text": text} for n, text in enumerate(texts)])


# Pairs and images


def test_pairs_of_a_folder(plain_folder):
    memory = ImageTextMemory.from_folder(plain_folder)
    assert len(memory) == 4
    pair = memory[1]
    assert (pair.id, pair.text, pair.kind, pair.score) == ("1.png", "a grey wolf", None, None)
    assert pair.metadata == {"file_name": "1.png"}
    assert pair.image.getpixel((0, 0)) == color_of(1)
    assert memory["1.png"].text == memory[-3].text == "a grey wolf"
    assert "1.png" in memory and "wolf" not in memory
    assert ids(memory) == memory.ids
    with pytest.raises(IndexError):
        memory[4]
    with pytest.raises(KeyError, match="wolf"):
        memory["wolf"]


def test_an_image_is_decoded_when_it_is_asked_for():
    buffer = io.BytesIO()
    Image.new("RGBA", (3, 2), (1, 2, 3, 4)).save(buffer, "PNG")
    pair = ImageTextPair("a", "text", buffer.getvalue())
    assert isinstance(pair.__dict__["image"], bytes)
    assert "ImageTextPair(id='a'" in repr(pair) and isinstance(pair.__dict__["image"], bytes)
    assert pair.image.mode == "RGBA" and pair.image.size == (3, 2)
    assert pair.image is pair.image
    broken = ImageTextPair("b", "text", b"no image")
    with pytest.raises(OSError):
        broken.image
    given = Image.new("RGB", (1, 1))
    assert ImageTextPair("c", "text", image=given).image is given
    with pytest.raises(TypeError):
        ImageTextPair("d", "text")


def test_images_come_upright_and_in_rgb(tmp_path):
    image = Image.new("L", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    (tmp_path / "m").mkdir()
    image.save(tmp_path / "m" / "a.jpg", exif=exif)
    memory = ImageTextMemory.from_folder(write_folder(tmp_path / "m", [{"file_name": "a.jpg", "text": "fox"}]))
    assert memory[0].image.size == (2, 4) and memory[0].image.mode == "RGB"


# Search in a plain memory


def test_plain_search_ranks_by_bm25(plain_folder):
    memory = ImageTextMemory.from_folder(plain_folder)
    pairs = memory.search("a red fox", k=3)
    assert ids(pairs) == ["0.png", "2.png", "3.png"]
    assert pairs[0].score > pairs[1].score > pairs[2].score > 0
    assert ids(memory.search("a red fox")) == ["0.png"]


def test_equal_scores_keep_the_memorys_order(plain_folder):
    rows = [{"file_name": f"{number}.png", "text": "a fox"} for number in (2, 0, 3, 1)]
    memory = ImageTextMemory.from_folder(write_folder(plain_folder, rows))
    assert ids(memory.search("fox", k=3)) == ["2.png", "0.png", "3.png"]


def test_more_pairs_than_match(plain_folder):
    memory = ImageTextMemory.from_folder(plain_folder)
    assert ids(memory.search("wolf", k=1000)) == ["1.png"]
    assert memory.search("wolf", k=0) == []


@pytest.mark.parametrize("prompt", ["", "   ", "the of and", "zebra", "\U0001f98a", "\u72d0\u72f8"])
def test_no_known_word_finds_nothing(plain_folder, emoji, prompt):
    assert ImageTextMemory.from_folder(plain_folder).search(prompt, k=3) == []
    assert emoji.search(prompt, k=3) == []


def test_excluded_pairs_are_not_returned(plain_folder):
    memory = ImageTextMemory.from_folder(plain_folder)
    assert ids(memory.search("red fox", k=2, exclude=["0.png"])) == ["2.png", "3.png"]
    assert memory.search("wolf", exclude=memory.ids) == []


def test_a_batch_searches_each_prompt(plain_folder):
    memory = ImageTextMemory.from_folder(plain_folder)
    found = memory.search_batch(["red fox", "wolf", "zebra"], k=1, exclude=[["0.png"], [], ["3.png"]])
    assert [ids(pairs) for pairs in found] == [["2.png"], ["1.png"], []]
    assert memory.search_batch([]) == []


def test_a_recipe_of_ones_own(plain_folder):
    rows = [
        {"file_name": "0.png", "text": "one", "tags": ["fox", "snow"], "what": 7},
        {"file_name": "1.png", "text": "two fox", "tags": ["barn"], "what": 7},
        {"file_name": "2.png", "text": "three", "tags": "fox", "what": 8},
    ]
    recipe = RetrievalRecipe(fields=(BM25Field("text", 0.1), BM25Field("tags")), group_by="what")
    memory = ImageTextMemory.from_folder(write_folder(plain_folder, rows), recipe=recipe)
    assert ids(memory.search("fox", k=3)) == ["2.png", "0.png"]
    assert memory["0.png"].metadata["tags"] == ["fox", "snow"]


# Search by kinds


def test_subject_and_place_are_found_in_the_order_of_the_sentence(emoji):
    pairs = emoji.search("A fox moves to the left in a grassy park, camera panning left.")
    assert ids(pairs) == ["noto/fox", "place/park@0"]
    assert [pair.kind for pair in pairs] == ["subject", "place"]


def test_the_place_takes_its_words_along(emoji):
    assert ids(emoji.search("A dog on an old stone square at sunset")) == ["noto/dog", "place/square@0"]
    # but only as often as the place has them
    assert ids(emoji.search("An old woman in an old laboratory")) == ["noto/old-woman", "place/lab@0"]
    # and also when the place itself may not be returned
    views = ["place/square@0", "place/square@180"]
    assert ids(emoji.search("A dog on a stone square at sunset", exclude=views)) == ["noto/dog"]


def test_a_place_found_by_its_keywords_takes_those_along(emoji):
    assert ids(emoji.search("An old woman in a lab with old dogs")) == ["noto/old-woman", "place/lab@0"]


def test_a_place_needs_a_cue(emoji):
    assert ids(emoji.search("A black lens and an old woman", k=2)) == ["noto/old-woman", "noto/lens"]
    assert ids(emoji.search("A fox, grassy park")) == ["noto/fox", "place/park@0"]
    assert ids(emoji.search("In the park, a black lens")) == ["noto/lens", "place/park@0"]


def test_of_texts_that_match_alike_the_literal_one_wins(emoji):
    assert ids(emoji.search("The thumbs up moves down")) == ["noto/thumbs-up"]
    assert ids(emoji.search("A thumbs down moves up")) == ["noto/thumbs-down"]
    assert ids(emoji.search("Thumbs and a hand")) == ["noto/thumbs-down"]
    assert ids(emoji.search("An old woman in the street", k=2)) == ["noto/old-woman"]


def test_the_word_of_a_place_in_the_subject_is_no_place(emoji):
    assert ids(emoji.search("A sea turtle glides through a park")) == ["noto/turtle", "place/park@0"]
    assert ids(emoji.search("A park turtle glides over the sea")) == ["noto/turtle", "place/sea@0"]


def test_keywords_help_but_do_not_outvote_the_text(emoji):
    assert ids(emoji.search("A puppy")) == ["noto/dog"]
    assert ids(emoji.search("An animal, a fox")) == ["noto/fox"]


def test_one_pair_for_each_concept(emoji):
    assert ids(emoji.search("a fox and a dog", k=4)) == ["noto/fox", "noto/dog"]


def test_another_drawing_can_be_preferred(emoji):
    prompt = "A fox stays in place in a grassy park"
    assert ids(emoji.search(prompt, prefer=["twemoji/fox", "place/park@180"])) == ["twemoji/fox", "place/park@180"]
    assert ids(emoji.search(prompt, exclude=["noto/fox", "place/park@0"])) == ["twemoji/fox", "place/park@180"]
    assert ids(emoji.search(prompt, exclude=["twemoji/fox"], prefer=["twemoji/fox"])) == ["noto/fox", "place/park@0"]


def test_a_missing_kind_is_left_out(emoji):
    assert ids(emoji.search("a fox")) == ["noto/fox"]
    assert ids(emoji.search("In a grassy park")) == ["place/park@0"]
    assert ids(emoji.search("xyzzy moves to the left")) == []


def test_k_by_kind(emoji):
    prompt = "a fox and a dog on an old stone square"
    assert ids(emoji.search(prompt, k={"subject": 2})) == ["noto/fox", "noto/dog"]
    assert ids(emoji.search(prompt, k={"subject": 1, "place": 2})) == ["noto/fox", "place/square@0", "place/lab@0"]


def test_subjects_alone_need_no_places(tmp_path):
    rows = [row for row in emoji_rows() if row["kind"] == "subject"]
    memory = ImageTextMemory.from_folder(write_folder(tmp_path / "subjects", rows))
    assert ids(memory.search("A fox in a park")) == ["noto/fox"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompt": ["a fox"]}, "use search_batch"),
        ({"prompt": "a fox", "k": -1}, "not -1"),
        ({"prompt": "a fox", "k": 1.5}, "not 1.5"),
        ({"prompt": "a fox", "k": {"animal": 1}}, "kind 'animal', but the memory has 'subject', 'place'"),
        ({"prompt": "a fox", "exclude": ["noto/foxx"]}, "`exclude` names pair 'noto/foxx'"),
        ({"prompt": "a fox", "exclude": "noto/fox"}, "takes a list of ids"),
        ({"prompt": "a fox", "prefer": ["x"]}, "`prefer` names pair 'x'"),
    ],
)
def test_bad_searches(emoji, arguments, message):
    with pytest.raises(ValueError, match=message):
        emoji.search(**arguments)


def test_bad_batches(emoji):
    with pytest.raises(ValueError, match="each of the 2 prompts"):
        emoji.search_batch(["a", "b"], exclude=[["noto/fox"]])
    with pytest.raises(ValueError, match="use search for a single string"):
        emoji.search_batch("a fox")


# Save and load


@pytest.mark.parametrize("mmap", [True, False])
def test_a_loaded_memory_is_the_saved_one(emoji, tmp_path, mmap):
    emoji.save(tmp_path / "saved")
    loaded = ImageTextMemory.load(tmp_path / "saved", mmap=mmap)
    assert len(loaded) == len(emoji) and loaded.recipe == emoji.recipe and loaded.ids == emoji.ids
    for prompt in ("A fox in a grassy park", "An old woman in an old laboratory", "puppy", "zebra"):
        for one, other in zip(emoji.search(prompt, k=3), loaded.search(prompt, k=3), strict=True):
            assert (one.id, one.text, one.score, one.kind, one.metadata) == (
                other.id, other.text, other.score, other.kind, other.metadata
            )  # fmt: skip
            assert one.image.tobytes() == other.image.tobytes()


def test_a_memory_travels_to_a_worker(emoji, tmp_path):
    emoji.save(tmp_path / "saved")
    memory = pickle.loads(pickle.dumps(ImageTextMemory.load(tmp_path / "saved")))
    pair = pickle.loads(pickle.dumps(memory.search("fox")[0]))
    assert pair.id == "noto/fox" and pair.image.getpixel((0, 0)) == color_of(0)


def test_saving_is_reproducible(emoji_folder, tmp_path):
    code = (
        "import sys; from vimi_diffusers.retrieval import ImageTextMemory;"
        "ImageTextMemory.from_folder(sys.argv[1]).save(sys.argv[2])"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(emoji_folder), str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
        )  # fmt: skip
    files = sorted(file.relative_to(tmp_path / "1") for file in (tmp_path / "1").rglob("*") if file.is_file())
    assert len(files) >= 3
    for file in files:
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes(), file


def test_search_does_not_import_datasets(emoji, tmp_path):
    emoji.save(tmp_path / "saved")
    code = (
        "import sys; from vimi_diffusers.retrieval import ImageTextMemory;"
        "assert ImageTextMemory.load(sys.argv[1]).search('fox');"
        "assert not {'datasets', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "saved")], check=True)


def test_saving_replaces_a_memory_and_nothing_else(emoji, plain_folder, tmp_path):
    target = tmp_path / "deep" / "saved"
    emoji.save(target)
    loaded = ImageTextMemory.load(target)
    ImageTextMemory.from_folder(plain_folder).save(target)
    assert len(ImageTextMemory.load(target)) == 4
    assert loaded.search("fox")[0].image.getpixel((0, 0)) == color_of(0)  # the mapped files outlive their names
    assert os.listdir(target.parent) == ["saved"]
    (plain_folder / "manifest.json").write_text('{"version": 1}')  # of something else
    with pytest.raises(FileExistsError, match="other content"):
        emoji.save(plain_folder)
    assert (plain_folder / "0.png").is_file()
    with pytest.raises(FileExistsError, match="is a file"):
        emoji.save(plain_folder / "0.png")


def test_a_failed_save_leaves_the_old_memory(emoji, plain_folder, tmp_path, monkeypatch):
    target = tmp_path / "saved"
    emoji.save(target)

    other = ImageTextMemory.from_folder(plain_folder)

    def fail(self, folder):
        raise OSError("No space left on device")

    monkeypatch.setattr("vimi_diffusers.retrieval.memory.storage.Manifest.write", fail)
    for path, memory in ((target, other), (tmp_path / "new", emoji)):
        with pytest.raises(OSError, match="No space"):
            memory.save(path)
        with pytest.raises(OSError, match="No space"):
            ImageTextMemory.create(path, [{"id": "a", "text": "a fox", "image": Image.new("RGB", (4, 4))}])
    assert os.listdir(tmp_path) and not (tmp_path / "new").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    assert len(ImageTextMemory.load(target)) == len(emoji)


def damage_size(folder):
    (file,) = (folder / "data").iterdir()
    file.write_bytes(file.read_bytes()[:-100])


def damage_content(folder):
    file = next((folder / "index" / "00000" / "subject.text").glob("*.documents*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x7F
    file.write_bytes(bytes(data))


def remove_index(folder):
    for file in (folder / "index" / "00000" / "subject.text").glob("*.npy"):
        file.unlink()


def change_manifest(**values):
    def change(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, **values}))

    return change


@pytest.mark.parametrize(
    "damage, message",
    [
        (damage_size, "data/train-00000-of-00001.parquet has .* bytes instead of"),
        (damage_content, "documents.* has other content"),
        (remove_index, "index/00000/subject.text is damaged .* is missing"),
        (lambda folder: os.truncate(folder / "manifest.json", 200), "is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "not a saved memory .* no index"),
        (change_manifest(version=99), "format version 99, this package reads 2"),
        (change_manifest(num_pairs=3), "26 entries where 3 belong"),
        (change_manifest(recipe={}), "'fields' is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "not a saved memory .* no index"),
    ],
)
def test_a_damaged_memory_is_refused_by_name(emoji, tmp_path, damage, message):
    target = tmp_path / "broken memory"
    emoji.save(target)
    damage(target)
    with pytest.raises(ValueError, match=message) as caught:
        ImageTextMemory.load(target)
    assert str(target) in str(caught.value) and "vimi memory build" in str(caught.value)


def test_a_missing_memory(tmp_path):
    with pytest.raises(FileNotFoundError, match="no memory at .*nowhere.*vimi memory build"):
        ImageTextMemory.load(tmp_path / "nowhere")


# Building from bad folders


def test_empty_texts_are_dropped_and_counted(plain_folder, tmp_path, caplog):
    rows = [{"file_name": f"{number}.png", "text": text} for number, text in enumerate(["a fox", " ", None])]
    memory = ImageTextMemory.from_folder(write_folder(plain_folder, rows))
    assert memory.ids == ["0.png"] and memory.num_dropped == 2
    assert memory["0.png"].image.getpixel((0, 0)) == color_of(0)
    assert "Dropped 2 of 3 pairs" in caplog.text
    memory.save(tmp_path / "saved")
    assert ImageTextMemory.load(tmp_path / "saved").num_dropped == 2


def test_a_dropped_pair_does_not_shift_the_images(plain_folder):
    rows = [{"file_name": "0.png", "text": ""}, {"file_name": "1.png", "text": "a fox"}]
    memory = ImageTextMemory.from_folder(write_folder(plain_folder, rows))
    assert memory["1.png"].image.getpixel((0, 0)) == color_of(1)


@pytest.mark.parametrize(
    "lines, message",
    [
        ("", "no pair with a text"),
        ('{"file_name": "0.png", "text": ""}', "no pair with a text"),
        ('{"file_name": "0.png", "text": "of the"}', "no text with a searchable word"),
        ("not json", "line 1 is not JSON"),
        ("[1]", "line 1 must be an object"),
        ('{"file_name": "0.png"}', '"file_name" and "text"'),
        ('{"text": "a fox"}', '"file_name" and "text"'),
        ('{"file_name": "0.png", "text": 7}', "'text' must be a string, not 7"),
        ('{"file_name": "0.png", "text": "a", "id": ""}', "the id is empty"),
        ('\n' + 2 * '{"file_name": "0.png", "text": "a"}\n', "Id '0.png' is that of two pairs, 0 and 1"),
        ('{"file_name": "0.png", "text": "a fox", "kind": "subject", "keywords": 3}', "'keywords' is indexed"),
        ('{"file_name": "metadata.jsonl", "text": "a fox"}', "metadata.jsonl is not a readable image"),
    ],
)  # fmt: skip
def test_bad_metadata(plain_folder, lines, message):
    (plain_folder / "metadata.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=message):
        ImageTextMemory.from_folder(plain_folder)


def test_missing_files(plain_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        ImageTextMemory.from_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty has no metadata.jsonl"):
        ImageTextMemory.from_folder(tmp_path / "empty")
    (plain_folder / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match="line 3: image .*2.png is missing"):
        ImageTextMemory.from_folder(plain_folder)


def test_a_truncated_image(plain_folder):
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(plain_folder / "3.png")
    (plain_folder / "3.png").write_bytes((plain_folder / "3.png").read_bytes()[:1500])
    with pytest.raises(ValueError, match="line 4: 3.png is not a readable image"):
        ImageTextMemory.from_folder(plain_folder)


def test_a_recipe_that_does_not_fit(plain_folder, emoji_folder):
    with pytest.raises(ValueError, match="uses 'tags', which no pair has"):
        ImageTextMemory.from_folder(plain_folder, recipe=RetrievalRecipe(fields=(BM25Field("tags"),)))
    with pytest.raises(ValueError, match="'noto/fox' is of kind 'subject'"):
        ImageTextMemory.from_folder(emoji_folder, recipe=RetrievalRecipe(kinds=("place",)))


# Data sets


def small_dataset(**columns):
    import datasets

    images = [Image.new("RGB", (4, 4), color_of(number)) for number in range(3)]
    captions = ["a fox", "", "a red barn"]
    values = {"image": images, "caption": captions, "key": ["a", "b", "c"], "year": [1, 2, 3], **columns}
    return datasets.Dataset.from_dict(values).cast_column("image", datasets.Image())


def test_a_memory_from_a_data_set(tmp_path):
    memory = ImageTextMemory.from_dataset(small_dataset(), text_column="caption", id_column="key")
    assert memory.ids == ["a", "c"] and memory.num_dropped == 1
    pair = memory.search("barn")[0]
    assert pair.id == "c" and pair.image.getpixel((0, 0)) == color_of(2)
    assert pair.metadata == {"year": 3}
    assert ImageTextMemory.from_dataset(small_dataset(), text_column="caption").ids == ["0", "2"]


def test_a_data_set_with_files_and_kinds(tmp_path):
    import datasets

    Image.new("RGB", (4, 4), (9, 8, 7)).save(tmp_path / "a.png")
    columns = {"image": [str(tmp_path / "a.png")], "text": ["a fox"], "kind": ["subject"]}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    memory = ImageTextMemory.from_dataset(dataset)
    assert memory.recipe.kinds == ("subject", "place")
    assert memory.search("fox")[0].image.getpixel((0, 0)) == (9, 8, 7)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="row 0: image .*a.png is missing"):
        ImageTextMemory.from_dataset(dataset)


def test_bad_data_sets():
    import datasets

    with pytest.raises(ValueError, match="no column 'text'"):
        ImageTextMemory.from_dataset(small_dataset())
    with pytest.raises(ValueError, match="pick a split"):
        ImageTextMemory.from_dataset(datasets.DatasetDict(train=small_dataset()))
    with pytest.raises(ValueError, match="'key' is .*cast_column"):
        ImageTextMemory.from_dataset(small_dataset(), image_column="key", text_column="caption")
    with pytest.raises(ValueError, match="Id 'a' is that of two pairs, 0 and 1"):
        ImageTextMemory.from_dataset(small_dataset(key=["a", "b", "a"]), text_column="caption", id_column="key")
    broken = datasets.Dataset.from_dict({"image": [{"bytes": b"junk", "path": None}], "text": ["fox"]})
    broken = broken.cast(datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("string")}))
    with pytest.raises(ValueError, match="row 0 is not a readable image"):
        ImageTextMemory.from_dataset(broken)
