"""Tiny models that the tests make and load."""

from pathlib import Path

import torch
import transformers

transformers.utils.logging.disable_progress_bar()  # tests look at stderr

TINY_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_register_tokens": 4,
}


def save_tiny_vit(folder: Path, seed: int = 0, blocks: int = 2) -> Path:
    """Save a seeded tiny DINOv3 ViT into folder and return it."""
    torch.manual_seed(seed)
    config = transformers.DINOv3ViTConfig(**{**TINY_VIT, "num_hidden_layers": blocks})
    transformers.DINOv3ViTModel(config).save_pretrained(folder)
    return folder


def save_tiny_convnext(folder: Path) -> Path:
    """Save a seeded tiny DINOv3 ConvNeXt into folder and return it."""
    torch.manual_seed(0)
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    transformers.DINOv3ConvNextModel(config).save_pretrained(folder)
    return folder


def save_tiny_dinov2(folder: Path) -> Path:
    """Save a seeded tiny DINOv2 into folder and return it."""
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def save_tiny_bert(folder: Path) -> Path:
    """Save a seeded tiny text model into folder and return it."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=100,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder
