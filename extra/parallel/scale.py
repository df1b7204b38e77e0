#!/usr/bin/env python3
"""scale.py - what several machines would send each other, and how long a step would take them: a
model on paper of hmoe_parallel.h, which counts what it sends. `make scale` runs it.

Routing is real: two toys are trained, and read the validation text early and late in training.
Each rank takes its own part of that text (beyond 100,000 bytes it begins again), and sends its
rows to where the experts are. Every rank has as many tokens as before when ranks are added.

    messages, bytes   exactly what hmoe_parallel counts: test_scale.py compares
    time of exchange  latency * messages + bytes / bandwidth, of the rank with the most; all wait
    time of work      FLOPs / speed, in each layer of the rank with the most; then the update, a
                      time for each parameter that a rank holds

It leaves out what a network does when all send at once, what sums cost beside their sending, and
what train_tiny adds: one number of each rank in each step (is it to stop?), and files.
Speed and update are measured on this machine by one thread, at two sizes of batch."""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np

BIN = os.path.join(".", os.environ.get("BIN", ""))
OUT = os.path.join(os.environ.get("BUILD") or "build", "scale")
TEXT = os.environ.get("DATA") or "tinyshakespeare/input.txt"
KINDS = ("counts", "rows", "gradients", "sums")     # hmoe_traffic, without files
PIECE = 1 << 18                                     # HMOE__PIECE
FLOAT, DOUBLE, INT = 4, 8, 4
SAMPLE = 100000                                     # bytes of text that are routed
EARLY = 50                                          # steps


class Shape:
    """A model: what its tensors hold, in the order in which they lie."""

    def __init__(self, name, V, C, L, T, H, toy=None, tokens=None):
        self.name, self.V, self.C, self.L, self.T = name, V, C, L, T
        self.H, self.toy, self.tokens = np.array(H), toy, tokens
        self.E = len(H)
        layer = 4 * C * C + 2 * C + self.E * C      # attention, norms, router
        # numbers that lie side by side between the experts of two layers; embedding, norm, head
        self.shared = [V * C + layer] + [layer] * (L - 1) + [C + V * C]

    def flops_shared(self):
        """Of a token, forward and backward, beside its experts; hmoe_forward counts the same."""
        layer = 4 * self.C * self.C + 2 * self.C + self.E * self.C
        return (6 * (self.L * layer + self.V * self.C + 2 * self.C)
                + 6 * self.L * self.C * (self.T + 1))


# What the papers print of their sizes, and what is taken here where they print nothing:
# HMoE-3B: C 1,024 and T 4,096 as printed (with this C it has 1.3 B parameters); taken: V 32,000.
# MoDSE 700Mx8: C 2,048, L 12 and V 30,064 as in its table 1 (one expert a layer makes 0.70 B);
# taken: T 2,048. Both: 4,096 tokens a rank.
SHAPES = [
    Shape("toy, arithmetic", 65, 128, 4, 64, [96, 120, 136, 160, 184, 208, 224, 248], "hmoe", 768),
    Shape("toy, modse", 65, 128, 4, 64, [312, 32, 272, 72, 208, 136, 176, 168], "modse", 768),
    Shape("HMoE-3B, arithmetic", 32000, 1024, 12, 4096,
          [2304, 2816, 3328, 3840, 4352, 4864, 5376, 5888], "hmoe", 4096),
    Shape("MoDSE 700Mx8", 30064, 2048, 12, 2048,
          [9216, 1024, 8192, 2048, 6144, 4096, 5120, 5120], "modse", 4096)]
TOYS = {"hmoe": [], "modse": ["--sizes", "modse", "--pp", "0", "--lb", "0.01"]}


