"""Nothing is lost: kill -9 at random moments, and before every call that changes a directory while
a run takes the place of an older one; full disks, directories that turn read-only or go away, two
runs in one directory, signals.

What must hold at every moment is asked of the files alone, with a run that nothing disturbed to
compare with: a directory has the older state or the newer one, whole, or is refused by name; and
what goes on from there ends with the same bits. The delays are random (SEED=N), so a machine of
another speed tests other moments, but asks the same of them. FULL=1: 200 kills instead of 16."""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time

import pytest
from harness import BIN, ROOT

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

started = []                                 # the test's processes


def command(words, **how):
    started.append(subprocess.Popen(
        words, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}))
    return started[-1]


def start(program, *arguments, **how):
    return command([program if "/" in program else BIN / program, *arguments], **how)


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
    assert result[0] or not result[2] or result[2].startswith(again) \
        and result[2].count("\n") == 1, (name, result)
    return result


def works(name, result):
    assert result[0] == 0 and not result[2], (name, result)


def refuses(name, result, *words):
    """Status 1 and one line that says what is wrong."""
    status, _, error = result
    assert status == 1 and re.fullmatch("(train_tiny|generate): .*\n", error), (name, result)
    assert all(word in error for word in words), (name, words, error)


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
    """The metadata without the seconds and the hash of the recipe (which has names of files, and how
    often to save), what is said of the tensors, their bytes."""
    data = read(directory, "training.safetensors") or b""
    n = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:n])
    except ValueError:
        return {"step": -1}, {}, digest(data)          # torn, or none
    state = {k: v for k, v in header.pop("__metadata__").items()
             if k not in ("seconds", "recipe")}
    return state, header, digest(data[n:])


def saved_step(directory):
    return int(training(directory)[0]["step"])


def rows(directory, name="log.csv"):
    """The whole rows of a log, without their seconds."""
    lines = (read(directory, name) or b"").decode().split("\n")[:-1]
    return [row[:2] + row[3:] for row in (line.split(",") for line in lines[1:])]


def recipe(directory):
    """Without the place of the text, which moves with these tests, and how often it was saved."""
    lines = read(directory, "recipe.txt").decode().split("\n")
    return [line for line in lines if not line.startswith(("data ", "save-every "))]


def names(directory):
    """All files there are, but for the lock."""
    return sorted(os.path.relpath(os.path.join(at, f), directory) for at, _, files
                  in os.walk(directory) for f in files if f != "lock")


def contents(directory):
    """Everything that two runs of the same options have in common."""
    special = {"training.safetensors": training, "log.csv": rows, "recipe.txt": recipe}
    return {f: special[f](directory) if f in special else digest(read(directory, f))
            for f in names(directory)}


def beside(file):
    """Its name in a directory until it is complete."""
    return os.path.join(os.path.dirname(file), ".%s.hmoe.tmp" % os.path.basename(file))


def unfinished(directory):
    return [f for d in (directory, directory + ".new") for f in names(d) if f.endswith(".tmp")]


def differences(a, b):
    return sorted(f for f in set(a) | set(b) if a.get(f) != b.get(f))


def same(name, directory, expected):
    """The files are those, beside unfinished ones, which a crash may leave."""
    found = {f: x for f, x in contents(directory).items() if not f.endswith(".tmp")}
    assert not differences(found, expected), name


