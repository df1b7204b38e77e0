#!/usr/bin/env python3
"""exercise.py - checks functions that a learner wrote in place of functions of hmoe.h.

    exercise.py check 03 [FILE]     make exercise-03 FILE=my.c: the exit status is 0 if it passed
    exercise.py grade DIR           make grade DIR=submissions: prints a table

An exercise is a directory NN-name. It holds:

    README.md    the task
    check.c      the inputs and the right results. Its first comment lists the FUNCTIONS to write.
                 FROM names the header that declares some of them, if hmoe.h does not
    wrong/*.c    typical mistakes. The first comment of each is the message to the learner
    own.h        (if needed) comments and declarations that hmoe.h does not have

The first run makes my.c, the file to fill in, from the comments and signatures in the header. No
later run overwrites it. The comment of a backward function shows formulas as lines of their own;
my.c leaves these lines out, because the learner derives them.

To check a file, this program copies hmoe.h. In the copy each function NAME is called
reference_NAME, and a declaration of NAME remains. A small C program includes the copy, the
learner's file (there NAME is your_NAME), every wrong answer (wrong_0_NAME, ...) and check.c. In it
NAME calls one entry of a table of all answers. Therefore one program can ask every answer, compare
them, and train with each. The program runs under limits on time, memory, files and output; at the
end its whole process group is killed. This needs Python 3 and a C compiler: CC, or cc if CC is not
set."""

import concurrent.futures
import glob
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SECONDS = 10                  # of processor time for a check; the clock allows three times that
MEMORY, FILE_SIZE = 1 << 30, 1 << 20
OUTPUT = 200000               # bytes; a program that prints more is ended
FLAGS = ("-std=c99 -O1 -DHMOE_REAL=double -Wall -Wextra -Wno-unused-parameter "
         "-Wno-unused-function -Wno-unknown-pragmas").split()
ENDINGS = {100: "ok", 101: "differs", 102: "crash", 103: "time", 104: "memory", 105: "file"}
# These are check.h's enum check_end. A program that ends with another number has not passed.
WHAT_ENDINGS_MEAN = {
    "ok": "passed", "differs": "other results", "untouched": "nothing in it yet", "part": "a "
    "function is missing", "compile": "does not compile", "crash": "crashed", "time": "took too "
    "long", "memory": "took too much memory", "file": "wrote too much", "flood": "printed too much",
    "children": "left processes behind", "exit": "ended the program", "-": "not handed in"}


# --- functions in C -------------------------------------------------------------------------------

def without_comments(text):
    """The same text with blanks in place of comments and strings. No other character moves."""
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'',
                  lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.S)


def code(text):
    """The text without comments and white space."""
    return "".join(without_comments(text).split())


def without_formulas(comment):
    """The comment without its formulas. A formula is a line that is indented by more than three
    blanks. One line takes the place of neighbouring formulas."""
    return re.sub(r"(?:^ {4,}(?!.*\*/).*\n)+", "     (formulas that you derive: see README.md)\n",
                  comment, flags=re.M)


def unbalanced(text):
    """A message about a brace without a partner, or "" if each brace has one. If a } is missing,
    the indentation tells which { lacks it: the first whose } stands further to the left."""
    waiting, suspect, parentheses, indent = [], "", 0, 0    # waiting: (line, indent) of each {
    for number, line in enumerate(without_comments(text).splitlines(), 1):
        here = len(line) - len(line.lstrip())
        indent = indent if parentheses else here     # where the statement begins
        for at, char in enumerate(line):
            parentheses = 0 if char in "{}" else parentheses + {"(": 1, ")": -1}.get(char, 0)
            if char == "{":
                waiting.append((number, indent))
            elif char == "}":
                if not waiting:
                    return "the } in line %d has no {: one too many, or a { is missing" % number
                if at == here < waiting[-1][1] and not suspect:
                    suspect = "line %d, before line %d" % (waiting[-1][0], number)
                waiting.pop()
    if not waiting:
        return ""
    return "a } is missing: for the { in " + (suspect or "line %d" % waiting[-1][0])


