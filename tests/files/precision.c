/* Files of a build that computes in double. model.safetensors has floats, so each number is rounded
   once. training.safetensors has doubles, so none changes. Floats and half floats are read as the
   doubles that they are. The tensors are so large that they are copied in several pieces. The test
   reads the files' bytes by their definition. */

#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "extra/interop/hmoe_interop.h"
#include "../test.h"
#include "../fixtures.h"

static char directory[64] = SMALL_TMP "hmoe-test-precision-XXXXXX";

static char *path(const char *name) {
    static char text[300];
    snprintf(text, sizeof text, "%s/%s", directory, name);
    return text;
}

/* The bytes of a file, and where its tensors start: after 8 bytes of length, and a header. */
static unsigned char *read_file(const char *name, size_t *start, size_t *size) {
    FILE *f = fopen(path(name), "rb");
    unsigned char *bytes;
    if (!f || fseek(f, 0, SEEK_END)) perror(name), exit(2);
    *size = (size_t)ftell(f);
    rewind(f);
    bytes = (unsigned char *)small_array(*size);
    if (fread(bytes, 1, *size, f) != *size) perror(name), exit(2);
    fclose(f);
    *start = 8 + bytes[0] + 256u * bytes[1] + 65536u * bytes[2];
    return bytes;
}

/* A little-endian number of 2 (BF16), 4 or 8 bytes. */
static double number_at(const unsigned char *at, int size) {
    uint64_t bits = 0;
    float small;
    double value;
    for (int i = size; i-- > 0;) bits = bits << 8 | at[i];
    if (size < 8) {
        uint32_t half = (uint32_t)(size == 2 ? bits << 16 : bits);
        memcpy(&small, &half, sizeof small);
        return small;
    }
    memcpy(&value, &bits, sizeof value);
    return value;
}

static hmoe_model model;

/* The tensors of `array` lie one after another in the file, from byte `at` on. */
static void check_file(const char *name, int size) {
    const hmoe_real *array[3] = { model.params, model.exp_avg, model.exp_avg_sq };
    size_t start, bytes, n = model.param_count, wrong = 0;
    unsigned char *data = read_file(name, &start, &bytes);
    int arrays = size == 8 ? 3 : 1;
    test_context = name;
    CHECK_INT(bytes - start, arrays * n * (size_t)size);
    for (size_t k = 0; k < arrays * n && start + (k + 1) * (size_t)size <= bytes; k++) {
        double right = (double)array[k / n][k % n];
        if (size == 4) right = (double)(float)right;
        wrong += number_at(data + start + k * (size_t)size, size) != right;
    }
    CHECK_INT(wrong, 0);
    free(data);
}

/* What was loaded is what was saved, rounded to float where `rounded` says so. */
static void check_loaded(hmoe_model *m, int rounded) {
    size_t wrong = 0;
    for (size_t k = 0; k < model.param_count; k++) {
        double right = (double)model.params[k];
        wrong += (double)m->params[k] != (rounded ? (double)(float)right : right);
    }
    CHECK_INT(wrong, 0);
    hmoe_free(m);
}

static void saved_and_loaded(void) {
    size_t bytes = model.param_count * sizeof *model.params;
    hmoe_model m;
    memset(&m, 0, sizeof m);
    CHECK_INT(hmoe_save(&model, directory, 1), HMOE_OK);
    check_file("model.safetensors", 4);
    check_file("training.safetensors", (int)sizeof(hmoe_real));
    CHECK_INT(hmoe_load(&m, directory, 0, 0), HMOE_OK);
    check_loaded(&m, 1);
    CHECK_INT(hmoe_load_mixtral(&m, directory, 0), HMOE_OK);
    check_loaded(&m, 1);
    CHECK_INT(hmoe_load(&m, directory, 1, 1), HMOE_OK);
    CHECK(m.params && !memcmp(m.exp_avg, model.exp_avg, bytes));
    CHECK(m.params && !memcmp(m.exp_avg_sq, model.exp_avg_sq, bytes));
    check_loaded(&m, 0);
}

/* The upper halves of the floats that were saved, as a file of BF16. */
static void half_floats(void) {
    size_t start, bytes, at = 0, wrong = 0;
    unsigned char *data = read_file("model.safetensors", &start, &bytes);
    char *header = (char *)small_array(300 * model.tensor_count), size[8];
    int n = sprintf(header, "{");
    hmoe_model m;
    FILE *f;
    for (size_t i = 0; i < model.tensor_count; i++) {
        const hmoe_tensor *t = &model.tensors[i];
        size_t end = at + 2 * (size_t)t->rows * t->cols;
        n += sprintf(header + n, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%d", i ? "," : "",
                     t->name, t->rows);
        if (t->dims == 2) n += sprintf(header + n, ",%d", t->cols);
        n += sprintf(header + n, "],\"data_offsets\":[%d,%d]}", (int)at, (int)end);
        at = end;
    }
    n += sprintf(header + n, "}");
    for (int i = 0; i < 8; i++) size[i] = (char)(i < 4 ? n >> 8 * i : 0);
    f = fopen(path("model.safetensors"), "wb");
    CHECK(f && fwrite(size, 1, 8, f) == 8 && fwrite(header, 1, (size_t)n, f) == (size_t)n);
    for (size_t k = 0; f && k < model.param_count; k++) fwrite(data + start + 4 * k + 2, 1, 2, f);
    CHECK(f && fclose(f) == 0);
    memset(&m, 0, sizeof m);
    CHECK_INT(hmoe_load_mixtral(&m, directory, 0), HMOE_OK);
    for (size_t k = 0; m.params && k < model.param_count; k++)
        wrong += (double)m.params[k] != number_at(data + start + 4 * k + 2, 2);
    CHECK_INT(wrong, 0);
    hmoe_free(&m);
    free(data), free(header);
}

int main(void) {
    static const char *const files[] = { "model.safetensors", "training.safetensors",
                                         "config.json" };
    hmoe_config c = small_config();
    if (!mkdtemp(directory)) { perror(directory); return 1; }
    c.V = 20000;                               /* 160,000 numbers in the largest tensors */
    small_create(&model, &c, 1);
    fill(model.params, model.param_count, 1), fill(model.exp_avg, model.param_count, 1);
    for (size_t k = 0; k < model.param_count; k++)
        model.exp_avg_sq[k] = model.exp_avg[k] * model.exp_avg[k] / 3;
    TEST(saved_and_loaded);
    TEST(half_floats);
    for (int i = 0; i < 3; i++) remove(path(files[i]));
    rmdir(directory);
    return test_summary("precision");
}
