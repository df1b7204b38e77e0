#!/usr/bin/env python3
"""roofline.py - what a training step of hmoe_cuda.cu should cost, on paper. It needs no GPU.

It walks through the launches of one step, as hmoe_forward, hmoe_backward and hmoe_update of hmoe.h
make them (Top-K, no dropout, no noise; bf16, or --precision float32), and counts what each asks of
the device. No kernel can take less than the largest of these times:

    math     multiply-adds, on tensor cores or (float32) not
    issue    instructions: a multiprocessor starts four a clock, each for a warp of 32 threads
    shared   bytes to and from shared memory: 128 a clock and multiprocessor
    L2       bytes to and from the L2 cache
    memory   bytes to and from device memory, past an L2 that keeps the arrays used last
    alone    the longest chain, in one block or warp, of what must wait for one another """

import argparse
from collections import Counter, OrderedDict, namedtuple
from functools import lru_cache
from math import ceil

# Data sheets. H200 (SXM): NVIDIA H200 datasheet: half of the 1,979 bf16 TFLOP/s "with sparsity";
# multiprocessors (sms), L2, the clock of that peak: NVIDIA H100 whitepaper. RTX 4090: NVIDIA Ada
# whitepaper, appendix A: dense bf16, sums in float. Shared memory, threads: CUDA programming guide,
# 9.0 and 8.9. On no data sheet: the rate of L2 (round, near what Chips and Cheese measured in 2022
# and 2023), and mma, the share of the tensor peak in reach of mma instructions: on Hopper all of it
# takes wgmma, reportedly 1.7 times as fast.
Gpu = namedtuple("Gpu", "name sms clock bf16 mma float32 bandwidth l2 l2_rate shared threads")
GPUS = [Gpu("H200", 132, 1.83e9, 989e12, 0.6, 67e12, 4.8e12, 50e6, 5.5e12, 228 << 10, 2048),
        Gpu("RTX 4090", 128, 2.52e9, 165e12, 0.95, 82.6e12, 1.008e12, 72e6, 5e12, 100 << 10, 1536)]

# Assumptions.
MEMORY_SHARE = 0.9     # of the bandwidth: what plain copies reach
L2_SHARE = 0.5         # of L2 keeps what was used last: it has two halves, and is not exactly LRU
LATENCY = 0.5e-6       # s from asking memory to having it, under some load; from L2 half of that
CLOCKS = 4.5           # from an instruction to one of the same warp that needs it, as most do
FLOOR = 2e-6           # s of any kernel: to start, to fill, to drain
LAUNCH = 3e-6          # s of the host for a launch; it runs ahead of the device where it can
LIST = 3e-6            # s more for `multiply`, whose 28,688 bytes of arguments are copied thrice
WAIT = 10e-6           # s for the host to see that the device is done, or to fetch a few bytes
COMMON = 0.15          # share of the commonest token, a blank: embed_backward adds its rows in turn

# Counted in what nvcc 13 makes of `multiply` for sm_90, by bytes of an operand and BM, means of the
# forms: instructions of a warp in a step along k, and how many wait for no other. 61 of them, three
# or (BM of 64) four times, copy 16 bytes a thread: one does, the others find out what and where.
STEP = {(2, 64): (336, 0), (2, 128): (306, 0), (4, 64): (955, 512)}
NUMBER = 52, 76        # likewise, to store a number of a tile, or (SwiGLU) two
(FORWARD, INPUT, WEIGHT), BN, STAGES, MEMBERS = range(3), 64, 3, 256   # as in hmoe_cuda.cu

Config = namedtuple("Config", "V C L NH T E K mean B")   # mean width of experts; B for each GPU:
CONFIGS = [Config(65, 384, 6, 6, 256, 8, 2, 512, (8, 8)),   # at 1024, 4 is what 24 GB hold
           Config(256, 1024, 12, 16, 1024, 8, 2, 1408, (16, 4))]

# PRODUCTS. t: bytes of an operand. --------------------------------------------------------------
Work = namedtuple("Work", "flops math issue alone shared l2 BM tiles held loss", defaults=[0] * 6)

