import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vimi_diffusers.emoji_world.render import EmojiWorldAssets, EmojiWorldRenderer, RenderBatch
from vimi_diffusers.emoji_world.samples import Collator, EmojiWorldDataset, read_samples, write_samples
from vimi_diffusers.vimi.tiny import build_text_processor, build_tokenizer


MIX = {"text-to-video": 0.3, "subject": 0.4, "prediction": 0.3}
TOKENS = 4  # of an image of 16 pixels with patches of 8
LENGTH = 160


@pytest.fixture(scope="module")
def dataset(tiny_world):
    return EmojiWorldDataset(tiny_world, "train", MIX, length=200)


@pytest.fixture(scope="module")
def processor(dataset):
    return build_text_processor(build_tokenizer([sample.text() for sample in dataset], 600), image_size=16)


@pytest.fixture(scope="module")
def collator(dataset, processor):
    return Collator(processor.tokenizer, dataset.index, processor.image_token_id, TOKENS, LENGTH)


def test_length_and_bounds(dataset):
    assert len(dataset) == 200 and len(list(dataset)) == 200
    for number in (200, -1):
        with pytest.raises(IndexError):
            dataset[number]


def test_length_must_be_positive(tiny_world):
    with pytest.raises(ValueError, match="`length` is 0"):
        EmojiWorldDataset(tiny_world, "train", MIX, length=0)


def test_batches_have_one_shape_and_one_number_of_image_tokens(dataset, collator, processor):
    samples = [dataset[number] for number in range(64)]
    batch = collator(samples)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape == (64, LENGTH) and batch["render"].reference_kind.shape == (64, 2)
    assert torch.equal((ids == processor.image_token_id).sum(1), torch.full((64,), 2 * TOKENS))
    assert torch.equal(batch["fps"], torch.full((64,), 5.333))
    counts = {len(sample.context) for sample in samples}
    assert counts == {0, 1, 2}
    for row, sample in enumerate(samples):
        used, length = len(sample.context), int(mask[row].sum())
        assert mask[row].tolist() == [1] * length + [0] * (LENGTH - length)
        assert int((ids[row, :length] == processor.image_token_id).sum()) == used * TOKENS
        assert batch["reference_valid"][row].tolist() == [True] * used + [False] * (2 - used)
        unused = (2 - used) * TOKENS
        assert (ids[row, LENGTH - unused :] == processor.image_token_id).all()
        assert (ids[row, length : LENGTH - unused] == processor.tokenizer.pad_token_id).all()
    unconditional = next(row for row, sample in enumerate(samples) if not sample.instruction)
    assert mask[unconditional].sum() == 1  # the tokenizer's start token


def test_tokens_are_those_of_the_text_processor(dataset, collator, processor):
    image = Image.new("RGB", (16, 16))
    for sample in (dataset[number] for number in range(40)):
        images = [image] * len(sample.context)
        want = processor(text=[sample.text(processor.image_token)], images=[images] if images else None,
                         return_tensors="pt")["input_ids"][0]  # fmt: skip
        ids, mask = collator.tokenize([sample])
        assert torch.equal(ids[0, mask[0].bool()], want)


def test_image_features_fall_into_the_slots(dataset, collator, processor):
    """Scattering features slot after slot over the image tokens puts each sample's own images into its row."""
    samples = [dataset[number] for number in range(16)]
    ids = collator(samples)["input_ids"]
    features = torch.arange(16 * 2).repeat_interleave(TOKENS)  # one number for each slot of the flat batch
    scattered = torch.full_like(ids, -1).masked_scatter(ids == processor.image_token_id, features)
    for row, sample in enumerate(samples):
        slots = scattered[row][scattered[row] >= 0].tolist()
        assert slots == [2 * row] * TOKENS + [2 * row + 1] * TOKENS


@pytest.mark.parametrize("task", ["text-to-video", "subject", "prediction"])
def test_a_long_prompt_loses_its_last_words_and_no_image(tiny_world, processor, task):
    dataset = EmojiWorldDataset(tiny_world, "val_seen", {task: 1.0}, length=20, canonical=True)
    samples, index = list(dataset), dataset.index
    image = processor.image_token_id
    wide = Collator(processor.tokenizer, index, image, TOKENS, LENGTH).tokenize(samples)
    tight = Collator(processor.tokenizer, index, image, TOKENS, 12).tokenize(samples)
    for whole, mask, cut in zip(*wide, tight[0].tolist()):
        whole, unused = whole[mask > 0].tolist(), cut[-TOKENS:] if task == "prediction" else []
        words = [token for token in whole if token != image]
        assert [token for token in cut if token != image] == words[: 12 - 2 * TOKENS] and len(words) > 4
        assert cut.count(image) == whole.count(image) + len(unused) == 2 * TOKENS


def test_wrong_collator_settings_are_refused(dataset, processor):
    with pytest.raises(ValueError, match="`max_length` is 8, but 2 images take 8 tokens"):
        Collator(processor.tokenizer, dataset.index, processor.image_token_id, TOKENS, 8)
    with pytest.raises(ValueError, match="shows 2 images, but there are 1 slots"):
        one_slot = Collator(processor.tokenizer, dataset.index, processor.image_token_id, TOKENS, LENGTH, 1)
        one_slot([next(sample for sample in dataset if len(sample.context) == 2)])


def test_workers_make_the_same_batches(dataset, collator):
    def batches(workers):
        return list(DataLoader(dataset, batch_size=50, collate_fn=collator, num_workers=workers))

    for here, there in zip(batches(0), batches(2), strict=True):
        assert torch.equal(here["input_ids"], there["input_ids"])
        assert isinstance(there["render"], RenderBatch)
        assert all(torch.equal(a, b) for a, b in zip(here["render"], there["render"]))


def test_written_samples_are_read_and_rendered_alike(tiny_world, dataset, tmp_path):
    path = tmp_path / "samples.jsonl"
    samples = [dataset[number] for number in range(12)]
    write_samples(samples, path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12 and json.loads(lines[3])["id"] == "train/00000003"
    again = read_samples(path)
    assert again == samples and [sample.text() for sample in again] == [sample.text() for sample in samples]
    renderer = EmojiWorldRenderer(EmojiWorldAssets.load(tiny_world), size=16)
    videos = [renderer.videos(RenderBatch.from_samples(s, dataset.index)).numpy() for s in (samples, again)]
    assert np.array_equal(*videos)


def test_a_failed_write_leaves_the_old_file(dataset, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text("old")

    def failing():
        yield dataset[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_samples(failing(), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
