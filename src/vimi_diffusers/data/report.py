# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""The report of samples that cannot be used: every one named in a file, counted by reason, with a limit."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .schema import REASONS, BadSample


MIN_DRAWN = 200  # samples that must have been drawn before their bad share means something
OFFENDERS = 3  # named for each reason in the summary


class TooManyBadSamples(ValueError):
    """More of a data set cannot be used than `max_bad_share` allows; the message is the report."""


class BadSampleReport:
    """
    Counts the bad samples of a run, each once, however often and on whichever process it was met.

    Args:
        total (`int`): Samples of the data set.
        max_share (`float`): Share of them at which the run stops.
        path (`Path`, *optional*): JSON lines file that names each with its reason.
        keep (`bool`, *optional*, defaults to `False`): Go on with the file that is there, as a resumed run does.
    """

    def __init__(self, total: int, max_share: float, path: Path | None = None, keep: bool = False):
        self.total, self.max_share, self.path = total, max_share, path
        self.bad: dict[str, BadSample] = {}
        self.written: set[str] = set()
        self.drawn = 0  # samples that training tried to use
        self.opened = 0  # bad ones that were found by opening all
        if path is not None:
            os.makedirs(path.parent, exist_ok=True)
            if keep and path.is_file():
                self.written = {json.loads(line)["sample"] for line in path.read_text("utf-8").splitlines()}
            else:
                path.write_text("")

    def add_opened(self, bad: Iterable[BadSample]) -> None:
        """Adds what opening the whole data set found, and checks the share of the whole."""
        self._add(bad)
        self.opened = len(self.bad)
        if self.opened > self.max_share * self.total:
            raise TooManyBadSamples(self.message(f"{self.opened} of {self.total}"))

    def add_drawn(self, bad: Iterable[BadSample], drawn: int) -> bool:
        """
        Adds what training met since the last call, and checks the share that they let expect of the whole.

        Args:
            bad (`Iterable[BadSample]`): Bad samples, of all processes.
            drawn (`int`): Samples tried, good and bad, of all processes.

        Returns:
            `bool`: whether there was a new one.

        Raises:
            TooManyBadSamples: If the share is over the limit.
        """
        before = len(self.bad)
        self._add(bad)
        self.drawn += drawn
        openable = self.total - self.opened
        seen = min(self.drawn, openable)
        if seen >= min(MIN_DRAWN, openable) and seen:
            share = (self.opened + (len(self.bad) - self.opened) / seen * openable) / self.total
            if share > self.max_share and len(self.bad) > self.opened:
                raise TooManyBadSamples(
                    self.message(f"{len(self.bad)} of the {self.opened + seen} met so far, of {self.total},")
                )
        return len(self.bad) > before

    def _add(self, bad: Iterable[BadSample]) -> None:
        new = {each.key: each for each in bad if each.key not in self.bad}
        self.bad.update(new)
        if self.path is None or not new.keys() - self.written:
            return
        with self.path.open("a", encoding="utf-8") as file:
            for key in sorted(new.keys() - self.written):
                entry = {"sample": key, "reason": new[key].reason, "detail": new[key].detail}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.written |= new.keys()

    def counts(self) -> Counter:
        """Number of bad samples by reason, most frequent first."""
        return Counter(dict(Counter(each.reason for each in self.bad.values()).most_common()))

    def summary(self) -> str:
        """Counts by reason with the first offenders, a line each."""
        lines = []
        for reason, count in self.counts().items():
            lines.append(f"{count} x {reason} ({REASONS[reason]})")
            offenders = [each for each in self.bad.values() if each.reason == reason]
            lines += [f"    {each.key}: {each.detail}" for each in offenders[:OFFENDERS]]
            if count > OFFENDERS:
                lines.append(f"    and {count - OFFENDERS} more")
        return "\n".join(lines)

    def message(self, counted: str) -> str:
        """The error of a run that stops."""
        where = f"\nAll are named in {self.path}." if self.path else ""
        return (
            f"{counted} samples cannot be used, over `max_bad_share` {self.max_share:g}: mend or remove them, or "
            f"raise it.\n{self.summary()}{where}"
        )
