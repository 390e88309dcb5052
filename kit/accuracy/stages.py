"""The stages of a vision model: embedding, blocks, final norm, and what stands inside them."""

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from kit.model.model import has_attention, register_tokens

OperatorClass = Literal[
    "input", "embedding", "RoPE", "norm", "attention", "MLP", "layer scale", "residual", "block"
]

# First match names the class of a point; its name is the module's path inside the stage.
CLASS_PATTERNS: tuple[tuple[re.Pattern[str], OperatorClass], ...] = (
    (re.compile(r"rope|rotary|rotated"), "RoPE"),
    (re.compile(r"patch_embeddings(\.projection)?\.input$|downsample\S*0\.input$"), "input"),
    (re.compile(r"norm\w*\.input$"), "residual"),
    (re.compile(r"norm"), "norm"),
    (re.compile(r"layer_?scale|gamma|drop_path"), "layer scale"),
    (re.compile(r"att(entio)?n"), "attention"),
    (re.compile(r"mlp|ffn|fc\d|act(ivation)?_fn|conv"), "MLP"),
    (re.compile(r"embed"), "embedding"),
)


@dataclass(frozen=True)
class Stage:
    """One stage of the model.

    Attributes:
        number: -1 the embedding, 0 and up the blocks, their number the final norm.
        path: the module's path in the model.
        rope: path of the module that makes the rotary embedding, for block 0 alone.
    """

    number: int
    path: str
    rope: str | None = None


@dataclass(frozen=True)
class Stages:
    """A model's stages in the order of execution.

    Attributes:
        all: what was found; a model without one kind simply lacks it.
        blocks: how many blocks there are.
        prefix_tokens: tokens before the patches (CLS and registers); None without tokens.
    """

    all: tuple[Stage, ...]
    blocks: int
    prefix_tokens: int | None

    def name_of(self, number: int) -> str:
        """Return a stage's name for a reader."""
        if number < 0:
            return "the embedding"
        return "the final norm" if number >= self.blocks else f"block {number}"


def find_stages(model: PreTrainedModel) -> Stages:
    """Return the stages of `model`.

    The blocks are the longest list of modules that lies in no other list: a ViT's layers, a
    ConvNeXt's stages. Embedding, rotary embedding and final norm are told by their names.
    """
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0
    ]
    outer = [
        (path, module)
        for path, module in lists
        if not any(path.startswith(f"{other}.") for other, _ in lists)
    ]
    if not outer:
        return Stages((), 0, None)
    blocks_path, blocks = max(outer, key=lambda item: len(item[1]))
    top = {name: name for name, _ in model.named_children()}
    rope = next((name for name in top if re.search(r"rope|rotary", name)), None)
    embedding = next((name for name in top if "embed" in name and name != rope), None)
    norm = next((name for name in top if "norm" in name), None)
    found = [] if embedding is None else [Stage(-1, embedding)]
    found += [
        Stage(number, f"{blocks_path}.{number}", rope if number == 0 else None)
        for number in range(len(blocks))
    ]
    if norm is not None:
        found.append(Stage(len(blocks), norm))
    prefix = 1 + register_tokens(model.config) if has_attention(model.config) else None
    return Stages(tuple(found), len(blocks), prefix)


def class_of(point: str, stage: Stage, stages: Stages) -> OperatorClass:
    """Return the operator class of a point inside a stage.

    Args:
        point: the module's path inside the stage with .input or .output, or the stage's own
            "input" and "output".
        stage: the stage.
        stages: all of them.
    """
    if stage.number < 0 and point in ("input", "output"):
        return "input" if point == "input" else "embedding"
    if stage.number >= stages.blocks:
        return "norm"
    if point in ("input", "output"):
        return "residual" if point == "output" else "block"
    for pattern, name in CLASS_PATTERNS:
        if pattern.search(point):
            return "embedding" if stage.number < 0 and name not in ("input", "RoPE") else name
    return "embedding" if stage.number < 0 else "block"


def channels_first(number: int, point: str, stages: Stages, axes: int) -> bool:
    """Return whether a tensor is a map with channels, a token's vector, on the second axis.

    Args:
        number: of the stage.
        point: the tensor's name inside it.
        stages: all of them.
        axes: how many the tensor has.
    """
    if axes != 4:
        return False
    convolution = "patch_embeddings" in point or "projection" in point or "conv" in point
    whole_stage = stages.prefix_tokens is None and point in ("input", "output")
    return convolution or whole_stage or (number < 0 and point == "input")
