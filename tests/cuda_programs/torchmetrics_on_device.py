"""Torchmetrics accumulates on "cuda"."""

import torch
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, MetricCollection
from torchmetrics.classification import BinaryAccuracy

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
metrics = MetricCollection([MeanSquaredError(), MeanAbsoluteError()]).to(device)
for shift in (0.0, 1.0):
    metrics.update(torch.arange(4.0, device=device) + shift, torch.arange(4.0, device=device))
values = {name: value.item() for name, value in metrics.compute().items()}
assert values == {"MeanSquaredError": 0.5, "MeanAbsoluteError": 0.5}, values
mean = MeanMetric().cuda()
mean.update(torch.tensor([1.0, 3.0]).cuda())
assert mean.compute().item() == 2.0
assert mean.device == torch.device("cuda:0")
accuracy = BinaryAccuracy(validate_args=False).to("cuda")
predicted = torch.tensor([0.9, 0.1, 0.8, 0.3], device="cuda")
assert accuracy(predicted, torch.tensor([1, 0, 1, 1], device="cuda")).item() == 0.75
print("device", mean.device)
