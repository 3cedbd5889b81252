from types import SimpleNamespace

import pytest

from vimi_diffusers.prompting import lay_out_prompts


DOG, PARK, FOX = object(), object(), object()


def test_one_prompt_with_images():
    (prompt,) = lay_out_prompts("A <image_1> in a <image_2>", [DOG, PARK])
    assert prompt.task == "subject"
    assert prompt.text == "Generate a video with the text and image. A <image> in a <image>"
    assert prompt.images == [DOG, PARK]


def test_batch_with_different_tasks_and_numbers_of_images():
    prompts = lay_out_prompts(
        ["A <image_2> and <image_1>", "A fox", "A dog", "A cat"],
        images=[[DOG, PARK], None, [DOG], []],
        task=[None, None, "prediction", None],
        context=[[], [("A red fox", FOX), SimpleNamespace(text="A park", image=PARK)], None, []],
        image_token="<I>",
    )
    assert [prompt.task for prompt in prompts] == ["subject", "text-to-video", "prediction", "text-to-video"]
    assert [prompt.images for prompt in prompts] == [[PARK, DOG], [FOX, PARK], [DOG], []]
    assert prompts[1].text == "Generate a video with the retrieved text-image pairs. A red fox <I> A park <I> A fox"
    assert all(prompt.text.count("<I>") == len(prompt.images) for prompt in prompts)


def test_a_list_of_one_prompt_takes_a_flat_list():
    (prompt,) = lay_out_prompts(["A <image_1>"], [DOG])
    assert prompt.images == [DOG]
    (prompt,) = lay_out_prompts(["A dog"], context=[("A park", PARK)])
    assert prompt.images == [PARK]


def test_prompts_that_share_their_images_need_not_tag_all_of_them():
    shared = [DOG, PARK]
    prompts = lay_out_prompts(["A <image_1> in a <image_2>", "A <image_2>", "A <ima"], [shared] * 3)
    assert [prompt.task for prompt in prompts] == ["subject", "subject", "text-to-video"]
    assert [prompt.images for prompt in prompts] == [[DOG, PARK], [PARK], []]

    prompts = lay_out_prompts(["A <image_1>", "no tag"], [[DOG]] * 2, task="subject")
    assert [prompt.images for prompt in prompts] == [[DOG], []]
    prompts = lay_out_prompts(["A <image_1>", "A dog"], [[DOG], [DOG]], task=["subject", "prediction"])
    assert prompts[1].images == [DOG]


def test_an_image_that_no_prompt_of_the_batch_tags_is_an_error():
    with pytest.raises(ValueError, match="Image 2 of 2 has no tag"):
        lay_out_prompts(["A <image_1>", "A <image_1>"], [[DOG, PARK]] * 2)
    with pytest.raises(ValueError, match="Image 2 of 2 has no tag"):
        lay_out_prompts(["A <image_1>", "A fox"], [[DOG, PARK], []])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompt": None}, "`prompt` must be a string"),
        ({"prompt": []}, "`prompt` must be a string or a non-empty list"),
        ({"prompt": ["a", 1]}, "`prompt` must be a string"),
        ({"prompt": "A <image_1>", "images": DOG}, "`images` must be a list"),
        ({"prompt": ["a <image_1>", "b <image_1>"], "images": [DOG, PARK]}, "one list for each of the 2 prompts"),
        ({"prompt": ["a", "b"], "images": [[DOG]]}, "1 lists for 2 prompts"),
        ({"prompt": ["a", "b"], "task": ["subject"]}, "`task` holds 1 names for 2 prompts"),
        ({"prompt": "a", "context": [DOG]}, r"`context` must hold retrieved pairs or \(text, image\) tuples"),
        ({"prompt": "a", "context": [("text <image>", DOG)]}, "image placeholder"),
        ({"prompt": "a", "images": [DOG]}, "no tag in the prompt 'a'"),
        ({"prompt": "a", "images": [DOG], "task": "text-to-video"}, "takes no images"),
        ({"prompt": "a", "task": "prediction"}, "exactly one image"),
        ({"prompt": "a", "task": "movie"}, "Unknown task 'movie'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        lay_out_prompts(**arguments)
    assert "\n" not in str(error.value)
