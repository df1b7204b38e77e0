/* Numbers in locales with another decimal point: a comma, and a character of two bytes. Doubles are
   printed and read the same to the bit, files have the same bytes, and lists of ratios mean the
   same as in the C locale. The locales are made here with localedef, of glibc, since many machines
   have none; elsewhere those of the system are tried. */

#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "../test.h"
#include "../fixtures.h"

static int batches = 1000;         /* of a thousand doubles */
static char directory[64] = SMALL_TMP "hmoe-test-locale-XXXXXX";

static const char *path(const char *name) { return small_path(directory, name); }

static void write_file(const char *name, const char *text) {
    FILE *f = fopen(path(name), "wb");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

/* `point`: its Unicode number, as localedef has it. */
static void make_locale(const char *name, const char *point) {
    char text[400];
    write_file("charmap", "<code_set_name> UTF-8\n<escape_char> /\n<mb_cur_min> 1\n<mb_cur_max> 6\n"
               "CHARMAP\n<U0000>..<U007F> /x00 x\n<U066B> /xd9/xab x\nEND CHARMAP\n");
    snprintf(text, sizeof text, "LC_NUMERIC\ndecimal_point \"%s\"\nthousands_sep \"<U002E>\"\n"
             "grouping 3;3\nEND LC_NUMERIC\n", point);
    write_file("source", text);
    snprintf(text, sizeof text, "cd %s && localedef -c -f ./charmap -i ./source ./%s >log 2>&1",
             directory, name);
    if (system(text)) {}           /* 1: there were warnings; setlocale will tell */
}

/* 1 if one of the names gives a locale with another decimal point. */
static int use_locale(const char *const *names) {
    for (; *names; names++)
        if (setlocale(LC_NUMERIC, *names) && strcmp(localeconv()->decimal_point, ".")) return 1;
    setlocale(LC_NUMERIC, "C");
    return 0;
}

static double random_double(uint64_t i) {
    double value;
    uint64_t bits = hmoe_random(3, 0, i, 0);
    if (i % 3 == 0) return (double)(int64_t)(bits % 2000001 - 1000000) / 1000;
    if (i % 3 == 1) return ((double)(bits >> 11) / 9007199254740992.0 - 0.5) * 4;
    memcpy(&value, &bits, sizeof value);
    return isfinite(value) ? value : 0.5;
}

/* A batch of doubles: printed here and read by the C locale's strtod, and the other way round. */
static void doubles(void) {
    enum { N = 1000 };
    static double value[N];
    static char ours[N][40], theirs[N][40];
    char here[40];
    int wrong = 0, points = 0;
    snprintf(here, sizeof here, "%s", setlocale(LC_NUMERIC, NULL));
    for (int batch = 0; batch < batches; batch++) {
        for (int i = 0; i < N; i++) {
            value[i] = random_double((uint64_t)batch * N + (uint64_t)i);
            hmoe__print_double(ours[i], value[i]);
        }
        setlocale(LC_NUMERIC, "C");
        for (int i = 0; i < N; i++) {
            char *end;
            wrong += strtod(ours[i], &end) != value[i] || *end;
            points += strchr(ours[i], '.') != NULL;
            snprintf(theirs[i], sizeof theirs[i], i % 2 ? "%.17g]" : "%.16e,7.5", value[i]);
        }
        setlocale(LC_NUMERIC, here);
        for (int i = 0; i < N; i++) {
            const char *end;
            double back = hmoe__parse_double(theirs[i], &end);
            wrong += back != value[i] || *end != (i % 2 ? ']' : ',');
        }
    }
    CHECK_INT(wrong, 0);
    CHECK(points > N * batches / 2);
}

/* What is a number, and how far it goes, in the C locale too. */
static void texts(void) {
    static const struct { const char *text; double value; int used; } cases[] = {
        { "0.6", 0.6, 3 }, { "0,6", 0, 1 }, { "1.5,2.5", 1.5, 3 }, { "9,11", 9, 1 },
        { "-.5e1", -5, 5 }, { "1.", 1, 2 }, { "1.2.3", 1.2, 3 }, { " 2.5", 2.5, 4 },
        { "1e3.5", 1000, 3 }, { "1.000.000", 1, 5 }, { "1e", 1, 1 },
        { "1.5e+", 1.5, 3 }, { "5\xd9\xab" "5", 5, 1 }, { "12e-1x", 1.2, 5 } };
    static const char *const none[] = { "", " ", ".", "-", "e5", "nan", "inf", ",5" };
    char longest[1300] = "0.", long_text[1300];
    const char *end;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_context = cases[i].text;
        CHECK(hmoe__parse_double(cases[i].text, &end) == cases[i].value);
        CHECK_INT(end - cases[i].text, cases[i].used);
    }
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        test_context = none[i];
        hmoe__parse_double(none[i], &end);
        CHECK(end == none[i]);
    }
    test_context = "";
    memset(longest + 2, '3', 1000);                /* a third, in a thousand digits */
    CHECK_NEAR(hmoe__parse_double(longest, &end), 1.0 / 3, 0, 0);
    CHECK(*end == 0);
    memset(long_text, '1', sizeof long_text - 1);  /* none that anybody writes */
    long_text[sizeof long_text - 1] = 0;
    CHECK(isnan(hmoe__parse_double(long_text, &end)) && end == long_text);
}

