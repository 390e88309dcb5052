"""CUDA idioms about GELU: erf unless tanh is asked for, in every way that torch offers it."""

import torch
from torch.nn import functional

INPUT = torch.linspace(-4, 4, 2001)  # erf and tanh differ most at -2.3, where y is near 0
FORMS = (
    (torch.float32, "none"),
    (torch.bfloat16, "none"),
    (torch.float16, "none"),
    (torch.float32, "tanh"),
)


def _cases() -> list[tuple[torch.Tensor, str]]:
    """Each dtype with erf, and tanh in fp32: the input on the device, and the form."""
    return [(INPUT.cuda().to(dtype), form) for dtype, form in FORMS]


def _assert_rounded(y: torch.Tensor, expected: torch.Tensor) -> None:
    """Hold `y` to the fp64 values within what rounding to its dtype explains."""
    rtol = 0.75 * torch.finfo(y.dtype).eps
    torch.testing.assert_close(y.cpu().double(), expected, rtol=rtol, atol=2e-6)


def gelu_has_the_form_asked_for() -> None:
    for x, form in _cases():
        expected = functional.gelu(x.cpu().double(), approximate=form)
        _assert_rounded(functional.gelu(x, approximate=form), expected)
        _assert_rounded(torch.nn.GELU(form)(x), expected)


def gelu_of_transformers_has_its_form() -> None:
    from transformers.activations import ACT2FN

    for name, form in (("gelu", "none"), ("gelu_pytorch_tanh", "tanh")):
        x = INPUT.cuda()
        expected = functional.gelu(INPUT.double(), approximate=form)
        _assert_rounded(ACT2FN[name](x), expected)


def gelu_in_place_has_the_form_asked_for() -> None:
    for x, form in _cases():
        expected = functional.gelu(x.cpu().double(), approximate=form)
        assert torch._C._nn.gelu_(x, approximate=form) is x
        _assert_rounded(x, expected)


def gelu_into_a_tensor_has_the_form_asked_for() -> None:
    for x, form in _cases():
        for out in (torch.empty_like(x), torch.empty(0, dtype=x.dtype, device="cuda")):
            assert torch._C._nn.gelu(x, approximate=form, out=out) is out
            _assert_rounded(out, functional.gelu(x.cpu().double(), approximate=form))


def gelu_has_the_gradient_of_its_form() -> None:
    for x, form in _cases():
        reference = x.cpu().double().requires_grad_()
        functional.gelu(reference, approximate=form).sum().backward()
        for in_place in (False, True):
            leaf = x.clone().requires_grad_()
            y = leaf * 1
            gelu = torch._C._nn.gelu_ if in_place else functional.gelu
            gelu(y, approximate=form).sum().backward()
            _assert_rounded(leaf.grad, reference.grad)


def gelu_has_a_second_gradient() -> None:
    second = []
    for x in (INPUT.double(), INPUT.cuda()):
        leaf = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(functional.gelu(leaf).sum(), leaf, create_graph=True)
        second.append(torch.autograd.grad(first.sum(), leaf)[0])
    torch.testing.assert_close(second[1].cpu().double(), second[0], rtol=1e-5, atol=1e-5)


def gelu_under_autocast_has_the_form_asked_for() -> None:
    weight = torch.eye(16, device="cuda")
    x = INPUT[:2000].reshape(-1, 16).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        hidden = x @ weight
        y = functional.gelu(hidden)
    assert y.dtype == torch.bfloat16
    _assert_rounded(y, functional.gelu(hidden.cpu().double()))


def gelu_in_a_graph_has_the_form_asked_for() -> None:
    x = torch.zeros_like(INPUT).cuda()
    functional.gelu(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        y = functional.gelu(x)
        z = torch._C._nn.gelu_(x * 1)
    x.copy_(INPUT)
    graph.replay()
    expected = functional.gelu(INPUT.double())
    _assert_rounded(y, expected)
    _assert_rounded(z, expected)


def gelu_in_a_script_has_the_form_asked_for() -> None:
    module = torch.jit.script(torch.nn.GELU())
    _assert_rounded(module(INPUT.cuda()), functional.gelu(INPUT.double()))


def gelu_keeps_strides_and_takes_what_is_empty() -> None:
    x = INPUT[:2000].reshape(50, 40).cuda().t()
    y = functional.gelu(x)
    assert y.stride() == x.stride() == (1, 40)
    _assert_rounded(y, functional.gelu(x.cpu().double()))
    assert functional.gelu(torch.empty(0, 3, device="cuda")).shape == (0, 3)
    assert functional.gelu(torch.tensor(0.0, device="cuda")).shape == ()
