"""CUDA idioms about memory formats: channels_last makes nothing else than a hint for speed."""

import torch
from torch import nn

LAST, LAST_3D = torch.channels_last, torch.channels_last_3d


def _image() -> torch.Tensor:
    return torch.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)


def channels_last_in_to() -> None:
    x = _image()
    for moved in (
        x.to("cuda", memory_format=LAST),
        x.to(device="cuda", dtype=torch.float32, memory_format=LAST),
        x.cuda().to(memory_format=LAST),
        x.cuda().to(torch.float16, memory_format=LAST),
        x.to(memory_format=LAST).to("cuda"),
        x.cuda(memory_format=LAST),
        x.cuda().to(x.cuda(), memory_format=LAST),
    ):
        assert moved.is_cuda and moved.shape == x.shape
        assert torch.equal(moved.cpu().float(), x)


def channels_last_in_contiguous() -> None:
    x = _image().cuda().contiguous(memory_format=LAST)
    assert torch.equal(x.cpu(), _image())
    y = torch.zeros(1, 2, 3, 4, 5, device="cuda").contiguous(memory_format=LAST_3D)
    assert y.shape == (1, 2, 3, 4, 5)


def channels_last_in_copies() -> None:
    x = _image().cuda()
    for y in (
        x.clone(memory_format=LAST),
        torch.clone(x, memory_format=LAST),
        x.half().float(memory_format=LAST),
        x.double(memory_format=LAST),
        x.long().type(torch.float32, memory_format=LAST),
        torch.zeros(1, device="cuda").resize_as_(x, memory_format=LAST).copy_(x),
        torch.zeros(1, device="cuda").resize_(x.shape, memory_format=LAST).copy_(x),
    ):
        assert y.is_cuda and torch.equal(y.cpu().float(), _image())
    assert torch.equal(x.half(memory_format=LAST).cpu().float(), _image())


def channels_last_in_factories() -> None:
    shape = (2, 3, 4, 5)
    x = torch.ones(shape, device="cuda")
    assert torch.empty(shape, device="cuda", memory_format=LAST).shape == shape
    assert torch.empty(shape, device=torch.device("cuda:1"), memory_format=LAST).get_device() == 1
    with torch.device("cuda"):
        assert torch.empty(shape, memory_format=LAST).is_cuda
    assert torch.zeros_like(x, memory_format=LAST).sum() == 0
    assert torch.full_like(x, 2, memory_format=LAST).sum() == 2 * x.numel()
    assert torch.empty_like(torch.ones(shape), device="cuda", memory_format=LAST).is_cuda
    assert torch.randn_like(x, memory_format=LAST).shape == shape
    assert torch.empty(1, 2, 3, 4, 5, device="cuda", memory_format=LAST_3D).is_cuda


def channels_last_comes_back_to_the_host() -> None:
    for y in (
        _image().cuda().to("cpu", memory_format=LAST),
        _image().cuda().cpu(memory_format=LAST),
    ):
        assert torch.equal(y, _image()) and y.is_contiguous(memory_format=LAST)


def channels_last_of_a_model() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2)).eval()
    expected = plain(_image())
    for model in (
        plain.cuda().to(memory_format=LAST),
        plain.cpu().to(memory_format=LAST).cuda(),
        plain.cpu().to("cuda", memory_format=LAST),
    ):
        y = model(_image().cuda().contiguous(memory_format=LAST))
        torch.testing.assert_close(y.cpu(), expected, rtol=2e-3, atol=2e-3)


def channels_last_stays_on_the_host() -> None:
    assert _image().to(memory_format=LAST).is_contiguous(memory_format=LAST)
    assert _image().contiguous(memory_format=LAST).stride() == (60, 1, 15, 3)
    assert torch.empty(2, 3, 4, 5, memory_format=LAST).stride() == (60, 1, 15, 3)


def a_wrong_rank_of_channels_last_is_an_error() -> None:
    for x in (torch.ones(2, 3), torch.ones(2, 3, device="cuda").cpu()):
        try:
            x.contiguous(memory_format=LAST)
        except RuntimeError:
            continue
        raise AssertionError
