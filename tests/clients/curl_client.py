#!/usr/bin/env python3
"""curl against `conclave serve`: the framing of server-sent events byte by byte, statuses and headers.

    curl_client.py CONCLAVE MODEL        exit 1 when a scenario fails"""
import json
import subprocess
import sys

from server import Server, run_scenarios

SCENARIOS = []


def scenario(function):
    SCENARIOS.append(function)
    return function


def curl(url, *options, body=None):
    """Header lines and bytes of the answer, as curl saw them."""
    command = ["curl", "-sS", "-i", "--max-time", "60", *options, url]
    if body is not None:
        command += ["-H", "Content-Type: application/json", "--data-binary", "@-"]
    out = subprocess.run(command, input=None if body is None else json.dumps(body).encode(), capture_output=True, check=True).stdout
    head, _, rest = out.partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), rest


def header(lines, name):
    return next((line.split(":", 1)[1].strip() for line in lines if line.lower().startswith(name.lower() + ":")), None)


def events(data):
    """Payloads; anything that is not a whole event or comment fails."""
    assert data.endswith(b"\n\n"), data[-80:]
    blocks = data.decode()[:-2].split("\n\n")
    for block in blocks:
        assert block.startswith(("data: ", ": ")) and "\n" not in block and "\r" not in block, block
    return [b[6:] for b in blocks if b.startswith("data: ")]


REQUESTS = {
    "/v1/completions": {"prompt": "Tom has the red", "max_tokens": 6, "temperature": 0, "stream": True},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Who has the red ball?"}], "max_tokens": 6, "stream": True},
    "/generate_stream": {"inputs": "Tom has the red", "parameters": {"max_new_tokens": 6}},
    "/infer": {"inputs": "Tom has the red", "stream": True, "parameters": {"max_new_tokens": 6}},
}


@scenario
def frames_every_stream(url):
    for path, body in REQUESTS.items():
        lines, data = curl(url + path, "-N", body=body)
        assert lines[0] == "HTTP/1.1 200 OK", lines[0]
        assert header(lines, "content-type").startswith("text/event-stream"), path
        assert header(lines, "transfer-encoding") == "chunked" and header(lines, "x-request-id")
        found = events(data)
        if path.startswith("/v1"):
            assert found.pop() == "[DONE]"
        assert len(found) >= 2 and all(isinstance(json.loads(e), dict) for e in found), path


@scenario
def old_clients_get_no_chunks(url):
    lines, data = curl(url + "/v1/completions", "-N", "--http1.0", body=REQUESTS["/v1/completions"])
    assert header(lines, "transfer-encoding") is None and header(lines, "connection") == "close"
    assert events(data)[-1] == "[DONE]"


@scenario
def waits_for_continue(url):
    lines, data = curl(url + "/tokenize", "-H", "Expect: 100-continue", body={"prompt": "hello"})
    assert "100" in lines[0] and b"HTTP/1.1 200" in data, lines


@scenario
def errors_are_json(url):
    for path, body, status in [("/v1/completions", {"prompt": 5}, 400), ("/generate", {"inputs": 5}, 422), ("/none", {}, 404)]:
        lines, data = curl(url + path, body=body)
        assert lines[0].split()[1] == str(status) and "error" in json.loads(data), (path, lines[0])


@scenario
def keeps_the_connection(url):
    out = subprocess.run(["curl", "-sS", "-v", url + "/version", url + "/health"], capture_output=True, text=True, check=True)
    assert "Re-using existing connection" in out.stderr, out.stderr


@scenario
def head_and_methods(url):
    lines, data = curl(url + "/health", "-I")
    assert lines[0] == "HTTP/1.1 200 OK" and data == b""
    assert curl(url + "/v1/models", "-X", "DELETE")[0][0].split()[1] == "405"


def main():
    program, model = sys.argv[1:3]
    server = Server(program, model)
    version = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    return run_scenarios(f"curl {version}", SCENARIOS, server, server.url)


if __name__ == "__main__":
    sys.exit(main())
