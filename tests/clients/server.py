"""What the client tests share: the program itself, serving a model on a free port, and a list of scenarios."""
import atexit
import os
import pathlib
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request


class Server:
    """`conclave serve MODEL` with a context of 512 tokens; `options` are further ones."""

    def __init__(self, program, model, *options):
        self.name = pathlib.Path(model).name
        self.process = subprocess.Popen([program, "serve", model, "--port", "0", "--precision", "exact", "--max-context", "512", *options],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)
        found = None
        for line in self.process.stderr:
            found = re.search(r"listening on http://127.0.0.1:(\d+)", line)
            if found:
                break
        if not found:
            raise RuntimeError(f"the server did not start: {self.process.wait()}")
        self.port = int(found.group(1))
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = []
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()
        deadline = time.time() + 120
        while time.time() < deadline:
            try:
                urllib.request.urlopen(self.url + "/health/ready").read()
                return
            except urllib.error.HTTPError:
                time.sleep(0.05)
        raise RuntimeError("the server did not become ready")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def run_scenarios(what, scenarios, server, *arguments):
    """Runs every function, stops the server, prints the outcome; the exit code."""
    failed = 0
    for run in scenarios:
        try:
            run(*arguments)
        except Exception as e:  # noqa: BLE001: every failure is reported
            failed += 1
            print(f"FAILED {run.__name__}: {type(e).__name__}: {e}")
    code = server.stop()
    print(f"{len(scenarios) - failed} of {len(scenarios)} scenarios passed with {what}; the server ended with {code}")
    return 1 if failed or code else 0


def recorded(url):
    """The address to use: the server's, or that of a proxy that writes what passes to the file CONCLAVE_RECORD names."""
    file = os.environ.get("CONCLAVE_RECORD")
    if not file:
        return url
    import recorder
    return recorder.start(url, file)
