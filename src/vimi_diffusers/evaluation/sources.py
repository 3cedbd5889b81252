# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where the prompts of a protocol are from: the user's copies of data sets, and emoji world."""

import csv
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar


if TYPE_CHECKING:
    from ..vimi.pipeline_vimi import VIMIPipeline
    from .protocols import Protocol

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SNAP_VIDEO = "snap-video"


@dataclasses.dataclass(frozen=True)
class EvaluationSample:
    """
    A video that is to be generated.

    Args:
        id (`str`): Name of its file, without the suffix.
        prompt (`str`): The prompt, with tags where images belong.
        seed (`int`): Of its noise.
        task (`str`, *optional*, defaults to `"text-to-video"`): The pipeline's task.
        text (`str`, *optional*): The prompt in words alone, which pictures are compared with.
        group (`str`, *optional*): Class, subject or concept.
        images (`tuple[str]`, *optional*): Files of the images of the prompt, in order.
        references (`tuple[str]`, *optional*): Files of the pictures that the subject is compared with.
        control (`bool`, *optional*, defaults to `False`): Whether it is a control, of which only floors are measured.
    """

    id: str
    prompt: str
    seed: int
    task: str = "text-to-video"
    text: str = ""
    group: str = ""
    images: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    control: bool = False


@dataclasses.dataclass
class SampleSet:
    """
    The samples of a source, and the real videos beside them.

    Args:
        samples (`list[EvaluationSample]`): In a fixed order.
        real (`list[Path]`, *optional*): Files of real videos.
        facts (`dict`, *optional*): What the results say of the data.
    """

    samples: list[EvaluationSample]
    real: list[Path] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def bind(self, pipe: "VIMIPipeline") -> None:
        """Called once, before anything is generated."""

    def fingerprint(self, sample: EvaluationSample) -> str:
        """Tells the images of a sample's prompt from others."""
        digests = (hashlib.sha256(Path(image).read_bytes()).hexdigest() for image in sample.images)
        return " ".join(digests)

    def pipeline_inputs(self, samples: Sequence[EvaluationSample]) -> dict[str, Any]:
        """Arguments of the pipeline for a batch."""
        from ..media import load_images

        return {
            "prompt": [sample.prompt for sample in samples],
            "task": [sample.task for sample in samples],
            "images": [load_images(sample.images) for sample in samples],
        }


@dataclasses.dataclass(frozen=True)
class Source:
    """
    A kind of prompts. `inputs` are what the user gives by path, and what each is.
    """

    kind: ClassVar[str] = ""
    inputs: ClassVar[dict[str, str]] = {}

    def open(self, protocol: "Protocol", paths: Mapping[str, Path]) -> SampleSet:
        """
        The samples.

        Raises:
            `ValueError`: If something is wrong with the user's files, naming it.
        """
        raise NotImplementedError


