"""What a program writes never destroys what it is pointed at, and what stands in a run's directory
never stops a run: links, pipes, devices, files of one's own, logs that were lost.

Each test compares with the same command and an ordinary file."""

import os
import re
import shutil
import signal
import stat
import subprocess
import threading
import time

import pytest
from harness import GENERATE, ROOT, TRAIN, in_memory

SECONDS = 30                                 # what waits longer than this hangs
TINY = ("--data text --width 16 --layers 2 --heads 2 --context 8 --experts 4 --hidden 9 --batch 2 "
        "--threads 1 --eval-tokens 100 --warmup 1 --lr 0.01 --min-lr 0.01").split()
ENDLESS = ["--steps", "100000000", "--save-every", "100000000", "--eval-every", "100000000"]


def run(program, *arguments, **how):
    """Its status, output and errors."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run([program, *arguments], timeout=SECONDS, **{**pipes, **how})
    return done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode()


def train(*more, **how):
    return run(TRAIN, *TINY, *more, **how)


def score(*more, **how):
    return run(GENERATE, "a", "--score", "short", "--threads", "1", *more, **how)


def works(result):
    assert result[0] == 0 and not result[2], result
    return result[1]


def refuses(result, *words, status=1):
    """One line that says what is wrong, and perhaps a hint."""
    assert result[0] == status, result
    assert re.fullmatch(r"(train_tiny|generate): .*\n(\(.*\)\n)?", result[2]), result
    assert all(word in result[2] for word in words), (words, result)


def read(*path):
    with open(os.path.join(*path), "rb") as f:
        return f.read()


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


def rows(path):
    """Of a log, without their seconds."""
    lines = [line.split(",") for line in read(path).decode().splitlines()]
    return [line[:2] + line[3:] for line in lines]


def same_run(a, b):
    """Their weights, logs and best models; and nothing is left beside them."""
    for name in "model.safetensors", "best/model.safetensors", "config.json", "tokenizer.json":
        assert read(a, name) == read(b, name), name
    assert rows(a + "/log.csv") == rows(b + "/log.csv")
    assert sorted(set(os.listdir(a)) - {"lock"}) == sorted(set(os.listdir(b)) - {"lock"})


@pytest.fixture(scope="module", autouse=True)
def models():
    """A model `a`, what it scores, and a run of six steps, of which `half` has three."""
    with in_memory("outputs"):
        shutil.copy(ROOT / "LICENSE", "text")
        write("short", read("text").decode()[:60])
        works(train("--steps", "6", "--eval-every", "2", "--out", "a"))
        works(train("--steps", "6", "--eval-every", "2", "--stop-at", "3", "--out", "half"))
        works(score("--routes", "routes", "--page", "page"))
        yield


@pytest.fixture(autouse=True)
def place(models):
    """What a test makes goes with it."""
    before = set(os.listdir("."))
    yield
    for name in set(os.listdir(".")) - before:
        if os.path.isdir(name) and not os.path.islink(name):
            shutil.rmtree(name)
        else:
            os.remove(name)


def goes_on(directory, **how):
    return train("--resume", "--steps", "6", "--eval-every", "2", "--out", directory, **how)


def running(directory, *more, until=3, **how):
    """A run that goes on until it is stopped, when it has so many steps."""
    p = subprocess.Popen([TRAIN, *TINY, *ENDLESS, "--out", directory, *more],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
    wait_for(lambda: len(rows(directory + "/log.csv")) > until
             if os.path.exists(directory + "/log.csv") else False, p)
    return p


def wait_for(holds, p):
    end = time.monotonic() + SECONDS
    while not holds():
        assert p.poll() is None and time.monotonic() < end, p.communicate()
        time.sleep(0.005)


def stop(p, number=signal.SIGINT):
    p.send_signal(number)
    out, error = p.communicate(timeout=SECONDS)
    return p.returncode, out.decode(), error.decode()


# --- what generate writes -------------------------------------------------------------------------

EACH = pytest.mark.parametrize("option, right", [("--routes", "routes"), ("--page", "page")])


@EACH
def test_an_output_to_standard_output(option, right):
    """Into a pipe, and into a file that keeps all that is printed."""
    expected = read(right) + works(score()).encode()
    os.symlink("/proc/self/fd/1", "stdout")              # as /dev/stdout, which root could lose
    for path in "stdout", "/dev/fd/1", "/proc/self/fd/1":
        assert works(score(option, path)).encode() == expected, path
        with open("printed", "wb") as f:
            assert score(option, path, stdout=f)[0] == 0
        assert read("printed") == expected, path


@EACH
def test_an_output_to_a_pipe_or_a_device(option, right):
    os.mkfifo("pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append(read("pipe")), daemon=True)
    reader.start()
    works(score(option, "pipe"))
    reader.join(SECONDS)
    assert found == [read(right)] and stat.S_ISFIFO(os.stat("pipe").st_mode)
    null = device("null", 3)
    works(score(option, null))
    assert stat.S_ISCHR(os.lstat(null).st_mode)
    if shutil.which("bash"):
        works(run("bash", "-c", '"$@" %s >(cat >got; echo >over)' % option, "bash", GENERATE, "a",
                  "--score", "short", "--threads", "1"))
        wait_for_file("over")
        assert read("got") == read(right)
    full = device("full", 7)
    if os.path.exists(full):
        refuses(score(option, full), "cannot write %s: No space left" % full)


def device(name, number):
    """One of Linux's devices. Root gets a copy: a program at fault could replace the system's."""
    try:
        os.mknod(name, 0o666 | stat.S_IFCHR, os.makedev(1, number))
        with open(name, "wb"):
            return name
    except OSError:
        return "/dev/" + name


def wait_for_file(name):
    end = time.monotonic() + SECONDS
    while not os.path.exists(name) and time.monotonic() < end:
        time.sleep(0.005)


@EACH
def test_an_output_through_a_link(option, right):
    os.makedirs("deep/store")
    os.symlink("store/there", "deep/link")               # relative, and in a chain
    os.symlink(os.path.abspath("deep/link"), "link")
    for mode in None, 0o640, 0o604:                      # at first it dangles
        if mode:
            write("deep/store/there", "older")
            os.chmod("deep/store/there", mode)
        works(score(option, "link"))
        assert read("deep/store/there") == read(right)
        assert os.readlink("deep/link") == "store/there" and os.path.islink("link")
        assert not mode or stat.S_IMODE(os.stat("link").st_mode) == mode
    assert os.listdir("deep/store") == ["there"]
    os.symlink("circle", "circle")
    refuses(score(option, "circle"), "circle: Too many levels")


@EACH
def test_an_output_beside_files_of_ones_own(option, right):
    """Whatever they are called, and whatever happens to the output."""
    write("mine.tmp", "mine")
    write("kept", "kept")
    os.symlink("kept", "x.tmp")
    for name in "mine", "x":
        works(score(option, name))
        assert read(name) == read(right)
    assert read("mine.tmp") == b"mine" and read("kept") == b"kept" and os.path.islink("x.tmp")
    assert stat.S_IMODE(os.stat("x").st_mode) == 0o666 & ~mask(), "as every new file"
    p = subprocess.Popen([GENERATE, "a", "--score", "/dev/stdin", option, "x"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdin.write(read("text") * 2000)                   # a score of seconds
    p.stdin.close()
    wait_for(lambda: [f for f in os.listdir(".") if f.startswith("x.tmp-")], p)
    p.send_signal(signal.SIGINT)
    p.wait(timeout=SECONDS)
    assert p.returncode == -signal.SIGINT and read("x") == read(right)
    assert not [f for f in os.listdir(".") if f.startswith("x.tmp-")]
    p.stdout.close(), p.stderr.close()


def mask():
    old = os.umask(0)
    os.umask(old)
    return old


def test_a_pipe_that_nobody_reads_can_be_interrupted():
    os.mkfifo("pipe")
    p = subprocess.Popen([GENERATE, "a", "--score", "short", "--routes", "pipe"])
    time.sleep(0.3)
    assert p.poll() is None
    p.send_signal(signal.SIGINT)
    assert p.wait(timeout=SECONDS) == -signal.SIGINT


def test_two_names_of_one_output_are_refused():
    write("one", "")
    os.symlink("one", "two")
    refuses(score("--routes", "one", "--page", "two"), "two files", status=2)


# --- what train_tiny and an export write ----------------------------------------------------------

def test_a_run_whose_directory_and_files_are_links():
    os.mkdir("store")
    shutil.copytree("half", "elsewhere")
    for name in "model.safetensors", "training.safetensors", "log.csv", "best":
        shutil.move("elsewhere/" + name, "store/" + name)
        os.symlink("../store/" + name, "elsewhere/" + name)
    os.chmod("store/model.safetensors", 0o600)
    shutil.move("elsewhere/config.json", "store/config.json")    # this one dangles later on
    os.symlink(os.path.abspath("store/config.json"), "elsewhere/config.json")
    os.symlink("elsewhere", "k")
    works(goes_on("k"))
    same_run("k", "a")
    links = [f for f in os.listdir("elsewhere") if os.path.islink("elsewhere/" + f)]
    assert os.path.islink("k") and sorted(links) == sorted(os.listdir("store"))
    assert stat.S_IMODE(os.stat("store/model.safetensors").st_mode) == 0o600


def test_an_export_over_links():
    works(run(GENERATE, "a", "--export-mixtral", "plain"))
    os.makedirs("store")
    os.makedirs("e")
    write("store/config.json", "{}")
    for name in os.listdir("plain"):                     # all but one dangle
        os.symlink("../store/" + name, "e/" + name)
    works(run(GENERATE, "a", "--export-mixtral", "e"))
    for name in os.listdir("plain"):
        assert os.path.islink("e/" + name) and read("store", name) == read("plain", name)
    assert sorted(os.listdir("store")) == sorted(os.listdir("plain")) == sorted(os.listdir("e"))


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "best/config.json"])
@pytest.mark.parametrize("what", ["a pipe", "a device", "a file of one's own beside it"])
def test_a_checkpoint_over(file, what):
    shutil.copytree("half", "k")
    path = os.path.join("k", file)
    if what.startswith("a file"):
        write(path + ".tmp", "mine")
        works(goes_on("k"))
        assert read(path + ".tmp") == b"mine"
        os.remove(path + ".tmp")
        same_run("k", "a")
        return
    os.remove(path)
    os.mkfifo(path) if what == "a pipe" else os.symlink(os.path.abspath(device("null", 3)), path)
    before = read("k/training.safetensors")
    refuses(goes_on("k"), "is not saved: cannot write", path if what == "a pipe" else "/null")
    assert read("k/training.safetensors") == before
    assert stat.S_ISFIFO(os.lstat(path).st_mode) or os.path.islink(path)
    os.remove(path)
    works(goes_on("k"))
    same_run("k", "a")


# --- what is in a run's directory, and what is read -----------------------------------------------

@pytest.mark.parametrize("what", ["a pipe", "/dev/zero", "a directory"])
@pytest.mark.parametrize("file", ["log.csv", "lock", "config.json", "training.safetensors",
                                  "recipe.txt"])
def test_no_regular_file_in_a_run(file, what):
    shutil.copytree("half", "k")
    path = os.path.join("k", file)
    os.remove(path)
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a directory":
        os.mkdir(path)
    else:
        os.symlink(what, path)
    refuses(goes_on("k"), "k/" + file)
    before = os.listdir("k")
    if file == "config.json":
        refuses(run(GENERATE, "k"), "k/" + file)
    assert os.listdir("k") == before


def test_a_pipe_that_an_older_version_left():
    """Names that mean nothing stay as they are."""
    shutil.copytree("half", "k")
    for name in "log.csv.new", "log.csv.tmp":
        os.mkfifo("k/" + name)
    works(goes_on("k"))
    for name in "log.csv.new", "log.csv.tmp":
        os.remove("k/" + name)
    same_run("k", "a")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom"])
def test_no_text_from_a_device(path):
    refuses(run(TRAIN, "--data", path, "--out", "k"), "cannot read %s: it is a device" % path)
    refuses(run(GENERATE, "a", "--score", path), "cannot read %s: it is a device" % path)


def test_no_text_without_an_end():
    """A stream has a limit, and a file must fit in memory before it is read."""
    hog = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
    result = run(TRAIN, "--data", "/dev/stdin", "--out", "k", stdin=hog.stdout)
    hog.stdout.close()
    hog.kill()
    hog.wait()
    refuses(result, "cannot read /dev/stdin: more than 1073741824 bytes of a stream")
    with open("huge", "wb") as f:
        try:
            f.truncate(1 << 45)
        except OSError:
            return
    refuses(run(TRAIN, "--data", "huge", "--out", "k"), "huge does not fit in memory")


def test_a_text_from_a_stream():
    os.mkfifo("pipe")
    threading.Thread(target=lambda: write("pipe", read("text").decode()), daemon=True).start()
    works(train("--data", "pipe", "--steps", "6", "--eval-every", "2", "--out", "k"))
    same_run("k", "a")
    with open("short", "rb") as f:
        assert works(run(GENERATE, "a", "--score", "/dev/stdin", "--threads", "1", stdin=f)) \
            == works(score())


# --- a log that is lost while the run goes on -----------------------------------------------------

def stopped(p, *warnings):
    """The run's last step, when it was stopped with nothing but such warnings."""
    status, out, error = stop(p)
    assert status == 0 and "stopped after step " in out, (status, out, error)
    assert error == "".join("train_tiny: warning: %s\n" % w for w in warnings), error
    return int(re.search(r"stopped after step (\d+)", out)[1])


