# Copyright 2026 The vimi_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Entity words of captions by a language model (paper section 7.1): asked for JSON, believed only word for word."""

import json
import re
from collections.abc import Sequence
from typing import Any

from .plugins import Entity, EntityExtractor, Extraction


QUESTION = """List what can be seen in a video with this caption, in words copied exactly from the caption.
"subjects": people, animals and objects, each a noun or short noun phrase without article or number, singular only.
"background": the place where it happens, likewise.
Leave out what is plural, abstract, an action or part of something else. Answer with one line of JSON and nothing else.

Caption: A brown dog chases a ball through the park.
{"subjects": ["brown dog", "ball"], "background": ["park"]}

Caption: """
KEYS = {"subjects": False, "background": True}
TOKENS_PER_ANSWER = 128


class LanguageModelExtractor(EntityExtractor):
    """
    Entities by a causal language model of transformers. It is asked for JSON, through its chat template if it has one,
    and decodes greedily. Only words that stand in the caption, as whole words, are taken from its answer.

    Args:
        name (`str`, *optional*, defaults to `"Qwen/Qwen2.5-1.5B-Instruct"`): Hub id or local folder of the model.
        device, dtype, batch_size: As of [`Plugin`].

    Raises:
        OSError: If there is no such model.
    """

    default_name = "Qwen/Qwen2.5-1.5B-Instruct"

    def __init__(self, name: str | None = None, device: str = "cpu", dtype: Any = "float32", batch_size: int = 8):
        super().__init__(name, device, dtype, batch_size)
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(self.model_name(), padding_side="left")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(self.name, dtype=self.torch_dtype)
        self.model = model.eval().requires_grad_(False).to(device)

    def __call__(self, captions: Sequence[str]) -> list[Extraction]:
        found: list[Extraction] = []
        for start in range(0, len(captions), self.batch_size):
            part = captions[start : start + self.batch_size]
            found += map(parse_answer, self._answers(part), part)
        return found

    def _answers(self, captions: Sequence[str]) -> list[str]:
        texts = [QUESTION + " ".join(caption.split()) + "\n" for caption in captions]
        chat = self.tokenizer.chat_template is not None
        if chat:
            turns = [[{"role": "user", "content": text}] for text in texts]
            texts = [
                self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns
            ]
        inputs = self.tokenizer(
            texts, padding=True, add_special_tokens=not chat, return_token_type_ids=False, return_tensors="pt"
        ).to(self.device)
        answers = self.model.generate(
            **inputs, max_new_tokens=TOKENS_PER_ANSWER, do_sample=False, pad_token_id=self.tokenizer.pad_token_id
        )
        return self.tokenizer.batch_decode(answers[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def parse_answer(answer: str, caption: str) -> Extraction:
    """
    Entities of a model's answer, strictly: its first JSON object must hold lists of strings under `"subjects"` and
    `"background"`, and each string must stand in the caption as whole words.

    Args:
        answer (`str`): What the model wrote; text around the object is ignored.
        caption (`str`): What it was asked about.
    """
    start = answer.find("{")
    try:
        row, _ = json.JSONDecoder().raw_decode(answer[max(start, 0) :])
        lists = {key: row[key] for key in KEYS}
        if not all(
            isinstance(words, list) and all(isinstance(word, str) for word in words) for words in lists.values()
        ):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        return Extraction(dropped=((" ".join(answer.split())[:80], "bad_answer"),))
    entities, dropped = [], []
    for key, background in KEYS.items():
        for words in dict.fromkeys(word.strip() for word in lists[key]):
            found = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", caption, re.IGNORECASE) if words else None
            if found:
                entities.append(Entity(found[0], found.start(), background))
            else:
                dropped.append((words[:80], "not_in_caption"))
    return Extraction(tuple(entities), tuple(dropped))
