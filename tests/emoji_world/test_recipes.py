import json
import re
import shutil
from collections import Counter

import pytest

from vimi_diffusers.emoji_world.captions import MOVES, PLACE_NAMES
from vimi_diffusers.emoji_world.recipes import (
    CODAS,
    COINED_PLACE,
    COINED_SUBJECT,
    ONSETS,
    RETRIEVED_STYLES,
    TRAINING_RETRIEVED_STYLES,
    Draws,
    Sample,
    SampleDrawer,
)
from vimi_diffusers.emoji_world.world_index import WorldIndex
from vimi_diffusers.prompting import DEFAULT_INSTRUCTIONS, TRAINING_INSTRUCTIONS, lay_out_prompts


MIX = {"text-to-video": 0.3, "subject": 0.4, "prediction": 0.3}


@pytest.fixture(scope="module")
def index(tiny_world):
    return WorldIndex.load(tiny_world)


@pytest.fixture(scope="module")
def train(index):
    drawer = SampleDrawer(index, "train", MIX)
    return [drawer.draw(number) for number in range(4000)]


def of_task(samples, task):
    return [sample for sample in samples if sample.task == task]


def angle(a, b):
    return min((a - b) % 360, (b - a) % 360)


def test_the_stream_of_draws_never_changes():
    draws = Draws("1:train:0:42")
    assert [round(draws.random(), 9) for _ in range(3)] == [0.664766283, 0.174293158, 0.367927319]


def test_a_sample_depends_on_version_split_seed_and_number_alone(index, train):
    again = SampleDrawer(index, "train", MIX)
    assert [again.draw(number) for number in (7, 3, 3999)] == [train[7], train[3], train[3999]]
    assert SampleDrawer(index, "train", MIX, seed=1).draw(7) != train[7]
    assert SampleDrawer(index, "val_seen", MIX).draw(7).video != train[7].video


def test_json_round_trip(train):
    for sample in train[:300]:
        line = sample.to_json()
        assert "\n" not in line and "null" not in line
        assert Sample.from_json(line) == sample
    record = json.loads(train[0].to_json())
    assert list(record)[:8] == ["id", "split", "task", "seed", "instruction", "prompt", "caption", "context"]
    assert record["video"]["recipe"]["move"] in MOVES


@pytest.mark.parametrize("line", ['{"id": "train/1"}', '{"video": {"recipe": {"kind": "anim"}}, "context": []}'])
def test_a_line_that_is_no_sample_is_refused(line):
    with pytest.raises(ValueError, match="Not an emoji-world sample"):
        Sample.from_json(line)


def test_recipes_stay_in_their_ranges(train):
    for sample in train:
        recipe = sample.video.recipe
        assert 0.40 <= recipe.scale <= 0.62 and 0.40 <= recipe.dist <= 0.60
        assert 65 <= recipe.fov <= 85 and abs(recipe.pitch) <= 8 and 25 <= recipe.pan <= 60 and 0 <= recipe.yaw <= 360
        assert recipe.x == 0.5 if recipe.move in ("left", "right") else 0.4 <= recipe.x <= 0.6
        assert recipe.y == 0.5 if recipe.move in ("up", "down") else 0.48 <= recipe.y <= 0.64
        assert 0 <= recipe.phase < 16
    cameras = Counter(sample.video.recipe.cam for sample in train)
    assert cameras[0] == pytest.approx(2000, rel=0.1) and cameras[1] == pytest.approx(1000, rel=0.15)
    assert {sample.video.recipe.move for sample in train} == set(MOVES)
    assert train[0].video.fps == 5.333 and train[0].video.num_frames == 16


def test_training_sees_nothing_that_is_held_out(index, train):
    for sample in train:
        assert index.concepts[sample.concept].split == "train" and index.places[sample.place].split == "train"
        for reference in sample.context:
            kind, _, name = reference.image.partition("/")
            if kind == "memory":
                assert index.memory[name].split == "train"
            elif kind == "places":
                assert index.places[name].split == "train"
            elif kind == "clips":
                assert index.concepts[name.partition("@")[0]].split == "train"


