import copy

import pytest
import torch

from vimi_diffusers.training.loop import Trainer
from vimi_diffusers.training.objective import UncertaintyWeight, VIMITrainingModel
from vimi_diffusers.training.optimizers import build_optimizer


@pytest.fixture
def trainer(make_config):
    return Trainer(make_config())


@pytest.fixture
def batch(trainer):
    return next(iter(trainer.data.batches()))


def bare(trainer, loss_weighting="snap"):
    parts = (trainer.components[name] for name in ("text_encoder", "transformer", "scheduler"))
    return VIMITrainingModel(*parts, loss_weighting).eval()


def test_the_loss_is_the_denoisers_error_weighted_by_lambda(trainer, batch):
    """`E lambda |D - x|^2` of Snap Video, computed from the denoised video and not in F space."""
    model = bare(trainer)
    torch.nn.init.normal_(model.transformer.proj_out.weight, std=0.1)
    scheduler, video = model.scheduler, batch["video"]
    noise, sigmas = torch.randn_like(video), torch.tensor([0.02, 0.3, 1.0, 10.0])
    with torch.no_grad():
        loss, error = model(noise=noise, sigmas=sigmas, **batch)
        c = model.text_encoder(batch["input_ids"], batch["attention_mask"], batch["pixel_values"])
        sigma = sigmas.view(-1, 1, 1, 1, 1)
        noisy = video / 2.0 + sigma * noise
        model_input = scheduler.precondition_inputs(noisy, sigma)
        output = model.transformer(
            model_input, sigmas.log() / 4, c, encoder_attention_mask=batch["attention_mask"], fps=batch["fps"]
        ).sample
        denoised = scheduler.precondition_outputs(noisy, output, sigma)
    squared = (denoised - video).square().mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(loss, ((1 + 1 / sigmas**2) * squared).mean(), rtol=1e-3, atol=1e-5)
    assert error.shape == (4,) and not error.requires_grad
    torch.testing.assert_close((scheduler.loss_weight(sigmas) * error).mean(), loss)


def test_at_the_start_the_error_is_the_targets_energy(trainer, batch):
    model = bare(trainer)
    noise, sigmas = torch.randn_like(batch["video"]), torch.full((4,), 2.0)
    with torch.no_grad():
        _, error = model(noise=noise, sigmas=sigmas, **batch)
    target = model.scheduler.get_target(batch["video"], noise, sigmas)
    torch.testing.assert_close(error, target.square().mean(dim=(1, 2, 3, 4)))


def test_uncertainty_weighting_learns_the_size_of_the_loss():
    """The minimum of `loss / exp(u) + u` is at `exp(u) = loss`, level by level."""
    torch.manual_seed(0)
    weight = UncertaintyWeight()
    sigmas = torch.logspace(-2, 1.5, 64)
    timestep, size = sigmas.log() / 4, 0.1 + 5 / (1 + sigmas)
    assert torch.equal(weight(timestep), torch.zeros(64))  # starts as no weighting
    optimizer = torch.optim.Adam(weight.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        log_scale = weight(timestep)
        (size * torch.exp(-log_scale) + log_scale).mean().backward()
        optimizer.step()
    torch.testing.assert_close(weight(timestep).exp(), size, rtol=0.1, atol=0.02)


def test_uncertainty_weighting_starts_at_the_papers_loss(trainer, batch):
    noise, sigmas = torch.randn_like(batch["video"]), torch.tensor([0.02, 0.3, 1.0, 10.0])
    with torch.no_grad():
        losses = [bare(trainer, w)(noise=noise, sigmas=sigmas, **batch)[0] for w in ("snap", "uncertainty")]
    torch.testing.assert_close(*losses)


def test_only_matrices_are_decayed(trainer):
    optimizer = build_optimizer(trainer.model, trainer.config, torch.device("cpu"))
    decayed, others = optimizer.param_groups
    assert decayed["weight_decay"] == trainer.config.adam_weight_decay > 0 and others["weight_decay"] == 0
    assert all(p.ndim >= 2 for p in decayed["params"]) and all(p.ndim < 2 for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(trainer.model.parameters()))


def test_one_step_is_adamw_on_clipped_gradients(trainer, batch):
    trainer.model.eval()  # no dropout: the loss below is the same function
    torch.nn.init.normal_(trainer.model.transformer.proj_out.weight, std=0.5)
    model = copy.deepcopy(trainer.model)
    torch.manual_seed(3)
    output = trainer.step(batch)
    torch.manual_seed(3)
    sigmas = model.scheduler.sample_sigmas(4)
    loss, error = model(noise=torch.randn_like(batch["video"]), sigmas=sigmas, **batch)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.config.max_grad_norm)
    optimizer = build_optimizer(model, trainer.config, torch.device("cpu"))
    for group, used in zip(optimizer.param_groups, trainer.step.optimizer.param_groups):
        group["lr"] = used["lr"]
    optimizer.step()
    assert torch.equal(output["loss"], loss.detach()) and torch.equal(output["sigmas"], sigmas)
    assert torch.equal(output["grad_norm"], norm) and torch.equal(output["error"], error)
    for ours, expected in zip(trainer.model.parameters(), model.parameters()):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)


