import json

import pytest
import torch

from vimi_diffusers.data.instruct import Entity, Extraction
from vimi_diffusers.data.instruct.entities import SpacyExtractor, VocabularyExtractor
from vimi_diffusers.data.instruct.entities_lm import QUESTION, LanguageModelExtractor, parse_answer


CAPTION = "A red fox and Two dogs run past a house, through a park."


# ------------------------------------------------------------------ vocabulary
def test_a_vocabulary_finds_the_longest_whole_words(tmp_path):
    words = tmp_path / "words.tsv"
    words.write_text("fox\nred fox\ndog\npark\tbackground\n\n", encoding="utf-8")
    found = VocabularyExtractor(str(words))([CAPTION, "A foxglove.", "RED FOX!", ""])
    assert found[0].entities == (Entity("red fox", 2), Entity("park", CAPTION.index("park"), background=True))
    assert found[1] == found[3] == Extraction()
    assert found[2].entities == (Entity("RED FOX", 0),)


def test_a_vocabulary_takes_any_characters(tmp_path):
    words = tmp_path / "words.tsv"
    words.write_text("猫\n(toy) car\nÉlan\n", encoding="utf-8")
    found = VocabularyExtractor(str(words))(["A (toy) car and a 猫", "an élan 🦌"])
    assert [entity.text for entity in found[0].entities] == ["(toy) car", "猫"]
    assert [entity.text for entity in found[1].entities] == ["élan"]


@pytest.mark.parametrize(
    "content, message",
    [(b"", "has no words"), (b"dog\tanimal\n", "line 1: after the tab"), (b"\xff\xfe", "is not UTF-8 text")],
)
def test_a_vocabulary_that_cannot_be_used_is_named(tmp_path, content, message):
    words = tmp_path / "words.tsv"
    words.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        VocabularyExtractor(str(words))
    with pytest.raises(ValueError, match="needs its file"):
        VocabularyExtractor()


# ------------------------------------------------------------------ language model
def test_an_answer_is_believed_only_word_for_word():
    answer = 'Sure! {"subjects": ["red Fox", "bird", "ark", " house "], "background": ["park"]} Anything else?'
    found = parse_answer(answer, CAPTION)
    assert found.entities == (
        Entity("red fox", 2),
        Entity("house", CAPTION.index("house")),
        Entity("park", CAPTION.index("park"), background=True),
    )
    assert found.dropped == (("bird", "not_in_caption"), ("ark", "not_in_caption"))


@pytest.mark.parametrize(
    "answer",
    [
        "", "no idea", "{", '{"subjects": ["fox"]}', '{"subjects": "fox", "background": []}', "[" * 10**5,
        '{"subjects": [1], "background": []}', '{"subjects": ["fox"], "background": null}', "{" * 10**5,
    ],
)  # fmt: skip
def test_any_other_answer_is_dropped_as_a_whole(answer):
    found = parse_answer(answer, CAPTION)
    assert found.entities == () and [reason for _, reason in found.dropped] == ["bad_answer"]


def test_a_language_model_is_asked_in_batches(tiny_models, tmp_path):
    captions = ["A red fox runs through a park.", "Two dogs and a small cat sleep on the old sofa of a house."]
    answers = [
        json.dumps({"subjects": ["red fox"], "background": ["park"]}),
        json.dumps({"subjects": ["small cat", "sofa", "bird"], "background": ["house"]}),
    ]
    folder = tiny_models.save_language_model(tmp_path / "lm", dict(zip(captions, answers)))
    extractor = LanguageModelExtractor(str(folder), batch_size=2)
    expected = [parse_answer(answer, caption) for answer, caption in zip(answers, captions)]
    assert extractor(captions) == expected  # padded to the longer of both
    assert extractor(captions[:1]) == expected[:1] and extractor([]) == []
    assert LanguageModelExtractor(str(folder), batch_size=1, dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_chat_model_is_asked_through_its_template(tiny_models, tmp_path):
    folder = tiny_models.save_language_model(tmp_path / "lm", {"A fox.": "{}"})
    extractor = LanguageModelExtractor(str(folder))
    extractor.tokenizer.chat_template = "{{ messages[0]['role'] }}: {{ messages[0]['content'] }}"
    asked = []
    tokenize = extractor.tokenizer._encode_plus

    def note(text, *args, **kwargs):
        asked.extend(text)
        return tokenize(text, *args, **kwargs)

    extractor.tokenizer._encode_plus = note
    extractor(["A fox."])
    assert asked == [f"user: {QUESTION}A fox.\n"]


# ------------------------------------------------------------------ spaCy
@pytest.fixture
def spacy_pipeline(tmp_path):
    """A pipeline that knows the parse of one sentence, saved to a folder as pipelines are."""
    spacy = pytest.importorskip("spacy")
    from spacy.language import Language
    from spacy.tokens import Doc

    parses = {
        "A dog runs .": ("DET NOUN VERB PUNCT", "det nsubj ROOT punct", [1, 2, 2, 2], "_ _ _ _"),
        "She saw two brown dogs and his one cat in a park .": (
            "PRON VERB NUM ADJ NOUN CCONJ PRON NUM NOUN ADP DET NOUN PUNCT",
            "nsubj ROOT nummod amod dobj cc poss nummod conj prep det pobj punct",
            [1, 1, 4, 4, 1, 4, 8, 8, 4, 1, 11, 9, 1],
            "_ _ _ _ Number=Plur _ _ _ _ _ _ _ _",
        ),
    }

    @Language.component("vimi_test_parser")
    def parse(doc):
        key = " ".join(token.text for token in doc)
        pos, dep, heads, morphs = parses[key]
        words, spaces = [token.text for token in doc], [bool(token.whitespace_) for token in doc]
        morphs = ["" if morph == "_" else morph for morph in morphs.split()]
        lemmas = [word.lower() for word in words]
        return Doc(doc.vocab, words, spaces, pos=pos.split(), deps=dep.split(), heads=heads, morphs=morphs,
                   lemmas=lemmas)  # fmt: skip

    pipeline = spacy.blank("en")
    pipeline.add_pipe("vimi_test_parser")
    pipeline.to_disk(tmp_path / "pipeline")
    return str(tmp_path / "pipeline")


def test_spacy_noun_phrases_lose_articles_numerals_and_owners(spacy_pipeline):
    caption = "She saw two brown dogs and his one cat in a park."
    (found,) = SpacyExtractor(spacy_pipeline)([caption])
    assert found.entities == (
        Entity("brown dogs", caption.index("brown"), plural=True),
        Entity("cat", caption.index("cat")),
        Entity("park", caption.index("park"), background=True),
    )


def test_a_spacy_pipeline_that_is_not_there_or_does_not_parse_is_named(tmp_path):
    spacy = pytest.importorskip("spacy")
    with pytest.raises(OSError, match="There is no spaCy pipeline 'en_no_such'"):
        SpacyExtractor("en_no_such")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ValueError, match="has no parser"):
        SpacyExtractor(str(tmp_path / "blank"))