COINED = re.compile(f"(?:(?:{'|'.join(ONSETS)})[aeiou]){{2,3}}(?:{'|'.join(CODAS)})")


def own_texts(index, sample, reference):
    """The memory's caption of what a retrieved pair shows, and whether that is what the video shows."""
    kind, _, name = reference.image.partition("/")
    if kind == "memory":
        entry = index.memory[name]
        return entry.text, entry.concept == (sample.concept if entry.kind == "subject" else sample.place)
    return index.places[name].text, name == sample.place


def coined_word(index, sample, reference):
    """The made-up word of a retrieved pair's caption, or `None` where it has the memory's own."""
    text, right = own_texts(index, sample, reference)
    if reference.text == text:
        return None
    assert right and reference.text.startswith("A ")  # a wrong pair keeps its own name
    word = reference.text.removeprefix("A ")
    assert COINED.fullmatch(word), word
    return word


def test_text_to_video_shows_another_drawing_and_another_view(index, train):
    samples = of_task(train, "text-to-video")
    wrong, styles = 0, set()
    for sample in samples:
        assert sample.video.recipe.kind == "anim" and sample.video.recipe.style == "fluent3d"
        for reference in sample.context:
            kind, _, name = reference.image.partition("/")
            coined = coined_word(index, sample, reference)
            if reference.role == "retrieved_subject":
                entry = index.memory[name]
                styles.add(entry.style)
                assert entry.style in TRAINING_RETRIEVED_STYLES and (coined or reference.text == entry.text)
                wrong += entry.concept != sample.concept
            else:
                assert reference.role == "retrieved_place"
                yaw = index.memory[name].yaw if kind == "memory" else reference.yaw
                place = index.memory[name].concept if kind == "memory" else name
                assert coined or reference.text == index.places[place].text
                wrong += place != sample.place
                assert place != sample.place or angle(yaw, sample.video.recipe.yaw) >= 59.99
    assert styles == set(TRAINING_RETRIEVED_STYLES)
    assert 0 < wrong < 0.06 * len(samples)
    images = Counter(len(sample.context) for sample in samples)
    assert images[0] == pytest.approx(0.2 * len(samples), rel=0.25)
    assert images[1] == pytest.approx(0.06 * len(samples), rel=0.5)
    views = Counter(r.image.split("/")[0] for s in samples for r in s.context if r.role == "retrieved_place")
    assert min(views["memory"], views["places"]) > 0.3 * views.total()


def test_a_made_up_name_stands_in_the_pair_and_in_the_caption(index, train):
    samples = [s for s in of_task(train, "text-to-video") if s.context]
    pairs = {"retrieved_subject": [], "retrieved_place": []}
    for sample in samples:
        own = {"retrieved_subject": index.concepts[sample.concept].phrase, "retrieved_place": ""}
        for reference in sample.context:
            if not own_texts(index, sample, reference)[1]:
                continue
            word = coined_word(index, sample, reference)
            pairs[reference.role].append(word is not None)
            if word is not None:
                assert re.search(rf"\b{word}\b", sample.caption) and re.search(rf"\b{word}\b", sample.prompt)
                phrase = own[reference.role]
                assert not phrase or phrase.partition(" ")[2] not in sample.caption
    for role, share in (("retrieved_subject", COINED_SUBJECT), ("retrieved_place", COINED_PLACE)):
        assert sum(pairs[role]) == pytest.approx(share * len(pairs[role]), rel=0.15)
    words = [coined_word(index, s, r) for s in samples for r in s.context]
    words = [word for word in words if word]
    assert len(set(words)) > 0.9 * len(words)  # a new word each time


