#!/usr/bin/env python3
"""Whether idle and slow connections move the latencies of others: the same load with and without them, in turns.

    connections.py [CONCLAVE] [--idle 800] [--slow 200] [--rounds 5] [-- options of `conclave serve`]"""
import argparse
import socket
import statistics
import sys
import threading
import time

from program import Server

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("program", nargs="?", default="build/conclave")
parser.add_argument("--idle", type=int, default=800)
parser.add_argument("--slow", type=int, default=200)
parser.add_argument("--rounds", type=int, default=5)
own = sys.argv[1:sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
options = sys.argv[len(own) + 2:] or ["models/demo-mixtral"]
arguments = parser.parse_args(own)


class Crowd:
    """Connections that send nothing, and ones that send a byte of a header now and then; ended ones are opened again."""

    def __init__(self, port):
        self.port, self.over, self.reopened = port, False, 0
        self.sockets = [self.open() for _ in range(arguments.idle + arguments.slow)]
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def open(self):
        return socket.create_connection(("127.0.0.1", self.port))

    def run(self):
        while not self.over:
            for i in range(arguments.slow):
                time.sleep(3 / arguments.slow)
                try:
                    self.sockets[i].send(b"G")
                except OSError:
                    self.reopened += 1
                    self.sockets[i] = self.open()
                if self.over:
                    return

    def end(self):
        self.over = True
        self.thread.join()
        for s in self.sockets:
            s.close()


server = Server(arguments.program, [*options, "--max-connections-per-address", "5000"])
LOAD = ("--concurrency", 4, "--requests", 200, "--new-tokens", 16, "--prompt-tokens", 32)
server.bench(*LOAD)
figures = {False: [], True: []}
for round_number in range(2 * arguments.rounds):
    crowded = round_number % 2 == 1
    crowd = Crowd(server.port) if crowded else None
    figures[crowded].append(server.bench(*LOAD, "--seed", round_number // 2))
    if crowd:
        crowd.end()
code = server.stop()
print("| connections besides | TTFT p99 ms | ITL p99 ms | whole p99 ms | errors |\n|---|---|---|---|---|")
for crowded, rows in figures.items():
    middle = lambda key: statistics.median(r[key]["p99"] for r in rows)  # noqa: E731
    name = f"{arguments.idle} idle, {arguments.slow} slow" if crowded else "none"
    print(f"| {name} | {middle('ttft_ms'):.2f} | {middle('itl_ms'):.2f} | {middle('e2e_ms'):.2f} | {sum(len(r['errors']) for r in rows)} |")
sys.exit(code)
