"""The emulated NPU: the unmodified torch_npu wheel runs on it."""

from tests.emulated_npu import EmulatedNpu

TWO_DEVICES = """
import torch
print(torch.npu.device_count(), torch.npu.get_device_name(0))
print((torch.ones(2, device="npu:1") * 3).cpu().tolist())
"""


def test_torch_npu_imports_sees_two_devices_and_computes(npu_host: EmulatedNpu) -> None:
    finished = npu_host.run_code(TWO_DEVICES)
    assert finished.returncode == 0, finished.stderr
    assert "2 Ascend910_9362\n[3.0, 3.0]\n" in finished.stdout
