#!/usr/bin/env python3
"""test_exercises.py - tests the exercises and their checker.

The right solution passes each exercise: it is the functions of hmoe.h, put into the file that a
learner gets. The checker rejects every wrong answer with its own message and no other. If a file
is untouched, the report names the next step. If a learner's program crashes, does not end or does
other harm, the checker ends it and reports it. The file that a learner gets does not contain the
formulas to derive. It needs Python 3, make and a C compiler (CC, or cc)."""

import concurrent.futures
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(ROOT, "tests"), os.path.join(ROOT, "course", "exercises")]
sys.dont_write_bytecode = True
from harness import check, done  # noqa: E402
import exercise  # noqa: E402

if not shutil.which("make") or not shutil.which(os.environ.get("CC", "cc").split()[0]):
    print("no make or no C compiler here: skipped")
    done("test_exercises")

# Solutions of functions that are not in hmoe.h. A learner looks beside the exercise, not here.
OWN = {"my_collapse": "{ config->loss_coef[HMOE_ENT] = 0.1; }",
       "my_cure": "{ config->loss_coef[HMOE_LB] = 1; }",
       "my_parameters": """{
    double C = config->C, widths = 0;
    for (int e = 0; e < config->E; e++) widths += config->H[e];
    return 2 * config->V * C + C + config->L * (4 * C * C + 2 * C + config->E * C + 3 * C * widths);
}""", "my_widths": """{
    double C = config->C, LC = config->L * C;
    double rest = budget - (2 * config->V + 1) * C - LC * (4 * C + 2 + config->E);
    int pair = (int)(rest / (3 * LC) / (config->E / 2));
    for (int i = 0; i < config->E / 2; i++) {
        config->H[i] = pair / 4 + i;
        config->H[config->E - 1 - i] = pair - config->H[i];
    }
}"""}
ALL = [exercise.Exercise(n) for n in range(1, 11)]
here = tempfile.mkdtemp(prefix="hmoe-test-exercises-")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def write(name, text):
    path = os.path.join(here, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    return path


def body(function):
    return OWN[function.name] if function.name in OWN else function.body


def filled(ex, *names):
    """The learner's file of an exercise with the bodies of these functions, or of all."""
    text = ex.hole()
    for f in ex.functions:
        at = exercise.Function(text, f.name)
        if not names or f.name in names:
            text = text[:at.start] + at.declaration + " " + body(f) + text[at.end:]
    return text


def completed(ex, path):
    """A wrong answer, with the right bodies of the other functions."""
    text = exercise.read(path)
    for f in ex.functions:
        if not exercise.find(text, f.name):
            text += "\n%s %s\n" % (f.declaration.replace("HMOE__INLINE", "static"), body(f))
    return text


def make(*words, at=ROOT):
    r = subprocess.run(["make", "--no-print-directory"] + list(words), cwd=at, text=True,
                       capture_output=True, stdin=subprocess.DEVNULL)
    return r.returncode, r.stdout + r.stderr


def named(text):
    return re.findall(r"^What happened: (.*)$", text, re.M)


def holes():
    """The learner's file, and the report on an untouched file."""
    for ex in ALL:
        messages = [exercise.message(path) for path in ex.wrong]
        check("%s keeps five wrong answers" % ex.name, len(ex.wrong) >= 5, len(ex.wrong))
        check("%s: their messages differ" % ex.name, len(set(messages)) == len(messages))
        check("%s has half a page of text" % ex.name,
              15 <= len(exercise.read(ex.path + "/README.md").splitlines()) <= 70)
        for f in ex.functions:
            line = f.declaration.splitlines()[-1]
            check("%s: %s as it is declared" % (ex.name, f.name),
                  line in ex.hole() and line in ex.header + ex.own)
        formulas = 0
        for f in ex.functions:
            for line in f.comment.splitlines():
                if "_backward" in f.name and line.startswith("     "):
                    formulas += 1
                    check("%s: my.c does not contain %s" % (ex.name, line.strip()),
                          line.strip() not in ex.hole())
                else:
                    check("%s: my.c has the comment's line" % ex.name, line in ex.hole(), line)
        check("%s: formulas to derive" % ex.name,
              formulas == {"03": 2, "05": 2, "08": 5}.get(ex.name[:2], 0), formulas)
        path = write("untouched-%s.c" % ex.name[:2], ex.hole())
        how, text = exercise.check(ex, path)
        check("%s: the report on an untouched file" % ex.name, how == "untouched"
              and "README.md" in text and all(f.name in text for f in ex.functions), text)
    status, text = make("exercise-03", "FILE=" + write("untouched.c", ALL[2].hole()))
    check("make fails on an untouched file", status and "nothing is written" in text, text)
    for word in ("exercise-11", "exercise-x", "exercise-00"):
        status, text = make(word)
        check("make %s fails" % word, status and "Traceback" not in text, text)


def in_a_copy():
    """The first make makes the learner's file from the present header. Later ones keep it."""
    copy = os.path.join(here, "copy")
    for room in ("course", "extra", "tests"):
        shutil.copytree(os.path.join(ROOT, room), os.path.join(copy, room),
                        ignore=shutil.ignore_patterns("my.c", "__pycache__", "runs"))
    for name in ("Makefile", "README.md"):
        shutil.copy(os.path.join(ROOT, name), copy)
    header = ALL[2].header
    at = exercise.Function(header, "hmoe__rmsnorm_backward")
    changed = (header[:at.start].replace("With the normalised row", "With the NORMAL row")
               + re.sub(r"\bdy\b", "dout", header[at.start:at.end]) + header[at.end:])
    write("copy/hmoe.h", changed)
    mine = copy + "/course/exercises/03-rmsnorm-backward/my.c"
    status, text = make("exercise-03", at=copy)
    made = exercise.read(mine) if os.path.exists(mine) else ""
    check("the first make makes my.c, and fails", status and "made" in text and made, text)
    check("my.c follows the header", "hmoe_real *dout" in made and "*dy" not in made
          and "With the NORMAL row" in made, made)
    with open(mine, "a") as f:
        f.write("\n/* mine */\n")
    make("exercise-03", at=copy)
    check("my.c is never overwritten", exercise.read(mine).endswith("/* mine */\n"))
    with open(mine, "w") as f:
        f.write("static int half(int x) { return x / 2; }\n"
                + made[:made.rindex("{")] + exercise.Function(changed, at.name).body)
    status, text = make("exercise-03", at=copy)
    check("the right solution passes by make", status == 0 and "03-rmsnorm-backward: passed" in text
          and "Traceback" not in text, text)
    losses = re.findall(r"step +\d+ +(\d+\.\d{6}) +(\d+\.\d{6})", text)
    check("losses stand side by side", len(losses) > 2
          and all(abs(float(a) - float(b)) <= 1e-4 for a, b in losses), text)


def right(ex):
    """The right solution, a part of it, and all wrong answers, in one program."""
    path, program = write("right-%s.c" % ex.name[:2], filled(ex)), os.path.join(here, ex.name)
    os.mkdir(program)
    check("%s: no warnings" % ex.name, not exercise.build(ex, path, [], program))
    how, text = exercise.judge(program)
    check("%s: the right solution passes" % ex.name, how == "ok" and "never differ" in text, text)
    for answer, file in enumerate(ex.wrong, 2):
        rejected(ex, file, *exercise.judge(program, answer=answer))
    if len(ex.functions) > 1:
        first = ex.functions[0].name
        how, text = exercise.check(ex, write("part-%s.c" % ex.name[:2], filled(ex, first)))
        check("%s: %s alone is a part" % (ex.name, first), how == "part" and "Still to be written"
              in text and all(f.name in text for f in ex.functions[1:]), text)


def rejected(ex, path, how, text):
    name = "%s/%s" % (ex.name, os.path.basename(path))
    check("%s is rejected" % name, how == "differs", (how, text))
    check("%s is named, and nothing else" % name, named(text) == [exercise.message(path)],
          (named(text), text))


def wrong(ex, path):
    """A wrong answer as the learner's file."""
    rejected(ex, path, *exercise.check(ex, write("wrong-%s.c" % ex.name[:2], completed(ex, path))))


def case(name, how, says, body, before="", ex=ALL[2]):
    """A file for exercise 3 that does this in the function's body."""
    if ex is None:
        ex, text = ALL[2], "int unrelated;\n"
        path = write("bad/other.c", text)
    else:
        text = ex.hole()
        at = exercise.Function(text, ex.functions[0].name)
        path = write("bad/%s.c" % name.replace(" ", "-"), before + text[:at.start] + at.declaration
                     + " {\n" + body + "\n}\n" + text[at.end:])
    found, said = exercise.check(ex, path)
    check("%s: reported" % name, found == how, (found, said))
    check("%s: in words" % name, re.search(says, said), said)
    check("%s: in few lines" % name, len(said) < 20000 and "Traceback" not in said, len(said))
    check("%s: no two blank lines" % name, "\n\n\n" not in said, said)
    return said


def bad_programs():
    sys_headers = ("#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
                   "#include <sys/types.h>\n")
    whole = body(ALL[2].functions[0])[1:-1]
    said = case("syntax", "compile", "does not compile", "int x = ;")
    check("a compiler's message names file and line", re.search(r"bad/syntax\.c:\d+", said), said)
    said = case("missing brace", "compile", r"missing-brace\.c: a } is missing: for the { in line",
                "    for (int t = 0; t < N; t++) {   /* } */\n        dx[t] += '}';")
    check("a missing brace is not blamed on other files", not re.search(r"(main\.c|\.h):\d", said),
          said)
    case("comments alone", "untouched", "nothing is written", "/* first dx */  // then dw")
    case("wrong signature", "compile", "does not compile", "dx[0] = 1;",
         "static int hmoe__rmsnorm_backward(int x);\n")
    case("no function", "part", "has no function", "", ex=None)
    case("the built-in", "compile", "write your own",
         "reference_hmoe__rmsnorm_backward(dx, dw, dy, x, w, rrms, N, C);")
    return [
        ("null pointer", "crash", "crashed.*on this input", "*(volatile int *)0 = 1;"),
        ("stack overflow", "crash", "crashed",
         "hmoe__rmsnorm_backward(dx, dw, dy, x, w, rrms, N, C); dx[0] += 1;"),
        ("division by zero", "crash", "divided an integer by zero",
         "volatile int zero = 0; dx[0] = N / zero;"),
        ("abort", "crash", "abort", "abort();"),
        ("endless loop", "time", "never ends|was ended", "volatile int go = 1; while (go) {}"),
        ("sleep", "time", "ended", "sleep(1000);"),
        ("flood", "flood", "printed more", 'for (;;) puts("again and again");'),
        ("memory", "memory", "gigabyte",
         "for (;;) { volatile char *p = malloc(1 << 20);"
         "    for (int i = 0; i < 256; i++) p[i << 12] = 1; }"),
        ("file", "file", "megabyte", 'FILE *f = fopen("big", "w"); for (;;) fputs("more", f);'),
        ("children", "children", "left processes running",
         "static int n; if (!n++) { pid_t p = fork(); if (!p) { for (;;) sleep(100); } "
         'printf("child %d\\n", (int)p); fflush(stdout); }' + whole),
        ("children and a loop", "time", "never ends|was ended",
         "for (int i = 0; i < 3; i++) fork(); volatile int go = 1; while (go) {}"),
        ("exit", "exit", "ended the whole program", "exit(0);"),
        ("exit with a lie", "exit", "ended the whole program",
         'puts("passed"); fflush(stdout); _exit(3);'),
        ("past the end", "differs", "past the end of dx", "dx[N * C] = 1;"),
        ("before the start", "differs", "before the start of dw", "dw[-1] = 1;"),
        ("far past the end", "crash", "memory that does not exist", "dx[400000] = 0;"),
        ("far before the start", "crash", "memory that does not exist", "dx[-200000] = 0;"),
        ("once wrong", "differs", "A second call on this input gives the right",
         "static int calls; if (!calls++) return;" + whole),
        ("input changed", "differs", "may only read", "((hmoe_real *)x)[0] = 3;"),
        ("nothing written", "differs", "differs", "(void)0;"),
        ("wrong later", "differs", "losses differ by",
         "static int calls; if (calls++ > 60) return;" + whole),
        ("debug output", "ok", "hello", 'static int n; if (!n++) puts("hello");' + whole),
    ], sys_headers


def alive(pid):
    try:
        with open("/proc/%d/stat" % pid) as f:
            return f.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def bad(job, headers):
    said = case(*job, before=headers)
    child = re.search(r"child (\d+)", said)
    if child and os.path.isdir("/proc/self"):
        check("the child is gone", not alive(int(child.group(1))))


def grading():
    write("class/ada/03.c", filled(ALL[2]))
    write("class/ada/05-mine.c", completed(ALL[4], ALL[4].path + "/wrong/swapped.c"))
    write("class/bob/03-rmsnorm-backward/my.c", ALL[2].hole())
    write("class/bob/10.c", filled(ALL[9]).replace("hmoe_real sum[", "hmoe_real sum[["))
    write("class/bob/notes.txt", "nothing")
    write("class/cy/99.c", "")
    status, text = make("grade", "DIR=" + os.path.join(here, "class"))
    lines, none = [line.split() for line in text.splitlines()], ["-"]
    for row in (["ada"] + none * 2 + ["ok", "-", "differs"] + none * 5 + ["1", "of", "10"],
                ["bob"] + none * 2 + ["untouched"] + none * 6 + ["compile", "0", "of", "10"],
                ["cy"] + none * 10 + ["0", "of", "10"]):
        check("grade: the row of %s" % row[0], status == 0 and row in lines, text)
    check("grade names the mistake", "ada 05: " + exercise.message(ALL[4].path + "/wrong/swapped.c")
          in text, text)
    status, text = make("grade", "DIR=" + os.path.join(here, "nowhere"))
    check("grade: no directory", status and "nowhere" in text and "Traceback" not in text, text)


def main():
    holes()
    in_a_copy()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(right, ex) for ex in ALL]
        jobs += [pool.submit(wrong, ex, ex.wrong[-1]) for ex in ALL]
        for job in jobs:
            job.result()
    exercise.SECONDS = 3            # a shorter time limit
    programs, headers = bad_programs()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(bad, program, headers) for program in programs]:
            job.result()
    exercise.SECONDS = 10
    grading()


try:
    main()
finally:
    shutil.rmtree(here, ignore_errors=True)
done("test_exercises")
