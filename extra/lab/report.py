"""report.py - what the runs say: statistics, pictures, report.html, answers.md, docs/*.svg.
Every sentence with a result follows from the numbers. The page around them is words.html.
`python3 extra/lab/report.py` draws again from what is kept."""

import html
import io
import os
import pathlib
import platform
import re
import string

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import optimize, stats

import lab

INK, LINE = "#010203", "#040506"         # become the page's colours, light or dark
matplotlib.rcParams.update({
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": LINE, "font.size": 8,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "xtick.major.size": 0, "ytick.major.size": 0, "axes.grid": True, "grid.color": LINE,
    "axes.axisbelow": True, "axes.titlelocation": "left", "axes.titlesize": 8.5,
    "legend.frameon": False, "legend.fontsize": 7.2, "lines.markersize": 3, "svg.fonttype": "none",
    "savefig.facecolor": "none", "axes.facecolor": "none", "figure.max_open_warning": 0})
COLORS = dict(homogeneous="#8a8f98", equal_wide="#6d7480", arithmetic="#3d7ab8", modse="#4f9a6b",
              geometric="#b0709a", hybrid="#3f9aa5", arithmetic_lb="#c08a2e",
              arithmetic_free="#c4554d", arithmetic_topp="#7c68b8", homogeneous_topp="#a79a86",
              topp_no_entropy="#9d4f86", topp_raw="#b07a4a", dense="#8b7f3f", dense_total="#66603a")
BY_WIDTH = ["#4a7fc1", "#4f9bb5", "#55aa96", "#76ad6b", "#a5a64d", "#c99345", "#d0774a", "#c4554d"]
GREY, RED, BLUE = "#8a8f98", "#c4554d", "#3d7ab8"          # as signs: 0, 1, -1
DASHED = dict(color=INK, lw=0.7, ls=(0, (4, 3)))
PLACES, BY_PLACE = [str(i + 1) for i in range(lab.E)], "expert, narrow to wide"
# A picture outside the page, as the README's, brings its colours along.
ALONE = ("<style>svg{color:#23262c;--line:#dedbd3}@media(prefers-color-scheme:dark){"
         "svg{color:#dedcd6;--line:#3a3f47}}</style>")

# --- statistics -----------------------------------------------------------------------------------

class Effect:
    """A number per seed: mean, 95 % interval by Student's t (of a difference: the paired t), and
    `least`: the smallest effect that a test at 5 % finds four times in five, given this spread."""

    def __init__(self, values):
        x = np.array([v for v in values if np.isfinite(v)], float)
        self.n, self.mean = len(x), x.mean() if len(x) else np.nan
        self.low = self.high = self.least = np.nan
        if self.n > 1:
            error, t = x.std(ddof=1) / np.sqrt(self.n), stats.t.ppf(0.975, self.n - 1)
            self.low, self.high = self.mean - t * error, self.mean + t * error
            power = lambda effect: stats.nct.sf(t, self.n - 1, effect)
            self.least = error * optimize.brentq(lambda effect: power(effect) - 0.8, 0, 10 * t)

    def sign(self):
        """-1 or 1 where the interval leaves out 0; otherwise 0: cannot tell."""
        return int(self.low > 0) - int(self.high < 0)

def paired(a, b):
    """a - b, two dicts by seed, for the seeds that both have."""
    return Effect([a[s] - b[s] for s in sorted(a) if s in b])

def num(x, digits=4):
    return ("%.*f" % (digits, np.round(x, digits) + 0)).replace("-", "−") if np.isfinite(x) else "–"

def small(e, digits=4, unit=""):
    return "%s%s<br><small>%s to %s</small>" % (
        num(e.mean, digits), unit, num(e.low, digits), num(e.high, digits))

def claim(what, than, e, lower="lower", higher="higher", unit=" nats", digits=4, paper="", sign=-1):
    """A difference: in short, in a sentence, and in numbers. sign: what the paper found."""
    word = {-1: lower, 0: "cannot tell", 1: higher}[e.sign()] if e.n > 1 else "too few runs"
    seen = "(95 %% interval %s to %s, %d seeds)" % (num(e.low, digits), num(e.high, digits), e.n)
    short, found = "%s against %s: %s" % (what, than, word), ""
    said = short + "."
    if e.sign():
        said = "%s: %s%s %s than %s %s." % (what, num(abs(e.mean), digits), unit, word, than, seen)
        found = " That is, at this scale, %swhat %s found." % (
            "" if e.sign() == sign else "the opposite of ", paper)
    elif e.n > 1:
        said += " The difference is %s%s %s; one of %s would have been seen four times in five." % (
            num(e.mean, digits), unit, seen, num(e.least, digits))
        found = " Neither for nor against %s." % paper
    return short, said + (found if paper else ""), small(e, digits, unit)