static int same_file(const char *a, const char *b) {
    FILE *f = fopen(a, "rb"), *g = fopen(b, "rb");
    int x = 0, y = 0;
    while (f && g && (x = getc(f)) == (y = getc(g)) && x != EOF) {}
    if (f) fclose(f);
    if (g) fclose(g);
    return f && g && x == y;
}

static const char *const files[] = { "model.safetensors", "training.safetensors", "config.json" };

static void remove_model(const char *dir) {
    char text[300];
    for (int i = 0; i < 3; i++) {
        snprintf(text, sizeof text, "%s/%s", dir, files[i]);
        remove(text);
    }
    rmdir(dir);
}

/* A model saved here has the bytes that it has in the C locale, and is read back. */
static void models(void) {
    hmoe_config c = small_config();
    hmoe_model m, back;
    char here[40];
    size_t bytes;
    c.routing = HMOE_TOP_P, c.top_p = 0.6, c.budget = 0.25, c.rms_norm_eps = 1.5e-5;
    c.loss_coef[HMOE_LB] = 1.0 / 3, c.rope_theta = 12345.678;
    small_create(&m, &c, 1);
    m.seconds = 1.5, m.best_val_loss = 2.25e-7, m.flops = 1.0 / 7;
    bytes = m.param_count * sizeof *m.params;
    CHECK_INT(hmoe_save(&m, path("here"), 1), HMOE_OK);
    snprintf(here, sizeof here, "%s", setlocale(LC_NUMERIC, NULL));
    setlocale(LC_NUMERIC, "C");
    CHECK_INT(hmoe_save(&m, path("c"), 1), HMOE_OK);
    setlocale(LC_NUMERIC, here);
    for (int i = 0; i < 3; i++) {
        char name[60], other[60];
        snprintf(name, sizeof name, "here/%s", files[i]);
        snprintf(other, sizeof other, "c/%s", files[i]);
        CHECK(same_file(path(name), path(other)));
    }
    memset(&back, 0, sizeof back);
    CHECK_INT(hmoe_load(&back, path("here"), 1, 1), HMOE_OK);
    CHECK(back.params && !memcmp(back.params, m.params, bytes));
    CHECK(back.seconds == 1.5 && back.best_val_loss == 2.25e-7 && back.flops == 1.0 / 7);
    CHECK(back.config.top_p == 0.6 && back.config.budget == 0.25);
    CHECK(back.config.rope_theta == 12345.678 && back.config.rms_norm_eps == 1.5e-5);
    CHECK(back.config.loss_coef[HMOE_LB] == 1.0 / 3);
    remove_model(path("here")), remove_model(path("c"));
    hmoe_free(&m), hmoe_free(&back);
}

static void expert_sizes(void) {
    int H[4];
    CHECK_INT(hmoe_expert_sizes(H, 4, 384, "9,11,13,15", NULL), HMOE_OK);
    CHECK(H[0] == 72 && H[1] == 88 && H[2] == 104 && H[3] == 120);
    CHECK_INT(hmoe_expert_sizes(H, 4, 50, "2.5,0.5,4.5,2.5", NULL), HMOE_OK);   /* of 10 */
    CHECK(H[0] == 13 && H[1] == 3 && H[2] == 22 && H[3] == 12);
    CHECK_INT(hmoe_expert_sizes(H, 2, 48, "1,5,2", NULL), HMOE_BAD_ARGUMENT);
    CHECK_INT(hmoe_expert_sizes(H, 2, 48, "1;2", NULL), HMOE_BAD_ARGUMENT);
}

static void in_locale(const char *name, const char *const *names) {
    if (!use_locale(names)) {
        printf("no locale with %s as its decimal point: skipped\n", name);
        return;
    }
    TEST(texts);
    TEST(doubles);
    TEST(models);
    TEST(expert_sizes);
    setlocale(LC_NUMERIC, "C");
}

int main(void) {
    static const char *const comma[] = { "hmoe_comma", "de_DE.UTF-8", "de_DE", "fr_FR.UTF-8",
                                         "de-DE", NULL }, *const two[] = { "hmoe_two", NULL };
    char command[300];
    if (!mkdtemp(directory)) { perror(directory); return 1; }
    make_locale("hmoe_comma", "<U002C>");
    make_locale("hmoe_two", "<U066B>");
    TEST(texts);
    TEST(models);
    TEST(expert_sizes);
#ifndef _WIN32
    setenv("LOCPATH", directory, 1);
#endif
    in_locale("a comma", comma);
    batches = 50;
    in_locale("two bytes", two);
    snprintf(command, sizeof command, "rm -rf %s", directory);
    if (system(command)) perror(directory);
    return test_summary("locale");
}
