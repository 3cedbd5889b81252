import numpy as np
import pytest
from PIL import Image

from vimi_diffusers.data.instruct import (
    ClipFrames,
    Detections,
    Detector,
    Entity,
    EntityExtractor,
    Extraction,
    Segmenter,
    SubjectFinder,
    SubjectSettings,
)
from vimi_diffusers.data.instruct.subjects import ENTITY_REASONS, usable_entities


SIZE = 100


class Words(EntityExtractor):
    """Finds given words."""

    def __init__(self, *entities):
        super().__init__()
        self.entities = entities

    def __call__(self, captions):
        return [Extraction(tuple(each for each in self.entities if each.text in caption)) for caption in captions]


class Boxes(Detector):
    """Gives for each frame in turn the same boxes: word -> list over frames of [(left, top, right, bottom, score)]."""

    def __init__(self, boxes):
        super().__init__()
        self.boxes, self.asked = boxes, []

    def __call__(self, images, phrases):
        self.asked.append((len(images), list(map(list, phrases))))
        results = []
        for image, words in zip(images, phrases):
            rows = {word: np.array(self.boxes[word][image.info["time"]], float).reshape(-1, 5) for word in words}
            results.append({word: Detections(row[:, :4], row[:, 4]) for word, row in rows.items()})
        return results


class Filled(Segmenter):
    """The upper part of each box, and something outside of it."""

    def __init__(self, part=1.0):
        super().__init__()
        self.part = part

    def __call__(self, images, boxes):
        results = []
        for image, of_image in zip(images, boxes):
            masks = np.zeros((len(of_image), image.height, image.width), bool)
            for mask, (left, top, right, bottom) in zip(masks, of_image.astype(int)):
                mask[top : top + round((bottom - top) * self.part), left:right] = True
                mask[-1, -1] = True
            results.append(masks)
        return results


def find(caption, boxes, entities, part=1.0, **settings):
    frames = [Image.new("RGB", (SIZE, SIZE)) for _ in range(3)]
    for number, frame in enumerate(frames):
        frame.info = {"sample": "a", "time": number}
    finder = SubjectFinder(Words(*entities), Boxes(boxes), Filled(part), SubjectSettings(**settings))
    (found,) = finder([ClipFrames(caption, frames)])
    return found


DOG = Entity("dog", 2)
CAPTION = "A dog and a cat in a park"
CAT, PARK = Entity("cat", 12), Entity("park", 21, background=True)
GOOD = (10, 10, 50, 40, 0.9)


def test_a_subject_is_found_in_every_frame_and_a_background_is_not_looked_for():
    found = find(CAPTION, {"dog": [[GOOD]] * 3}, [PARK, DOG])
    assert [each.entity for each in found.subjects] == [DOG] and found.background == PARK and found.dropped == []
    views = found.subjects[0].views
    assert list(views) == [0, 1, 2] and views[0].score == 0.9 and views[0].box.tolist() == [10, 10, 50, 40]
    expected = np.zeros((SIZE, SIZE), bool)
    expected[10:40, 10:50] = True
    assert np.array_equal(views[2].mask, expected), "what a mask has outside of its box does not count"
    assert len(found.occupied) == 3 and np.array_equal(found.occupied[0], expected)


@pytest.mark.parametrize(
    "boxes, part, reason",
    [
        ([[]] * 3, 1.0, "not_found"),
        ([[(10, 10, 50, 40, 0.34)]] * 3, 1.0, "not_found"),
        ([[GOOD], [], [GOOD]], 1.0, "leaves_view"),
        ([[(10, 10, 20, 25, 0.9)]] * 3, 1.0, "too_small"),
        ([[(0, 0, 100, 95, 0.9)]] * 3, 1.0, "too_large"),
        ([[GOOD]] * 3, 0.1, "thin_mask"),
        ([[GOOD, (60, 60, 95, 95, 0.8)]] * 3, 1.0, "several"),
        ([[GOOD], [GOOD, (60, 60, 95, 95, 0.8)], [GOOD]], 1.0, "several"),
    ],
)
def test_what_fails_a_filter_is_dropped_with_its_reason(boxes, part, reason):
    found = find(CAPTION, {"dog": boxes}, [DOG], part)
    assert found.subjects == [] and found.dropped == [("dog", reason)] and reason in ENTITY_REASONS


