"""The exercises and their checker.

The right solution passes each exercise: it is the functions of hmoe.h, put into the file that a
learner gets. The checker rejects every wrong answer with its own message and no other. If a file
is untouched, the report names the next step. If a learner's program crashes, does not end or does
other harm, the checker ends it and reports it. The file that a learner gets does not contain the
formulas to derive. It needs Python 3, make and a C compiler (CC, or cc)."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import exercise
import pytest
from harness import ROOT

for tool in "make", os.environ.get("CC", "cc").split()[0]:
    if not shutil.which(tool):
        pytest.skip("no %s here" % tool, allow_module_level=True)

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
NORM = ALL[2]
each_exercise = pytest.mark.parametrize("ex", ALL, ids=lambda ex: ex.name)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


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
    r = subprocess.run(["make", "--no-print-directory", *words], cwd=at, text=True,
                       capture_output=True, stdin=subprocess.DEVNULL)
    text = r.stdout + r.stderr
    assert "Traceback" not in text, text
    return r.returncode, text


# --- the exercises --------------------------------------------------------------------------------

@each_exercise
def test_an_exercise_has_half_a_page_and_five_wrong_answers(ex):
    messages = [exercise.message(path) for path in ex.wrong]
    assert len(set(messages)) == len(messages) >= 5
    assert 15 <= len(exercise.read(ex.path + "/README.md").splitlines()) <= 70


@each_exercise
def test_the_learners_file_has_the_header_without_formulas_to_derive(ex):
    formulas = 0
    for f in ex.functions:
        declaration = f.declaration.splitlines()[-1]
        assert declaration in ex.hole() and declaration in ex.header + ex.own
        for line in f.comment.splitlines():
            formula = "_backward" in f.name and line.startswith("     ")
            assert ((line.strip() if formula else line) in ex.hole()) != formula, line
            formulas += formula
    assert formulas == {"03": 2, "05": 2, "08": 5}.get(ex.name[:2], 0)


@each_exercise
def test_an_untouched_file_is_told_what_to_write(ex, tmp_path):
    how, text = exercise.check(ex, write(tmp_path / "untouched.c", ex.hole()))
    assert how == "untouched" and "README.md" in text, text
    assert all(f.name in text for f in ex.functions), text


def test_make_fails_on_an_untouched_file(tmp_path):
    status, text = make("exercise-03", "FILE=" + write(tmp_path / "untouched.c", NORM.hole()))
    assert status and "nothing is written" in text, text


@pytest.mark.parametrize("word", ["exercise-11", "exercise-x", "exercise-00"])
def test_make_fails_on_no_exercise(word):
    assert make(word)[0]


def test_make_keeps_the_learners_file_which_follows_the_header(tmp_path):
    for room in "course", "extra", "tests":
        shutil.copytree(ROOT / room, tmp_path / room,
                        ignore=shutil.ignore_patterns("my.c", "__pycache__", "runs"))
    for name in "Makefile", "README.md":
        shutil.copy(ROOT / name, tmp_path)
    at = exercise.Function(NORM.header, "hmoe__rmsnorm_backward")
    changed = (NORM.header[:at.start].replace("With the normalised row", "With the NORMAL row")
               + re.sub(r"\bdy\b", "dout", NORM.header[at.start:at.end]) + NORM.header[at.end:])
    write(tmp_path / "hmoe.h", changed)
    status, text = make("exercise-03", at=tmp_path)
    assert status and "made" in text, text
    mine = tmp_path / "course/exercises/03-rmsnorm-backward/my.c"
    made = mine.read_text()
    assert "hmoe_real *dout" in made and "*dy" not in made and "With the NORMAL row" in made
    mine.write_text(made + "\n/* mine */\n")
    make("exercise-03", at=tmp_path)
    assert mine.read_text().endswith("/* mine */\n")
    mine.write_text("static int half(int x) { return x / 2; }\n" + made[:made.rindex("{")]
                    + exercise.Function(changed, at.name).body)
    status, text = make("exercise-03", at=tmp_path)
    assert status == 0 and "03-rmsnorm-backward: passed" in text, text
    losses = re.findall(r"step +\d+ +(\d+\.\d{6}) +(\d+\.\d{6})", text)
    assert len(losses) > 2, "losses stand side by side"
    for a, b in losses:
        assert float(a) == pytest.approx(float(b), rel=0, abs=1e-4)


# --- answers --------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the checker says of each exercise's right answer and of each wrong one, all in one
    program; and of the last wrong one and of the first function alone as learners' files."""
    def judge(ex):
        here = tmp_path_factory.mktemp(ex.name)
        right = write(here / "right.c", filled(ex))
        wrong = write(here / "wrong.c", completed(ex, ex.wrong[-1]))
        part = write(here / "part.c", filled(ex, ex.functions[0].name))
        return {"warnings": exercise.build(ex, right, [], str(here)),
                "right": exercise.judge(str(here)),
                "wrong": [(path, *exercise.judge(str(here), answer=answer))
                          for answer, path in enumerate(ex.wrong, 2)]
                + [(ex.wrong[-1], *exercise.check(ex, wrong))],
                "part": exercise.check(ex, part) if len(ex.functions) > 1 else None}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(ALL, pool.map(judge, ALL)))


