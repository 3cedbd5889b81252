"""The cache of C: the same as the conditioner gives, no pass for what is known, and nothing stale ever."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from vimi_diffusers.training.condition_cache import ConditionCache, hash_processor, hash_weights
from vimi_diffusers.vimi.mllm_conditioner import MLLMConditioner
from vimi_diffusers.vimi.tiny import build_tiny_components


RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
TEXTS = [
    "a red ball and a <image> cube",
    "a blue",
    "<image> and <image> ball",
    "a red ball and a blue cube and a ball",
]
IMAGES = [[RED], [], [BLUE, RED], []]


@pytest.fixture
def parts():
    components = build_tiny_components()
    return components["text_encoder"].requires_grad_(False), components["text_processor"]


@pytest.fixture
def make(parts, tmp_path):
    def build(conditioner=None, processor=None, folder=tmp_path / "cache", **options):
        return ConditionCache(folder, conditioner or parts[0], processor or parts[1], **options)

    return build


@torch.no_grad()
def direct(conditioner, processor, texts, images):
    inputs = processor(
        text=texts, images=images if any(images) else None, padding=True, padding_side="right", return_tensors="pt"
    )
    return conditioner(**inputs), conditioner.condition_mask(inputs["attention_mask"])


def passes(conditioner):
    """Counts the conditioner's passes from here on."""
    calls = []
    conditioner.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    return calls


def test_the_same_as_the_conditioner_gives(parts, make):
    cache = make()
    expected, expected_mask = direct(*parts, TEXTS, IMAGES)
    for _ in range(2):  # computed, then read
        embeds, mask = cache(TEXTS, IMAGES)
        assert torch.equal(mask, expected_mask) and embeds.shape == expected.shape
        assert torch.equal(embeds[mask], expected[mask]) and not embeds[~mask].any()
    assert (cache.hits, cache.misses) == (4, 4)
    mixed, mask = cache(TEXTS[2:] + ["a new <image>"], [*IMAGES[2:], [BLUE]])
    expected, _ = direct(*parts, TEXTS[2:] + ["a new <image>"], [*IMAGES[2:], [BLUE]])
    torch.testing.assert_close(mixed[mask], expected[mask], atol=1e-6, rtol=0)


def test_only_what_is_missing_is_computed_in_one_pass(parts, make):
    cache, calls = make(), passes(parts[0])
    cache(TEXTS[:2], IMAGES[:2])
    cache(TEXTS, IMAGES)
    cache(TEXTS[::-1], IMAGES[::-1])
    make()(TEXTS, IMAGES)  # another run
    assert calls == [2, 2]
    cache(["twice", "twice", "a red"], [[], [], []])
    assert calls == [2, 2, 2]


def test_padding_to_a_length(make):
    cache = make()
    short, short_mask = cache(TEXTS, IMAGES)
    embeds, mask = cache(TEXTS, IMAGES, length=64)
    assert embeds.shape[1] == 64 and torch.equal(mask[:, : short.shape[1]], short_mask)
    assert torch.equal(embeds[:, : short.shape[1]], short) and not mask[:, short.shape[1] :].any()
    with pytest.raises(ValueError, match=f"gives {short.shape[1]} tokens of C, over the 8 of a batch"):
        cache(TEXTS, IMAGES, length=8)


def test_a_saved_and_loaded_model_finds_its_entries(parts, make, tmp_path):
    make()(TEXTS, IMAGES)
    conditioner, processor = parts
    conditioner.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "processor")
    loaded = MLLMConditioner.from_pretrained(tmp_path / "model").eval().requires_grad_(False)
    calls = passes(loaded)
    make(loaded, type(processor).from_pretrained(tmp_path / "processor"))(TEXTS, IMAGES)
    assert calls == []


def changed_weight(conditioner, processor):
    conditioner.mllm.lm_head.weight.data[0, 0] += 1e-6


def changed_connector(conditioner, processor):
    conditioner.proj.bias.data[3] += 1e-3


def changed_layer(conditioner, processor):
    conditioner.config.hidden_layer = 0


def changed_dtype(conditioner, processor):
    conditioner.to(torch.bfloat16)


def changed_attention(conditioner, processor):
    conditioner.set_attn_implementation("eager")