def nothing_unfinished(name):
    assert not unfinished("k"), name


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
        assert len(self.step_of) == STEPS, "every step has other weights"
        self.loss = {int(row[0]): float(row[-1]) for row in self.contents["log.csv"] if row[-1]}
        assert self.best(STEPS) < STEPS, "the last is not the best"

    def best(self, step):
        return min((s for s in self.loss if s <= step), key=self.loss.get)

    def best_is_whole(self, name, directory, step):
        best = os.path.join(directory, "best")
        assert read(best, "config.json") == self.config, name
        found = self.step_of.get(digest(read(best, "model.safetensors")))
        # of this step, or of what would have been saved next
        assert found in (self.best(step), self.best(step + EVERY)), (name, step)
        works(name + ": best/ loads", run("generate", best, "-n", "5", "--threads", "1"))

    def is_sound(self, name, directory):
        """A state of this run, whole, and no older than its last save."""
        step, log = saved_step(directory), rows(directory)
        weights = self.step_of.get(digest(read(directory, "model.safetensors")), -9)
        assert read(directory, "config.json") == self.config, name
        # of the state, or of the next that would have been saved
        assert 0 <= weights - step <= EVERY, (name, "the weights are of another step")
        assert step >= (len(log) - 1) // EVERY * EVERY, (name, "more than one save is lost")
        assert len(log) >= step, (name, "the log's rows are on disk first")
        assert log == self.contents["log.csv"][:len(log)], name
        assert set(names(directory)) <= set(self.contents) | set(map(beside, self.contents)), name
        said = run("generate", directory, "-n", "5", "--threads", "1")
        assert said[0] == 0 and len(said[1]) == 5, (name, said)
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
        assert not differences(found, self.contents), name


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
            + [os.path.join(directory, f) for f in (".new", ".part", ".old", ".overwrite.hmoe")]
            if os.path.exists(f)]


def anew(directory):
    """The option that a new run there needs."""
    there = [f for f in ("config.json", "best/config.json")
             if os.path.exists(os.path.join(directory, f))]
    return ["--overwrite"] if there else []


@pytest.fixture(scope="module", autouse=True)
def runs():
    """A directory with two runs to compare with, half of one of them, and their exports."""
    for number in signal.SIGTERM, signal.SIGHUP:           # whoever ends this test, it tidies up
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="hmoe-crashes-") as here, \
            pytest.MonkeyPatch.context() as patch:
        os.chmod(here, 0o755)
        patch.chdir(here)
        shutil.copy(ROOT / "LICENSE", "text")
        one, other = Reference("one", ONE), Reference("other", OTHER)
        works("half a run", train("half", "--steps", "6", *ONE))
        for name in "one", "other":
            works("an export", run("generate", name, "--export-mixtral", "exported-" + name))
        yield one, other


@pytest.fixture(scope="module")
def in_memory(runs):
    """The same directory where a save, and so each of many runs, takes no time, if it can be."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="hmoe-crashes-", dir=place) as here, \
            pytest.MonkeyPatch.context() as patch:
        shutil.copytree(".", here, symlinks=True, dirs_exist_ok=True)
        os.chmod(here, 0o755)
        patch.chdir(here)
        yield


@pytest.fixture(autouse=True)
def place(request):
    """All tests but those that kill, and all of them with FULL=1, run in memory."""
    print("SEED=%d" % SEED)
    if not FULL and "kill" not in request.node.name:
        request.getfixturevalue("in_memory")
    yield
    for process in started:
        process.kill()
        process.wait()
    started.clear()


@pytest.fixture
def one(runs):
    return runs[0]


@pytest.fixture
def other(runs):
    return runs[1]


# --- kill -9 --------------------------------------------------------------------------------------

class Kills:
    def __init__(self):
        self.count, self.inside, self.where = 0, 0, {}

    def hit(self, process, directory, delay, until=None):
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
        self.count, self.inside = self.count + 1, self.inside + bool(left)
        for f in left:
            self.where[f] = self.where.get(f, 0) + 1
        return True


def after_a_kill(name, directory, ref, old):
    """Returns whose run the next command finds: the older one's, this one's, or nobody's."""
    said = run("generate", directory, "-n", "5", "--threads", "1")
    assert said[0] == 0 and len(said[1]) == 5 \
        or said[0] == 1 and directory + "/" in said[2], (name, said)
    result = resumes(name, directory)
    assert not in_between(directory), (name, [names(d) for d in in_between(directory)])
    config = read(directory, "config.json")
    if old and config == old.config:
        assert result[0] == 0, (name, "the older run is not resumed", result)
        same(name + ": the older run is whole", directory, old.contents)
        return "old"
    if config is None:
        assert not old, (name, "the older run is lost")
        assert len(rows(directory)) <= EVALUATE, (name, "the first save was over")
        if os.path.isdir(directory):
            is_refused(name, directory)
        best = read(directory, "best", "config.json")
        if best is not None:
            ref.best_is_whole(name, directory, EVALUATE)
        return "none"
    assert result[0] == 0, (name, "the new run is not resumed", result)
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
    return there(chance.choice(["config.json", beside("config.json")]), "k.new") \
        if chance.random() < 0.3 else there(".overwrite.hmoe", chance.choice(["k", "k.old"]))


