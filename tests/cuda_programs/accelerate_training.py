"""Accelerate trains a linear model: it finds the accelerator itself."""

import torch
from accelerate import Accelerator

accelerator = Accelerator()
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
data = torch.utils.data.TensorDataset(torch.ones(16, 4), torch.zeros(16, 1))
loader = torch.utils.data.DataLoader(data, batch_size=8)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
losses = []
for x, y in loader:
    optimizer.zero_grad()
    loss = ((model(x) - y) ** 2).mean()
    accelerator.backward(loss)
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
assert next(model.parameters()).is_cuda
moved = torch.ones(2).to(accelerator.device)
assert moved.is_cuda
print("device", accelerator.device, "distributed", accelerator.distributed_type.value)
