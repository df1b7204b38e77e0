#!/usr/bin/env python3
"""crashes.py - nothing is lost: kill -9 at random moments, and before every call that changes a
directory while a run takes the place of an older one; full disks, directories that turn read-only or
go away, two runs in one directory, signals.

What must hold at every moment is asked of the files alone, with a run that nothing disturbed to
compare with: a directory has the older state or the newer one, whole, or is refused by name; and
what goes on from there ends with the same bits. The delays are random (SEED=N, printed), so a
machine of another speed tests other moments, but asks the same of them. FULL=1: 200 kills instead
of 16. BIN is where the programs are, as "build/"."""

import atexit
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests"))
from harness import check, done  # noqa: E402

FULL = os.environ.get("FULL") == "1"
SEED = int(os.environ.get("SEED") or 1)
STEPS, EVERY, EVALUATE = 12, 1, 2            # the rate is so high that the last is not the best
TINY = ("--data text --width 16 --layers 2 --heads 2 --context 8 --experts 4 --hidden 9 --batch 32 "
        "--threads 1 --warmup 3 --eval-tokens 100 --lr 0.2 --min-lr 0.2").split()
OFTEN = ["--save-every", str(EVERY), "--eval-every", str(EVALUATE)]
ENDLESS = ["--steps", "100000000", "--save-every", "100000000", "--eval-every", "100000000"]
ONE = ["--pp", "0.02"]                       # two runs that have nothing in common but their shapes
OTHER = ["--pp", "0.03", "--seed", "7"]
FILES = ["training.safetensors", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
         "config.json"]
chance = random.Random(SEED)


# --- programs -------------------------------------------------------------------------------------

def command(words, **how):
    return subprocess.Popen(words, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how})


def start(program, *arguments, **how):
    return command([program if "/" in program else BIN + program, *arguments], **how)


def end(process):
    """Its status, output and errors, as text."""
    out, err = process.communicate()
    return process.returncode, (out or b"").decode("latin-1"), (err or b"").decode("latin-1")


def run(program, *arguments, **how):
    return end(start(program, *arguments, **how))


def train(directory, *more, **how):
    return run("train_tiny", *TINY, *OFTEN, "--out", directory, *more, **how)


def resumes(name, directory, *more, **how):
    """The next command: it tidies up after a crash, and finds a run or none. Returns its result."""
    result = train(directory, "--resume", "--steps", "0", *more, **how)
    again = "train_tiny: warning: the older run is in %s again: " % directory
    check(name + ": says no more than what it put back", result[0] or not result[2]
          or result[2].startswith(again) and result[2].count("\n") == 1, result)
    return result


def works(name, result):
    return check(name, result[0] == 0 and not result[2], result)


def refuses(name, result, *words):
    """Status 1 and one line that says what is wrong."""
    return check(name, result[0] == 1 and result[2].count("\n") == 1
                 and re.match("(train_tiny|generate): ", result[2])
                 and all(word in result[2] for word in words), (words,) + result)


def wait_until(holds, process=None):
    """Until it does, a process has ended, or a minute has passed; returns whether it does."""
    for _ in range(60000):
        if holds():
            return True
        if process and process.poll() is not None:
            return holds()
        time.sleep(0.001)
    return False


# --- what a directory holds -----------------------------------------------------------------------

def read(*path):
    try:
        with open(os.path.join(*path), "rb") as f:
            return f.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def digest(data):
    return data and hashlib.sha256(data).hexdigest()


def training(directory):
    """The metadata without the seconds, what is said of the tensors, their bytes."""
    data = read(directory, "training.safetensors") or b""
    n = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:n])
    except ValueError:
        return {"step": -1}, {}, digest(data)          # torn, or none
    state = {k: v for k, v in header.pop("__metadata__").items() if k != "seconds"}
    return state, header, digest(data[n:])


def saved_step(directory):
    return int(training(directory)[0]["step"])


def rows(directory, name="log.csv"):
    """The whole rows of a log, without their seconds."""
    lines = (read(directory, name) or b"").decode().split("\n")[:-1]
    return [row[:2] + row[3:] for row in (line.split(",") for line in lines[1:])]


def names(directory):
    """All files there are, but for the lock."""
    return sorted(os.path.relpath(os.path.join(at, f), directory) for at, _, files
                  in os.walk(directory) for f in files if f != "lock")


def contents(directory):
    """Everything that two runs of the same options have in common."""
    special = {"training.safetensors": training, "log.csv": rows}
    return {f: special[f](directory) if f in special else digest(read(directory, f))
            for f in names(directory)}


def unfinished(directory):
    return [f for d in (directory, directory + ".new") for f in names(d) if f.endswith(".tmp")]


