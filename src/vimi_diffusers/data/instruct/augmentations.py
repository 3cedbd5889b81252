# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""What keeps the model from copying a reference: all augmentations of paper section 7.1.

A reference is cut from the very clip that it grounds, so its size, sharpness, light, pose and crop tell about the clip
what a user's picture will not. Each of them is changed at random.
"""

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageStat


LEAST_SIDE = 112  # downscaling by a factor of [112 / longest side, 1]
BLUR_SHARE = 1 / 50  # kernel of [1, longest side / 50] pixels
JITTER = 0.05  # contrast, saturation and each colour channel; a turned hue would be another subject
BRIGHTNESS = 0.1
FLIP_CHANCE = 0.5
SHEAR = 0.05  # of width and height
ROTATION = 20.0  # degrees
LEAST_CROP = 0.67  # share of the area


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """
    Changes a reference image at random: flip, shear, rotation and crop; then downscaling, blur, colours, brightness.

    An image with transparency grows to hold its turned content, and stays a square if it was one. Of an image without,
    the greatest part is taken that shows no corner from outside it.

    Args:
        image (`PIL.Image.Image`): In mode `"RGBA"` or `"RGB"`.
        rng (`np.random.Generator`): Decides; the number of draws is the same for any image.

    Returns:
        `PIL.Image.Image`: in the same mode.
    """
    flip = rng.random() < FLIP_CHANCE
    shear_x, shear_y = rng.uniform(-SHEAR, SHEAR, 2)
    angle = math.radians(rng.uniform(-ROTATION, ROTATION))
    crop, left, top = rng.uniform(LEAST_CROP, 1), rng.random(), rng.random()
    smaller, kernel = rng.random(), rng.random()
    contrast, saturation, *gains = 1 + rng.uniform(-JITTER, JITTER, 5)
    brightness = 1 + rng.uniform(-BRIGHTNESS, BRIGHTNESS)

    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[1, shear_x], [shear_y, 1]]) @ np.diag([-1.0 if flip else 1.0, 1.0])
    image = _warp(image, matrix, math.sqrt(crop), left, top)
    image = _downscale(image, smaller)
    image = _blur(image, kernel)
    return _recolour(image, contrast, saturation, [brightness * gain for gain in gains])


def _warp(image: Image.Image, matrix: np.ndarray, part: float, left: float, top: float) -> Image.Image:
    """The image under `matrix`, around its centre, and of that the window of `part` of its sides."""
    size = np.array(image.size, float)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size / 2
    inverse = np.linalg.inv(matrix)
    if image.mode == "RGBA":
        canvas = np.ptp(corners @ matrix.T, axis=0)
        if image.width == image.height:
            canvas[:] = canvas.max()
    else:
        canvas = size / (np.abs(corners @ inverse.T) / (size / 2)).max()
    window = np.maximum(np.floor(canvas * part + 1e-6), 1)
    first = (canvas - window) * (left, top) - canvas / 2  # of the window, from the centre
    offset = inverse @ first + size / 2
    data = (*inverse[0], offset[0], *inverse[1], offset[1])
    return image.transform(tuple(window.astype(int)), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)


def _downscale(image: Image.Image, draw: float) -> Image.Image:
    least = min(LEAST_SIDE / max(image.size), 1)
    scale = least + (1 - least) * draw
    size = tuple(max(round(side * scale), 1) for side in image.size)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _blur(image: Image.Image, draw: float) -> Image.Image:
    most = max(int(max(image.size) * BLUR_SHARE), 1)
    kernel = 1 + 2 * int(draw * ((most + 1) // 2))  # odd, as kernels are
    if kernel == 1:
        return image
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8  # of a kernel of that size
    blurred = ImageFilter.GaussianBlur(sigma)
    if image.mode == "RGBA":  # premultiplied, so that nothing bleeds in from where nothing is
        return image.convert("RGBa").filter(blurred).convert("RGBA")
    return image.filter(blurred)


def _recolour(image: Image.Image, contrast: float, saturation: float, gains: list[float]) -> Image.Image:
    colours = image.convert("RGB")
    seen = image.getchannel("A").point(lambda alpha: 255 * (alpha > 0)) if image.mode == "RGBA" else None
    grey = Image.new("RGB", image.size, (round(ImageStat.Stat(colours.convert("L"), seen).mean[0]),) * 3)
    colours = ImageEnhance.Color(Image.blend(grey, colours, contrast)).enhance(saturation)
    channels = [channel.point(lambda value, gain=gain: value * gain) for channel, gain in zip(colours.split(), gains)]
    colours = Image.merge("RGB", channels)
    if image.mode == "RGBA":
        colours.putalpha(image.getchannel("A"))
    return colours