def test_killed_runs(one, other):
    """Fresh runs, runs over older ones, and what those left, killed again and again."""
    ends = {"old": 0, "none": 0, "new": 0}
    goal, turn, killed = 200 if FULL else 16, 0, Kills()
    while killed.count < goal and turn < 10 * goal:
        turn += 1
        name, old, link = "killed %d" % turn, one if turn % 2 else None, turn % 4 == 1
        ref = other if turn % 2 else one
        clear("k")
        if old:
            copy(old.name, "k", link)
        state, kills = "", 0
        while killed.count < goal and (kills == 0 or chance.random() < 0.5):
            how = ["--resume"] if state == "new" else anew("k")
            step = saved_step("k") if state == "new" else 0
            whole = ref.seconds * (STEPS - step) / STEPS
            p = start("train_tiny", *TINY, *OFTEN, "--out", "k", "--steps", str(STEPS),
                      *ref.options, *how)
            delay, until = chance.uniform(0, whole), None
            if state != "new" and (not kills or chance.random() < 0.7):  # first saves are delicate
                delay, until = 0, first_save(old, link)
            elif chance.random() < 0.5:
                until = there(beside(chance.choice(FILES + ["best/" + f for f in FILES[1:]])))
            if not killed.hit(p, "k", delay, until):
                break
            kills += 1
            at = "%s (%d%s%s)" % (name, kills, ", a link" if link else "",
                                  ", resumed" if state == "new" else "")
            state = after_a_kill(at, "k", ref, old if state != "new" else None)
            ends[state] += 1
        if os.path.isdir("k"):
            over = kills == 0 or read("k", "config.json") == ref.config
            ref.goes_on(name, "k", *(["--resume"] if over else anew("k")))
            assert os.path.islink("k") == link, (name, "a link stays a link")
    print("killed %d runs: %d inside a save (%s); left the older run %d times, nothing yet %d, the "
          "new run %d" % (killed.count, killed.inside, ", ".join(
              "%s %d" % x for x in sorted(killed.where.items())), *ends.values()))


# --- kill -9 before each call that changes a directory --------------------------------------------