ANEW = "k/log.csv was removed or replaced: it is written anew"


@pytest.mark.parametrize("how", ["removed", "saved from an editor", "moved away", "a pipe",
                                 "a link"])
@pytest.mark.parametrize("when", ["first", "resumed", "overwriting"])
def test_a_log_that_is(how, when):
    more = []
    if when != "first":
        shutil.copytree("half", "k")
        more = ["--resume"] if when == "resumed" else ["--overwrite", "--pp", "0.02"]
    if when == "overwriting":
        more += ["--save-every", "2"]                    # at the first save the directories move
    p = running("k", *more, until=5)
    if how == "saved from an editor":
        write("k/other", read("k/log.csv").decode() + "x\n")
        os.replace("k/other", "k/log.csv")
    else:
        os.rename("k/log.csv", "moved")
    if how == "a pipe":
        os.mkfifo("k/log.csv")
    if how == "a link":
        os.symlink("/dev/zero", "k/log.csv")
    step = stopped(p, ANEW)
    found = rows("k/log.csv")
    assert [int(row[0]) for row in found[1:]] == list(range(1, step + 1))
    assert all(len(row) == 13 for row in found) and found[0][0] == "step"
    assert not os.path.islink("k/log.csv")
    works(train("--resume", "--steps", str(step + 1), "--out", "k"))
    assert len(rows("k/log.csv")) == step + 2


