import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    SamImageProcessorPil,
    SamModel,
    SamProcessor,
)

from vimi_diffusers.data.instruct.models import GroundingDinoDetector, SamSegmenter


@pytest.fixture(scope="module")
def folders(tiny_models, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "dino": tiny_models.save_grounding_dino(root / "dino"),
        "sam": tiny_models.save_sam(root / "sam"),
        "sam2": tiny_models.save_sam2(root / "sam2"),
    }


def picture(seed=0, size=(64, 48)):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


# ------------------------------------------------------------------ Grounding DINO
def test_boxes_and_scores_are_those_of_the_model(folders, tiny_models):
    image, phrases = picture(), ["Fox", "park?"]
    found = GroundingDinoDetector(str(folders["dino"]))([image], [phrases])[0]
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessorPil.from_pretrained(folders["dino"]), tiny_models.bert_tokenizer()
    )
    inputs = processor(images=image, text="fox. park.", return_tensors="pt")
    with torch.no_grad():
        outputs = GroundingDinoForObjectDetection.from_pretrained(folders["dino"])(**inputs)
    official = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=-1.0, target_sizes=[(image.height, image.width)]
    )[0]
    boxes = official["boxes"].numpy().clip(0, [64, 48, 64, 48])
    ids = inputs["input_ids"][0].tolist()
    assert ids[4] == ids[9] == 1012  # [CLS] f o x . p a r k . [SEP]
    for phrase, tokens in zip(phrases, (slice(1, 4), slice(5, 9))):
        scores = outputs.logits[0, :, tokens].sigmoid().max(-1).values.numpy()
        keep = scores >= 0.05
        np.testing.assert_allclose(found[phrase].scores, scores[keep], rtol=1e-5)
        np.testing.assert_allclose(found[phrase].boxes, boxes[keep], atol=1e-3)
    assert not np.array_equal(found["Fox"].scores, found["park?"].scores)


def test_a_batch_of_the_detector_equals_its_images_alone(folders):
    images, phrases = [picture(0), picture(1), picture(2)], [["fox"], ["park", "dog"], ["a small cat"]]
    together = GroundingDinoDetector(str(folders["dino"]), batch_size=3)(images, phrases)
    for image, words, found in zip(images, phrases, together):
        (alone,) = GroundingDinoDetector(str(folders["dino"]), batch_size=1)([image], [words])
        assert alone.keys() == found.keys() == set(words)
        for word in words:
            np.testing.assert_allclose(found[word].boxes, alone[word].boxes, atol=1e-3)
            np.testing.assert_allclose(found[word].scores, alone[word].scores, atol=1e-5)


def test_more_phrases_than_a_query_holds_are_asked_in_several(folders):
    phrases = [f"thing {letter}" for letter in "abcdefghijklmnopqrst"]
    (found,) = GroundingDinoDetector(str(folders["dino"]), batch_size=2)([picture()], [phrases])
    assert set(found) == set(phrases)


def test_models_run_in_another_precision(folders):
    (found,) = GroundingDinoDetector(str(folders["dino"]), dtype="bfloat16")([picture()], [["fox"]])
    assert np.isfinite(found["fox"].boxes).all()
    for name in ("sam", "sam2"):
        segmenter = SamSegmenter(str(folders[name]), dtype="bfloat16")
        assert segmenter([picture()], [np.array([[0.0, 0, 30, 30]])])[0].dtype == bool


# ------------------------------------------------------------------ SAM
def test_masks_are_those_of_the_model_and_its_own_processor(folders):
    image, boxes = picture(size=(100, 70)), np.array([[5.0, 6, 60, 50], [30, 20, 99, 69]])
    masks = SamSegmenter(str(folders["sam"]))([image], [boxes])[0]
    processor = SamProcessor(SamImageProcessorPil.from_pretrained(folders["sam"]))
    inputs = processor(images=image, input_boxes=[boxes.tolist()], return_tensors="pt")
    with torch.no_grad():
        outputs = SamModel.from_pretrained(folders["sam"])(
            pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"].float(), multimask_output=False
        )
    official = processor.image_processor.post_process_masks(
        outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )[0][:, 0]
    assert masks.shape == (2, 70, 100) and 0.01 < masks.mean() < 0.99
    assert np.array_equal(masks, official.numpy())
    assert not np.array_equal(masks[0], masks[1])


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_images_with_different_numbers_of_boxes_share_a_batch(folders, name):
    images = [picture(0), picture(1, (48, 64)), picture(2)]
    boxes = [np.array([[0.0, 0, 30, 30]]), np.array([[5.0, 5, 40, 60], [0, 0, 20, 20]]), np.array([[9.0, 9, 20, 40]])]
    together = SamSegmenter(str(folders[name]), batch_size=2)(images, boxes)
    assert [mask.shape for mask in together] == [(1, 48, 64), (2, 64, 48), (1, 48, 64)]
    segmenter = SamSegmenter(str(folders[name]), batch_size=1)
    for image, of_image, masks in zip(images, boxes, together):
        assert (segmenter([image], [of_image])[0] == masks).mean() > 0.999


def test_boxes_of_sam2_are_scaled_to_its_square(folders):
    segmenter = SamSegmenter(str(folders["sam2"]))
    asked = []
    segmenter.model.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
    segmenter([picture(size=(128, 32))], [np.array([[64.0, 8, 128, 32]])])
    assert asked[0]["input_boxes"].tolist() == [[[32.0, 16.0, 64.0, 64.0]]]
    assert asked[0]["pixel_values"].shape == (1, 3, 64, 64)


def test_another_kind_of_model_is_no_segmenter(folders):
    with pytest.raises(ValueError, match="is a 'grounding-dino' model: give a SAM or SAM 2"):
        SamSegmenter(str(folders["dino"]))


@pytest.mark.parametrize("part", [GroundingDinoDetector, SamSegmenter])
def test_a_folder_that_is_not_there_is_named(part):
    with pytest.raises(FileNotFoundError, match="There is no model folder /no/such/model"):
        part("/no/such/model")
