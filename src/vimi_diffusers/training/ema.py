# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""
Averages of the weights with power-function profiles, and averages of any other length made of them after training
(EDM2, 2312.02696, section 3 and appendix C).

The weights of step k stand for the time from k - 1 to k. A profile of exponent gamma gives time tau, up to step t, the
density (gamma + 1) tau^gamma / t^(gamma + 1); its standard deviation is the share `sigma_rel` of t.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..files import check_new_folder, whole_folder


logger = logging.get_logger(__name__)

MAX_SIGMA_REL = 12**-0.5  # of gamma = 0, the plain mean of all steps
SNAPSHOT_FILE = "snapshot.json"
SNAPSHOT_VERSION = 1


def power_gamma(sigma_rel: float) -> float:
    """
    The exponent gamma of the profile with a relative standard deviation (EDM2, eq. 126).

    Args:
        sigma_rel (`float`): Standard deviation of the profile as a share of the training time, up to 0.2886.

    Raises:
        ValueError: If no profile that grows with time has this width.
    """
    if not 0 < sigma_rel <= MAX_SIGMA_REL:
        raise ValueError(f"`sigma_rel` must be over 0 and at most {MAX_SIGMA_REL:.4f}, got {sigma_rel!r}.")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def profile_products(
    steps: np.ndarray, gammas: np.ndarray, other_steps: np.ndarray, other_gammas: np.ndarray
) -> np.ndarray:
    """Inner products over time of profiles that end at given steps (EDM2, eq. 146). Arguments are broadcast."""
    a, b = gammas + 1.0, other_gammas + 1.0
    shared = np.log(np.minimum(steps, other_steps))
    return a * b / (a + b - 1) * np.exp((a + b - 1) * shared - a * np.log(steps) - b * np.log(other_steps))


def posthoc_coefficients(
    steps: Sequence[int], sigma_rels: Sequence[float], step: int, sigma_rel: float
) -> tuple[np.ndarray, float]:
    """
    How to mix stored averages into one of another profile: the least squares fit of the profiles, whose coefficients
    sum to one (without that, EDM2's fit scales the weights by up to some percent when snapshots are few).

    Args:
        steps (`Sequence[int]`): Step of each stored average.
        sigma_rels (`Sequence[float]`): Width of each.
        step (`int`), sigma_rel (`float`): What to make.

    Returns:
        The coefficients, float64, and the norm of what the fit misses as a share of the wanted profile's norm.
    """
    times, gammas = np.asarray(steps, np.float64), np.array([power_gamma(width) for width in sigma_rels])
    wanted = (np.float64(step), np.float64(power_gamma(sigma_rel)))
    products = profile_products(times[:, None], gammas[:, None], times, gammas)
    with_wanted, own = profile_products(times, gammas, *wanted), profile_products(*wanted, *wanted)
    scale = products.diagonal() ** -0.5  # profiles of norm one keep the system well conditioned
    count = len(times)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = products * scale[:, None] * scale
    system[count, :count] = system[:count, count] = scale
    solution = np.linalg.lstsq(system, np.append(with_wanted * scale, 1.0), rcond=None)[0]
    coefficients = solution[:count] * scale
    missed = own - 2 * coefficients @ with_wanted + coefficients @ products @ coefficients
    return coefficients, float(np.sqrt(max(missed, 0.0) / own))