def test_limits_are_settings():
    assert find(CAPTION, {"dog": [[GOOD], [], [GOOD]]}, [DOG], min_visible=0.6).subjects
    assert find(CAPTION, {"dog": [[(10, 10, 50, 40, 0.3)]] * 3}, [DOG], min_score=0.3).subjects
    assert find(CAPTION, {"dog": [[GOOD, (60, 60, 95, 95, 0.8)]] * 3}, [DOG], max_rival=0.95).subjects
    with pytest.raises(ValueError, match="`min_area` must be in"):
        SubjectSettings(min_area=2)


def test_the_same_thing_found_twice_is_no_rival():
    assert find(CAPTION, {"dog": [[GOOD, (11, 10, 51, 41, 0.85)]] * 3}, [DOG]).subjects


def test_rivals_are_kept_out_of_the_background():
    found = find(CAPTION, {"dog": [[GOOD, (60, 60, 95, 95, 0.8)]] * 3}, [DOG])
    assert found.occupied[0][20, 20] and found.occupied[0][80, 80] and not found.occupied[0][5, 5]


def test_two_words_for_one_thing_leave_the_better_scored():
    boxes = {"dog": [[GOOD]] * 3, "cat": [[(10, 10, 51, 40, 0.95)]] * 3}
    found = find(CAPTION, boxes, [DOG, CAT])
    assert [each.entity for each in found.subjects] == [CAT] and found.dropped == [("dog", "duplicate")]
    apart = {"dog": [[GOOD]] * 3, "cat": [[(50, 50, 90, 90, 0.95)]] * 3}
    assert [each.entity for each in find(CAPTION, apart, [CAT, DOG]).subjects] == [DOG, CAT]


def test_models_get_all_clips_at_once_and_only_those_with_words():
    frame = Image.new("RGB", (SIZE, SIZE))
    frame.info = {"sample": "a", "time": 0}
    detector = Boxes({"dog": [[GOOD]]})
    captions = ["A dog runs", "nothing", "A dog sits"]
    found = SubjectFinder(Words(DOG), detector, Filled())([ClipFrames(caption, [frame]) for caption in captions])
    assert [len(each.subjects) for each in found] == [1, 0, 1]
    assert detector.asked == [(2, [["dog"], ["dog"]])]
    assert found[1].occupied == []


@pytest.mark.parametrize(
    "caption, entities, kept, dropped",
    [
        ("A dog and a hot dog", [Entity("dog", 2)], [], [("dog", "repeated")]),
        ("A dog, a Dog", [Entity("dog", 2)], [], [("dog", "repeated")]),
        ("A cat in hat", [Entity("hat", 9), Entity("cat in hat", 2)], ["cat in hat"], [("hat", "overlapping")]),
        ("Two dogs", [Entity("dogs", 4, plural=True)], [], [("dogs", "plural")]),
        ("A dogged dog", [Entity("dog", 9)], ["dog"], []),
    ],
)  # fmt: skip
def test_words_that_a_reference_cannot_replace_without_doubt_are_dropped(caption, entities, kept, dropped):
    found = usable_entities(caption, Extraction(tuple(entities)))
    assert [each.entity.text for each in found.subjects] == kept and found.dropped == dropped


def test_the_first_place_is_the_background():
    entities = (Entity("park", 5, True), Entity("mountains", 17, True, plural=True))
    found = usable_entities("In a park by the mountains", Extraction(entities))
    assert found.background.text == "park" and found.dropped == [("mountains", "second_background")]


def test_an_extractor_that_points_elsewhere_is_wrong():
    with pytest.raises(ValueError, match="says 'dog' where the caption 'A cat' has 'cat'"):
        usable_entities("A cat", Extraction((Entity("dog", 2),)))
