"""PEFT adds LoRA to a tiny transformer on "cuda" and trains one step."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
config = GPT2Config(
    n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=16, attn_pdrop=0.0, embd_pdrop=0.0,
    resid_pdrop=0.0,
)  # fmt: skip
model = get_peft_model(
    GPT2LMHeadModel(config),
    LoraConfig(r=2, target_modules=["c_attn"], lora_dropout=0.0, fan_in_fan_out=True),
).to("cuda")
tokens = torch.arange(8, device="cuda").unsqueeze(0)
trainable = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.SGD(trainable, lr=0.5, foreach=False)
before = [p.detach().clone() for p in trainable]
loss = model(tokens, labels=tokens).loss
loss.backward()
optimizer.step()
assert any(not torch.equal(a, b) for a, b in zip(before, trainable, strict=True))
assert all(p.is_cuda for p in model.parameters())
print("device", loss.device)
