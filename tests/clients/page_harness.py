"""What the scenarios of page_test.py stand on: the program, a stand-in with scripted streams, and browser sessions that notice what a page
must not do."""
import http.server
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request

TAGS = ("A ARTICLE BLOCKQUOTE BR BUTTON CODE DEL DIV EM FOOTER H2 H3 H4 H5 H6 HR IMG LI OL P PRE SPAN STRONG TABLE TBODY TD TEXTAREA TH THEAD "
        "TR UL SECTION svg use").split()

# Runs before the page: remembers breaches of the policy, scripts that ran, and nodes of the conversation that nobody may make.
WATCH = """
window.breaches = []; window.ran = 0; window.alert = () => { ++window.ran; };
document.addEventListener("securitypolicyviolation", (e) => window.breaches.push(`${e.violatedDirective} ${e.blockedURI}`));
const tags = new Set(%s);
function inspect(node) {
  if (node.nodeType !== 1) return;
  if (!tags.has(node.nodeName)) window.breaches.push(`element ${node.nodeName}`);
  if (node.nodeName === "IMG" && !node.closest(".welcome")) window.breaches.push("an image in a message");
  for (const { name, value } of node.attributes) {
    if (name.startsWith("on") || name === "srcdoc" || name === "style") window.breaches.push(`attribute ${name}`);
    if (name === "href" && !/^(https?:|mailto:|#i-)/.test(value)) window.breaches.push(`address ${value}`);
  }
  for (const child of node.children) inspect(child);
}
document.addEventListener("DOMContentLoaded", () => new MutationObserver((changes) => {
  for (const change of changes) { change.addedNodes.forEach(inspect); if (change.type === "attributes") inspect(change.target); }
}).observe(document.getElementById("log"), { childList: true, subtree: true, attributes: true, attributeFilter: ["href", "src", "style"] }));
""" % json.dumps(TAGS)


class Program:
    def __init__(self, program, model, *options):
        self.process = subprocess.Popen([program, "serve", model, "--port", "0", "--precision", "exact", "--max-context", "512",
                                         "--expert-sampling", "1", *options], stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search(r"listening on (http://\S+)", line):
                self.url = found.group(1)
            if "serving" in line:
                break
        else:
            raise RuntimeError("the program did not start")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


class Script:
    """What the stand-in answers next: pieces of text, seconds between them, and whether the stream breaks at the end."""

    def __init__(self):
        self.say("Hello there.")

    def say(self, text, pause=0.0, size=None, fail=None):
        self.pieces = [text[i:i + size] for i in range(0, len(text), size)] if size else re.findall(r"\s*\S+|\s+$", text)
        self.pause, self.fail, self.requests = pause, fail, []


def stand_in(url, script):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            try:
                answer = urllib.request.urlopen(url + self.path)
            except urllib.error.HTTPError as e:
                answer = e
            body = answer.read()
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy"):
                if answer.headers[name]:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.requests.append(request)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            rows = lambda n: [[[n % 8, (n + 3) % 8]] * 4] if request.get("return_routed_experts") else []
            try:
                for i, piece in enumerate(script.pieces):
                    self.event({"choices": [{"index": 0, "delta": {"content": piece}, "token_ids": [i], "routed_experts": rows(i - 1) if i else []}]})
                    time.sleep(script.pause)
                if script.fail:
                    self.event({"error": {"message": script.fail, "code": "numeric_error"}})
                    return
                self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "routed_experts": rows(len(script.pieces) - 1)}]})
                self.wfile.write(b"data: [DONE]\n\n")
            except OSError:
                script.requests[-1]["left"] = True  # the page stopped the stream

        def event(self, chunk):
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            self.wfile.flush()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class Session:
    """One browser profile on one server."""

    def __init__(self, browser, url, script, shots=None, **options):
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        self.context.add_init_script(WATCH)
        self.url, self.script, self.shots, self.problems = url, script, shots, []
        self.page = self.open()

    def open(self):
        page = self.context.new_page()
        page.set_default_timeout(20000)
        page.on("console", lambda m: m.type in ("error", "warning") and self.problems.append(f"console: {m.text}"))
        page.on("pageerror", lambda e: self.problems.append(f"error: {e}"))
        page.on("dialog", lambda d: (self.problems.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: r.url.startswith((self.url, "blob:" + self.url)) or self.problems.append(f"request to {r.url}"))
        page.goto(self.url)
        self.until("document.getElementById('model').textContent === 'demo-mixtral'", page)
        return page

    def until(self, condition, page=None):
        """Waits for a JavaScript expression; Playwright's own wait evaluates text inside the page, which the page's policy forbids."""
        wait_until(lambda: (page or self.page).evaluate(condition), condition)

    def ask(self, text, wait=True):
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        if wait:
            self.done()

    def done(self):
        self.page.wait_for_selector("#send:not([hidden])")
        self.page.wait_for_selector("article.assistant:last-child footer button")

    def texts(self, role="assistant"):
        return [t.strip() for t in self.page.locator(f"article.{role} .body").all_inner_texts()]

    def shot(self, name):
        if self.shots:
            self.page.screenshot(path=os.path.join(self.shots, name + ".png"))

    def finish(self):
        for page in self.context.pages:
            self.problems += page.evaluate("[...window.breaches, ...(window.ran ? ['a script ran'] : [])]")
        self.context.close()
        assert not self.problems, self.problems[:5]


def wait_until(condition, what):
    deadline = time.time() + 10
    while not condition():
        assert time.time() < deadline, what
        time.sleep(0.02)
