"""CUDA idioms with torch.jit, torch.fx, torch.compile, torch.library and torch's other tools."""

import subprocess
import sys

import torch
from torch import nn


def _double(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + torch.ones(2).to(x.device)


def _zeros_on(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.zeros(2, device=device) + x.to(device)


def _made_like(x: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(x) + torch.full((2,), 1.0, device=x.device) + torch.arange(2).to(x)


class _Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).relu() + torch.zeros(2, device=x.device)


def script_a_function() -> None:
    scripted = torch.jit.script(_double)
    assert isinstance(scripted, torch.jit.ScriptFunction)
    assert scripted(torch.ones(2, device="cuda")).tolist() == [3.0, 3.0]


def script_with_a_device_argument() -> None:
    scripted = torch.jit.script(_zeros_on)
    assert scripted(torch.ones(2), torch.device("cuda")).is_cuda


def script_factories() -> None:
    scripted = torch.jit.script(_made_like)
    assert scripted(torch.ones(2, device="cuda")).tolist() == [2.0, 3.0]


def script_a_module_and_move_it() -> None:
    scripted = torch.jit.script(_Scripted()).cuda()
    assert isinstance(scripted, torch.jit.ScriptModule)
    assert scripted(torch.ones(1, 2, device="cuda")).is_cuda


def script_is_saved_and_loaded() -> None:
    import io

    file = io.BytesIO()
    torch.jit.save(torch.jit.script(_Scripted()), file)
    file.seek(0)
    loaded = torch.jit.load(file, map_location="cuda")
    assert next(loaded.parameters()).is_cuda


def trace_a_module() -> None:
    x = torch.ones(1, 2, device="cuda")
    traced = torch.jit.trace(_Scripted().cuda(), (x,))
    assert traced(x).is_cuda


def fx_traces_a_move() -> None:
    class Mover(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to("cuda") + torch.ones(2, device="cuda")

    graph = torch.fx.symbolic_trace(Mover())
    assert graph(torch.ones(2)).tolist() == [2.0, 2.0]


def fx_generates_code_with_a_device() -> None:
    class Maker(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to(torch.device("cuda"))

    graph = torch.fx.symbolic_trace(Maker())
    graph.recompile()
    assert "device" in graph.code
    assert graph(torch.ones(1)).is_cuda


def compile_is_imported() -> None:
    import torch._dynamo
    import torch._inductor

    assert torch._dynamo.is_compiling() is False


def compiled_model_runs() -> None:
    model = torch.compile(nn.Linear(2, 2).cuda())
    assert model(torch.ones(1, 2, device="cuda")).is_cuda


def schema_is_inferred() -> None:
    def operator(x: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
        return x.clone()

    schema = torch.library.infer_schema(operator, mutates_args=())
    assert schema == "(Tensor x, Device? device=None) -> Tensor"


def custom_operator_for_the_device() -> None:
    @torch.library.custom_op("idioms::twice", mutates_args=(), device_types="cuda")
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    assert twice(torch.ones(2, device="cuda")).tolist() == [2.0, 2.0]


def custom_operator_with_two_kernels() -> None:
    @torch.library.custom_op("idioms::where", mutates_args=(), device_types="cpu")
    def where(x: torch.Tensor) -> torch.Tensor:
        return x + 0

    @where.register_kernel("cuda")
    def _(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    assert where(torch.zeros(1)).item() == 0.0
    assert where(torch.zeros(1, device="cuda")).item() == 1.0


def assert_close_on_the_device() -> None:
    torch.testing.assert_close(torch.ones(2, device="cuda"), torch.ones(2, device="cuda"))
    x = torch.testing.make_tensor(2, 2, device="cuda", dtype=torch.float32)
    assert x.is_cuda


def vmap_and_grad() -> None:
    x = torch.arange(3.0, device="cuda")
    assert torch.func.vmap(lambda v: v * 2)(x).is_cuda
    assert torch.func.grad(lambda v: (v * v).sum())(x).tolist() == [0.0, 2.0, 4.0]


def overrides_know_the_functions() -> None:
    assert torch.Tensor.to.__name__ == "to"
    assert torch.ones.__name__ == "ones"
    assert callable(torch.Tensor.cuda)


def functions_are_pickled() -> None:
    import functools
    import pickle

    make = pickle.loads(pickle.dumps(functools.partial(torch.ones, 2, device="cuda")))
    assert make().is_cuda


def dlpack_travels() -> None:
    x = torch.arange(3.0, device="cuda")
    assert torch.equal(torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(x)), x)


def benchmark_timer() -> None:
    from torch.utils.benchmark import Timer

    timer = Timer("x + 1", globals={"x": torch.ones(2, device="cuda")})
    assert timer.timeit(2).mean > 0


def environment_is_collected() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import torch.utils.collect_env as c; print(len(c.get_env_info()))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-200:]


def multiprocessing_shares_host_tensors() -> None:
    import torch.multiprocessing as mp

    x = torch.ones(2).share_memory_()
    assert x.is_shared()
    assert mp.get_all_start_methods()


def deterministic_switch() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.ones(2, device="cuda").sum().item() == 2.0
    finally:
        torch.use_deterministic_algorithms(False)


def print_shows_values() -> None:
    text = str(torch.arange(3.0, device="cuda"))
    assert "0., 1., 2." in text and "device=" in text


def inference_and_no_grad() -> None:
    with torch.inference_mode():
        assert (torch.ones(2, device="cuda") + 1).is_inference()
    with torch.no_grad():
        assert not (torch.ones(2, device="cuda", requires_grad=True) * 2).requires_grad


def functional_ops_stay() -> None:
    x = torch.ones(1, 3, 8, 8, device="cuda")
    y = nn.functional.interpolate(x, size=(4, 4), mode="bilinear", align_corners=False)
    assert y.is_cuda and y.shape == (1, 3, 4, 4)
    assert nn.functional.softmax(x.flatten(), dim=0).sum().item() > 0.99


def signal_windows() -> None:
    assert torch.signal.windows.hann(4, device="cuda").is_cuda


def distributed_mesh_is_named() -> None:
    from torch.distributed.device_mesh import DeviceMesh

    assert DeviceMesh.__init__.__name__ == "__init__"