class Function:
    """A function of this name in a text: its place, its declaration and its comment."""

    def __init__(self, text, name):
        plain = without_comments(text)
        self.name, self.defined = name, False
        for found in re.finditer(r"^[a-zA-Z][\w \t*\n]*?\b%s\s*\(([^()]*)\)\s*([;{])" % name,
                                 plain, re.M):
            self.start, self.end = found.start(), found.end()
            declaration = text[found.start():found.end() - 1].strip()
            above = re.search(r"/\*(?:(?!\*/).)*\*/\s*\Z", text[:self.start], re.S)
            comment = above.group().strip() if above else ""
            self.comment = comment or getattr(self, "comment", "")
            self.declaration, self.parameters = declaration, found.group(1)
            if found.group(2) == "{":
                depth = 1
                while depth and self.end < len(plain):
                    depth += {"{": 1, "}": -1}.get(plain[self.end], 0)
                    self.end += 1
                self.defined = True
                self.body = text[found.end() - 1:self.end]
                return
        if not hasattr(self, "declaration"):
            raise LookupError("no function %s" % name)

    def result(self):
        """The type of its result."""
        words = self.declaration[:self.declaration.index(self.name)].split()
        return " ".join(w for w in words if w not in ("static", "HMOE__INLINE", "inline"))

    def arguments(self):
        """The names of its parameters."""
        return ", ".join(re.search(r"(\w+)\s*(?:\[[^]]*\]\s*)*\Z", p).group(1)
                         for p in self.parameters.split(","))

    def named(self, name, static=True):
        """Its signature with another name."""
        return "%s%s %s(%s)" % ("static " if static else "", self.result(), name,
                                " ".join(self.parameters.split()))

    def is_public(self):
        return not re.match(r"static|HMOE__INLINE", self.declaration)


