/* test.h - a small harness for tests in C: named tests, and checks that print both values.

   A test is a function without arguments; it fails if any of its checks fails. A file ends with

       int main(void)
       {
           TEST(norm_has_unit_length);
           return test_summary("test_layers");
       }

   which prints "test_layers: 1 passed, 0 failed" and returns 0, or 1 if a test failed. */

#ifndef TEST_H
#define TEST_H

#include <math.h>
#include <stdio.h>

#define TEST(function) test_run(#function, function)
#define CHECK(condition) test_check(!!(condition), __FILE__, __LINE__, #condition)

/* |a - b| is at most `relative` times the larger of the two, plus `absolute`. False for NaN. */
#define CHECK_NEAR(a, b, relative, absolute) \
    test_near((double)(a), (double)(b), relative, absolute, __FILE__, __LINE__, #a)
#define CHECK_INT(a, b) test_int((long long)(a), (long long)(b), __FILE__, __LINE__, #a)

static int test_passed, test_failed;
static int test_bad_checks;                  /* in the test that is running */
static const char *test_context = "";        /* which of many cases, where a test loops over them */
enum { TEST_MAX_PRINTED = 8 };               /* failed checks shown of one test */

static inline int test_check(int ok, const char *file, int line, const char *what) {
    if (!ok && ++test_bad_checks <= TEST_MAX_PRINTED)
        printf("%s:%d: failed: %s   %s\n", file, line, what, test_context);
    return ok;
}

static inline int test_near(double a, double b, double relative, double absolute,
                            const char *file, int line, const char *what) {
    double larger = fabs(a) > fabs(b) ? fabs(a) : fabs(b);
    int ok = fabs(a - b) <= relative * larger + absolute;    /* false for a NaN */
    if (!ok && ++test_bad_checks <= TEST_MAX_PRINTED)
        printf("%s:%d: %s is %.17g, should be %.17g (difference %.3g)   %s\n", file, line, what,
               a, b, a - b, test_context);
    return ok;
}

static inline int test_int(long long a, long long b, const char *file, int line, const char *what) {
    if (a != b && ++test_bad_checks <= TEST_MAX_PRINTED)
        printf("%s:%d: %s is %lld, should be %lld   %s\n", file, line, what, a, b, test_context);
    return a == b;
}

static inline void test_run(const char *name, void (*function)(void)) {
    test_bad_checks = 0;
    test_context = "";
    function();
    if (test_bad_checks) printf("FAILED %s: %d checks\n", name, test_bad_checks);
    if (test_bad_checks) test_failed++; else test_passed++;
    fflush(stdout);
}

static inline int test_summary(const char *name) {
    printf("%s: %d passed, %d failed\n", name, test_passed, test_failed);
    return test_failed ? 1 : 0;
}

#endif
