"""--download, through the hubs' own clients, against a local server with interruptions."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit.model import weights
from kit.run import ROOT
from tests.hub_server import Hub, environment, git_blob_id, serving

HUBS = ("modelscope", "huggingface")
CODE = """
import sys
from pathlib import Path
from kit.model import weights
from kit.errors import KitError
from kit.output import RunLog
try:
    found = weights.fetch(sys.argv[1], Path(sys.argv[2]), Path("."), RunLog())
    print(found.source, found.folder)
except KitError as error:
    sys.exit(f"error: {error}")
"""

IDENTIFY = """
import sys
from pathlib import Path
from kit.model import weights
from kit.errors import KitError
from kit.output import RunLog
try:
    found = weights.find(Path(sys.argv[2]), Path("."))
    print(weights.identify(sys.argv[1], found, RunLog()).source)
    print(weights.find(Path(sys.argv[2]), Path(".")).source_of(sys.argv[3]))
except KitError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture(scope="session")
def large_file() -> bytes:
    """A safetensors file of several of the clients' chunks, 10 MiB each."""
    count = 24 << 20
    entry = {"dtype": "F32", "shape": [count // 4], "data_offsets": [0, count]}
    header = json.dumps({"tensor": entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(range(256)) * (count // 256)


@pytest.fixture
def files(tiny_weights: Path) -> dict[str, bytes]:
    """What the hub has: the tiny model, with files that no one needs."""
    found = {path.name: path.read_bytes() for path in tiny_weights.iterdir()}
    return {**found, "LICENSE.md": b"a licence", "pytorch_model.bin": b"a pickle"}


def command(hub: str, folder: Path) -> list[str]:
    return [sys.executable, "-c", CODE, hub, str(folder)]


def fetch(hub: str, url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Download in a process of its own: the clients read their address once."""
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        command(hub, folder),
        env=environment(url, home),
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_whole(folder: Path, files: dict[str, bytes]) -> None:
    wanted = {"config.json", "model.safetensors", "LICENSE.md"}
    assert names(folder) == wanted | {"download.json"}
    assert all((folder / name).read_bytes() == files[name] for name in wanted)
    assert not folder.with_name(f"{folder.name}.partial").exists()


@pytest.mark.parametrize("hub", HUBS)
def test_a_download_brings_what_is_needed_and_a_second_one_nothing(
    hub: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    served = Hub(files)
    with serving(served) as url:
        done = fetch(hub, url, tmp_path / "model")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{hub} {tmp_path / 'model'}"
        assert_whole(tmp_path / "model", files)
        asked = len(served.asked)
        again = fetch(hub, url, tmp_path / "model")
    assert again.stdout.startswith("[INFO] Weights are there already")
    assert len(served.asked) == asked


@pytest.mark.parametrize("hub", HUBS)
def test_a_connection_that_breaks_is_resumed_where_it_stopped(
    hub: str, files: dict[str, bytes], large_file: bytes, tmp_path: Path
) -> None:
    files["model.safetensors"] = large_file
    served = Hub(files, cut_after=12 << 20, cuts=2)
    with serving(served) as url:
        done = fetch(hub, url, tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert_whole(tmp_path / "model", files)
    starts = [int(asked.removeprefix("bytes=").split("-")[0] or 0) for asked in served.ranges()]
    assert len(starts) == 3 and starts[0] == 0
    # What arrived is not asked for again, but for a chunk that was cut.
    assert starts[1] >= 10 << 20 and starts[2] >= 20 << 20


@pytest.mark.parametrize("hub", HUBS)
def test_a_killed_download_leaves_no_half_model_and_the_next_run_resumes(
    hub: str, files: dict[str, bytes], large_file: bytes, tmp_path: Path
) -> None:
    files["model.safetensors"] = large_file
    folder, home = tmp_path / "model", tmp_path / "home"
    home.mkdir()
    served = Hub(files, cut_after=12 << 20, cuts=1, hang=True)
    with serving(served) as url:
        process = subprocess.Popen(
            command(hub, folder),
            env=environment(url, home),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert served.hanging.wait(60)
        wait_for_bytes(tmp_path / "model.partial", 10 << 20)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        assert not folder.exists()
        served.hang = False
        done = fetch(hub, url, folder)
    assert done.returncode == 0, done.stderr
    assert_whole(folder, files)
    assert int(served.ranges()[-1].removeprefix("bytes=").split("-")[0]) >= 10 << 20


def wait_for_bytes(folder: Path, count: int) -> None:
    """Wait until so many bytes lie in a folder."""
    end = time.monotonic() + 60
    while sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < count:
        assert time.monotonic() < end, "the client writes nothing"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "hub",
    # modelscope's client tries again for seconds.
    [pytest.param("modelscope", marks=pytest.mark.extended), "huggingface"],
)
def test_a_file_with_another_hash_is_refused_and_can_be_fetched_anew(
    hub: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    served = Hub(files, corrupt={"model.safetensors"})
    with serving(served) as url:
        done = fetch(hub, url, tmp_path / "model")
        assert done.returncode == 1
        error = done.stderr.splitlines()[-1]
        assert error.startswith("error: ") and "hash" in error.lower(), error
        assert not (tmp_path / "model").exists()
        served.corrupt.clear()
        assert fetch(hub, url, tmp_path / "model").returncode == 0
    assert_whole(tmp_path / "model", files)


def test_a_small_file_with_another_hash_is_refused_too(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    with serving(Hub(files, corrupt={"config.json"})) as url:
        done = fetch("huggingface", url, tmp_path / "model")
    wanted = git_blob_id(files["config.json"])
    assert f"config.json from huggingface does not have the hash {wanted}" in done.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("hub", "login"), [("modelscope", "modelscope login"), ("huggingface", "hf auth login")]
)
def test_a_gate_is_passed_on_with_what_to_do(
    hub: str, login: str, status: int, files: dict[str, bytes], tmp_path: Path
) -> None:
    message = "Access is restricted, visit the page to ask for it"
    with serving(Hub(files, refuse=(status, message))) as url:
        done = fetch(hub, url, tmp_path / "model")
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"error: {hub} refuses facebook/dinov3"), error
    assert message in error or "gated" in error.lower(), error
    assert "accept its licence" in error and login in error
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("hub", HUBS)
def test_a_hub_without_the_config_gives_no_model(
    hub: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    del files["config.json"]
    with serving(Hub(files)) as url:
        done = fetch(hub, url, tmp_path / "model")
    assert "config.json is missing" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "model").exists()


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    done = fetch("modelscope", "http://127.0.0.1:9", tmp_path / "model")
    assert "is in the way of the download: give an empty folder" in done.stderr
    assert names(tmp_path / "model") == {"notes.txt"}


def test_two_processes_at_once_download_once(files: dict[str, bytes], tmp_path: Path) -> None:
    served = Hub(files)
    (tmp_path / "home").mkdir()
    with serving(served) as url:
        processes = [
            subprocess.Popen(
                command("huggingface", tmp_path / "model"),
                env=environment(url, tmp_path / "home"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        output = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("Weights are there already" in text for text in output) == 1
    assert len(served.ranges()) == 1
    assert_whole(tmp_path / "model", files)


def test_downloaded_weights_load_and_later_records_name_the_hub_too(
    files: dict[str, bytes], tmp_path: Path, photo: Path
) -> None:
    (tmp_path / "home").mkdir()
    script = str(ROOT / "inference.py")
    options = ["--download", "modelscope", "--weights", "model", "--image", str(photo)]
    with serving(Hub(files)) as url:
        done = subprocess.run(
            [sys.executable, script, *options, "--device", "cpu"],
            env=environment(url, tmp_path / "home"),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "output" / "inference.json").read_text("utf-8"))
    assert record["model"]["source"] == "modelscope"
    assert record["model"]["weights"] == "model"
    folder = tmp_path / "model"
    sha256 = record["model"]["sha256"]
    assert weights.find(folder, tmp_path).source_of(sha256) == "modelscope"
    assert weights.find(folder, tmp_path).source_of("of other files") == "local"
    (folder / "download.json").unlink()
    assert weights.find(folder, tmp_path).source_of(sha256) == "local"


def identify(hub: str, served: Hub, folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Ask a hub for weights in a folder, in a process of its own."""
    home.mkdir(exist_ok=True)
    sha256 = weights.sha256_of_files(weights.safetensors_files(folder))
    with serving(served) as url:
        return subprocess.run(
            [sys.executable, "-c", IDENTIFY, hub, str(folder), sha256],
            env=environment(url, home), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip


@pytest.mark.parametrize("hub", HUBS)
def test_weights_from_elsewhere_are_identified_without_fetching_them(
    hub: str, files: dict[str, bytes], tiny_weights: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_weights, tmp_path / "model")
    served = Hub(files)
    done = identify(hub, served, folder, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [hub, hub]  # now, and by the file beside the weights
    assert served.ranges() == []
    assert not any("resolve" in path or "FilePath" in path for _, path, _ in served.asked)
    # Other files in the same folder are not those.
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    changed = weights.Weights(folder, "local")
    assert changed.source_of(weights.sha256_of_files(changed.files)) == "local"
    done = identify(hub, served, folder, tmp_path / "home")
    assert done.returncode == 1
    assert f"{hub} publishes" in done.stderr and "these are other weights" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("hub", HUBS)
def test_a_hub_that_does_not_know_or_does_not_say_identifies_nothing(
    hub: str, files: dict[str, bytes], tiny_weights: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_weights, tmp_path / "model")
    unknown = {name: content for name, content in files.items() if name != "model.safetensors"}
    done = identify(hub, Hub(unknown), folder, tmp_path / "home")
    assert done.returncode == 1
    assert f"{hub} publishes no such file" in done.stderr
    if hub == "modelscope":  # Hugging Face shows a gated model's listing to everyone
        refused = Hub(files, refuse=(403, "you have to accept the licence"))
        done = identify(hub, refused, folder, tmp_path / "home")
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
    assert not (folder / "download.json").exists()