# --- data -----------------------------------------------------------------------------------------

class Data:
    """Of each run that finished its row and its arrays, by name and seed."""

    def __init__(self, results):
        self.results, self.plan, self.pictures = results, lab.plan(results), {}
        self.speed, self.alone = {}, 1.0
        self.runs = {run.name: {} for run in self.plan}
        for run in self.plan:
            row, fast = results.get(run.key), results.get("speed-" + run.key)
            if run.kind == "grid" or not row or row["status"] != "ok":
                continue
            self.runs[run.name][run.seed] = row = dict(row)
            if run.kind == "main":
                with np.load(os.path.join(lab.RUNS, run.key + ".npz")) as arrays:
                    row.update(derived(**arrays))
            if fast:
                self.speed[run.name] = float(fast["tokens_per_second"])
                self.alone = min(self.alone, float(fast["alone"]))
        for name in lab.VARIANTS:           # how hard each token is, the baseline of that seed says
            for seed, run in self.runs[name].items():
                base = self.runs["homogeneous"].get(seed)
                run["hard"] = base["nll"][-1] if base else np.full(len(run["byte"]), np.nan)

    def each(self, name, what="val_loss"):
        """By seed: what is a name, or a function of a run."""
        what = what if callable(what) else lambda run, column=what: np.array(run[column], float)
        return {seed: what(run) for seed, run in self.runs[name].items()}

    def effect(self, name, what):
        return Effect(self.each(name, what).values())

    def mean(self, name, what="val_loss"):
        return np.mean(list(self.each(name, what).values()) or [np.nan], axis=0)

def label(name):
    return lab.VARIANTS[name]["label"]

def derived(**a):
    """A run's arrays, by look, token, layer, and from here on by rising width of the experts."""
    order = np.argsort(a["widths"], kind="stable")
    a.update(widths=a["widths"][order], alike=a["alike"][order][:, order],
             first=np.argsort(order)[a["first"]], chosen=lab.bits(a["mask"])[..., order])
    a["work"] = a["chosen"] @ a["widths"]                     # of each token in each layer
    a["share"] = a["chosen"].sum((1, 2)) / a["chosen"].sum((1, 2, 3))[:, None]
    a["bytes"] = np.array([np.bincount(a["byte"], c, 256) for c in a["chosen"][-1].sum(1).T])
    return a

def rank(x, y):
    return stats.spearmanr(x, y)[0] if np.ptp(x) and np.ptp(y) else 0.0

def variation(a):
    q = a["bytes"] / np.maximum(a["bytes"].sum(1, keepdims=True), 1)
    return abs(q[:, None] - q[None]).sum(-1) / 2

PAIRS = np.triu_indices(lab.E, 1)
def nearness(a):
    """Rank correlation of the distance between two experts' bytes with that of their widths."""
    w = a["widths"]
    return rank(abs(w[:, None] - w[None])[PAIRS], variation(a)[PAIRS])

def same(what):                    # share of (token, layer) that chose as at the look before
    return lambda a: (a[what][1:] == a[what][:-1]).mean((1, 2))

# --- pictures: each function returns an SVG -------------------------------------------------------

def panel(title="", xlabel="", ylabel="", height=2.8):
    """Small: panels stand side by side where there is room, and below each other on a phone."""
    figure = plt.figure(figsize=(3.5, height), layout="constrained")
    return figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)

def svg(ax):
    """In the page's colours. The salt makes the names inside differ from other pictures'."""
    if ax.get_legend_handles_labels()[0]:                     # below, where it hides nothing
        ax.figure.legend(ncols=2, loc="outside lower left", handlelength=1.5, columnspacing=1.2)
    file = io.StringIO()
    with plt.rc_context({"svg.hashsalt": str(ax.figure.number)}):
        ax.figure.savefig(file, format="svg", metadata={"Date": None})
    text = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>| id="[\w.]+_\d+"', "",
                  file.getvalue(), flags=re.S)
    name = ax.get_title("left") or ax.get_xlabel()
    text = re.sub(r'.*<svg [^>]*?viewBox="([^"]*)"[^>]*>',
                  r'<svg viewBox="\1" role="img" aria-label="%s">' % name, text, flags=re.S)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text.replace("xlink:", ""))
    return re.sub(r">\s+<", "><", text.replace(LINE, "var(--line)").replace(INK, "currentColor"))

def look(name, **more):
    return dict(more, color=COLORS[name], label=label(name))

def means(d, names, x, y, **more):
    """For lines(): y against x, means over the seeds, a line per variant."""
    return [(d.mean(n, x), d.mean(n, y), look(n, **more)) for n in names]

