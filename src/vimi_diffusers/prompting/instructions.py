# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Task names and the instructions that tell the model which task a prompt is.

The default instructions are the ones of the paper's templates (section 1.3, "..." completed). Training draws from
[`TRAINING_INSTRUCTIONS`], so that the model follows the meaning of an instruction and not one fixed sentence.
"""

TASKS = ("text-to-video", "subject", "prediction")

# "text-only" is text-to-video without retrieved pairs: a wording of its own, not a task of its own.
DEFAULT_INSTRUCTIONS = {
    "text-to-video": "Generate a video with the retrieved text-image pairs.",
    "text-only": "Generate a video with the text.",
    "subject": "Generate a video with the text and image.",
    "prediction": "Generate a video with the text and first frame.",
}

TRAINING_INSTRUCTIONS = {
    "text-to-video": (
        DEFAULT_INSTRUCTIONS["text-to-video"],
        "Generate a video from the text, using the retrieved text-image pairs as context.",
        "Use the retrieved captions and images to generate a video of the text.",
        "Create a video of the text with the help of the retrieved text-image pairs.",
        "Make a video for the last sentence; the captioned pictures before it are retrieved context.",
        "Produce a video of the text, guided by the retrieved pictures and their captions.",
        "The following text-image pairs were retrieved for the text. Generate its video.",
        "Turn the text into a video, with the retrieved text-image pairs as reference.",
        "Render the text as a video and look at the retrieved examples for what things look like.",
        "Given the retrieved text-image pairs, generate a video of the text that follows them.",
        "Synthesize a video that shows the text, grounded in the retrieved text-image pairs.",
        "Draw on the retrieved images and captions and generate a video of the text.",
        "With these retrieved text-image pairs at hand, create a video of the text.",
        "Film the text. The retrieved text-image pairs show what appears in it.",
        "Generate a short clip of the text, supported by retrieved images with captions.",
        "Here are pictures with captions found for the text. Make a video of the text.",
        "Let the retrieved text-image pairs guide you to a video of the text.",
        "Generate the video that the text describes; retrieved text-image pairs come first.",
        "Consult the retrieved image and caption pairs, then produce a video of the text.",
        "Animate the text with the retrieved text-image pairs as visual context.",
        "Create a clip of the text. Similar pictures and captions were retrieved as a guide.",
        "Make a short video of the description after the retrieved text-image pairs.",
        "Some images with captions were retrieved from memory. Use them to generate a video of the text.",
        "Produce a clip for the text while using the retrieved captioned images.",
        "Use the text-image pairs retrieved from memory and generate a matching video of the text.",
        "Visualize the text as a video, taking looks and colours from the retrieved text-image pairs.",
        "Generate a moving scene of the text, informed by the retrieved pictures and their captions.",
        "Read the retrieved text-image pairs, then generate a video of the final text.",
        "A search returned these captioned images for the text. Generate the video of the text.",
        "Create a video that matches the text and takes the retrieved text-image pairs into account.",
        "Please generate a video of the text with the retrieved text-image pairs.",
        "Show the text as a video, with the retrieved captions and images as background knowledge.",
    ),
    "text-only": (
        DEFAULT_INSTRUCTIONS["text-only"],
        "Generate a video from the text.",
        "Generate a video of the text.",
        "Create a video of the text.",
        "Make a video of the following text.",
        "Produce a video that shows the text.",
        "Turn the text into a video.",
        "Render the text as a video.",
        "Generate the video that the text describes.",
        "Synthesize a video for this description.",
        "Film what the text says.",
        "Generate a short clip of the text.",
        "Create a short clip from the description.",
        "Make a clip that matches the text.",
        "Animate the text.",
        "Visualize the text as a video.",
        "Show the text as a video.",
        "Produce a clip of what is described.",
        "Generate a moving scene of the text.",
        "Make a short video of the description.",
        "From the text alone, generate a video.",
        "Please generate a video with the text.",
        "Use the text to generate a video.",
        "Create a video that follows the text.",
        "Given the text, generate its video.",
        "Bring the text to life in a video.",
        "Depict the text in a short video.",
        "Generate a video based on the text only.",
        "Write the described scene out as a video.",
        "Produce a short film of the text.",
        "Let the text become a video.",
        "Generate a clip in which the text happens.",
    ),
    "subject": (
        DEFAULT_INSTRUCTIONS["subject"],
        "Generate a video from the text and the images in it.",
        "Create a video of the text with the pictured subjects.",
        "Make a video in which the pictured things do what the text says.",
        "Produce a video that keeps the look of the images and follows the text.",
        "Turn the text with its pictures into a video.",
        "Generate a video of the sentence; the images stand for what they show.",
        "Render the sentence as a video with exactly the subjects in the pictures.",
        "The images in the text show who and what appears. Generate the video.",
        "Synthesize a video with the given subjects, acting as the text describes.",
        "Use the pictures in the text as references and generate a video.",
        "Film the text with the subjects shown in the images.",
        "Animate the pictured subjects as the text tells.",
        "Generate a clip of the text that preserves the appearance of every image.",
        "Create a clip in which the subjects of the images take part in the text.",
        "Given text mixed with images, generate a video that fits both.",
        "Make a short video of the text; take subjects and places from the images.",
        "Put the pictured subjects into a video of the text.",
        "Read the text together with its images and produce a video.",
        "Generate a video with these subjects, following the text.",
        "Produce a clip where what is pictured behaves as written.",
        "Let the subjects from the images act out the text in a video.",
        "Show the text as a video and keep each pictured subject recognizable.",
        "Visualize the text with the given pictures as a video.",
        "Generate a personalized video from the text and reference images.",
        "Create a video where words are replaced by pictures of what they mean.",
        "Please generate a video with the text and the pictures.",
        "Use the reference images inside the sentence to generate its video.",
        "Bring the pictured subjects to life the way the text describes.",
        "Generate a moving scene from the text and image references.",
        "Depict the text in a video, with the things that the images show.",
        "Make a video of the text that stays true to its images.",
    ),
    "prediction": (
        DEFAULT_INSTRUCTIONS["prediction"],
        "Generate a video from the text that starts with the given frame.",
        "Continue the first frame into a video of the text.",
        "Create a video of the text, beginning with the image as first frame.",
        "Make a video that begins at this frame and follows the text.",
        "Predict the video that follows the first frame, as the text describes.",
        "Produce the frames that come after the given one, according to the text.",
        "Turn the first frame into a video, following the text.",
        "Animate the first frame as the text tells.",
        "The image is the first frame and the text says what happens. Generate the video.",
        "Given the text and an opening frame, generate the rest of the video.",
        "Render a video of the text whose opening frame is the image.",
        "Synthesize a video that starts from the picture and does what the text says.",
        "Use the image as the opening frame and generate a video of the text.",
        "Generate a clip of the text from its first frame.",
        "Extend the given frame to a clip that matches the text.",
        "Starting from the first frame, film what the text describes.",
        "Bring the first frame to life in a video of the text.",
        "Create the clip that begins with this frame and shows the text.",
        "Make a short video: the text tells the story, the image is where it starts.",
        "Predict how the scene in the first frame moves on, guided by the text.",
        "Show what happens after the first frame, as written in the text.",
        "Generate the future of the first frame according to the text.",
        "Please generate a video with the text and the initial frame.",
        "Let the picture move as the text says; it is the first frame of the video.",
        "Take the first frame and the text and produce the whole video.",
        "Visualize the text as a video that opens on the given frame.",
        "Generate a moving scene from the text and its starting image.",
        "Produce a video that keeps the first frame as its start and follows the text.",
        "From one initial frame and the text, generate the video.",
        "Play the scene forward from the first frame, following the text.",
        "Depict the text in a video that picks up at the given first frame.",
    ),
}


def check_task(task: str) -> None:
    """Raise a `ValueError` if `task` is not one of [`TASKS`]."""
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}: choose one of {', '.join(map(repr, TASKS))}.")


def instruction_key(task: str, num_context: int = 0) -> str:
    """
    Key of [`DEFAULT_INSTRUCTIONS`] and [`TRAINING_INSTRUCTIONS`] for a task.

    Args:
        task (`str`):
            One of [`TASKS`].
        num_context (`int`, *optional*, defaults to `0`):
            Number of retrieved text-image pairs before the prompt.

    Returns:
        `str`: `"text-only"` for text-to-video without retrieved pairs, else the task.
    """
    check_task(task)
    return "text-only" if task == "text-to-video" and num_context == 0 else task