@lru_cache(maxsize=None)
def multiply(gpu, t, form, BM, members, swiglu=0, causal=0, adds=0, whole=1):
    """What a launch asks for. Tiles are dealt to blocks, blocks to multiprocessors, as there.
    adds: it reads what it adds to, number by number. whole: rows are copied 16 bytes at a time."""
    BK, columns, warps, pad = 64 // t, BN // (1 + swiglu), BM // 16, 16 // t
    a = BK * (BM + pad) if form == WEIGHT else BM * (BK + pad)
    b = BN * (BK + pad) if form == FORWARD else BK * (BN + pad)
    size = max(STAGES * t * (a + b), 4 * BM * (BN + 4)) + 4 * (MEMBERS + 1)   # sizeof(Tile)
    held = min(gpu.shared // (ceil((size + 1024) / 128) * 128), gpu.threads // (2 * BM),
               65536 // (2 * BM * (80 if t == 4 and form != WEIGHT else 64)))   # registers
    blocks, flops, traffic = [[0, 0] for _ in range(gpu.sms * held)], 0, 0   # steps along k, tiles
    for number, (M, N, K, n0, m0) in enumerate((*m, n0, m0) for m in members for n0 in range(
            0, m[1], columns) for m0 in range(0, m[0], BM)):
        if causal and form == FORWARD and n0 >= m0 + BM: continue
        k = (K, min(K, m0 + BM), K - m0)[form] if causal else K
        rows, cols = min(BM, M - m0), min(columns, N - n0) * (1 + swiglu)
        blocks[number % len(blocks)][0] += ceil(k / BK)
        blocks[number % len(blocks)][1] += 1
        flops += 2 * rows * cols * k
        traffic += (rows + cols) * k * t
    (step, free), tile = STEP[t, BM], columns / 2 * NUMBER[swiglu]
    step_alone = ((step - free) * CLOCKS + free) / gpu.clock + (0 if whole else LATENCY)
    tile_alone = tile * CLOCKS / gpu.clock + (columns / 2 * LATENCY if adds else LATENCY)
    # For its 32 x 32 a warp reads 4 fragments of 512 bytes every 16 k; float: 12 x 128 every k.
    reads = BM * BN // 1024 * BK // 16 * 2048 if t == 2 else warps * BK * 12 * 128
    peak = (gpu.bf16 * gpu.mma if t == 2 else gpu.float32) / gpu.sms
    load = [[sum(b[i] for b in blocks[sm::gpu.sms]) for i in (0, 1)] for sm in range(gpu.sms)]
    work = [s * step + n * tile for s, n in load]
    s, n = load[work.index(max(work))]   # of the busiest multiprocessor
    return Work(flops, s * 2 * BM * BN * BK / peak, max(work) * warps / 4 / gpu.clock,
                max(s * step_alone + n * tile_alone for s, n in blocks),
                (s * ((BM + BN) * BK * t + reads) + n * 8 * BM * BN) / 128 / gpu.clock, traffic,
                BM, sum(n for _, n in load), held, 1 - sum(work) / gpu.sms / max(work))

# A STEP: its launches, in order, and two clocks, the host's and the device's. --------------------
class Step:
    def __init__(self, gpu, c, t, l2):
        self.gpu, self.c, self.t, self.l2 = gpu, c, t, l2
        self.kinds, self.work, self.host, self.device, self.layer = {}, {}, 0, 0, 0
        N, C = c.B * c.T, c.C   # experts: nearly equal loads, no multiples of a tile
        experts = [(N * c.K // c.E + (37 if e % 2 else -37), c.mean * (9 + 2 * e) // 16)
                   for e in reversed(range(c.E))]
        H = sum(h for _, h in experts)
        self.inside = inside = sum(r * h for r, h in experts)
        self.up, self.down = [(r, C, 2 * h) for r, h in experts], [(r, h, C) for r, h in experts]
        self.numbers = dict.fromkeys("x n1 q k v out x2 n2 dx dn dout dq dk dv".split(), N * C)
        self.numbers.update(
            att=c.B * c.NH * c.T ** 2, D=c.B * c.NH * c.T, r=N * c.E, P=N * c.E, tokens=N,
            routes=N * (3 + 5 * c.K), u=2 * inside, h=inside, dh=inside, rows=N * c.K * C,
            logits=N * c.V, wembed=c.V * C, whead=c.V * C, wqkv=3 * C * C, wo=C * C, wr=c.E * C,
            w13=2 * C * H, w2=C * H, wnorm1=C, wnorm2=C)

    def arrays(self, text):
        """(name, bytes) of each: @ is the layer; ' an operand of a product, which is the twin where
        there are twins; + an array and its twin; :0.5 half of it; grad/wo the gradient of wo."""
        for word in text.replace("@", f".{self.layer}").split():
            word, _, share = word.partition(":")
            name = word.rstrip("'+")
            n = self.numbers[name.split("/")[-1].split(".")[0]] * float(share or 1)
            if self.t == 4 or word[-1] != "'": yield name, 4 * n
            if self.t == 2 and word[-1] in "'+": yield name + "'", 2 * n

    def touch(self, name, size, write):
        """Bytes between L2 and memory: what is not there, and what it pushes out, if changed."""
        before, dirty = self.l2.pop(name, (0, False))
        moved = 0 if write or before >= size else size
        self.l2[name] = max(size, before), dirty or write
        while sum(size for size, _ in self.l2.values()) > self.gpu.l2 * L2_SHARE:
            size, dirty = self.l2.popitem(last=False)[1]
            moved += size if dirty else 0
        return moved

    def launch(self, kind, reads, writes, n=0, each=0, flops=0, alone=0, work=None):
        """n numbers, with so many instructions of a thread and FLOPs each; or multiply's work."""
        g, reads, writes = self.gpu, list(self.arrays(reads)), list(self.arrays(writes))
        moved = sum(self.touch(*a, 0) for a in reads) + sum(self.touch(*a, 1) for a in writes)
        l2 = sum(size for _, size in (writes if work else reads + writes))
        w = work or Work(n * flops, n * flops / g.float32, n * each / 128 / g.clock / g.sms, alone)
        bounds = dict(math=w.math, issue=w.issue, shared=w.shared, L2=(w.l2 + l2) / g.l2_rate,
                      memory=moved / g.bandwidth / MEMORY_SHARE, alone=w.alone)
        seconds, host = FLOOR + max(bounds.values()), LAUNCH + (LIST if work else 0)
        self.kinds.setdefault(kind, Counter()).update(
            bounds, launches=1, flops=w.flops, moved=moved, time=seconds, host=host)
        if work: self.work[kind] = work
        self.host += host
        self.device = max(self.device, self.host) + seconds

    def wait(self): self.host = max(self.host, self.device) + WAIT

    def store(self):   # cudaMemcpy, and refresh_twin
        self.host += WAIT
        if self.t == 2: self.launch("round_to_bf16", "tokens", "tokens'")

    def linear(self, kind, form, maps, reads, writes, swiglu=0, adds=0, whole=1):
        """maps: rows, in, out of each, the largest first, by what the host knows: not its rows."""
        BM = 128 if self.t == 2 and maps[0][1] * maps[0][2] // (1 + swiglu) >= 512 * 512 else 64
        members = tuple({FORWARD: (r, o // (1 + swiglu), i), INPUT: (r, i, o), WEIGHT: (o, i, r)}
                        [form] for r, i, o in maps)
        self.launch(kind, reads, writes, work=multiply(
            self.gpu, self.t, form, BM, members, swiglu, 0, adds or form == WEIGHT, whole))

    def backward_of(self, name, i, o, dx, w, dy, x, add=""):
        maps, whole = [(self.c.B * self.c.T, i, o)], o * self.t % 16 == 0
        self.linear(name + " dx", INPUT, maps, f"{dy} {w}' {add}", dx, 0, add > "", whole)
        self.linear(name + " dW", WEIGHT, maps, f"{dy} {x} grad/{w}", "grad/" + w, 0, 1, whole)

    def attention(self, kind, form, reads, writes):
        """Of att# the triangle is read and written, in whole tiles: (T + BM) / 2 a row."""
        T, hs, heads = self.c.T, self.c.C // self.c.NH, self.c.B * self.c.NH
        M, N, K = (T, T, hs) if form == FORWARD else (T, hs, T)
        BM = 128 if self.t == 2 and N * (M + K) >= 512 * 512 else 64
        reads, writes = (x.replace("#", f":{(T + BM) / 2 / T}") for x in (reads, writes))
        for done in range(0, heads, MEMBERS):
            self.launch(kind, reads, writes, work=multiply(self.gpu, self.t, form, BM, (
                (M, N, K),) * min(MEMBERS, heads - done), 0, 1, kind == "ds"))

    def norm_backward(self, x):
        c, rows, NC = self.c, self.c.B * self.c.T, self.numbers["x"]
        self.launch("rmsnorm backward", f"dn dx {x}", "dx+ dn", NC, 30, 9,
                    ceil(rows / 40 / self.gpu.sms) * c.C / 32 * LATENCY)   # 40 warps at a time
        self.launch("add_columns", "dn", "", NC, 14, 1,   # 8 warps a block, 8 loads each in flight
                    rows / 64 * (LATENCY + 114 * CLOCKS / self.gpu.clock))

    def forward(self):
        c, N, NC, do = self.c, self.c.B * self.c.T, self.numbers["x"], self.launch
        for _ in range(3): self.store()
        do("embed", "tokens wembed", "x.0", NC, 75)
        for self.layer in range(c.L):
            do("rmsnorm", "x@", "n1@+", NC, 15, 4)
            self.linear("qkv", FORWARD, [(N, c.C, 3 * c.C)], "n1@' wqkv@'", "q@ k@ v@")
            do("rope", "q@ k@ v@", "q@+ k@+ v@+", 3 * NC, 78, 3)
            self.attention("scores", FORWARD, "q@' k@'", "att@#")
            do("softmax", "att@:0.5", "att@+", self.numbers["att"], 40, 6)
            self.attention("att v", INPUT, "att@'# v@'", "out@+")
            self.linear("o", FORWARD, [(N, c.C, c.C)], "out@' wo@' x@", "x2@", adds=1)
            do("rmsnorm", "x2@", "n2@+", NC, 15, 4)
            self.linear("router", FORWARD, [(N, c.C, c.E)], "n2@' wr@'", "r@")
            do("router_softmax", "r@", "P@", N * 32, 60), do("choose", "P@", "routes@", N, 300)
            do("dispatch", "routes@", "routes@", N * c.K * c.E, 150, 0,
               N * c.K / 256 * 5 * LATENCY / 2)   # 256 choices at a time, five loads in turn
            do("router_sums", "P@", "", N * c.E, 30)
            self.linear("up", FORWARD, self.up, "n2@' w13@'", "u@ h+", swiglu=1)
            self.linear("down", FORWARD, self.down, "h' w2@'", "rows")
            do("combine", "x2@ rows routes@", f"x.{self.layer + 1}", NC, 170, 2 * c.K)
        do("rmsnorm", f"x.{c.L}", "n1+", NC, 15, 4)
        self.linear("head", FORWARD, [(N, c.C, c.V)], "n1' whead'", "logits")
        self.wait(), self.wait()   # for the routers' sums, and for errors
        do("cross-entropy", "logits", "", N * c.V, 40, 8)
        self.wait(), self.wait()   # for the tokens' losses

    def backward(self):
        c, N, NC, do = self.c, self.c.B * self.c.T, self.numbers["x"], self.launch
        self.store()
        do("cross-entropy", "logits", "logits+", N * c.V, 40, 8)
        self.backward_of("head", c.C, c.V, "dn", "whead", "logits'", "n1'")
        do("zero", "", "dx")
        if self.t == 2: do("round_to_bf16", "dx", "dx'", NC, 15)
        self.norm_backward(f"x.{c.L}")
        for self.layer in reversed(range(c.L)):
            self.linear("down dx", INPUT, self.down, "dx' w2@'", "dh")
            do("swiglu backward", "u@ dh", "u@+ h+", self.inside, 90, 20)
            self.linear("down dW", WEIGHT, self.down, "dx' h' grad/w2@", "grad/w2@")
            self.linear("up dW", WEIGHT, self.up, "u@' n2@' grad/w13@", "grad/w13@")
            self.linear("up dx", INPUT, self.up, "u@' w13@'", "rows")
            do("combine", "rows routes@", "dn", NC, 170, c.K)
            do("router backward", "P@ routes@", "r@+", N, 600)
            self.backward_of("router", c.C, c.E, "dn", "wr@", "r@'", "n2@'", "dn")
            self.norm_backward("x2@")
            self.backward_of("o", c.C, c.C, "dout", "wo@", "dx'", "out@'")
            do("attention_dots", "dout out@", "D dout'" if self.t == 2 else "D", NC, 15, 2)
            self.attention("dv", WEIGHT, "att@'# dout'", "dv")
            self.attention("ds", FORWARD, "dout' v@' att@#", "att@+#")
            self.attention("dq", INPUT, "att@'# k@'", "dq+")
            self.attention("dk", WEIGHT, "att@'# q@'", "dk")
            do("rope", "dq dk dv", "dq+ dk+ dv+", 3 * NC, 78, 3)
            self.backward_of("qkv", c.C, 3 * c.C, "dn", "wqkv@", "dq' dk' dv'", "n1@'")
            self.norm_backward("x@")
        do("embed backward", "tokens dx", "grad/wembed", NC, 10, 1,
           (0.1 * N / 32 + COMMON * N) * LATENCY)   # to look at 32 tokens takes a tenth of that
        self.wait()

    def update(self):
        groups = ["wembed"] + [group.replace("@", f".{l}") for l in range(self.c.L) for group in
                  ("wnorm1@", "wqkv@ wo@", "wnorm2@", "wr@ w13@ w2@")] + ["wnorm1", "whead"]
        count = lambda text: sum(size / 4 for _, size in self.arrays(text))
        each = lambda text, form: " ".join(form.replace("w", w) for w in text.split())
        every = " ".join(groups)
        # 256 blocks, one load in flight: between the unrolled ones nvcc keeps the test for the end.
        self.launch("squared_norm", each(every, "grad/w"), "", count(every), 15, 2,
                    count(every) / (256 * 256) * LATENCY)
        self.wait()
        for g in groups:   # neighbours of one kind
            self.launch("adamw", each(g, "w grad/w m/w v/w"), each(g, "w+ grad/w m/w v/w"),
                        count(g), 100, 15)
        return count(every)

# THE REPORT --------------------------------------------------------------------------------------

def check(step):
    """All products together: 6 * activated parameters * tokens, and attention. Norms are activated
    but no products (under 1 %), and attention has whole tiles on its diagonal: (T + BM) / 2 keys a
    query where (T + 1) / 2 would do. Returns useful FLOPs, all FLOPs, activated parameters."""
    c, N, flops = step.c, step.c.B * step.c.T, {n: step.kinds[n]["flops"] for n in step.work}
    activated = 2 * c.C + c.V * c.C + c.L * (   # hmoe__activated_with
        4 * c.C ** 2 + 2 * c.C + c.E * c.C + 3 * c.C * step.inside / N)
    dense, triangle, every = 6 * activated * N, c.L * c.C * (c.T + 1) * N, sum(flops.values())
    for name in ("scores", "att v", "dv", "ds", "dq", "dk"):
        whole = triangle * (c.T + step.work[name].BM) / (c.T + 1)
        assert abs(flops.pop(name) / whole - 1) < 0.01
    assert abs(sum(flops.values()) / dense - 1) < 0.01
    return dense + 6 * triangle, every, activated

def thresholds(gpu, c, t, rates):
    """An expert's product of M tokens makes M F FLOPs, and moves W + M A bytes: its weights, or
    their gradients in and out, once, and what belongs to a token."""
    C, H = c.C, c.mean
    print("\n  Memory binds the product of an expert of mean width below M tokens, were L2 empty:"
          f"\n  M = W / (F bandwidth / rate - A)    (here an expert has {c.B * c.T * c.K // c.E})\n"
          f"  {'':10}{'F, FLOP/token':>15}{'W, bytes':>12}{'A, bytes/token':>16}"
          + "".join(f"{f'M at {r / 1e12:.0f} TFLOP/s':>20}" for r in rates))
    for name, n, w, A in (("up", 2, t, C * t + H * (14 if t == 2 else 12)),
                          ("down", 1, t, H * t + 4 * C), ("down dx", 1, t, C * t + 4 * H),
                          ("up dx", 2, t, 2 * H * t + 4 * C), ("down dW", 1, 8, (C + H) * t),
                          ("up dW", 2, 8, (C + 2 * H) * t)):
        F, W = n * 2 * C * H, n * C * H * w
        spare = [F * gpu.bandwidth * MEMORY_SHARE / r - A for r in rates]
        print(f"  {name:10}{F:15,}{W:12,}{A:16,}"
              + "".join(f"{f'{W / s:.0f}' if s > 0 else 'always':>20}" for s in spare))

def report(gpu, c, t):
    l2 = OrderedDict()
    for _ in range(2):   # the first leaves L2 as the second finds it
        step = Step(gpu, c, t, l2)
        step.forward(), step.backward()
        params = step.update()
    useful, every, activated = check(step)
    peak, bounds = gpu.bf16 if t == 2 else gpu.float32, "math issue shared L2 memory alone".split()
    kinds = sorted(step.kinds.items(), key=lambda k: -k[1]["time"])
    total = sum((k for _, k in kinds), Counter())
    print(f"\n{'=' * 118}\n{gpu.name}, {'bf16' if t == 2 else 'float32'}:",
          ", ".join(f"{name} {value}" for name, value in c._asdict().items()) +
          f"\n  {params / 1e6:.1f} M parameters, {activated / 1e6:.1f} M activated. "
          "Microseconds a step, by arithmetic:\n\n"
          f"  {'kernel':17}{'launches':>8}{'GFLOP':>9}{'MB':>9}{'FLOP/B':>8} |"
          + "".join(f"{x:>9}" for x in bounds) + f" |{'time':>9}  binds")
    for name, k in kinds + [("all", total)]:
        intensity = f"{k['flops'] / k['moved']:.0f}" if k["moved"] > 1e4 else "-"
        print(f"  {name:17}{k['launches']:8}{k['flops'] / 1e9:9.2f}{k['moved'] / 1e6:9.1f}"
              f"{intensity:>8} |" + "".join(f"{k[x] * 1e6:9.1f}" for x in bounds)
              + f" |{k['time'] * 1e6:9.1f}  " + (max(bounds, key=k.get) if k is not total else ""))
    print(f"\n  {'product':17}{'tile':>8}{'tiles':>8}{'tiles/SM':>10}{'blocks/SM':>11}"
          f"{'last wave loses':>17}{'TFLOP/s':>9}{'of peak':>9}")
    for name, k in kinds:
        if w := step.work.get(name):
            print(f"  {name:17}{w.BM:5}x{BN}{w.tiles:8}{w.tiles / gpu.sms:10.1f}{w.held:11}"
                  f"{w.loss:17.0%}{(rate := k['flops'] / k['time']) / 1e12:9.1f}{rate / peak:9.1%}")
    w = multiply(gpu, t, FORWARD, 128 if t == 2 else 64, ((128 * gpu.sms, 2048, 4096),))
    thresholds(gpu, c, t, (peak, w.flops / max(w.math, w.issue, w.shared, w.l2 / gpu.l2_rate)))
    seconds = max(step.host, step.device)
    print(f"\n  {total['launches']} launches keep the host busy {total['host'] * 1e3:.2f} ms: no "
          f"step is shorter. Kernels back to back: {total['time'] * 1e3:.2f} ms.\n  Products: "
          f"{every / 1e9:.1f} GFLOP; 6 * activated * tokens + attention: {useful / 1e9:.1f} "
          f"({useful / every:.1%}; the rest is above the diagonal).\n  EXPECTED, AT BEST: "
          f"{seconds * 1e3:.2f} ms a step, {c.B * c.T / seconds:,.0f} tokens/s, "
          f"{useful / seconds / peak:.1%} of peak (which would take {useful / peak * 1e3:.2f} ms)")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A roofline of hmoe_cuda.cu, on paper.")
    parser.add_argument("--precision", choices=["bf16", "float32"], default="bf16")
    t = 2 if parser.parse_args().precision == "bf16" else 4
    print("ARITHMETIC, NOT A MEASUREMENT: data sheets, the code, and the assumptions at the top of "
          f"this file.\nL2 is taken to keep whole arrays, the last used, in {L2_SHARE:.0%} of its "
          f"size. A kernel takes its largest bound and {FLOOR * 1e6:.0f} us.")
    for c in CONFIGS:
        for gpu, B in zip(GPUS, c.B): report(gpu, c._replace(B=B), t)
