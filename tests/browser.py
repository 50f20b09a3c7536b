"""Chromium for the tests of pages: where it is, how it starts and ends, and what can be asked of it."""
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def started(command, address, seconds=60, **kw):
    "Starts a server in a process group of its own, and waits until it answers."
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, **kw)
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2) as answer: return process, answer.read()
        except OSError: time.sleep(0.2)
    stop(process)
    raise AssertionError(f"{command[0]} did not answer at {address} within {seconds} s")


def stop(process):
    try: os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError: pass
    process.wait()


class Browser:
    "Chromium without a window, driven over its own protocol."
    def __init__(self, folder):
        import websocket
        port = free_port()
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                   "--window-size=1180,760", f"--user-data-dir={folder}", f"--remote-debugging-port={port}", "about:blank"]
        self.process, _ = started(command, f"http://127.0.0.1:{port}/json/version")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            page = next(p for p in json.load(answer) if p["type"] == "page")
        self.socket, self.number = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=60, suppress_origin=True), 0
        self.send("Page.enable")

    def send(self, method, **params):
        self.number += 1
        self.socket.send(json.dumps(dict(id=self.number, method=method, params=params)))
        while (answer := json.loads(self.socket.recv())).get("id") != self.number: self.note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def note(self, event): "What the browser tells without being asked."

    def value(self, script): return self.send("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")
    def text(self): return self.value("document.body ? document.body.innerText : ''") or ""

    def open(self, address, *words, seconds=90):
        "Goes to a page, and waits until it shows all the words; returns its text."
        self.send("Page.navigate", url=address)
        return self.wait(*words, seconds=seconds)

    def wait(self, *words, seconds=90):
        end = time.monotonic() + seconds
        while any(word not in (text := self.text()) for word in words):
            assert time.monotonic() < end, f"the page does not show {[w for w in words if w not in text]}:\n{text[:2000]}"
            time.sleep(0.3)
        return text

    def screenshot(self, path): Path(path).write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
