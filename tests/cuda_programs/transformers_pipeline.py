"""Transformers' own pipeline extracts features with a tiny random DINOv3 on "cuda"."""

import numpy
import torch
import transformers
from PIL import Image
from transformers import DINOv3ViTConfig, DINOv3ViTModel, pipeline

torch.manual_seed(0)
config = DINOv3ViTConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32
)
# The one that needs no torchvision has had another name since transformers 5.
kind = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
processor = kind(size={"height": 32, "width": 32})
image = Image.fromarray(numpy.zeros((32, 32, 3), dtype=numpy.uint8))
for device in ("cuda", "cuda:0", torch.device("cuda"), 0):
    extract = pipeline(
        "image-feature-extraction",
        model=DINOv3ViTModel(config),
        image_processor=processor,
        device=device,
    )
    features = extract(image, return_tensors=True)
    assert features.shape[-1] == 16, features.shape
    assert next(extract.model.parameters()).is_cuda
print("device", extract.device)
