#!/usr/bin/env python3
"""lab.py - trains what both papers compare, at toy scale, and writes report.html here.

`make lab` runs it; QUICK=1 is the short form. Two ./train_tiny of one thread work at a time, and at
several points of training ./generate looks into the models. Every result is kept: a row each in
results.csv, and what report.py draws in runs/KEY.npz. KEY stands for all options, program
and text: a run that is there is not repeated, and after an interruption the same command goes on
where it was. DATA=FILE is another text; BIN stands before the programs' names."""

import concurrent.futures
import csv
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
from safetensors import safe_open

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.environ.get("LAB_OUT") or HERE
BIN = os.path.join(".", os.environ.get("BIN", ""))
DATA = os.environ.get("DATA") or "tinyshakespeare/input.txt"
QUICK = os.environ.get("QUICK", "") not in ("", "0")
RUNS = os.path.join(OUT, "runs")
E, DEVICES, GRID_SEED = 8, 4, 7          # the grid's seed is never reported

# Why this size: one thread of an Intel Xeon with AVX-512 trains it at 38,000 tokens/s, so all runs
# fit into three quarters of an hour on two cores, and yet each sees the text almost twice.
SCALE = dict(width=96, layers=3, heads=4, context=64, hidden=128, batch=12, steps=2400, points=8,
             score=8192, seeds=(3, 5), lr=(0.001, 0.002, 0.004), lb=(0.003, 0.01, 0.03),
             pp=(0.01, 0.03, 0.1), ent=(0.003, 0.01, 0.03), eval_tokens=32768, speed=48)
if QUICK:
    SCALE.update(width=48, layers=2, hidden=64, steps=300, points=4, score=2048, seeds=(2, 2),
                 lr=(0.004, 0.008), lb=(0.01,), pp=(0.03,), ent=(0.01,), eval_tokens=4096, speed=24)
SCALE["steps"] = int(os.environ.get("LAB_STEPS") or SCALE["steps"])

# What is compared: name, label, family, whether with more seeds, and options beside Top-2 and
# arithmetic widths. A family's grid runs on its first one, over learning rate and coefficient.
H = SCALE["hidden"]
TOP_P = dict(routing="topp", p=0.6, pp=0.1)      # HMoE's penalty; the grid is over the entropy loss
COEFFICIENT = {"dense": None, "equal Top-2": "lb", "penalty Top-2": "pp", "MoDSE Top-2": "lb",
               "equal Top-P": "ent", "penalty Top-P": "ent"}
VARIANTS = {name: dict(label=label, family=family, many=many, options=options)
            for name, label, family, many, options in [
    ("homogeneous", "equal, Top-2", "equal Top-2", 1, dict(sizes="homogeneous")),
    ("modse", "MoDSE, Top-2", "MoDSE Top-2", 1, dict(sizes="modse")),
    ("arithmetic", "arithmetic, Top-2", "penalty Top-2", 1, dict()),
    ("dense", "dense, same activated", "dense", 0, dict(experts=1, hidden=2 * H + 2)),
    ("dense_total", "dense, same total", "dense", 0, dict(experts=1, hidden=E * H + 2)),
    ("equal_wide", "equal, MoDSE's width", "equal Top-2", 0, dict(sizes="homogeneous")),
    ("geometric", "geometric, Top-2", "penalty Top-2", 0, dict(sizes="geometric")),
    ("hybrid", "hybrid, Top-2", "penalty Top-2", 0, dict(sizes="hybrid")),
    ("arithmetic_lb", "arithmetic, balanced", "penalty Top-2", 0, dict(pp=0)),
    ("arithmetic_free", "arithmetic, no penalty", "penalty Top-2", 1, dict(pp=0)),
    ("homogeneous_topp", "equal, Top-P", "equal Top-P", 1,
     dict(TOP_P, sizes="homogeneous", pp=0, lb=0.01)),
    ("arithmetic_topp", "arithmetic, Top-P", "penalty Top-P", 1, dict(TOP_P)),
    ("topp_no_entropy", "Top-P, no entropy loss", "penalty Top-P", 0, dict(TOP_P, ent=0)),
    ("topp_raw", "Top-P, raw gates", "penalty Top-P", 0, dict(TOP_P, gate="raw"))]}
