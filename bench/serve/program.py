"""What the serving measurements share: a server in a process of its own, its figures, and the CPU time of its threads."""
import atexit
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request


class Server:
    def __init__(self, program, arguments):
        self.program = program
        self.process = subprocess.Popen([program, "serve", *arguments, "--port", "0"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        atexit.register(self.process.kill)
        head = []
        for line in self.process.stderr:
            head.append(line)
            found = re.search(r"listening on http://127.0.0.1:(\d+)", line)
            if found:
                break
        else:
            raise SystemExit("the server did not start:\n" + "".join(head))
        self.port = int(found.group(1))
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = []
        threading.Thread(target=self._drain, daemon=True).start()
        while self.process.poll() is None:
            try:
                urllib.request.urlopen(self.url + "/health/ready", timeout=10).read()
                return
            except urllib.error.HTTPError:
                time.sleep(0.1)
        raise SystemExit("the server ended:\n" + "".join(self.log))

    def _drain(self):
        for line in self.process.stderr:  # the last lines only: a soak writes millions
            self.log.append(line)
            del self.log[:-200]

    def metrics(self):
        """{name{labels without model}: value} of our own names."""
        found = {}
        for line in urllib.request.urlopen(self.url + "/metrics", timeout=30).read().decode().splitlines():
            match = re.match(r'conclave_(\w+)\{model_name="[^"]*"(?:,([^}]*))?\} (\S+)$', line)
            if match:
                found[match.group(1) + (f"{{{match.group(2)}}}" if match.group(2) else "")] = float(match.group(3))
        return found

    def thread_seconds(self):
        """CPU seconds so far by thread name."""
        seconds = {}
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                name = (task / "comm").read_text().strip()
                fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            seconds[name] = seconds.get(name, 0) + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return seconds

    def resources(self):
        """What must come back to where it was."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        field = lambda name: int(re.search(rf"^{name}:\s+(\d+)", status, re.M).group(1))  # noqa: E731
        info = json.load(urllib.request.urlopen(self.url + "/server_info", timeout=30))["engine"]
        return {"memory_kib": field("RssAnon") + field("VmSwap"), "threads": field("Threads"),
                "descriptors": len(os.listdir(f"/proc/{self.process.pid}/fd")),
                "blocks_in_use": info["total_blocks"] - info["free_blocks"], "running": info["running"], "waiting": info["waiting"]}

    def bench(self, *arguments):
        """The first row of `conclave bench serve`."""
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            subprocess.run([self.program, "bench", "serve", self.url, "--json", file.name, *map(str, arguments)], check=True,
                           stdout=subprocess.DEVNULL)
            return json.load(open(file.name))["rows"][0]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)