def test_only_training_text_to_video_has_made_up_names(index, train):
    known = {concept.phrase for concept in index.concepts.values()}
    for sample in train:
        if sample.task != "text-to-video" or not sample.context:
            noun = index.concepts[sample.concept].phrase.rpartition(" ")[2]
            assert noun in sample.caption
    for split in ("val_seen", "val_concept"):
        drawer = SampleDrawer(index, split, {"text-to-video": 1.0}, canonical=True)
        for number in range(200):
            sample = drawer.draw(number)
            assert [coined_word(index, sample, reference) for reference in sample.context] == [None, None]
            assert all(index.memory[r.image.removeprefix("memory/")].style in (*RETRIEVED_STYLES, None)
                       for r in sample.context)  # fmt: skip
            assert any(sample.caption.lower().startswith(phrase.lower()) for phrase in known)
            assert index.places[sample.place].phrase in sample.caption


def test_subject_task_shows_the_same_rendering_augmented(train):
    samples = of_task(train, "subject")
    for sample in samples:
        recipe = sample.video.recipe
        assert sample.prompt.count("<image>") == len(sample.context)
        for reference in sample.context:
            assert reference.text is None
            if reference.role == "subject":
                still = f"memory/{recipe.style}/{sample.concept}"
                assert reference.image == still or (
                    recipe.kind == "anim" and reference.image.startswith(f"clips/{sample.concept}@")
                )
                assert abs(reference.rotation) <= 15 and 0.7 <= reference.scale <= 1
                assert 0.9 <= reference.brightness <= 1.1
            else:
                assert reference.role == "place" and reference.image == f"places/{sample.place}"
                assert angle(reference.yaw, recipe.yaw) <= 15.001
                assert abs(reference.fov - recipe.fov) <= 8.001 and abs(reference.pitch - recipe.pitch) <= 4.001
    roles = Counter(frozenset(r.role for r in sample.context) for sample in samples)
    assert set(roles) == {frozenset(), frozenset({"subject"}), frozenset({"place"}), frozenset({"subject", "place"})}
    kinds = Counter(sample.video.recipe.kind for sample in samples)
    assert kinds["still"] == pytest.approx(len(samples) / 2, rel=0.15)
    styles = {sample.video.recipe.style for sample in samples if sample.video.recipe.kind == "still"}
    assert styles == {"fluent3d", "noto", "flat", "twemoji"}
    assert all(s.video.recipe.style == "fluent3d" for s in samples if [r.role for r in s.context] == ["place"])


def test_a_pictured_subject_may_be_anywhere(index, train):
    alone = [s for s in of_task(train, "subject") if [r.role for r in s.context] == ["subject"]]
    nouns = [noun.partition(" ")[2] for names in PLACE_NAMES.values() for _, _, noun in names]
    nouns += [place.phrase.split(" ", 2)[2] for place in index.places.values()]
    nowhere = [s for s in alone if not any(noun in s.prompt for noun in nouns)]
    assert len(nowhere) == pytest.approx(10 / 25 * len(alone), rel=0.25)
    assert {s.place for s in nowhere} == {"park", "city", "sky"}


def test_order_of_images_is_the_order_of_their_placeholders(train):
    place_first = [s for s in of_task(train, "subject") if [r.role for r in s.context] == ["place", "subject"]]
    assert place_first and all("<image>, " in sample.prompt for sample in place_first)


def test_prediction_shows_the_first_frame_and_nothing_else(train):
    for sample in of_task(train, "prediction"):
        assert [(r.role, r.image) for r in sample.context] in ([("first_frame", "frame/0")], [])
        assert sample.prompt in (sample.caption, "")


def test_symbols_are_no_still_subjects(index, train):
    assert all(index.concepts[sample.concept].group != "symbols" for sample in train)


def test_unconditional_samples_have_no_text_and_no_image(train):
    empty = [sample for sample in train if not sample.instruction]
    assert len(empty) == pytest.approx(0.1 * len(train), rel=0.2)
    for sample in empty:
        assert sample.text() == "" and sample.context == () and sample.prompt == "" and sample.caption


def test_images_alone_are_dropped_as_guidance_drops_them(index, train):
    """The text is that of the guider's branch of words: the prompt without its tags, as text-to-video."""
    for task in ("subject", "prediction"):
        samples = of_task(train, task)
        words = [sample for sample in samples if sample.instruction and not sample.context]
        assert len(words) == pytest.approx(0.05 * len(samples), rel=0.4)
        for sample in words:
            branch = lay_out_prompts([sample.prompt], task="text-to-video")[0].text
            assert branch == sample.text().replace(sample.instruction, DEFAULT_INSTRUCTIONS["text-only"])
            if task == "subject":  # no words for what the images showed
                assert index.concepts[sample.concept].phrase not in sample.prompt and "<image>" not in sample.prompt
            else:
                assert sample.prompt == sample.caption


