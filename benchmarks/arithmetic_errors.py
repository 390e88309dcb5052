#!/usr/bin/env python3
"""What error does each documented arithmetic make in DINOv3 ViT-B/16 on weights as training's?

Seeded weights with what training leaves (tests/trained_weights.py), data/sample.jpg, every
arithmetic imitated on the CPU as accuracy.py does, held against fp64. Relative errors of
pooler_output and last_hidden_state. What GELU's form makes depends on where its inputs lie and on
what blocks add to the stream, hence four settings of these.

    python3 benchmarks/arithmetic_errors.py
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import npu_patch  # isort: skip # noqa: F401 - it makes the imports of torch below safe

from kit.accuracy.references import Declared, Side, fp64_side, in_declared_type
from kit.model.images import decode
from kit.model.model import TENSORS, VITB16
from kit.model.preprocessing import Preprocessing, preprocess
from kit.run import ROOT
from kit.statistics import compare
from tests.trained_weights import trained_model

ARITHMETICS = {
    "fp32": Declared(),
    "fp32, tanh GELU": Declared(gelu="tanh"),
    "HF32 convolution": Declared(convolution="hf32"),
    "HF32 convolution, tanh GELU": Declared(convolution="hf32", gelu="tanh"),
    "HF32 everywhere": Declared(matmul="hf32", convolution="hf32"),
    "TF32 everywhere": Declared(matmul="tf32", convolution="tf32"),
    "fp16 products": Declared(matmul="fp16", convolution="fp16"),
    "bf16 convolution": Declared(convolution="bf16"),
    "bf16 products": Declared(matmul="bf16", convolution="bf16"),
    "fp16 throughout": Declared("fp16"),
    "bf16 throughout": Declared("bf16"),
}

# Gain of what blocks add, mean input of GELU.
SETTINGS = {
    "even GELU": (0.4, 0.0),
    "sparse GELU": (0.4, -2.0),
    "and larger blocks": (1.0, -2.0),
    "that amplify": (2.0, -2.0),
}


def main() -> None:
    """Print a row per arithmetic, two figures per setting."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    seed = parser.parse_args().seed
    pixels = preprocess(decode(ROOT / "data" / "sample.jpg").pixels, Preprocessing())
    rows = {name: f"{name:28}" for name in ARITHMETICS}
    for branch, mlp_bias in SETTINGS.values():
        model = trained_model(seed, branch, mlp_bias, **VITB16)
        exact = fp64_side(model).features(pixels)
        for name, declared in ARITHMETICS.items():
            features = Side(in_declared_type(model, declared), declared).features(pixels)
            pooled, hidden = (
                compare(getattr(exact, tensor), getattr(features, tensor)).relative_error
                for tensor in TENSORS
            )
            rows[name] += f"{pooled:>12.2g}{hidden:>10.2g}"
    print(" " * 28 + "".join(f"{setting:>22}" for setting in SETTINGS))
    print("\n".join(rows.values()))


if __name__ == "__main__":
    main()
