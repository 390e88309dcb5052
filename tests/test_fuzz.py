"""Whatever lies in a file or stands in an option, a script ends with one line and an exit code.

The property of every case: exit code 0, 1 or 2, at most one line on stderr, never a traceback,
earlier results untouched where the code is 2, at most 20 s of a processor, as a process at most
2 GB.
`-m extended` runs a minute of them. KIT_FUZZ_CASES sets how many examples each of the tests tries
(834: ten thousand in all), KIT_FUZZ_PROCESSES=1 runs each case as a process of its own (17: two
hundred in all).
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import accuracy
import benchmark
import inference
from kit.report import __main__ as report
from kit.run import ROOT
from tests.report_records import everything

pytestmark = pytest.mark.extended
CASES = int(os.environ.get("KIT_FUZZ_CASES", "40"))
AS_PROCESSES = os.environ.get("KIT_FUZZ_PROCESSES") == "1"
MOST_SECONDS, MOST_BYTES = 20, 2 << 30
HANGS_SECONDS = 600  # on a machine that does much else
fuzzed = settings(
    max_examples=CASES,
    deadline=None,  # no time is asserted
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCRIPTS: Mapping[str, Callable[[list[str]], int]] = {
    "inference": inference.main,
    "benchmark": benchmark.main,
    "accuracy": accuracy.main,
}
QUICK = {"benchmark": ["--iterations", "1", "--warmup", "0", "--batch-sizes", "1"]}

strange_numbers = st.one_of(
    st.integers(-5, 70_000),
    st.sampled_from([0, 1, 10**7, 10**12, 2**63, 10**400, -1, 0.5, 1e308, -0.0]),
    st.booleans(),
)
strange = st.recursive(
    st.one_of(st.none(), strange_numbers, st.text(max_size=6), st.sampled_from(["", "\ud800"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture
def place(tiny_weights: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with weights, an image and an earlier result, which a case may break."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(tiny_weights, folder / "weights")
        shutil.copyfile(photo, folder / "image.png")
        with monkeypatch.context() as inside:
            inside.chdir(folder)
            yield folder


def called(script: str, main: Callable[[list[str]], int], argv: list[str]) -> tuple[int, str]:
    """Run a script's main, or a module of the kit's as a process; return exit code and stderr."""
    if not AS_PROCESSES or any("\0" in text for text in argv):  # no process can be told that
        errors = io.StringIO()
        before = time.process_time()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = main(argv)
        assert time.process_time() - before <= MOST_SECONDS
        return code, errors.getvalue()
    program = ["-m", script] if "." in script else [str(ROOT / f"{script}.py")]
    with tempfile.TemporaryFile("w+") as errors_file:
        process = subprocess.Popen(
            [sys.executable, *program, *argv],
            stdout=subprocess.DEVNULL,
            stderr=errors_file,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        stop = threading.Timer(HANGS_SECONDS, process.kill)
        stop.start()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stop.cancel()
        assert used.ru_maxrss * 1024 <= MOST_BYTES
        assert used.ru_utime + used.ru_stime <= MOST_SECONDS + 10  # and ten for the imports
        errors_file.seek(0)
        return process.returncode, errors_file.read()


def run(script: str, place: Path, *options: str) -> int:
    """Run a script and hold it to the property; returns its exit code."""
    output = place / "output"
    output.mkdir(exist_ok=True)
    earlier = output / f"{script}.json"
    earlier.write_text("an earlier result")
    argv = ["--output-dir", str(output), "--device", "cpu", "--no-report"]
    argv += ["--weights", str(place / "weights"), "--image", str(place / "image.png")]
    code, said = called(script, SCRIPTS[script], [*argv, *QUICK.get(script, []), *options])
    assert code in (0, 1, 2), (code, said)
    assert "Traceback" not in said
    assert "a fault of the kit" not in said, said
    assert said.count("\n") == (1 if code == 2 else 0), said
    if code == 2:
        assert said.startswith("error: ")
        assert earlier.read_text() == "an earlier result"
    return code


def mutated(content: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    """Return content with pieces replaced."""
    for start, length, piece in cuts:
        at = start % max(1, len(content))
        content = content[:at] + piece + content[at + length :]
    return content


cuts = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.integers(0, 64), st.binary(max_size=16)),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@fuzzed
@given(data=st.data())
def test_any_value_in_the_weights_json(
    place: Path, tiny_weights: Path, name: str, data: st.DataObject
) -> None:
    path = place / "weights" / name
    source = tiny_weights / name
    content: dict[str, Any] = json.loads(source.read_text("utf-8")) if source.exists() else {}
    known = [*content, "size", "image_mean", "resample", "crop_size", "quantization_config"]
    for key in data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)):
        content[key] = data.draw(strange)
    path.write_text(json.dumps(content), encoding="utf-8")
    run("inference", place)


@pytest.mark.parametrize("name", ["weights/config.json", "weights/model.safetensors", "image.png"])
@fuzzed
@given(cuts=cuts)
def test_any_bytes_in_a_file(
    place: Path, tiny_weights: Path, photo: Path, name: str, cuts: list[tuple[int, int, bytes]]
) -> None:
    path = place / name
    source = photo if name == "image.png" else tiny_weights / path.name
    path.write_bytes(mutated(source.read_bytes(), cuts))
    run("inference", place)


OPTIONS = [
    "--size",
    "--dtype",
    "--attention",
    "--device",
    "--seed",
    "--image",
    "--weights",
    "--download",
    "--lang",
    "--save-features",
    "--iterations",
    "--warmup",
    "--min-seconds",
    "--batch-sizes",
    "--modes",
    "--baseline",
    "--max-regression",
    "--budget-factor",
    "--batch-size",
    "--workers",
    "--references",
]
values = st.one_of(
    st.text(max_size=8),
    strange_numbers.map(lambda number: str(number)[:400]),
    st.sampled_from(["auto", "npu:1", "cuda", "all", "1,2", "nan", "inf", "1e400", "/dev/zero",
                     "/", "x" * 300, "\0", "-", "--"]),
)  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
@fuzzed
@given(option=st.sampled_from(OPTIONS), value=values)
def test_any_value_of_an_option(place: Path, script: str, option: str, value: str) -> None:
    # Values that a machine takes minutes for are sound ones, and no fault.
    slow = option in ("--size", "--min-seconds", "--iterations", "--batch-sizes", "--warmup")
    if slow and value.strip().replace(".", "").isdigit() and float(value) > 64:
        value = "64" if option == "--size" else "1"
    if option == "--download" and value in ("modelscope", "huggingface"):
        value = "none"
    run(script, place, f"{option}={value}")


RECORDS = {script: json.dumps(record).encode() for script, record in everything().items()}


@pytest.mark.parametrize("script", SCRIPTS)
@fuzzed
@given(data=st.data())
def test_any_value_in_a_record_for_the_report(
    place: Path, script: str, data: st.DataObject
) -> None:
    folder = place / "records"
    folder.mkdir(exist_ok=True)
    for name, content in RECORDS.items():
        (folder / f"{name}.json").write_bytes(content)
    record = json.loads(RECORDS[script])
    node = record
    while isinstance(node, dict | list) and node:
        key = data.draw(
            st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node)))
        )
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            node[key] = data.draw(strange)
            break
        node = node[key]
    (folder / f"{script}.json").write_text(json.dumps(record), encoding="utf-8")
    assert called("kit.report", report.main, [str(folder), "--lang", "en"]) == (0, "")
    assert (folder / "report.html").is_file()


@fuzzed
@given(cuts=cuts)
def test_any_bytes_in_a_baseline(place: Path, cuts: list[tuple[int, int, bytes]]) -> None:
    path = place / "baseline.json"
    path.write_bytes(mutated(RECORDS["benchmark"], cuts))
    assert run("benchmark", place, "--baseline", str(path)) == 2