def test_a_log_that_is_emptied_in_place():
    p = running("k")
    os.truncate("k/log.csv", 0)
    time.sleep(0.05)
    step = stopped(p)
    found = read("k/log.csv")
    assert b"\0" not in found and int(found.splitlines()[-1].split(b",")[0]) == step


def test_all_files_of_a_run_are_removed():
    """But not the directory: then all is written anew."""
    shutil.copytree("half", "k")
    p = running("k", "--resume", until=5)
    shutil.rmtree("k/best")
    for name in os.listdir("k"):
        os.remove("k/" + name)
    status, out, error = stop(p)
    assert status == 0 and ANEW in error, error
    step = int(re.search(r"stopped after step (\d+)", out)[1])
    assert len(rows("k/log.csv")) == step + 1
    works(train("--resume", "--steps", str(step + 1), "--out", "k"))


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_directory_that_is(how):
    p = running("k")
    os.rename("k", "moved")
    if how == "removed":
        shutil.rmtree("moved")
    if how == "replaced":
        shutil.copytree("a", "k")
    refuses(stop(p), "cannot save: the directory k was removed or replaced")
    if how == "replaced":
        same_run("k", "a")


# --- directories ----------------------------------------------------------------------------------

@pytest.mark.parametrize("out", ["x", "x/y/z", "x//y/", "./x/../x/y", "/abs/x/y", "link"])
@pytest.mark.parametrize("program", ["train_tiny", "generate"])
def test_parents_are_made_and_removed_after_a_failure(program, out):
    out = out.replace("/abs", os.getcwd())
    os.symlink("x", "link")                              # to nothing yet
    def make(good, *more):
        if program == "train_tiny":
            return train("--steps", "6", "--eval-every", "2", "--out", out,
                         *([] if good else ["--data", "nothing"]), *more)
        return run(GENERATE, "a" if good else "raw", "--export-mixtral", out)
    works(train("--steps", "0", "--out", "raw", "--gate", "raw"))
    before = set(os.listdir("."))
    refuses(make(False), "nothing" if program == "train_tiny" else "raw gates")
    assert set(os.listdir(".")) == before
    works(make(True))
    assert os.path.exists(out + "/config.json") and set(os.listdir(".")) == before | {"x"}
    refuses(make(False), "nothing" if program == "train_tiny" and not os.path.exists(
        out + "/config.json") else "")                   # what was there stays
    assert os.path.exists(out + "/config.json")