KILLER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>
#define REAL(type, name, parameters) ((type (*) parameters)dlsym(RTLD_NEXT, #name))
static int fails(const char *name) {     /* or kills, if no call's name is given */
    static int calls;
    const char *at = getenv("AT"), *call = getenv("CALL"), *log = getenv("HIT");
    if (!at || (call && strcmp(call, name)) || ++calls < atoi(at)) return 0;
    if (calls > atoi(at) && !getenv("ON")) return 0;
    if (!call) kill(getpid(), SIGKILL);
    close(REAL(int, open, (const char *, int, ...))(log, O_CREAT | O_WRONLY, 0666));
    errno = EIO;
    return 1;
}
#define FAILS(type, name, error, parameters, ...) type name parameters { \
    if (fails(#name)) return error; return REAL(type, name, parameters)(__VA_ARGS__); }
FAILS(int, rename, -1, (const char *a, const char *b), a, b)
FAILS(int, unlink, -1, (const char *a), a)
FAILS(int, remove, -1, (const char *a), a)
FAILS(int, rmdir, -1, (const char *a), a)
FAILS(int, mkdir, -1, (const char *a, mode_t m), a, m)
FAILS(int, truncate, -1, (const char *a, off_t n), a, n)
FAILS(int, fsync, -1, (int f), f)
FAILS(FILE *, fopen, NULL, (const char *a, const char *b), a, b)
int open(const char *a, int flags, ...) {
    if ((getenv("CALL") || flags & O_CREAT) && fails("open")) return -1;
    return REAL(int, open, (const char *, int, ...))(a, flags, 0666);
}
"""
CALLS = ["rename", "unlink", "remove", "rmdir", "mkdir", "open", "fopen", "fsync"]


@pytest.fixture
def killer(tmp_path):
    """A library that kills the program at its call number AT, or fails that call of CALL."""
    (tmp_path / "killer.c").write_text(KILLER)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", "killer.so", "killer.c", "-ldl"],
                       cwd=tmp_path, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("cannot build a library to kill with: not every instant is tried")
    return str(tmp_path / "killer.so")


@pytest.mark.parametrize("link", [False, True], ids=["a directory", "a link"])
def test_killed_at_each_call_while_it_replaces_a_run(link, killer, one, other):
    """And what tidies up after it is killed as well."""
    few = ["--steps", str(EVALUATE), "--save-every", "1000"]           # one save
    found = []
    while True:
        number = len(found) + 1
        name = "killed at call %d" % number
        copy(one.name, "k", link)
        environment = dict(os.environ, LD_PRELOAD=killer, AT=str(number))
        result = train("k", "--overwrite", *other.options, *few, env=environment)
        if result[0] != -signal.SIGKILL:
            works(name + ": was over", result)
            break
        for _ in range(3):                                             # kill what tidies up
            environment["AT"] = str(chance.randrange(1, 30))
            train("k", "--resume", "--steps", "0", env=environment)
        found.append(after_a_kill(name, "k", other, one))
    assert found == sorted(found, reverse=True) and set(found) == {"old", "new"}


@pytest.mark.parametrize("link", [False, True], ids=["a directory", "a link"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("on", [False, True], ids=["once", "from then on"])
def test_errors_while_it_replaces_a_run(on, call, link, killer, one, other):
    """A call fails, each in turn, or all from there on: the next command finds a whole run. What
    the program says is one line; or it has replaced the run."""
    few = ["--steps", str(EVALUATE), "--save-every", "1000"]           # one save
    step = 1 if FULL or call == "rename" else 4
    found, hits = set(), 0
    for number in range(chance.randint(1, step), 200, step):
        name = "%s fails, %d" % (call, number)
        copy(one.name, "k", link)
        environment = dict(os.environ, LD_PRELOAD=killer, CALL=call, AT=str(number), HIT="hit")
        result = train("k", "--overwrite", *other.options, *few,
                       env=dict(environment, ON="1") if on else environment)
        if not os.path.exists("hit"):
            works(name + ": never", result)
            break
        os.remove("hit")
        hits += 1
        if result[0] or result[2]:
            assert re.fullmatch("train_tiny: .*\n(\\(it is as it was; .*\n)?", result[2]), result
        if not on:                             # not even a program that tidies up is needed
            works(name + ": generate", run("generate", "k", "-n", "5", "--threads", "1"))
        saved = [f for f in ("k.new", "k/.new") if f in str(result[2])]
        if "is saved in" in result[2]:
            other.is_sound(name + ": and the new run", saved[0])
            shutil.rmtree(saved[0])
        state = after_a_kill(name, "k", other, one)
        assert result[0] or state == "new", (name, result)
        found.add(state)
        assert os.path.islink("k") == link
    assert hits and found <= {"old", "new"}


def rate_of(directory):
    with open(directory + "/recipe.txt") as f:
        return re.search(r"^lr (.*)$", f.read(), re.MULTILINE)[1]


@pytest.mark.parametrize("how", [{}, {"CALL": "rename", "ON": "1", "HIT": "hit"}],
                         ids=["killed", "rename fails"])
def test_the_recipe_is_that_of_the_state(how, killer, one):
    """A run goes on with another rate, and its save fails at each call. The next start finds the
    older state with the older rate, or the newer with the newer."""
    copy(one.name, "k")
    step, rate, found = saved_step("k"), rate_of("k"), set()
    for number in range(1, 300):
        copy(one.name, "k")
        result = train("k", "--resume", "--lr", "0.5", "--steps", str(step + 1),
                       env=dict(os.environ, LD_PRELOAD=killer, AT=str(number), **how))
        if result[0] == 0:
            break
        resumes("at call %d" % number, "k")
        is_new = saved_step("k") > step
        assert rate_of("k") == ("0.5" if is_new else rate), (number, result)
        found.add(is_new)
    assert result[0] == 0, result
    assert found == {False, True}


def test_killed_exports(one, other):
    began = time.monotonic()
    works("an export", run("generate", other.name, "--export-mixtral", "e"))
    seconds = time.monotonic() - began
    old, new = contents("exported-one"), contents("exported-other")
    goal, killed = 60 if FULL else 12, Kills()
    for turn in range(4 * goal):
        if killed.count >= goal:
            break
        name, over = "export killed %d" % turn, turn % 3 > 0
        shutil.rmtree("e", ignore_errors=True)
        if over:
            copy("exported-one", "e")
        p = start("generate", other.name, "--export-mixtral", "e")
        until = chance.choice([None, there(beside(chance.choice(FILES[1:])), "e"),
                               there(beside("config.json"), "e")])     # the last before they move
        if not killed.hit(p, "e", 0 if until else chance.uniform(0, seconds), until):
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
        assert contents("e") == new, name
    print("killed %d exports: %d left a file unfinished" % (killed.count, killed.inside))


# --- exports --------------------------------------------------------------------------------------

def test_an_export_without_a_vocabulary_leaves_no_older_tokenizer(one):
    copy("exported-one", "e")
    copy(one.name, "wordless")
    for name in "tokenizer.json", "tokenizer_config.json":
        os.remove("wordless/" + name)
    with open("wordless/config.json", "w") as f:
        f.write("".join(line for line in read(one.name, "config.json").decode().splitlines(True)
                        if '"vocab"' not in line))
    works("it is exported", run("generate", "wordless", "--export-mixtral", "e"))
    assert names("e") == ["config.json", "model.safetensors"]


def test_an_export_into_a_run_is_refused(one):
    copy(one.name, "k")
    for to in "k/best", "k/best/", "./k/../k/best":
        refuses(to, run("generate", one.name, "--export-mixtral", to), to, "holds a run")
    same("it is as before", "k", one.contents)
    works("but beside it", run("generate", one.name, "--export-mixtral", "k/mixtral"))


# --- no room --------------------------------------------------------------------------------------

def limit(size):
    """The size that no file may exceed from here on: a write beyond it fails as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def bytes_of_half():
    return [len(read("half", f)) for f in ("log.csv", "model.safetensors", "training.safetensors")]


@pytest.mark.parametrize("more", [[], ["--save-every", "1000"]], ids=["", "saved with best"])
def test_no_room_to_go_on(more, one):
    log, model, state = bytes_of_half()
    for size in 0, 50, log - 1, log + 10, log + 150, model - 1, state - 1, state // 2:
        name = "no file above %d bytes" % size
        copy("half", "k")
        refuses(name, train("k", "--resume", "--steps", str(STEPS), *more, *one.options,
                            preexec_fn=limit(size)), "cannot write k/", "File too large")
        nothing_unfinished(name)
        if not more:
            one.is_sound(name, "k")
        one.goes_on(name, "k", "--resume")


def test_no_room_to_replace_a_run(one, other):
    log, model, state = bytes_of_half()
    for size in 0, log, model - 1, state - 1:
        copy(one.name, "k")
        name = "no file above %d bytes" % size
        refuses(name, train("k", "--overwrite", "--steps", str(STEPS), *other.options,
                            preexec_fn=limit(size)), "cannot write k.new/", "File too large")
        nothing_unfinished(name)
        resumes(name, "k")
        same(name + ": the older one is whole", "k", one.contents)


@pytest.mark.parametrize("file", FILES + ["best/" + f for f in FILES[1:]])
def test_a_file_that_cannot_be_written(file, one):
    copy("half", "k")
    blocked = os.path.join("k", beside(file))
    os.makedirs(os.path.join(blocked, "x"))
    refuses(file, train("k", "--resume", "--steps", str(STEPS), *one.options),
            "cannot write k/" + file, "File exists")
    shutil.rmtree(blocked)
    nothing_unfinished(file)
    one.is_sound(file, "k")
    one.goes_on(file, "k", "--resume")


def test_no_room_for_an_export(one):
    copy("exported-one", "e")
    before = contents("e")
    for size in 0, 900, 30000:
        refuses("no file above %d bytes" % size, run(
            "generate", one.name, "--export-mixtral", "e", preexec_fn=limit(size)),
            "e/model.safetensors", "File too large")
        same("the older export is whole", "e", before)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_output_to_a_full_disk(one):
    copy("half", "k")
    with open("/dev/full", "w") as f:
        refuses("train_tiny", train("k", "--resume", "--steps", str(STEPS), *one.options, stdout=f),
                "standard output")
        assert not differences(contents("k"), one.contents), "the run is saved"
        refuses("generate", run("generate", "k", stdout=f), "standard output")


@pytest.fixture(scope="module")
def unshare():
    """How to get a namespace to mount in."""
    for words in ["unshare", "-m"], ["unshare", "-rm"]:
        try:
            if not subprocess.run(words + ["mount", "-t", "tmpfs", "none", "."],
                                  stderr=subprocess.DEVNULL).returncode:
                return words
        except FileNotFoundError:
            pass
    pytest.skip("cannot mount anything here")


def on_small_disk(unshare, kilobytes, before, after, *arguments):
    """A program with a disk of that size at `disk`, which then is copied to `after`."""
    script = ('size=$1 before=$2 after=$3; shift 3; mount -t tmpfs -o size=${size}k none disk || '
              'exit 99; [ -z "$before" ] || cp -r "$before"/. disk || exit 98; "$@"; status=$?; '
              'rm -rf "$after"; cp -r disk "$after"; exit $status')
    os.makedirs("disk", exist_ok=True)
    return end(command(unshare + ["sh", "-c", script, "sh", str(kilobytes), before, after,
                                  BIN / arguments[0], *arguments[1:]]))


def blocks(directory):
    """The kilobytes that it takes of a disk."""
    return sum(-(-len(read(directory, f)) // 4096) * 4 for f in names(directory)) + 8


ON_DISK = ["train_tiny", *TINY, *OFTEN, "--out", "disk", "--steps", str(STEPS)]


def on_small_disks(unshare, sizes, before, more, *words):
    """Yields a name for each size, when a run there has ended; some are large enough."""
    statuses = set()
    for size in sizes:
        name = "a disk of %d kB" % size
        result = on_small_disk(unshare, size, before, "k", *ON_DISK, *more)
        statuses.add(result[0])
        if result[0]:
            refuses(name, result, "No space left", *words)
        nothing_unfinished(name)
        yield name
    assert statuses == {0, 1}


def test_small_disks_to_go_on(unshare, one):
    used = blocks("half")
    for name in on_small_disks(unshare, range(used, used + 260, 4 if FULL else 36), "half",
                               ["--resume", *one.options], "cannot write disk/"):
        one.is_sound(name, "k")
        one.goes_on(name, "k", "--resume")


def test_small_disks_for_a_first_run(unshare, one):
    for name in on_small_disks(unshare, range(4, 460, 8 if FULL else 64), "", one.options):
        if read("k", "config.json") is None:
            is_refused(name, "k")
            one.goes_on(name, "k", *anew("k"))
        else:
            one.is_sound(name, "k")
            one.goes_on(name, "k", "--resume")


def test_small_disks_to_replace_a_run(unshare, one, other):
    used = blocks(one.name)
    for name in on_small_disks(unshare, range(used, used + 460, 8 if FULL else 64), one.name,
                               ["--overwrite", *other.options]):
        state = after_a_kill(name, "k", other, one)
        other.goes_on(name, "k", "--resume" if state == "new" else "--overwrite")


# --- directories that cannot be written to, or go away --------------------------------------------

@pytest.fixture(scope="module")
def nobody():
    """For root: what makes a program one that permissions bind."""
    def become():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    if os.geteuid() != 0:
        return lambda: None
    try:
        subprocess.run([BIN / "train_tiny", "--help"], preexec_fn=become, check=True,
                       stdout=subprocess.DEVNULL)
        return become
    except (subprocess.SubprocessError, OSError):
        pytest.skip("cannot become another user here")


def allow(directory, mode):
    for at, _, files in os.walk(directory):
        os.chmod(at, mode)
        for f in files:
            os.chmod(os.path.join(at, f), mode & 0o666)


def test_a_read_only_file_system(unshare):
    copy("half", "k")
    script = 'mount --bind k k && mount -o remount,bind,ro k || exit 99; exec "$@"'
    result = end(command(unshare + ["sh", "-c", script, "sh", BIN / "train_tiny", *TINY, "--out",
                                    "k", "--resume", "--steps", str(STEPS)]))
    refuses("it cannot be written to", result, "directory k: Read-only file system")
    assert contents("k") == contents("half")


def test_a_directory_or_a_log_without_permission(one, nobody):
    copy("half", "k")
    how = ["k", "--resume", "--steps", str(STEPS), *one.options]
    allow("k", 0o555)
    refuses("the directory", train(*how, preexec_fn=nobody), "directory k: Permission denied")
    works("it can be read", run("generate", "k", "-n", "5", preexec_fn=nobody))
    allow("k", 0o777)
    assert contents("k") == contents("half")
    os.chmod("k/log.csv", 0)
    refuses("the log", train(*how, preexec_fn=nobody), "cannot open k/log.csv: Permission denied")
    os.chmod("k/log.csv", 0o666)
    assert rows("k") == rows("half")


def test_a_directory_that_is_read_only_by_the_time_it_saves(one, nobody):
    copy("half", "k")
    allow("k", 0o777)
    p = start("train_tiny", *TINY, *ENDLESS, "--out", "k", "--resume", *one.options,
              preexec_fn=nobody)
    wait_until(lambda: len(rows("k")) > STEPS, p)
    os.chmod("k", 0o555)
    p.send_signal(signal.SIGINT)
    refuses("it", end(p), "is not saved: cannot write k/", "Permission denied")
    os.chmod("k", 0o777)
    assert training("k") == training("half")
    copy("half", "k")                          # with the rows that the reference has
    one.goes_on("writable again", "k", "--resume")


@pytest.mark.parametrize("out, word", [("text", "text"), ("text/x", "Not a directory")])
def test_no_directory(out, word):
    before = contents(".")
    refuses(out, train(out, "--steps", "1"), out, word)
    refuses(out, train(out, "--steps", "1", "--resume"), out)
    assert contents(".") == before


@pytest.mark.parametrize("what, often", [                  # saves at the signal alone, or always
    ("removed", False), ("removed", True), ("renamed", False), ("renamed", True),
    ("emptied", False), ("emptied", True),
    ("replaced", False)])                      # in the middle of a save nothing can tell
def test_a_directory_that_is(what, often, one, other):
    copy("half", "k")
    shutil.rmtree("away", ignore_errors=True)
    p = start("train_tiny", *TINY, *(OFTEN if often else ENDLESS), "--out", "k", "--resume",
              "--steps", "100000000", *one.options)
    wait_until(lambda: len(rows("k")) > 7, p)
    if what == "removed":
        while os.path.exists("k/log.csv"):
            shutil.rmtree("k", ignore_errors=True)
    else:
        os.rename("k", "away")
    if what == "emptied":
        os.makedirs("k", exist_ok=True)
    if what == "replaced":
        shutil.copytree(other.name, "k")
    if not often:
        p.send_signal(signal.SIGINT)
    refuses(what, end(p), " save", "k")
    if what in ("renamed", "emptied"):
        step = saved_step("away")
        assert step >= 6
        works("it loads", run("generate", "away", "-n", "5"))
        works("it goes on", train("away", "--resume", "--steps", str(step + 1), *one.options))
    if what == "replaced":
        same("the other run is unharmed", "k", other.contents)


def test_best_is_removed(one):
    copy("half", "k")
    shutil.rmtree("k/best")
    one.goes_on("best/ is removed", "k", "--resume")


@pytest.mark.parametrize("turn", range(20 if FULL else 4))
def test_best_is_removed_while_it_saves(turn, one):
    copy("half", "k")
    p = start("train_tiny", *TINY, *OFTEN, "--out", "k", "--resume", "--steps", str(STEPS),
              *one.options)
    time.sleep(chance.uniform(0, one.seconds / 2))
    shutil.rmtree("k/best", ignore_errors=True)
    result = end(p)
    if result[0]:
        refuses("it", result, "is not saved: cannot write k/best/", "No such file")
        one.goes_on("it", "k", "--resume")
    else:
        assert training("k") == one.contents[FILES[0]]


# --- two at a time --------------------------------------------------------------------------------

def test_a_second_run_and_readers(one, other):
    clear("k")
    first = start("train_tiny", *TINY, *OFTEN, "--out", "k", "--steps", "100000000", *one.options)
    wait_until(lambda: len(rows("k")) > 2, first)
    for how in [], ["--resume"]:
        refuses("a second run %s" % how, train("k", "--steps", "9", *how, *other.options),
                "process %d:" % first.pid, "in use")
    for name, reads in ("k", 200 if FULL else 40), ("k/best", 20):
        for _ in range(reads):
            works("a read of %s while it saves" % name, run("generate", name, "-n", "1"))
    first.kill()
    end(first)
    step = saved_step("k")
    assert step > 2, "the first went on meanwhile"
    works("no lock is left", train("k", "--resume", "--steps", str(step + 3), *one.options))
    clear("k2")
    works("a run of as many steps", train("k2", "--steps", str(step + 3), *one.options,
                                          "--save-every", "100000000"))
    assert not differences(contents("k"), contents("k2")), "the first was unharmed"


@pytest.mark.parametrize("turn", range(20 if FULL else 6))
def test_nobody_gets_in_while_directories_change_names(turn, one, other):
    copy(other.name, "k", turn % 3 == 2)
    first = start("train_tiny", *TINY, *OFTEN, "--out", "k", "--overwrite", "--steps",
                  "100000000", *one.options)
    wait_until(lambda: in_between("k"), first)
    outcomes = []
    while in_between("k") and len(outcomes) < 100 or len(outcomes) < 4:
        how = ["--overwrite", "--steps", "1"] if len(outcomes) % 2 else ["--resume"]
        outcomes.append(train("k", *how, *other.options))
    still = first.poll()
    first.kill()
    end(first)
    for status, _, error in outcomes:
        assert status == 1 and " is in use by process %d: " % first.pid in error, (status, error)
    assert still is None, "the first goes on"
    assert read("k", "config.json") == one.config, "the run is its own"
    clear("k")


# --- signals --------------------------------------------------------------------------------------

@pytest.mark.parametrize("turn", range(40 if FULL else 8))
def test_stopped_by_signals(turn, one):
    sent = [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT] * 2,
            [signal.SIGTERM, signal.SIGINT, signal.SIGINT]][turn % 4]
    if not os.path.exists("it's here"):
        os.symlink(BIN, "it's here")           # so that the line must quote it
    clear("k")
    if turn % 3 == 1:
        copy("half", "k")
    how = ["--resume"] if turn % 3 == 1 else []
    p = start("it's here/train_tiny" if turn % 2 else "train_tiny", *TINY, *OFTEN, "--out", "k",
              "--steps", str(STEPS), *one.options, *how)
    wait_until(lambda: os.path.exists("k/log.csv"), p)
    time.sleep(chance.uniform(0, one.seconds if turn % 2 else one.seconds / 8))
    for s in sent:
        if p.poll() is None:
            p.send_signal(s)
            time.sleep(chance.uniform(0, one.seconds / 50))
    result = end(p)
    if result[0] in [-s for s in sent]:        # nothing was to be saved yet, or all was
        how = ["--resume"] if os.path.exists("k/config.json") else []
        result = train("k", "--steps", str(STEPS), *one.options, *how)
    works("status 0", result)
    last = result[1].strip().split("\n")[-1]
    if last.startswith("final: "):
        assert saved_step("k") == STEPS, "it was over"
    else:
        found = re.match(r"stopped after step (\d+); to go on: (.* --resume --out k)$", last)
        assert found, last
        assert int(found[1]) == saved_step("k") == len(rows("k")), last
        one.is_sound("stopped", "k")
        more = " ".join(TINY + OFTEN + one.options)
        works("that works", end(command(["sh", "-c", found[2] + " " + more])))
    assert not differences(contents("k"), one.contents), "it ends as if nothing had been"


def test_a_reader_that_left(one):
    """As with `train_tiny | head -n 1`: the run goes on."""
    clear("k")
    p = start("train_tiny", *TINY, *OFTEN, "--out", "k", "--steps", str(STEPS), *one.options)
    p.stdout.readline()
    p.stdout.close()
    error = p.stderr.read().decode()
    p.stderr.close()
    assert p.wait() == 1 and "standard output" in error and error.count("\n") == 1, error
    assert not differences(contents("k"), one.contents), "all is saved"
