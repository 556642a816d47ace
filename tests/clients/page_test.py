"""The chat page in headless Chromium: page_test.py PROGRAM MODEL [--screenshots FOLDER] [NAME...]

Most scenarios run against a stand-in that hands out the program's own page and answers, but scripts the streams, so that their pace and
their text are known; those of the experts run against the program itself. A scenario fails by an exception, and also when the browser
reported an error, a breach of the page's policy, or a request to another origin."""
import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
import urllib.request

from page_harness import Program, Script, Session, stand_in, wait_until

QUESTION = "Tom has the red ball. Anna is in the kitchen. Ben has the blue book. Lucy has four of the black coins. Who has the red ball?"
SCENARIOS = []
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

HOSTILE = """<img src=x onerror=alert(1)> <script>alert(1)</script> <svg onload=alert(1)><animate onbegin=alert(1)></svg>
<iframe srcdoc="<script>parent.alert(1)</script>"></iframe><style>*{display:none}</style><a href="javascript:alert(1)">x</a>

[click](javascript:alert(1)) [click](JaVaScRiPt:alert(1)) [click](java&#115;cript:alert(1)) [click]( javascript:alert(1)) [c](\tjavascript:alert(1))
[data](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==) [vb](vbscript:msgbox(1)) [file](file:///etc/passwd) [blob](blob:x) [rel](/stopService)
![image](https://evil.example/x.png) ![](javascript:alert(1)) <javascript:alert(1)> <https://evil.example/"onmouseover="alert(1)>
**[nested *[deep](javascript:alert(1))*](javascript:alert(1))** `<img src=x onerror=alert(1)>` ~~<b onclick=alert(1)>~~ [a"onmouseover="alert(1)](https://ok.example)

- <details open ontoggle=alert(1)>
  > 1. <math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>
     | <img src=x onerror=alert(1)> | [x](javascript:alert(1)) |
     |---|---|
     | <svg/onload=alert(1)> | **<x>** |

# <base href=https://evil.example/> <meta http-equiv=refresh content="0;url=https://evil.example">

```html"onload="alert(1)
<script>alert(1)</script>
```
~~~<img/src/onerror=alert(1)>
</code></pre><script>alert(1)</script> an unclosed fence
"""

MARKDOWN = """# Title

A paragraph with **bold**, *slanted*, ~~struck~~, `code` and [a link](https://example.org/a?b=c).

1. first
2. second
   - inner
     ```python
     def f(x): return x < 1
     ```
3. third

> quoted **text**

| name | size |
|------|-----:|
| a    | 1    |

---
Last line https://example.org/end.
"""


def scenario(function):
    SCENARIOS.append(function)
    return function


@scenario
def sends_and_streams(t):
    t.script.say("one two three four five six", pause=0.15)
    t.ask("count", wait=False)
    t.until("document.querySelector('article.assistant .body').innerText.startsWith('one two')")
    assert "six" not in t.texts()[0]
    assert t.page.locator("#stop").is_visible() and not t.page.locator("#send").is_visible()
    t.until("/\\d+ tokens · [\\d.]+ tokens\\/s · first token \\d+ ms/.test(document.getElementById('speed').textContent)")
    t.done()
    assert t.texts() == ["one two three four five six"]
    assert t.texts("user") == ["count"]
    assert re.search(r"6 tokens · [\d.]+ tokens/s · first token \d+ ms", t.page.inner_text("article.assistant footer"))
    assert t.page.evaluate("document.activeElement.id") == "prompt"
    request = t.script.requests[0]
    assert request["messages"] == [{"role": "user", "content": "count"}] and request["stream"]
    assert "temperature" not in request and "seed" not in request, "empty settings are left to the server"


@scenario
def stops_and_keeps_what_came(t):
    t.script.say("word " * 200, pause=0.05)
    for how in ("click", "Escape"):
        t.ask("talk", wait=False)
        t.until("document.querySelector('article.assistant:last-child .body').innerText.length > 10")
        t.page.click("#stop") if how == "click" else t.page.keyboard.press("Escape")
        t.done()
        assert "stopped" in t.page.inner_text("article.assistant:last-child footer")
        wait_until(lambda: t.script.requests[-1].get("left"), "the stream was not ended")
        assert t.page.evaluate("document.activeElement.id") == "prompt"
    assert 0 < len(t.texts()[0]) < 500
    assert t.script.requests[-1]["messages"][1]["content"].startswith("word word")


