"""What benchmark.py measures with, on the emulated NPU: warm-up, memory, graph capture."""

import json
from pathlib import Path

import pytest

from tests.emulated_npu import EmulatedNpu

DRIFT = """
import json, sys
import npu_patch, torch
from kit.benchmark import measure
from kit.benchmark.measure import Meter, Plan
from kit.device.device import choose
from kit.device.meters import Stopwatch
from kit.device.health import HealthChecks
from kit.output import RunLog
from kit.distributed import Group, Rank

measure.WARM_UP_BOUND_S = 4.0
device = choose("npu", patched=True, patch_reason="")
meter = Meter(Stopwatch(device), HealthChecks(device), Group(Rank()), RunLog(silent=True))
values = torch.zeros(4, device="cuda")
found = []
for settles_at in (1000, 20):
    calls = 0
    def call():
        global calls
        calls += 1
        for _ in range(8 + min(calls, settles_at)):
            torch.nn.functional.gelu(values)
    latency = meter.measure(call, 1, Plan(5, 0), "a call that grows")
    found.append((latency.warm_up.steady, latency.warm_up.iterations, latency.device_p50_ms))
print(json.dumps(found))
"""


def test_a_warm_up_that_drifts_is_noticed_and_one_that_settles_ends(npu_host: EmulatedNpu) -> None:
    done = npu_host.run_code(DRIFT, environment={"FAKECANN_DELAY_US": "aclnnGeluV2:4000"})
    assert done.returncode == 0, done.stderr
    (steady, count, _), (settled, settled_count, settled_ms) = json.loads(
        done.stdout.splitlines()[-1]
    )
    assert not steady
    assert count >= 20  # as many as 4 s have room for
    assert settled
    assert 20 < settled_count < 100
    assert settled_ms == pytest.approx(28 * 4.0, rel=0.1)


FLAT = """
import gc, json, sys
import npu_patch, torch
from pathlib import Path
from kit.model import model
from kit.benchmark.measure import Meter, Plan
from kit.device.device import choose
from kit.device.meters import PeakMemory, Stopwatch
from kit.model.model import forward
from kit.device.health import HealthChecks
from kit.output import RunLog
from kit.distributed import Group, Rank

device = choose("npu", patched=True, patch_reason="")
meter = Meter(Stopwatch(device), HealthChecks(device), Group(Rank()), RunLog(silent=True))
moved = model.load(Path(sys.argv[1]), "sdpa").to(device.torch_device)
pixels = torch.zeros(1, 3, 32, 32, device=device.torch_device)
def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
found = []
peaks = PeakMemory(device)
for count in (100, 1000):
    peaks.restart()
    gc.collect()
    objects, before = len(gc.get_objects()), resident()
    meter.measure(lambda: forward(moved, pixels), 1, Plan(count, 0), f"{count} forwards")
    gc.collect()
    grown = len(gc.get_objects()) - objects, resident() - before
    found.append((*grown, peaks.take()))
print(json.dumps(found))
"""


def test_a_thousand_forwards_keep_memory_flat(npu_host: EmulatedNpu, tiny_weights: Path) -> None:
    done = npu_host.run(
        ["-c", FLAT, str(tiny_weights)], environment={"OMP_NUM_THREADS": "1"}, timeout_s=180
    )
    assert done.returncode == 0, done.stderr
    short, long = json.loads(done.stdout.splitlines()[-1])
    assert long[0] < 500  # objects: not one is left by each forward
    assert long[1] < 8 << 20  # bytes of resident memory
    assert long[2] == short[2]  # the device's peak is that of one forward


CAPTURE = """
import json
import npu_patch, torch
from kit.device.device import choose
from kit.device.meters import capture
from kit.errors import CaptureError
from kit.device.health import HealthChecks

device = choose("npu", patched=True, patch_reason="")
health = HealthChecks(device)
values = torch.ones(4, device="cuda")
try:
    capture(device, lambda: (values * 2).cpu(), "a call that reads from the device")
except CaptureError as error:
    print(error)
health.after("a capture that failed")
captured = capture(device, lambda: values * 2, "a call that does not")
values.fill_(3)
print(captured().tolist(), health.passed)
"""


def test_a_call_that_no_graph_can_hold_is_named_and_the_device_goes_on(
    npu_host: EmulatedNpu,
) -> None:
    done = npu_host.run_code(CAPTURE)
    assert done.returncode == 0, done.stderr
    error, replayed = done.stdout.splitlines()[-2:]
    assert error.startswith("a call that reads from the device cannot be captured: ")
    assert replayed == "[6.0, 6.0, 6.0, 6.0] 1"