def lines(title, xlabel, ylabel, curves, level=None, height=2.8):
    """curves: x, y and look of each. level: a dashed line."""
    ax = panel(title, xlabel, ylabel, height)
    for x, y, look in curves:
        ax.plot(x, y, **look)
    if level is not None:
        ax.axhline(level, **DASHED)
    if xlabel in ("step", "layer"):
        ax.locator_params(axis="x", nbins=6, integer=True)
    return svg(ax)

def over_flops(d, names):
    return lines("loss over training", "training FLOPs, 10¹²", "loss on the scored text", means(
        d, names, lambda a: a["points"] * a["flops_per_step"] / 1e12, lambda a: a["nll"].mean(1)))

def bars(d, names, title):
    """Activated ratio by rising width; the line is an even share."""
    ax = panel(title, BY_PLACE, "share of activations")
    for i, n in enumerate(names):
        at = np.arange(lab.E) + (i - (len(names) - 1) / 2) * 0.8 / len(names)
        ax.bar(at, d.mean(n, lambda a: a["share"][-1]), 0.75 / len(names), **look(n))
    ax.axhline(1 / lab.E, **DASHED)
    ax.set_xticks(range(lab.E), PLACES)
    ax.grid(axis="x", visible=False)
    return svg(ax)

def heat(matrix, title, rows, form="%.2f"):
    ax = panel(title, BY_PLACE, height=0.8 + 0.22 * len(rows))
    ax.pcolormesh(matrix, cmap="YlGnBu")
    middle = (matrix.min() + matrix.max()) / 2
    for (i, j), v in np.ndenumerate(matrix):
        ax.text(j + 0.5, i + 0.5, form % v, ha="center", va="center", fontsize=6.5,
                color="#ffffff" if v > middle else "#1c2733")
    ax.set_xticks(np.arange(lab.E) + 0.5, PLACES)
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
    ax.invert_yaxis(), ax.grid(visible=False), ax.spines[:].set_visible(False)
    return svg(ax)

def forest(effects):
    """Differences with their intervals, one below the other: name, Effect."""
    ax = panel(xlabel="difference of loss, nats", height=0.6 + 0.34 * len(effects))
    for i, (_, e) in enumerate(effects):
        color = (GREY, RED, BLUE)[e.sign()]
        ax.plot([e.low, e.high], [i, i], color=color, solid_capstyle="butt", lw=2)
        ax.plot(e.mean, i, "o", color=color, ms=4.5)
    ends = np.nan_to_num([[e.mean, e.low, e.high] for _, e in effects])
    room = 1.05 * min(abs(ends).max(), 3 * abs(ends[:, 0]).max()) or 1
    ax.axvline(0, color=INK, lw=0.8)
    ax.set_yticks(range(len(effects)), [n.replace(" − ", "\n− ") for n, _ in effects])
    ax.set(xlim=(-room, room), ylim=(len(effects) - 0.4, -0.6))
    ax.grid(axis="y", visible=False), ax.locator_params(axis="x", nbins=5)
    return svg(ax)

# --- the page's parts -----------------------------------------------------------------------------

def table(head, rows):
    cells = lambda tag, row: "<tr>%s</tr>" % "".join("<%s>%s</%s>" % (tag, c, tag) for c in row)
    return "<div class=wide><table><thead>%s</thead><tbody>%s</tbody></table></div>" % (
        cells("th", head), "".join(cells("td", r) for r in rows))

def panels(pictures):
    return "<div class=panels>%s</div>" % "".join("<div>%s</div>" % p for p in pictures)

def section(question, claims, *parts, shown=1, **values):
    """A question's row in the summary, with so many claims, and its section. Its docstring has the
    title, what the papers found, and a caption for each of the parts. A claim may be text alone."""
    title, paper, *captions = (" ".join(line.split()) for line in re.split(
        r"\n *- ", question.__doc__.format(**values)))
    body = ["<p>%s</p>" % (c if isinstance(c, str) else c[1]) for c in claims] + [
        "<figure>%s<figcaption>%s</figcaption></figure>" % both for both in zip(parts, captions)]
    return (["<a href=#%s>%s</a>" % (question.__name__, title), paper,
             *("<br>".join(c[i] for c in claims[:shown]) for i in (0, 2))],
            "<section class=question id=%s><h2>%s</h2><p class=paper>%s</p>%s</section>" % (
                question.__name__, title, paper, "".join(body)))

# --- the questions: each one's docstring is printed, too ------------------------------------------

PAIRS_OF_RUNS = [pair.split() for pair in (
    "arithmetic homogeneous HMoE", "arithmetic_topp homogeneous_topp HMoE",
    "modse homogeneous MoDSE", "arithmetic arithmetic_free HMoE",        # the headlines
    "equal_wide homogeneous", "modse equal_wide", "geometric homogeneous", "hybrid homogeneous",
    "arithmetic_lb arithmetic", "arithmetic_free homogeneous", "topp_no_entropy arithmetic_topp",
    "topp_raw arithmetic_topp", "arithmetic_topp arithmetic", "homogeneous dense",
    "homogeneous dense_total")]

