"""report.py - what the runs say: statistics, pictures, lab/report.html, lab/answers.md, docs/*.svg.
Sentences about results are made from the numbers, here; what is said in any case, the captions too,
stands in words.html. `python3 lab/report.py` draws again from what is kept."""

import html
import os
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
LOOK = {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": LINE,
        "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
        "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "axes.grid": True,
        "grid.color": LINE, "grid.linewidth": 0.6, "axes.axisbelow": True, "font.size": 8,
        "axes.titlesize": 8.5, "axes.titlelocation": "left", "legend.frameon": False,
        "legend.fontsize": 7.2, "lines.linewidth": 1.5, "svg.fonttype": "none",
        "svg.hashsalt": "hmoe", "savefig.facecolor": "none", "axes.facecolor": "none"}
COLORS = dict(homogeneous="#8a8f98", equal_wide="#6d7480", arithmetic="#3d7ab8", modse="#4f9a6b",
              geometric="#b0709a", hybrid="#3f9aa5", arithmetic_lb="#c08a2e",
              arithmetic_free="#c4554d", arithmetic_topp="#7c68b8", homogeneous_topp="#a79a86",
              topp_no_entropy="#9d4f86", topp_raw="#b07a4a", dense="#8b7f3f", dense_total="#66603a")
BY_WIDTH = ["#4a7fc1", "#4f9bb5", "#55aa96", "#76ad6b", "#a5a64d", "#c99345", "#d0774a", "#c4554d"]
BLUE, GREY, RED = "#3d7ab8", "#8a8f98", "#c4554d"
PLACES = [str(i + 1) for i in range(lab.E)]
BY_PLACE = "expert, narrow to wide"

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
            self.least = error * noncentral(self.n - 1, t)

    def sign(self):
        """-1 or 1 where the interval leaves out 0; otherwise 0: cannot tell."""
        return int(self.low > 0) - int(self.high < 0)

def noncentral(df, t, power=0.8):
    """The c with which |Z + c| / sqrt(chi2 / df) exceeds t that often: power of the t test."""
    limit = t * np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, df) / df)
    found = lambda c: (stats.norm.cdf(c - limit) + stats.norm.cdf(-c - limit)).mean()
    return optimize.brentq(lambda c: found(c) - power, 0, 10 * t)

def paired(a, b):
    """a - b, two dicts by seed, for the seeds that both have."""
    return Effect([a[s] - b[s] for s in sorted(a) if s in b])

def num(x, digits=4):
    return ("%.*f" % (digits, x)).replace("-", "−") if np.isfinite(x) else "–"

def interval(e, digits=4):
    if e.n < 2:
        return "no interval: %d seed%s" % (e.n, "" if e.n == 1 else "s")
    return "95 %% interval %s to %s, %d seeds" % (num(e.low, digits), num(e.high, digits), e.n)

def small(e, digits=4):
    return "%s<br><small>%s to %s</small>" % tuple(num(x, digits) for x in (e.mean, e.low, e.high))

def verdict(e, lower, higher):
    return {-1: lower, 0: "cannot tell", 1: higher}[e.sign()]

def say(what, than, e, lower="lower", higher="higher", unit=" nats", digits=4, paper="", sign=-1):
    """The sentence for a difference, beside what a paper found. It follows the numbers alone."""
    there = "" if not paper else " That is, at this scale, %swhat %s found." % (
        "" if e.sign() == sign else "the opposite of ", paper)
    if e.sign():
        return "%s: %s%s %s than %s (%s).%s" % (what, num(abs(e.mean), digits), unit, verdict(
            e, lower, higher), than, interval(e, digits), there)
    if e.n < 2:
        return "%s against %s: cannot tell (%s)." % (what, than, interval(e))
    return ("%s against %s: cannot tell. The difference is %s%s (%s); one of %s would have been "
            "seen four times in five.%s" % (
                what, than, num(e.mean, digits), unit, interval(e, digits), num(e.least, digits),
                " Neither for nor against %s." % paper if paper else ""))

# --- data -----------------------------------------------------------------------------------------

class Data:
    """The plan's runs that finished: rows and arrays by name and seed."""

    def __init__(self, results):
        self.plan, self.results, self.pictures, self.speed = lab.plan(results), results, {}, {}
        self.rows, self.arrays = ({name: {} for name in lab.VARIANTS} for _ in range(2))
        for run in self.plan:
            row, fast = results.get(run.key), results.get("speed-" + run.key)
            if run.kind == "grid" or not row or row["status"] != "ok":
                continue
            self.rows.setdefault(run.name, {})[run.seed] = row
            if run.kind == "main":
                with np.load(os.path.join(lab.RUNS, run.key + ".npz")) as kept:
                    self.arrays[run.name][run.seed] = dict(kept)
            if fast:
                self.speed[run.name] = float(fast["tokens_per_second"]), float(fast["alone"])

    def get(self, name, column="val_loss"):
        return {s: float(row[column]) for s, row in self.rows.get(name, {}).items()}

    def mean_of(self, name, column):
        return np.mean(list(self.get(name, column).values()) or [np.nan])

    def each(self, name, function):
        return {s: function(a) for s, a in self.arrays[name].items()}

    def effect(self, name, function):
        return Effect(self.each(name, function).values())

    def mean(self, name, function):
        return np.mean(list(self.each(name, function).values()), axis=0)