RATIOS = (1, 1.6, 2.56, 4.8, 15)

class Failure(Exception):
    """Nothing can go on; its text is for the user."""

# --- the plan -------------------------------------------------------------------------------------

class Run:
    """One training run. ready: what its options depend on is known."""

    def __init__(self, kind, name, seed, steps, options, ready=True):
        self.kind, self.name, self.seed, self.ready = kind, name, seed, ready
        parts = SCALE["points"] if kind == "main" else 1
        self.points = [round(steps * i / parts) for i in range(1, parts + 1)]
        self.options = dict(
            {o: SCALE[o] for o in ("width", "layers", "heads", "context", "batch")}, experts=E,
            hidden=H, sizes="arithmetic", routing="topk", k=min(2, options.get("experts", E)),
            p=0.6, gate="norm", pp=0, lb=0, ent=0, z=0, steps=steps, accum=1, lr=SCALE["lr"][0],
            warmup=(steps + 2) // 3, beta1=0.9, beta2=0.99, clip=1, dropout=0, seed=seed)
        self.options.update(options)
        self.options.update({"min-lr": 0, "weight-decay": 0.1, "eval-every": self.points[0],
                             "eval-tokens": SCALE["eval_tokens"]})
        if self.options["experts"] == 1:
            self.options.update(gate="raw", sizes="homogeneous")
        what = [self.options, self.points, kind == "main" and SCALE["score"], fingerprint()]
        self.key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

@functools.lru_cache(None)
def fingerprint():
    """Of the program that trains and of the text: other ones have other results."""
    return [hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16]
            for path in (BIN + "train_tiny", DATA)]

def grid(family):
    """The family's runs with each learning rate and coefficient, on a seed of their own."""
    name = next(n for n in VARIANTS if VARIANTS[n]["family"] == family)
    option = COEFFICIENT[family]
    return [Run("grid", name, GRID_SEED, max(SCALE["steps"] // 3, 2), dict(
                VARIANTS[name]["options"], lr=lr, **({option: value} if option else {})))
            for lr in SCALE["lr"] for value in (SCALE[option] if option else [0])]

def loss(results, run):
    row = results.get(run.key)
    return float(row["val_loss"]) if row and row["status"] == "ok" else float("inf")

def choose(results):
    """Of each family the options that won. All mixtures have one learning rate, the best of all:
    single short runs cannot tell which wants which, and it matters more than what is compared."""
    grids = {family: grid(family) for family in COEFFICIENT}
    mean = lambda lr: np.mean([loss(results, r) for family, runs in grids.items() for r in runs
                               if family != "dense" and r.options["lr"] == lr])
    rate = min(SCALE["lr"], key=mean)
    return {family: min((r for r in runs if family == "dense" or r.options["lr"] == rate),
                        key=lambda r: loss(results, r)).options for family, runs in grids.items()}

def plan(results):
    """All runs, in the order in which they are made; the others are ready when the grid is done."""
    best, grids = choose(results), [r for family in COEFFICIENT for r in grid(family)]
    known = all(r.key in results for r in grids)
    main, seeds = [], SCALE["seeds"]
    for name, v in VARIANTS.items():
        option, ready = COEFFICIENT[v["family"]], known
        options = dict(v["options"], lr=best[v["family"]]["lr"])
        if option:
            options.setdefault(option, best[v["family"]][option])
        if name == "arithmetic_lb":
            options["lb"] = best["MoDSE Top-2"]["lb"]
        if name == "equal_wide":                 # the paper's "baseline 105 %"
            modse = [r for r in main if r.name == "modse"]
            ready = known and all(r.key in results for r in modse)
            options["hidden"] = round(np.mean([float(results[r.key]["mean_width"]) for r in modse
                                               if np.isfinite(loss(results, r))] or [H]))
        main += [Run("main", name, seed, SCALE["steps"], options, ready)
                 for seed in range(1, 1 + seeds[v["many"]])]
    rate, pp = (best["penalty Top-2"][o] for o in ("lr", "pp"))
    ratios = [Run("ratio", "ratio %g" % ratio, seed, max(SCALE["steps"] // 2, 2), dict(
                  sizes=",".join("%.4f" % (1 + (ratio - 1) * i / (E - 1)) for i in range(E)),
                  lr=rate, pp=pp), known)
              for ratio in RATIOS for seed in range(1, 1 + seeds[0])]
    return grids + main + ratios

