"""CUDA idioms about streams, events, graphs, random numbers and process groups."""

import tempfile
import threading

import torch


def stream_context() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        assert torch.cuda.current_stream() == stream
        x = torch.ones(4, device="cuda") * 2
    torch.cuda.current_stream().wait_stream(stream)
    assert x.sum().item() == 8.0


def stream_context_of_none() -> None:
    with torch.cuda.stream(None):
        assert torch.cuda.current_stream() == torch.cuda.default_stream()


def stream_as_its_own_context() -> None:
    stream = torch.cuda.Stream()
    before = torch.cuda.current_stream()
    with torch.cuda.StreamContext(stream):
        assert torch.cuda.current_stream() == stream
    assert torch.cuda.current_stream() == before


def stream_on_a_device() -> None:
    for device in (1, "cuda:1", torch.device("cuda:1")):
        assert torch.cuda.Stream(device=device).device == torch.device("cuda:1")


def stream_with_priority() -> None:
    assert torch.cuda.Stream(priority=-1).query() in (True, False)


def stream_is_an_instance() -> None:
    stream = torch.cuda.current_stream()
    assert isinstance(stream, torch.cuda.Stream)
    assert isinstance(stream, torch.Stream)
    assert torch.cuda.streams.Stream is torch.cuda.Stream


def stream_is_set() -> None:
    stream = torch.cuda.Stream()
    before = torch.cuda.current_stream()
    torch.cuda.set_stream(stream)
    assert torch.cuda.current_stream() == stream
    torch.cuda.set_stream(before)


def stream_synchronizes() -> None:
    stream = torch.cuda.Stream()
    stream.synchronize()
    assert stream.query()


def stream_has_a_handle() -> None:
    assert isinstance(torch.cuda.Stream().cuda_stream, int)


def stream_from_a_handle() -> None:
    handle = torch.cuda.Stream().cuda_stream
    assert torch.cuda.ExternalStream(handle, device="cuda").cuda_stream == handle


def stream_of_any_accelerator() -> None:
    assert torch.Stream(device="cuda").device.type == "cuda"
    assert isinstance(torch.Stream("cuda"), torch.Stream)


def streams_per_device() -> None:
    assert torch.cuda.current_stream("cuda:1").device.index == 1
    assert torch.cuda.default_stream(device=torch.device("cuda:1")).device.index == 1


def events_measure_time() -> None:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    x = torch.ones(64, 64, device="cuda")
    start.record()
    x @ x
    end.record()
    torch.cuda.synchronize()
    assert start.elapsed_time(end) >= 0.0


def event_is_recorded_and_waited_for() -> None:
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream())
    torch.cuda.Stream().wait_event(event)
    event.wait()
    event.synchronize()
    assert event.query()


def event_comes_from_a_stream() -> None:
    assert isinstance(torch.cuda.current_stream().record_event(), torch.cuda.Event)


def event_is_an_instance() -> None:
    event = torch.cuda.Event(enable_timing=True, blocking=True)
    assert isinstance(event, torch.cuda.Event)
    assert isinstance(event, torch.Event)


def event_of_any_accelerator() -> None:
    event = torch.Event(device="cuda", enable_timing=True)
    assert isinstance(event, torch.Event)
    event.record()


def synchronize_every_form() -> None:
    torch.cuda.synchronize()
    torch.cuda.synchronize(0)
    torch.cuda.synchronize("cuda:0")
    torch.cuda.synchronize(device=torch.device("cuda:1"))


