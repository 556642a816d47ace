"""A proxy that writes every request and its answer as a JSON line: how tests/data/clients/recorded.jsonl was made (CONCLAVE_RECORD=FILE)."""
import http.client
import http.server
import json
import threading

KEPT = {"content-type", "accept", "user-agent", "authorization"}


def start(url, file):
    host, port = url.removeprefix("http://").split(":")
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream = http.client.HTTPConnection(host, int(port))
            headers = {k: v for k, v in self.headers.items() if k.lower() not in {"host", "connection", "accept-encoding"}}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
            with lock, open(file, "a", encoding="utf-8") as out:
                json.dump({"method": self.command, "path": self.path,
                           "headers": {k: v for k, v in self.headers.items() if k.lower() in KEPT},
                           "body": body.decode(), "status": answer.status, "content_type": answer.getheader("Content-Type")},
                          out, ensure_ascii=False)
                out.write("\n")
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"transfer-encoding", "content-length", "connection"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = pass_on

        def log_message(self, *_):
            pass

    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{proxy.server_port}"