def differences(a, b):
    return sorted(f for f in set(a) | set(b) if a.get(f) != b.get(f))


def same(name, directory, expected):
    """The files are those, beside unfinished ones, which a crash may leave."""
    found = {f: x for f, x in contents(directory).items() if not f.endswith(".tmp")}
    return check(name, found == expected, differences(found, expected))


class Reference:
    """A run that nothing disturbed, and the weights it had after each step."""
    def __init__(self, name, options):
        self.name, self.options = name, options
        began = time.monotonic()
        works("the run %s" % name, train(name, "--steps", str(STEPS), *options))
        self.seconds = time.monotonic() - began
        self.contents, self.config = contents(name), read(name, "config.json")
        self.step_of = {}
        for step in range(1, STEPS + 1):
            train("step", "--overwrite", "--steps", str(step), *options, "--save-every", "1000")
            self.step_of[digest(read("step", "model.safetensors"))] = step
        shutil.rmtree("step")
        check("every step has other weights", len(self.step_of) == STEPS)
        self.loss = {int(row[0]): float(row[-1]) for row in self.contents["log.csv"] if row[-1]}
        check("the last is not the best", self.best(STEPS) < STEPS)

    def best(self, step):
        return min((s for s in self.loss if s <= step), key=self.loss.get)

    def best_is_whole(self, name, directory, step):
        best = os.path.join(directory, "best")
        check(name + ": best/ is this run's", read(best, "config.json") == self.config)
        found = self.step_of.get(digest(read(best, "model.safetensors")))
        check(name + ": of this step, or of what would have been saved next",
              found in (self.best(step), self.best(step + EVERY)), (step, found))
        works(name + ": best/ loads", run("generate", best, "-n", "5", "--threads", "1"))

    def is_sound(self, name, directory):
        """A state of this run, whole, and no older than its last save."""
        step, log = saved_step(directory), rows(directory)
        weights = self.step_of.get(digest(read(directory, "model.safetensors")), -9)
        check(name + ": config.json", read(directory, "config.json") == self.config)
        check(name + ": the weights are of the state, or of the next that would have been saved",
              0 <= weights - step <= EVERY, (step, weights))
        check(name + ": at most one save is lost", step >= (len(log) - 1) // EVERY * EVERY,
              (step, len(log)))
        check(name + ": the log's rows are on disk first", len(log) >= step, (step, len(log)))
        check(name + ": the log's rows are right", log == self.contents["log.csv"][:len(log)], log)
        check(name + ": no strange files", set(f.replace(".tmp", "") for f in names(directory))
              <= set(self.contents), names(directory))
        said = run("generate", directory, "-n", "5", "--threads", "1")
        check(name + ": it writes", said[0] == 0 and len(said[1]) == 5, said)
        works(name + ": it scores", run("generate", directory, "--score", "text", "--threads", "1"))
        if step >= EVALUATE:
            self.best_is_whole(name, directory, step)

    def goes_on(self, name, directory, *more):
        """To the end, which is that of the undisturbed run, and leaves nothing unfinished. (A run
        that was at its end leaves all files as they are.)"""
        over = "--resume" in more and saved_step(directory) == STEPS
        works(name + ": goes on", train(directory, "--steps", str(STEPS), *more, *self.options))
        found = contents(directory)
        found = {f: found[f] for f in found if not (over and f.endswith(".tmp"))}
        check(name + ": ends as if nothing had been", found == self.contents,
              differences(found, self.contents))


def is_refused(name, directory):
    """No reader takes it for a model or a run."""
    refuses(name + ": generate refuses", run("generate", directory, "-n", "5"),
            os.path.join(directory, "config.json"))
    refuses(name + ": --resume refuses", train(directory, "--steps", "99", "--resume"),
            os.path.join(directory, "config.json"))


def clear(directory):
    """Removes it, if it is a link what that leads to, and all that --overwrite puts beside it."""
    if os.path.islink(directory):
        shutil.rmtree(os.path.realpath(directory), ignore_errors=True)
        os.remove(directory)
    for end_of_name in "", ".new", ".old":
        shutil.rmtree(directory + end_of_name, ignore_errors=True)


def copy(a, b, link=False):
    clear(b)
    shutil.copytree(a, "real" if link else b)
    if link:
        os.symlink("real", b)


def in_between(directory):
    """What --overwrite puts beside the run or inside of it until it is done."""
    return [f for f in [directory + ".new", directory + ".old"]
            + [os.path.join(directory, f) for f in (".new", ".part", ".old", "overwrite")]
            if os.path.exists(f)]


def anew(directory):
    """The option that a new run there needs."""
    there = [f for f in ("config.json", "best/config.json")
             if os.path.exists(os.path.join(directory, f))]
    return ["--overwrite"] if there else []


