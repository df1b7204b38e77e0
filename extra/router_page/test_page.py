#!/usr/bin/env python3
"""test_page.py - opens pages of `generate --page` in a browser and holds them against --routes.

It trains tiny models, lets them read texts, nasty ones too, and compares what a reader sees with
the rows of the CSV, which another part of generate.c writes. It needs playwright (`sh
extra/python.sh extra/requirements.txt build/python`) and the system's Chromium; BIN is where the
programs are, as "build/". It asserts no times, but prints some.

    test_page.py --picture docs/router.png PAGE.html    takes the README's picture instead"""

import atexit
import collections
import csv
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unicodedata

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [os.path.join(ROOT, "tests"), os.path.join(ROOT, "extra")]
from browser import COLOURS, MISSING, launch, skip, sync_playwright  # noqa: E402
from harness import check, done, same  # noqa: E402

if MISSING:
    skip("test_page", MISSING)

BIN = os.path.abspath(os.environ.get("BIN") or ".")
LICENSE = os.path.join(ROOT, "LICENSE")
TINY = ("--width 16 --layers 3 --heads 2 --context 16 --hidden 24 --steps 20 --batch 8 --lr 0.02 "
        "--min-lr 0.02 --warmup 3 --threads 1").split()
MODELS = {"topk": "--experts 4 --sizes 1,2,3,4 --k 2", "topp": "--experts 14 --routing topp --p .6",
          "one": "--experts 1", "null": "--experts 4 --sizes 0,2,3,4 --balance tokens "
          "--balance-rate 0.05"}
# What a text can do to a page: end its script, control a terminal, be no UTF-8 (a continuation
# alone, an overlong slash, a surrogate, beyond Unicode), turn around, pile up, be invisible.
NASTY = (b"</script><!--<script>alert(1)</script>&lt;\"'`${1}\\ @DATA@\n"
         + bytes(range(32)) + b"\x7f\x80\xbf\xc0\xaf\xed\xa0\x80\xf4\x90\x80\x80\xff\xfe"
         + "é€😀ß中 \u202eabc\u202c e\u0301\u200b\ufeff\u2028\u00a0\u0085 ".encode()
         + "\u05e9\u05dc\u05d5\u05dd\r\n\ttab  two\n\n".encode()
         + b"\xe2\x82 cut \xe2\x82\xac\nthe end \xf0\x9f\x98\x80")


# --- what the page should show, from the text and the CSV -----------------------------------------

def characters(text):
    """(offset, bytes, what is drawn) of each character."""
    at, found = 0, []
    while at < len(text):
        for n in (1, 2, 3, 4):
            try:
                char = text[at:at + n].decode()
            except UnicodeDecodeError:
                continue
            break
        else:
            n, char = 1, None
        if char is None or char < " " and char not in "\n\t" or char == "\x7f":
            n, shown = 1, "%02X" % text[at]
        elif char not in " \n\t" and unicodedata.category(char)[0] in "CMZ":
            shown = "%04X" % ord(char)
        else:
            shown = char
        found.append((at, n, shown))
        at += n
    return found


class Routes:
    """The CSV, and the text: layers[l][i] is (experts, gates, P) of token i."""

    def __init__(self, path, text, shown=None):
        self.text, self.nll, self.entropy, self.widths = text, {}, {}, {}
        self.layers = collections.defaultdict(list)
        for row in csv.DictReader(open(path)):
            i, layer = int(row["position"]), int(row["layer"])
            if shown and i >= shown:
                break
            experts = [int(e) for e in row["experts"].split()]
            self.nll[i], self.entropy[i] = float(row["nll"]), float(row["entropy"])
            self.widths.update(zip(experts, map(int, row["widths"].split())))
            self.layers[layer].append((experts, [float(g) for g in row["gates"].split()],
                                       [float(p) for p in row["P"].split()]))
        self.n, self.L = len(self.nll), len(self.layers)
        self.E = len(self.layers[0][0][2])
        self.chars = characters(text[:self.n + 1])

    def width(self, i, layers):
        return sum(self.widths[e] for l in layers for e in self.layers[l][i][0])

    def values(self, colour, layers):
        """Of each character, or None: the sum of its bytes' nats, or the mean of their widths."""
        in_nats = {"loss": self.nll, "entropy": self.entropy}.get(colour)
        for at, n, _ in self.chars:
            if in_nats:
                yield sum(in_nats[i - 1] for i in range(at, at + n)) if at else None
            else:
                own = [self.width(i, layers) for i in range(at, at + n) if i < self.n]
                yield sum(own) / len(own) if own else None


