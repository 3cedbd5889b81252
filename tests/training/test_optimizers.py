"""Optimisers of the training scripts, each against its equations and on the tiny model."""

import copy
import io
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vimi_diffusers.training.objective import VIMITrainingModel
from vimi_diffusers.training.optimizers import (
    OPTIMIZERS,
    build_optimizer,
    check_sharded_optimizer,
    hidden_matrices,
    update,
)
from vimi_diffusers.vimi.tiny import build_tiny_components


CPU = torch.device("cpu")
NEEDS = {"adamw8bit": "bitsandbytes", "lamb": "pytorch_optimizer", "muon": "pytorch_optimizer"}


def settings(name="adamw", **changes):
    values = {
        "optimizer": name,
        "cuda_graph": False,
        "learning_rate": 1e-2,
        "adam_beta1": 0.9,
        "adam_beta2": 0.99,
        "adam_weight_decay": 0.1,
        "adam_epsilon": 1e-8,
    }
    return SimpleNamespace(**{**values, **changes})


def available(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    return name


def training_model():
    parts = build_tiny_components()
    torch.manual_seed(0)
    return VIMITrainingModel(parts["text_encoder"], parts["transformer"], parts["scheduler"]).eval()


def loss_of(model, seed):
    generator = torch.Generator().manual_seed(seed)
    video, noise = (torch.rand(2, 3, 4, 16, 16, generator=generator) for _ in range(2))
    ids = torch.randint(10, 200, (2, 6), generator=generator)
    sigmas, fps = torch.tensor([0.3, 3.0]), torch.full((2,), 8.0)
    return model(video, noise, sigmas, fps, input_ids=ids, attention_mask=torch.ones_like(ids))[0]


def train(model, optimizer, seeds):
    losses = []
    for seed in seeds:
        optimizer.zero_grad()
        loss = loss_of(model, seed)
        loss.backward()
        update(optimizer, torch.tensor(0.0))
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_steps_and_a_round_trip_of_the_state(name):
    """A real run, and the same run cut in two: bit for bit."""
    config, model = settings(available(name), learning_rate=3e-3), training_model()
    optimizer = build_optimizer(model, config, CPU)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses = train(model, optimizer, [0] * 6)
    assert losses[-1] < 0.95 * losses[0]
    unused = ("vision", "lm_head")  # no images in these prompts
    for key, weight in model.named_parameters():
        assert (weight != before[key]).any() or any(part in key for part in (*unused, "multi_modal_projector")), key

    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed = training_model()
    resumed.load_state_dict(state["model"])
    other = build_optimizer(resumed, config, CPU)
    other.load_state_dict(state["optimizer"])
    assert train(model, optimizer, [1, 2]) == train(resumed, other, [1, 2])
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), resumed.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_that_trains_has_one_place_and_only_matrices_are_decayed(name):
    model = training_model()
    model.text_encoder.requires_grad_(False)
    optimizer = build_optimizer(model, settings(available(name)), CPU)
    placed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(placed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for group in optimizer.param_groups:
        assert group["weight_decay"] == (0.1 if group["params"][0].ndim >= 2 else 0.0)
        assert len({p.ndim >= 2 for p in group["params"]}) == 1 and group["lr"] == 1e-2


def test_8_bit_moments_of_large_matrices_survive_a_round_trip():
    available("adamw8bit")
    torch.manual_seed(0)
    models = [nn.Linear(128, 128)]
    models.append(copy.deepcopy(models[0]))
    first, second = (build_optimizer(model, settings("adamw8bit"), CPU) for model in models)
    gradients = torch.randn(3, 128, 128)
    for step in range(3):
        if step == 2:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
            models[1].load_state_dict(models[0].state_dict())
            assert second.state[models[1].weight]["state1"].dtype == torch.uint8
        for model, optimizer in zip(models, (first, second)):
            model.weight.grad = gradients[step].clone()
            optimizer.step()
    assert torch.equal(models[0].weight, models[1].weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learning_rate_schedules_reach_all_groups(name):
    model = nn.ModuleList([nn.Sequential(nn.Linear(4, 4))])
    optimizer = build_optimizer(model, settings(available(name)), CPU)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0025}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_changes_nothing(name):
    model = training_model()
    optimizer = build_optimizer(model, settings(available(name)), CPU)
    train(model, optimizer, [0])
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(float("nan"))
    update(optimizer, torch.tensor(1.0))
    for key, weight in model.state_dict().items():
        assert torch.equal(weight, weights[key]), key
    assert str(optimizer.state_dict()) == str(state)


def test_adamw_is_torchs_with_two_groups():
    model, config = training_model(), settings(adam_beta2=0.95)
    optimizer = build_optimizer(model, config, CPU)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["fused"]
    other = copy.deepcopy(model)
    parameters = list(other.parameters())
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=True,
    )  # fmt: skip
    train(model, optimizer, [0, 1])
    train(other, plain, [0, 1])
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), parameters))


@pytest.mark.gpu
def test_adamw_is_capturable():
    model = nn.Linear(4, 4).cuda()
    optimizer = build_optimizer(model, settings(cuda_graph=True), torch.device("cuda"))
    assert optimizer.defaults["capturable"] and optimizer.param_groups[0]["lr"].device.type == "cuda"


