"""Optimum-benchmark measures a tiny random model on "cuda", in this process."""

import tempfile
from pathlib import Path

import torch
from optimum_benchmark import (
    Benchmark,
    BenchmarkConfig,
    InferenceConfig,
    InlineConfig,
    PyTorchConfig,
)
from transformers import GPT2Config, GPT2LMHeadModel

with tempfile.TemporaryDirectory() as folder:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(folder)
    report = Benchmark.launch(
        BenchmarkConfig(
            name="tiny",
            launcher=InlineConfig(),
            scenario=InferenceConfig(
                memory=False,
                latency=True,
                warmup_runs=1,
                iterations=2,
                duration=0,
                input_shapes={"batch_size": 1, "sequence_length": 8},
                generate_kwargs={"max_new_tokens": 2, "min_new_tokens": 2},
            ),
            backend=PyTorchConfig(
                model=str(Path(folder)),
                task="text-generation",
                library="transformers",
                device="cuda",
                device_ids="0",
                no_weights=False,
            ),
        )
    )
assert report.prefill.latency.mean > 0
assert torch.cuda.max_memory_allocated() > 0
print("device cuda, prefill", report.prefill.latency.mean)