# --- what is kept ---------------------------------------------------------------------------------

def read_results():
    """The rows by key, but those of runs whose arrays are gone."""
    path = pathlib.Path(OUT, "results.csv")
    rows = csv.DictReader(path.read_text().splitlines()) if path.exists() else []
    return {row["key"]: row for row in rows if row["kind"] != "main" or row["status"] != "ok"
            or os.path.exists(os.path.join(RUNS, row["key"] + ".npz"))}

def write_results(results):
    """A file is replaced whole, so a kill leaves the old one or the new one."""
    path = os.path.join(OUT, "results.csv")
    columns = dict.fromkeys(column for row in results.values() for column in row)
    with open(path + ".new", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(results.values())
    os.replace(path + ".new", path)

def write_arrays(path, arrays):
    with open(path + ".new", "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(path + ".new", path)

# --- programs, and what they write ----------------------------------------------------------------

def call(*arguments):
    """Runs a program, and returns what it says."""
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise Failure("%s: %s" % (arguments[0], done.stderr.strip() or done.returncode))
    return done.stdout

def read_routes(path, layers):
    """A file of `generate --routes`: of each token its byte, the cross-entropy of the next one, and
    by layer the first choice and the set of experts, bit e for expert e."""
    rows = list(csv.DictReader(pathlib.Path(path).read_text().splitlines()))
    if not rows or [int(r["layer"]) for r in rows] != [*range(layers)] * (len(rows) // layers):
        raise Failure("%s: not a row for each token and layer" % path)
    sets = [[int(e) for e in r["experts"].split()] for r in rows]
    first, mask = [s[0] for s in sets], [sum(1 << e for e in s) for s in sets]
    return dict(byte=np.array([int(r["byte"]) for r in rows[::layers]], np.uint8),
                nll=np.array([float(r["nll"]) for r in rows[::layers]]),
                first=np.array(first, np.uint8).reshape(-1, layers),
                mask=np.array(mask, np.uint32).reshape(-1, layers))

def read_log(folder):
    return np.atleast_1d(np.genfromtxt(os.path.join(folder, "log.csv"), delimiter=",", names=True))

def bits(mask):
    """Sets as numbers become sets as rows of E zeros and ones."""
    return (mask[..., None] >> np.arange(E, dtype=np.uint32) & 1).astype(bool)

def expert_outputs(folder, experts):
    """Of each pair of experts the mean cosine between what both make of the same tokens: of every
    byte's embedding, normalised as the first layer does it, without what attention adds."""
    with safe_open(os.path.join(folder, "model.safetensors"), "np") as file:
        tensor = {name: file.get_tensor(name) for name in file.keys()}
    x, layer, y = tensor["model.embed_tokens.weight"], "model.layers.0.", []
    x = tensor[layer + "post_attention_layernorm.weight"] * x / np.sqrt(
        (x * x).mean(-1, keepdims=True) + 1e-5)
    for e in range(experts):
        w1, w3, w2 = (tensor["%sblock_sparse_moe.experts.%d.w%d.weight" % (layer, e, i)]
                      for i in (1, 3, 2))
        y.append((x @ w1.T / (1 + np.exp(-x @ w1.T)) * (x @ w3.T)) @ w2.T)
    unit = np.array(y) / np.sqrt((np.array(y) ** 2).sum(-1, keepdims=True))
    return np.einsum("eti,fti->ef", unit, unit) / len(x)

# --- one run --------------------------------------------------------------------------------------

def arguments(run, folder, **changes):
    options = dict(run.options, **changes)
    return ([BIN + "train_tiny", "--data", DATA, "--out", folder, "--threads", 1,
             "--save-every", 1000000] + [x for o in options for x in ("--" + o, options[o])])

def state(folder):
    """What is said of the state that is saved there; nothing where there is none."""
    try:
        os.stat(os.path.join(folder, "config.json"))          # it is written last
        with safe_open(os.path.join(folder, "training.safetensors"), "np") as file:
            return file.metadata()
    except FileNotFoundError:
        return {}

def advance(run, folder, point):
    """Trains up to that step. Returns what the program says; None if the loss was not finite."""
    while True:
        step = int(state(folder).get("step", -1))
        if step == point != run.points[-1]:
            return ""
        try:
            again = "--resume" if step >= 0 else "--overwrite"
            out = call(*arguments(run, folder), "--stop-at", point, again)
            if int(state(folder)["step"]) < point:
                raise KeyboardInterrupt                       # the program stopped for it, too
            return out
        except Failure as why:
            if "most likely --lr" in str(why):
                return None
            if "is in use by another run" not in str(why):
                raise
        time.sleep(0.5)                           # a killed laboratory's program is still at it

def look(run, folder, path):
    """What the state in the folder does with the validation text."""
    routes = "%s/routes.%d.csv" % (folder, os.getpid())
    out = call(BIN + "generate", folder, "--score", RUNS + "/validation.txt", "--routes", routes,
               "--devices", DEVICES, "--threads", 1)
    uneven = re.findall(r"parameters ([0-9.]+) tokens ([0-9.]+) work ([0-9.]+)", out)
    devices = np.array(uneven, float) if len(uneven) == 2 else np.full((2, 3), np.nan)
    write_arrays(path, dict(read_routes(routes, run.options["layers"]), devices=devices))
    os.remove(routes)

def make(run):
    """Trains a run, from where it stopped, and returns its row."""
    folder = os.path.join(RUNS, run.key)
    os.makedirs(folder, exist_ok=True)
    row = dict(key=run.key, kind=run.kind, name=run.name, quick=int(QUICK), **run.options,
               status="ok", val_loss="", program=fingerprint()[0], text=fingerprint()[1])
    paths = [os.path.join(folder, "point-%d.npz" % p) for p in run.points]
    for point, path in zip(run.points, paths):
        if os.path.exists(path) and point != run.points[-1]:
            continue
        out = advance(run, folder, point)
        if out is None:
            return dict(row, status="diverged")
        if run.kind == "main":
            look(run, folder, path)
    meta, log = state(folder), read_log(folder)
    last = -max(len(log["step"]) // 20, 1)
    row.update(val_loss=re.search(r"final: val_loss ([0-9.]+)", out).group(1),
               parameters=re.search(r": (\d+) parameters", out).group(1), tokens=meta["tokens"],
               flops=meta["flops"], seconds="%.3f" % float(meta["seconds"]),
               activated="%.1f" % log["activated"][last:].mean(),
               experts_used="%.4f" % log["experts"][last:].mean())
    if run.kind == "main":
        seen = [dict(np.load(p)) for p in paths]
        data = {k: np.array([s[k] for s in seen]) for k in ("nll", "first", "mask", "devices")}
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
        widths = np.array(config["expert_sizes"])
        chosen = bits(data["mask"][-1])[..., :len(widths)]
        row["mean_width"] = "%.2f" % ((chosen * widths).sum() / chosen.sum())
        parts = np.array_split(np.arange(len(log["step"])), min(250, len(log["step"])))
        write_arrays(os.path.join(RUNS, run.key + ".npz"), dict(
            data, byte=seen[-1]["byte"], widths=widths, alike=expert_outputs(folder, len(widths)),
            points=np.array(run.points), flops_per_step=float(meta["flops"]) / run.points[-1],
            **{"log_" + n: np.array([log[n][p].mean() for p in parts])
               for n in ("step", "ce", "pp")}))
    return row

# --- all of them ----------------------------------------------------------------------------------

def train_all(results):
    """Two runs at a time. Some wait for what others find: grids, MoDSE's widths."""
    lock, began, trained = threading.Lock(), time.monotonic(), [0]

    def work(run):
        row = make(run)
        with lock:
            results[run.key] = row
            write_results(results)
            if run.kind != "main" or run.seed != 1:               # that one is timed later
                shutil.rmtree(os.path.join(RUNS, run.key), ignore_errors=True)
            trained[0] += run.points[-1]
            runs = plan(results)
            todo = [r.points[-1] for r in runs if r.key not in results]
            left = (time.monotonic() - began) / trained[0] * sum(todo) + 1.5 * SCALE["speed"]
            print("%3d of %d  %-5s %-16s seed %s: %-9s about %d:%02d left" % (
                len(runs) - len(todo), len(runs), run.kind, run.name, run.seed,
                row["val_loss"] or "diverged", *divmod(int(left), 60)), flush=True)

    pool = concurrent.futures.ThreadPoolExecutor(2)
    try:
        while todo := [r for r in plan(results) if r.ready and r.key not in results]:
            for done in concurrent.futures.as_completed([pool.submit(work, r) for r in todo]):
                done.result()
    finally:                    # Ctrl-C reached the programs too: they save, and their runs end
        pool.shutdown(wait=False, cancel_futures=True)

def measure_speed(results):
    """Tokens/s in training of each variant, with its trained router, one thread and nothing else at
    work: the median of three rounds. alone: the share of the time that the process had its core."""
    runs = [r for r in plan(results) if r.kind == "main" and r.seed == 1
            and results[r.key]["status"] == "ok" and "speed-" + r.key not in results
            and state(os.path.join(RUNS, r.key))]            # weights that are there
    seen, trial, steps = {r.key: [] for r in runs}, os.path.join(RUNS, "speed"), SCALE["speed"]
    print("tokens/s, alone: %d to measure" % len(runs), flush=True)
    for run in 3 * runs:
        last = run.points[-1] + steps
        shutil.rmtree(trial, ignore_errors=True)
        shutil.copytree(os.path.join(RUNS, run.key), trial)
        before = os.times()
        call(*arguments(run, trial, steps=last + 1), "--resume", "--stop-at", last)
        _, _, user, system, seconds = np.subtract(os.times(), before)
        log = read_log(trial)
        tokens, clock = (log[n][-1] - log[n][2 - steps] for n in ("tokens", "seconds"))
        seen[run.key].append((tokens / clock, (user + system) / seconds))
    shutil.rmtree(trial, ignore_errors=True)
    for run in runs:
        speed, alone = np.median(seen[run.key], axis=0)
        results["speed-" + run.key] = dict(
            results[run.key], key="speed-" + run.key, kind="speed",
            tokens_per_second="%.0f" % speed, alone="%.3f" % alone)
    write_results(results)
    for run in plan(results):
        shutil.rmtree(os.path.join(RUNS, run.key), ignore_errors=True)

def write_validation():
    """What is scored at each point: 16 stretches, evenly spaced, of the validation text."""
    text = pathlib.Path(DATA).read_bytes()
    text, part = text[len(text) * 9 // 10:], SCALE["score"] // 16
    starts = [max(len(text) - 1 - part, 0) * i // 15 for i in range(16)]
    pathlib.Path(RUNS, "validation.txt").write_bytes(
        b"".join(text[s:s + part] for s in starts) + text[-1:])

def main():
    for path in (BIN + "train_tiny", BIN + "generate", DATA):
        if not os.path.exists(path):
            raise Failure("there is no %s: `make`, `make data` make it" % path)
    os.makedirs(RUNS, exist_ok=True)
    lock = open(os.path.join(RUNS, "lock"), "w")              # gone with this process
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failure("another laboratory is at work in %s: wait for it" % OUT) from None
    write_validation()
    results = read_results()
    train_all(results)
    measure_speed(results)
    sys.exit(subprocess.call([sys.executable, os.path.join(HERE, "report.py")]))

if __name__ == "__main__":
    try:
        main()
    except (Failure, OSError) as why:
        sys.exit("lab: %s" % why)
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from here")