def percent(x):
    return "%.*f\u00a0%%" % (1 if x and x < .0995 else 0, 100 * x + 1e-9)   # halves go up, as there


def near(shown, x):
    """Is this number, of so many decimals, x? Data of the page are rounded a second time."""
    digits = re.search(r"-?[\d,]+(\.\d+)?", shown)
    decimals = len(digits.group(1) or ".") - 1
    return abs(float(digits.group().replace(",", "")) - x) <= .501 * 10 ** -decimals + 2e-5


# --- making pages, and opening them ---------------------------------------------------------------

def run(*command, cwd=None):
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit("%s\n%s" % (command, done.stdout.decode(errors="replace")))
    return done.stdout


def make(directory, model, name, text):
    """Has the model read the text; where the page is, and what it should show."""
    path = os.path.join(os.fsencode(directory), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(text)
    page, routes = os.path.join(directory, "page.html"), os.path.join(directory, "routes.csv")
    run(os.path.join(BIN, "generate"), os.path.join(directory, model), "--score", name,
        "--page", page, "--routes", routes, cwd=directory)
    return page, Routes(routes, text, 20000)


class Reader:
    """A browser's window on a page; complaints of the page, and requests but the first, fail."""

    def __init__(self, browser, path, width=1280, height=860, scheme="light", sharp=1):
        self.context = browser.new_context(viewport={"width": width, "height": height},
                                           color_scheme=scheme, device_scale_factor=sharp)
        self.page, self.complaints = self.context.new_page(), []
        self.page.on("console", lambda m: self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("dialog", lambda d: (self.complaints.append(d.message), d.dismiss()))
        self.page.on("request", lambda r: self.complaints.append(r.url))
        self.page.goto("file://" + path)
        self.complaints.remove("file://" + path)
        self.js, self.press = self.page.evaluate, self.page.keyboard.press

    def close(self, name):
        same(name + ": no complaint, no request", self.complaints, [])
        self.context.close()

    def click(self, char):
        self.page.locator("#text span").nth(char).click()

    def spans(self):
        return self.js("""[...document.querySelectorAll("#text span")].map(
            s => [s.textContent, s.className, s.getAttribute("role")])""")

    def focus(self):
        return self.js("document.activeElement.id || document.activeElement.parentNode.className")

    def selected(self):
        """The marked characters: those read, those to be foreseen, the one that is read aloud."""
        return self.js("""(all => ["[aria-selected=true]", ".next",
            `[id="${document.getElementById("text").getAttribute("aria-activedescendant")}"]`].map(
            what => all.findIndex(s => s.matches(what))))(
            [...document.querySelectorAll("#text span")])""")

    def panel(self):
        return self.js("""({
          head: document.getElementById("head").innerText,
          said: document.getElementById("said").innerText,
          view: document.getElementById("view").innerText,
          titles: [...document.querySelectorAll("#view h3")].map(h => h.innerText),
          strips: [...document.querySelectorAll(".strip")].map(s => [...s.children].map(b => ({
            label: b.getAttribute("aria-label"), took: b.className === "took",
            width: b.getBoundingClientRect().width,
            height: parseFloat(getComputedStyle(b.firstChild, "::after").height) /
                    (parseFloat(getComputedStyle(b.firstChild).height) - 2)}))),
          chips: [...document.querySelectorAll(".chips")].map(s =>
            [...s.children].map(b => b.innerText)),
          rows: [...document.querySelectorAll(".rows")].map(t => [...t.querySelectorAll("dt")].map(
            d => [d.innerText, d.nextSibling.nextSibling.innerText])) })""")

    def overflows(self):
        return self.js("document.documentElement.scrollWidth - innerWidth")


# --- the checks -----------------------------------------------------------------------------------

def check_file(path):
    """All that the text decides is base64; the rest is page.html, in ASCII."""
    page, template = open(path, "rb").read(), open(HERE + "/page.html", "rb").read()
    before, after = template.split(b"@DATA@")
    check("the page is its template with data", page.startswith(before) and page.endswith(after))
    data = page[len(before):len(page) - len(after)]
    check("data are base64", re.fullmatch(rb"[A-Za-z0-9+/]+", data) and len(data) % 4 == 0)
    check("the template is ASCII", template.isascii())


def check_text(name, reader, routes):
    spans = reader.spans()
    same(name + ": characters", [s[0] for s in spans], [c[2] for c in routes.chars])
    same(name + ": all are options", {s[2] for s in spans}, {"option"})


def check_colours(name, reader, routes, colour, layers):
    """Each character's shade is one of 16, from the lowest value to the highest, or 5 nats."""
    values = list(routes.values(colour, layers))
    known = [v for v in values if v is not None]
    low, high = (0, 5) if colour != "width" else (min(known), max(known))
    wrong = []
    for k, (value, (text, kind, _)) in enumerate(zip(values, reader.spans())):
        shade = re.search(r"\bq(\d+)", kind)
        exact = None if value is None else 15 * min(1, (value - low) / (high - low))
        if (shade is None) != (exact is None) or shade and abs(int(shade.group(1)) - exact) > .501:
            wrong.append((k, text, value, kind))
    same(name + ": shades", wrong, [])


def check_token(name, panel, routes, i, layers):
    """The panel of token i: what was foreseen, and for each layer the experts, P and gates."""
    at, n, text = next(c for c in routes.chars if c[0] <= i < c[0] + c[1])
    following = next(c for c in routes.chars if c[0] <= i + 1 < c[0] + c[1])
    names = {"\n": "newline", " ": "blank", "\t": "tab"}

    def called(char):
        return names.get(char[2], char[2])

    before, after = panel["said"].split("these experts had to foresee")
    check(name + ": byte read", called((at, n, text)) in before, panel["said"])
    check(name + ": byte foreseen", called(following) in after, panel["said"])
    nats, chance, expected = re.split(r",|The model had expected", after.rsplit(":", 1)[1])
    check(name + ": nats", near(nats, routes.nll[i]), (panel["said"], routes.nll[i]))
    check(name + ": entropy", near(expected, routes.entropy[i]), (expected, routes.entropy[i]))
    check(name + ": chance", near(chance, 100 * 2.718281828459045 ** -routes.nll[i]), chance)
    if n > 1:
        part = "byte %d of %d of .?%s" % (i - at + 1, n, text)
        check(name + ": which byte", re.search(part, before), before)
    if i:
        own = re.search(r"foreseen with (\S+)", panel["view"]).group(1)
        check(name + ": its own nats", near(own, routes.nll[i - 1]), (own, routes.nll[i - 1]))
    check(name + ": place", "place %d of" % (i % 16) in panel["view"], panel["view"][:200])
    same(name + ": layers", len(panel["strips"]), len(layers))
    top = max(max(routes.layers[l][i][2]) for l in layers)
    wide = sum(routes.widths.values()) if len(routes.widths) == routes.E else 0
    for l, strip, chips, title in zip(layers, panel["strips"], panel["chips"], panel["titles"]):
        experts, gates, P = routes.layers[l][i]
        at_layer = "%s, layer %d" % (name, l + 1)
        check(at_layer + ": title", re.match(r"Layer %d\s+%d of " % (l + 1, routes.width(i, [l])),
                                             title.replace(",", "")), title)
        same(at_layer + ": taken", [e for e, b in enumerate(strip) if b["took"]], sorted(experts))
        same(at_layer + ": experts", len(strip), routes.E)
        drawn = sum(b["width"] for b in strip)
        check(at_layer + ": drawn as wide as they are", not wide or all(
            abs(b["width"] / drawn - routes.widths[e] / wide) < 2e-3 if routes.widths[e]
            else 0 < b["width"] < 3 for e, b in enumerate(strip)),       # a line
            [b["width"] for b in strip])
        check(at_layer + ": drawn as high as P", all(
            abs(b["height"] - P[e] / top) < .01 for e, b in enumerate(strip)), (strip, P))
        wanted = sorted(zip(experts, gates))
        same(at_layer + ": labels", len(chips), len(wanted))
        for (e, g), chip in zip(wanted, chips):
            number, p, weight = chip.split("\u00b7")
            check(at_layer + ": label of %d" % e, number.strip() == "no. %d" % e and
                  near(p, 100 * P[e]) and near(weight, g), (chip, P[e], g))


def check_expert(name, reader, routes, l, e):
    """An expert's panel: its statistics, from the CSV alone."""
    panel, rows = reader.panel(), routes.layers[l]
    own = [i for i in range(routes.n) if e in rows[i][0]]
    share = len(own) / routes.n
    check(name + ": head", panel["head"].startswith("Expert %d of layer %d" % (e, l + 1)),
          panel["head"])
    chars = {k for k, c in enumerate(routes.chars) if any(c[0] <= i < c[0] + c[1] for i in own)}
    spans = reader.spans()
    same(name + ": its tokens keep their colour",
         {k for k, s in enumerate(spans) if "off" not in s[1].split()}, chars)
    same(name + ": and are underlined",
         {k for k, s in enumerate(spans) if "mine" in s[1].split()}, chars)
    if not own:
        return check(name + ": says none", "No token" in panel["said"], panel["said"])
    numbers = re.findall(r"[\d,.]*\d", panel["said"])
    gate = sum(rows[i][1][rows[i][0].index(e)] for i in own) / len(own)
    work = len(own) * routes.widths[e] / sum(routes.width(i, [l]) for i in range(routes.n))
    wanted = [len(own), routes.n, 100 * share, gate, 100 * work,
              sum(routes.nll[i] for i in own) / len(own), sum(routes.nll.values()) / routes.n]
    check(name + ": sentence", len(numbers) == len(wanted) and all(map(near, numbers, wanted)),
          (panel["said"], wanted))
    for f, bar in enumerate(panel["strips"][0]):
        shares = [sum(g in row[0] for row in rows) / routes.n for g in range(routes.E)]
        check(name + ": bar %d" % f, abs(bar["height"] - shares[f] / max(shares)) < .01 and
              near(bar["label"].split(":")[1], 100 * shares[f]), (bar, shares))
    edges = [0, .1, .5, 1, 2, 3, 4, 1e9]
    kinds = [lambda i: routes.text[i], lambda i: i % 16 // 2,
             lambda i: sum(routes.nll[i] >= x for x in edges[1:])]
    for which, kind in enumerate(kinds):
        all_of = collections.Counter(map(kind, range(routes.n)))
        took = collections.Counter(map(kind, own))
        shown = panel["rows"][which]
        if which:
            order = sorted(all_of)
        else:               # those with as much beyond the share may stand in any order
            signs = {"\u2423": 32, "\u21b5": 10, "\u21e5": 9}
            order = [signs.get(s) or (ord(s) if len(s) == 1 else int(s, 16)) for s, _ in shown]
            best = sorted((took[k] - share * all_of[k] for k in took), reverse=True)[:12]
            same(name + ": bytes", ["%.6f" % (took[k] - share * all_of[k]) for k in order],
                 ["%.6f" % x for x in best])
        same(name + ": rows %d" % which, [s[1] for s in shown], [
            "%s of %s" % (percent(took[k] / all_of[k]), format(all_of[k], ",")) for k in order])


def check_keys(reader, routes):
    press, of = reader.press, [k for k, c in enumerate(routes.chars) for _ in range(c[1])]

    def at(name, i):        # token i is marked, and the one after it
        same("keys: " + name, reader.selected(),
             [of[i], of[i + 1] if of[i + 1] != of[i] else of[i], of[i]])

    same("keys: nothing chosen at first", reader.selected()[:2], [-1, -1])
    for _ in range(20):
        press("Tab")
        if reader.focus() == "text":
            break
    same("keys: Tab comes to the text", reader.focus(), "text")
    press("ArrowRight")
    at("the first token", 0)
    press("ArrowLeft")
    at("nothing before it", 0)
    for _ in range(3):
        press("ArrowRight")
    at("three to the right", 3)
    check_token("keys", reader.panel(), routes, 3, range(routes.L))
    starts = [0] + [at + 1 for at, _, shown in routes.chars if shown == "\n" and at + 1 < routes.n]
    press("ArrowDown")
    at("a line down", starts[1])
    press("ArrowDown")
    at("and another", starts[2])
    press("ArrowRight")
    press("ArrowUp")
    at("to the start of a line", starts[2])
    press("ArrowUp")
    at("and up", starts[1])
    reader.click(3)
    press("ArrowUp")
    at("no further", 0)
    reader.click(3)
    same("keys: all layers", len(reader.panel()["strips"]), routes.L)
    for key, layers in (("2", [1]), ("]", [2]), ("]", [2]), ("[", [1]), ("9", [1]),
                        ("0", [0, 1, 2]), ("[", [0, 1, 2]), ("1", [0])):
        press(key)
        check_token("key " + key, reader.panel(), routes, 3, layers)
        same("key %s: the menu" % key, reader.js("document.getElementById('layer').value"),
             str(layers[0]) if len(layers) == 1 else "-1")
    press("c")
    check_colours("key c, layer 1", reader, routes, "entropy", [0])
    press("c")
    check_colours("key c twice, layer 1", reader, routes, "width", [0])
    at("the token stays", 3)
    press("0")
    check_colours("key 0", reader, routes, "width", [0, 1, 2])
    press("c")
    check_colours("key c again", reader, routes, "loss", [0, 1, 2])
    press("Control+c")
    check_colours("Control+c copies", reader, routes, "loss", [0, 1, 2])
    press("Enter")
    same("keys: Enter comes to the experts", reader.focus(), "strip")
    first = min(routes.layers[0][3][0])
    same("keys: the first taken", reader.js("[...document.activeElement.parentNode.children]"
                                            ".indexOf(document.activeElement)"), first)
    press("Tab" if first == 0 else "Shift+Tab")
    press("Enter")
    neighbour = 1 if first == 0 else first - 1
    check_expert("keys, expert", reader, routes, 0, neighbour)
    same("keys: the focus stays in the panel", reader.focus(), "head")
    press("2")
    check_expert("keys, the expert of layer 2", reader, routes, 1, neighbour)
    press("Escape")
    at("Escape goes back to the token", 3)
    check_token("keys, Escape", reader.panel(), routes, 3, [1])
    press("Escape")
    same("keys: and closes it", reader.selected()[:2], [-1, -1])
    same("keys: the focus is in the text", reader.focus(), "text")
    same("keys: all experts of the layer", len(reader.panel()["strips"]), 1)
    press("0")


def check_mouse(reader, routes):
    select = random.Random(7)
    for k in [len(routes.chars) - 2] + select.sample(range(len(routes.chars) - 2), 8):
        at, n, _ = routes.chars[k]
        reader.click(k)
        check_token("token %d" % at, reader.panel(), routes, at, range(routes.L))
        if n > 1 and at + 1 < routes.n:
            reader.click(k)
            check_token("token %d" % (at + 1), reader.panel(), routes, at + 1, range(routes.L))
            reader.press("Escape")
    several = next(k for k, c in enumerate(routes.chars) if c[1] == 4)
    for part in 0, 1, 2, 3, 0:
        reader.click(several)
        i = routes.chars[several][0] + part
        check_token("byte %d of four" % part, reader.panel(), routes, i, range(routes.L))
    reader.click(len(routes.chars) - 1)
    same("the last character is foreseen, not read", reader.selected()[0], several)
    reader.page.select_option("#layer", index=3)
    check_token("layer 3 by the menu", reader.panel(), routes, routes.chars[several][0], [2])
    reader.page.select_option("#layer", index=0)
    reader.page.select_option("#colour", "width")
    check_colours("width by the mouse", reader, routes, "width", [0, 1, 2])
    reader.page.select_option("#colour", "entropy")
    check_colours("entropy by the mouse", reader, routes, "entropy", [0, 1, 2])
    reader.page.select_option("#colour", "loss")
    check_colours("cross-entropy by the mouse", reader, routes, "loss", [0, 1, 2])
    reader.page.locator(".chips").nth(2).locator("button").first.click()
    first = min(routes.layers[2][routes.chars[several][0]][0])
    check_expert("by its label", reader, routes, 2, first)
    for e in range(routes.E):
        reader.page.locator(".strip button").nth(e).click()
        check_expert("expert %d of layer 3" % e, reader, routes, 2, e)
    reader.page.click("#close")
    reader.page.click("#close")
    panel = reader.panel()
    for l, strip in enumerate(panel["strips"]):
        shares = [sum(e in row[0] for row in routes.layers[l]) / routes.n for e in range(routes.E)]
        check("at first: shares of layer %d" % (l + 1), all(
            near(bar["label"].split(":")[1], 100 * share) for bar, share in zip(strip, shares)),
            ([b["label"] for b in strip], shares))


# Contrast between an element's colour and what lies behind it.
CONTRAST = "() => {" + COLOURS + """
  const text = e => ratio(light(getComputedStyle(e).color), light(behind(e)));
  const shades = [...document.querySelectorAll("#steps i")];
  return { shades: shades.map(e => light(behind(e))), on: shades.map(text),
           texts: [...document.querySelectorAll("h1, p, b, small, button, dt, dd, label, option, .off")]
             .map(e => [text(e), e.outerHTML.slice(0, 60)]).filter(([c]) => c < 4.5) };
}"""


def check_looks(browser, path, routes):
    for scheme in "light", "dark":
        reader = Reader(browser, path, scheme=scheme)
        for colour in "loss", "entropy", "width":
            look = reader.js(CONTRAST)
            check("%s, %s: readable" % (scheme, colour), min(look["on"]) >= 4.5, look["on"])
            order = sorted(look["shades"], reverse=scheme == "light")
            check("%s, %s: lightness tells the order" % (scheme, colour),
                  look["shades"] == order and len(set(order)) == 16, look["shades"])
            reader.press("c")
        reader.click(3)
        same(scheme + ": contrast of a token", reader.js(CONTRAST)["texts"], [])
        reader.page.locator(".strip button").first.click()
        same(scheme + ": contrast of an expert", reader.js(CONTRAST)["texts"], [])
        reader.close(scheme)
    reader = Reader(browser, path, 360, 740)
    visible = reader.page.locator("#panel").is_visible
    check("phone: no panel at first", not visible())
    same("phone: fits", reader.overflows(), 0)
    reader.page.click("#overview")
    check("phone: all experts on demand", visible() and len(reader.panel()["strips"]) == routes.L)
    same("phone: experts fit", reader.overflows(), 0)
    reader.page.click("#close")
    check("phone: closed", not visible())
    reader.click(len(routes.chars) // 2)
    check("phone: a token opens it", visible())
    token = reader.js("document.querySelector('[aria-selected]').getBoundingClientRect().bottom")
    sheet = reader.js("document.getElementById('panel').getBoundingClientRect().top")
    check("phone: the token is not under it", 0 < token <= sheet, (token, sheet))
    same("phone: a token fits", reader.overflows(), 0)
    reader.page.locator(".chips button").first.click()
    same("phone: an expert fits", reader.overflows(), 0)
    reader.press("Escape")
    reader.press("Escape")
    check("phone: Escape closes", not visible())
    reader.close("phone")


def check_long(browser, path, routes, tokens):
    """Long texts: nothing is missing. What one waits for, from an event to the painted frame."""
    started = time.time()
    reader = Reader(browser, path)
    opened = time.time() - started
    same("%d tokens: characters" % tokens, len(reader.spans()), len(routes.chars))
    same("%d tokens: counted" % tokens, routes.n, tokens)
    frame = """async act => { const start = performance.now(); eval(act);
        await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
        return performance.now() - start; }"""
    took = {name: max(reader.js(frame, act) for _ in range(3)) for name, act in (
        ("token", "show({ token: (Math.random() * N) | 0 })"), ("colour", "document.dispatchEvent("
         "new KeyboardEvent('keydown', { key: 'c' }))"), ("expert", "show({ layer: 1, expert: "
         "(now.expert + 1) % E })"), ("scroll", "scrollBy(0, 5000)"))}
    last = len(routes.chars) - 2
    reader.click(last)
    check_token("%d tokens, the last" % tokens, reader.panel(), routes, routes.chars[last][0],
                range(routes.L))
    print("%d tokens: opened in %.0f ms; slowest of three, ms: %s" % (
        tokens, 1e3 * opened, ", ".join("%s %.0f" % item for item in took.items())))
    if tokens < PAGE_TOKENS:
        check("nothing is left out", "first" not in reader.js("says.innerText"))
    else:
        check("left out", "first 20,000 of 25,999 bytes" in reader.js("says.innerText"))
    reader.close("%d tokens" % tokens)


PAGE_TOKENS = 20000


def test(browser, work):
    data = os.path.join(work, "data")
    plain = open(LICENSE, "rb").read()
    with open(data, "wb") as file:
        file.write(plain * 8 + bytes(range(256)) * 8 + NASTY * 8)
    for model, options in MODELS.items():
        run(os.path.join(BIN, "train_tiny"), "--data", data, "--out", os.path.join(work, model),
            *TINY, *options.split())

    evil = b"a<b \x1b\xff\xe2\x80\xae/script><b>&amp; \xc3\xa9.txt"        # this is a file's name
    path, routes = make(work, "topk", evil, NASTY + plain[:300] + NASTY + b".")
    check_file(path)
    reader = Reader(browser, path)
    check_text("nasty", reader, routes)
    check_colours("nasty", reader, routes, "loss", range(3))
    name = "a<b [1B][FF][202E]/script><b>&amp; é.txt"
    same("the text's name", reader.js("document.getElementById('name').textContent"), name)
    same("the title", reader.page.title(), "The router reads " + name)
    check_keys(reader, routes)
    check_mouse(reader, routes)
    reader.close("nasty")
    check_looks(browser, path, routes)

    for model in "topp", "one", "null":
        path, routes = make(work, model, b"text", plain)
        reader = Reader(browser, path)
        check_text(model, reader, routes)
        check_colours(model, reader, routes, "loss", range(3))
        reader.press("c")
        reader.press("c")
        if model != "one":
            check_colours(model, reader, routes, "width", range(3))
        for k in 0, 77, len(routes.chars) - 2:
            reader.click(k)
            check_token("%s, token %d" % (model, k), reader.panel(), routes, k, range(3))
        reader.page.locator(".strip button").nth(routes.E - 1).click()
        check_expert(model + ", expert", reader, routes, 0, routes.E - 1)
        reader.close(model)

    path, routes = make(work, "topk", b"two", b"ab")
    reader = Reader(browser, path)
    check_text("two bytes", reader, routes)
    reader.click(0)
    check_token("two bytes", reader.panel(), routes, 0, range(3))
    reader.close("two bytes")

    for n in 5001, 26000:
        path, routes = make(work, "topk", b"long", (plain * (n // len(plain) + 1))[:n])
        routes.chars = characters(routes.text[:routes.n + 1])
        check_long(browser, path, routes, min(n - 1, PAGE_TOKENS))


def take_picture(browser, out, path):
    """The README's: the start of a text, with a token chosen."""
    reader = Reader(browser, os.path.abspath(path), 1080, 720, sharp=1.25)
    reader.click(24)
    reader.js("scrollTo(0, 0)")
    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    reader.page.screenshot(path=out)
    reader.context.close()


def main():
    with sync_playwright() as play:
        browser = launch(play)
        if sys.argv[1:2] == ["--picture"]:
            return take_picture(browser, *sys.argv[2:])
        work = tempfile.mkdtemp(prefix="hmoe-page-")
        atexit.register(shutil.rmtree, work, ignore_errors=True)
        test(browser, work)
        browser.close()
    done("test_page")


main()
