import pickle
from pathlib import Path

import pytest

from vimi_diffusers.data.schema import REASONS, BadSample, parse_record, place_references


def parse(row, **columns):
    return parse_record(row, Path, "here", **columns)


def test_a_minimal_and_a_full_record():
    record = parse({"video": "a.mp4", "caption": " A dog runs. ", "extra": 1})
    assert (record.video, record.caption, record.fps, record.task) == (Path("a.mp4"), "A dog runs.", None, None)
    assert record.default_task == "text-to-video" and record.key == "here"
    assert record.tasks(is_image=False) == ("text-to-video", "prediction")
    assert record.tasks(is_image=True) == ("text-to-video",)

    row = {
        "clip": "a.mp4",
        "text": "A dog runs",
        "fps": 24,
        "task": None,
        "instruction": "Film it.",
        "references": [{"image": "dog.png", "name": "dog"}],
        "context": [{"image": "park.png", "text": "A park"}],
    }
    record = parse(row, video_column="clip", caption_column="text")
    assert record.default_task == "subject" and record.instruction == "Film it." and record.fps == 24
    assert record.tasks(is_image=False) == ("text-to-video", "subject", "prediction")
    assert (record.references[0].image, record.references[0].name) == (Path("dog.png"), "dog")
    assert (record.context[0].image, record.context[0].text) == (Path("park.png"), "A park")
    assert (record.prompt, record.words) == ("A <image_1> runs", "A dog runs")
    assert parse({**row, "task": "prediction"}, video_column="clip", caption_column="text").tasks(False) == (
        "prediction",
    )


@pytest.mark.parametrize(
    "caption, names, prompt, words",
    [
        ("A dog runs", ["dog"], "A <image_1> runs", "A dog runs"),
        ("A Dog and a dog house", ["dog", "dog house"], "A <image_1> and a <image_2>", "A Dog and a dog house"),
        ("hotdog, dog", ["dog"], "hotdog, <image_1>", "hotdog, dog"),
        ("A <dog> in a <big_park>", ["big_park", "dog"], "A <image_2> in a <image_1>", "A dog in a big park"),
        ("A <image_2> on a <image_1>", ["mat", "cat"], "A <image_2> on a <image_1>", "A cat on a mat"),
        ("A <image> sits", [None], "A <image> sits", "A sits"),
        ("A dog", ["dog", "dog"], "A <image_1><image_2>", "A dog"),
        ("<PERSON> waves", [], "<PERSON> waves", "<PERSON> waves"),
    ],
)
def test_where_references_stand(caption, names, prompt, words):
    assert place_references(caption, names) == (prompt, words)


@pytest.mark.parametrize(
    "row, reason, said",
    [
        ([1], "bad_record", "list"),
        ({"video": "a.mp4"}, "missing_caption", "`caption`"),
        ({"video": "a.mp4", "caption": "  "}, "missing_caption", "empty"),
        ({"caption": "x"}, "missing_file", "`video`"),
        ({"video": "a.mp4", "caption": 3}, "bad_record", "`caption` must be of type str, got 3"),
        ({"video": "a.mp4", "caption": "x", "fps": 0}, "bad_record", "got 0"),
        ({"video": "a.mp4", "caption": "x", "fps": float("nan")}, "bad_record", "nan"),
        ({"video": "a.mp4", "caption": "x", "fps": "24"}, "bad_record", "'24'"),
        ({"video": "a.mp4", "caption": "x", "task": "dance"}, "bad_record", "'dance'"),
        ({"video": "a.mp4", "caption": "x", "task": "subject"}, "bad_record", "references"),
        ({"video": "a.mp4", "caption": "x", "references": "dog.png"}, "bad_record", "`references`"),
        ({"video": "a.mp4", "caption": "x", "references": ["dog.png"]}, "bad_record", "objects"),
        ({"video": "a.mp4", "caption": "x", "context": [{"image": "a.png"}]}, "bad_record", "`text` is missing"),
        ({"video": "a.mp4", "caption": "x", "references": [{"name": "x"}]}, "bad_record", "`image` is missing"),
        ({"video": "a", "caption": "A cat", "references": [{"image": "d", "name": "dog"}]}, "bad_reference", "'dog'"),
        ({"video": "a", "caption": "A cat", "references": [{"image": "d"}]}, "bad_reference", "no `name`"),
        ({"video": "a", "caption": "A <image_1>"}, "bad_reference", "<image_1>"),
        ({"video": "a", "caption": "<cat> d", "references": [{"image": "d", "name": "d"}]}, "bad_reference", "<cat>"),
    ],
)  # fmt: skip
def test_rows_that_do_not_keep_to_the_schema(row, reason, said):
    with pytest.raises(BadSample) as caught:
        parse(row)
    assert caught.value.reason == reason and said in caught.value.detail and caught.value.key == "here"
    assert reason in REASONS


def test_an_image_cannot_be_predicted_and_errors_travel_between_processes():
    record = parse({"video": "a.png", "caption": "x", "task": "prediction"})
    assert record.tasks(is_image=False) == ("prediction",)
    with pytest.raises(BadSample, match="needs a video") as caught:
        record.tasks(is_image=True)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.reason, copy.detail, copy.key) == ("bad_record", caught.value.detail, "here")
