import numpy as np
import pytest
import torch
from metric_cases import identity
from scipy.linalg import sqrtm

from vimi_diffusers.evaluation.metrics import FeatureStatistics, frechet_distance


def statistics(features, **other):
    whole = FeatureStatistics(identity(features.shape[1], **other))
    for batch in features.split(37):
        whole.update(batch)
    return whole


def by_sqrtm(one, other):
    """The formula as the papers' code writes it."""
    one, other = one.double().numpy(), other.double().numpy()
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    means = np.square(one.mean(0) - other.mean(0)).sum()
    return means + np.trace(first + second - 2 * sqrtm(first @ second).real)


def correlated(count, dimension, seed, decay=0.5, offset=0.0):
    """Features whose variances fall like a power law, as those of networks do, in a random basis."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((dimension, dimension)))[0]
    scales = np.arange(1, dimension + 1) ** -decay
    return torch.from_numpy((generator.standard_normal((count, dimension)) * scales) @ basis + offset)


@pytest.mark.parametrize(
    "count, dimension, decay, offset",
    [(200, 8, 0.5, 0.0), (500, 64, 1.0, 3.0), (900, 400, 1.5, 0.0), (70, 64, 1.0, 0)],
)
def test_it_agrees_with_scipy_sqrtm(count, dimension, decay, offset):
    one, other = correlated(count, dimension, 0, decay), correlated(count + 11, dimension, 1, decay, offset)
    found, wanted = frechet_distance(statistics(one), statistics(other)), by_sqrtm(one, other)
    assert found == pytest.approx(wanted, rel=1e-6)


def test_it_agrees_with_torchmetrics_on_the_same_features():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flat(torch.nn.Module):
        num_features = 48

        def forward(self, images):
            return images.flatten(1)

    one, other = correlated(300, 48, 2), correlated(400, 48, 3, offset=0.1)
    fid = FrechetInceptionDistance(feature=Flat(), normalize=False).set_dtype(torch.float64)
    fid.update(one.view(-1, 3, 4, 4), real=True)
    fid.update(other.view(-1, 3, 4, 4), real=False)
    assert frechet_distance(statistics(one), statistics(other)) == pytest.approx(fid.compute().item(), rel=1e-6)


def test_it_agrees_with_torch_fidelity_on_the_same_features():
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    one, other = correlated(600, 128, 4), correlated(700, 128, 5)
    both = [metric.fid_features_to_statistics(features) for features in (one, other)]
    wanted = metric.fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(statistics(one), statistics(other)) == pytest.approx(wanted, rel=1e-6)


def test_commuting_covariances_have_a_closed_form():
    scales = torch.tensor([1e-6, 0.1, 1.0, 30.0], dtype=torch.float64)
    base = torch.randn(50, 4, dtype=torch.float64)
    base = torch.linalg.qr(base - base.mean(0))[0] * 49**0.5  # covariance exactly 1
    found = frechet_distance(statistics(base * scales), statistics(base * scales * 3 + 2))
    assert found == pytest.approx(4 * 4 + float((4 * scales**2).sum()), rel=1e-9)


def test_a_set_has_no_distance_to_itself_and_the_order_does_not_matter():
    one, other = statistics(correlated(300, 64, 0, 2.0)), statistics(correlated(300, 64, 1, 2.0))
    scale = float(one.covariance.trace())
    assert frechet_distance(one, one) < 1e-12 * scale
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-9)


def test_too_few_samples_are_an_error_with_the_number_needed():
    enough, few = statistics(torch.randn(9, 8)), statistics(torch.randn(8, 8))
    assert frechet_distance(enough, enough) >= 0
    with pytest.raises(ValueError, match="8 dimensions needs at least 9 samples in each set, there are 9 and 8: add"):
        frechet_distance(enough, few)
    with pytest.raises(ValueError, match="allow_rank_deficient"):
        frechet_distance(few, enough)
    single = statistics(torch.randn(1, 8))
    with pytest.raises(ValueError, match="needs at least 2 samples in each set, there are 9 and 1: add samples"):
        frechet_distance(enough, single, allow_rank_deficient=True)


def test_rank_deficient_covariances_are_exact_when_allowed():
    """In a subspace the distance is that inside the subspace, which sqrtm cannot be relied on to find."""
    one, other = correlated(30, 6, 0), correlated(40, 6, 1)
    basis = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    inside = frechet_distance(statistics(one), statistics(other))
    outside = frechet_distance(statistics(one @ basis[:6]), statistics(other @ basis[:6]), allow_rank_deficient=True)
    assert outside == pytest.approx(inside, rel=1e-9)


def test_constant_features_are_no_problem():
    one, other = correlated(50, 6, 0), correlated(50, 6, 1)
    dead = torch.zeros(50, 3, dtype=torch.float64)
    found = frechet_distance(statistics(torch.cat([one, dead], 1)), statistics(torch.cat([other, dead], 1)))
    assert found == pytest.approx(frechet_distance(statistics(one), statistics(other)), rel=1e-9)


def test_sets_of_two_extractors_are_refused():
    features = torch.randn(20, 4)
    with pytest.raises(ValueError, match=r"another extractor.*seed \(1, not 0\)"):
        frechet_distance(statistics(features, seed=0), statistics(features, seed=1))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_distance():
    one, other = correlated(300, 128, 0), correlated(300, 128, 1)
    on_gpu = [FeatureStatistics(identity(128), device="cuda").update(each) for each in (one, other)]
    assert frechet_distance(*on_gpu) == pytest.approx(by_sqrtm(one, other), rel=1e-6)