def dense(d):
    """Is a mixture better than a dense model?
    - Every newcomer's first question.
    - As HMoE's figure 1. Left: loss of the finished runs against activated parameters per token.
      Right: within a run the learning rate is still to fall: a shorter one would reach less."""
    thousands = lambda n: [x / 1000 for x in d.each(n, "activated").values()]
    points = [(thousands(n), [*d.each(n).values()], look(n, marker="o", ls=""))
              for n in lab.VARIANTS]
    times = d.mean("dense_total", "flops") / d.mean("homogeneous", "flops")
    return section(
        dense, [claim("Equal experts", "a dense model with as many %s" % what,
                      paired(d.each("homogeneous"), d.each(n))) for n, what in (
            ("dense", "activated parameters"),
            ("dense_total", "parameters in total, and %s times the FLOPs" % num(times, 1)))],
        panels([lines("finished runs", "activated parameters, thousands", "validation loss", points,
                      height=3.7),
                over_flops(d, ["dense", "dense_total", "homogeneous", "arithmetic", "modse"])]))

def slope(d):
    """What the loss falls per e-fold of training: arithmetic runs of half and of full length, each
    with its whole schedule of the learning rate."""
    longer = np.log(d.mean("arithmetic", "steps") / d.mean("ratio 2.56", "steps"))
    return paired(d.each("ratio 2.56"), d.each("arithmetic")).mean / longer

def at_equal(d, a, b, what="tokens"):
    """a - b by seed, after b's loss is moved along the slope to what a spends."""
    spent = {"tokens": lambda n: 1, "FLOPs": lambda n: d.mean(n, "flops"),
             "time": lambda n: 1 / d.speed.get(n, np.nan)}[what]
    moved = slope(d) * np.log(spent(a) / spent(b)) if spent(a) != spent(b) else 0
    return paired(d.each(a), {s: v - moved for s, v in d.each(b).items()})

def headline(d):
    """Do experts of different sizes reach a lower loss?
    - HMoE: yes, 46.5 against 45.6 points, at fewer activated parameters. MoDSE: yes, on nine of
      nine benchmarks.
    - Differences of validation loss at equal tokens, paired by seed, with 95 % intervals (a wide
      one may leave): left the four chosen beforehand. Of twenty about one misses by chance alone.
    - For equal FLOPs and time the second model's loss is moved to what the first one spends, by
      {slope} nats per e-fold of training: the slope between arithmetic runs of half and of full
      length. Its own error is left out, so where budgets differ by half or more it is a guess.
      Visible: what would have been seen four times in five."""
    kinds = ["tokens", "FLOPs", "time"]
    names = ["%s − %s" % (label(a), label(b)) for a, b, *_ in PAIRS_OF_RUNS]
    effects = [[at_equal(d, a, b, k) for k in kinds] for a, b, *_ in PAIRS_OF_RUNS]
    shown = [(name, row[0]) for name, row in zip(names, effects)]
    d.pictures["differences"] = forest(shown[:4])
    return section(
        headline, [claim(label(a)[0].upper() + label(a)[1:], label(b), row[0], paper=paper)
                   for (a, b, paper), row in zip(PAIRS_OF_RUNS[:4], effects)]
        + [claim("Arithmetic at equal " + k, "equal, Top-2", e)
           for k, e in zip(kinds[1:], effects[0][1:])]
        + ["Under Top-P a token has %s equal experts, or %s arithmetic ones: with one alone its "
           "gate is 1, and the language model's loss teaches the router nothing." % tuple(
               num(d.mean(n, "experts_used"), 2) for n in ("homogeneous_topp", "arithmetic_topp"))],
        panels([d.pictures["differences"], forest(shown[4:])]),
        table(["difference of loss", *("equal " + k for k in kinds), "visible"],
              [[name, *map(small, row), num(row[0].least)] for name, row in zip(names, effects)]),
        shown=4, slope=num(slope(d)))

def strategies(d):
    """Which rule for the sizes?
    - HMoE: hybrid best (43.9), arithmetic 43.6, equal 43.2, geometric worst (42.6).
    - As HMoE's figure 6; right an expert's share of all activations, dashed: even."""
    return section(
        strategies, [claim(n, "arithmetic", at_equal(d, n.lower(), "arithmetic"), paper="HMoE",
                           sign=sign) for n, sign in (("Geometric", 1), ("Hybrid", -1))],
        panels([over_flops(d, ["homogeneous", "arithmetic", "hybrid", "geometric"]),
                bars(d, ["geometric", "hybrid"], "use of each expert")]), shown=2)