def place(H, D, rule):
    """Which rank of a group has each expert: hmoe_place_experts."""
    E = len(H)
    if rule == "contiguous":
        return np.arange(E) // (E // D)
    device = np.zeros(E, int)
    for i, e in enumerate(sorted(range(E), key=lambda e: -H[e])):
        device[e] = (i if i < E // 2 else E - 1 - i) % D
    return device


def slices(n, R):
    return np.diff(np.arange(R + 1) * n // R)


class Traffic:
    """What each of R ranks sends in one step: messages[kind][rank], bytes[kind][rank], and the
    seconds for which all wait. counts: [R, L, E] rows of each rank's tokens for each expert."""

    def __init__(self, shape, counts, device, latency=0.0, bandwidth=np.inf, D=None):
        R, L, E = counts.shape
        D = D or int(device.max()) + 1
        self.latency, self.bandwidth = latency, bandwidth
        self.messages = {kind: np.zeros(R, np.int64) for kind in KINDS}
        self.bytes = {kind: np.zeros(R, np.int64) for kind in KINDS}
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.tree = 0.0                             # gradients, by halving and doubling instead
        self.rank = np.arange(R)
        self.exchange("sums", np.full(R, R - 1), np.full(R, (R - 1) * 2 * INT))   # peers_agree
        self.cross(shape, counts, device, D)
        self.sum("sums", R, self.rank, np.full(R, L * (2 * E + 3) + 1), DOUBLE)    # collect
        mine = np.array([3 * shape.C * shape.H[device == d].sum() for d in range(D)])
        for n in shape.shared:
            self.sum("gradients", R, self.rank, np.full(R, n), FLOAT)
        for _ in range(L):
            self.sum("gradients", R // D, self.rank // D, mine[self.rank % D], FLOAT)
        self.sum("sums", D, self.rank % D, np.ones(R, np.int64), DOUBLE)           # the norm

    def exchange(self, kind, messages, sent, came=None):
        self.messages[kind] += messages
        self.bytes[kind] += sent
        most = sent if came is None else np.maximum(sent, came)
        self.seconds[kind] += (messages * self.latency + most / self.bandwidth).max()

    def cross(self, shape, counts, device, D):
        """Counts, rows there and back, forward; rows there and back, backward."""
        R, L, E = counts.shape
        rows = np.stack([counts[:, :, device == d].sum(2) for d in range(D)], 2)   # [R, L, D]
        rows[self.rank, :, self.rank % D] = 0                                      # stay at home
        experts = np.bincount(device, minlength=D)
        back = rows.reshape(R // D, D, L, D).transpose(0, 3, 2, 1).reshape(R, L, D)
        for layer in range(L):
            there, home = rows[:, layer], back[:, layer]
            others = E - experts[self.rank % D]
            self.exchange("counts", np.full(R, D - 1), others * INT)
            for a, b in ((there, home), (home, there)) * 2:
                self.exchange("rows", (a > 0).sum(1), a.sum(1) * shape.C * FLOAT,
                              b.sum(1) * shape.C * FLOAT)

    def sum(self, kind, S, me, n, size):
        """hmoe__sum: n[rank] numbers over S ranks, in pieces; a rank adds up its slice of each and
        sends that to all. me[rank]: its number among the S."""
        if S == 1:
            return
        messages, sent = np.zeros(len(n), np.int64), np.zeros(len(n), np.int64)
        for numbers in np.unique(n):
            for piece, times in ((PIECE, numbers // PIECE), (numbers % PIECE, 1)):
                part = slices(piece, S)
                mine = part[me]
                out, home = (part > 0).sum() - (mine > 0), (mine > 0) * (S - 1)
                here = (n == numbers) * times
                messages += here * (out + home)
                sent += here * size * (piece - mine + mine * (S - 1))
        self.exchange(kind, messages, sent)
        if kind == "gradients":
            self.tree += (2 * np.ceil(np.log2(S)) * self.latency
                          + 2 * size * n.max() * (S - 1) / S / self.bandwidth)


def work_of(shape, counts, device, D):
    """[R, L]: rows * width that come to the experts of each rank, from its whole group."""
    R, L, _ = counts.shape
    group = (counts * shape.H).reshape(R // D, D, L, -1).sum(1)                    # [R/D, L, E]
    return np.stack([group[:, :, device == d].sum(2) for d in range(D)], 1).reshape(R, L)


def balance(shape, counts, device, D):
    """Largest over mean of what D devices hold and do in all layers together, and of the work for
    which they wait: that of the busiest in each layer of each step."""
    by = lambda x: np.array([x[device == d].sum() for d in range(D)])
    total = counts.sum((0, 1))
    ratio = lambda x: x.max() / x.mean()
    groups = counts[:len(counts) // D * D]
    work = work_of(shape, groups, device, D).reshape(len(groups) // D, D, -1)
    return (ratio(by(shape.H)), ratio(by(total)), ratio(by(total * shape.H)),
            work.max(1).sum() / work.mean(1).sum())


def predict(shape, counts, D, rule, machine):
    """The seconds of one step by part, and its traffic."""
    device = place(shape.H, D, rule)
    traffic = Traffic(shape, counts, device, machine["latency"], machine["bandwidth"], D)
    work = work_of(shape, counts, device, D).reshape(len(counts) // D, D, -1).max(1).sum(1).max()
    flops = 18.0 * shape.C * work + shape.tokens * shape.flops_shared()
    held = sum(shape.shared) + shape.L * 3 * shape.C * max(
        shape.H[device == d].sum() for d in range(D))
    parts = {"work": flops / machine["speed"] + held * machine["update"], **traffic.seconds}
    return parts, traffic


def parts_of(rows, tokens, R, L):
    """[R, L, E] from rows [position, layer, E]: a part of the text for each rank, in a circle; a
    deeper model has each layer of the toy several times."""
    positions, layers, _ = rows.shape
    whole = positions // tokens
    counts = rows[:whole * tokens].reshape(whole, tokens, layers, -1).sum(1)
    return counts[np.arange(R) % whole][:, np.arange(L) * layers // L]


def routes(path, E):
    """[position, layer, E]: 1 where an expert was chosen, from `generate --routes`."""
    with open(path, encoding="ascii") as file:
        head = file.readline().split(",")
        chosen = [line.split(",", 6)[4:6] for line in file]
    assert head[4:6] == ["layer", "experts"], head
    table = np.zeros((len(chosen), E), np.int16)
    for row, (_, experts) in enumerate(chosen):
        table[row, [int(e) for e in experts.split()]] = 1
    return table.reshape(-1, 1 + max(int(layer) for layer, _ in chosen), E)


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("scale: %s: %s" % (" ".join(command), done.stderr.strip()))
    return done.stdout


def trained(name, steps):
    """{"early": routes, "late": routes} of a toy; what was trained before is taken again."""
    try:
        with open(TEXT, "rb") as file, open(BIN + "train_tiny", "rb") as program:
            text = file.read()
            key = hashlib.sha256(text + program.read()).hexdigest()[:8]
    except OSError as error:
        sys.exit("scale: cannot read %s: %s" % (error.filename, error.strerror))
    sample, found = os.path.join(OUT, "text"), {}
    part = text[-min(SAMPLE, len(text) // 10):]                 # of the validation text
    if len(part) <= SHAPES[-1].tokens:
        sys.exit("scale: %s: needs ten times %d bytes" % (TEXT, SHAPES[-1].tokens + 1))
    with open(sample, "wb") as file:
        file.write(part)
    for when, stop in (("early", min(EARLY, steps)), ("late", steps)):
        out = os.path.join(OUT, "%s-%d-%d-%s" % (name, stop, steps, key))
        if not os.path.exists(out + ".csv"):
            shutil.rmtree(out, ignore_errors=True)
            print("scale: trains %s, %d of %d steps" % (name, stop, steps), file=sys.stderr)
            run(BIN + "train_tiny", "--data", TEXT, "--out", out, "--steps", str(steps),
                "--stop-at", str(stop), "--eval-every", str(stop), *TOYS[name])
            run(BIN + "generate", out + "/best", "--score", sample, "--routes", out + ".new")
            os.replace(out + ".new", out + ".csv")
        found[when] = routes(out + ".csv", 8)
    return found


def seconds_of_step(launch, batch):
    """Median over steps, of one thread in each process."""
    out, steps = os.path.join(OUT, "timing"), 24
    shutil.rmtree(out, ignore_errors=True)
    run(*launch, "--data", TEXT, "--out", out, "--steps", str(steps), "--batch", str(batch),
        "--threads", "1", "--eval-tokens", "64", "--eval-every", "1000")
    with open(out + "/log.csv", encoding="ascii") as file:
        at = file.readline().strip().split(",").index("seconds")
        times = [float(line.split(",")[at]) for line in file]
    return float(np.median(np.diff(times)))


def measure(shape, counts):
    """FLOP/s, and seconds per parameter of the update: from batches of 6 and 24."""
    small, large = (seconds_of_step([BIN + "train_tiny"], batch) for batch in (6, 24))
    mean = counts.mean(0)
    flops = 18.0 * shape.C * (mean * shape.H).sum() / shape.tokens + shape.flops_shared()
    token = (large - small) / (18 * shape.T)
    params = sum(shape.shared) + shape.L * 3 * shape.C * shape.H.sum()
    return flops / token, max(0, small - 6 * shape.T * token) / params


def picture(lines, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True)
    colours = {"work": "#4c72b0", "rows": "#dd8452", "gradients": "#c44e52", "sums": "#937860",
               "counts": "#8c8c8c"}
    for axis, shape in zip(axes.flat, SHAPES):
        mine = [line for line in lines if line["shape"] is shape and line["D"] == min(4, line["R"])]
        R = [line["R"] for line in mine]
        for part, colour in colours.items():
            axis.plot(R, [1e3 * line["pairs"][part] or np.nan for line in mine], "o-", ms=3,
                      color=colour, label=part)
        axis.plot(R, [1e3 * line["tree"] or np.nan for line in mine], "--",
                  color=colours["gradients"], label="gradients, by a tree")
        axis.set(title="%s, %s tokens a rank" % (shape.name, format(shape.tokens, ",")),
                 xscale="log", yscale="log", ylabel="ms in a step")
        axis.set_xticks(R, ["{:,}".format(r) for r in R])
        axis.set_ylim(bottom=1e-3)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("ranks; the experts, in pairs, over 4 of them at most")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main():
    ask = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = lambda name, default, text: ask.add_argument(
        name, type=float, default=default, help=text + " [%(default)s]")
    add("--latency", 5, "of a message, in microseconds")
    add("--bandwidth", 12.5, "of a rank, in GB/s")
    add("--speed", None, "of a rank of the toy, in GFLOP/s; None: measured")
    add("--update", None, "of a parameter there, in ns; None: measured")
    add("--paper-speed", 100000, "of a rank of the papers' sizes, in GFLOP/s")
    add("--paper-update", 0.02, "of a parameter there, in ns")
    add("--steps", 2000, "that the toys are trained")
    set_ = ask.parse_args()
    for name, value in vars(set_).items():
        if value is not None and not 0 <= value < np.inf or value == 0 and name != "latency":
            ask.error("--%s %g: must be above 0 (latency: or 0)" % (
                name.replace("_", "-"), value))
    os.makedirs(OUT, exist_ok=True)
    found = {name: trained(name, int(set_.steps)) for name in TOYS}
    toy = SHAPES[0]
    speed, update = set_.speed, set_.update
    if speed is None or update is None:
        measured = measure(toy, parts_of(found["hmoe"]["late"], toy.tokens, 100, toy.L))
        speed = measured[0] / 1e9 if speed is None else speed
        update = measured[1] * 1e9 if update is None else update
    network = {"latency": set_.latency * 1e-6, "bandwidth": set_.bandwidth * 1e9}
    here = dict(network, speed=speed * 1e9, update=update * 1e-9)
    there = dict(network, speed=set_.paper_speed * 1e9, update=set_.paper_update * 1e-9)
    print("latency %g us, bandwidth %g GB/s; toys: %.1f GFLOP/s, %.2f ns a parameter%s; papers' "
          "sizes: %g GFLOP/s, %g ns (taken, not measured)" % (
              set_.latency, set_.bandwidth, speed, update,
              "" if set_.speed and set_.update else " (measured, one thread)", set_.paper_speed,
              set_.paper_update))
    lines = []
    for shape in SHAPES:
        params = sum(shape.shared) + shape.L * 3 * shape.C * shape.H.sum()
        machine = here if shape.tokens == toy.tokens else there
        print("\n%s: C %d, L %d, %.4g M parameters; %d tokens a rank; of a step the busiest rank's "
              "messages and MB, and milliseconds" % (shape.name, shape.C, shape.L, params / 1e6,
                                                     shape.tokens))
        print("ranks experts messages       MB     work   counts     rows gradients    sums |  "
              "pairs contiguous  by a tree")
        for R in (1, 2, 4, 16, 64, 256, 1024):
            counts = parts_of(found[shape.toy]["late"], shape.tokens, R, shape.L)
            for D in (d for d in (1, 2, 4) if d <= R):
                pairs, traffic = predict(shape, counts, D, "pairs", machine)
                other, _ = predict(shape, counts, D, "contiguous", machine)
                total = sum(pairs.values())
                tree = total - pairs["gradients"] + traffic.tree
                lines.append(dict(shape=shape, R=R, D=D, pairs=pairs, tree=traffic.tree))
                print("%5d %7d %8d %8.4g %8.4g %8.3g %8.4g %9.4g %7.3g | %6.5g %10.5g %10.5g" % (
                    R, D, sum(traffic.messages.values()).max(),
                    sum(traffic.bytes.values()).max() / 1e6,
                    *(1e3 * pairs[part] for part in ("work",) + KINDS), 1e3 * total,
                    1e3 * sum(other.values()), 1e3 * tree))
    print("\nlargest over mean of a group's ranks, whole text; the last: of the work that is "
          "waited for, layer by layer")
    print("model               ranks placement   when   parameters  tokens    work  waited")
    for shape in SHAPES:
        for D in (2, 4):
            for rule in ("pairs", "contiguous"):
                for when in ("early", "late"):
                    rows = found[shape.toy][when]
                    groups = max(1, len(rows) // shape.tokens // D)
                    counts = parts_of(rows, shape.tokens, groups * D, shape.L)
                    print("%-19s %5d %-11s %-6s %10.3f %8.3f %7.3f %7.3f" % (
                        shape.name, D, rule, when,
                        *balance(shape, counts, place(shape.H, D, rule), D)))
    mpi = [shutil.which("mpirun"), BIN + "train_tiny_mpi"]
    if all(part and os.path.exists(part) for part in mpi) and set_.speed is None:
        print("\na step of the toy here, one thread a rank, measured and predicted (ms):")
        os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                          OMP_NUM_THREADS="1")
        for R, D in ((1, 1), (2, 1), (2, 2)):
            counts = parts_of(found["hmoe"]["late"], toy.tokens, R, toy.L)
            seconds = seconds_of_step(["mpirun", "-n", str(R), mpi[1], "--expert-ranks", str(D)],
                                      12 * R)
            print("ranks %d, experts over %d: %.1f, %.1f" % (R, D, 1e3 * seconds, 1e3 * sum(
                predict(toy, counts, D, "pairs", here)[0].values())))
    elif set_.speed is None:
        print("\nnot measured: there is no mpirun, or no %s: `make mpi` makes it" % mpi[1])
    picture(lines, OUT + ".svg")
    print("\n%s.svg shows the same" % OUT)


if __name__ == "__main__":
    main()
