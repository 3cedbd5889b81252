import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimi_diffusers.prompting import bind_names, lay_out_prompts, without_tags


DOG, SIDE, PARK = object(), object(), object()


def test_names_become_numbers_wherever_they_stand():
    prompt, images = bind_names("A <park> where a <dog> meets a <dog>", {"dog": DOG, "park": PARK})
    assert prompt == "A <image_2> where a <image_1> meets a <image_1>"
    assert images == [DOG, PARK]


def test_views_of_one_subject_stand_side_by_side():
    (prompt,) = lay_out_prompts("A <dog> in a <park>", {"dog": [DOG, SIDE], "park": PARK})
    assert prompt.text.endswith("A <image><image> in a <image>") and prompt.task == "subject"
    assert prompt.images == [DOG, SIDE, PARK]


def test_a_batch_shares_one_dict_or_has_its_own():
    shared = lay_out_prompts(["A <dog>", "The <park> and a <dog>", "A cat"], {"dog": DOG, "park": PARK})
    assert [prompt.images for prompt in shared] == [[DOG], [PARK, DOG], []]
    assert [prompt.task for prompt in shared] == ["subject", "subject", "text-to-video"]
    own = lay_out_prompts(["A <dog>", "A <dog>", "A cat"], [{"dog": DOG}, {"dog": SIDE}, None])
    assert [prompt.images for prompt in own] == [[DOG], [SIDE], []]


@pytest.mark.parametrize(
    "prompt, images, message",
    [
        ("A <cat>", {"dog": DOG}, "'dog' has no tag in the prompt 'A <cat>': write <dog>"),
        ("A <dog> and a <cat>", {"dog": DOG}, "<cat> has no image; `images` has 'dog'"),
        ("A <dog>", {"dog": []}, "<dog> has an empty list"),
        ("A <1dog>", {"1dog": DOG}, "'1dog' cannot be a tag"),
        ("A <3>", {3: DOG}, "3 cannot be a tag"),
        (["A <dog>", "A cat"], {"dog": DOG, "park": PARK}, "'park' has no tag"),
        (["A <dog>", "A <dog>"], [{"dog": DOG}], "one for each of the 2 prompts"),
        (["A <dog>", "A <image_1>"], [{"dog": DOG}, [PARK]], "one for each of the 2 prompts"),
    ],
)
def test_names_and_images_must_match(prompt, images, message):
    with pytest.raises(ValueError, match=message):
        lay_out_prompts(prompt, images)


names = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True).filter(lambda name: not name.startswith("image"))


@given(st.dictionaries(names, st.lists(st.integers(), min_size=1, max_size=3), min_size=1, max_size=4))
def test_every_placeholder_has_its_image(images):
    (prompt,) = lay_out_prompts(" and ".join(f"<{name}>" for name in images), images)
    assert prompt.text.count("<image>") == len(prompt.images)
    assert prompt.images == [view for views in images.values() for view in views]


def test_words_without_images():
    assert without_tags("A <image_1> walks  in a <image>.") == "A walks in a ."
    assert without_tags("A dog") == "A dog"
