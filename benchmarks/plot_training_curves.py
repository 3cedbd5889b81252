"""Draws the training error over four ranges of noise levels and the held-out error of successive runs.

python benchmarks/plot_training_curves.py PRETRAIN_LOG INSTRUCT_LOG INSTRUCT_LOG_2 --batches 192 192 256 \
    --out docs/images/training_curves.png
"""

import argparse

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


QUARTERS = ("lowest quarter of sigma", "second quarter", "third quarter", "highest quarter")
TASKS = ("text-to-video", "subject", "prediction")


def series(runs: list[tuple[EventAccumulator, int]], tag: str) -> tuple[list[float], list[float]]:
    """A tag over all runs, against the millions of samples seen."""
    samples, values, seen = [], [], 0
    for run, batch in runs:
        if tag in run.Tags()["scalars"]:
            samples += [(entry.step * batch + seen) / 1e6 for entry in run.Scalars(tag)]
            values += [entry.value for entry in run.Scalars(tag)]
        seen += run.Scalars("error")[-1].step * batch
    return samples, values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", help="folder or file of events of each run, in order")
    parser.add_argument("--out", required=True)
    parser.add_argument("--batches", nargs="+", type=int, required=True, help="samples of a step of each run")
    args = parser.parse_args()
    runs = [(EventAccumulator(path).Reload(), batch) for path, batch in zip(args.logs, args.batches, strict=True)]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    for index, label in enumerate(QUARTERS, 1):
        samples, values = series(runs, f"error_sigma_q{index}")
        left.plot(samples[1:], values[1:], linewidth=1, label=label)
    left.set(yscale="log", xlabel="million samples", ylabel="error in F space", title="training")
    for index, task in enumerate(TASKS):
        for suffix, style in (("", "-"), ("_without_images", ":")):
            samples, values = series(runs, f"held_out/{task}{suffix}")
            label = task + (" without images" if suffix else "")
            right.plot(samples, values, style, color=f"C{index}", marker=".", label=label)
    right.set(xlabel="million samples", title="held-out concepts (EMA weights)")
    for axes in (left, right):
        axes.legend(fontsize=7)
        for number in range(1, len(runs)):
            end = series(runs[:number], "error")[0][-1]
            axes.axvline(end, color="gray", linestyle="--", linewidth=0.8)
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
