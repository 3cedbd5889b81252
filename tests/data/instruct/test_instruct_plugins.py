import pytest
import torch

from vimi_diffusers.data.instruct import Detector, PluginSettings, load_plugin
from vimi_diffusers.data.instruct.plugins import PLUGINS, find_plugin


class LabDetector(Detector):
    """What a lab may bring: it notes what it was made with."""

    default_name = "weights-of-the-lab"

    def __call__(self, images, phrases):
        return [{} for _ in images]


def test_every_registered_name_is_a_class_of_its_kind():
    for kind, names in PLUGINS.items():
        for name in names:
            assert find_plugin(kind, name)[1] is None


def test_a_class_of_ones_own_gets_argument_device_and_batch_size():
    path = f"{__name__}:LabDetector"
    detector = load_plugin("detector", path, device="cpu", dtype="bfloat16", batch_size=3)
    assert (detector.name, detector.device, detector.batch_size) == ("weights-of-the-lab", "cpu", 3)
    assert detector.torch_dtype is torch.bfloat16
    assert load_plugin("detector", path + "=a=b").name == "a=b"


@pytest.mark.parametrize(
    "spec, message",
    [
        ("yolo", "Unknown detector 'yolo': choose one of grounding-dino"),
        ("no_such_package.parts:Detector", "'no_such_package.parts:Detector' cannot be loaded: No module named"),
        (f"{__name__}:Missing", "has no class 'Missing'"),
        ("collections:Counter", "is no subclass of vimi_diffusers.data.instruct.Detector"),
    ],
)
def test_what_is_no_detector_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        find_plugin("detector", spec)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"dtype": "int8"}, "`dtype` must be float32, bfloat16 or float16, got 'int8'"),
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
    ],
)
def test_settings_that_cannot_be_used_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        PluginSettings(**values)


def test_a_device_that_is_not_there_is_named_before_anything_is_loaded():
    with pytest.raises(ValueError, match="The device 'cuda:77' cannot be used"):
        PluginSettings(entities="vocabulary", device="cuda:77").check()