@scenario
def regenerates(t):
    t.ask("hi")
    t.script.say("Something else.")
    t.page.click("[aria-label='Regenerate']")
    t.until("document.querySelector('article.assistant .body').innerText.includes('Something else.')")
    t.done()
    assert t.texts() == ["Something else."] and t.texts("user") == ["hi"]
    assert [m["content"] for m in t.script.requests[0]["messages"]] == ["hi"]
    assert "2 of 2" in t.page.inner_text("article.assistant footer")
    t.page.click("[aria-label='Earlier answer']")
    assert t.texts() == ["Hello there."] and "1 of 2" in t.page.inner_text("article.assistant footer")
    assert t.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Later answer"
    t.script.say("", fail="the queue is full")
    t.page.click("[aria-label='Regenerate']")
    t.until("document.getElementById('status').textContent === 'the queue is full'")
    assert t.texts() == ["Something else."], "an answer that did not come replaces none"
    t.page.click("[aria-label='Earlier answer']")
    t.page.reload()
    t.page.wait_for_selector("article.assistant footer >> text=1 of 2")
    t.script.say("Further.")
    t.ask("go on")
    assert [m["content"] for m in t.script.requests[0]["messages"]] == ["hi", "Hello there.", "go on"]


@scenario
def edits_and_asks_again(t):
    t.ask("first")
    t.ask("second")
    t.page.locator("[aria-label='Edit and ask again']").first.click()
    field = t.page.locator("[aria-label='Edit message']")
    assert field.input_value() == "first" and field.evaluate("n => n === document.activeElement")
    field.press("Escape")
    assert t.texts("user") == ["first", "second"], "nothing is lost when the edit is given up"
    t.page.locator("[aria-label='Edit and ask again']").first.click()
    field.fill("better")
    t.script.say("New answer.")
    field.press("Enter")
    t.until("document.querySelectorAll('article').length === 2")
    t.done()
    assert t.texts("user") == ["better"] and t.texts() == ["New answer."]
    assert [m["content"] for m in t.script.requests[0]["messages"]] == ["better"]


@scenario
def keeps_several_conversations(t):
    t.ask("about apples")
    t.page.click("#new")
    t.script.say("Slow answer here.", pause=0.3)
    t.ask("about pears", wait=False)
    t.until("document.querySelector('article.assistant .body').innerText.length > 3")
    t.page.get_by_role("button", name="about apples", exact=True).click()
    assert t.texts("user") == ["about apples"] and t.page.locator("#send").is_visible()
    t.page.wait_for_selector("#chats li:not(.running) >> text=about pears")
    t.until("!document.querySelector('#chats .running')")
    t.page.get_by_role("button", name="about pears", exact=True).click()
    assert t.texts() == ["Slow answer here."], "an answer goes on while another conversation is read"
    t.page.reload()
    t.page.wait_for_selector("#chats li >> nth=1")
    assert t.texts("user") == ["about pears"] and t.texts() == ["Slow answer here."]
    other = t.open()
    assert other.locator("#chats li").count() == 2
    t.page.get_by_role("button", name="Delete about pears").click()
    assert t.page.locator("#chats li").count() == 1
    t.until("document.querySelectorAll('#chats li').length === 1", other)
    t.page.get_by_role("button", name="Undo").click()
    assert t.page.locator("#chats li").count() == 2 and t.texts() == ["Slow answer here."]
    with t.page.expect_download() as download:
        t.page.click("#show-settings")
        t.page.click("#export")
    exported = download.value.path()
    t.page.set_input_files("#file", exported)
    t.until("document.querySelectorAll('#chats li').length === 4")
    t.until("document.getElementById('status').textContent.includes('2 conversations')")