def test_lamb_is_the_papers():
    """Algorithm 2 of 1904.00962 without bias correction, the norm's bound 10 included."""
    available("lamb")
    torch.manual_seed(0)
    model = nn.Linear(40, 30)
    with torch.no_grad():
        model.weight *= 10
        assert model.weight.norm() > 10
    optimizer = build_optimizer(model, settings("lamb"), CPU)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    moments = {key: (torch.zeros_like(p), torch.zeros_like(p)) for key, p in (("w", weight), ("b", bias))}
    for step in range(3):
        model.weight.grad, model.bias.grad = torch.randn(30, 40), torch.randn(30)
        for key, p, grad in (("w", weight, model.weight.grad), ("b", bias, model.bias.grad)):
            m, v = moments[key]
            m.mul_(0.9).add_(0.1 * grad)
            v.mul_(0.99).add_(0.01 * grad**2)
            change = m / (v.sqrt() + 1e-8)
            if key == "w":
                change += 0.1 * p
                change *= min(p.norm().item(), 10) / change.norm()
            p -= 1e-2 * change
        optimizer.step()
        torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.bias.detach(), bias, rtol=1e-5, atol=1e-6)


def test_muon_makes_hidden_matrices_orthogonal_and_leaves_the_rest_to_adamw():
    available("muon")
    torch.manual_seed(0)
    model = nn.Module()
    model.embed, model.out = nn.Embedding(7, 12), nn.Linear(12, 5)
    model.layers = nn.ModuleList([nn.Sequential(nn.Linear(12, 20))])
    assert [tuple(p.shape) for p in hidden_matrices(model)] == [(20, 12)]
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = build_optimizer(model, settings("muon", adam_weight_decay=0.0), CPU)
    adamw = {key: nn.Parameter(p.detach().clone()) for key, p in model.named_parameters()}
    plain = torch.optim.AdamW(adamw.values(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    for key, p in model.named_parameters():
        p.grad = torch.randn_like(p)
        adamw[key].grad = p.grad.clone()
    optimizer.step()
    plain.step()
    for key, p in model.named_parameters():
        if key != "layers.0.0.weight":
            torch.testing.assert_close(p, adamw[key], msg=key)
    change = (model.layers[0][0].weight - before["layers.0.0.weight"]).detach() / -1e-2
    # all singular values alike: 0.2 sqrt(max(20, 12)) of 2502.16982, to the accuracy of five iterations
    values = torch.linalg.svdvals(change) / (0.2 * 20**0.5)
    assert 0.6 < values.min() and values.max() < 1.3
    # and the gradient's direction is kept: the polar factor
    u, _, v = torch.linalg.svd(adamw["layers.0.0.weight"].grad)
    polar = u[:, :12] @ v
    assert torch.nn.functional.cosine_similarity(change.flatten(), polar.flatten(), dim=0) > 0.95


def test_hidden_matrices_of_the_model():
    model = training_model()
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = {names[id(p)] for p in hidden_matrices(model)}
    assert all(".transformer_blocks." in n or ".layers." in n or ".blocks." in n for n in hidden)
    assert "transformer.transformer_blocks.0.patch_read.attn.to_out.0.weight" in hidden
    assert "transformer.transformer_blocks.0.write.ff.net.2.weight" in hidden
    assert any("q_proj" in name for name in hidden)
    assert not any("embed" in name or "proj_out" in name for name in hidden)
    assert all(dict(model.named_parameters())[name].ndim == 2 for name in hidden)
    model.requires_grad_(False)
    assert hidden_matrices(model) == []


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_what_cannot_be_captured_is_refused(name):
    with pytest.raises(ValueError, match=f"cannot capture the optimizer '{name}'.*use 'adamw'"):
        build_optimizer(nn.Linear(2, 2), settings(name, cuda_graph=True), CPU)


@pytest.mark.parametrize("name", NEEDS)
def test_a_missing_library_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, NEEDS[name], None)
    with pytest.raises(ImportError, match=f"'{name}' needs {NEEDS[name]}.*pip install {NEEDS[name]}"):
        build_optimizer(nn.Linear(2, 2), settings(name), CPU)


def test_bad_names_and_nothing_to_train():
    with pytest.raises(ValueError, match="Unknown `optimizer` 'sgd': choose one of adamw, adamw8bit, lamb, muon"):
        build_optimizer(nn.Linear(2, 2), settings("sgd"), CPU)
    with pytest.raises(ValueError, match="No parameter of the model trains"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), settings(), CPU)


def test_what_cannot_be_sharded_is_refused():
    for name, kind in (("adamw", "FSDP"), ("muon", "FSDP"), ("adamw", "DEEPSPEED"), ("lamb", None)):
        check_sharded_optimizer(name, kind)
    for name, kind in (("lamb", "FSDP"), ("adamw8bit", "FSDP"), ("muon", "DEEPSPEED")):
        with pytest.raises(ValueError, match=f"'{name}' does not work with weights sharded by {kind}: use adamw"):
            check_sharded_optimizer(name, kind)