def ratios(d):
    """How much spread is good?
    - HMoE: 2.56 (loss 2.634; 2.665 at 1, 2.697 at 15).
    - As HMoE's figure 10: runs of half the length; eight widths that rise evenly, one total; grey:
      seeds. Right: differences from ratio 1, with 95 % intervals."""
    names = ["%g" % r for r in lab.RATIOS]
    losses = [d.each("ratio " + n) for n in names]
    effects = {n: paired(x, losses[0]) for n, x in zip(names, losses)}
    seeds = [(names, [x.get(s, np.nan) for x in losses], dict(color=GREY, lw=0.8, marker="o"))
             for s in losses[0]]
    means = np.nan_to_num([d.mean("ratio " + n) for n in names], nan=np.inf)
    return section(
        ratios, [claim("Ratio 2.56", "ratio 1", effects["2.56"], paper="HMoE"),
                 "The lowest mean is at %s." % (names + ["–"])[np.argmin([*means, 1e9])]],
        panels([lines("spread", "widest / narrowest", "validation loss",
                      seeds + [(names, means, dict(color=BLUE, marker="o", ms=5))]),
                forest([(n + " against 1", effects[n]) for n in names[1:]])]))

def usage(d):
    """Without the penalty, do wide experts take the tokens?
    - HMoE: yes, the four widest take about three quarters; with it the narrow ones take more.
    - As HMoE's figures 3 and 5: an expert's share of all activations; dashed: even.
    - As HMoE's figure 11: the same over training, a line per width from narrow (1) to wide (8)."""
    wide = lambda a: 100 * a["share"][-1, lab.E // 2:].sum() - 50
    d.pictures["usage"] = bars(d, ["arithmetic_free", "arithmetic_lb", "arithmetic"], "use, Top-2")
    lives = lambda name: lines(label(name), "step", "share of activations", [
        (d.mean(name, "points"), d.mean(name, "share")[:, e], dict(color=BY_WIDTH[e], label=place))
        for e, place in enumerate(PLACES if d.runs[name] else ())], 1 / lab.E)
    return section(
        usage, [claim("The four widest experts' share " + how, "an even half", d.effect(n, wide),
                      "smaller", "larger", " percentage points", 1, "HMoE", sign)
                for how, n, sign in (("without any penalty", "arithmetic_free", 1),
                                     ("with the P-Penalty", "arithmetic", -1))],
        panels([d.pictures["usage"],
                bars(d, ["arithmetic_topp", "topp_no_entropy", "topp_raw"], "use, Top-P")]),
        panels(map(lives, ["arithmetic_topp", "arithmetic", "arithmetic_free"])), shown=2)

def penalty(d):
    """Does the penalty's loss rise, and then fall?
    - HMoE: it rises for 1,000 steps, then falls.
    - As HMoE's figure 12: both losses against the step, means over the seeds."""
    pp = lambda a: a["log_pp"] / a["mask"].shape[-1]
    peak = d.mean("arithmetic", lambda a: 100 * np.argmax(pp(a)) / len(pp(a)))
    curves = lambda y: means(d, ["arithmetic", "hybrid", "geometric"], lambda a: a["log_step"], y)
    return section(
        penalty, [claim("The penalty's loss at the end", "at the start", d.effect(
            "arithmetic", lambda a: pp(a)[-5:].mean() - pp(a)[:3].mean()), unit="", digits=3),
                  "It is highest after %s %% of training." % num(peak, 0)],
        panels([lines("P-Penalty loss", "step", "per layer (2: even work)", curves(pp)),
                lines("language-model loss", "step", "training cross-entropy",
                      curves(lambda a: a["log_ce"]))]))

def activated(d):
    """Do activated parameters fall during training?
    - HMoE: yes, with the penalty, under both routings; under Top-P least in the first layer.
    - As figure 5 of HMoE's first version: over training, and by layer."""
    more = lambda x, y: 100 * (x.mean() / y.mean() - 1)
    later = lambda a: more(a["work"][-1], a["work"][0])
    deeper = lambda a: more(a["work"][-1, :, -1], a["work"][-1, :, 0])
    names = "arithmetic arithmetic_free arithmetic_topp topp_no_entropy homogeneous_topp".split()
    each = 3e-3 * lab.SCALE["width"]
    d.pictures["activated"] = lines(
        "activated in experts", "step", "per layer and token, thousands",
        means(d, names, "points", lambda a: each * a["work"].mean((1, 2))))
    by_layer = means(d, names, lambda a: np.arange(a["mask"].shape[-1]) + 1,
                     lambda a: each * a["work"][-1].mean(0), marker="o")
    return section(
        activated, [claim(what, than, d.effect(n, f), "less", "more", " %", 1, "HMoE", sign)
                    for what, than, n, f, sign in (
            ("Top-2, activated at the end", "at the first look", "arithmetic", later, -1),
            ("Top-P, activated at the end", "at the first look", "arithmetic_topp", later, -1),
            ("Top-P, the last layer", "the first", "arithmetic_topp", deeper, 1))],
        panels([d.pictures["activated"],
                lines("by layer, at the end", "layer", "per token, thousands", by_layer)]), shown=3)

FACTORS = np.array([0, 1, 1.14, 1.33, 1.52, 1.71, 1.9])    # MoDSE table 5's, in baseline means
def gains(d, name, fair):
    """By seed the mean (baseline - model) over tokens that the baseline finds as hard as FACTORS.
    fair: another seed's baseline says which these are. The baseline meets another of its seeds."""
    nll, out = {s: run["hard"] for s, run in d.runs["homogeneous"].items()}, []
    for s, run in d.runs[name].items():
        seeds = [s] * (name != "homogeneous") + [other for other in sorted(nll) if other != s]
        if s in nll and len(seeds) > fair:
            judge, gain = nll[seeds[fair]], nll[seeds[0]] - run["nll"][-1]
            limits = np.minimum(FACTORS * judge.mean(), judge.max())
            out.append([gain[judge >= limit].mean() for limit in limits])
    return np.array(out or [FACTORS * np.nan])

def ranks(a):
    """By layer: do harder tokens activate more width?"""
    return np.array([rank(a["hard"], w) for w in a["work"][-1].T])

def first_choices(a, times=1.9):
    """[layers, experts]: of tokens so many times as hard as the mean. 0: of all."""
    hard = a["first"][-1, a["hard"] >= times * a["hard"].mean()]
    return np.array([np.bincount(layer, minlength=lab.E) for layer in hard.T])

def harder(d):
    """Do harder tokens go to wider experts?
    - Both: yes. MoDSE: 2.01 first choices of a large expert to 1 of a small one on hard tokens; the
      harder the token, the larger the gain.
    - As MoDSE's table 5: gain over equal experts on tokens whose cross-entropy in the baseline is
      above its thresholds, as multiples of the mean. Left as the paper does it: that picks the
      baseline's own misses, on which <em>any</em> model gains, another seed of the baseline (grey)
      too. Right, and in the sentence above, another seed's baseline picks.
    - As MoDSE's figure 4: first choices of tokens above 1.9 times the mean difficulty.
    - Difficulty (the same seed's baseline's cross-entropy of the next byte) and activated width."""
    names = ["arithmetic", "modse", "arithmetic_topp", "topp_no_entropy", "topp_raw"]
    layers = ["layer %d" % (i + 1) for i in range(lab.SCALE["layers"])]
    correlation = {n: d.effect(n, lambda a: ranks(a).mean()) for n in names}
    odds = lambda a, times: 0 * a["hard"].mean() + np.log(np.divide(*(   # NaN without a baseline
        first_choices(a, times)[:, of].sum() + 0.5 for of in (slice(-3, None), slice(3)))))
    curves = lambda title, fair: lines(
        title, "tokens above this × mean difficulty", "baseline − model, nats",
        [(FACTORS, gains(d, n, fair).mean(0), look(n, marker="o"))
         for n in ["modse", "arithmetic", "arithmetic_topp", "homogeneous"]], 0)
    return section(
        harder,
        [claim("Rank correlation of difficulty and width, arithmetic, Top-2", "zero",
               correlation["arithmetic"], "less", "more", "", 3, "HMoE", 1),
         claim("MoDSE's gain on the hardest tokens", "on all",
               Effect(np.subtract(*gains(d, "modse", True).T[[-1, 0]])), "smaller", "larger",
               paper="MoDSE", sign=1),
         claim("First choices of MoDSE's three widest over its three narrowest, log: hard tokens",
               "all", d.effect("modse", lambda a: odds(a, 1.9) - odds(a, 0)), "less", "more", "", 2,
               "MoDSE", 1)],
        panels([curves("judged by the baseline itself", False),
                curves("judged by another seed", True)]),
        panels(heat(d.mean(n, first_choices), label(n) + ": hard tokens", layers, "%.0f")
               for n in ["homogeneous", "modse"] if d.runs[n]),
        table(["rank correlation", *layers, "all"], [
            [label(n), *(num(x, 3) for x in np.atleast_1d(d.mean(n, ranks))),
             small(correlation[n], 3)] for n in names]), shown=3)

def visible(byte):
    return {10: "↵", 32: "␣"}.get(byte, chr(byte) if 32 < byte < 127 else "%02x" % byte)

def tokens(d):
    """Which tokens does each expert take?
    - HMoE: the widest take hard ones.
    - As HMoE's figure 8, arithmetic, Top-P, one seed: bytes from easy to hard (beside them the
      baseline's mean cross-entropy of what follows), percent of their activations per expert.
    - As HMoE's table 5: bytes of which it has its largest shares, among those of half a percent of
      the text or more."""
    level = lambda a, e: a["hard"] @ a["chosen"][-1, ..., e].sum(1) / (
        a["chosen"][-1, ..., e].sum() or np.nan)               # of a dead expert nothing is known
    parts = []
    for a in list(d.runs["arithmetic_topp"].values())[:1]:
        often, counts = np.bincount(a["byte"], minlength=256), a["bytes"]
        mean = np.bincount(a["byte"], a["hard"], 256) / np.maximum(often, 1)
        common = np.flatnonzero(often >= max(len(a["byte"]) // 200, 1))
        common = common[np.argsort(mean[common], kind="stable")]
        pick = common[np.linspace(0, len(common) - 1, min(10, len(common))).astype(int)]
        best = [common[np.argsort(-row, kind="stable")][:8]
                for row in counts[:, common] / often[common]]
        parts = [
            panels([heat(100 * (counts[:, pick] / counts[:, pick].sum(0)).T, "% of activations",
                         ["%s   %s" % (visible(b), num(mean[b], 1)) for b in pick], "%.0f")]),
            table(["width", "bytes"], [
                [w, " ".join("<code>%s</code>" % html.escape(visible(b)) for b in row)]
                for w, row in zip(a["widths"], best)])]
    return section(
        tokens, [claim("Mean difficulty of what the widest expert takes, Top-P",
                       "what the narrowest takes",
                       d.effect("arithmetic_topp", lambda a: level(a, -1) - level(a, 0)),
                       paper="HMoE", sign=1)], *parts)

def alike(d):
    """Are experts of like width alike?
    - HMoE: yes, by the tokens they take.
    - As HMoE's figure 7, one seed: 1 less half the summed difference of the shares of bytes that
      two experts take; dark: near. Equal experts (left) stand in no order.
    - Mean cosine of two experts' outputs in the first layer on every byte's embedding, normalised,
      without what attention adds. Dark: alike. Neither paper has this."""
    between = lambda n: d.each(n, lambda a: a["alike"][PAIRS].mean())
    maps = lambda f, title: panels(heat(f(d.runs[n][min(d.runs[n])]), title + label(n), PLACES)
                                   for n in ("homogeneous", "arithmetic") if d.runs[n])
    return section(
        alike, [claim("Rank correlation of distances of bytes and of widths, arithmetic", "zero",
                      d.effect("arithmetic", nearness), "less", "more", "", 3, "HMoE", 1),
                claim("Mean cosine of two experts' outputs, arithmetic widths", "equal ones",
                      paired(between("arithmetic"), between("homogeneous")), unit="", digits=3)],
        maps(lambda a: 1 - variation(a), "bytes: "), maps(lambda a: a["alike"], "outputs: "))

def stability(d):
    """Does the routing path become stable?
    - MoDSE: yes, after a training period (no figure).
    - Share of (validation token, layer) that choose as at the look before, {every} steps earlier.
      As the learning rate falls to 0 the weights come to rest, and with them the choices."""
    kept = lambda a: 100 * same("first")(a)
    names = ["homogeneous", "modse", "arithmetic", "arithmetic_topp"]
    return section(
        stability, [claim("MoDSE, kept first choices at the last look", "at the second",
                          d.effect("modse", lambda a: kept(a)[-1] - kept(a)[0]), "fewer", "more",
                          " percentage points", 1)],
        panels(lines(title, "step", "share unchanged",
                     means(d, names, lambda a: a["points"][1:], same(kind)))
               for kind, title in (("first", "first choice"), ("mask", "whole set"))),
        every=lab.SCALE["steps"] // lab.SCALE["points"])

def devices(d):
    """Do pairs of a wide and a narrow expert balance devices?
    - MoDSE: parameters and work become equal (a sketch, no measurement).
    - Work is tokens × width, on {devices} devices; 1 is even. MoDSE's list of experts is one of
      pairs, so for it both placements are one.
    - The same at the end of training."""
    work = lambda place: lambda a: a["devices"][:, place, 2]
    names, ways = ["homogeneous", "modse", "arithmetic", "arithmetic_free"], ("pairs", "contiguous")
    return section(
        devices, [claim("Arithmetic, largest over mean work: in pairs", "contiguous", d.effect(
            "arithmetic", lambda a: (work(0)(a) - work(1)(a))[-1]), unit="", digits=3,
            paper="MoDSE")],
        panels(lines("work: " + way, "step", "largest / mean", means(d, names, "points", work(i)))
               for i, way in enumerate(ways)),
        table(["largest / mean", *(what + way for what in ("parameters, ", "tokens, ", "work, ")
                                   for way in ways)],
              [[label(n), *(num(x, 2) for x in d.mean(n, lambda a: a["devices"][-1].T.ravel()))]
               for n in names if d.runs[n]]), devices=lab.DEVICES)

def throughput(d):
    """Do unequal widths cost speed?
    - HMoE: no (13.83 against 13.86 samples/s).
    - All runs of the comparison. Tokens/s: one thread, measured alone, the median of three."""
    speed, rows = lambda n: d.speed.get(n, np.nan), []
    for n in filter(d.runs.get, lab.VARIANTS):
        run = next(iter(d.runs[n].values()))
        rows.append([
            label(n), " ".join(map(str, run["widths"])),
            *(num(d.mean(n, c) / 1e3, 0) for c in ("parameters", "activated")),
            num(d.mean(n, "experts_used"), 2), "%s<br><small>%s</small>" % (
                num(d.mean(n)), " ".join(map(num, d.each(n).values()))), num(speed(n), 0),
            " ".join("%s %s" % (c, run[c]) for c in ("lr", "pp", "lb", "ent") if float(run[c]))])
    ratio = speed("arithmetic") / speed("homogeneous")
    said = "%s times the tokens/s of equal widths" % num(ratio, 2)
    return section(
        throughput, [(said, "Arithmetic widths train at %s, Top-2; no interval." % said, "")],
        table(["run", "widths", "parameters, k", "activated, k", "experts per token",
               "loss: mean, seeds", "tokens/s", "rate, coefficients"], rows))

# --- the page -------------------------------------------------------------------------------------

QUESTIONS = (dense, headline, strategies, ratios, usage, penalty, activated, harder, tokens, alike,
             stability, devices, throughput)

def machine():
    info = pathlib.Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return "%s, %d cores, %s" % ([*names, platform.machine()][0], os.cpu_count(), platform.system())

def grid_row(d, family):
    """Its losses, a cell per learning rate with a line per coefficient. Bold: chosen."""
    option, cells, best = lab.COEFFICIENT[family], {}, lab.choose(d.results)[family]
    for r in lab.grid(family):
        cell = ("<b>%s%s</b>" if r.options == best else "%s%s") % (num(lab.loss(d.results, r), 3), (
            " <small>%s %g</small>" % (option, r.options[option]) if option else ""))
        cells.setdefault(r.options["lr"], []).append(cell)
    return [family, *map("<br>".join, cells.values())]

def write(results):
    d, s = Data(results), lab.SCALE
    rows, sections = zip(*(question(d) for question in QUESTIONS))
    head = ["question", "the papers", "here", "effect, 95 %"]
    size, spent = d.mean("homogeneous", "parameters"), d.mean("homogeneous", "flops")
    words = pathlib.Path(lab.HERE, "words.html").read_text(encoding="utf-8")
    page = string.Template(words).substitute(
        s, million=num(size / 1e6, 2), times=num(3e6 / size, 1), flops=num(spent / 1e12, 2),
        summary=table(head, rows), questions="".join(sections),
        is_quick="" if lab.QUICK else "hidden",
        seen_tokens="{:,}".format(s["steps"] * s["batch"] * s["context"]), experts=lab.E,
        few=s["seeds"][0], many=s["seeds"][1], grid_seed=lab.GRID_SEED,
        data=html.escape(os.path.basename(lab.DATA)), machine=html.escape(machine()),
        diverged=sum(results.get(r.key, {}).get("status") == "diverged" for r in d.plan) or "none",
        alone=num(100 * d.alone, 0), program=lab.fingerprint()[0], text=lab.fingerprint()[1],
        grid=table(["family", *("lr %g" % x for x in s["lr"])],
                   [grid_row(d, f) for f in lab.COEFFICIENT]))
    pathlib.Path(lab.OUT, "report.html").write_text(page, encoding="utf-8")
    plain = lambda x: re.sub(r"<[^>]*>", "", x.replace("<br><small>", ", ").replace("<br>", "; "))
    answers = ["| %s |\n" % " | ".join(map(plain, row)) for row in [head, ["---"] * 4, *rows]]
    pathlib.Path(lab.OUT, "answers.md").write_text(
        "".join(answers) + "\n" + machine() + ".\n", encoding="utf-8")
    real = lab.OUT == lab.HERE and not lab.QUICK and not os.environ.get("DATA")
    docs = pathlib.Path(os.path.dirname(os.path.dirname(lab.HERE)) if real else lab.RUNS, "docs")
    docs.mkdir(exist_ok=True)
    for name, text in d.pictures.items():
        text = text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        (docs / (name + ".svg")).write_text(text.replace(">", ">" + ALONE, 1), encoding="utf-8")
    plt.close("all")

if __name__ == "__main__":
    write(lab.read_results())
    print("%s/results.csv and %s/report.html are written" % ((os.path.relpath(lab.OUT),) * 2))
