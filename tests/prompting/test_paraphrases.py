import itertools
import re

import pytest

from vimi_diffusers.prompting import TRAINING_INSTRUCTIONS
from vimi_diffusers.prompting.paraphrases import PARAPHRASES


def words(wording):
    return re.findall(r"\w+", wording.lower())


@pytest.mark.parametrize("key", TRAINING_INSTRUCTIONS)
def test_over_a_hundred_wordings_differ_in_their_words(key):
    wordings = PARAPHRASES[key]
    assert wordings[: len(TRAINING_INSTRUCTIONS[key])] == TRAINING_INSTRUCTIONS[key]
    bags = [frozenset(words(wording)) for wording in wordings]
    assert len(set(bags)) == len(wordings) >= 100  # neither punctuation nor order alone makes another
    likeness = [len(one & other) / len(one | other) for one, other in itertools.combinations(bags, 2)]
    assert max(likeness) < 0.9 and sum(likeness) / len(likeness) < 0.25


def test_one_wording_does_not_mean_two_tasks():
    every = [" ".join(words(wording)) for wordings in PARAPHRASES.values() for wording in wordings]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    "key, named",
    [
        ("text-to-video", {"retrieved", "search", "found", "captions", "captioned"}),
        ("subject", {"image", "images", "picture", "pictures", "pictured", "subjects", "reference"}),
        ("prediction", {"frame", "frames", "image", "picture"}),
    ],
)
def test_wordings_name_what_the_task_is_given(key, named):
    assert [wording for wording in PARAPHRASES[key] if not named & set(words(wording))] == []


@pytest.mark.parametrize("key", PARAPHRASES)
def test_wordings_are_plain_text(key):
    for wording in PARAPHRASES[key]:
        assert wording == " ".join(wording.split()) and wording.endswith(".") and wording.isascii()
        assert wording[0].isupper() and "<" not in wording