def graph_is_captured_and_replayed() -> None:
    x = torch.ones(4, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = x * 2
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x * 2
    x.fill_(3.0)
    graph.replay()
    torch.cuda.synchronize()
    assert y.tolist() == [6.0] * 4


def graph_by_keywords() -> None:
    x = torch.ones(2, device="cuda")
    graph = torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle()
    with torch.cuda.graph(
        cuda_graph=graph, pool=pool, stream=torch.cuda.Stream(), capture_error_mode="thread_local"
    ):
        y = x + 1
    graph.replay()
    assert y.tolist() == [2.0, 2.0]


def graph_is_an_instance() -> None:
    graph = torch.cuda.CUDAGraph()
    assert isinstance(graph, torch.cuda.graphs.CUDAGraph)
    assert not torch.cuda.is_current_stream_capturing()


def graphed_callable() -> None:
    layer = torch.nn.Linear(4, 4).cuda()
    sample = torch.ones(2, 4, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(layer, (sample,))
    assert graphed(torch.ones(2, 4, device="cuda", requires_grad=True)).shape == (2, 4)


def seed_makes_random_numbers_repeat() -> None:
    torch.cuda.manual_seed(3)
    first = torch.rand(4, device="cuda")
    torch.cuda.manual_seed(3)
    assert torch.equal(first, torch.rand(4, device="cuda"))


def seed_of_all_devices() -> None:
    torch.cuda.manual_seed_all(5)
    first = [torch.rand(2, device=f"cuda:{i}").cpu() for i in range(2)]
    torch.manual_seed(5)
    again = [torch.rand(2, device=f"cuda:{i}").cpu() for i in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.cuda.initial_seed() == 5


def random_state_is_restored() -> None:
    state = torch.cuda.get_rng_state()
    first = torch.rand(4, device="cuda")
    torch.cuda.set_rng_state(state)
    assert torch.equal(first, torch.rand(4, device="cuda"))


def random_state_by_device() -> None:
    state = torch.cuda.get_rng_state("cuda:1")
    torch.cuda.set_rng_state(state, "cuda:1")
    torch.cuda.set_rng_state(new_state=state, device=torch.device("cuda:1"))
    assert len(torch.cuda.get_rng_state_all()) == 2
    torch.cuda.random.set_rng_state_all(torch.cuda.random.get_rng_state_all())


def random_seed_functions() -> None:
    torch.cuda.seed()
    torch.cuda.seed_all()
    assert isinstance(torch.cuda.initial_seed(), int)


def random_state_is_forked() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2, device="cuda")
    torch.manual_seed(1)
    with torch.random.fork_rng(devices=[0], device_type="cuda"):
        torch.rand(2, device="cuda")
    assert torch.equal(expected, torch.rand(2, device="cuda"))


def generator_of_the_device() -> None:
    for generator in (torch.Generator("cuda"), torch.Generator(device=torch.device("cuda"))):
        generator.manual_seed(7)
        x = torch.randn(3, generator=generator, device="cuda")
        generator.manual_seed(7)
        assert torch.equal(x, torch.randn(3, generator=generator, device="cuda"))
        assert generator.device.type == "cuda"


def generator_is_an_instance() -> None:
    assert isinstance(torch.Generator("cuda"), torch.Generator)
    assert isinstance(torch.Generator(), torch.Generator)
    assert isinstance(torch.default_generator, torch.Generator)


def generator_subclass() -> None:
    class Mine(torch.Generator):
        pass

    assert isinstance(Mine(), torch.Generator)
    assert not isinstance(torch.Generator(), Mine)


def generators_of_all_devices() -> None:
    torch.cuda.init()
    assert len(torch.cuda.default_generators) == 2
    assert torch.cuda.default_generators[0].device.type == "cuda"


def threads_choose_their_device() -> None:
    found: list[int] = []

    def work() -> None:
        torch.cuda.set_device(1)
        found.append(torch.ones(1, device="cuda").get_device())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1]
    assert torch.cuda.current_device() == 0


def ranges_for_the_profiler() -> None:
    assert torch.cuda.nvtx.range_push("outer") == 0
    assert torch.cuda.nvtx.range_push("inner") == 1
    torch.cuda.nvtx.mark("here")
    assert torch.cuda.nvtx.range_pop() == 1
    assert torch.cuda.nvtx.range_pop() == 0
    with torch.cuda.nvtx.range("step {}", 3):
        torch.ones(1, device="cuda")
    handle = torch.cuda.nvtx.range_start("a")
    torch.cuda.nvtx.range_end(handle)


def range_as_a_decorator() -> None:
    @torch.cuda.nvtx.range("decorated")
    def work() -> int:
        return 1

    assert work() == 1


def profiler_switches() -> None:
    torch.cuda.profiler.start()
    torch.cuda.profiler.stop()
    with torch.cuda.profiler.profile():
        torch.ones(1, device="cuda")
    torch.cuda.check_error(torch.cuda.cudart().cudaProfilerStart())
    torch.cuda.cudart().cudaProfilerStop()


def profiler_with_activities() -> None:
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler, record_function("step"):
        torch.ones(8, device="cuda") + 1
    assert "step" in profiler.key_averages().table(sort_by="cuda_time_total", row_limit=10)


def autograd_profiler() -> None:
    with torch.autograd.profiler.profile(use_device="cuda") as profiler:
        torch.ones(8, device="cuda") + 1
    assert len(profiler.key_averages()) > 0


def process_group_of_one() -> None:
    import torch.distributed as dist

    assert dist.is_nccl_available()
    assert dist.is_backend_available("nccl")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("nccl", init_method=f"file://{folder}/a", rank=0, world_size=1)
        try:
            assert dist.get_backend() == "nccl"
            assert dist.get_world_size() == 1
        finally:
            dist.destroy_process_group()


def process_group_of_two_back_ends() -> None:
    import torch.distributed as dist

    with tempfile.TemporaryDirectory(prefix="cuda") as folder:
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl", init_method=f"file://{folder}/cuda", rank=0, world_size=1
        )
        try:
            x = torch.ones(2)
            dist.all_reduce(x)
            assert x.tolist() == [1.0, 1.0]
            assert dist.new_group([0], backend="gloo") is not None
        finally:
            dist.destroy_process_group()


def sleep_on_the_device() -> None:
    torch.cuda._sleep(10)
    torch.cuda.synchronize()


def lazy_call() -> None:
    from torch.cuda import _lazy_call

    called: list[int] = []
    torch.cuda.init()
    _lazy_call(lambda: called.append(1))
    assert called == [1]


def sync_debug_mode() -> None:
    assert torch.cuda.get_sync_debug_mode() == 0
    torch.cuda.set_sync_debug_mode("default")


def utilization_is_a_percentage() -> None:
    assert 0 <= torch.cuda.utilization() <= 100
