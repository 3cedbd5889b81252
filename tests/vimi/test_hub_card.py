"""Model cards: what they say, and which ones a push leaves alone."""

import json

import pytest
from diffusers.utils.hub_utils import load_or_create_model_card
from fake_hub import FakeHub
from huggingface_hub import ModelCard

from vimi_diffusers import VIMIPipeline
from vimi_diffusers.model_card import ModelCardFacts, write_model_card


REPO = "user/tiny-vimi"
FACTS = ModelCardFacts(
    name="Tiny",
    license="cc-by-4.0",
    language=["en"],
    datasets=["user/drawings"],
    training_data="Ten drawings.",
    training_config={"steps": 10, "stage | two": "no"},
    evaluation={"FVD": 812.5},
    evaluation_note="On nothing much.",
    limitations="It cannot draw.",
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with FakeHub(tmp_path / "hub") as hub:
        hub.connect(monkeypatch, tmp_path / "cache")
        yield hub


def test_a_push_writes_the_full_card(hub, tiny_pipeline):
    tiny_pipeline.card_facts = FACTS
    tiny_pipeline.push_to_hub(REPO)
    card = ModelCard.load(hub.files(REPO)["README.md"])
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "text-to-video"
    assert card.data.license == "cc-by-4.0" and card.data.datasets == ["user/drawings"]
    assert card.data.language == ["en"] and "widget" not in card.data.to_dict()
    assert {"diffusers", "text-to-video", "image-to-video"} <= set(card.data.tags)
    assert len(card.data.tags) == len(set(card.data.tags))
    headings = [line[3:] for line in card.text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Intended use", "How to use", "Parts", "Training", "Evaluation", "Limitations", "Licence", "Citation"
    ]  # fmt: skip
    code = card.text.split("```python\n")[1]
    assert code.startswith("import vimi_diffusers") and f'from_pretrained("{REPO}")' in code
    size = sum(parameter.numel() for parameter in tiny_pipeline.transformer.parameters())
    assert f"| `transformer` | VIMITransformer3DModel, {size / 1e6:,.1f} M parameters |" in card.text
    assert "4 frames of 16 x 16 pixels" in card.text
    for text in ("# Tiny", "Ten drawings.", "| steps | 10 |", "| stage &#124; two | no |", "| FVD | 812.5 |",
                 "On nothing much.", "It cannot draw."):  # fmt: skip
        assert text in card.text
    assert "automatically generated" not in card.text and "TODO" not in card.text


def test_saving_with_push_writes_it_as_well(hub, tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(str(tmp_path / "tiny"), push_to_hub=True, repo_id=REPO)
    text = hub.files(REPO)["README.md"].read_text()
    assert "## Intended use" in text and text.count("The authors of these weights have not said.") == 3


def test_facts_come_from_the_folder_that_was_loaded(hub, tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "model_card.json").write_text(json.dumps({"training_data": "Ten drawings."}))
    pipe = VIMIPipeline.from_pretrained(tmp_path / "tiny")
    pipe.push_to_hub(REPO)
    assert "Ten drawings." in hub.files(REPO)["README.md"].read_text()


def test_what_people_wrote_stays(hub, tiny_pipeline):
    def push(facts=None):
        tiny_pipeline.card_facts = facts
        tiny_pipeline.push_to_hub(REPO)
        return hub.files(REPO)["README.md"].read_text()

    first = push(FACTS)
    assert push() == first, "without new facts the old ones stay"
    assert "Eleven drawings." in push(ModelCardFacts(training_data="Eleven drawings."))
    readme = hub.files(REPO)["README.md"]
    own = "---\nlibrary_name: diffusers\nlicense: mit\n---\n\n# My own card\n"
    readme.write_text(own)
    assert "# My own card" in push(FACTS)
    head = "---\nlibrary_name: diffusers\ntags:\n- mine\n---\n\n"
    readme.write_text(head + load_or_create_model_card("user/none", is_pipeline=True).text)  # what diffusers writes
    replaced = push(FACTS)
    assert "Ten drawings." in replaced and "- mine\n" in replaced and "automatically" not in replaced


def test_a_subfolder_gets_no_card(hub, tiny_pipeline):
    tiny_pipeline.push_to_hub(REPO, subfolder="nested")
    assert "nested/model_index.json" in hub.files(REPO)
    assert "nested/README.md" not in hub.files(REPO)


def test_variants_count_once_and_vae_is_named(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    tiny_pipeline.transformer.save_pretrained(tmp_path / "transformer", variant="fp16")
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderKLWan"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    write_model_card(tmp_path, REPO)
    text = (tmp_path / "README.md").read_text()
    size = sum(parameter.numel() for parameter in tiny_pipeline.transformer.parameters())
    assert f"VIMITransformer3DModel, {size / 1e6:,.1f} M" in text
    assert "latent space of the `vae`" in text and "`vae` | AutoencoderKLWan" in text


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "Cannot read the facts"),
        ("[]", "holds list"),
        ('{"licence": "mit"}', "holds licence: a model card knows"),
    ],
)
def test_bad_facts_are_named(tmp_path, content, message):
    (tmp_path / "facts.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        ModelCardFacts.from_file(tmp_path / "facts.json")
