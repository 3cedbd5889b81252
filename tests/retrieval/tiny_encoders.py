"""Sentence-transformers models of random weights, made here: one for texts, one for texts and images."""

import string
from pathlib import Path
from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def text_encoder(folder: Path, seed: int = 0, pooling: str = "mean") -> "SentenceTransformer":
    """A BERT of 32 channels that reads letters."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    signs = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *string.ascii_lowercase]
    tokenizer = Tokenizer(models.WordLevel({sign: number for number, sign in enumerate(signs)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(signs),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).eval().save_pretrained(folder)
    wrapped.save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=64)
    return SentenceTransformer(modules=[transformer, Pooling(32, pooling), Normalize()], device="cpu")


def image_encoder(folder: Path) -> "SentenceTransformer":
    """A CLIP of 16 channels for images of 32x32 pixels and texts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = [*string.ascii_lowercase]
    signs = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={sign: number for number, sign in enumerate(signs)}, merges=[], model_max_length=32
    )
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    shared = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={
            **shared,
            "vocab_size": len(signs),
            "max_position_embeddings": 32,
            "bos_token_id": len(signs) - 2,
            "eos_token_id": len(signs) - 1,
            "pad_token_id": len(signs) - 1,
        },
        vision_config={**shared, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    CLIPModel(config).eval().save_pretrained(folder)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(str(folder))], device="cpu")