@each_exercise
def test_the_right_answer_passes(ex, answers):
    how, text = answers[ex]["right"]
    assert not answers[ex]["warnings"]
    assert how == "ok" and "never differ" in text, text


@each_exercise
def test_a_wrong_answer_gets_its_message_and_no_other(ex, answers):
    for path, how, text in answers[ex]["wrong"]:
        assert how == "differs", (path, text)
        assert re.findall(r"^What happened: (.*)$", text, re.M) == [exercise.message(path)], path


@pytest.mark.parametrize("ex", [ex for ex in ALL if len(ex.functions) > 1], ids=lambda ex: ex.name)
def test_one_function_of_several_is_a_part(ex, answers):
    how, text = answers[ex]["part"]
    assert how == "part" and "Still to be written" in text, text
    assert all(f.name in text for f in ex.functions[1:]), text


# --- bad programs ---------------------------------------------------------------------------------

SYSTEM = "#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n#include <sys/types.h>\n"
WHOLE = body(NORM.functions[0])[1:-1]


def report(path, text, before=SYSTEM):
    """The checker's report on this text in place of the function's body."""
    hole, at = NORM.hole(), exercise.Function(NORM.hole(), NORM.functions[0].name)
    return exercise.check(NORM, write(path, before + hole[:at.start] + at.declaration
                                      + " {\n" + text + "\n}\n" + hole[at.end:]))


def readable(text):
    return len(text) < 20000 and "Traceback" not in text and "\n\n\n" not in text


@pytest.mark.parametrize("how, says, text, before", [
    ("compile", r"does not compile[^\0]*/mine\.c:\d+", "int x = ;", ""),
    ("untouched", "nothing is written", "/* first dx */  // then dw", ""),
    ("compile", "does not compile", "dx[0] = 1;", "static int hmoe__rmsnorm_backward(int x);\n"),
    ("compile", "write your own", "reference_hmoe__rmsnorm_backward(dx, dw, dy, x, w, rrms, N, C);",
     "")], ids=["syntax", "comments alone", "wrong signature", "the built-in"])
def test_no_answer_is_reported(tmp_path, how, says, text, before):
    found, said = report(tmp_path / "mine.c", text, before)
    assert found == how and re.search(says, said) and readable(said), said


def test_a_missing_brace_is_not_blamed_on_other_files(tmp_path):
    how, said = report(tmp_path / "missing-brace.c", "    for (int t = 0; t < N; t++) {   /* } */\n"
                       "        dx[t] += '}';", "")
    assert how == "compile" and readable(said), said
    assert "missing-brace.c: a } is missing: for the { in line" in said
    assert not re.search(r"(main\.c|\.h):\d", said), said


def test_a_file_without_the_function_is_a_part(tmp_path):
    how, said = exercise.check(NORM, write(tmp_path / "other.c", "int unrelated;\n"))
    assert how == "part" and "has no function" in said and readable(said), said


