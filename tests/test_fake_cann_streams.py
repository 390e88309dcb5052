"""The emulated NPU's asynchronous side: durations, events, streams, graphs, memory."""

import json

import pytest

from tests.emulated_npu import EmulatedNpu

# Operators of 2 ms: long enough that a loaded machine's wake-ups do not add up to 1 %.
DURATIONS = """
import json, time
import torch
x = torch.ones(4, 4, device="npu")
start, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
torch.npu.synchronize()
for _ in range(20):  # the device is busy while the first of the measured ones are launched
    x = torch.relu(x)
began = time.perf_counter()
start.record()
for _ in range(100):
    x = torch.relu(x)
end.record()
early = end.query()
end.synchronize()
waited = time.perf_counter() - began
eager_ms = start.elapsed_time(end)
y = torch.relu(x)
graph = torch.npu.NPUGraph()
torch.npu.synchronize()
with torch.npu.graph(graph):
    for _ in range(50):
        y = torch.relu(y)
torch.npu.synchronize()
for _ in range(20):
    x = torch.relu(x)
start.record()
graph.replay()
graph.replay()
end.record()
end.synchronize()
print("REPORT", json.dumps({
    "early": early, "waited_ms": waited * 1e3, "eager_ms": eager_ms,
    "graph_ms": start.elapsed_time(end),
}))
"""


def test_operators_and_graph_nodes_take_the_duration_that_was_set(npu_host: EmulatedNpu) -> None:
    finished = npu_host.run_code(
        DURATIONS, environment={"FAKECANN_DELAY_US": "aclnnRelu:2000,0", "OMP_NUM_THREADS": "1"}
    )
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout.split("REPORT")[1])
    # The device's time is computed, so that a busy machine does not change it.
    assert report["eager_ms"] == pytest.approx(200.0, rel=0.01)
    assert report["graph_ms"] == pytest.approx(200.0, rel=0.01)
    assert not report["early"]
    assert report["waited_ms"] > 199.0  # nor does the host see a result before its time


STREAMS = """
import torch
x = torch.zeros(8, device="npu")
side = torch.npu.Stream()
torch.npu.synchronize()
for _ in range(20):
    x.add_(1)
with torch.npu.stream(side):
    early = x + 0
torch.npu.synchronize()
print("without a wait", early[0].item())
x.zero_()
for _ in range(20):
    x.add_(1)
side.wait_stream(torch.npu.current_stream())
with torch.npu.stream(side):
    late = x + 0
torch.npu.synchronize()
print("with a wait", late[0].item())
host = torch.zeros(8).pin_memory()
for _ in range(20):
    x.add_(1)
host.copy_(x, non_blocking=True)
before = host[0].item()
torch.npu.synchronize()
print("pinned copy", before, host[0].item())
"""


def test_a_missing_wait_between_streams_shows(npu_host: EmulatedNpu) -> None:
    finished = npu_host.run_code(STREAMS, environment={"FAKECANN_DELAY_US": "2000"})
    assert finished.returncode == 0, finished.stderr
    early = float(finished.stdout.split("without a wait ")[1].split()[0])
    assert early < 20
    assert "with a wait 20.0" in finished.stdout
    assert "pinned copy 0.0 40.0" in finished.stdout


ABORTED = """
import torch
x = torch.ones(8, device="npu")
event, other = torch.npu.Event(), torch.npu.Event()
side = torch.npu.Stream()
torch.nn.functional.gelu(x)
event.record()
side.wait_event(event)
with torch.npu.stream(side):
    y = x + 1
other.record(side)
for name, action in {
    "event": event.synchronize, "side stream": side.synchronize, "its event": other.synchronize,
}.items():
    try:
        action()
        print(name, "waited in vain")
    except RuntimeError as error:
        print(name, "507015" in str(error))
healthy = torch.npu.Stream()
event.record(healthy)
event.synchronize()
print("recorded again", event.query())
"""


@pytest.mark.parametrize("asynchronous", ["0", "1"])
def test_an_event_behind_an_aborted_kernel_fails_whoever_waits_for_it_and_blocks_nobody(
    npu_host: EmulatedNpu, asynchronous: str
) -> None:
    environment = {
        "FAKECANN_ABORT": "aclnnGelu:1",
        "FAKECANN_ASYNC": asynchronous,
        "TASK_QUEUE_ENABLE": "0",
    }
    finished = npu_host.run_code(ABORTED, environment=environment, timeout_s=120)
    assert "event True\nside stream True\nits event True\n" in finished.stdout, finished.stderr
    assert "recorded again True" in finished.stdout


GRAPHS = """
import os, torch
layer = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()).eval()
first, second = torch.randn(2, 8), torch.randn(2, 8)
with torch.inference_mode():
    expected = [layer(first), layer(second)]
    layer.to("npu")
    x = first.to("npu")
    side = torch.npu.Stream()
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        layer(x)
    torch.npu.current_stream().wait_stream(side)
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        y = layer(x)
    torch.npu.synchronize()
    print("captured only", not torch.allclose(y.cpu(), expected[0], atol=1e-5))
    for source, want in zip((first, second), expected):
        x.copy_(source.to("npu"))
        graph.replay()
        torch.npu.synchronize()
        print("replayed", torch.allclose(y.cpu(), want, atol=1e-5))
    other = torch.npu.NPUGraph()
    try:
        with torch.npu.graph(other):
            layer(x).cpu()
        print("no error")
    except RuntimeError as error:
        print("refused")
"""


def test_graphs_record_without_computing_and_replay_on_new_inputs(npu_host: EmulatedNpu) -> None:
    for mode in ("0", "1"):
        environment = {"FAKECANN_ASYNC": mode, "FAKECANN_GELU": "erf"}
        finished = npu_host.run_code(GRAPHS, environment=environment)
        text = finished.stdout + finished.stderr
        assert "captured only True\nreplayed True\nreplayed True\nrefused" in text, text


MEMORY = """
import torch
torch.npu.reset_peak_memory_stats()
before = torch.npu.memory_allocated()
x = torch.empty(8 << 20, dtype=torch.uint8, device="npu")
print("grew", torch.npu.memory_allocated() - before >= 8 << 20)
del x
print("fell", torch.npu.memory_allocated() == before)
print("peak", torch.npu.max_memory_allocated() >= before + (8 << 20))
torch.npu.empty_cache()
print("reserved", torch.npu.memory_reserved())
y = torch.arange(1 << 20, device="npu")
print("right", int(y[-1]) == (1 << 20) - 1)
"""


@pytest.mark.extended
def test_memory_statistics_hold_with_and_without_expandable_segments(
    npu_host: EmulatedNpu,
) -> None:
    for setting in ("expandable_segments:False", "expandable_segments:True"):
        finished = npu_host.run_code(MEMORY, environment={"PYTORCH_NPU_ALLOC_CONF": setting})
        text = finished.stdout + finished.stderr
        assert "grew True\nfell True\npeak True\nreserved 0\nright True" in text, text