def sample_seed(seed: int, key: str) -> int:
    """Seed of a sample's noise: it depends on nothing but the protocol's seed and the sample's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:7], "big")


# ------------------------------------------------------------------ UCF101
@dataclasses.dataclass(frozen=True)
class UCF101Source(Source):
    """
    A prompt for each class, as often as its share of the data set's videos.

    Args:
        prompts (`str`, *optional*, defaults to `"snap-video"`):
            The prompts of Snap Video, appendix C.6, or a YAML file with a prompt for each class.
        real_split (`str`, *optional*, defaults to `"all"`):
            Real videos, and those that proportions are of: `"all"`, or `"list"` for the files that the input
            `split_list` names.
    """

    kind: ClassVar[str] = "ucf101"
    inputs: ClassVar[dict[str, str]] = {"ucf101": "folder of UCF101, with a folder of videos for each class"}
    prompts: str = SNAP_VIDEO
    real_split: str = "all"

    def __post_init__(self):
        if self.real_split not in ("all", "list"):
            raise ValueError(f'`real_split` must be "all" or "list", got {self.real_split!r}.')

    def open(self, protocol: "Protocol", paths: Mapping[str, Path]) -> SampleSet:
        prompts = self._prompts()
        files = self._files(paths)
        if unknown := sorted(set(files) - set(prompts)):
            raise ValueError(f"There is no prompt for the classes {', '.join(unknown)} of {paths['ucf101']}.")
        counts = {name: len(own) for name, own in files.items()}
        number = protocol.num_samples or sum(counts.values())
        samples = [
            EvaluationSample(id, prompts[name], sample_seed(protocol.seed, id), text=prompts[name], group=name)
            for name, share in proportional(counts, number).items()
            for id in (f"{name}-{place:05d}" for place in range(share))
        ]
        facts = {
            "classes": len(counts),
            "classes_without_videos": sorted(set(prompts) - set(counts)),
            "real_videos": sum(counts.values()),
            "prompts": self.prompts,
        }
        return SampleSet(samples, [path for own in files.values() for path in own], facts)

    def _prompts(self) -> dict[str, str]:
        from .protocols import CONFIGS, read_yaml

        path = CONFIGS / "ucf101_prompts.yaml" if self.prompts == SNAP_VIDEO else Path(self.prompts)
        prompts = read_yaml(path)
        if not isinstance(prompts, dict) or not all(isinstance(text, str) and text for text in prompts.values()):
            raise ValueError(f"{path} must hold a prompt for each class, as `Class: prompt`.")
        return prompts

    def _files(self, paths: Mapping[str, Path]) -> dict[str, list[Path]]:
        """The videos of each class, under the name that it has among the prompts whatever its case."""
        root = _folder(paths["ucf101"])
        listed = None
        if self.real_split == "list":
            if "split_list" not in paths:
                raise ValueError('`real_split: list` needs the input split_list: give "--data split_list=FILE".')
            lines = Path(paths["split_list"]).read_text(encoding="utf-8").splitlines()
            listed = {line.split()[0].casefold() for line in lines if line.strip()}
        names = {name.casefold(): name for name in self._prompts()}
        files: dict[str, list[Path]] = {}
        found = sorted(path for path in root.glob("*/*") if path.suffix.lower() in VIDEO_SUFFIXES)
        for path in found:
            if listed is None or f"{path.parent.name}/{path.name}".casefold() in listed:
                files.setdefault(names.get(path.parent.name.casefold(), path.parent.name), []).append(path)
        if not files:
            raise ValueError(f"{root} has no videos in folders of classes{' that the list names' * bool(listed)}.")
        return dict(sorted(files.items(), key=lambda item: item[0].casefold()))


def proportional(counts: Mapping[str, int], number: int) -> dict[str, int]:
    """`number` dealt out in proportion to `counts`, by largest remainder; ties in the order of `counts`."""
    total = sum(counts.values())
    shares = {name: number * count // total for name, count in counts.items()}
    remainders = sorted(counts, key=lambda name: -(number * counts[name] % total))  # stable
    for name in remainders[: number - sum(shares.values())]:
        shares[name] += 1
    return shares


# ------------------------------------------------------------------ captions
@dataclasses.dataclass(frozen=True)
class CaptionSource(Source):
    """
    A video for each caption: MSR-VTT's JSON (`sentences` with `video_id` and `caption`, and `videos` with `split`), or
    a CSV with the columns `id` and `caption`.

    Args:
        split (`str`, *optional*): Only videos of this split of a JSON file.
        captions (`str`, *optional*, defaults to `"all"`): `"all"`, or `"one"` of each video, drawn with the seed.
        expected (`int`, *optional*): How many captions there should be; another number is an error.
    """

    kind: ClassVar[str] = "captions"
    inputs: ClassVar[dict[str, str]] = {
        "captions": "MSR-VTT's JSON of captions, or a CSV with the columns id, caption"
    }
    split: str | None = None
    captions: str = "all"
    expected: int | None = None

    def __post_init__(self):
        if self.captions not in ("all", "one"):
            raise ValueError(f'`captions` must be "all" or "one", got {self.captions!r}.')

    def open(self, protocol: "Protocol", paths: Mapping[str, Path]) -> SampleSet:
        path = Path(paths["captions"])
        rows = self._rows(path)
        by_video: dict[str, list[str]] = {}
        for video, caption in rows:
            if caption.strip():
                by_video.setdefault(video, []).append(caption.strip())
        if self.captions == "one":
            by_video = {
                video: [own[sample_seed(protocol.seed, f"caption/{video}") % len(own)]]
                for video, own in by_video.items()
            }
        samples = [
            EvaluationSample(id, caption, sample_seed(protocol.seed, id), text=caption, group=video)
            for video, own in by_video.items()
            for id, caption in ((f"{_file_name(video)}-{place:03d}", caption) for place, caption in enumerate(own))
        ]
        if not samples:
            raise ValueError(f"{path} has no caption{f' of split {self.split!r}' if self.split else ''}.")
        if self.expected is not None and len(samples) != self.expected:
            raise ValueError(
                f"{path} has {len(samples)} captions, the protocol has {self.expected}: take the right file, or "
                f"change it with --set source.expected={len(samples)}."
            )
        _check_ids(samples, path)
        return SampleSet(_first(samples, protocol), [], {"captions_in_file": len(rows), "videos": len(by_video)})

    def _rows(self, path: Path) -> list[tuple[str, str]]:
        if path.suffix != ".json":
            return [(row["id"], row["caption"]) for row in _read_csv(path, ("id", "caption"))]
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            splits = {video["video_id"]: video.get("split") for video in data.get("videos", [])}
            return [
                (row["video_id"], row["caption"])
                for row in data["sentences"]
                if self.split is None or splits[row["video_id"]] == self.split
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no JSON of MSR-VTT: {error!r}.") from error


# ------------------------------------------------------------------ subjects
@dataclasses.dataclass(frozen=True)
class SubjectSource(Source):
    """
    Subjects x prompts, as in DreamBench: the input is a folder with a folder of pictures for each subject, a
    `subjects.csv` with the columns `subject` (its folder), `class` (such as "dog") and, optionally, `prompts` (which
    file of prompts; `prompts.txt` without), and these files: a prompt in each line, in which `{}` is the subject.

    Args:
        images_in_prompt (`int`, *optional*, defaults to `1`): Pictures of the subject that the prompt shows.
        videos_per_prompt (`int`, *optional*, defaults to `1`): Videos of each subject and prompt.
    """

    kind: ClassVar[str] = "subjects"
    inputs: ClassVar[dict[str, str]] = {
        "subjects": "folder of subjects: subjects.csv, prompts.txt and a folder of pictures for each subject"
    }
    images_in_prompt: int = 1
    videos_per_prompt: int = 1

    def __post_init__(self):
        if min(self.images_in_prompt, self.videos_per_prompt) < 1:
            raise ValueError("`images_in_prompt` and `videos_per_prompt` must be at least 1.")

    def open(self, protocol: "Protocol", paths: Mapping[str, Path]) -> SampleSet:
        root = _folder(paths["subjects"])
        samples: list[EvaluationSample] = []
        subjects = _read_csv(root / "subjects.csv", ("subject", "class"))
        for row in subjects:
            pictures = sorted(map(str, _pictures(root / row["subject"])))
            shown = tuple(pictures[: self.images_in_prompt])
            if len(shown) < self.images_in_prompt:
                raise ValueError(
                    f"{root / row['subject']} has {len(pictures)} pictures, {self.images_in_prompt} wanted."
                )
            tags = " ".join(f"<image_{place + 1}>" for place in range(len(shown)))
            for number, line in enumerate(_lines(root / (row.get("prompts") or "prompts.txt"))):
                for repeat in range(self.videos_per_prompt):
                    id = f"{_file_name(row['subject'])}-{number:03d}-{repeat:02d}"
                    samples.append(
                        EvaluationSample(
                            id,
                            line.replace("{}", tags),
                            sample_seed(protocol.seed, id),
                            "subject",
                            line.replace("{}", row["class"]),
                            row["subject"],
                            shown,
                            tuple(pictures),
                        )
                    )
        _check_ids(samples, root)
        return SampleSet(_first(samples, protocol), [], {"subjects": len(subjects)})


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: give it a prompt in each line, with {{}} for the subject.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if wrong := [line for line in lines if line.count("{}") != 1]:
        raise ValueError(f"A prompt of {path} must have {{}} once, where the subject stands: {wrong[0]!r}.")
    if not lines:
        raise ValueError(f"{path} has no prompt.")
    return lines


# ------------------------------------------------------------------ files
def _folder(path: Path) -> Path:
    if not Path(path).is_dir():
        raise FileNotFoundError(f"There is no folder {path}.")
    return Path(path)


def _pictures(folder: Path) -> list[Path]:
    return [path for path in _folder(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]


def _read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path} needs the columns {', '.join(columns)}; {', '.join(missing)} is missing.")
        rows = list(reader)
    for number, row in enumerate(rows, 2):
        if empty := [name for name in columns if not (row[name] or "").strip()]:
            raise ValueError(f"{path}, line {number}: {', '.join(empty)} is empty.")
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name).lstrip(".") or "_"


def _check_ids(samples: Sequence[EvaluationSample], path: Path) -> None:
    id, count = Counter(sample.id for sample in samples).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path}: {count} samples would be named {id!r}; rename what they are of.")


def _first(samples: list[EvaluationSample], protocol: "Protocol") -> list[EvaluationSample]:
    """The first of `num_samples`, spread evenly over all."""
    number = protocol.num_samples
    if number is None:
        return samples
    if number > len(samples):
        raise ValueError(f"`num_samples` is {number}, there are {len(samples)} prompts.")
    return [samples[place * len(samples) // number] for place in range(number)]