def read(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        return f.read()


def find(text, name):
    try:
        return Function(text, name)
    except LookupError:
        return None


class Exercise:
    def __init__(self, number):
        self.path = next(iter(glob.glob(os.path.join(HERE, "%02d-*" % number))), None)
        if not self.path:
            sys.exit("exercise %02d: there is none: 01 to 10" % number)
        self.name = os.path.basename(self.path)
        self.mine = os.path.join(self.path, "my.c")
        own = os.path.join(self.path, "own.h")
        self.own = read(own) if os.path.exists(own) else ""
        check = read(os.path.join(self.path, "check.c"))
        names, more = re.search(r"FUNCTIONS((?:\s+hmoe_\w+|\s+my_\w+)+)(?:\s+FROM\s+(\S+))?",
                                check).groups()
        self.headers = {os.path.basename(file): read(os.path.join(ROOT, file))
                        for file in ["hmoe.h"] + [more] * bool(more)}
        self.header = "\n".join(self.headers.values())
        self.functions = [find(self.header, name) or Function(self.own, name)
                          for name in names.split()]
        for f in self.functions:
            if not f.comment and find(self.own, f.name):
                f.comment = Function(self.own, f.name).comment
        self.wrong = sorted(glob.glob(os.path.join(self.path, "wrong", "*.c")))

    def hole(self):
        """The file to fill in."""
        parts = ["""/* Exercise %s: README.md has the task. Write the functions, then run

       make exercise-%s

   You may add functions of your own and #include. You may call every function of hmoe.h, except the
   functions that you write here. hmoe_real is double. */
""" % (self.name, self.name[:2])]
        for f in self.functions:
            value = "" if f.result() == "void" else "    return 0;\n"
            declaration = f.declaration.replace("HMOE__INLINE", "static")
            comment = without_formulas(f.comment) if "_backward" in f.name else f.comment
            parts.append("%s\n%s {\n    /* your lines here */\n%s}\n"
                         % (comment, declaration, value))
        return "\n".join(parts)

    def spliced(self, header):
        """The text of this header. The definition of each NAME has the name reference_NAME."""
        text = self.headers[header]
        for f in self.functions:
            at = find(text, f.name)
            if not at or not at.defined:
                continue
            text = (text[:at.start] + f.named("reference_" + f.name) + " " + at.body + "\n"
                    + f.named(f.name, not f.is_public()) + ";" + text[at.end:])
        return text

    def missing(self, mine):
        """The names of functions that are not written yet. Comments do not count."""
        hole, missing = self.hole(), []
        for f in self.functions:
            at = find(mine, f.name)
            if not at or not at.defined or code(at.body) == code(Function(hole, f.name).body):
                missing.append(f.name)
        return missing

    def program(self, path, missing):
        lines = ["#define _DEFAULT_SOURCE", "#define HMOE_IMPLEMENTATION"]
        lines += ['#include "%s"' % header for header in self.headers] + [self.own]
        answers = {f.name: ["reference_" + f.name] for f in self.functions}
        for f in self.functions:
            if not f.defined:
                lines.append(f.named("reference_" + f.name) + ";")
        for number, file in enumerate([path] + self.wrong, -1):
            prefix = "your_" if number < 0 else "wrong_%d_" % number
            text = read(file)
            lines += ["#define %s %s%s" % (f.name, prefix, f.name) for f in self.functions]
            lines += [f.named(f.name) + ";" for f in self.functions
                      if find(text, f.name) and find(text, f.name).defined]
            lines.append('#include "%s"' % file.replace("\\", "/"))
            lines += ["#undef %s" % f.name for f in self.functions]
            for f in self.functions:
                at = find(text, f.name)
                there = at and at.defined and not (number < 0 and f.name in missing)
                answers[f.name].append((prefix if there else "reference_") + f.name)
        lines.append("static int check_answer;   /* which answer NAME calls: 0 hmoe.h, 1 you */")
        for f in self.functions:
            lines.append("%s = { %s };" % (f.named("(*const answers_%s[])" % f.name),
                                           ", ".join(answers[f.name])))
            lines.append("%s { %sanswers_%s[check_answer](%s); }" % (
                f.named(f.name, not f.is_public()), "" if f.result() == "void" else "return ",
                f.name, f.arguments()))
        lines.append("static const char *const check_messages[] = { 0, 0, %s };" % ", ".join(
            '"%s"' % re.sub(r'(["\\])', r"\\\1", message(file)) for file in self.wrong))
        lines.append('#include "%s/check.h"\n#include "%s/check.c"\n' % (HERE, self.path))
        return "\n".join(lines)


def message(file):
    """The message of a wrong answer to the learner: its first comment."""
    return " ".join(re.match(r"\s*/\*(.*?)\*/", read(file), re.S).group(1).split())


# --- running a program that nobody has checked ----------------------------------------------------

def end_group(leader):
    """Kills the processes that are left of a group. Returns True if there were any."""
    for tries in range(50):
        try:
            os.killpg(leader, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return tries > 0
        time.sleep(0.02)
    return True


def run(command, directory, seconds, memory, output=OUTPUT):
    """(status, output, and why the program was ended or ""). status < 0: a signal."""
    limits = ("{ ulimit -c 0; ulimit -S -t %d; ulimit -H -t %d; ulimit -f %d; ulimit -v %d; } "
              "2>/dev/null; " % (seconds, seconds + 2, FILE_SIZE // 512, memory // 1024))
    child = subprocess.Popen(["sh", "-c", limits * bool(memory) + 'exec "$@"', "sh"] + command,
                             cwd=directory,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, start_new_session=True)
    printed, why, until = b"", "", time.monotonic() + 3 * seconds
    os.set_blocking(child.stdout.fileno(), False)
    try:
        while True:
            ended = child.poll() is not None
            select.select([child.stdout], [], [], 0 if ended else 0.05)
            more = child.stdout.read(65536)
            printed += more or b""
            if len(printed) > output:
                why = "flood"
            elif time.monotonic() > until:
                why = "time"
            if why or (ended and not more):
                break
            if more == b"" and not ended:      # its output is closed, but it still runs
                time.sleep(0.02)
    finally:
        left = False
        if child.poll() is not None:
            left = end_group(child.pid)
        else:
            os.killpg(child.pid, signal.SIGKILL)     # it exists until child.wait()
            child.wait()
            end_group(child.pid)
        child.stdout.close()
    return (child.returncode, printed.decode("utf-8", "replace"),
            why or ("children" if left else ""))


def text_to_train_on():
    """tinyshakespeare if it was fetched, otherwise README.md."""
    tiny = os.path.join(ROOT, "tinyshakespeare", "input.txt")
    return tiny if os.path.exists(tiny) else os.path.join(ROOT, "README.md")


def check(exercise, path, quick=False):
    """(how it ended, the report). quick: without the experiment."""
    name = "exercise " + exercise.name
    shown = os.path.relpath(path)
    if not os.path.isfile(path):
        return "-", "%s: there is no file %s" % (name, shown)
    missing = exercise.missing(read(path))
    lost = [f.name for f in exercise.functions if not find(read(path), f.name)]
    if len(lost) == len(exercise.functions):
        return "part", ("%s: %s has no function %s: do not change its first line. If you remove "
                        "the file, `make exercise-%s` makes it again." % (
                            name, shown, " or ".join(lost), exercise.name[:2]))
    if len(missing) == len(exercise.functions):
        return "untouched", ("%s: nothing is written in %s yet.\nRead %s, put the body of %s "
                             "there, and run `make exercise-%s` again." % (
                                 name, shown, os.path.relpath(exercise.path) + "/README.md",
                                 " and of ".join(f.name for f in exercise.functions),
                                 exercise.name[:2]))
    if re.search(r"\breference_hmoe_", without_comments(read(path))):
        return "compile", "%s: %s calls the function of hmoe.h: write your own" % (name, shown)
    here = tempfile.mkdtemp(prefix="hmoe-exercise-")
    try:
        warnings = build(exercise, path, missing, here)
        how, text = judge(here, quick)
        if how == "ok" and missing:
            how = "part"
            text += ("\nWhat you have written is right. Still to be written: %s.\n"
                     % ", ".join(missing))
        if how not in ("ok", "part") and warnings:
            text += "\nWarnings of the compiler:\n" + first_lines("\n".join(warnings), 8)
        return how, "%s: %s\n\n%s" % (name, "passed" if how == "ok" else "not yet",
                                        text.lstrip("\n"))
    except DoesNotCompile as problem:
        return "compile", "%s: %s does not compile:\n\n%s" % (name, shown, problem)
    finally:
        shutil.rmtree(here, ignore_errors=True)


class DoesNotCompile(Exception):
    pass


def build(exercise, path, missing, here):
    """Compiles the program here/check. Returns warnings about the learner's file."""
    for header in exercise.headers:
        with open(os.path.join(here, header), "w", encoding="utf-8") as f:
            f.write(exercise.spliced(header))
    with open(os.path.join(here, "main.c"), "w", encoding="utf-8") as f:
        f.write(exercise.program(os.path.abspath(path), missing))
    os.mkdir(os.path.join(here, "empty"))
    compiler = os.environ.get("CC", "cc").split()
    status, said, why = run(compiler + FLAGS + ["-I", here, "-o", "check", "main.c", "-lm"],
                            here, 60, 0)
    if status == 127:
        raise DoesNotCompile("this machine has no C compiler %s" % compiler[0])
    if why == "time":
        raise DoesNotCompile("the compiler took more than three minutes")
    shown = os.path.relpath(path)
    said = re.sub(r"\byour_(hmoe_|my_)", r"\1", said).replace(os.path.abspath(path), shown)
    about = about_file(said, shown)
    if status or why:
        brace = unbalanced(read(path))
        hint = ("%s: %s.\n\n" % (shown, brace) if brace else "" if about else
                "The compiler found the mistake after the end of the file: is something "
                "unfinished there?\n\n")
        raise DoesNotCompile((hint + first_lines(about if about or brace else said, 25)).rstrip())
    return [line for line in about.splitlines() if line.startswith(shown)]


def about_file(said, shown):
    """The messages of a compiler and its linker, without those about other source files."""
    kept, keep = [], True
    for line in said.splitlines():
        place = re.match(r"(?:In file included from |\s+from )?([^\s:][^:\n]*):(?:\d+[:,]| In )",
                         line)
        if place:
            keep = place.group(1) == shown
        if keep:
            kept.append(line)
    return "\n".join(kept)


def judge(here, quick=False, answer=1):
    """(how it ended, its output). answer: 1 the learner's, 2 and up the wrong ones."""
    status, printed, why = run(["../check", text_to_train_on(), str(int(quick)), str(answer)],
                               os.path.join(here, "empty"), SECONDS, MEMORY)
    how = why or ENDINGS.get(status, "crash" if status < 0 else "exit")
    text = first_lines(printed, 5 if how == "flood" else 60)
    if how == "time" and status != 103:
        text += "\nYour program took more than %d seconds and was ended.\n" % (3 * SECONDS)
    elif how == "flood":
        text += "\nYour program printed more than %d bytes and was ended.\n" % OUTPUT
    elif how == "children":
        text += "\nYour program left processes running. They were ended.\n"
    elif how == "exit":
        text += "\nYour function ended the whole program. It must return and not call exit.\n"
    elif status < 0:
        text += "\nSignal %d ended your program.\n" % -status
    return how, text


def first_lines(text, n):
    lines = text.splitlines()
    return "\n".join([line[:1000] for line in lines[:n]] + ["..."] * (len(lines) > n)) + "\n"


# --- a class --------------------------------------------------------------------------------------

def submissions(directory):
    """{name: {number: file}}: DIR/name/03.c, DIR/name/03-anything.c or DIR/name/03-*/my.c."""
    found = {}
    for name in sorted(os.listdir(directory)):
        if os.path.isdir(os.path.join(directory, name)):
            found[name] = {}
            for pattern in ("[01][0-9]-*/my.c", "[01][0-9]*.c"):
                for file in sorted(glob.glob(os.path.join(glob.escape(directory), name, pattern))):
                    number = int(os.path.relpath(file, os.path.join(directory, name))[:2])
                    if 1 <= number <= 10:
                        found[name][number] = file
    return found


def grade(directory):
    if not os.path.isdir(directory):
        sys.exit("make grade DIR=submissions: there is no directory '%s'" % directory)
    files = submissions(directory)
    if not files:
        sys.exit("make grade: '%s' has no directory in it. Each learner needs one, with files "
                 "01.c, 02.c, ... or 01-top-k/my.c, ..." % directory)
    jobs = [(name, number) for name in files for number in sorted(files[name])]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(jobs, pool.map(
            lambda job: check(Exercise(job[1]), files[job[0]][job[1]], True), jobs)))
    wide = max(len(name) for name in files)
    print("%-*s  %s  passed" % (wide, "", " ".join("%-9s" % ("%02d" % n) for n in range(1, 11))))
    for name in files:
        row = [results.get((name, n), ("-", ""))[0] for n in range(1, 11)]
        print("%-*s  %s  %d of 10" % (wide, name, " ".join("%-9s" % how for how in row),
                                      row.count("ok")))
    used = sorted({how for how, _ in results.values()} | {"-"})
    print("\n" + "; ".join("%s: %s" % (how, WHAT_ENDINGS_MEAN[how]) for how in used))
    named = [(job, re.search(r"^What happened: (.*)", text, re.M)) for job, (_, text)
             in results.items()]
    for (name, number), what in named:
        if what:
            print("%s %02d: %s" % (name, number, what.group(1)))


def main(arguments):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if len(arguments) == 2 and arguments[0] == "grade":
        grade(arguments[1])
    elif len(arguments) in (2, 3) and arguments[0] == "check" and arguments[1].isdigit():
        exercise = Exercise(int(arguments[1]))
        path = arguments[2] if len(arguments) == 3 and arguments[2] else exercise.mine
        if path == exercise.mine and not os.path.exists(path):
            with open(path, "w", encoding="utf-8") as f:
                f.write(exercise.hole())
            print("made %s" % os.path.relpath(path))
        how, text = check(exercise, path)
        for line in text.rstrip().splitlines():     # a compiler's drawing must stay as it is
            print(textwrap.fill(line, 96) if line.startswith("What happened: ") else line)
        sys.exit(how != "ok")
    else:
        sys.exit("usage: exercise.py check 03 [FILE] | exercise.py grade DIR")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