@pytest.mark.parametrize("out", ["empty", "empty/x/y", "full", "full/x", "no/" + "n" * 300])
def test_a_failure_leaves_what_was_there(out):
    os.mkdir("empty")
    os.mkdir("full")
    write("full/mine", "mine")
    write("full/lock", "mine")
    before = set(os.listdir("."))
    for how in (["--data", "nothing"],
                ["--width", "1000000", "--heads", "1", "--hidden", "200000"]):
        refuses(train("--out", out, *how), "")
        assert set(os.listdir(".")) == before and set(os.listdir("empty")) <= {"lock"}
        assert sorted(os.listdir("full")) == ["lock", "mine"] and read("full/lock") == b"mine"
    refuses(run(GENERATE, "half", "--export-mixtral", "half"), "holds")
    works(run(GENERATE, "a", "--export-mixtral", "full"))
    assert read("full/lock") == b"mine", "no lock, and so not removed"


# --- signals --------------------------------------------------------------------------------------

def test_a_hangup_is_like_ctrl_c():
    p = running("k")
    status, out, error = stop(p, signal.SIGHUP)
    step = int(re.search(r"stopped after step (\d+)", out)[1])
    assert status == 0 and not error and len(rows("k/log.csv")) == step + 1
    works(train("--resume", "--steps", str(step + 1), "--out", "k"))


