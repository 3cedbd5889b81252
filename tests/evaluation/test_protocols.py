import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from protocol_cases import write_captions, write_toy

from vimi_diffusers.evaluation.measures import required_inputs
from vimi_diffusers.evaluation.protocols import CONFIGS, load_protocol, protocol_names, read_yaml
from vimi_diffusers.evaluation.sources import proportional, sample_seed


def test_what_is_shipped_loads():
    assert protocol_names() == ["emoji_world", "msrvtt", "subjects", "ucf101"]
    for name in protocol_names():
        protocol = load_protocol(name)
        assert protocol.name == name and protocol.not_comparable_with and not protocol.changed


def test_ucf101_is_as_snap_video_describes_it():
    protocol = load_protocol("ucf101")
    assert (protocol.num_samples, protocol.num_frames, protocol.size) == (10_000, 16, (288, 512))
    assert [view.name for view in protocol.views] == ["512x288", "288x288"]
    prompts = read_yaml(CONFIGS / "ucf101_prompts.yaml")
    assert len(prompts) == len(set(prompts.values())) == 101
    assert list(prompts) == sorted(prompts, key=str.casefold)
    assert prompts["HammerThrow"] == "an athlete performing the hammer throw"
    assert set(required_inputs(protocol)) == {"ucf101", "i3d", "c3d", "memory"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "unknown keys colour"),
        ({"sampling": {"num_inference_steps": 2, "steps": 3}}, "sampling: unknown keys steps"),
        ({"source": {"kind": "captions", "spilt": "test"}}, "source: unknown keys spilt"),
        ({"source": {"kind": "caption"}}, "`kind` must be one of ucf101, captions, subjects, emoji-world"),
        ({"size": "16x16"}, "size must be a list, got '16x16'"),
        ({"size": [16]}, "must be a height and a width"),
        ({"num_frames": 4.5}, "num_frames must be int, got 4.5"),
        ({"num_samples": 0}, "`num_samples` must be positive"),
        ({"metrics": ["fdv"]}, "There is no metric 'fdv'"),
        ({"metrics": []}, "must name at least one"),
        ({"metrics": ["dynamic_degree"] * 2}, "names one twice"),
        ({"metrics": ["colour_identification"]}, "is for the sources emoji-world"),
        ({"extractors": {"video": "i3d"}}, "`extractors` has no role video"),
        ({"views": [{"name": "a"}, {"name": "a"}]}, "Two views have one name"),
    ],
)
def test_what_is_wrong_with_a_protocol_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_protocol(write_toy(tmp_path, **change))


def test_there_is_no_other_protocol():
    with pytest.raises(FileNotFoundError, match="'ucf100': take one of emoji_world, msrvtt"):
        load_protocol("ucf100")


def test_a_changed_protocol_knows_it(tmp_path):
    path = write_toy(tmp_path)
    before = load_protocol(path)
    after = load_protocol(path, {"sampling.num_inference_steps": 3, "fps": 8})
    assert after.changed == {"sampling.num_inference_steps": {"protocol": 2, "here": 3}}
    assert after.sha256 != before.sha256
    assert load_protocol(write_toy(tmp_path, title="Other words")).sha256 == before.sha256
    with pytest.raises(ValueError, match="no section 'sampler'"):
        before.replace(**{"sampler.steps": 3})
    with pytest.raises(ValueError, match="unknown keys steps"):
        before.replace(steps=3)


# ------------------------------------------------------------------ sources
@given(st.dictionaries(st.text(min_size=1), st.integers(1, 300), min_size=1, max_size=20), st.integers(1, 2000))
def test_proportions_are_kept_to_less_than_one(counts, number):
    shares = proportional(counts, number)
    assert sum(shares.values()) == number
    for name, count in counts.items():
        assert abs(shares[name] - number * count / sum(counts.values())) < 1


def ucf101(folder, **counts):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            (folder / name / f"v_{name}_{number}.avi").write_bytes(b"")
    return folder


def test_ucf101_takes_proportions_from_the_folder(tmp_path):
    root = ucf101(tmp_path / "ucf", YoYo=1, HandStandPushups=3)  # the files' spelling
    protocol = load_protocol("ucf101", {"num_samples": 8})
    samples = protocol.source.open(protocol, {"ucf101": root})
    assert [sample.group for sample in samples.samples] == ["HandstandPushups"] * 6 + ["YoYo"] * 2
    assert samples.samples[-1].prompt == "a person at a Yo-Yo competition"
    assert samples.facts["classes"] == 2 and len(samples.facts["classes_without_videos"]) == 99
    assert len(samples.real) == 4
    fewer = protocol.replace(num_samples=4)
    seeds = {sample.id: sample.seed for sample in samples.samples}
    assert all(seeds[one.id] == one.seed for one in fewer.source.open(fewer, {"ucf101": root}).samples)


