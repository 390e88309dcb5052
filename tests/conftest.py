"""Fixtures that several test files share."""

import os

import pytest

from tests.emulated_npu import EmulatedNpu
from tests.fake_cann import build

REQUIRE_VARIABLE = "KIT_REQUIRE_NPU"


@pytest.fixture(scope="session")
def npu_host() -> EmulatedNpu:
    """Build the emulated NPU once; skip with the reason in one line where it cannot be had.

    With KIT_REQUIRE_NPU=1, as continuous integration sets it, the reason fails the test instead.
    """
    reason = build.unavailable_reason()
    if reason and os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"{REQUIRE_VARIABLE}=1, but {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)
    return EmulatedNpu(build.build())
