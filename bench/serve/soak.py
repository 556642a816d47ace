#!/usr/bin/env python3
"""Mixed load for some minutes: streams, whole answers, scoring, chats, several answers, bad requests, clients that leave at any moment and
readers that are slow. At the end memory, threads, descriptors and cache blocks must be where they were after a warm-up.

    soak.py [CONCLAVE] [--minutes 30] [--clients 8] [-- options of `conclave serve`]      exit 1 when something stayed or was unexpected"""
import argparse
import collections
import json
import random
import socket
import sys
import threading
import time

from program import Server

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("program", nargs="?", default="build/conclave")
parser.add_argument("--minutes", type=float, default=30)
parser.add_argument("--clients", type=int, default=8)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--growth-mib", type=float, default=8, help="memory that may be added after the warm-up")
own = sys.argv[1:sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
options = sys.argv[len(own) + 2:] or ["models/demo-mixtral"]
arguments = parser.parse_args(own)
WORDS = "Tom Anna Ben Lucy has the red blue black ball book coins kitchen garden is in of four who".split()


BEGINNINGS = [" ".join(random.Random(i).choices(WORDS, k=100)) + " " for i in range(4)]


def text(r, most=120):
    """Some begin as others do, so that the cache has something to share."""
    beginning = r.choice(BEGINNINGS) if most > 100 and r.random() < 0.5 else ""
    return beginning + " ".join(r.choice(WORDS) for _ in range(r.randint(1, most)))


def body_of(r):
    """Path, body and the statuses that are right."""
    common = {"max_tokens": r.randint(1, 48), "temperature": r.choice([0, 0.7, 1.5]), "priority": r.randint(1, 5)}
    kind = r.randrange(10)
    if kind < 3:
        return "/v1/completions", common | {"prompt": text(r), "stream": True, "stream_options": {"include_usage": True}}, {200}
    if kind == 3:
        return "/v1/completions", {"prompt": [text(r, 30) for _ in range(3)], "max_tokens": 1, "echo": True, "logprobs": 2}, {200}
    if kind == 4:
        return "/v1/chat/completions", common | {"messages": [{"role": "user", "content": text(r)}], "stream": r.random() < 0.5}, {200}
    if kind == 5:
        return "/v1/completions", common | {"prompt": text(r, 20), "n": r.randint(2, 4), "stop": ["ball", "book"]}, {200}
    if kind == 6:
        return "/generate", {"inputs": text(r), "parameters": {"max_new_tokens": 10, "details": True}}, {200}
    if kind == 7:
        return "/v1/completions", common | {"prompt": text(r), "deadline_ms": r.choice([1, 20, 5000])}, {200, 503}
    if kind == 8:
        bad = r.choice([{"prompt": 5}, {"prompt": "x", "temperature": -1}, {"prompt": "x" * 100_000}, {}, {"prompt": "x", "n": 10_000}])
        return "/v1/completions", bad, {400}
    return "/tokenize", {"prompt": text(r)}, {200}


class Client(threading.Thread):
    def __init__(self, port, number, until):
        super().__init__()
        self.port, self.random, self.until = port, random.Random(arguments.seed * 1000 + number), until
        self.counts, self.latencies, self.unexpected = collections.Counter(), [], []

    def run(self):
        connection = None
        while time.time() < self.until:
            try:
                connection = self.exchange(connection)
            except Exception as e:  # noqa: BLE001: counted and shown
                self.unexpected.append(repr(e))
                connection = None

    def exchange(self, connection):
        r = self.random
        path, body, right = body_of(r)
        data = json.dumps(body).encode()
        request = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        if connection is None:
            connection = socket.create_connection(("127.0.0.1", self.port), timeout=120)
        leaves = r.random() < 0.15
        began = time.time()
        if leaves:  # after some bytes sent, or some received
            cut = r.choice([r.randrange(len(request)), len(request)])
            connection.sendall(request[:cut])
            if cut == len(request) and r.random() < 0.7:
                connection.recv(r.choice([1, 200, 4000]))
            connection.close()
            self.counts["left"] += 1
            return None
        connection.sendall(request)
        status = self.read_answer(connection, slow=r.random() < 0.05)
        self.counts[f"{path} {status}"] += 1
        self.latencies.append((began, time.time() - began))
        if status not in right:
            self.unexpected.append(f"{path} {json.dumps(body)[:200]}: {status}")
        return connection

    @staticmethod
    def read_answer(connection, slow):
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(4096)
            if not more:
                raise ConnectionError("ended within the head")
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        lower = head.lower()
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in lower else None
        whole = (lambda: len(rest) >= length) if length is not None else (lambda: rest.endswith(b"0\r\n\r\n"))
        while not whole():
            more = connection.recv(64 if slow else 65536)
            if not more:
                raise ConnectionError("ended within the body")
            rest += more
            if slow:
                time.sleep(0.001)
        return int(head.split()[1])


def load(server, minutes):
    until = time.time() + 60 * minutes
    clients = [Client(server.port, i, until) for i in range(arguments.clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    deadline = time.time() + 30
    while time.time() < deadline and (now := server.resources()) and now["running"] + now["waiting"] > 0:
        time.sleep(0.2)
    time.sleep(1)
    return clients


def p99(values):
    return sorted(values)[max(0, int(len(values) * 0.99) - 1)] if values else 0


server = Server(arguments.program, [*options, "--max-context", "512", "--block-size", "16", "--cache-tokens", "1024"])
warm = load(server, max(0.1, arguments.minutes / 10))
before = server.resources()
began = time.time()
clients = load(server, arguments.minutes)
after = server.resources()
metrics = server.metrics()
code = server.stop()

counts = sum((c.counts for c in clients), collections.Counter())
unexpected = [u for c in warm + clients for u in c.unexpected]
timed = sorted(t for c in clients for t in c.latencies)
half = [[s for at, s in timed if (at - began < 30 * arguments.minutes) == first] for first in (True, False)]
print(f"{sum(counts.values())} requests in {arguments.minutes} minutes with {arguments.clients} clients")
for name, count in sorted(counts.items()):
    print(f"  {name}: {count}")
print(f"preemptions {metrics.get('num_preemptions_total', 0):.0f}, prefix tokens from the cache {metrics.get('prefix_cache_hits_total', 0):.0f}")
print(f"p99 of the first and second half: {1000 * p99(half[0]):.1f} and {1000 * p99(half[1]):.1f} ms")
print("| | after warm-up | at the end |\n|---|---|---|")
for key in before:
    print(f"| {key} | {before[key]} | {after[key]} |")
stayed = [key for key in ("threads", "blocks_in_use", "running", "waiting") if after[key] != before[key]]
if after["descriptors"] > before["descriptors"] + 2:
    stayed.append("descriptors")
if after["memory_kib"] > before["memory_kib"] + 1024 * arguments.growth_mib:
    stayed.append("memory_kib")
for line in unexpected[:20]:
    print("unexpected:", line)
print(f"did not come back: {', '.join(stayed) or 'nothing'}; unexpected answers: {len(unexpected)}; the server ended with {code}")
sys.exit(1 if stayed or unexpected or code else 0)
