"""The only modules that call torch.cuda: the device of a run, its meters, and whether it works."""
