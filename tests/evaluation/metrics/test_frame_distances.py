import numpy as np
import pytest
import torch
from metric_cases import TinyImageExtractor, moving_squares

from vimi_diffusers.evaluation.metrics import FeatureMapDistance, psnr, ssim


@pytest.fixture(scope="module")
def pair():
    targets = moving_squares(4, frames=2, size=40)[:, 0]
    noise = 0.1 * torch.randn(targets.shape, generator=torch.Generator().manual_seed(0))
    return (targets + noise).clamp(0, 1), targets


def test_psnr_and_ssim_agree_with_torchmetrics(pair):
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    wanted = [peak_signal_noise_ratio(one, other, data_range=1.0).item() for one, other in zip(*pair)]
    assert psnr(*pair).tolist() == pytest.approx(wanted, rel=1e-6)
    both = (each.double() for each in pair)
    _, wanted = structural_similarity_index_measure(*both, data_range=1.0, return_full_image=True)
    inside = wanted[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))  # it counts a mirrored border too
    assert ssim(*pair).tolist() == pytest.approx(inside.tolist(), rel=1e-6)


def test_ssim_is_the_published_formula(pair):
    from scipy.ndimage import gaussian_filter

    def smooth(values):
        return gaussian_filter(values, 1.5, truncate=3.5)[5:-5, 5:-5]

    a, b = (each[0, 0].double().numpy() for each in pair)
    mean_a, mean_b = smooth(a), smooth(b)
    spread = smooth(a * a) - mean_a**2 + smooth(b * b) - mean_b**2
    same = (2 * mean_a * mean_b + 1e-4) * (2 * (smooth(a * b) - mean_a * mean_b) + 9e-4)
    wanted = (same / (mean_a**2 + mean_b**2 + 1e-4) / (spread + 9e-4)).mean()
    grey = [each[:1, :1].expand(-1, 3, -1, -1) for each in pair]
    assert ssim(*grey).item() == pytest.approx(wanted, rel=1e-9)


def test_equal_pictures_are_best(pair):
    assert psnr(pair[1], pair[1]).tolist() == [100.0] * 4
    assert ssim(pair[1], pair[1]).tolist() == pytest.approx([1.0] * 4)
    assert FeatureMapDistance(TinyImageExtractor())(pair[1], pair[1]).tolist() == [0.0] * 4


def test_the_distance_is_the_form_of_lpips(pair):
    network = TinyImageExtractor(size=32)
    weights = [torch.rand(8), torch.rand(4)]
    wanted = np.zeros(4)
    for weight, one, other in zip(weights, network.maps(pair[0]), network.maps(pair[1])):
        one, other = (each / (each.norm(dim=1, keepdim=True) + 1e-12) for each in (one, other))
        wanted += ((one - other) ** 2 * weight.view(1, -1, 1, 1)).sum(1).mean((1, 2)).numpy()
    assert np.allclose(FeatureMapDistance(network, weights, name="weighted")(*pair), wanted, rtol=1e-4)


def test_more_noise_is_farther(pair):
    distance, targets = FeatureMapDistance(TinyImageExtractor(size=32)), pair[1]
    noise = torch.randn(targets.shape, generator=torch.Generator().manual_seed(1))
    values = [distance((targets + level * noise).clamp(0, 1), targets).mean() for level in (0.02, 0.1, 0.3)]
    assert values == sorted(values) and values[0] > 0


def test_it_is_not_called_lpips():
    assert FeatureMapDistance(TinyImageExtractor()).name == "feature-map distance of tiny (not LPIPS)"
    with pytest.raises(ValueError, match="Say what these `weights` make it"):
        FeatureMapDistance(TinyImageExtractor(), [torch.ones(8), torch.ones(4)])


def test_pictures_that_do_not_fit_are_named(pair):
    distance = FeatureMapDistance(TinyImageExtractor(), [torch.ones(8), torch.ones(9)], name="wrong")
    for measure in (psnr, ssim, distance):
        with pytest.raises(ValueError, match=r"got \(4, 3, 40, 40\) and \(4, 3, 20, 40\): resize one"):
            measure(pair[0], pair[1][:, :, ::2])
        with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
            measure(pair[0] * 2 - 1, pair[1])
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(pair[0][:, :, :10], pair[1][:, :, :10])
    with pytest.raises(ValueError, match=r"layers have \[8, 4\] channels, the weights \[8, 9\]"):
        distance(*pair)