@scenario
def settings_reach_the_request_and_stay(t):
    t.page.click("#show-settings")
    t.shot("settings")
    assert t.page.get_attribute("#temperature", "placeholder"), "the server's own values are shown"
    for name, value in {"temperature": "0.5", "top_p": "0.9", "top_k": "20", "min_p": "0.05", "max_tokens": "77", "seed": "7", "repetition_penalty": "1.1"}.items():
        t.page.fill(f"#{name}", value)
    t.page.fill("#system", "Be brief.")
    t.page.uncheck("#record")
    t.page.click("#done")
    t.ask("hi")
    r = t.script.requests[0]
    assert (r["temperature"], r["top_p"], r["top_k"], r["min_p"], r["max_tokens"], r["seed"]) == (0.5, 0.9, 20, 0.05, 77, 7)
    assert r["messages"][0] == {"role": "system", "content": "Be brief."} and "return_routed_experts" not in r
    t.page.reload()
    t.page.click("#show-settings")
    assert t.page.input_value("#temperature") == "0.5" and not t.page.is_checked("#record")
    t.page.fill("#top_p", "7")
    t.page.press("#top_p", "Tab")
    assert t.page.evaluate("JSON.parse(localStorage['conclave.settings']).top_p") == "0.9", "values out of range are not taken"
    t.page.click("#reset")
    assert t.page.input_value("#temperature") == "" and t.page.is_checked("#record")


@scenario
def shows_errors_and_goes_on(t):
    t.script.say("half an", fail="the logits of row 3 are not finite")
    t.ask("hi", wait=False)
    t.until("document.getElementById('status').textContent.includes('not finite')")
    assert t.texts() == ["half an"] and "broken off" in t.page.inner_text("article.assistant footer")
    t.script.say("Fine.")
    t.ask("again")
    assert t.texts()[1] == "Fine." and t.page.inner_text("#status") == ""
    t.script.say("", fail="the queue is full")
    t.ask("once more", wait=False)
    t.until("document.getElementById('status').textContent === 'the queue is full'")
    assert len(t.texts()) == 2 and len(t.texts("user")) == 3
    t.script.say("Here it is.")
    t.page.click("[aria-label='Ask again']")
    t.until("document.querySelector('article.assistant:last-child .body')?.innerText.includes('Here it is.')")
    assert t.page.inner_text("#status") == ""
    t.done()
    t.script.say("cut short by a reload " * 20, pause=0.1)
    t.ask("last", wait=False)
    t.until("document.querySelector('article.assistant:last-child .body').innerText.length > 8")
    t.page.reload()
    t.page.wait_for_selector("article.assistant footer >> text=stopped")
    assert t.texts()[-1].startswith("cut short")


@scenario
def markdown_becomes_nodes(t):
    t.script.say(MARKDOWN, size=3)
    t.ask("write")
    body = t.page.locator("article.assistant .body")
    for selector, text in {"h3": "Title", "strong >> nth=0": "bold", "em": "slanted", "del": "struck", "p code": "code", "a >> nth=0": "a link",
                           "blockquote p": "quoted text", "td >> nth=1": "1", "th >> nth=0": "name", "li li": None, "ol > li >> nth=2": "third"}.items():
        found = body.locator(selector).first.inner_text()
        assert text is None or found.strip() == text, (selector, found)
    assert body.locator("pre code").inner_text() == "def f(x): return x < 1"
    assert body.locator("pre").get_attribute("data-language") == "python"
    assert body.locator("hr").count() == 1
    assert body.locator("a").nth(1).get_attribute("href") == "https://example.org/end"
    for link in body.locator("a").all():
        assert link.get_attribute("rel") == "noopener noreferrer nofollow" and link.get_attribute("target") == "_blank"
    t.shot("markdown")
    streamed = body.inner_html()
    t.page.reload()
    t.page.wait_for_selector("article.assistant pre")
    assert body.inner_html() == streamed, "streamed in pieces or read whole, the nodes are the same"


@scenario
def hostile_text_stays_text(t):
    for size in (1, 11, None):
        t.script.say(HOSTILE, size=size)
        t.ask(HOSTILE)
    t.page.wait_for_timeout(300)
    body = t.page.locator("article.assistant .body").first
    assert "<img src=x onerror=alert(1)>" in body.inner_text() and "an unclosed fence" in body.locator("pre").last.inner_text()
    for link in t.page.locator("#log a").all():
        assert re.match(r"https://(ok|evil)\.example", link.get_attribute("href")), link.get_attribute("href")
        link.hover()
    t.page.click("#show-experts")
    assert t.page.locator("[role=option]").count() > 20
    t.page.reload()
    t.page.wait_for_selector("article.assistant pre")
    assert t.page.locator("#chats li").count() == 1