def test_text_layout(train):
    for sample in train:
        text = sample.text("<img>")
        assert text.count("<img>") == len(sample.context) and "<image>" not in text
        if sample.instruction:
            key = sample.task if sample.context else "text-only"
            assert sample.instruction in TRAINING_INSTRUCTIONS[key] and text.startswith(sample.instruction)
        if sample.task == "prediction" and sample.context:
            assert text.endswith(f"{sample.prompt} <img>")


@pytest.mark.parametrize(
    "split, concepts, places",
    [
        ("val_seen", "train", "train"),
        ("val_concept", "held_out", "train"),
        ("val_place", "train", "held_out"),
        ("val_both", "held_out", "held_out"),
    ],
)
def test_evaluation_is_canonical_and_visits_every_concept(index, split, concepts, places):
    with_clip = {c.concept for c in index.concepts.values() if c.clip and c.split == concepts}
    videos = {}
    for task in MIX:
        drawer = SampleDrawer(index, split, {task: 1.0}, canonical=True)
        samples = [drawer.draw(number) for number in range(60)]
        videos[task] = [sample.video for sample in samples]
        assert {sample.concept for sample in samples[: len(with_clip)]} == with_clip
        for sample in samples:
            assert index.places[sample.place].split == places and sample.video.recipe.kind == "anim"
            assert sample.instruction == DEFAULT_INSTRUCTIONS[task]
            assert len(sample.context) == (1 if task == "prediction" else 2)
            if task == "text-to-video":
                subject, place = (index.memory[r.image.removeprefix("memory/")] for r in sample.context)
                assert subject.concept == sample.concept and place.concept == sample.place
    assert videos["text-to-video"] == videos["subject"] == videos["prediction"]


def test_only_evaluation_orders_concepts(index):
    seen = [SampleDrawer(index, "val_concept", MIX, seed=seed).draw(0).concept for seed in range(8)]
    assert len(set(seen)) == 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"split": "test"}, "Unknown split 'test'"),
        ({"task_weights": {"t2v": 1.0}}, "Unknown task 't2v'"),
        ({"task_weights": {"subject": -1.0}}, "-1.0"),
        ({"task_weights": {"subject": 0.0}}, "at least one weight"),
        ({"task_weights": {}}, "at least one weight"),
        ({"still_share": 1.5}, "1.5"),
    ],
)
def test_wrong_settings_are_refused(index, change, message):
    settings = {"split": "train", "task_weights": MIX, **change}
    with pytest.raises(ValueError, match=message):
        SampleDrawer(index, **settings)


def test_a_folder_that_is_no_world_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="manifest.json is missing"):
        WorldIndex.load(tmp_path)


def test_a_table_without_a_field_is_refused(tiny_world, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(tiny_world, root)
    lines = (root / "places.jsonl").read_text().splitlines()
    lines[1] = json.dumps({k: v for k, v in json.loads(lines[1]).items() if k != "phrase"})
    (root / "places.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="line 2, has no field 'phrase'"):
        WorldIndex.load(root)


def test_a_world_without_held_out_places_has_no_such_split(tiny_world, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(tiny_world, root)
    lines = (root / "places.jsonl").read_text().splitlines()
    (root / "places.jsonl").write_text("\n".join(line for line in lines if "held_out" not in line))
    with pytest.raises(ValueError, match="'val_both' has no panorama"):
        SampleDrawer(WorldIndex.load(root), "val_both", MIX)


def test_unknown_images_are_refused(index):
    assert index.image_row("clips/1f98a@17") == index.image_row("clips/1f98a@1")
    for image in ("memory/noto/none", "clips/none@0", "pictures/x"):
        with pytest.raises(ValueError, match=image):
            index.image_row(image)
