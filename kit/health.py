"""Prove that a device still computes: small questions with known answers."""

import itertools

import torch

from kit.device import Device, device_errors, synchronize
from kit.errors import DeviceError

_question_numbers = itertools.count(1)


class HealthChecks:
    """Asks a device small questions with known answers and counts those it passed."""

    def __init__(self, device: Device) -> None:
        """Check `device`; nothing has been asked yet."""
        self.device = device
        self.passed = 0

    def after(self, phase: str) -> None:
        """Prove that the device still computes after a phase of the run.

        A device that dropped its work hands back whatever lies in memory, perhaps the answer
        to the last question: hence a new one each time. The numbers are small integers, exact
        in fp32, TF32 and HF32 alike. The CPU is not asked: it raises where it fails.

        Args:
            phase: what the run has just done, for the message.

        Raises:
            DeviceError: where the device fails or answers wrongly.
        """
        if self.device.type == "cpu":
            return
        number = next(_question_numbers)
        question = (torch.arange(64).reshape(8, 8) * 7 + number * 13) % 61
        expected = (question @ question.T + question).to(torch.float32)
        with device_errors(f"checking the device after {phase}"):
            on_device = question.to(torch.float32).to(self.device.torch_device)
            answer = (on_device @ on_device.T + on_device).cpu()
            synchronize(self.device)
        if not torch.equal(answer, expected):
            raise DeviceError(
                f"{self.device.name} no longer computes after {phase}: a matrix product with a "
                "known answer came back wrong, so nothing of this run can be trusted; "
                "see the device's messages above and reset it"
            )
        self.passed += 1
