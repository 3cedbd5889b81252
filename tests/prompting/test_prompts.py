import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimi_diffusers.prompting import check_prompt, format_prompt, has_tags, infer_task, resolve_tags


def test_numbered_tags_give_images_in_order_of_appearance():
    prompt, images = resolve_tags("A <image_2> on <image_1> near a <image_2>.", ["dog", "park"])
    assert prompt == "A <image> on <image> near a <image>."
    assert images == ["park", "dog", "park"]


def test_plain_tags_stand_for_the_images_in_turn():
    assert resolve_tags("A <image> in a <image>", ["dog", "park"], image_token="<I>") == (
        "A <I> in a <I>",
        ["dog", "park"],
    )


def test_more_than_nine_images():
    tags = " ".join(f"<image_{n}>" for n in range(12, 0, -1))
    assert resolve_tags(tags, list(range(1, 13)))[1] == list(range(12, 0, -1))


@pytest.mark.parametrize("text", ["<image_", "<image", "<image_x>", "image_1", "<Image_1>", "< image_1>"])
def test_half_a_tag_is_text(text):
    assert not has_tags(text)
    assert resolve_tags(text, []) == (text, [])


@pytest.mark.parametrize(
    "prompt, images, message",
    [
        ("A <image_3> in a park", ["a", "b"], "Tag <image_3> has no image .2 given."),
        ("A <image_1>", [], "Tag <image_1> has no image .0 given."),
        ("A <image_0>", ["a"], "<image_0> has no image.*count from 1"),
        ("A <image_1> in a park", ["a", "b"], "Image 2 of 2 has no tag.*write <image_2>"),
        ("A park", ["a"], "Image 1 of 1 has no tag"),
        ("A <image> in a <image>", ["a"], "2 <image> tags for 1 image"),
        ("A <image>", ["a", "b"], "1 <image> tag.* for 2 images"),
        ("A <image> in a <image_2>", ["a", "b"], "mixes <image> with <image_2>"),
    ],
)
def test_tags_and_images_must_match(prompt, images, message):
    with pytest.raises(ValueError, match=message) as error:
        resolve_tags(prompt, images)
    assert "\n" not in str(error.value)


def test_unused_images_are_left_out_when_allowed():
    assert resolve_tags("A <image_2>", ["a", "b"], allow_unused=True) == ("A <image>", ["b"])
    with pytest.raises(ValueError, match="<image_3>"):
        resolve_tags("A <image_3>", ["a", "b"], allow_unused=True)


@given(st.lists(st.one_of(st.text(max_size=8), st.integers(1, 5)), max_size=12))
def test_placeholders_and_images_always_agree(parts):
    numbers = [part for part in parts if isinstance(part, int)]
    prompt = "".join(f"<image_{part}>" if isinstance(part, int) else part.replace("<", "") for part in parts)
    images = list(range(1, max(numbers, default=0) + 1))
    resolved, bound = resolve_tags(prompt, images, allow_unused=True)
    assert bound == numbers
    assert resolved.count("<image>") == len(numbers)


def test_task_is_inferred_from_tags():
    assert infer_task("A <image_1> runs", 1) == "subject"
    assert infer_task("A <image_1> runs", 0) == "subject"  # and then fails for want of the image
    assert infer_task("A dog runs") == "text-to-video"
    with pytest.raises(ValueError, match='no tag.*<image_1>.*task="prediction"'):
        infer_task("A dog runs", 1)


@pytest.mark.parametrize(
    "task, prompt, num_images, num_context, message",
    [
        ("movie", "A dog", 0, 0, "Unknown task 'movie'"),
        ("text-to-video", "A dog", 1, 0, 'takes no images .1 given.*`context`.*task="subject"'),
        ("text-to-video", "A <image_1>", 0, 0, 'takes no image tags.*<image_1>.*task="subject"'),
        ("prediction", "A dog", 0, 0, "exactly one image.*0 given"),
        ("prediction", "A dog", 2, 0, "exactly one image.*2 given"),
        ("prediction", "A <image_1>", 1, 0, "takes no image tags.*<image_1>"),
        ("prediction", "A dog", 1, 1, "takes no retrieved context"),
        ("subject", "A <image_1>", 1, 1, "takes no retrieved context"),
        ("subject", "A <image_1>", 0, 0, "Tag <image_1> has no image"),
        ("subject", "A dog", 0, 0, "needs at least one image"),
        ("subject", "A dog", 1, 0, "Image 1 of 1 has no tag"),
    ],
)
def test_arguments_that_do_not_fit_the_task(task, prompt, num_images, num_context, message):
    with pytest.raises(ValueError, match=message) as error:
        check_prompt(task, prompt, num_images, num_context)
    assert "\n" not in str(error.value)


def test_arguments_that_fit_the_task():
    check_prompt("text-to-video", "A dog", 0, 3)
    check_prompt("prediction", "A dog", 1)
    check_prompt("subject", "A <image_1> and <image_1>", 1)


def test_layout_of_the_three_tasks():
    assert (
        format_prompt("text-to-video", "A dog is playing.", ["A white dog", "A park"])
        == "Generate a video with the retrieved text-image pairs. A white dog <image> A park <image> A dog is playing."
    )
    assert format_prompt("text-to-video", "A dog is playing.") == "Generate a video with the text. A dog is playing."
    assert (
        format_prompt("subject", "A <image> is in a <image>.")
        == "Generate a video with the text and image. A <image> is in a <image>."
    )
    assert (
        format_prompt("prediction", "A dog is playing.", image_token="<I>")
        == "Generate a video with the text and first frame. A dog is playing. <I>"
    )


def test_layout_takes_another_instruction_and_an_empty_prompt():
    assert format_prompt("subject", "A <image>", instruction="Film this.") == "Film this. A <image>"
    assert format_prompt("text-to-video", "") == "Generate a video with the text."


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": "movie", "prompt": "A dog"}, "Unknown task"),
        ({"task": "subject", "prompt": "A <image>", "context_texts": ["A park"]}, "takes no retrieved context"),
        ({"task": "text-to-video", "prompt": "A <image>"}, "holds the image placeholder"),
        ({"task": "prediction", "prompt": "A <image>"}, "holds the image placeholder"),
        ({"task": "text-to-video", "prompt": "A dog", "context_texts": ["my <image>"]}, "'my <image>'"),
    ],
)
def test_layout_refuses_what_would_break_the_count_of_images(arguments, message):
    with pytest.raises(ValueError, match=message):
        format_prompt(**arguments)