def label(name):
    return lab.VARIANTS[name]["label"]

def minus(a, b):
    return "%s − %s" % (label(a), label(b))

# Of one run's arrays: experts are by rising width; `point` counts the looks during training.

def chosen(a, point=-1):
    return lab.bits(a["mask"][point])[..., np.argsort(a["widths"], kind="stable")]

def share(a, point=-1):
    count = chosen(a, point).sum((0, 1))
    return count / count.sum()

def width(a, point=-1):
    return chosen(a, point) @ np.sort(a["widths"])             # of a token in a layer, added

def over(function):
    return lambda a: np.array([function(a, p) for p in range(len(a["points"]))])

def steps(a):
    return a["points"]

def flops(a):
    return a["points"] * a["flops_per_step"] / 1e12

def scored(a):
    return a["nll"].mean(1)

def rank(x, y):
    return stats.spearmanr(x, y)[0] if np.ptp(x) and np.ptp(y) else 0.0

def bytes_of(a):
    """[experts, 256]: how often each byte activated each expert, in all layers."""
    return np.array([np.bincount(a["byte"], c, 256) for c in chosen(a).sum(1).T])

def variation(a):
    q = bytes_of(a) / np.maximum(bytes_of(a).sum(1, keepdims=True), 1)
    return abs(q[:, None] - q[None]).sum(-1) / 2

def divergence(a):
    q = bytes_of(a)[:, np.unique(a["byte"])] + 1
    q = q / q.sum(1, keepdims=True)
    return (q[:, None] * np.log(q[:, None] / q[None])).sum(-1)

def nearness(a):
    """Rank correlation of the distance between two experts' bytes with that of their widths."""
    w, pairs = np.sort(a["widths"]), np.triu_indices(len(a["widths"]), 1)
    return rank(abs(w[:, None] - w[None])[pairs], variation(a)[pairs])

def same(what):
    """Share of (token, layer) that chose as at the look before."""
    return lambda a: (a[what][1:] == a[what][:-1]).mean((1, 2))

# --- pictures -------------------------------------------------------------------------------------