def changed_image_size(conditioner, processor):
    processor.image_processor.image_mean = [0.4, 0.5, 0.5]


def changed_tokenizer(conditioner, processor):
    processor.tokenizer.add_tokens(["zebra"])


def changed_template(conditioner, processor):
    processor.chat_template = "{{ messages[0]['content'][0]['text'] }}"


@pytest.mark.parametrize(
    "change",
    [
        changed_weight,
        changed_connector,
        changed_layer,
        changed_dtype,
        changed_attention,
        changed_image_size,
        changed_tokenizer,
        changed_template,
    ],
)
def test_another_model_or_processor_misses(change, parts, make):
    make()(TEXTS, IMAGES)
    conditioner, processor = copy.deepcopy(parts)
    same = make(copy.deepcopy(conditioner), copy.deepcopy(processor))
    same(TEXTS, IMAGES)
    assert (same.hits, same.misses) == (4, 0)
    change(conditioner, processor)
    other = make(conditioner, processor)
    embeds, mask = other(TEXTS, IMAGES)
    assert (other.hits, other.misses) == (0, 4)
    expected, _ = direct(conditioner, processor, TEXTS, IMAGES)
    assert torch.equal(embeds[mask], expected[mask])
    assert len([path for path in other.folder.iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("change", [changed_weight, changed_connector, changed_layer, changed_dtype])
def test_a_model_that_changes_after_the_first_call_misses(change, parts, make):
    cache = make()
    cache(TEXTS, IMAGES)
    with torch.no_grad():
        if change is changed_dtype:
            changed_dtype(*parts)
        elif change is changed_layer:
            changed_layer(*parts)
        else:
            parts[0].load_state_dict({key: value + 0.01 for key, value in parts[0].state_dict().items()})
    embeds, mask = cache(TEXTS, IMAGES)
    expected, _ = direct(*parts, TEXTS, IMAGES)
    assert cache.misses == 8 and torch.equal(embeds[mask], expected[mask])


def test_other_prompts_miss(make):
    cache = make()
    cache(TEXTS[:1], IMAGES[:1])
    one_pixel = RED.copy()
    one_pixel.putpixel((3, 4), (254, 0, 0))
    for text, images in ((TEXTS[0], [one_pixel]), (TEXTS[0] + " ", [RED]), (TEXTS[0], [RED.resize((8, 32))])):
        hits = cache.hits
        cache([text], [images])
        assert cache.hits == hits
    cache(TEXTS[:1], [[RED.copy()]])
    assert cache.hits == 1


def test_mixed_precision_has_its_own_entries(parts, make):
    cache = make(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        expected, expected_mask = direct(*parts, TEXTS, IMAGES)
    embeds, mask = cache(TEXTS, IMAGES)
    assert embeds.dtype == expected.dtype and torch.equal(embeds[mask], expected[mask])
    exact = make()
    with torch.autocast("cpu", torch.bfloat16):  # what surrounds the call does not count
        embeds, _ = exact(TEXTS, IMAGES)
    assert exact.misses == 4 and embeds.dtype == torch.float32
    assert torch.equal(make(dtype=torch.bfloat16)(TEXTS, IMAGES)[0][mask], expected[expected_mask])


@pytest.mark.parametrize("options", [{"crop_start": 3}, {"num_queries": 5}])
def test_cropped_templates_and_learned_queries(options, parts, make):
    config = copy.deepcopy(parts[0].config)
    for name, value in options.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    conditioner, processor = MLLMConditioner(config).eval().requires_grad_(False), parts[1]
    processor.chat_template = "a ball: {{ messages[0]['content'][0]['text'] }}!"
    cache = make(conditioner)
    texts = [f"a ball: {text}!" for text in TEXTS] if "crop_start" in options else TEXTS
    expected, expected_mask = direct(conditioner, processor, texts, IMAGES)
    for _ in range(2):
        embeds, mask = cache(TEXTS, IMAGES)
        assert torch.equal(mask, expected_mask) and torch.equal(embeds[mask], expected[mask])


def test_dropout_is_off_and_the_mode_is_kept(parts, make):
    conditioner = parts[0].train()
    cache = make()
    embeds, mask = cache(TEXTS, IMAGES)
    assert conditioner.training
    expected, _ = direct(conditioner.eval(), parts[1], TEXTS, IMAGES)
    assert torch.equal(embeds[mask], expected[mask]) and not embeds.requires_grad


def test_damaged_and_misplaced_entries_are_made_again(make):
    cache = make()
    expected, _ = cache(TEXTS, IMAGES)
    files = sorted(cache.folder.rglob("*.safetensors"))
    assert len(files) == 4
    files[0].write_bytes(files[0].read_bytes()[:-7])
    files[1].write_bytes(b"")
    files[2].write_bytes(files[3].read_bytes())
    assert torch.equal(cache(TEXTS, IMAGES)[0], expected) and cache.misses == 7
    assert torch.equal(cache(TEXTS, IMAGES)[0], expected) and cache.misses == 7


def test_entries_are_written_whole(make, monkeypatch):
    cache = make()

    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("vimi_diffusers.training.condition_cache.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        cache(TEXTS, IMAGES)
    assert not [path for path in cache.folder.rglob("*") if path.name.startswith(".") or "safetensors" in path.name]


SCRIPT = """
import hashlib, sys, time
from pathlib import Path
from PIL import Image
from vimi_diffusers.training.condition_cache import ConditionCache
from vimi_diffusers.vimi.tiny import build_tiny_components

folder, number = Path(sys.argv[1]), sys.argv[2]
parts = build_tiny_components()
(folder / f"ready{number}").touch()
while not all((folder / f"ready{i}").exists() for i in "01"):
    time.sleep(0.001)
cache = ConditionCache(folder / "cache", parts["text_encoder"].requires_grad_(False), parts["text_processor"])
digest = hashlib.sha256()
for i in range(60):
    embeds, _ = cache([f"a ball {i} <image>", "a"], [[Image.new("RGB", (16, 16), (i, 0, 0))], []])
    digest.update(embeds.numpy().tobytes())
print(digest.hexdigest(), cache.misses)
"""


def test_two_processes_write_the_same_entries_at_once(make, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    pair = [subprocess.Popen([*command, i], env=environment, stdout=subprocess.PIPE, text=True) for i in "01"]
    outputs = [process.communicate(timeout=120)[0].split() for process in pair]
    assert all(process.returncode == 0 for process in pair)
    assert outputs[0][0] == outputs[1][0]
    assert int(outputs[0][1]) + int(outputs[1][1]) >= 61
    cache = make()
    assert len(list(cache.folder.rglob("*.safetensors"))) == 61 and not list(cache.folder.rglob("*.part"))
    for i in range(60):
        cache([f"a ball {i} <image>"], [[Image.new("RGB", (16, 16), (i, 0, 0))]])
    assert cache.misses == 0


def test_folders_of_other_things_are_refused(make, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(ValueError, match="photos holds other files: choose a new folder for the condition cache"):
        make(folder=tmp_path / "photos")
    manifest = make().folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 0}))
    with pytest.raises(ValueError, match="is a cache of another kind"):
        make()


def test_bad_calls(parts, make):
    cache = make()
    with pytest.raises(ValueError, match="There are 2 texts for 1 lists of images"):
        cache(["a", "b"], [[]])
    parts[0].proj.requires_grad_(True)
    with pytest.raises(ValueError, match="The conditioner trains, so its C changes with each step: freeze it"):
        cache(["a"], [[]])
    parts[0].requires_grad_(False)
    peft = pytest.importorskip("peft")
    parts[0].add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    parts[0].requires_grad_(False)
    with pytest.raises(ValueError, match="has LoRA layers, which can be switched: merge them"):
        cache(["a"], [[]])


def test_hashes(parts):
    conditioner, processor = copy.deepcopy(parts)
    weights, files = hash_weights(conditioner), hash_processor(processor)
    processor(text=["a", "longer text"], padding=True, return_tensors="pt")  # leaves its padding in the tokenizer
    assert (hash_weights(conditioner), hash_processor(processor)) == (weights, files)
    conditioner.proj.bias.data.fill_(-0.0)
    zero = hash_weights(conditioner)
    conditioner.proj.bias.data.fill_(0.0)
    assert hash_weights(conditioner) != zero
