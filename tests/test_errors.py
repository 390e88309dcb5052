"""What torch_npu's and CANN's messages are understood to say; the texts are users' own."""

import warnings

import pytest
import torch

from kit.device.device import device_errors, is_out_of_memory, quiet_libraries
from kit.errors import DeviceError, OutOfDeviceMemoryError, advice, cause, failed_operator

NUMPY_2 = """npuSynchronizeDevice:build/CMakeFiles/torch_npu.dir/compiler_depend.ts:456 NPU function error: call aclrtSetDevice failed, error code is 500001
[ERROR] 2025-05-14-06:47:11 (PID:3421, Device:0, RankID:-1) ERR00100 PTA call acl api failed
[Error]: System Direct Memory Access (DMA) hardware execution error.
        Rectify the fault based on the error information in the ascend log.
EC0010: [PID: 3421] 2025-05-14-06:47:11.382.108 Failed to import Python module [AttributeError: `np.float_` was removed in the NumPy 2.0 release. Use `np.float64` instead..].
        Solution: Check that all required components are properly installed and the specified Python path matches the Python installation directory.
        TraceBack (most recent call last):
"""  # noqa: E501 - messages as they come
NO_KERNELS = """call aclnnAddRmsNorm failed, detail:EZ9999: Inner Error!
EZ9999: [PID: 812] 2025-11-02-10:11:12.131.415 Parse dynamic kernel config fail.
        TraceBack (most recent call last):
        Cannot find bin of op AddRmsNorm, integral key 0/1/|float16/ND/float16/ND/.
[ERROR] 2025-11-02-10:11:12 (PID:812, Device:0, RankID:-1) ERR01100 OPS call acl api failed
"""
QUEUE = """The Inner error is reported as above. The process exits for this inner error, and the current working operator name is aclnnGelu.
Since the operator is called asynchronously, the stacktrace may be inaccurate. If you want to get the accurate stacktrace, please set the environment variable ASCEND_LAUNCH_BLOCKING=1.
"""  # noqa: E501 - the same
OUT_OF_MEMORY = (
    "NPU out of memory. Tried to allocate 20.00 GiB (NPU 0; 60.97 GiB total capacity; 50.00 GiB "
    "already allocated; 50.00 GiB current active; 9.89 GiB free; 50.01 GiB reserved in total)"
)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (NUMPY_2, "EC0010: [PID: 3421] 2025-05-14-06:47:11.382.108 Failed to import"),
        (NO_KERNELS, "EZ9999: [PID: 812] 2025-11-02-10:11:12.131.415 Parse dynamic kernel"),
        (QUEUE, "The Inner error is reported as above"),
        ("one line.", "one line"),
        ("first\nE40021: cannot open the tuning bank", "E40021: cannot open the tuning bank"),
        ("first\nSolution: E40021 is in the manual", "first"),
        ("", ""),
    ],
)
def test_the_line_with_the_cause_is_shown(message: str, words: str) -> None:
    assert cause(message).startswith(words)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (NUMPY_2, "pip install 'numpy<2'"),
        (NO_KERNELS, "CANN's package of kernels for this chip is missing"),
        ("libascend_hal.so: cannot open shared object file", "mount /usr/local/Ascend/driver"),
        ("libhccl.so: cannot open shared object file", "source its set_env.sh"),
        ("call rtModelCreate failed, error code is 207008", "use a mode without -graph"),
        ("ModuleNotFoundError: No module named 'decorator'", "pip install attrs cloudpickle"),
        ("Invalid value of ASCEND_RT_VISIBLE_DEVICES 1,0", "must ascend"),
        ("something new", ""),
    ],
)
def test_what_users_meet_most_is_explained(message: str, words: str) -> None:
    assert words in advice(message)
    assert bool(advice(message)) is bool(words)


def test_a_device_error_names_operator_cause_and_help() -> None:
    with pytest.raises(DeviceError) as caught, device_errors("computing"):
        raise RuntimeError(NO_KERNELS)
    line = str(caught.value)
    assert line.startswith("operator aclnnAddRmsNorm failed while computing: EZ9999: [PID: 812]")
    assert "Parse dynamic kernel config fail; CANN's package of kernels" in line
    assert "\n" not in line


def test_the_operator_is_found_in_both_forms() -> None:
    assert failed_operator(QUEUE) == "aclnnGelu"
    assert failed_operator(NO_KERNELS) == "aclnnAddRmsNorm"
    assert failed_operator("no operator here") is None


@pytest.mark.parametrize(
    "message",
    [
        OUT_OF_MEMORY,
        "call aclrtMalloc failed\nEL0004: [PID: 7] Failed to allocate memory.",
        "NPU function error: rtMalloc, error code is 207018",
    ],
)
def test_memory_that_runs_out_in_a_plain_error_is_known_as_such(message: str) -> None:
    match = "use a smaller --size or batch"
    with pytest.raises(OutOfDeviceMemoryError, match=match), device_errors("trying batch 64"):
        raise RuntimeError(message)
    assert not is_out_of_memory(RuntimeError("error code is 507015"))
    assert is_out_of_memory(torch.OutOfMemoryError("typed"))


def test_only_the_libraries_own_deprecations_are_kept_quiet() -> None:
    text = "TypedStorage is deprecated. It will be removed in the future"
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        quiet_libraries()
        for module in ("torch_npu.utils.storage", "somebody"):
            warnings.warn_explicit(text, UserWarning, f"{module}.py", 1, module=module)
        warnings.warn("Please use the new API settings to control TF32 behavior", stacklevel=1)
        warnings.warn_explicit("other", UserWarning, "x.py", 1, module="torch_npu.utils.storage")
    assert [warning.filename for warning in shown] == ["somebody.py", "x.py"]
