import numpy as np
import pytest

from vimi_diffusers.data import open_source
from vimi_diffusers.data.decoding import probe
from vimi_diffusers.data.instruct import SubjectFinder, SubjectSettings
from vimi_diffusers.data.instruct.samples import reference_frames
from vimi_diffusers.evaluation.segmentation import (
    OracleDetector,
    OracleExtractor,
    OracleSegmenter,
    Truth,
    mask_box,
    render_clips,
    score_subjects,
)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    return render_clips(world, tmp_path_factory.mktemp("truth") / "set", 20, size=32)


def score(folder, detector_noise=0.0, segmenter_noise=0.0, **settings):
    detector = OracleDetector(str(folder), noise=detector_noise)
    segmenter = OracleSegmenter(str(folder), noise=segmenter_noise)
    finder = SubjectFinder(OracleExtractor(str(folder)), detector, segmenter, SubjectSettings(**settings))
    return score_subjects(finder, folder)


def test_the_truth_is_where_the_drawing_is(folder):
    """Frames of two clips of one place differ where one of them has its subject, so compare colours there."""
    truth, source = Truth(folder), open_source(folder)
    colours = {"fox": (230, 120, 30), "elephant": (120, 120, 140), "Santa Claus": (200, 20, 30)}
    seen = set()
    for number in range(len(source)):
        record = source.record(number)
        for frame in reference_frames(record, probe(record.video)).frames:
            row, mask = truth.row(frame), truth.mask(frame)
            assert row["caption"] == record.caption
            if row["subject"] in colours and mask.sum() > 50:
                inside = np.abs(np.asarray(frame).astype(int) - colours[row["subject"]]).sum(-1) < 90
                assert inside[mask].mean() > 0.6 and inside[~mask].mean() < 0.25
                seen.add(row["subject"])
    assert len(seen) >= 2


def test_an_oracle_scores_one_and_noise_scores_less(folder):
    true = score(folder)
    assert true["box_iou"] == true["mask_iou"] == 1.0 and true["wrong"] == 0
    assert true["crop_leak"] == true["fill_leak"] == 0.0
    plural = true["dropped"]["plural"]  # crossed swords
    assert true["found"] == pytest.approx((20 - sum(true["dropped"].values())) / 20) and plural >= 1
    boxes, masks = score(folder, detector_noise=0.15), score(folder, segmenter_noise=0.15)
    assert boxes["box_iou"] < 0.95 and masks["box_iou"] == 1.0
    assert masks["mask_iou"] < boxes["mask_iou"] < 1.0
    worse = score(folder, detector_noise=0.3, segmenter_noise=0.3)
    assert worse["mask_iou"] < masks["mask_iou"] and worse["box_iou"] < boxes["box_iou"]


def test_stricter_filters_find_fewer(folder):
    assert score(folder, min_area=0.3)["found"] < score(folder)["found"]


def test_boxes_of_masks():
    mask = np.zeros((10, 20), bool)
    assert mask_box(mask) is None
    mask[2:5, 7:9] = True
    assert mask_box(mask).tolist() == [7, 2, 9, 5]


def test_a_folder_without_the_truth_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no .*truth.npz: write clips with `render_clips`"):
        Truth(tmp_path)
