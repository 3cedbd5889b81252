import pytest

from vimi_diffusers.prompting import DEFAULT_INSTRUCTIONS, TASKS, TRAINING_INSTRUCTIONS, check_task, instruction_key


def test_every_task_has_a_default_and_many_distinct_wordings():
    assert set(DEFAULT_INSTRUCTIONS) == set(TRAINING_INSTRUCTIONS) == {*TASKS, "text-only"}
    for key, wordings in TRAINING_INSTRUCTIONS.items():
        assert len(set(wordings)) == len(wordings) >= 30
        assert DEFAULT_INSTRUCTIONS[key] in wordings
    every = [wording for wordings in TRAINING_INSTRUCTIONS.values() for wording in wordings]
    assert len(set(every)) == len(every), "one wording must not mean two tasks"


@pytest.mark.parametrize("key", TRAINING_INSTRUCTIONS)
def test_wordings_are_single_sentences_of_plain_text(key):
    for wording in TRAINING_INSTRUCTIONS[key]:
        assert wording == " ".join(wording.split()) and wording.endswith(".")
        assert "<" not in wording and wording.isascii() and wording[0].isupper()


@pytest.mark.parametrize(
    "key, words",
    [
        ("text-to-video", {"retrieved", "search", "found", "captions", "captioned"}),
        ("subject", {"image", "images", "picture", "pictures", "pictured", "subjects", "reference"}),
        ("prediction", {"frame", "frames", "image", "picture"}),
    ],
)
def test_wordings_name_what_the_task_is_given(key, words):
    for wording in TRAINING_INSTRUCTIONS[key]:
        assert words & set(wording.lower().replace(".", " ").replace(",", " ").replace(";", " ").split()), wording


def test_instruction_key_tells_text_to_video_with_and_without_pairs_apart():
    assert instruction_key("text-to-video") == "text-only"
    assert instruction_key("text-to-video", num_context=2) == "text-to-video"
    assert instruction_key("subject", num_context=0) == "subject"


def test_unknown_task_is_named():
    with pytest.raises(ValueError, match="Unknown task 'video'.*'prediction'"):
        check_task("video")
