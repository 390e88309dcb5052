"""Weights as training leaves them: what fresh random ones lack, and where precision is lost.

In a trained ViT two or three channels of the residual stream are hundreds of times as large as
the others (Sun et al., Massive Activations in Large Language Models, 2024, has ViTs too), layer
scales span three decades (Touvron et al., Going Deeper with Image Transformers, 2021), most inputs
of GELU are negative (Li et al., The Lazy Neuron Phenomenon, 2022), attention is sharp, and weights
have heavy tails. Fresh weights at 0.02 have none of it.
"""

import math
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

LARGE = (180.0, 270.0, 400.0)  # a channel's size, in medians of fresh embeddings
LARGE_SHARE = 0.5  # of a norm's weight that such a channel has: training damps what is large
MEDIAN = 0.6745  # of the absolute value of a normal number
SHARPNESS = 1.1  # gain of query and key each
BRANCH = 0.4  # gain of what a block adds to the stream, which must not outgrow the large channels
MLP_BIAS = -1.0  # mean input of GELU, in its deviations
FREEDOM = 4  # degrees, of Student's t: a kurtosis beyond all bounds


def trained_model(
    seed: int,
    branch: float = BRANCH,
    mlp_bias: float = MLP_BIAS,
    **config: Any,  # noqa: ANN401 - as transformers takes it
) -> PreTrainedModel:
    """Return a DINOv3 ViT in evaluation mode with such weights, the same ones for a seed."""
    model: PreTrainedModel = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    width = model.config.hidden_size
    channels = torch.randperm(width, generator=generator)[: len(LARGE)]
    sizes = MEDIAN * torch.tensor(LARGE)
    # A norm divides by the deviation, which the large channels make; its weight gives it back.
    deviation = math.sqrt(1 + float(sizes.square().sum()) / width)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
            parameter.copy_(values(name, parameter, deviation, generator))
            if "norm" in name and name.endswith("weight"):
                parameter[channels] = LARGE_SHARE
            elif name.endswith("up_proj.bias"):
                parameter.add_(mlp_bias)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(branch)
            elif "token" in name or name.endswith("patch_embeddings.bias"):
                parameter[..., channels] += sizes
    return model.eval()


def values(
    name: str, parameter: nn.Parameter, deviation: float, generator: torch.Generator
) -> torch.Tensor:
    """Return a parameter's values, large channels left out."""
    noise = torch.randn(parameter.shape, generator=generator)
    if "norm" in name and name.endswith("weight"):
        return deviation * (1 + 0.2 * noise)
    if "lambda1" in name:  # 1e-3 to 1, every decade alike
        return 10 ** (-3 * torch.rand(parameter.shape, generator=generator))
    if parameter.ndim == 1:
        return 0.2 * noise
    if "token" in name:
        return noise
    chi = torch.randn((FREEDOM, *parameter.shape), generator=generator).square().sum(0)
    student = noise / (chi / FREEDOM).sqrt() / math.sqrt(FREEDOM / (FREEDOM - 2))
    gain = SHARPNESS if "q_proj" in name or "k_proj" in name else 1.0
    return gain * student / math.sqrt(parameter[0].numel())


def small_trained_model(seed: int = 0) -> PreTrainedModel:
    """Return one of 6 blocks, 64 wide."""
    return trained_model(
        seed, hidden_size=64, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4,
        num_register_tokens=4, image_size=64,
    )  # fmt: skip
