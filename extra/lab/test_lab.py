"""test_lab.py - the laboratory's statistics against tables and other formulas, its plan, what its
report says of invented results, and with FULL=1 a whole tiny run of it, killed on the way. It needs
the environment of `make lab` (extra/requirements.txt) and skips without it; LAB_STEPS is the length
of the tiny runs. BIN stands before the programs' names."""

import os
import re
import subprocess
import sys
import time
import xml.dom.minidom
from pathlib import Path

import browser
import pytest
from harness import ROOT

np = pytest.importorskip("numpy")
stats = pytest.importorskip("scipy.stats")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
ENV = dict(QUICK="1", LAB_STEPS=os.environ.get("LAB_STEPS") or "8")
with pytest.MonkeyPatch.context() as patch:     # the laboratory reads these when it is imported
    for variable in ENV.items():
        patch.setenv(*variable)
    import lab
    import report


@pytest.fixture(autouse=True, scope="module")
def here(tmp_path_factory):
    """All of the laboratory's files are here."""
    here = tmp_path_factory.mktemp("lab")
    (here / "runs").mkdir()
    (here / "text").write_bytes((ROOT / "LICENSE").read_bytes() * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name, path in (("OUT", here), ("RUNS", here / "runs"), ("DATA", here / "text")):
            patch.setattr(lab, name, str(path))
        yield here


# --- statistics -----------------------------------------------------------------------------------

def test_the_interval_is_that_of_students_sleep_data():
    """1908: the gain of ten patients, mean 1.58, t = 4.0621, and by R's t.test this interval."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    e = report.paired(dict(enumerate(second)), dict(enumerate(first)))
    assert (e.mean, e.low, e.high) == pytest.approx((1.58, 0.7001142, 2.4598858), rel=1e-6)
    assert e.sign() == 1
    assert report.Effect(-v for v in (1, 1.1, 1.2)).sign() == -1


def test_pairs_are_by_seed():
    assert report.paired({1: 5, 2: 7, 9: 0}, {2: 4, 1: 1}).low == report.Effect([4, 3]).low


@pytest.mark.parametrize("n, t", [(2, 12.7062), (3, 4.30265), (5, 2.77645)])
def test_t_is_that_of_tables(n, t):
    """t(0.975) of 1, 2, 4 degrees of freedom."""
    values = [0, 2] if n == 2 else [*range(n)]
    e = report.Effect(values)
    assert e.n == n
    error = np.std(values, ddof=1) / np.sqrt(n)
    assert (e.high - e.low) / 2 == pytest.approx(t * error, rel=1e-5)


def test_one_seed_or_none_tells_nothing():
    assert report.Effect([0.3]).sign() == 0
    assert np.isnan(report.Effect([0.3]).low)
    assert report.Effect([]).sign() == 0


def test_not_a_number_is_left_out():
    assert report.Effect([1, float("nan"), 2]).n == 2


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("shift", [0, 0.6, 1.2, 2.4])
def test_the_sign_agrees_with_scipys_paired_test(shift, seed):
    """About 5 %."""
    random = np.random.default_rng(seed)
    a, b = random.normal(size=5) + shift, random.normal(size=5)
    assert (report.Effect(a - b).sign() != 0) == (stats.ttest_rel(a, b).pvalue < 0.05)


@pytest.mark.parametrize("n", [3, 5])
def test_so_many_experiments_find_the_least_effect(n):
    """Power, by drawing experiments with that effect."""
    values = np.linspace(-1, 1, n)
    x = np.random.default_rng(1).normal(report.Effect(values).least, np.std(values, ddof=1),
                                        size=(40000, n))
    t = x.mean(1) / (x.std(1, ddof=1) / np.sqrt(n))
    assert (abs(t) > stats.t.ppf(0.975, n - 1)).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("shift, wild, said, unsaid", [
    (-0.05, 1, ["0.0498 nats lower than theirs", "what HMoE found"], "opposite"),
    (0.05, 1, ["0.0502 nats higher than theirs", "the opposite of what HMoE found"], "cannot tell"),
    (0, 30, ["cannot tell", "Neither for nor against HMoE", "four times in five"], "found.")])
def test_the_report_says_what_losses_show(shift, wild, said, unsaid):
    """Invented losses with an effect, reversed, without one."""
    base = {1: 1.50, 2: 1.52, 3: 1.49}
    noise = {1: 0.0010, 2: -0.0006, 3: 0.0002}
    other = {s: v + shift + wild * noise[s] for s, v in base.items()}
    sentence = report.claim("Ours", "theirs", report.paired(other, base), paper="HMoE")[1]
    for words in said:
        assert words in sentence
    assert unsaid not in sentence


def test_few_seeds_are_said():
    assert "too few" in report.claim("a", "b", report.Effect([0.5]))[1]


def test_a_minus_is_a_minus():
    assert report.num(-0.5, 1) == "−0.5"
    assert report.num(float("nan")) == "–"


# --- parsing --------------------------------------------------------------------------------------

ROUTES = ["position,byte,nll,entropy,layer,experts,widths,gates,P",
          "0,65,1.500000,2.000000,0,5 3,152 120,0.6 0.4,0 0 0 0.4 0 0.6 0 0",
          "0,65,1.500000,2.000000,1,0,72,1,1 0 0 0 0 0 0 0",
          "1,10,0.250000,0.500000,0,7 1 2,184 88 104,0.5 0.3 0.2,0 0.3 0.2 0 0 0 0 0.5",
          "1,10,0.250000,0.500000,1,3,120,1,0 0 0 1 0 0 0 0"]


def test_routes_are_read(tmp_path):
    path = tmp_path / "routes.csv"
    path.write_text("\n".join(ROUTES) + "\n")
    seen = lab.read_routes(path, 2)
    assert list(seen["byte"]) == [65, 10]
    assert list(seen["nll"]) == [1.5, 0.25]
    assert seen["first"].tolist() == [[5, 0], [7, 3]]
    sets = [[list(np.flatnonzero(s)) for s in token] for token in lab.bits(seen["mask"])]
    assert sets == [[[3, 5], [0]], [[1, 2, 7], [3]]]


def test_a_missing_row_is_seen(tmp_path):
    path = tmp_path / "routes.csv"
    path.write_text("\n".join(ROUTES[:-1]) + "\n")
    with pytest.raises(lab.Failure):
        lab.read_routes(path, 2)


def test_shares_distances_and_stability_by_hand():
    """Two tokens, one layer, widths in no order; three looks, of which the last two agree."""
    a = report.derived(
        widths=np.array([30, 10, 20, 40, 50, 60, 70, 80]), byte=np.array([1, 2], np.uint8),
        mask=np.array([[[1], [2]], [[3], [2]], [[3], [2]]], np.uint32), alike=np.diag(np.arange(8)),
        first=np.array([[[0], [1]], [[1], [1]], [[1], [1]]], np.uint8))
    np.testing.assert_allclose(a["share"][[-1, 0], :3], [[2 / 3, 0, 1 / 3], [1 / 2, 0, 1 / 2]])
    assert a["first"].tolist() == [[[2], [0]]] + [[[0], [0]]] * 2
    assert np.diag(a["alike"]).tolist() == [1, 2, 0, 3, 4, 5, 6, 7]
    assert a["work"][-1].ravel().tolist() == [40, 10]
    assert a["bytes"][[0, 2]][:, [1, 2]].tolist() == [[1, 1], [1, 0]]
    assert report.variation(a)[0, 2] == pytest.approx(0.5, abs=1e-6)
    assert report.same("first")(a).tolist() == [0.5, 1]
    assert report.same("mask")(a).tolist() == [0.5, 1]


# --- the plan -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def runs(here):
    if not os.path.exists(lab.BIN + "train_tiny"):
        pytest.skip("no %strain_tiny: make builds it" % lab.BIN)
    return lab.plan({})


@pytest.fixture(scope="module")
def main(runs):
    return {r.name: r for r in runs if r.kind == "main" and r.seed == 1}


@pytest.fixture(scope="module")
def widths(tmp_path_factory):
    """The widths of a run's experts, and its parameters: all and activated."""
    def widths(run):
        out = tmp_path_factory.mktemp("widths") / "out"
        said = subprocess.run([str(x) for x in lab.arguments(run, out, steps=0)], text=True,
                              capture_output=True).stdout
        return ([int(w) for w in re.search(r"widths([ 0-9]+)", said).group(1).split()],
                *map(int, re.search(r": (\d+) parameters, (\d+) activated", said).groups()))
    return widths


def test_the_table_has_every_run_once(runs, main):
    assert len({r.key for r in runs}) >= len(runs) - lab.SCALE["seeds"][0]
    assert set(main) == set(lab.VARIANTS)
    assert len(main) == 14


def test_at_first_only_grids_are_ready(runs):
    assert all(r.ready == (r.kind == "grid") for r in runs)


def test_the_grids_seed_is_not_reported(runs):
    assert {r.seed for r in runs if r.kind == "grid"} == {7}
    assert all(r.seed != 7 for r in runs if r.kind != "grid")


def test_batches_are_the_same(main):
    assert len({tuple(r.options[o] for o in ("batch", "context", "steps"))
                for r in main.values()}) == 1


def test_totals_are_the_same(main, widths):
    equal, total, active = widths(main["homogeneous"])
    for name, run in main.items():
        if "dense" not in name:
            w, parameters, _ = widths(run)
            assert (sum(w), parameters) == (sum(equal), total), name
    assert widths(main["dense"])[2] == pytest.approx(active, rel=0.01)
    assert widths(main["dense_total"])[1] == pytest.approx(total, rel=0.01)


@pytest.mark.parametrize("ratio", lab.RATIOS)
def test_widths_have_the_ratio(ratio, runs, main, widths):
    w = widths(next(r for r in runs if r.name == "ratio %g" % ratio))[0]
    assert sum(w) == sum(widths(main["homogeneous"])[0])
    assert w == sorted(w)
    assert abs(w[-1] / w[0] / ratio - 1) < 0.2      # widths are whole eights


def test_each_run_has_its_coefficients(main):
    o = {name: run.options for name, run in main.items()}
    assert o["arithmetic_free"]["pp"] == o["arithmetic_free"]["lb"] == 0
    assert o["arithmetic"]["pp"] > 0
    assert o["modse"]["lb"] > 0 and o["modse"]["pp"] == 0
    assert o["arithmetic_lb"]["pp"] == 0 and o["arithmetic_lb"]["lb"] > 0
    assert o["topp_no_entropy"]["ent"] == 0 and o["topp_no_entropy"]["pp"] > 0
    assert o["topp_raw"]["gate"] == "raw"
    assert o["arithmetic_topp"]["ent"] > 0
    assert o["homogeneous_topp"]["lb"] > 0 and o["homogeneous_topp"]["routing"] == "topp"


def test_the_grids_winner_is_taken_and_then_modses_width(runs):
    """A grid with a clear winner is followed; a diverged run never wins."""
    results = {}
    for r in runs:
        if r.kind == "grid":
            good = r.options["lr"] == lab.SCALE["lr"][0]
            results[r.key] = dict(status="ok" if good else "diverged", val_loss="2.0" * good)
    again = lab.plan(results)
    assert {r.options["lr"] for r in again if r.kind != "grid"} == {lab.SCALE["lr"][0]}
    assert {r.name for r in again if not r.ready} == {"equal_wide"}
    for r in again:
        if r.name == "modse":
            results[r.key] = dict(status="ok", val_loss="2.0", mean_width="70.4")
    wide = [r for r in lab.plan(results) if r.name == "equal_wide"]
    assert all(r.ready and r.options["hidden"] == 70 for r in wide)


# --- a whole laboratory ---------------------------------------------------------------------------

def start(**more):
    env = {**os.environ, **ENV, "LAB_OUT": lab.OUT, "DATA": lab.DATA, **more}
    return subprocess.Popen([sys.executable, lab.__file__], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_an_interrupted_run_trains_no_piece_twice(runs, tmp_path, monkeypatch):
    """One run, interrupted before the second look."""
    run, said, real = next(r for r in runs if r.kind == "main"), [], lab.call

    def call(*what):
        said.append([str(x) for x in what])
        if len(said) == 4:
            raise KeyboardInterrupt
        return real(*what)
    monkeypatch.setattr(lab, "call", call)
    monkeypatch.setattr(lab, "RUNS", str(tmp_path))
    lab.write_validation()
    with pytest.raises(KeyboardInterrupt):
        lab.make(run)
    row = lab.make(run)
    trained = [what for what in said if what[0].endswith("train_tiny")]
    assert [int(what[what.index("--stop-at") + 1]) for what in trained] == run.points
    assert ["--resume" in what for what in trained] == [False] + [True] * 3
    assert row["status"] == "ok"
    assert float(row["val_loss"]) > 0


@pytest.fixture(scope="module")
def killed(runs):
    """The rows of a laboratory that was killed early, when 4 were kept, and in the middle."""
    if os.environ.get("FULL") != "1":
        pytest.skip("FULL=1 runs a whole tiny laboratory, in three minutes")
    for kept in (4, 30):
        process, limit = start(), time.time() + 300
        while len(lab.read_results()) < kept and process.poll() is None and time.time() < limit:
            time.sleep(0.05)
        process.kill()
        process.communicate()
    return lab.read_results()


@pytest.fixture(scope="module")
def ended(killed):
    """What it says, called again, to its end; and its rows."""
    out, errors = start().communicate()
    assert "report.html are written" in out, errors[-500:]
    return out, lab.read_results()


@pytest.fixture(scope="module")
def results(ended):
    return ended[1]


def test_a_killed_laboratory_repeats_nothing(killed, ended):
    out, after = ended
    assert 30 <= len(killed) < 50, "killed in the middle"
    assert out.count(" of 50") == 50 - len(killed)
    for key, row in killed.items():
        assert {column: after[key][column] for column in row} == row


def test_every_run_has_a_row_with_its_options(results):
    for r in lab.plan(results):
        row = results[r.key]
        assert {o: row[o] for o in r.options} == {o: str(v) for o, v in r.options.items()}
    assert sum(row["kind"] == "speed" for row in results.values()) == 14, "tokens/s of each"


def test_folders_of_runs_are_gone(results):
    assert [f.name for f in Path(lab.RUNS).iterdir() if f.is_dir()] == ["docs"]


def test_a_second_time_nothing_is_trained(results):
    out, _ = start().communicate()
    assert " of 50" not in out
    assert lab.read_results() == results


def test_a_run_in_pieces_is_the_run_in_one(results, tmp_path):
    run = next(r for r in lab.plan(results) if r.name == "arithmetic" and r.kind == "main"
               and r.seed == 2)
    out = subprocess.run([str(x) for x in lab.arguments(run, tmp_path / "straight")], text=True,
                         capture_output=True).stdout
    assert "val_loss " + results[run.key]["val_loss"] in out
    a = dict(np.load(os.path.join(lab.RUNS, run.key + ".npz")))
    np.testing.assert_allclose(np.diag(a["alike"]), 1, atol=1e-5)
    np.testing.assert_allclose(a["alike"], a["alike"].T, atol=1e-8)
    assert abs(a["alike"]).max() < 1.001, "cosines"
    assert (report.derived(**a)["chosen"].sum(-1) == 2).all(), "Top-2 chooses two"


# --- the report -----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def page(results, here):
    return (here / "report.html").read_text(encoding="utf-8")


def test_each_of_13_questions_is_answered(page):
    parts = re.findall(r"<section class=question.*?</section>", page, re.S)
    assert len(parts) == 13
    for part in parts:
        title = re.search(r"<h2>(.*?)</h2>", part).group(1)
        assert "<svg" in part or "<table" in part, title
        assert re.search(r"<p>[^<]{20,}", part), title
        assert "nan" not in part and "$" not in part, title
        for svg in re.findall(r"<svg.*?</svg>", part, re.S):
            assert svg.count("<path") + svg.count("<use") > 5, title


def test_the_report_is_marked_as_quick(page):
    assert "<p ><b>Quick form" in page


def test_the_report_is_self_contained(page):
    assert not re.search(r"https?:|<script|<link|<img|@import|src=|url\([^#]", page)
    names = re.findall(r' id="?([^" >]+)', page)
    assert len(names) == len(set(names))
    assert {r for r in re.findall(r'(?:href="?#|url\(#)([^" >)]+)', page)} <= set(names)


@pytest.mark.parametrize("name", ["differences", "usage", "activated"])
def test_pictures_for_docs_are_small_svgs(name, page):
    svg = Path(lab.RUNS, "docs", name + ".svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg xmlns=")
    assert len(svg) < 80000
    xml.dom.minidom.parseString(svg)


@pytest.fixture
def draw(results, tmp_path, monkeypatch):
    """The report of results of which some main runs are another: those with these names."""
    monkeypatch.setattr(lab, "OUT", str(tmp_path))

    def draw(names=(), other=None):
        report.write({k: dict(r, **other(r)) if r["name"] in names and r["kind"] == "main" else r
                      for k, r in results.items()})
        return (tmp_path / "report.html").read_text(encoding="utf-8")
    return draw


def test_drawn_again_it_is_the_same(page, draw):
    assert draw() == page


@pytest.mark.parametrize("shift, word", [(-0.5, "lower"), (0.5, "higher")])
def test_the_report_follows_the_numbers(shift, word, draw):
    """Arithmetic well below equal, then well above."""
    loss = {"homogeneous": lambda seed: 2.0, "arithmetic": lambda seed: 2.0 + shift + 1e-3 * seed}
    text = draw(loss, lambda r: {"val_loss": "%.6f" % loss[r["name"]](int(r["seed"]))})
    said = re.search(r"<p>(Arithmetic, Top-2: [^<]*equal, Top-2 [^<]*)</p>", text)
    assert said
    assert " nats %s than" % word in said.group(1)


@pytest.mark.parametrize("names", [["homogeneous"], list(lab.VARIANTS)], ids=["baseline", "all"])
def test_diverged_runs_are_left_out_and_said(names, draw):
    count = sum(lab.SCALE["seeds"][lab.VARIANTS[name]["many"]] for name in names)
    assert "Runs that diverged are left out: %d." % count in draw(names, lambda r: {
        "status": "diverged"})


# Contrast of all text on the paper, in pictures too; maps have their own ink.
LOOK = "() => {" + browser.COLOURS + """
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return {
    dark: paper < .2, wide: document.documentElement.scrollWidth - innerWidth,
    drawn: [...document.querySelectorAll("section svg")].map(s => s.getBoundingClientRect()).filter(
      r => r.width > 200 && r.height > 80).length,
    weak: [...document.querySelectorAll("h1, h2, p, a, td, th, small, figcaption, svg text")]
      .map(e => [ratio(paper, light(getComputedStyle(e)[e.closest("svg") ? "fill" : "color"])),
                 e.outerHTML.slice(0, 80), getComputedStyle(e).fill])
      .filter(([c, html, fill]) => c < 4.5 && !/rgb\\((255, 255, 255|28, 39, 51)\\)/.test(fill)) };
}"""


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_in_a_browser(scheme, width, page, here, chromium):
    """On a screen, on a phone; nothing is asked for, nothing complains."""
    address = "file://%s/report.html" % here
    window = chromium.new_page(viewport=dict(width=width, height=800), color_scheme=scheme)
    heard = []
    window.on("console", lambda m: heard.append(m.text))
    window.on("pageerror", lambda e: heard.append(str(e)))
    window.on("request", lambda r: heard.append(r.url))
    window.goto(address)
    seen = window.evaluate(LOOK)
    assert heard == [address]
    assert seen["drawn"] == page.count("<svg") >= 25
    assert seen["wide"] == 0, "nothing sticks out"
    assert seen["dark"] == (scheme == "dark")
    assert seen["weak"] == [], "contrast"
    window.get_by_role("link", name="Do harder tokens").click()
    top = window.evaluate("document.querySelector(location.hash)?.getBoundingClientRect().top")
    assert top == pytest.approx(0, abs=5), "a link leads to its answer"
    window.close()


@pytest.mark.parametrize("name, value", [("DATA", "nowhere"), ("BIN", "nowhere/")])
def test_what_is_missing_is_said_in_one_line(name, value, runs):
    out = start(**{name: value}).communicate()[1]
    assert out.startswith("lab: ")
    assert out.count("\n") == 1
    assert name == "BIN" or "nowhere" in out
