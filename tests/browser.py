"""Drive a headless Chromium over its DevTools pipe: standard library only, no port, no network."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-default-apps", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
# Chromium reads file descriptor 3 and writes 4; bash puts the pipes' ends there.
LAUNCH = 'exec "$@" 3<&"$READ_FD" 4>&"$WRITE_FD"'
TIMEOUT_S = 60.0
Json = dict[str, Any]


def path_of_chromium() -> str | None:
    """Return where Chromium is; None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One headless Chromium with one page.

    Attributes:
        events: every event that the page sent since it was opened last.
    """

    def __init__(self, profile: Path) -> None:
        """Start it with an empty profile."""
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        self._numbers = itertools.count(1)
        self._buffer = b""
        self.events: list[Json] = []
        self._process = subprocess.Popen(
            ["bash", "-c", LAUNCH, "bash", str(path_of_chromium()), *OPTIONS,
             f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_read, to_write),
            env={**os.environ, "READ_FD": str(to_read), "WRITE_FD": str(to_write)},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._session: str | None = None
        target = next(
            info for info in self.call("Target.getTargets")["targetInfos"] if info["type"] == "page"
        )
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(TIMEOUT_S)
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **parameters: object) -> Json:
        """Call a DevTools method and return its result.

        Raises:
            RuntimeError: where the method fails.
            TimeoutError: where the browser does not answer.
        """
        number = next(self._numbers)
        message: Json = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") != number:
                continue
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            result: Json = answer["result"]
            return result

    def _receive(self) -> Json:
        """Return the next message; an event is kept."""
        end = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("chromium does not answer")
            content = os.read(self._read, 1 << 20)
            if not content:
                raise TimeoutError("chromium has ended")
            self._buffer += content
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: Json = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(
        self,
        page: Path,
        width: int,
        *,
        dark: bool = False,
        scripts: bool = True,
        print_: bool = False,
    ) -> None:
        """Open a file at a width in pixels and wait until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        media = "print" if print_ else "screen"
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        for url in ("about:blank", page.absolute().as_uri()):
            self.events.clear()
            self.call("Page.navigate", url=url)
            while not any(event["method"] == "Page.loadEventFired" for event in self.events):
                self._receive()

    def evaluate(self, expression: str) -> Any:  # noqa: ANN401 - whatever the page answers
        """Return a JavaScript expression's value.

        Raises:
            RuntimeError: where it throws.
        """
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Return what the page logged, threw or had refused since it was opened."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in kinds]

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for, those of embedded data apart."""
        found = [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in found if not url.startswith("data:")]

    def screenshot(self, path: Path, *, height: int | None = None) -> None:
        """Keep a picture of the whole page, or of its upper part."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {
            "x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1,
        }  # fmt: skip
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(taken["data"]))


def main(page: str, picture: str, width: str, height: str) -> None:
    """Take a picture of a page's upper part.

    python3 -m tests.browser output/report.html docs/report.png 1100 1250
    """
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        browser.open(Path(page), int(width))
        browser.screenshot(Path(picture), height=int(height))


if __name__ == "__main__":
    main(*sys.argv[1:])
