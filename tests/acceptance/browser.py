"""A headless Chromium, by the W3C's WebDriver protocol: https://www.w3.org/TR/webdriver2/"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
from tests.acceptance.processes import Launcher
from tests.services.programs import program

__all__ = ["Browser"]


class Browser:
    """One session with an empty profile, which ends with the launcher's processes."""

    def __init__(self, launcher: Launcher, folder: Path) -> None:
        chromium = program("chromium", "chromium-browser", "google-chrome")
        driver = launcher.start([program("chromedriver"), "--port=0"], cwd=folder, env={"HOME": str(folder)})
        port = driver.wait_for_line(r"started successfully on port (\d+)")[1]
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        arguments = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=900,900"]
        # Its sandbox needs more than a container, or root, has; the only pages are our own.
        options = {"binary": chromium, "args": [*arguments, "--no-sandbox"]}
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        self._path = ""
        self._path = f"/session/{self._call('POST', '/session', capabilities=capabilities)['sessionId']}"

    def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""
        self._call("POST", "/url", url=url)

    def reload(self) -> None:
        """What F5 does."""
        self._call("POST", "/refresh")

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a JavaScript function's body, which may return a promise."""
        return self._call("POST", "/execute/sync", script=script, args=list(arguments))

    def wait_for(self, script: str, seconds: float = 30) -> None:
        """Wait until a JavaScript expression is true, which is looked at whenever the page draws."""
        found = self.run(
            f"""
            const deadline = performance.now() + {seconds * 1000};
            while (!({script})) {{
              if (performance.now() > deadline) return false;
              await new Promise((resolve) => setTimeout(resolve, 20));
            }}
            return true;
            """
        )
        assert found, f"not so within {seconds} s: {script}. The page says: {self.text()}"

    def text(self) -> str:
        """What is to be read on the page."""
        text: str = self.run("return document.body.innerText")
        return text

    def new_tab(self) -> str:
        """Open a tab, and go to it."""
        handle: str = self._call("POST", "/window/new", type="tab")["handle"]
        self.go_to_tab(handle)
        return handle

    def tab(self) -> str:
        """The tab that it is in."""
        handle: str = self._call("GET", "/window")
        return handle

    def go_to_tab(self, handle: str) -> None:
        """Go to a tab that is open."""
        self._call("POST", "/window", handle=handle)

    def screenshot(self, file: Path) -> None:
        """Write what is to be seen as a PNG."""
        file.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def close(self) -> None:
        """End the session, and Chromium with it."""
        self._call("DELETE", "")
        self._http.close()

    def _call(self, method: str, path: str, **body: Any) -> Any:
        answer = self._http.request(method, self._path + path, json=body if method == "POST" else None)
        value = answer.json()["value"]
        assert answer.status_code == 200, f"{method} {path}: {value}"
        return value