class PowerEMA:
    """
    Several averages of weights, each with a power-function profile.

    Args:
        parameters (`Mapping[str, torch.Tensor]`): What to average, by name, as `named_parameters` gives it. Sharded
            ones may be among them (FSDP2): make this after sharding.
        sigma_rels (`Sequence[float]`, *optional*, defaults to `(0.05, 0.1)`):
            Widths of the profiles; the first is the one that [`~PowerEMA.applied`] takes. Two suffice to make others
            afterwards.

    Raises:
        ValueError: For a width out of range, one given twice, or nothing to average.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], sigma_rels: Sequence[float] = (0.05, 0.1)):
        self.gammas = {float(sigma_rel): power_gamma(sigma_rel) for sigma_rel in sigma_rels}
        if not sigma_rels or len(self.gammas) < len(sigma_rels):
            raise ValueError(f"`sigma_rels` must hold one width or several different ones, got {list(sigma_rels)}.")
        if not parameters:
            raise ValueError("There are no parameters to average.")
        self.names, self.parameters = list(parameters), list(parameters.values())
        # in fp32, whatever the weights are: a step changes an average by less than bf16 can tell
        self.averages = {
            sigma_rel: [parameter.detach().float().clone() for parameter in self.parameters]
            for sigma_rel in self.gammas
        }
        self.step = 0
        self.snapshots: list[int] = []

    @classmethod
    def from_components(cls, components: Mapping[str, Any], sigma_rels: Sequence[float] = (0.05, 0.1)) -> "PowerEMA":
        """Averages what trains of a pipeline's components, under names such as `transformer.proj_out.weight`."""
        modules = {part: module for part, module in components.items() if isinstance(module, nn.Module)}
        parameters = {
            f"{part}.{name}": parameter
            for part, module in modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        return cls(parameters, sigma_rels)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """
        Takes in the weights after a step (EDM2, eq. 123), without a host sync.

        Args:
            step (`int`): Number of this step, from 1 on. Skipped numbers count as steps with the same weights.

        Raises:
            ValueError: If the step was taken in already.
        """
        if step <= self.step:
            raise ValueError(f"Step {step} was taken in already: the averages are at step {self.step}.")
        weights = [weight.float() for weight in _local(self.parameters)]
        for sigma_rel, gamma in self.gammas.items():
            kept = (self.step / step) ** (gamma + 1)
            torch._foreach_lerp_(_local(self.averages[sigma_rel]), weights, 1 - kept)
        self.step = step

    @contextmanager
    def applied(self, sigma_rel: float | None = None) -> Iterator[None]:
        """
        Context in which the parameters have their averaged values.

        Args:
            sigma_rel (`float`, *optional*): Which of the tracked profiles. Defaults to the first.
        """
        averages = next(iter(self.averages.values())) if sigma_rel is None else self.averages[sigma_rel]
        with torch.no_grad():
            weights = _local(self.parameters)
            own = [weight.clone() for weight in weights]
            torch._foreach_copy_(weights, _local(averages))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(_local(self.parameters), own)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, for `torch.save`; the tensors are not copied."""
        return {
            "step": self.step,
            "snapshots": list(self.snapshots),
            "sigma_rels": list(self.gammas),
            "averages": [dict(zip(self.names, averages)) for averages in self.averages.values()],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Takes over what [`~PowerEMA.state_dict`] gave.

        Raises:
            ValueError: If it is of other profiles or parameters.
        """
        if state["sigma_rels"] != list(self.gammas):
            raise ValueError(
                f"The saved averages have the profiles {state['sigma_rels']}, this run {list(self.gammas)}: they "
                "cannot be changed in the middle of a run."
            )
        for averages, saved in zip(self.averages.values(), state["averages"]):
            if different := sorted(set(saved) ^ set(self.names)):
                raise ValueError(f"The saved averages are of other parameters: {different[0]} is on one side only.")
            for name, average in zip(self.names, averages):
                average.copy_(saved[name])
        self.step, self.snapshots = state["step"], list(state["snapshots"])

    def save_snapshot(self, folder: str | Path, is_main_process: bool = True) -> Path:
        """
        Writes all averages as `folder/step-...`, whole or not at all. Folders of steps that this run has not made
        are an earlier run's, or of a time that was lost in a crash; they are removed, since averages of different
        runs must not be mixed.

        Args:
            folder (`str` or `Path`): Where the run keeps its snapshots.
            is_main_process (`bool`, *optional*, defaults to `True`):
                Whether this process writes. Every process must call it when parameters are sharded.
        """
        folder = Path(folder)
        final = folder / f"step-{self.step:09d}"
        partial = folder / f".{final.name}.partial"
        if is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        for number, averages in enumerate(self.averages.values()):
            tensors = {name: _whole(average) for name, average in zip(self.names, averages)}  # a collective
            if is_main_process:
                save_file(tensors, partial / f"profile-{number}.safetensors")
        if self.step not in self.snapshots:
            self.snapshots.append(self.step)
        if is_main_process:
            facts = {"version": SNAPSHOT_VERSION, "step": self.step, "sigma_rels": list(self.gammas)}
            (partial / SNAPSHOT_FILE).write_text(json.dumps(facts), encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
            os.rename(partial, final)
            for step, other in list_snapshots(folder).items():
                if step not in self.snapshots:
                    logger.warning(f"{other} is not of this run and is removed.")
                    shutil.rmtree(other)
        return final


def list_snapshots(folder: str | Path) -> dict[int, Path]:
    """Complete snapshots in a folder by their step, in order."""
    found = [path for path in Path(folder).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return dict(sorted((int(path.name.split("-")[1]), path) for path in found))


def reconstruct(
    folder: str | Path, sigma_rel: float, step: int | None = None
) -> tuple[dict[str, torch.Tensor], float]:
    """
    The average of any width, made of a run's snapshots.

    Args:
        folder (`str` or `Path`): Where [`~PowerEMA.save_snapshot`] wrote.
        sigma_rel (`float`): Width of the wanted profile as a share of the training time.
        step (`int`, *optional*): Where it ends: the step of a snapshot. Defaults to the last one's.

    Returns:
        The weights by name, in fp32 on the CPU, and the fit's relative error, see [`posthoc_coefficients`].

    Raises:
        ValueError: If there are no snapshots, none of this step, or some of another version.
    """
    snapshots = list_snapshots(folder)
    if not snapshots:
        raise ValueError(f"{folder} holds no snapshots of averaged weights: train with `ema_profiles`.")
    step = max(snapshots) if step is None else step
    if step not in snapshots:
        raise ValueError(f"There is no snapshot of step {step} in {folder}: choose from {list(snapshots)}.")
    steps, sigma_rels, files = [], [], []
    for own, path in snapshots.items():
        facts = json.loads((path / SNAPSHOT_FILE).read_text(encoding="utf-8"))
        if facts["version"] != SNAPSHOT_VERSION:
            raise ValueError(f"{path} has version {facts['version']}, this release reads {SNAPSHOT_VERSION}.")
        if own <= step:
            for number, width in enumerate(facts["sigma_rels"]):
                steps.append(own)
                sigma_rels.append(width)
                files.append(path / f"profile-{number}.safetensors")
    coefficients, error = posthoc_coefficients(steps, sigma_rels, step, sigma_rel)
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        weights = {}
        for name in opened[0].keys():
            total = torch.zeros(opened[0].get_slice(name).get_shape(), dtype=torch.float64)
            for coefficient, file in zip(coefficients, opened):
                total.add_(file.get_tensor(name), alpha=float(coefficient))
            weights[name] = total.float()
    return weights, error


def save_reconstruction(
    run: str | Path, out: str | Path, sigma_rel: float, step: int | None = None, model: str | Path | None = None
) -> float:
    """
    Writes what a run trained, with the weights of [`reconstruct`], as a new folder; whole or not at all.

    Args:
        run (`str` or `Path`): `output_dir` of the run; its snapshots are in `ema`.
        out (`str` or `Path`): Folder to make; it must not exist, or be empty.
        sigma_rel (`float`): Width of the profile.
        step (`int`, *optional*): Step of a snapshot. Defaults to the last one's.
        model (`str` or `Path`, *optional*):
            Where all that was not averaged comes from: a pipeline, or for LoRA weights the folder of their file.
            Defaults to what the run wrote at its end, `pipeline` or `lora`.

    Returns:
        `float`: the fit's relative error, see [`posthoc_coefficients`].

    Raises:
        ValueError: If `out` is in use, or the snapshots do not fit the model.
    """
    run, out = Path(run), Path(out)
    check_new_folder(out)
    weights, error = reconstruct(run / "ema", sigma_rel, step)
    lora = any(".lora_" in name for name in weights)
    kind = "lora" if lora else "pipeline"
    if model is None and not (run / kind).is_dir():
        raise ValueError(f"{run} has no folder {kind!r} yet: wait for its end, or name another one to start from.")
    source = run / kind if model is None else model
    with whole_folder(out) as new:
        (_write_lora if lora else _write_pipeline)(weights, source, new)
    return error


@torch.no_grad()
def _write_pipeline(weights: dict[str, torch.Tensor], source: str | Path, folder: Path) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(source, dtype=torch.float32)
    modules = {part: module for part, module in pipeline.components.items() if isinstance(module, nn.Module)}
    own = {f"{part}.{name}": p for part, module in modules.items() for name, p in module.named_parameters()}
    _check_names(weights, {name: tuple(parameter.shape) for name, parameter in own.items()}, source)
    for name, weight in weights.items():
        own[name].copy_(weight)
    pipeline.save_pretrained(folder)


def _write_lora(weights: dict[str, torch.Tensor], source: str | Path, folder: Path) -> None:
    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

    with safe_open(Path(source) / LORA_WEIGHT_NAME_SAFE, framework="pt") as file:
        own, metadata = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, file.metadata()
    weights = {name.replace(".default.", "."): weight for name, weight in weights.items()}
    _check_names(weights, own, source)
    save_file(weights, folder / LORA_WEIGHT_NAME_SAFE, metadata=metadata)


def _check_names(weights: dict[str, torch.Tensor], own: dict[str, tuple[int, ...]], source: str | Path) -> None:
    for name, weight in weights.items():
        if own.get(name) != tuple(weight.shape):
            raise ValueError(
                f"The snapshots hold {name} of shape {tuple(weight.shape)}, {source} one of {own.get(name)}: name the "
                "model that this run trained."
            )


def _local(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """This process's pieces of sharded tensors, which share their memory."""
    return [(t.to_local() if hasattr(t, "to_local") else t).detach() for t in tensors]


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU; of a sharded one all pieces, which every process must ask for."""
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return tensor.cpu().contiguous()