@scenario
def hostile_storage_is_only_text(t):
    chat = {"id": "x", "title": "<img src=x onerror=alert(1)>", "updated": 5, "messages": [
        {"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE, "note": "<b>n</b>", "figures": {"tokens": "<i>", "first_ms": None},
         "routing": {"layers": [{"layer": "<b>", "num_experts": 4, "top_k": 2}], "pieces": [["<img onerror=alert(1)>", 1]], "experts": "AAAB"}}]}
    t.page.evaluate("(c) => { localStorage['conclave.chat.x'] = JSON.stringify(c); localStorage['conclave.chat.y'] = '{broken'; "
                    "localStorage['conclave.settings'] = '[1]'; localStorage['conclave.chat.z'] = JSON.stringify({id: 1, messages: [null]}); }", chat)
    t.page.reload()
    t.page.wait_for_selector("article.assistant pre")
    assert t.page.locator("#chats li").count() == 1
    t.page.click("#show-experts")
    t.page.locator("[role=option]").first.click()


@scenario
def no_text_freezes_the_page(t):
    n = 20000
    for text in ("[" * n, "*a " * n, "`a" * n, "> " * 3000 + "x", "- " * 3000 + "x", "**a" * n, "_a" * n, "<" * n, "![" * n, "|" * n + "\n|-|-|",
                 "#" + " " * n + "x", "```" + " " * n + "`", "1. a\n" * 3000, "\\" * n, "https://" * 3000, "a\n" * n, " " * n + "-"):
        t.page.click("#new")
        t.script.say(text, size=max(1, len(text) // 4))
        began = time.time()
        t.ask("go", wait=False)
        t.page.wait_for_selector("article.assistant:last-child footer button", timeout=30000)
        took = t.page.evaluate("() => new Promise((done) => { const begin = performance.now(); requestAnimationFrame(() => done(performance.now() - begin)); })")
        assert time.time() - began < 15 and took < 3000, (text[:10], time.time() - began, took)


@scenario
def keyboard_and_screen_reader(t):
    t.script.say("An answer of several words in one go.")
    t.page.evaluate("""() => { window.spoken = []; for (const node of document.querySelectorAll("[role=status], [role=alert], [aria-live], output"))
      new MutationObserver(() => window.spoken.push(node.textContent)).observe(node, { childList: true, characterData: true, subtree: true }); }""")
    t.ask("hi")
    spoken = [s for s in t.page.evaluate("window.spoken") if s]
    assert spoken == ["The answer begins.", "Answer: An answer of several words in one go."], "said once, not piece by piece: %s" % spoken
    t.page.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(40):
        t.page.keyboard.press("Tab")
        seen.append(t.page.evaluate("(() => { const n = document.activeElement; return n.getAttribute('aria-label') || n.innerText || n.id; })()"))
        box = t.page.evaluate("(() => { const n = document.activeElement, s = getComputedStyle(n); return n === document.body || s.outlineStyle !== 'none' || n.id === 'prompt'; })()")
        assert box, f"no visible focus on {seen[-1]}"
    for name in ("Skip to the message field", "New conversation", "hi", "Delete hi", "Experts", "Settings", "Edit and ask again", "Regenerate", "Show its experts"):
        assert any(name == s.strip() for s in seen), (name, seen)
    for node in t.page.locator("button, input, textarea, select, a").all():
        assert node.evaluate("n => Boolean(n.getAttribute('aria-label') || n.innerText?.trim() || n.labels?.length || n.hidden || n.textContent.trim())"), node.evaluate("n => n.outerHTML")
    t.page.focus("#show-settings")
    t.page.keyboard.press("Enter")
    assert t.page.evaluate("document.getElementById('settings').open && document.getElementById('settings').contains(document.activeElement)")
    t.page.keyboard.press("Escape")
    assert t.page.evaluate("document.activeElement.id") == "show-settings"


@scenario
def has_no_accessibility_violations(t):
    from axe_playwright_python.sync_playwright import Axe
    t.script.say(MARKDOWN)
    t.ask("write")
    t.script.say("Some words.")
    t.ask("more")

    def check(place):
        result = Axe().run(t.page)
        assert result.violations_count == 0, place + "\n" + result.generate_report()[:3000]

    for scheme in ("light", "dark"):
        t.page.emulate_media(color_scheme=scheme)
        check(scheme)
        t.page.click("#show-experts")
        t.page.locator("[role=option]").nth(1).click()
        check(scheme + " experts")
        t.page.click("#tab-load")
        t.page.wait_for_selector("#layer option", state="attached")
        check(scheme + " load")
        t.page.click("#hide-experts")
        t.page.click("#show-settings")
        check(scheme + " settings")
        t.page.click("#done")
    t.page.set_viewport_size({"width": 360, "height": 700})
    check("phone")


@scenario
def light_and_dark(t):
    back = lambda: t.page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = lambda: sum(map(int, re.findall(r"\d+", back())[:3])) > 380
    t.page.emulate_media(color_scheme="light")
    assert bright()
    t.page.emulate_media(color_scheme="dark")
    assert not bright()
    t.shot("dark-empty")
    t.page.click("#theme")
    assert bright() and "light" in t.page.inner_text("#theme"), "the choice wins over the system's"
    t.page.reload()
    assert bright()
    t.page.click("#theme")
    t.page.emulate_media(color_scheme="light")
    assert not bright()


@scenario
def fits_a_phone(t):
    t.script.say(MARKDOWN + "\n```\n" + "wide " * 60 + "\n```\n" + "x" * 400 + "\n\n|" + "column|" * 20 + "\n|" + "-|" * 20 + "\n|" + "value|" * 20)
    for width in (320, 360, 390, 768):
        t.page.set_viewport_size({"width": width, "height": 700})
        if width == 320:
            t.ask("write " + "y" * 300)
        flat = lambda: t.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth && document.getElementById('log').scrollWidth <= document.getElementById('log').clientWidth")
        assert flat(), f"scrolls sideways at {width}"
        t.page.click("#show-experts")
        t.page.locator("[role=option]").nth(3).click()
        assert flat(), f"scrolls sideways at {width} with experts"
        assert t.page.locator("#prompt").is_visible() and t.page.locator("#token-map").is_visible()
        t.shot(f"phone-{width}-experts")
        t.page.click("#hide-experts")
        if width < 768:
            t.page.click("#menu")
            t.until("document.getElementById('side').getBoundingClientRect().left === 0")
            assert t.page.evaluate("document.getElementById('side').contains(document.activeElement)")
            t.page.keyboard.press("Escape")
            t.until("getComputedStyle(document.getElementById('side')).visibility === 'hidden'")
            small = [b.evaluate("n => n.outerHTML.slice(0, 80)") for b in t.page.locator("main button:visible").all() if min(b.bounding_box()["width"], b.bounding_box()["height"]) < 32]
            assert not small, small
    t.shot("phone")


@scenario
def shows_experts_while_they_compute(t):
    t.script.say("one two three four five six seven eight", pause=0.2)
    t.page.click("#show-experts")
    t.ask("count", wait=False)
    t.until("document.getElementById('token-text').textContent.includes('“three”')")
    t.until("document.getElementById('token-text').textContent.includes('“five”')")
    t.page.locator("[role=option]").nth(1).click()
    t.page.wait_for_timeout(500)
    assert "“two”" in t.page.inner_text("#token-text"), "a choice by hand stays"
    t.done()
    assert "“two”" in t.page.inner_text("#token-text")
    assert t.page.locator("[role=option][aria-selected=true]").inner_text().strip() == "two"


def painted(page, canvas):
    """Number of cells in the colour of the mark."""
    return page.evaluate("""(id) => { const c = document.getElementById(id), copy = new OffscreenCanvas(c.width, c.height).getContext("2d", { willReadFrequently: true });
      copy.drawImage(c, 0, 0);
      const d = copy.getImageData(0, 0, c.width, c.height).data;
      const mark = getComputedStyle(document.documentElement).getPropertyValue("--mark").trim(), rgb = [1, 3, 5].map((i) => parseInt(mark.slice(i, i + 2), 16));
      let n = 0; for (let i = 0; i < d.length; i += 4) n += rgb.every((v, k) => Math.abs(v - d[i + k]) < 3); return n; }""", canvas)


@scenario
def shows_the_experts_of_a_token(t, program=True):
    t.page.click("#show-settings")
    t.page.fill("#temperature", "0")
    t.page.click("#done")
    t.ask(QUESTION)
    assert t.texts() == ["Tom has the red ball."]
    body = json.dumps({"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "return_routed_experts": True}).encode()
    whole = json.load(urllib.request.urlopen(urllib.request.Request(t.url + "/v1/chat/completions", body, {"Content-Type": "application/json"})))
    rows = whole["choices"][0]["routed_experts"]
    t.page.click("[aria-label='Show its experts']")
    options = t.page.locator("[role=option]")
    assert options.count() == len(rows) and "".join(options.all_text_contents()).strip() == "Tom has the red ball."

    def shown(index):
        assert f"Token {index + 1} of {len(rows)}, " in t.page.inner_text("#token-text")
        t.page.evaluate("document.getElementById('token-table').open = true")
        cells = t.page.locator("#token-table tbody tr").all_inner_texts()
        assert cells == [f"{layer}\t{', '.join(map(str, experts))}" for layer, experts in enumerate(rows[index])], (cells, rows[index])
        return painted(t.page, "token-map")

    options.nth(2).click()
    assert shown(2) > 8 * 50
    t.shot("experts")
    for key, index in (("ArrowRight", 3), ("ArrowRight", 4), ("ArrowLeft", 3), ("Home", 0), ("End", len(rows) - 1)):
        t.page.keyboard.press(key)
        assert shown(index) > 8 * 50
        assert options.nth(index).evaluate("n => n === document.activeElement && n.getAttribute('aria-selected') === 'true' && n.tabIndex === 0")
    assert t.page.locator("[role=option][tabindex='0']").count() == 1, "one stop for the Tab key"
    box = t.page.locator("#token-map").bounding_box()
    t.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    assert re.match(r"Layer \d+, expert \d+: \d+ of \d+ tokens", t.page.inner_text("#token-hover"))
    t.page.keyboard.press("Escape")
    assert not t.page.locator("#experts").is_visible() and t.page.locator("article.assistant p").inner_text() == "Tom has the red ball."
    t.page.reload()
    t.page.click("[aria-label='Show its experts']")
    options.nth(2).click()
    shown(2)


@scenario
def shows_the_load_over_time(t, program=True):
    for _ in range(3):
        t.ask(QUESTION)
    t.page.click("#show-experts")
    t.page.focus("#tab-token")
    t.page.keyboard.press("ArrowRight")
    assert t.page.get_attribute("#tab-load", "aria-selected") == "true"
    t.until("/busiest of 8/.test(document.getElementById('load-text').textContent)")
    assert t.page.locator("#layer option").count() == 4
    assert re.match(r"imbalance \d\.\d\d", t.page.inner_text("#ratio"))
    t.page.evaluate("document.getElementById('load-table').open = true")
    tokens = lambda: t.page.evaluate("[...document.querySelectorAll('#load-table tbody tr')].reduce((sum, row) => sum + Number(row.cells[1].textContent), 0)")
    before = tokens()
    assert before > 0 and before % 2 == 0, "two experts a token"
    t.shot("load")
    t.ask(QUESTION)
    wait_until(lambda: tokens() > before, "the figures do not move")
    t.page.select_option("#layer", "3")
    load = json.load(urllib.request.urlopen(t.url + "/expert_load/3"))
    assert sum(load["recent"]) == sum(sum(span["tokens"]) for span in load["history"])
    wait_until(lambda: tokens() == sum(load["recent"]), "another layer, other figures")
    t.page.click("#hide-experts")
    asked = []
    t.page.on("request", lambda r: asked.append(r.url))
    t.page.wait_for_timeout(2500)
    assert not asked, "nobody asks while nobody looks"


@scenario
def asks_for_a_key(t):
    with tempfile.TemporaryDirectory() as folder:
        keys = os.path.join(folder, "keys")
        with open(os.open(keys, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write(f"page {hashlib.sha256(b'secret').hexdigest()}\n")
        program = Program(*t.arguments, "--key-file", keys)
        try:
            page = t.context.browser.new_page()
            page.goto(program.url)
            t.until("document.getElementById('model').textContent === 'needs an API key'", page)
            page.click("#show-settings")
            page.fill("#key", "secret")
            page.click("#done")
            t.until("document.getElementById('model').textContent === 'demo-mixtral'", page)
            page.fill("#prompt", "hi")
            page.press("#prompt", "Enter")
            page.wait_for_selector("article.assistant .figures")
            page.click("#show-experts")
            page.click("#tab-load")
            t.until("document.getElementById('load-text').textContent.includes('busiest')", page)
            assert "secret" not in page.evaluate("JSON.stringify(localStorage)"), "the key is not kept"
            page.close()
        finally:
            assert program.stop() == 0


@scenario
def speaks_german_and_chinese(t):
    words = urllib.request.urlopen(t.url + "/words.js").read().decode()
    keys = set(re.findall(r'^  "((?:[^"\\]|\\.)+)": \[', words, re.M))
    assert len(keys) > 80
    for path in ("page", "message", "experts", "stream", "store"):
        for used in re.findall(r'\bt\("((?:[^"\\]|\\.)+)"', urllib.request.urlopen(f"{t.url}/{path}.js").read().decode()):
            assert used in keys, f"{used} is not translated"
    for language, send, title in (("de", "Senden", "Neue Unterhaltung"), ("zh", "发送", "新对话")):
        t.page.click("#show-settings")
        with t.page.expect_navigation():
            t.page.select_option("#language", language)
        t.until(f"document.documentElement.lang === '{language}' && document.getElementById('title').textContent === '{title}'")
        t.until("document.getElementById('model').textContent === 'demo-mixtral'")
        assert t.page.get_attribute("#send", "aria-label") == send
        left = t.page.evaluate("""(keys) => { const same = ["Top p", "Top k", "Min p", "Token"], found = [];
          for (const n of document.querySelectorAll("*")) for (const text of [n.getAttribute("aria-label"), n.getAttribute("placeholder"), n.getAttribute("title"),
            ...[...n.childNodes].filter((c) => c.nodeType === 3).map((c) => c.data.trim())]) if (keys.includes(text) && !same.includes(text)) found.push(text);
          return found; }""", sorted(keys))
        assert not left, left
        t.page.set_viewport_size({"width": 320, "height": 700})
        assert t.page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        t.page.click("#show-settings")
        assert t.page.evaluate("document.getElementById('settings').scrollWidth <= document.getElementById('settings').clientWidth")
        t.shot("settings-" + language)
        t.page.click("#done")
        t.page.set_viewport_size({"width": 1280, "height": 800})
    t.ask("hi")
    assert "词元" in t.page.inner_text("article.assistant footer")
    t.page.click("#new")


@scenario
def page_is_small_and_strict(t, program=True):
    size, files = 0, ["/", "/page.css", "/page.js", "/experts.js", "/markdown.js", "/message.js", "/routing.js", "/store.js", "/stream.js", "/words.js", "/favicon.svg"]
    for path in files:
        answer = urllib.request.urlopen(t.url + path)
        policy = answer.headers["Content-Security-Policy"]
        assert "unsafe" not in policy and "default-src 'none'" in policy and "require-trusted-types-for 'script'" in policy, policy
        text = answer.read().decode()
        size += len(text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), path
        assert path == "/favicon.svg" or not re.search(r"""(?:src|href|url\(|from|import)\s*[=(]?\s*["'](?:https?:)?//""", text), path
    assert size < 300_000, size
    loaded = t.page.evaluate("performance.getEntriesByType('resource').map((r) => new URL(r.name).pathname)")
    assert set(files) - {"/"} <= set(loaded)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--screenshots")
    options = parser.parse_intermixed_args()
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not chromium:
        sys.exit("page_test: no Chromium was found; install it with: apt-get install chromium")
    from playwright.sync_api import sync_playwright
    if options.screenshots:
        os.makedirs(options.screenshots, exist_ok=True)
    program, script, failed = Program(options.program, options.model), Script(), []
    server = stand_in(program.url, script)
    stand_in_url = f"http://127.0.0.1:{server.server_address[1]}"
    chosen = [s for s in SCENARIOS if not options.names or s.__name__ in options.names]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for run in chosen:
            script.__init__()
            session = Session(browser, program.url if run.__defaults__ else stand_in_url, script, options.screenshots)
            session.arguments = options.program, options.model
            try:
                run(session)
                session.finish()
            except Exception:
                failed.append(run.__name__)
                print(f"FAILED {run.__name__}\n{traceback.format_exc()}{session.problems[:5]}", flush=True)
                session.context.close()
            else:
                print(f"ok {run.__name__}", flush=True)
        browser.close()
    server.shutdown()
    if program.stop() != 0:
        failed.append("the program's exit")
    print(f"{len(chosen) - len(failed)} of {len(chosen)} scenarios passed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