# --- kill -9 --------------------------------------------------------------------------------------

class Kills:
    count = inside = 0
    where = {}

    @classmethod
    def hit(cls, process, directory, delay, until=None):
        """Kills it so many seconds from now; or when something then comes to be, and a moment
        later, which most likely is in the middle of a save. Returns whether it still ran."""
        time.sleep(delay)
        while until and process.poll() is None and not until():
            pass                                # a pause would miss it
        if until:
            time.sleep(chance.choice([0, chance.uniform(0, 0.004)]))
        process.kill()
        if end(process)[0] != -signal.SIGKILL:
            return False
        left = unfinished(directory) if os.path.isdir(directory) else []
        cls.count, cls.inside = cls.count + 1, cls.inside + bool(left)
        for f in left:
            cls.where[f] = cls.where.get(f, 0) + 1
        return True


def after_a_kill(name, directory, ref, old):
    """Returns whose run the next command finds: the older one's, this one's, or nobody's."""
    said = run("generate", directory, "-n", "5", "--threads", "1")
    check(name + ": a reader gets a model or an error", said[0] == 0 and len(said[1]) == 5
          or said[0] == 1 and directory + "/" in said[2], said)
    result = resumes(name, directory)
    check(name + ": nothing in between is left", not in_between(directory), in_between(directory))
    config = read(directory, "config.json")
    if old and config == old.config:
        check(name + ": the older run is resumed", result[0] == 0, result)
        same(name + ": the older run is whole", directory, old.contents)
        return "old"
    if config is None:
        check(name + ": the older run is not lost", not old)
        check(name + ": the first save is not over", len(rows(directory)) <= EVALUATE,
              rows(directory))
        if os.path.isdir(directory):
            is_refused(name, directory)
        best = read(directory, "best", "config.json")
        if best is not None:
            ref.best_is_whole(name, directory, EVALUATE)
        return "none"
    check(name + ": the new run is resumed", result[0] == 0, result)
    ref.is_sound(name, directory)
    return "new"


def there(name, directory="k"):
    return lambda: os.path.exists(os.path.join(directory, name))


def first_save(old, link):
    """A moment of the first save, or of the exchange of the runs after it."""
    if not old:
        return there(chance.choice(["log.csv", "best/config.json", "training.safetensors"]))
    if link:
        return there(chance.choice([".new/config.json", ".part/config.json", ".part/best", ".old"]))
    return there(chance.choice(["config.json", "config.json.tmp"]), "k.new") \
        if chance.random() < 0.3 else there("overwrite", chance.choice(["k", "k.old"]))


def kill_runs(goal, one, other):
    """Fresh runs, runs over older ones, and what those left, killed again and again."""
    ends = {"old": 0, "none": 0, "new": 0}
    turn = 0
    while Kills.count < goal and turn < 10 * goal:
        turn += 1
        name, old, link = "killed %d" % turn, one if turn % 2 else None, turn % 4 == 1
        ref = other if turn % 2 else one
        clear("k")
        if old:
            copy(old.name, "k", link)
        state, kills = "", 0
        while Kills.count < goal and (kills == 0 or chance.random() < 0.5):
            how = ["--resume"] if state == "new" else anew("k")
            step = saved_step("k") if state == "new" else 0
            whole = ref.seconds * (STEPS - step) / STEPS
            p = start("train_tiny", *TINY, *OFTEN, "--out", "k", "--steps", str(STEPS),
                      *ref.options, *how)
            delay, until = chance.uniform(0, whole), None
            if state != "new" and (not kills or chance.random() < 0.7):  # first saves are delicate
                delay, until = 0, first_save(old, link)
            elif chance.random() < 0.5:
                until = there(chance.choice(FILES + ["best/" + f for f in FILES[1:]]) + ".tmp")
            if not Kills.hit(p, "k", delay, until):
                break
            kills += 1
            at = "%s (%d%s%s)" % (name, kills, ", a link" if link else "",
                                  ", resumed" if state == "new" else "")
            state = after_a_kill(at, "k", ref, old if state != "new" else None)
            ends[state] += 1
        if os.path.isdir("k"):
            over = kills == 0 or read("k", "config.json") == ref.config
            ref.goes_on(name, "k", *(["--resume"] if over else anew("k")))
            check(name + ": a link stays a link", os.path.islink("k") == link)
    print("killed %d runs: %d inside a save (%s); left the older run %d times, nothing yet %d, the "
          "new run %d" % (Kills.count, Kills.inside, ", ".join("%s %d" % x for x in
                                                             sorted(Kills.where.items())),
                         ends["old"], ends["none"], ends["new"]), flush=True)


