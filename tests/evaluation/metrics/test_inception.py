import numpy as np
import pytest
import torch
from metric_cases import identity

from vimi_diffusers.evaluation.metrics import InceptionStatistics, inception_score


def logits(count=203, classes=17, seed=0):
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def by_definition(logits, splits, shuffle_seed=None):
    """As StyleGAN-V computes it of probabilities."""
    probabilities = torch.softmax(logits.double(), 1).numpy()
    if shuffle_seed is not None:
        np.random.RandomState(shuffle_seed).shuffle(probabilities)
    scores = []
    for number in range(splits):
        part = probabilities[number * len(logits) // splits : (number + 1) * len(logits) // splits]
        divergence = part * (np.log(part) - np.log(part.mean(axis=0, keepdims=True)))
        scores.append(np.exp(divergence.sum(axis=1).mean()))
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize("splits, shuffle_seed", [(1, None), (10, None), (10, 42), (7, 3)])
def test_it_is_the_published_formula(splits, shuffle_seed):
    found = inception_score(logits(), splits, shuffle_seed)
    assert found == pytest.approx(by_definition(logits(), splits, shuffle_seed), rel=1e-10)


def test_it_agrees_with_torch_fidelity():
    metric = pytest.importorskip("torch_fidelity.metric_isc")
    wanted = metric.isc_features_to_metric(logits(), splits=10, shuffle=True, rng_seed=2020)
    mean, std = inception_score(logits(), 10, 2020)
    assert mean == pytest.approx(wanted["inception_score_mean"], rel=1e-6)
    assert std == pytest.approx(wanted["inception_score_std"], rel=1e-6)


def test_it_agrees_with_torchmetrics():
    from torchmetrics.image.inception import InceptionScore

    class Flat(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)

    score = InceptionScore(feature=Flat(), splits=4, normalize=False).set_dtype(torch.float64)
    values = logits(200, 12).double()  # a multiple of the splits: torchmetrics cuts a rest in another way
    score.update(values.view(200, 3, 2, 2))
    torch.manual_seed(7)
    wanted, spread = score.compute()
    torch.manual_seed(7)
    mean, std = inception_score(values[torch.randperm(200)], 4)
    assert mean == pytest.approx(wanted.item(), rel=1e-6)
    assert std * (4 / 3) ** 0.5 == pytest.approx(spread.item(), rel=1e-6)  # divided by n - 1 there


def test_order_batches_and_parts_do_not_matter(tmp_path):
    values, whole = logits(), inception_score(logits(), 10, 42)
    order = torch.randperm(len(values))
    parts = [InceptionStatistics(identity(17, "logits"), len(values), 10, 42) for _ in range(3)]
    for number, batch in enumerate(order.split(20)):
        parts[number % 3].update(values[batch], batch)
    parts[2].save(tmp_path / "part")
    merged = parts[0].merge(parts[1]).merge(InceptionStatistics.load(tmp_path / "part"))
    assert merged.score() == pytest.approx(whole, rel=1e-12)


def test_probabilities_give_the_same_score_and_may_be_zero():
    values = logits()
    statistics = InceptionStatistics(identity(17, "probabilities"), len(values))
    statistics.update(values.double().softmax(1), torch.arange(len(values)))
    assert statistics.score() == pytest.approx(inception_score(values), rel=1e-10)
    certain = InceptionStatistics(identity(5, "probabilities"), 20, splits=2)
    certain.update(torch.eye(5).repeat(4, 1), torch.arange(20))
    assert certain.score() == pytest.approx((5.0, 0.0))  # as many as classes


def test_equal_outputs_score_one():
    assert inception_score(torch.ones(20, 5), 2) == pytest.approx((1.0, 0.0))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="'test' gives 'features'"):
        InceptionStatistics(identity(5), 20)
    with pytest.raises(ValueError, match="10 splits need at least as many samples.*got 9"):
        InceptionStatistics(identity(5, "logits"), 9)
    statistics = InceptionStatistics(identity(5, "logits"), 20)
    with pytest.raises(ValueError, match=r"shape \(B, 5\).*\(3, 5\) and 2 numbers"):
        statistics.update(torch.zeros(3, 5), torch.arange(2))
    with pytest.raises(ValueError, match="numbers 0 to 19, got 20"):
        statistics.update(torch.zeros(1, 5), torch.tensor([20]))
    statistics.update(torch.zeros(3, 5), torch.tensor([0, 4, 5]))
    with pytest.raises(ValueError, match="Sample 4 was measured twice"):
        statistics.update(torch.zeros(1, 5), torch.tensor([4]))
    with pytest.raises(ValueError, match="Sample 7 was measured twice"):
        statistics.update(torch.zeros(2, 5), torch.tensor([7, 7]))
    with pytest.raises(ValueError, match="20 samples, 17 are missing, first 1"):
        statistics.score()
    other = InceptionStatistics(identity(5, "logits"), 20).update(torch.zeros(1, 5), torch.tensor([5]))
    with pytest.raises(ValueError, match="Sample 5 was measured twice, in both parts"):
        statistics.merge(other)
    with pytest.raises(ValueError, match="other part has the settings"):
        statistics.merge(InceptionStatistics(identity(5, "logits"), 21))
    with pytest.raises(ValueError, match='add up to .* not 1: has the extractor the output "logits"'):
        InceptionStatistics(identity(5, "probabilities"), 10).update(torch.ones(1, 5), torch.tensor([0]))