def test_ucf101_by_a_list(tmp_path):
    root = ucf101(tmp_path / "ucf", YoYo=2, Punch=2)
    (tmp_path / "list.txt").write_text("YoYo/v_YoYo_1.avi 101\nPunch/v_Punch_0.avi 71\n")
    protocol = load_protocol("ucf101", {"num_samples": 2, "source.real_split": "list"})
    opened = protocol.source.open(protocol, {"ucf101": root, "split_list": tmp_path / "list.txt"})
    assert [path.name for path in opened.real] == ["v_Punch_0.avi", "v_YoYo_1.avi"]
    with pytest.raises(ValueError, match="split_list=FILE"):
        protocol.source.open(protocol, {"ucf101": root})


def test_ucf101_without_its_classes(tmp_path):
    protocol = load_protocol("ucf101")
    with pytest.raises(ValueError, match="no prompt for the classes Chess"):
        protocol.source.open(protocol, {"ucf101": ucf101(tmp_path / "other", Chess=1)})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no videos in folders of classes"):
        protocol.source.open(protocol, {"ucf101": tmp_path / "empty"})


def test_captions_of_msrvtt(tmp_path):
    sentences = [{"video_id": f"video{n}", "caption": f"caption {k} of {n}"} for n in range(3) for k in range(4)]
    splits = [{"video_id": f"video{n}", "split": "test" if n else "train"} for n in range(3)]
    path = tmp_path / "msrvtt.json"
    path.write_text(json.dumps({"sentences": sentences, "videos": splits}))
    protocol = load_protocol("msrvtt")
    with pytest.raises(ValueError, match="has 8 captions, the protocol has 59800"):
        protocol.source.open(protocol, {"captions": path})
    protocol = protocol.replace(**{"source.expected": 8})
    samples = protocol.source.open(protocol, {"captions": path}).samples
    assert [sample.id for sample in samples][:2] == ["video1-000", "video1-001"] and len(samples) == 8
    one = protocol.replace(**{"source.captions": "one", "source.expected": 2})
    assert {sample.group for sample in one.source.open(one, {"captions": path}).samples} == {"video1", "video2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,text\na,b\n", "caption is missing"),
        ("id,caption\na,\n", "line 2: caption is empty"),
        ("id,caption\n", "has no rows"),
        ("id,caption\na/b,x\na:b,y\n", "2 samples would be named 'a_b-000'"),
    ],
)
def test_captions_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "captions.csv").write_text(text)
    protocol = load_protocol(write_toy(tmp_path))
    with pytest.raises(ValueError, match=message):
        protocol.source.open(protocol, {"captions": tmp_path / "captions.csv"})


def test_some_of_the_captions_are_spread_over_all(tmp_path):
    protocol = load_protocol(write_toy(tmp_path, num_samples=2))
    samples = protocol.source.open(protocol, {"captions": write_captions(tmp_path, 5)}).samples
    assert [sample.group for sample in samples] == ["clip0", "clip2"]
    with pytest.raises(ValueError, match="`num_samples` is 6, there are 5 prompts"):
        more = protocol.replace(num_samples=6)
        more.source.open(more, {"captions": tmp_path / "captions.csv"})


def subjects(folder):
    for name in ("dog6", "vase"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (20, 20), (80 * number, 0, 0)).save(folder / name / f"{number}.png")
    (folder / "subjects.csv").write_text("subject,class,prompts\ndog6,dog,\nvase,vase,things.txt\n")
    (folder / "prompts.txt").write_text("A {} in the snow\nA {} on a beach\n")
    (folder / "things.txt").write_text("A {} on a table\n")
    return folder


def test_subjects_meet_their_prompts(tmp_path):
    protocol = load_protocol("subjects")
    samples = protocol.source.open(protocol, {"subjects": subjects(tmp_path / "set")}).samples
    assert [sample.id for sample in samples] == ["dog6-000-00", "dog6-001-00", "vase-000-00"]
    assert (samples[0].prompt, samples[0].text) == ("A <image_1> in the snow", "A dog in the snow")
    assert len(samples[0].images) == 1 and len(samples[0].references) == 2 and samples[0].task == "subject"


def test_subjects_that_cannot_be_used(tmp_path):
    protocol, root = load_protocol("subjects"), subjects(tmp_path / "set")
    with pytest.raises(ValueError, match="has 2 pictures, 3 wanted"):
        more = protocol.replace(**{"source.images_in_prompt": 3})
        more.source.open(more, {"subjects": root})
    (root / "prompts.txt").write_text("A dog\n")
    with pytest.raises(ValueError, match="must have {} once"):
        protocol.source.open(protocol, {"subjects": root})


def test_seeds_depend_on_names_alone():
    assert sample_seed(0, "a") == sample_seed(0, "a") != sample_seed(1, "a")
    assert len({sample_seed(0, str(n)) for n in range(1000)}) == 1000
