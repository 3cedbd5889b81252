"""Draws the training error over four ranges of noise levels and the held-out error of successive runs.

python benchmarks/plot_training_curves.py PRETRAIN_LOG INSTRUCT_LOG --out docs/images/training_curves.png --batch 192
"""

import argparse

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


QUARTERS = ("lowest quarter of sigma", "second quarter", "third quarter", "highest quarter")
TASKS = ("text-to-video", "subject", "prediction")


def series(runs: list[EventAccumulator], tag: str) -> tuple[list[int], list[float]]:
    steps, values, offset = [], [], 0
    for run in runs:
        if tag in run.Tags()["scalars"]:
            steps += [entry.step + offset for entry in run.Scalars(tag)]
            values += [entry.value for entry in run.Scalars(tag)]
        offset += run.Scalars("error")[-1].step
    return steps, values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", help="folder or file of events of each run, in order")
    parser.add_argument("--out", required=True)
    parser.add_argument("--batch", type=int, required=True, help="samples of a step, for the label")
    args = parser.parse_args()
    runs = [EventAccumulator(path) for path in args.logs]
    for run in runs:
        run.Reload()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
    for index, label in enumerate(QUARTERS, 1):
        steps, values = series(runs, f"error_sigma_q{index}")
        left.plot(steps[1:], values[1:], linewidth=1, label=label)
    left.set(yscale="log", xlabel=f"step (batch {args.batch})", ylabel="error in F space", title="training")
    for index, task in enumerate(TASKS):
        for suffix, style in (("", "-"), ("_without_images", ":")):
            steps, values = series(runs, f"held_out/{task}{suffix}")
            label = task + (" without images" if suffix else "")
            right.plot(steps, values, style, color=f"C{index}", marker=".", label=label)
    right.set(xlabel="step", title="held-out concepts (EMA weights)")
    for axes in (left, right):
        axes.legend(fontsize=7)
        for run in runs[:-1]:
            axes.axvline(run.Scalars("error")[-1].step, color="gray", linestyle="--", linewidth=0.8)
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