# --- kill -9 before each call that changes a directory ---------------------------------------------

KILLER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>
static void count(void) {
    static int calls;
    const char *at = getenv("KILL_AT");
    if (at && ++calls == atoi(at)) kill(getpid(), SIGKILL);
}
#define KILLS(type, name, parameters, ...) type name parameters { \
    count(); return ((type (*) parameters)dlsym(RTLD_NEXT, #name))(__VA_ARGS__); }
KILLS(int, rename, (const char *a, const char *b), a, b)
KILLS(int, unlink, (const char *a), a)
KILLS(int, remove, (const char *a), a)
KILLS(int, rmdir, (const char *a), a)
KILLS(int, mkdir, (const char *a, mode_t m), a, m)
KILLS(int, truncate, (const char *a, off_t n), a, n)
KILLS(FILE *, fopen, (const char *a, const char *b), a, b)
"""


def killer():
    """A library that kills the program at its call number KILL_AT, or None."""
    with open("killer.c", "w") as f:
        f.write(KILLER)
    try:
        return None if subprocess.run(["cc", "-shared", "-fPIC", "-o", "killer.so", "killer.c",
                                       "-ldl"], stderr=subprocess.DEVNULL).returncode \
            else os.path.abspath("killer.so")
    except FileNotFoundError:
        return None


def kill_everywhere(one, other):
    """A run over an older one, killed at each call; and what tidies up after it, killed as well."""
    library = killer()
    if not library:
        print("cannot build a library to kill with: not every instant is tried")
        return
    few = ["--steps", str(EVALUATE), "--save-every", "1000"]           # one save
    for link in False, True:
        found, at, number = [], "%s" % ("over a link" if link else "over a directory"), 0
        while True:
            number += 1
            name = "%s, killed at call %d" % (at, number)
            copy(one.name, "k", link)
            environment = dict(os.environ, LD_PRELOAD=library, KILL_AT=str(number))
            result = train("k", "--overwrite", *other.options, *few, env=environment)
            if result[0] != -signal.SIGKILL:
                works(name + ": was over", result)
                break
            for _ in range(3):                                         # kill what tidies up
                environment["KILL_AT"] = str(chance.randrange(1, 30))
                train("k", "--resume", "--steps", "0", env=environment)
            state = after_a_kill(name, "k", other, one)
            found.append(state)
        check(at + ": the older run, then the new one", found == sorted(found, reverse=True)
              and set(found) == {"old", "new"}, found)
        print("%s: killed at each of %d calls, %d left the older run, %d the new one"
              % (at, len(found), found.count("old"), found.count("new")), flush=True)


def kill_exports(goal, one, other):
    Kills.count, Kills.inside, Kills.where = 0, 0, {}
    began = time.monotonic()
    works("an export", run("generate", one.name, "--export-mixtral", "exported-one"))
    seconds = time.monotonic() - began
    works("another", run("generate", other.name, "--export-mixtral", "exported-other"))
    old, new = contents("exported-one"), contents("exported-other")
    for turn in range(4 * goal):
        if Kills.count >= goal:
            break
        name, over = "export killed %d" % turn, turn % 3 > 0
        shutil.rmtree("e", ignore_errors=True)
        if over:
            copy("exported-one", "e")
        p = start("generate", other.name, "--export-mixtral", "e")
        until = chance.choice([None, there(chance.choice(FILES[1:]) + ".tmp", "e"),
                               there("config.json.tmp", "e")])     # the last before they move
        if not Kills.hit(p, "e", 0 if until else chance.uniform(0, seconds), until):
            continue
        same(name + ": the source is unharmed", other.name, other.contents)
        config = read("e", "config.json") if os.path.isdir("e") else None
        if config is None:
            refuses(name + ": refused", run("generate", "e", "-n", "5"), "e/config.json")
        else:
            expected = new if config == read("exported-other", "config.json") else old
            same(name + ": the older or the newer one", "e", expected)
            works(name + ": loads", run("generate", "e", "-n", "5"))
        works(name + ": again", run("generate", other.name, "--export-mixtral", "e"))
        check(name + ": is whole", contents("e") == new)
    print("killed %d exports: %d left a file unfinished" % (Kills.count, Kills.inside), flush=True)


def exports(one):
    """An export over an older one leaves nothing of it; one into a run is refused."""
    copy("exported-one", "e")
    copy(one.name, "wordless")
    with open("wordless/config.json", "w") as f:
        f.write("".join(line for line in read(one.name, "config.json").decode().splitlines(True)
                        if '"vocab"' not in line))
    works("an export without a vocabulary", run("generate", "wordless", "--export-mixtral", "e"))
    check("leaves no tokenizer of an older one", names("e") == ["config.json", "model.safetensors"],
          names("e"))
    copy(one.name, "k")
    for to in "k/best", "k/best/", "./k/../k/best":
        refuses("export into a run's best/", run("generate", one.name, "--export-mixtral", to),
                to, "holds a run")
    same("which is as before", "k", one.contents)
    works("but beside it", run("generate", one.name, "--export-mixtral", "k/mixtral"))


# --- no room --------------------------------------------------------------------------------------

def limit(size):
    """The size that no file may exceed from here on: a write beyond it fails as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def full_disk(ref, other):
    """One run goes on, or another one would replace it."""
    log, sizes = len(read("half", "log.csv")), {f: len(read("half", f)) for f in FILES}
    for size in [0, 50, log - 1, log + 10, log + 150, sizes["model.safetensors"] - 1,
                 sizes["training.safetensors"] - 1, sizes["training.safetensors"] // 2]:
        for more in [[], ["--save-every", "1000"]]:
            name = "no file above %d bytes%s" % (size, more and ", saved with best/")
            copy("half", "k")
            refuses(name, train("k", "--resume", "--steps", str(STEPS), *more, *ref.options,
                                preexec_fn=limit(size)), "cannot write k/", "File too large")
            check(name + ": nothing unfinished", not unfinished("k"), unfinished("k"))
            if not more:
                ref.is_sound(name, "k")
            ref.goes_on(name, "k", "--resume")
    for size in 0, log, sizes["model.safetensors"] - 1, sizes["training.safetensors"] - 1:
        copy(ref.name, "k")
        name = "no file above %d bytes, a fresh run" % size
        refuses(name, train("k", "--overwrite", "--steps", str(STEPS), *other.options,
                            preexec_fn=limit(size)), "cannot write k.new/", "File too large")
        check(name + ": nothing unfinished", not unfinished("k"), unfinished("k"))
        resumes(name, "k")
        same(name + ": the older one is whole", "k", ref.contents)
    for f in FILES + ["best/" + f for f in FILES[1:]]:
        copy("half", "k")
        blocked = os.path.join("k", f + ".tmp")
        os.makedirs(os.path.join(blocked, "x"))
        refuses("cannot write " + f, train("k", "--resume", "--steps", str(STEPS), *ref.options),
                "cannot write " + blocked, "directory")
        shutil.rmtree(blocked)
        check("cannot write %s: nothing unfinished" % f, not unfinished("k"), unfinished("k"))
        ref.is_sound("cannot write " + f, "k")
        ref.goes_on("cannot write " + f, "k", "--resume")
    copy("exported-one", "e")
    before = contents("e")
    for size in 0, 900, 30000:
        refuses("export, no file above %d bytes" % size, run("generate", ref.name,
                "--export-mixtral", "e", preexec_fn=limit(size)), "e/model.safetensors",
                "File too large")
        same("and the older export is whole", "e", before)
    if os.path.exists("/dev/full"):
        copy("half", "k")
        with open("/dev/full", "w") as f:
            refuses("output to a full disk", train("k", "--resume", "--steps", str(STEPS),
                                                   *ref.options, stdout=f), "standard output")
            found = contents("k")
            check("the run is saved", found == ref.contents, differences(found, ref.contents))
            refuses("generate: output to a full disk", run("generate", "k", stdout=f),
                    "standard output")


def namespace():
    """How to get a namespace to mount in, or None."""
    for words in ["unshare", "-m"], ["unshare", "-rm"]:
        try:
            if not subprocess.run(words + ["mount", "-t", "tmpfs", "none", here],
                                  stderr=subprocess.DEVNULL).returncode:
                return words
        except FileNotFoundError:
            pass
    return None


def on_small_disk(unshare, kilobytes, before, after, *arguments):
    """A program with a disk of that size at `disk`, which then is copied to `after`."""
    script = ('size=$1 before=$2 after=$3; shift 3; mount -t tmpfs -o size=${size}k none disk || '
              'exit 99; [ -z "$before" ] || cp -r "$before"/. disk || exit 98; "$@"; status=$?; '
              'rm -rf "$after"; cp -r disk "$after"; exit $status')
    return end(command(unshare + ["sh", "-c", script, "sh", str(kilobytes), before, after,
                                  BIN + arguments[0], *arguments[1:]]))


def small_disks(unshare, one, other):
    os.mkdir("disk")
    resume = ["train_tiny", *TINY, *OFTEN, "--out", "disk", "--steps", str(STEPS)]
    used = sum(-(-len(read("half", f)) // 4096) * 4 for f in names("half")) + 8
    outcomes = []
    for room in range(0, 260, 4 if FULL else 36):
        name = "%d kB free" % room
        result = on_small_disk(unshare, used + room, "half", "k", *resume, "--resume", *one.options)
        outcomes.append(result[0])
        if result[0]:
            refuses(name, result, "cannot write disk/", "No space left")
        one.is_sound(name, "k")
        check(name + ": nothing unfinished", not unfinished("k"), unfinished("k"))
        one.goes_on(name, "k", "--resume")
    check("too small and large enough disks", {0, 1} == set(outcomes), outcomes)
    outcomes = []
    for size in range(4, 460, 8 if FULL else 64):
        name = "a disk of %d kB" % size
        result = on_small_disk(unshare, size, "", "k", *resume, *one.options)
        outcomes.append(result[0])
        if result[0]:
            refuses(name, result, "No space left")
        check(name + ": nothing unfinished", not unfinished("k"), unfinished("k"))
        if read("k", "config.json") is None:
            is_refused(name, "k")
            one.goes_on(name, "k", *anew("k"))
        else:
            one.is_sound(name, "k")
            one.goes_on(name, "k", "--resume")
    check("too small and large enough disks, empty", {0, 1} == set(outcomes), outcomes)
    used = sum(-(-len(read(one.name, f)) // 4096) * 4 for f in names(one.name)) + 8
    outcomes = []
    for room in range(0, 460, 8 if FULL else 64):
        name = "%d kB free beside an older run" % room
        result = on_small_disk(unshare, used + room, one.name, "k", *resume, "--overwrite",
                               *other.options)
        outcomes.append(result[0])
        if result[0]:
            refuses(name, result, "No space left")
        check(name + ": nothing unfinished", not unfinished("k"), unfinished("k"))
        state = after_a_kill(name, "k", other, one)
        other.goes_on(name, "k", "--resume" if state == "new" else "--overwrite")
    check("too small and large enough disks, older run", {0, 1} == set(outcomes), outcomes)


# --- directories that cannot be written to, or go away --------------------------------------------

def becomes_nobody():
    """For root: what makes a program one that permissions bind. None where it cannot be done."""
    if os.geteuid() != 0:
        return lambda: None
    try:
        def nobody():
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        subprocess.run([BIN + "train_tiny", "--help"], preexec_fn=nobody, check=True,
                       stdout=subprocess.DEVNULL)
        return nobody
    except (subprocess.SubprocessError, OSError):
        return None


def allow(directory, mode):
    for at, _, files in os.walk(directory):
        os.chmod(at, mode)
        for f in files:
            os.chmod(os.path.join(at, f), mode & 0o666)


def read_only(ref, unshare):
    if unshare:
        copy("half", "k")
        script = 'mount --bind k k && mount -o remount,bind,ro k || exit 99; exec "$@"'
        result = end(command(unshare + ["sh", "-c", script, "sh", BIN + "train_tiny", *TINY,
                                        "--out", "k", "--resume", "--steps", str(STEPS)]))
        refuses("a read-only file system", result, "directory k: Read-only file system")
        check("is as before", contents("k") == contents("half"))
    nobody = becomes_nobody()
    if not nobody:
        print("cannot become another user here: directories without permission are skipped")
        return
    more = ["--steps", str(STEPS), *ref.options]
    copy("half", "k")
    allow("k", 0o555)
    refuses("a read-only directory", train("k", "--resume", *more, preexec_fn=nobody),
            "directory k: Permission denied")
    works("is read", run("generate", "k", "-n", "5", preexec_fn=nobody))
    allow("k", 0o777)
    check("is as before", contents("k") == contents("half"))
    os.chmod("k/log.csv", 0)
    refuses("a log that cannot be read", train("k", "--resume", *more, preexec_fn=nobody),
            "cannot open k/log.csv: Permission denied")
    os.chmod("k/log.csv", 0o666)
    check("is still there", rows("k") == rows("half"))
    p = start("train_tiny", *TINY, *ENDLESS, "--out", "k", "--resume", *ref.options,
              preexec_fn=nobody)
    wait_until(lambda: len(rows("k")) > STEPS, p)
    os.chmod("k", 0o555)
    p.send_signal(signal.SIGINT)
    refuses("read-only by the time it saves", end(p), "is not saved: cannot write k/",
            "Permission denied")
    os.chmod("k", 0o777)
    check("and the state is as before", training("k") == training("half"))
    shutil.rmtree("k")
    copy("half", "k")                          # with the rows that the reference has
    ref.goes_on("writable again", "k", "--resume")


def no_directory(ref):
    for out, word in ("text", "text"), ("text/x", "Not a directory"), ("no/where", "No such file"):
        before = contents(".")
        refuses("--out %s" % out, train(out, "--steps", "1"), out, word)
        if out != "no/where":
            refuses("--resume --out %s" % out, train(out, "--steps", "1", "--resume"), out)
        check("--out %s changes nothing" % out, contents(".") == before)


def gone(one, other):
    """What happens to a run whose directory is removed, renamed, or another one by now."""
    for what in "removed", "renamed", "emptied", "replaced":
        for often in False, True:              # saves at the signal alone, or all the time
            name = "the directory is %s%s" % (what, often and ", while it saves" or "")
            copy("half", "k")
            shutil.rmtree("away", ignore_errors=True)
            if what == "replaced" and often:
                continue                       # in the middle of a save nothing can tell
            p = start("train_tiny", *TINY, *(OFTEN if often else ENDLESS), "--out", "k", "--resume",
                      "--steps", "100000000", *one.options)
            wait_until(lambda: len(rows("k")) > 7, p)
            if what == "removed":
                while os.path.exists("k/log.csv"):
                    shutil.rmtree("k", ignore_errors=True)
            else:
                os.rename("k", "away")
            if what == "emptied":
                os.path.isdir("k") or os.mkdir("k")
            if what == "replaced":
                shutil.copytree(other.name, "k")
            if not often:
                p.send_signal(signal.SIGINT)
            refuses(name, end(p), " saved: ", "k/")
            if what in ("renamed", "emptied"):
                check(name + ": the state is there", saved_step("away") >= 6)
                works(name + ": and loads", run("generate", "away", "-n", "5"))
                works(name + ": and goes on", train("away", "--resume", "--steps", str(
                    saved_step("away") + 1), *one.options))
            if what == "replaced":
                same(name + ": the other run is unharmed", "k", other.contents)
    copy("half", "k")
    shutil.rmtree("k/best")
    one.goes_on("best/ is removed", "k", "--resume")
    for turn in range(20 if FULL else 4):
        name = "best/ is removed while it saves %d" % turn
        copy("half", "k")
        p = start("train_tiny", *TINY, *OFTEN, "--out", "k", "--resume", "--steps", str(STEPS),
                  *one.options)
        time.sleep(chance.uniform(0, one.seconds / 2))
        shutil.rmtree("k/best", ignore_errors=True)
        result = end(p)
        if result[0]:
            refuses(name, result, "is not saved: cannot write k/best/", "No such file")
            one.goes_on(name, "k", "--resume")
        else:
            check(name + ": the state is right", training("k") == one.contents[FILES[0]])


# --- two at a time --------------------------------------------------------------------------------

def two_runs(one, other):
    shutil.rmtree("k", ignore_errors=True)
    first = start("train_tiny", *TINY, *OFTEN, "--out", "k", "--steps", "100000000", *one.options)
    wait_until(lambda: len(rows("k")) > 2, first)
    for how in [], ["--resume"]:
        refuses("a second run %s" % how, train("k", "--steps", "9", *how, *other.options),
                "process %d:" % first.pid, "in use")
    for name, reads in ("k", 200 if FULL else 40), ("k/best", 20):
        loads = [run("generate", name, "-n", "1") for _ in range(reads)]
        check("%d reads of %s while it saves" % (reads, name),
              all(x[0] == 0 and not x[2] for x in loads), [x for x in loads if x[0]][:1])
    first.kill()
    end(first)
    step = saved_step("k")
    check("the first went on meanwhile", step > 2, step)
    works("no lock is left", train("k", "--resume", "--steps", str(step + 3), *one.options))
    works("a run of as many steps", train("k2", "--steps", str(step + 3), *one.options,
                                          "--save-every", "100000000"))
    found, expected = contents("k"), contents("k2")
    check("the first was unharmed", found == expected, differences(found, expected))
    shutil.rmtree("k2")


def locked_while_renamed(one, other):
    """Nobody else gets in while a run takes the place of an older one, whatever its name is."""
    for turn in range(20 if FULL else 6):
        copy(other.name, "k", turn % 3 == 2)
        first = start("train_tiny", *TINY, *OFTEN, "--out", "k", "--overwrite", "--steps",
                      "100000000", *one.options)
        wait_until(lambda: in_between("k"), first)
        outcomes = []
        while in_between("k") and len(outcomes) < 100 or len(outcomes) < 4:
            how = ["--overwrite", "--steps", "1"] if len(outcomes) % 2 else ["--resume"]
            outcomes.append(train("k", *how, *other.options))
        check("renamed %d: everybody else is refused" % turn, all(
            x[0] == 1 and " is in use by process %d: " % first.pid in x[2] for x in outcomes),
            [x for x in outcomes if " is in use by " not in x[2]][:1])
        check("renamed %d: the first goes on" % turn, first.poll() is None)
        first.kill()
        end(first)
        check("renamed %d: the run is its own" % turn, read("k", "config.json") == one.config)
    clear("k")


# --- signals --------------------------------------------------------------------------------------

def signals(ref):
    kinds = [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT] * 2,
             [signal.SIGTERM, signal.SIGINT, signal.SIGINT]]
    os.symlink(os.path.dirname(BIN + "x"), "it's here")     # so that the line must quote it
    elsewhere = os.path.join("it's here", os.path.basename(BIN + "train_tiny"))
    for turn in range(40 if FULL else 8):
        sent, name = kinds[turn % len(kinds)], "stopped %d" % turn
        clear("k")
        if turn % 3 == 1:
            copy("half", "k")
        how = ["--resume"] if turn % 3 == 1 else []
        p = start(elsewhere if turn % 2 else "train_tiny", *TINY, *OFTEN, "--out", "k",
                  "--steps", str(STEPS), *ref.options, *how)
        wait_until(lambda: os.path.exists("k/log.csv"), p)
        time.sleep(chance.uniform(0, ref.seconds if turn % 2 else ref.seconds / 8))
        for s in sent:
            if p.poll() is None:
                p.send_signal(s)
                time.sleep(chance.uniform(0, ref.seconds / 50))
        result = end(p)
        if result[0] in [-s for s in sent]:    # nothing was to be saved yet, or all was
            how = ["--resume"] if os.path.exists("k/config.json") else []
            result = train("k", "--steps", str(STEPS), *ref.options, *how)
        works(name + ": status 0", result)
        last = result[1].strip().split("\n")[-1]
        if last.startswith("final: "):
            check(name + ": it was over", saved_step("k") == STEPS)
        else:
            found = re.match(r"stopped after step (\d+); .* to go on: (.* --resume --out k .*)$", last)
            if check(name + ": says how to go on", found, last):
                check(name + ": and where it is", int(found.group(1)) == saved_step("k")
                      == len(rows("k")), last)
                ref.is_sound(name, "k")
                more = " ".join(TINY + OFTEN + ref.options)
                works(name + ": that works", end(command(["sh", "-c", found.group(2) + " " + more])))
        found = contents("k")
        check(name + ": ends as if nothing had been", found == ref.contents,
              differences(found, ref.contents))


def closed_pipe(ref):
    """As with `train_tiny | head -n 1`: the run goes on."""
    shutil.rmtree("k", ignore_errors=True)
    p = start("train_tiny", *TINY, *OFTEN, "--out", "k", "--steps", str(STEPS), *ref.options)
    p.stdout.readline()
    p.stdout.close()
    error = p.stderr.read().decode()
    p.stderr.close()
    check("a reader that left: status 1 at the end", p.wait() == 1 and "standard output" in error
          and error.count("\n") == 1, error)
    found = contents("k")
    check("a reader that left: all is saved", found == ref.contents,
          differences(found, ref.contents))


# --- all of it ------------------------------------------------------------------------------------

MEMORY = "/dev/shm"          # where a save, and so each of the many runs below, takes no time


def move_to(parent):
    """Goes on in a temporary directory there, with all there is in the one before, if it can."""
    if parent and not (os.path.isdir(parent) and os.access(parent, os.W_OK)):
        return here
    new = tempfile.mkdtemp(prefix="hmoe-crashes-", dir=parent)
    atexit.register(shutil.rmtree, new, ignore_errors=True)
    os.chmod(new, 0o755)
    if parent:
        shutil.copytree(here, new, dirs_exist_ok=True)
    os.chdir(new)
    return new


def main():
    global here
    with open("text", "wb") as f:
        f.write(read(ROOT, "LICENSE"))
    one, other = Reference("one", ONE), Reference("other", OTHER)
    works("half a run", train("half", "--steps", "6", *ONE))
    kill_runs(200 if FULL else 16, one, other)
    kill_everywhere(one, other)
    kill_exports(60 if FULL else 12, one, other)
    exports(one)
    here = here if FULL else move_to(MEMORY)
    full_disk(one, other)
    unshare = namespace()
    if unshare:
        small_disks(unshare, one, other)
    else:
        print("cannot mount anything here: small disks are skipped")
    read_only(one, unshare)
    no_directory(one)
    gone(one, other)
    two_runs(one, other)
    locked_while_renamed(one, other)
    signals(one)
    closed_pipe(one)


BIN = os.path.join(os.getcwd(), os.environ.get("BIN") or "")
here = move_to(None)
for number in signal.SIGTERM, signal.SIGHUP:
    signal.signal(number, lambda *_: sys.exit(1))
main()
print("seed %d" % SEED)
done("crashes")
