"""The watch over file descriptor 2."""

import os
import subprocess
import sys

from kit.device import health
from kit.run import ROOT

REPORT = (
    "[W1122 14:53:22.09 VariableFallbackKernel.cpp:230] Warning: CAUTION: The operator "
    "'aten::i0.out' is not currently supported on the NPU backend and will fall back to run on "
    "the CPU. This may have performance implications. (function npu_cpu_fallback)\n"
)


def watched(code: str) -> subprocess.CompletedProcess[str]:
    program = f"import os, sys\nfrom kit.device import health\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_each_operator_is_named_once_in_order() -> None:
    text = REPORT + REPORT.replace("i0.out", "svd") + REPORT + "operator 'x' failed\n"
    done = watched(
        f"with health.watch(True) as found: os.write(2, {text.encode()!r})\nprint(found.names)"
    )
    assert done.stdout == "('aten::i0.out', 'aten::svd')\n"


def test_the_report_still_reaches_the_terminal() -> None:
    done = watched(
        f"with health.watch(True) as found: os.write(2, {REPORT.encode()!r})\nprint(found.names)"
    )
    assert done.stderr == REPORT
    assert done.stdout == "('aten::i0.out',)\n"


def test_the_last_words_of_a_killed_process_reach_the_terminal() -> None:
    done = watched("with health.watch(True): os.write(2, b'last words'); os.abort()")
    assert done.stderr == "last words"


def test_the_line_about_padding_is_kept_from_the_terminal_and_others_are_not() -> None:
    padding = (
        "[W1125 13:10:20.05 NPUCachingAllocator.cpp:201] Warning: The current CANN and Soc versions"
        " require processing for 32 padding size, with memory allocation. (function operator())\n"
    )
    parts = ["50%\r", padding[:90], f"{padding[90:]}{REPORT}", f"[rank1]:{padding}[W half"]
    writes = "".join(f"os.write(2, {part.encode()!r}); time.sleep(0.1)\n " for part in parts)
    watch = "with health.watch(True) as found:\n"
    done = watched(f"import time\n{watch} {writes}\nprint(found.names)")
    assert done.stderr == f"50%\n{REPORT}[W half"  # the \r, read as text
    assert done.stdout == "('aten::i0.out',)\n"


def test_a_part_of_a_line_reaches_the_terminal_at_once() -> None:
    code = "import time\nwith health.watch(True):\n os.write(2, b'10%')\n time.sleep(60)\n"
    program = f"import os, sys\nfrom kit.device import health\n{code}"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT) as running:
        assert running.stderr is not None
        assert os.read(running.stderr.fileno(), 100) == b"10%"  # hangs where it is held back
        running.kill()


def test_the_descriptor_is_restored_after_an_error() -> None:
    done = watched(
        "try:\n with health.watch(True): raise ValueError\nexcept ValueError: os.write(2, b'after')"
    )
    assert done.stderr == "after"


def test_a_child_that_holds_the_pipe_does_not_hang_the_run() -> None:
    done = watched(
        "import subprocess\nhealth.DRAIN_TIMEOUT_S = 0.2\n"
        "with health.watch(True):\n"
        " child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "child.kill(); print('done')"
    )
    assert done.stdout == "done\n"


def test_an_inactive_watch_leaves_the_descriptor_alone() -> None:
    before = os.fstat(2)
    with health.watch(False) as found:
        assert os.fstat(2) == before
    assert found.names == ()
