"""Grounding DINO, SAM, SAM 2 and a language model of random weights, small enough for tests, built offline."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    PreTrainedTokenizerFast,
    Sam2Config,
    Sam2Model,
    SamConfig,
    SamImageProcessorPil,
    SamModel,
    SwinConfig,
)


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """Letters as word pieces, with the ids of BERT's delimiters, which Grounding DINO has built in."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789'-"
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}
    vocab = {token: number for number, token in special.items()}
    vocab |= {letter: 200 + number for number, letter in enumerate(letters)}
    vocab |= {f"##{letter}": 300 + number for number, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def save_grounding_dino(folder: Path) -> Path:
    torch.manual_seed(0)
    text = BertConfig(
        vocab_size=1030, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    vision = SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_indices=[2, 3, 4]
    )
    config = GroundingDinoConfig(
        backbone_config=vision, text_config=text, d_model=32, num_queries=12, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    model = GroundingDinoForObjectDetection(config).eval()
    for name, weight in model.named_parameters():  # random weights make all boxes alike; spread them
        if name.endswith("layers.2.bias") or "bbox_embed" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def save_sam(folder: Path) -> Path:
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 8, "window_size": 4, "global_attn_indexes": [0], "num_pos_feats": 8, "mlp_dim": 16,
        "initializer_range": 0.02,
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    model = SamModel(config).eval()
    _spread(model)
    model.save_pretrained(folder)
    SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 32},
        mask_pad_size={"height": 32, "width": 32},
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_sam2(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 1, 1], "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 2, 4, 2],
        "global_attention_blocks": [], "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    vision = {
        "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 16,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    model = Sam2Model(
        Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    ).eval()
    _spread(model)
    model.save_pretrained(folder)
    settings = (
        '{"image_processor_type": "Sam2ImageProcessor", "size": {"height": 64, "width": 64}, '
        '"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}'
    )
    (folder / "preprocessor_config.json").write_text(settings)
    return folder


def _spread(model: torch.nn.Module) -> None:
    """Weights large enough that prompts and pixels change the masks."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape) * (2.0 / weight[0].numel()) ** 0.5)


def save_language_model(folder: Path, answers: dict[str, str]) -> Path:
    """A language model that has learnt the answers to the extractor's question about a few captions by heart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from vimi_diffusers.data.instruct.entities_lm import QUESTION
    from vimi_diffusers.vimi.tiny import build_tokenizer

    tokenizer = build_tokenizer([QUESTION, *answers, *answers.values()], 500)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    texts = [f"{QUESTION}{caption}\n{answer}{tokenizer.eos_token}" for caption, answer in answers.items()]
    batch = tokenizer(texts, padding=True, return_token_type_ids=False, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, : len(tokenizer(QUESTION)["input_ids"]) - 2] = -100
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(80):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
