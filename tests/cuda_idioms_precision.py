"""CUDA idioms about autocast, gradient scaling, TF32 and the choice of attention."""

import torch


def _product() -> torch.Tensor:
    x = torch.ones(2, 2, device="cuda")
    return x @ x


def autocast_by_device_type() -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert _product().dtype == torch.bfloat16
    assert _product().dtype == torch.float32


def autocast_by_keyword() -> None:
    with torch.autocast(device_type="cuda", dtype=torch.float16, enabled=True):
        assert _product().dtype == torch.float16


def autocast_defaults_to_half() -> None:
    with torch.autocast("cuda"):
        assert _product().dtype == torch.float16


def autocast_of_torch_amp() -> None:
    with torch.amp.autocast("cuda", torch.bfloat16):
        assert _product().dtype == torch.bfloat16


def autocast_of_torch_cuda_amp() -> None:
    from torch.cuda.amp import autocast

    with autocast():
        assert _product().dtype == torch.float16
    with torch.cuda.amp.autocast(enabled=True, dtype=torch.bfloat16):
        assert _product().dtype == torch.bfloat16
    with torch.cuda.amp.autocast(False):
        assert _product().dtype == torch.float32


def autocast_of_the_submodule() -> None:
    with torch.cuda.amp.autocast_mode.autocast(dtype=torch.float16):
        assert _product().dtype == torch.float16


def autocast_disabled() -> None:
    with torch.autocast("cuda", enabled=False):
        assert _product().dtype == torch.float32


def autocast_is_nested() -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16):
        with torch.autocast("cuda", enabled=False):
            assert _product().dtype == torch.float32
        assert _product().dtype == torch.bfloat16


def autocast_as_a_decorator() -> None:
    @torch.autocast("cuda", dtype=torch.bfloat16)
    def forward() -> torch.Tensor:
        return _product()

    assert forward().dtype == torch.bfloat16


def autocast_is_an_instance() -> None:
    assert isinstance(torch.autocast("cuda"), torch.amp.autocast_mode.autocast)
    assert isinstance(torch.cuda.amp.autocast(), torch.autocast)


def autocast_state() -> None:
    assert not torch.is_autocast_enabled()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.is_autocast_enabled()
        assert torch.is_autocast_enabled("cuda")
        assert torch.get_autocast_dtype("cuda") == torch.bfloat16
        assert torch.get_autocast_gpu_dtype() == torch.bfloat16
        assert not torch.is_autocast_enabled("cpu")


def autocast_state_is_set() -> None:
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled(True)
    torch.set_autocast_gpu_dtype(torch.bfloat16)
    try:
        assert torch.is_autocast_enabled("cuda")
        assert torch.get_autocast_dtype("cuda") == torch.bfloat16
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)
    assert not torch.is_autocast_enabled()


def autocast_is_available() -> None:
    assert torch.amp.is_autocast_available("cuda")
    assert torch.amp.autocast_mode.is_autocast_available(device_type="cuda")


def autocast_in_a_custom_function() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
        def forward(ctx, x):  # type: ignore[no-untyped-def] # noqa: ANN001,ANN205
            assert x.dtype == torch.float32
            return x * 2

        @staticmethod
        @torch.amp.custom_bwd(device_type="cuda")
        def backward(ctx, gradient):  # type: ignore[no-untyped-def] # noqa: ANN001,ANN205
            return gradient * 2

    x = torch.ones(2, device="cuda", dtype=torch.float16, requires_grad=True)
    with torch.autocast("cuda"):
        Double.apply(x).sum().backward()
    assert x.grad is not None


def autocast_in_an_old_custom_function() -> None:
    from torch.cuda.amp import custom_bwd, custom_fwd

    class Double(torch.autograd.Function):
        @staticmethod
        @custom_fwd
        def forward(ctx, x):  # type: ignore[no-untyped-def] # noqa: ANN001,ANN205
            return x * 2

        @staticmethod
        @custom_bwd
        def backward(ctx, gradient):  # type: ignore[no-untyped-def] # noqa: ANN001,ANN205
            return gradient * 2

    x = torch.ones(2, device="cuda", requires_grad=True)
    Double.apply(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2.0, 2.0]


def _scaled_step(scaler: torch.amp.GradScaler) -> None:
    model = torch.nn.Linear(2, 1).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = model(torch.ones(4, 2, device="cuda")).float().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() > 0
    assert not torch.equal(model.weight, before)


def scaler_of_torch_amp() -> None:
    _scaled_step(torch.amp.GradScaler("cuda", init_scale=4.0))
    _scaled_step(torch.amp.GradScaler(init_scale=4.0))
    _scaled_step(torch.amp.GradScaler(device="cuda", init_scale=4.0))


def scaler_of_torch_cuda_amp() -> None:
    from torch.cuda.amp import GradScaler

    scaler = GradScaler(init_scale=4.0)
    assert isinstance(scaler, torch.amp.GradScaler)
    _scaled_step(scaler)


def scaler_is_enabled() -> None:
    assert torch.amp.GradScaler("cuda").is_enabled()
    assert torch.cuda.amp.GradScaler(enabled=True).is_enabled()
    assert not torch.cuda.amp.GradScaler(enabled=False).is_enabled()
    assert not torch.cuda.amp.common.amp_definitely_not_available()


def scaler_disabled_passes_through() -> None:
    loss = torch.ones(1, device="cuda")
    assert torch.amp.GradScaler("cuda", enabled=False).scale(loss) is loss


def tf32_of_matmul() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    assert torch.backends.cuda.matmul.allow_tf32 is True
    torch.backends.cuda.matmul.allow_tf32 = False
    assert torch.backends.cuda.matmul.allow_tf32 is False
    torch.backends.cuda.matmul.allow_tf32 = before


def tf32_of_convolution() -> None:
    assert torch.backends.cudnn.allow_tf32 is True
    torch.backends.cudnn.allow_tf32 = False
    assert torch.backends.cudnn.allow_tf32 is False
    torch.backends.cudnn.allow_tf32 = True


def tf32_by_precision_name() -> None:
    torch.set_float32_matmul_precision("high")
    assert torch.backends.cuda.matmul.allow_tf32
    torch.set_float32_matmul_precision("highest")
    assert not torch.backends.cuda.matmul.allow_tf32


def tf32_for_a_while() -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def cudnn_switches() -> None:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = False
    assert torch.backends.cudnn.benchmark and torch.backends.cudnn.enabled
    torch.backends.cudnn.benchmark = before


def matmul_reduction_switches() -> None:
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction


def _attention() -> torch.Tensor:
    q = torch.ones(1, 2, 4, 8, device="cuda", dtype=torch.float16)
    return torch.nn.functional.scaled_dot_product_attention(q, q, q)


def attention_by_default() -> None:
    assert _attention().shape == (1, 2, 4, 8)


def attention_back_end_is_chosen() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        assert not torch.backends.cuda.flash_sdp_enabled()
        assert _attention().is_cuda
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        assert torch.backends.cuda.flash_sdp_enabled()


def attention_back_end_by_switches() -> None:
    torch.backends.cuda.enable_flash_sdp(False)
    assert not torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.enable_mem_efficient_sdp(True)
    torch.backends.cuda.enable_math_sdp(True)
    assert torch.backends.cuda.math_sdp_enabled()


def attention_back_end_for_a_while() -> None:
    with torch.backends.cuda.sdp_kernel(
        enable_flash=False, enable_math=True, enable_mem_efficient=False
    ):
        assert not torch.backends.cuda.flash_sdp_enabled()
        assert _attention().is_cuda