def test_a_hangup_that_is_ignored():
    p = running("k", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    p.send_signal(signal.SIGHUP)
    before = len(rows("k/log.csv"))
    wait_for(lambda: len(rows("k/log.csv")) > before + 50, p)
    assert stop(p)[0] == 0


def test_a_terminal_that_is_closed():
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    p = subprocess.Popen([TRAIN, *TINY, *ENDLESS, "--out", "k"], stdin=theirs, stdout=theirs,
                         stderr=theirs, start_new_session=True,
                         preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
    os.close(theirs)
    end = time.monotonic() + SECONDS
    while not os.path.exists("k/log.csv") or len(rows("k/log.csv")) < 5:
        os.read(ours, 10000)
        assert time.monotonic() < end
    os.close(ours)
    p.wait(timeout=SECONDS)
    step = len(rows("k/log.csv")) - 1
    assert step >= 4
    works(train("--resume", "--steps", str(step), "--out", "k"))


@pytest.mark.parametrize("how", [[signal.SIGTSTP], [signal.SIGSTOP], [signal.SIGSTOP] * 2])
def test_time_spent_stopped_is_no_training_time(how):
    p = running("k")
    for number in how:
        before = len(rows("k/log.csv"))
        p.send_signal(number)
        time.sleep(1.2)
        p.send_signal(signal.SIGCONT)
        wait_for(lambda: len(rows("k/log.csv")) > before + 3, p)
    assert stop(p)[0] == 0
    seconds = [float(line.split(",")[2]) for line in read("k/log.csv").decode().splitlines()[1:]]
    assert max(b - a for a, b in zip(seconds, seconds[1:])) < 0.8 and seconds[-1] > 0


# --- replacing a run ------------------------------------------------------------------------------

ANOTHER = ["--overwrite", "--pp", "0.02", "--steps", "4", "--eval-every", "2"]


@pytest.mark.parametrize("link", [False, True], ids=["a directory", "a link"])
def test_a_file_that_nobody_can_remove(link):
    shutil.copytree("half", "real")
    shutil.copytree("half", "new")
    works(train("--out", "new", *ANOTHER))
    os.symlink("real", "k") if link else os.rename("real", "k")
    file = "k/training.safetensors"
    if not shutil.which("chattr") or subprocess.run(["chattr", "+i", file], stderr=-3).returncode:
        pytest.skip("cannot make a file that nobody can remove")
    try:
        result = train("--out", "k", *ANOTHER)
    finally:
        for stays in file, "k.old/training.safetensors":
            subprocess.run(["chattr", "-i", stays], stderr=-3)
    if link:                                             # it cannot be moved either
        refuses(result, "cannot replace the run in k: Operation not permitted", "k/.new continues")
        works(train("--out", "k/.new", "--resume", *ANOTHER[1:]))
        same_run("k/.new", "new")
        shutil.rmtree("k/.new")
        works(goes_on("k"))
        same_run("k", "a")
    else:
        works(result)
        same_run("k", "new")
    works(train("--out", "k", "--resume", "--steps", "0"))
    assert not os.path.exists("k.old")


@pytest.mark.parametrize("link", [False, True], ids=["a directory", "a link"])
def test_what_a_run_does_not_own_stays(link):
    """A best/ that is elsewhere, and files of one's own with the names of the program's own."""
    shutil.copytree("half", "real")
    os.symlink("real", "k") if link else os.rename("real", "k")
    shutil.move("k/best", "elsewhere")
    os.symlink(os.path.abspath("elsewhere"), "k/best")
    before = {f: read("elsewhere", f) for f in os.listdir("elsewhere")}
    mine = ["overwrite", "x.tmp", "notes", "log.csv.tmp"]
    for name in mine:
        write("k/" + name, name)
    os.symlink("nothing", "k/dangling")
    works(train("--out", "k", *ANOTHER))
    assert {f: read("elsewhere", f) for f in os.listdir("elsewhere")} == before
    assert [read("k", name).decode() for name in mine] == mine and os.path.islink("k/dangling")
    assert not os.path.islink("k/best") and os.path.islink("k") == link
    for name in mine + ["dangling"]:
        os.remove("k/" + name)
    works(train("--out", "new", *ANOTHER))
    same_run("k", "new")
    assert not os.path.exists("k.old") and not os.path.exists("k.new")
