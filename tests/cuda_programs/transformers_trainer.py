"""Transformers' own Trainer trains a tiny random classifier, the model moved to "cuda" by hand."""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

torch.manual_seed(0)
config = GPT2Config(
    n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=16, attn_pdrop=0.0, embd_pdrop=0.0,
    resid_pdrop=0.0,
)  # fmt: skip
model = GPT2LMHeadModel(config).to("cuda")
rows = [{"input_ids": list(range(8)), "labels": list(range(8))} for _ in range(8)]
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=0.1,
        optim="sgd",
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert losses[-1] < losses[0], losses
assert next(model.parameters()).is_cuda
print("device", arguments.device, "chips", arguments.n_gpu)