def picture(draw, height=2.8):
    """An SVG in the page's colours, without links. Panels are small: they stand side by side where
    there is room, and below each other on a phone."""
    with plt.rc_context(LOOK):
        figure, axes = plt.subplots(figsize=(3.5, height), layout="constrained")
        draw(axes)
        path = os.path.join(lab.RUNS, "picture.svg")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
    with open(path) as file:
        text = file.read()
    picture.count += 1                   # names within a picture become unique on the page
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.S)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: ' id="p%d-%s"' % (picture.count, m[1])
                  if m[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', r"\g<1>p%d-" % picture.count, text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text)
    text = re.sub(r'<style type="text/css">.*?</style>', "", text, flags=re.S)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor")
    return re.sub(r">\s+<", "><", text.replace(LINE, "var(--line)"))

def lines(d, names, x, y, xlabel, ylabel, title, **marks):
    """y against x, means over the seeds, a line per variant."""
    def draw(ax):
        for name in [n for n in names if d.arrays[n]]:
            ax.plot(d.mean(name, x), d.mean(name, y), color=COLORS[name], label=label(name),
                    **marks)
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
        ax.xaxis.get_major_locator().set_params(integer=xlabel in ("layer", "step"), nbins=6)
        legend(ax)
    return picture(draw)

def bars(d, names, title):
    """Activated ratio by rising width; the line is an even share."""
    def draw(ax):
        for i, name in enumerate(n for n in names if d.arrays[n]):
            at = np.arange(lab.E) + (i - (len(names) - 1) / 2) * 0.8 / len(names)
            ax.bar(at, d.mean(name, share), 0.75 / len(names), color=COLORS[name],
                   label=label(name))
        even(ax, 1 / lab.E)
        ax.set(xlabel=BY_PLACE, ylabel="share of activations", title=title)
        ax.set_xticks(range(lab.E), PLACES)
        ax.grid(axis="x", visible=False)
        legend(ax)
    return picture(draw)

def legend(ax):
    """Below the axes, where it hides nothing."""
    if ax.get_legend_handles_labels()[0]:
        ax.figure.legend(ncols=2, loc="outside lower left", handlelength=1.5, columnspacing=1.2)

def even(ax, y):
    ax.axhline(y, color=INK, lw=0.7, ls=(0, (4, 3)))

def heat(matrix, title, rows, form="%.2f", dark_is_near=False):
    def draw(ax):
        ax.pcolormesh(matrix, cmap="YlGnBu_r" if dark_is_near else "YlGnBu")
        middle = (matrix.min() + matrix.max()) / 2
        for (i, j), v in np.ndenumerate(matrix):
            ax.text(j + 0.5, i + 0.5, form % v, ha="center", va="center", fontsize=6.5,
                    color="#ffffff" if (v > middle) != dark_is_near else "#1c2733")
        ax.set_xticks(np.arange(lab.E) + 0.5, PLACES)
        ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
        ax.invert_yaxis(), ax.grid(visible=False), ax.spines[:].set_visible(False)
        ax.set(xlabel=BY_PLACE, title=title)
    return picture(draw, 0.8 + 0.22 * len(rows))

def forest(effects):
    """Differences with their intervals, one below the other: [(name, Effect)]."""
    def draw(ax):
        for i, (name, e) in enumerate(effects):
            color = {-1: BLUE, 0: GREY, 1: RED}[e.sign()]
            ax.plot([e.low, e.high], [i, i], color=color, solid_capstyle="butt", lw=2)
            ax.plot(e.mean, i, "o", color=color, ms=4.5)
        ends = np.array([v for _, e in effects for v in (e.low, e.high, e.mean) if np.isfinite(v)])
        room = 1.3 * np.percentile(abs(ends), 80) if len(ends) else 1      # one wide one may leave
        ax.set_xlim(-room, room)
        ax.axvline(0, color=INK, lw=0.8)
        ax.set_yticks(range(len(effects)), [n.replace(" − ", "\n− ") for n, _ in effects])
        ax.set_ylim(len(effects) - 0.4, -0.6), ax.grid(axis="y", visible=False)
        ax.set(xlabel="difference of loss, nats"), ax.locator_params(axis="x", nbins=5)
    return picture(draw, 0.6 + 0.34 * len(effects))

# --- the page's parts -----------------------------------------------------------------------------

def read_words():
    """words.html: a list of lines for each name."""
    with open(os.path.join(lab.HERE, "words.html"), encoding="utf-8") as file:
        parts = re.split(r"^## (\w+)\n", file.read(), flags=re.M)
    return {name: text.strip().split("\n") for name, text in zip(parts[1::2], parts[2::2])}

WORDS = read_words()

def fill(name, **values):
    return string.Template("\n".join(WORDS[name])).substitute(values)

def table(head, rows, caption="", kind=""):
    cells = lambda tag, row: "<tr>%s</tr>" % "".join("<%s>%s</%s>" % (tag, c, tag) for c in row)
    return ("<figure><div class=wide><table class='%s'><thead>%s</thead><tbody>%s</tbody></table>"
            "</div><figcaption>%s</figcaption></figure>" % (
                kind, cells("th", head), "".join(cells("td", r) for r in rows), caption))

class Section:
    """A question: what the papers found, what is seen here, and parts: a list of pictures each, or
    a table's head and rows. Title, paper and a caption for each part are in words.html."""

    def __init__(self, name, short, effect, answers, parts, digits=4, **values):
        self.title, self.paper, *captions = fill(name, **values).split("\n")
        self.short, self.seen = short, "" if effect is None else small(effect, digits)
        self.body = "".join("<p>%s</p>" % a for a in answers) + "".join(
            table(*part, caption) if isinstance(part, tuple) else
            "<figure><div class=panels>%s</div><figcaption>%s</figcaption></figure>" % (
                "".join("<div>%s</div>" % p for p in part), caption)
            for part, caption in zip(parts, captions))

    def row(self, number):
        return ["<a href=#q%d>%s</a>" % (number, self.title), self.paper, self.short, self.seen]

    def html(self, number):
        return "<section id=q%d><h2><span>%d</span>%s</h2><p class=paper>%s</p>%s</section>" % (
            number, number, self.title, self.paper, self.body)

# --- the questions --------------------------------------------------------------------------------

HEADLINES = [("arithmetic", "homogeneous", "HMoE"), ("arithmetic_topp", "homogeneous_topp", "HMoE"),
             ("modse", "homogeneous", "MoDSE"), ("arithmetic", "arithmetic_free", "HMoE")]
OTHERS = [pair.split() for pair in (
    "equal_wide homogeneous", "modse equal_wide", "geometric homogeneous", "hybrid homogeneous",
    "arithmetic_lb arithmetic", "arithmetic_free homogeneous", "topp_no_entropy arithmetic_topp",
    "topp_raw arithmetic_topp", "arithmetic_topp arithmetic", "homogeneous dense",
    "homogeneous dense_total")]

def slope(d):
    """What the loss falls per e-fold of training: arithmetic runs of half and of full length, each
    with its whole schedule of the learning rate."""
    half, full = d.get("ratio 2.56"), d.get("arithmetic")
    longer = np.log(d.mean_of("arithmetic", "steps") / d.mean_of("ratio 2.56", "steps"))
    return np.mean([half[s] - full[s] for s in half if s in full] or [np.nan]) / longer

def at_equal(d, a, b, what="tokens"):
    """a - b by seed, after b's loss is moved along the slope to what a spends."""
    spent = lambda n: d.mean_of(n, "flops") if what == "FLOPs" else 1 / d.speed.get(n, [np.nan])[0]
    moved = slope(d) * np.log(spent(a) / spent(b)) if what != "tokens" else 0
    return paired(d.get(a), {s: v - moved for s, v in d.get(b).items()})

def over_flops(d, names):
    return lines(d, names, flops, scored, "training FLOPs, 10¹²", "loss on the scored text",
                 "loss over training")

def dense(d):
    def draw(ax):
        for name in lab.VARIANTS:
            x, y = (np.array(list(d.get(name, c).values())) for c in ("activated", "val_loss"))
            look = dict(marker="o", color=COLORS[name], ls="", mew=0)
            ax.plot(x / 1e3, y, ms=2.5, alpha=0.4, **look)
            if len(x):
                ax.plot(x.mean() / 1e3, y.mean(), ms=5.5, label=label(name), **look)
        ax.set(xlabel="activated parameters, thousands", ylabel="validation loss", xscale="log")
        ax.xaxis.set_major_formatter("{x:.0f}"), ax.xaxis.set_minor_formatter("{x:.0f}")
        legend(ax)
    e, total = (paired(d.get("homogeneous"), d.get(n)) for n in ("dense", "dense_total"))
    times = d.mean_of("dense_total", "flops") / d.mean_of("homogeneous", "flops")
    return Section(
        "dense", verdict(e, "yes, against as many activated parameters", "no"), e,
        [say("Equal experts", "a dense model with as many activated parameters", e),
         say("Equal experts", "a dense model with as many parameters in total, which spends %s "
             "times the FLOPs" % num(times, 1), total)],
        [[picture(draw, 3.7), over_flops(d, ["dense", "dense_total", "homogeneous", "arithmetic",
                                             "modse"])]])

def headline(d):
    shown, rest = ([(minus(a, b), at_equal(d, a, b)) for a, b, *_ in pairs]
                   for pairs in (HEADLINES, OTHERS))
    kinds = ("tokens", "FLOPs", "time")
    rows = [[minus(a, b)] + [small(at_equal(d, a, b, k)) for k in kinds]
            + [num(at_equal(d, a, b).least)] for a, b, *_ in HEADLINES + OTHERS]
    main = [(k, at_equal(d, "arithmetic", "homogeneous", k)) for k in kinds]
    d.pictures["differences"] = forest(shown)
    return Section(
        "headline", "; ".join("%s: %s" % (n, verdict(e, "yes", "no")) for n, (_, e) in zip(
            ("arithmetic, Top-2", "Top-P", "MoDSE"), shown)), shown[0][1],
        [say(label(a)[0].upper() + label(a)[1:], label(b), at_equal(d, a, b), paper=paper)
         for a, b, paper in HEADLINES] + ["Arithmetic against equal, Top-2: %s." % ", ".join(
             "at equal %s %s (%s)" % (k, verdict(e, "lower", "higher"), num(e.mean))
             for k, e in main)],
        [[d.pictures["differences"], forest(rest)],
         (["difference of loss"] + ["equal " + k for k in kinds] + ["visible"], rows)],
        slope=num(slope(d)))

def strategies(d):
    g, h = (at_equal(d, n, "arithmetic") for n in ("geometric", "hybrid"))
    return Section(
        "strategies", "geometric against arithmetic: " + verdict(g, "lower", "higher"), g,
        [say("Geometric", "arithmetic", g, paper="HMoE", sign=1),
         say("Hybrid", "arithmetic", h, paper="HMoE")],
        [[over_flops(d, ["homogeneous", "arithmetic", "hybrid", "geometric"]),
          bars(d, ["geometric", "hybrid"], "use of each expert")]])

def ratios(d):
    names = ["ratio %g" % r for r in lab.RATIOS]
    effects = [(n[6:] + " against 1", at_equal(d, n, names[0])) for n in names[1:]]
    means, e = np.array([d.mean_of(n, "val_loss") for n in names]), effects[1][1]
    def draw(ax):
        for s in d.get(names[0]):
            ax.plot(lab.RATIOS, [d.get(n).get(s, np.nan) for n in names], "o-", color=GREY, lw=0.8,
                    ms=2.5)
        ax.plot(lab.RATIOS, means, "o-", color=BLUE, ms=5)
        ax.axvline(1, color=INK, lw=0.7, ls=(0, (4, 3)))
        ax.set(xscale="log", xlabel="widest / narrowest", ylabel="validation loss", title="spread")
        ax.set_xticks(lab.RATIOS, [n[6:] for n in names]), ax.minorticks_off()
    told = ", ".join("%s %s" % (r, verdict(x, "lower", "higher")) for r, x in effects if x.sign())
    best = lab.RATIOS[int(np.argmin(np.where(np.isfinite(means), means, np.inf)))]
    return Section(
        "ratios", "2.56 against 1: " + verdict(e, "lower", "higher"), e,
        ["The lowest mean is at %g. Told from ratio 1: %s." % (best, told or "none"),
         say("Ratio 2.56", "ratio 1", e, paper="HMoE")], [[picture(draw), forest(effects)]])

def usage(d):
    wide = lambda a: 100 * share(a)[lab.E // 2:].sum() - 50
    free, pp = (d.effect(n, wide) for n in ("arithmetic_free", "arithmetic"))
    d.pictures["usage"] = bars(d, ["arithmetic_free", "arithmetic_lb", "arithmetic"], "use, Top-2")
    def lives(name):
        def draw(ax):
            for e in range(lab.E if d.arrays[name] else 0):
                x, y = d.mean(name, steps), d.mean(name, over(share))[:, e]
                ax.plot(x, y, color=BY_WIDTH[e])
                ax.text(x[-1], y[-1], " " + PLACES[e], color=BY_WIDTH[e], fontsize=7)
            even(ax, 1 / lab.E)
            ax.set(xlabel="step", ylabel="share of activations", title=label(name))
        return picture(draw)
    end = "an even half", "smaller", "larger", " percentage points", 1, "HMoE"
    return Section(
        "usage", "without it: %s; with it: %s" % tuple(verdict(
            x, "narrow ones take more", "wide ones take more") for x in (free, pp)), free,
        [say("The share of the four widest experts without any penalty", end[0], free, *end[1:], 1),
         say("The share of the four widest experts with the P-Penalty", end[0], pp, *end[1:], -1)],
        [[d.pictures["usage"],
          bars(d, ["arithmetic_topp", "topp_no_entropy", "topp_raw"], "use, Top-P")],
         [lives("arithmetic_topp"), lives("arithmetic"), lives("arithmetic_free")]], 1)

def penalty(d):
    pp = lambda a: a["log_pp"] / a["mask"].shape[-1]
    e = d.effect("arithmetic", lambda a: pp(a)[-5:].mean() - pp(a)[:3].mean())
    peak = d.effect("arithmetic", lambda a: 100 * np.argmax(pp(a)) / len(pp(a)))
    rise = d.effect("arithmetic", lambda a: pp(a).max() - pp(a)[:3].mean())
    curve = lambda y, ylabel, title: lines(d, ["arithmetic", "hybrid", "geometric"],
                                           lambda a: a["log_step"], y, "step", ylabel, title)
    return Section(
        "penalty", "highest after %s %% of training; end against start: %s" % (
            num(peak.mean, 0), verdict(e, "lower", "higher")), e,
        ["It is highest after %s %% of training, %s above the start." % (
            num(peak.mean, 0), num(rise.mean, 3)),
         say("The penalty's loss at the end, arithmetic", "at the start", e, unit="", digits=3)],
        [[curve(pp, "per layer (2: even work)", "P-Penalty loss"),
          curve(lambda a: a["log_ce"], "training cross-entropy", "language-model loss")]], 3)

def activated(d):
    more = lambda x, y: 100 * (x.mean() / y.mean() - 1)
    part = lambda a: more(width(a), width(a, 0))
    k, p = (d.effect(n, part) for n in ("arithmetic", "arithmetic_topp"))
    depth = d.effect("arithmetic_topp", lambda a: more(width(a)[:, -1], width(a)[:, 0]))
    names = "arithmetic arithmetic_free arithmetic_topp topp_no_entropy homogeneous_topp".split()
    each, end = 3e-3 * lab.SCALE["width"], ("less", "more", " %", 1, "HMoE")
    d.pictures["activated"] = lines(
        d, names, steps, over(lambda a, i: each * width(a, i).mean()), "step",
        "per layer and token, thousands", "activated in experts")
    return Section(
        "activated", "Top-2 %s, Top-P %s" % tuple(verdict(x, "fall", "rise") for x in (k, p)), p,
        [say(n + " with the penalty, parameters of chosen experts at the end", "at the first look",
             x, *end) for n, x in (("Top-2", k), ("Top-P", p))]
        + [say("Top-P, the last layer", "the first", depth, *end)],
        [[d.pictures["activated"], lines(
            d, names, lambda a: np.arange(a["mask"].shape[-1]) + 1,
            lambda a: each * width(a).mean(0), "layer", "per token, thousands",
            "by layer, at the end", marker="o", ms=3)]], 1)

FACTORS = np.array([0, 1, 1.14, 1.33, 1.52, 1.71, 1.9])    # MoDSE table 5's, in baseline means

def gains(d, name, fair):
    """By seed the mean (baseline - model) over tokens that the baseline finds as hard as FACTORS.
    fair: another seed's baseline says which these are. The baseline meets another of its seeds."""
    nll = {s: a["nll"][-1] for s, a in d.arrays["homogeneous"].items()}
    other = lambda *seeds: next((s for s in sorted(nll) if s not in seeds), None)
    out = {}
    for s, a in d.arrays[name].items():
        base = other(s) if name == "homogeneous" else s
        judge = other(s, base) if fair else base
        if base in nll and judge in nll:
            hard, gain = nll[judge] / nll[judge].mean(), nll[base] - a["nll"][-1]
            out[s] = [gain[hard >= min(f, hard.max())].mean() for f in FACTORS]
    return out

def harder(d):
    hard = {s: a["nll"][-1] for s, a in d.arrays["homogeneous"].items()}
    names = ["arithmetic", "modse", "arithmetic_topp", "topp_no_entropy", "topp_raw"]
    runs = {n: [(hard[s], a) for s, a in d.arrays[n].items() if s in hard] for n in names}
    names = [n for n in names if runs[n]]
    ranks = {n: np.array([[rank(h, w) for w in width(a).T] for h, a in runs[n]]) for n in names}
    effect = {n: Effect(ranks[n].mean(1)) for n in names}
    e, gain = effect.get("arithmetic", Effect([])), Effect(
        g[-1] - g[0] for g in gains(d, "modse", True).values())
    def curves(fair, title):
        def draw(ax):
            for n in ("modse", "arithmetic", "arithmetic_topp", "homogeneous"):
                g = list(gains(d, n, fair).values())
                if g:
                    ax.plot(FACTORS, np.mean(g, axis=0), "o-", ms=3, color=COLORS[n],
                            label=label(n) if n != "homogeneous" else "equal, another seed")
            even(ax, 0)
            ax.set(xlabel="tokens above this × mean difficulty", ylabel="baseline − model, nats",
                   title=title)
            legend(ax)
        return picture(draw)
    def tenths(ax):
        for n in names:
            y = [[width(a)[t].mean() / width(a).mean()
                  for t in np.array_split(np.argsort(h, kind="stable"), 10)] for h, a in runs[n]]
            ax.plot(range(1, 11), np.mean(y, axis=0), color=COLORS[n], label=label(n))
        even(ax, 1)
        ax.set(xlabel="tenth of the tokens, easy to hard", ylabel="activated width / its mean",
               title="width and difficulty")
        legend(ax)
    place = lambda a: np.argsort(np.argsort(a["widths"], kind="stable"))[a["first"][-1]]
    first = [np.array([np.bincount(l, minlength=lab.E) for l in place(a)[h > 1.9 * h.mean()].T])
             for h, a in runs["modse"]]
    large = Effect([np.log((c[:, -3:].sum() + 0.5) / (c[:, :3].sum() + 0.5)) for c in first])
    layers = ["layer %d" % (i + 1) for i in range(lab.SCALE["layers"])]
    maps = [heat(np.mean(first, axis=0), "MoDSE: first choices of hard tokens", layers, "%.0f")
            ] if first else []
    return Section(
        "harder", "arithmetic, Top-2: %s; MoDSE's gain there: %s" % (
            verdict(e, "to narrower ones", "to wider ones"), verdict(gain, "smaller", "larger")), e,
        [say("Rank correlation of difficulty and activated width, arithmetic, Top-2", "zero", e,
             "less", "more", "", 3, "HMoE", 1),
         "MoDSE's three widest experts are %s times as often first choice of hard tokens as its "
         "three narrowest (%s to %s, %d seeds): %s." % (
             *(num(np.exp(x), 2) for x in (large.mean, large.low, large.high)), large.n,
             verdict(large, "less often", "more often")),
         say("MoDSE's gain over equal experts on the hardest tokens", "on all", gain, "smaller",
             "larger", paper="MoDSE", sign=1)],
        [[curves(False, "judged by the baseline itself"), curves(True, "judged by another seed")],
         [picture(tenths)] + maps, (["rank correlation"] + layers + ["all"], [
             [label(n)] + [num(x, 3) for x in ranks[n].mean(0)] + [small(effect[n], 3)]
             for n in names])], 3)

def visible(byte):
    return {10: "↵", 32: "␣"}.get(byte, chr(byte) if 32 < byte < 127 else "%02x" % byte)

def tokens(d):
    ours, hard, parts = d.arrays["arithmetic_topp"], d.arrays["homogeneous"], []
    both = sorted(set(ours) & set(hard))
    level = lambda s, e: np.average(hard[s]["nll"][-1],
                                    weights=1e-9 + chosen(ours[s])[..., e].sum(1))
    e = Effect([level(s, -1) - level(s, 0) for s in both])
    if both:
        a, nll = ours[both[0]], hard[both[0]]["nll"][-1]
        often, counts = np.bincount(a["byte"], minlength=256), bytes_of(a)
        mean = np.bincount(a["byte"], nll, 256) / np.maximum(often, 1)
        common = np.flatnonzero(often >= max(len(nll) // 200, 1))
        common = common[np.argsort(mean[common], kind="stable")]
        pick = common[np.linspace(0, len(common) - 1, min(10, len(common))).astype(int)]
        best = [common[np.argsort(-row, kind="stable")][:8]
                for row in (counts / np.maximum(often, 1))[:, common]]
        parts = [[heat(100 * (counts[:, pick] / counts[:, pick].sum(0)).T, "% of activations", [
            "%s   %.1f" % (visible(b), mean[b]) for b in pick], "%.0f")], (["width", "bytes"], [
                ["%d" % w, " ".join("<code>%s</code>" % html.escape(visible(b)) for b in row)]
                for w, row in zip(np.sort(a["widths"]), best)])]
    return Section(
        "tokens", "the widest: " + verdict(e, "easier than the narrowest's", "harder ones"), e,
        [say("Mean difficulty of what the widest expert takes, Top-P", "what the narrowest takes",
             e, paper="HMoE", sign=1)], parts)

def alike(d):
    e, pairs = d.effect("arithmetic", nearness), np.triu_indices(lab.E, 1)
    between = lambda a: a["alike"][pairs].mean()
    outputs = paired(d.each("arithmetic", between), d.each("homogeneous", between))
    by_width = lambda a: a["alike"][np.ix_(*[np.argsort(a["widths"], kind="stable")] * 2)]
    maps = lambda f, title, near: [
        heat(f(d.arrays[n][min(d.arrays[n])]), title + label(n), PLACES, dark_is_near=near)
        for n in ("homogeneous", "arithmetic") if d.arrays[n]]
    return Section(
        "alike", verdict(e, "no, less than others", "yes"), e,
        [say("Rank correlation of the distances of bytes and of widths, arithmetic", "zero", e,
             "less", "more", "", 3, "HMoE", 1),
         say("Mean cosine between two experts' outputs, arithmetic widths", "equal ones", outputs,
             unit="", digits=3)],
        [maps(variation, "bytes: ", True), maps(divergence, "KL: ", True),
         maps(by_width, "outputs: ", False)], 3)

def stability(d):
    kept = lambda what, point: lambda a: 100 * same(what)(a)[point]
    e = d.effect("modse", lambda a: kept("first", -1)(a) - kept("first", 0)(a))
    names = ["homogeneous", "modse", "arithmetic", "arithmetic_topp"]
    return Section(
        "stability", verdict(e, "less and less", "more and more"), e,
        ["At the last look %s %% of MoDSE's (token, layer) keep their first choice, %s %% their "
         "whole set." % tuple(num(d.effect("modse", kept(w, -1)).mean, 1)
                              for w in ("first", "mask")),
         say("MoDSE, kept first choices at the last look", "at the second", e, "fewer", "more",
             " percentage points", 1, "MoDSE", 1)],
        [[lines(d, names, lambda a: a["points"][1:], same(w), "step", "share unchanged", t)
          for w, t in (("first", "first choice"), ("mask", "whole set"))]], 1,
        every=lab.SCALE["steps"] // lab.SCALE["points"])

def devices(d):
    e = d.effect("arithmetic", lambda a: a["devices"][-1, 0, 2] - a["devices"][-1, 1, 2])
    names = [n for n in ("homogeneous", "modse", "arithmetic", "arithmetic_free") if d.arrays[n]]
    ways = ("pairs", "contiguous")
    def draw(ax):
        for n in [n for n in names if n != "homogeneous"]:
            for i in range(2):
                ax.plot(d.mean(n, steps), d.mean(n, lambda a: a["devices"][:, i, 2]),
                        color=COLORS[n], ls=("-", (0, (2, 1.5)))[i],
                        label="%s: %s" % (label(n), ways[i]))
        ax.set(xlabel="step", ylabel="largest / mean", title="work per device")
        legend(ax)
    return Section(
        "devices", verdict(e, "yes", "no, less even"), e,
        [say("Arithmetic on %d devices, largest over mean work: in pairs" % lab.DEVICES,
             "contiguous", e, unit="", digits=3, paper="MoDSE")],
        [[picture(draw)],
         (["largest / mean", ""] + [w + p for w in ("parameters, ", "tokens, ", "work, ")
                                    for p in ways],
          [[label(n), when] + [num(x, 2) for x in d.mean(n, lambda a: a["devices"][at]).T.flat]
           for n in names for at, when in ((0, "early"), (-1, "late"))])], 3, devices=lab.DEVICES)

def throughput(d):
    speed, rows = lambda n: d.speed.get(n, [np.nan])[0], []
    part = speed("arithmetic") / speed("homogeneous")
    for n in [n for n in lab.VARIANTS if d.rows[n]]:
        row, a = (next(iter(x[n].values())) for x in (d.rows, d.arrays))
        rows.append([label(n), " ".join("%d" % w for w in np.sort(a["widths"]))] + [
            num(d.mean_of(n, c) / 1e3, 0) for c in ("parameters", "activated")] + [
            num(d.mean_of(n, "experts_used"), 2), "%s<br><small>%s</small>" % (
                num(d.mean_of(n, "val_loss")), " ".join(num(x) for x in d.get(n).values())),
            num(speed(n), 0), row["lr"],
            " ".join("%s %s" % (c, row[c]) for c in ("pp", "lb", "ent") if float(row[c]))])
    return Section(
        "throughput", "%s times the tokens/s of equal widths" % num(part, 2), None,
        ["Arithmetic widths train %s times as many tokens per second as equal ones, Top-2, one "
         "thread, measured alone; the median of three, without an interval." % num(part, 3)],
        [(["run", "widths", "parameters, k", "activated, k", "experts per token",
           "loss: mean, seeds", "tokens/s", "rate", "coefficients"], rows)])

# --- the page -------------------------------------------------------------------------------------

QUESTIONS = (dense, headline, strategies, ratios, usage, penalty, activated, harder, tokens, alike,
             stability, devices, throughput)

def machine():
    try:
        with open("/proc/cpuinfo") as file:
            name = re.search(r"model name\s*: (.*)", file.read()).group(1)
    except (OSError, AttributeError):
        name = platform.machine()
    return "%s, %d cores, %s" % (name, os.cpu_count() or 1, platform.system())

def grid_row(d, family):
    """Its losses, a cell per learning rate with a line per coefficient, and what was chosen."""
    runs, option, rates = lab.grid(family), lab.COEFFICIENT[family], lab.SCALE["lr"]
    losses = [lab.loss(d.results, r) for r in runs]
    best = runs[int(np.argmin(losses))].options
    cells = [[("<b>%s</b>" if r.options is best else "%s") % (
              num(x, 3) if np.isfinite(x) else "diverged") for r, x in zip(runs, losses)
              if r.options["lr"] == rate] for rate in rates]
    edge = [n for n, values in (("rate", rates), (option, lab.SCALE.get(option, [0])))
            if len(values) > 1 and best[n.replace("rate", "lr")] in (values[0], values[-1])]
    return [family] + ["<br>".join(c) for c in cells] + ["rate %g%s%s" % (
        best["lr"], ", %s %g" % (option, best[option]) if option else "",
        "<br><small>at the grid's edge: %s</small>" % ", ".join(edge) if edge else "")]

def method(d):
    s, alone = lab.SCALE, min([x for _, x in d.speed.values()] or [np.nan])
    grid = fill("grid", coefficients="; ".join("%s %s" % (o, ", ".join("%g" % v for v in s[o]))
                                               for o in ("lb", "pp", "ent")))
    return fill(
        "method", **{k: v for k, v in s.items() if isinstance(v, int)},
        tokens="{:,}".format(s["steps"] * s["batch"] * s["context"]), few=s["seeds"][0],
        experts=lab.E, many=s["seeds"][1], data=html.escape(os.path.basename(lab.DATA)),
        grid_seed=lab.GRID_SEED,
        diverged=sum(d.results.get(r.key, {}).get("status") == "diverged"
                     for r in d.plan) or "none",
        machine=html.escape(machine()), alone=num(100 * alone, 0), program=lab.fingerprint()[0],
        doubt="" if alone > 0.85 else ": <b>it was not alone, so these times are doubtful</b>",
        text=lab.fingerprint()[1], grid=table(
            ["family"] + ["rate %g" % x for x in s["lr"]] + ["chosen"],
            [grid_row(d, f) for f in lab.COEFFICIENT], grid))

def standalone(svg):
    """For the README: with its colours inside, light and dark."""
    style = ("<style>svg{color:#23262c;--line:#dedbd3}@media(prefers-color-scheme:dark){"
             "svg{color:#dedcd6;--line:#3a3f47}}</style>")
    svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return svg.replace(">", ">" + style, 1)

def write(results):
    picture.count, d = 0, Data(results)
    sections = [question(d) for question in QUESTIONS]
    rows = [s.row(i) for i, s in enumerate(sections, 1)]
    size, spent = d.mean_of("homogeneous", "parameters"), d.mean_of("homogeneous", "flops")
    head = ["question", "the papers", "here", "effect, 95 %"]
    page = fill("page", million=num(size / 1e6, 2), times=num(3e6 / size, 1),
                flops=num(spent / 1e12, 2), summary=table(head, rows, "", "summary"),
                quick=fill("quick", steps=lab.SCALE["steps"]) if lab.QUICK else "",
                method=method(d), questions="".join(s.html(i) for i, s in enumerate(sections, 1)))
    lab.write_whole(os.path.join(lab.OUT, "report.html"), page.encode())
    plain = lambda x: re.sub(r"<[^>]*>", "", x.replace("<br>", ", "))
    answers = ["| %s |" % " | ".join(head), "|---|---|---|---|"] + [
        "| %s |" % " | ".join(plain(c) for c in row) for row in rows] + ["", machine() + "."]
    lab.write_whole(os.path.join(lab.OUT, "answers.md"), ("\n".join(answers) + "\n").encode())
    real = lab.OUT == lab.HERE and not lab.QUICK
    docs = os.path.join(*(lab.HERE, "..") if real else (lab.RUNS,), "docs")
    os.makedirs(docs, exist_ok=True)
    for name, svg in d.pictures.items():
        lab.write_whole(os.path.join(docs, name + ".svg"), (standalone(svg) + "\n").encode())

if __name__ == "__main__":
    write(lab.read_results())