def test_accumulated_gradients_are_the_mean_of_the_batches(make_config):
    trainer = Trainer(make_config(gradient_accumulation_steps=2))
    trainer.model.eval()
    torch.nn.init.normal_(trainer.model.transformer.proj_out.weight, std=0.5)
    model = copy.deepcopy(trainer.model)
    first, second = next(trainer.batches())
    assert not torch.equal(first["video"], second["video"])
    torch.manual_seed(3)
    output = trainer.step(first, second)
    torch.manual_seed(3)
    losses, errors, levels = [], [], []
    for number, batch in enumerate((first, second)):  # slices of the noise levels are dealt out over both
        levels.append(model.scheduler.sample_sigmas(4, rank=number, world_size=2))
        loss, error = model(noise=torch.randn_like(batch["video"]), sigmas=levels[-1], **batch)
        (loss / 2).backward()
        losses.append(loss.detach())
        errors.append(error)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.config.max_grad_norm)
    torch.testing.assert_close(output["grad_norm"], norm)
    torch.testing.assert_close(output["loss"], torch.stack(losses).mean())
    sigmas, order = torch.cat(levels).sort()
    assert torch.equal(output["sigmas"], sigmas) and torch.equal(output["error"], torch.cat(errors)[order])
    assert trainer.step.optimizer.state[trainer.model.transformer.proj_out.weight]["step"] == 1


def test_steps_lower_the_loss_of_a_batch(make_config):
    trainer = Trainer(make_config(learning_rate=5e-3, lr_warmup_steps=0, lr_scheduler="constant"))
    batch = next(iter(trainer.data.batches()))
    errors = [trainer.step(batch)["error"].mean().item() for _ in range(40)]
    assert sum(errors[-5:]) < 0.8 * sum(errors[:5])


def test_bf16(make_config):
    trainer = Trainer(make_config(mixed_precision="bf16"))
    output = trainer.step(next(iter(trainer.data.batches())))
    assert output["loss"].isfinite() and output["error"].dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_a_batch_without_finite_gradients_changes_nothing_and_is_counted(trainer, batch):
    trainer.step(batch)
    trainer.step.lr_scheduler.step()  # the warm-up starts at 0
    weights = copy.deepcopy(trainer.model.state_dict())
    state = copy.deepcopy(trainer.step.optimizer.state_dict()["state"])
    broken = {**batch, "video": batch["video"].clone().index_fill_(0, torch.tensor([1]), float("nan"))}
    assert trainer.step(broken)["skipped"] == 1
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0, msg=name)
    for key, values in trainer.step.optimizer.state_dict()["state"].items():
        torch.testing.assert_close(values, state[key], rtol=0, atol=0)
    assert trainer.step(batch)["skipped"] == 0
    assert any((tensor != weights[name]).any() for name, tensor in trainer.model.state_dict().items())
