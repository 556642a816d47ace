"""`conclave serve` on a free port, for the clients of this folder."""
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request


class Server:
    """The program itself, on a free port."""

    def __init__(self, program, model, *options):
        self.process = subprocess.Popen([program, "serve", model, "--port", "0", "--precision", "exact", "--max-context", "512", *options],
                                        stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            found = re.search(r"listening on http://127.0.0.1:(\d+)", line)
            if found:
                break
        self.url = f"http://127.0.0.1:{found.group(1)}"
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