HARM = {
    "null pointer": ("crash", "crashed.*on this input", "*(volatile int *)0 = 1;"),
    "stack overflow": ("crash", "crashed",
        "hmoe__rmsnorm_backward(dx, dw, dy, x, w, rrms, N, C); dx[0] += 1;"),
    "division by zero": ("crash", "divided an integer by zero",
        "volatile int zero = 0; dx[0] = N / zero;"),
    "abort": ("crash", "abort", "abort();"),
    "endless loop": ("time", "never ends|was ended", "volatile int go = 1; while (go) {}"),
    "sleep": ("time", "ended", "sleep(1000);"),
    "flood": ("flood", "printed more", 'for (;;) puts("again and again");'),
    "memory": ("memory", "gigabyte",
        "for (;;) { volatile char *p = malloc(1 << 20);"
        "    for (int i = 0; i < 256; i++) p[i << 12] = 1; }"),
    "file": ("file", "megabyte", 'FILE *f = fopen("big", "w"); for (;;) fputs("more", f);'),
    "children": ("children", "left processes running",
        "static int n; if (!n++) { pid_t p = fork(); if (!p) { for (;;) sleep(100); } "
        'printf("child %d\\n", (int)p); fflush(stdout); }' + WHOLE),
    "children and a loop": ("time", "never ends|was ended",
        "for (int i = 0; i < 3; i++) fork(); volatile int go = 1; while (go) {}"),
    "exit": ("exit", "ended the whole program", "exit(0);"),
    "exit with a lie": ("exit", "ended the whole program",
        'puts("passed"); fflush(stdout); _exit(3);'),
    "past the end": ("differs", "past the end of dx", "dx[N * C] = 1;"),
    "before the start": ("differs", "before the start of dw", "dw[-1] = 1;"),
    "far past the end": ("crash", "memory that does not exist", "dx[400000] = 0;"),
    "far before the start": ("crash", "memory that does not exist", "dx[-200000] = 0;"),
    "once wrong": ("differs", "A second call on this input gives the right",
        "static int calls; if (!calls++) return;" + WHOLE),
    "input changed": ("differs", "may only read", "((hmoe_real *)x)[0] = 3;"),
    "nothing written": ("differs", "differs", "(void)0;"),
    "wrong later": ("differs", "losses differ by",
        "static int calls; if (calls++ > 60) return;" + WHOLE),
    "debug output": ("ok", "hello", 'static int n; if (!n++) puts("hello");' + WHOLE),
}


def alive(pid):
    try:
        return Path("/proc/%d/stat" % pid).read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Of each bad program: how it ended, the report, and whether a child of it still runs."""
    def run(name):
        how, text = report(tmp_path_factory.mktemp("bad") / "mine.c", HARM[name][2])
        child = re.search(r"child (\d+)", text)
        return how, text, child and os.path.isdir("/proc/self") and alive(int(child[1]))
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(exercise, "SECONDS", 3)
        return dict(zip(HARM, pool.map(run, HARM)))


@pytest.mark.parametrize("name", HARM)
def test_a_bad_program_is_ended_and_reported(reports, name):
    how, text, child = reports[name]
    assert how == HARM[name][0] and re.search(HARM[name][1], text) and readable(text), text
    assert not child, "its child still runs"


# --- grading --------------------------------------------------------------------------------------

def test_grade_prints_a_row_for_each_learner(tmp_path):
    swapped = ALL[4].path + "/wrong/swapped.c"
    write(tmp_path / "ada/03.c", filled(NORM))
    write(tmp_path / "ada/05-mine.c", completed(ALL[4], swapped))
    write(tmp_path / "bob/03-rmsnorm-backward/my.c", NORM.hole())
    write(tmp_path / "bob/10.c", filled(ALL[9]).replace("hmoe_real sum[", "hmoe_real sum[["))
    write(tmp_path / "bob/notes.txt", "nothing")
    write(tmp_path / "cy/99.c", "")
    status, text = make("grade", "DIR=%s" % tmp_path)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert status == 0, text
    for row in ("ada - - ok - differs - - - - - 1 of 10",
                "bob - - untouched - - - - - - compile 0 of 10",
                "cy - - - - - - - - - - 0 of 10"):
        assert row in rows, text
    assert "ada 05: " + exercise.message(swapped) in text


def test_grade_needs_a_directory(tmp_path):
    status, text = make("grade", "DIR=%s" % (tmp_path / "nowhere"))
    assert status and "nowhere" in text, text
