/* Bias balancing, budgets and null experts, worked out on paper: three tokens, three experts. All
   numbers are binary fractions, so that ties are ties. */

#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "extra/interop/hmoe_interop.h"
#include "extra/parallel/hmoe_placement.h"
#include "../test.h"
#include "../fixtures.h"

/* ---- The choice: by P + b, with gates of P. */

static const double paper_P[9] = { 1.0 / 2, 5.0 / 16, 3.0 / 16,   /* token 0 */
                                   3.0 / 4, 1.0 / 8,  1.0 / 8,    /* token 1 */
                                   3.0 / 8, 3.0 / 8,  1.0 / 4 };  /* token 2 */
static const double paper_b[3] = { -1.0 / 4, 0, 1.0 / 8 };
/* P + b:   1/4 5/16 5/16     1/2 1/8 1/4     1/8 3/8 3/8 */

static void choice(const hmoe_routes *r, int t, int count, const int *experts,
                   const double *gates) {
    CHECK_INT(r->count[t], count);
    for (int s = 0; s < count; s++) {
        CHECK_INT(r->expert[t * r->slots + s], experts[s]);
        CHECK_NEAR(r->gate[t * r->slots + s], gates[s], 1e-15, 0);
    }
}

static void bias_orders_and_p_weighs(void) {
    static const int top2[3][2] = { { 1, 2 }, { 0, 2 }, { 1, 2 } };   /* ties to the lower index */
    static const double gates[3][2] = { { 5.0 / 8, 3.0 / 8 }, { 6.0 / 7, 1.0 / 7 },
                                        { 3.0 / 5, 2.0 / 5 } };
    hmoe_routes r = routes_create(3, 3, 2);
    memcpy(r.P, paper_P, sizeof paper_P);
    r.bias = paper_b;
    hmoe__choose(&r, HMOE_TOP_K, 2, 0, 1, 3, 3);
    for (int t = 0; t < 3; t++) choice(&r, t, 2, top2[t], gates[t]);
    hmoe__dispatch(&r, 3, 3);
    CHECK_INT(r.expert_start[1] - r.expert_start[0], 1);          /* 1, 2 and 3 tokens */
    CHECK_INT(r.expert_start[2] - r.expert_start[1], 2);
    CHECK_INT(r.expert_start[3] - r.expert_start[2], 3);
    routes_free(&r);
}

/* p = 1/2: without b token 0 has enough in expert 0; in the order of P + b it takes 1 and 2. Token 1
   stops at expert 0, whose P is 3/4. Token 2 needs 1 and 2: 3/8 + 1/4. */
static void bias_under_top_p(void) {
    static const int experts[3][2] = { { 1, 2 }, { 0, 0 }, { 1, 2 } };
    static const double raw[3][2] = { { 5.0 / 16, 3.0 / 16 }, { 3.0 / 4, 0 },
                                      { 3.0 / 8, 1.0 / 4 } };
    double half = 0.5, all = 1;
    hmoe_routes r = routes_create(3, 3, 3);
    memcpy(r.P, paper_P, sizeof paper_P);
    hmoe__choose(&r, HMOE_TOP_P, 0, 0.5, 0, 3, 3);
    CHECK_INT(r.count[0], 1);
    CHECK_INT(r.expert[0], 0);
    r.bias = paper_b;
    hmoe__choose(&r, HMOE_TOP_P, 0, 0.5, 0, 3, 3);
    for (int t = 0; t < 3; t++) choice(&r, t, t == 1 ? 1 : 2, experts[t], raw[t]);
    r.top_p = &half;                                              /* the layer's own p */
    hmoe__choose(&r, HMOE_TOP_P, 0, 0.9, 0, 3, 3);
    for (int t = 0; t < 3; t++) choice(&r, t, t == 1 ? 1 : 2, experts[t], raw[t]);
    r.top_p = &all;                                               /* takes all, in that order */
    hmoe__choose(&r, HMOE_TOP_P, 0, 0.1, 0, 3, 3);
    for (int t = 0; t < 3; t++) CHECK_INT(r.count[t], 3);
    CHECK_INT(r.expert[2], 0);
    routes_free(&r);
}

/* A bias may take experts whose P are all 0: their gates are 0 under either rule, no 0 / 0; and the
   gradient of the logits is finite. P = 1 0 0. */
static void bias_takes_what_nobody_wants(void) {
    static const double b[3] = { 0, 2, 2 }, dP_all[3] = { 0 };
    double dgate[2] = { 3, 5 };
    hmoe_routes r = routes_create(1, 3, 2);
    r.P[0] = 1, r.bias = b;
    for (int norm = 0; norm < 2; norm++) {
        hmoe__choose(&r, HMOE_TOP_K, 2, 0, norm, 1, 3);
        CHECK(r.expert[0] == 1 && r.expert[1] == 2 && r.gate[0] == 0 && r.gate[1] == 0);
        hmoe__dispatch(&r, 1, 3);
        hmoe__router_backward(&r, dgate, dP_all, 0, 0, norm, 1, 3);
        for (int e = 0; e < 3; e++) CHECK(r.logits[e] == 0);
    }
    routes_free(&r);
}

/* ---- The update of b. The tokens above: 1, 2 and 3 chose experts 0, 1 and 2. */

static void bias_moves_towards(hmoe_balance balance, int H0, int H1, int H2, int d0, int d1,
                               int d2) {
    static const double chosen[3] = { 1, 2, 3 };
    hmoe_config c = small_config();
    hmoe_real b[3] = { 0.5, 0.25, -0.5 };
    c.E = 3, c.balance = balance, c.balance_rate = 1.0 / 64;
    c.H[0] = H0, c.H[1] = H1, c.H[2] = H2;
    hmoe__move_bias(b, chosen, &c);
    CHECK(b[0] == 0.5 + d0 / 64.0);
    CHECK(b[1] == 0.25 + d1 / 64.0);
    CHECK(b[2] == -0.5 + d2 / 64.0);
}

static void bias_updates(void) {
    bias_moves_towards(HMOE_BALANCE_TOKENS, 6, 3, 1, +1, 0, -1);  /* loads 1 2 3, mean 2 */
    bias_moves_towards(HMOE_BALANCE_TOKENS, 6, 0, 1, +1, 0, -1);  /* a null expert has tokens too */
    bias_moves_towards(HMOE_BALANCE_WORK, 6, 3, 1, -1, -1, +1);   /* loads 6 6 3, mean 5 */
    bias_moves_towards(HMOE_BALANCE_WORK, 3, 3, 3, +1, 0, -1);    /* of equal widths: as tokens */
    bias_moves_towards(HMOE_BALANCE_WORK, 6, 0, 1, -1, 0, +1);    /* loads 6 3 of two experts */
    bias_moves_towards(HMOE_BALANCE_WORK, 6, 0, 2, 0, 0, 0);      /* 6 6: even */
}

/* The same through the API: with the router at 0 every P is 1/3, and ties go to the lower index. So
   three tokens with K = 2 take experts 0 and 1; with b = -r -r +r they take 2 and 0; with -2r 0 0
   they take 1 and 2; and after that all b are equal again. */
static void bias_steers_a_model(void) {
    static const int b[4][3] = { { -1, -1, 1 }, { -2, 0, 0 }, { -1, -1, -1 }, { -2, -2, 0 } };
    const double r = 1.0 / 64;
    int tokens[3] = { 1, 2, 3 };
    hmoe_adamw adamw = hmoe_default_adamw();
    hmoe_config c = small_config();
    hmoe_model m;
    hmoe_usage usage;
    adamw.lr = 0;
    c.E = 3, c.balance = HMOE_BALANCE_TOKENS, c.balance_rate = r;
    small_create(&m, &c, 1);
    for (int l = 0; l < c.L; l++)
        memset(m.params + m.layers[l].w_router, 0, 3 * c.C * sizeof *m.params);
    CHECK_INT(hmoe_update(&m, &adamw), HMOE_OK);   /* without any token nothing moves */
    for (int step = 0; step < 4; step++) {
        for (int micro = 0; micro < 2; micro++) {
            CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 1, 3), HMOE_OK);
            CHECK_INT(hmoe_backward(&m, 0.5), HMOE_OK);
        }
        CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens, tokens, 1, 3), HMOE_OK);   /* not counted */
        CHECK_INT(hmoe_update(&m, &adamw), HMOE_OK);
        for (int l = 0; l < c.L; l++) {
            hmoe_get_usage(&m, l, &usage);
            for (int e = 0; e < 3; e++) CHECK(usage.bias[e] == r * b[step][e]);
        }
    }
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 1, 3), HMOE_OK);
    CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
    hmoe_zero_gradients(&m);                       /* forgets the choices as well */
    CHECK_INT(hmoe_update(&m, &adamw), HMOE_OK);
    hmoe_get_usage(&m, 0, &usage);
    for (int e = 0; e < 3; e++) CHECK(usage.bias[e] == r * b[3][e]);
    CHECK(hmoe_parameters(&m) == (double)m.param_count - 3 * c.L);   /* b is no parameter */
    hmoe_free(&m);
}

/* ---- The budget: logit(p) += 0.1 (F - width) / F. */

static void budget_updates(void) {
    hmoe_config c = small_config();
    c.E = 4, c.budget = 0.25;
    /* logit(1/2) = 0; twice the budget is spent: -0.1; nothing would be: +0.1; all of it: -0.3 */
    CHECK_NEAR(hmoe__move_top_p(0.5, 0.5, &c), 0.47502081252106, 1e-13, 0);
    CHECK_NEAR(hmoe__move_top_p(0.5, 0, &c), 0.52497918747894, 1e-13, 0);
    CHECK_NEAR(hmoe__move_top_p(0.5, 1, &c), 0.42555748318834, 1e-13, 0);
    CHECK(hmoe__move_top_p(0.5, 0.25, &c) == 0.5);                 /* met */
    CHECK_NEAR(hmoe__move_top_p(0.99, 0, &c), 0.99094300695, 1e-10, 0);   /* odds 99 e^0.1 to 1 */
    /* the limits, 1/8 and 1 - 1e-5: p stays there, and comes back with the first step */
    CHECK(hmoe__move_top_p(0.125, 1, &c) == 0.125);
    CHECK(hmoe__move_top_p(1e-6, 1, &c) == 0.125);
    CHECK(hmoe__move_top_p(0.125, 0, &c) > 0.13);
    CHECK_NEAR(hmoe__move_top_p(1, 0, &c), 1 - 1e-5, 1e-15, 0);
    CHECK_NEAR(1 - hmoe__move_top_p(1, 0.5, &c), 1e-5 * exp(0.1), 1e-4, 0);
}

/* Through the API: P is 1/3 for each, p starts at 1/2, so three tokens take experts 0 and 1 of
   widths 5 and 2, 7 of 14 in all. The budget is 1/4: logit(p) falls by 0.1 from 0; then p is below
   1/2 but above 1/3, so it goes on falling; below 1/3 expert 0 alone is taken, 5 of 14, still above
   the budget. Each step is worked out from the step before it in closed form. */
static void budget_steers_a_model(void) {
    int tokens[3] = { 1, 2, 3 };
    hmoe_adamw adamw = hmoe_default_adamw();
    hmoe_config c = small_config();
    double logit = 0, smallest = 1;
    hmoe_model m;
    hmoe_usage usage;
    adamw.lr = 0;
    c.E = 3, c.routing = HMOE_TOP_P, c.top_p = 0.5, c.budget = 0.25;
    small_create(&m, &c, 1);
    for (int l = 0; l < c.L; l++)
        memset(m.params + m.layers[l].w_router, 0, 3 * c.C * sizeof *m.params);
    for (int step = 0; step < 12; step++) {
        double width = 1 / (1 + exp(-logit)) > 1.0 / 3 ? 7.0 / 14 : 5.0 / 14;
        CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 1, 3), HMOE_OK);
        CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
        CHECK_INT(hmoe_update(&m, &adamw), HMOE_OK);
        logit += 0.1 * (0.25 - width) / 0.25;
        for (int l = 0; l < c.L; l++) {
            hmoe_get_usage(&m, l, &usage);
            CHECK_NEAR(usage.top_p, 1 / (1 + exp(-logit)), 1e-12, 0);
        }
        smallest = usage.top_p;
    }
    CHECK(smallest < 1.0 / 3);                     /* both kinds of step were made */
    hmoe_free(&m);
}

/* ---- A null expert. P is 1/3 for each; with K = 2 three tokens take experts 0, of width 0, and 1,
   of width 4; expert 2, 4 wide too, has none. mean(H) = 8/3.
     L_lb = 3 (1 * 1/3 + 1 * 1/3) = 2      L_pp = 3 (0 * 1/3 + 1 * 4 / (8/3) * 1/3) = 3/2
   The layer adds 1/2 of what expert 1 gives. */
static void null_expert(void) {
    int tokens[3] = { 1, 2, 3 };
    hmoe_config c = small_config();
    hmoe_model m, plain;
    hmoe_usage usage;
    c.E = 3, c.L = 1, c.H[0] = 0, c.H[1] = c.H[2] = 4;
    small_create(&m, &c, 1);
    spread_weights(&m, 0.3, 0);
    for (size_t i = 0; i < m.tensor_count; i++) CHECK(!strstr(m.tensors[i].name, "experts.0."));
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 1, 3), HMOE_OK);
    CHECK_NEAR(m.losses.term[HMOE_LB], 2, 1e-14, 0);
    CHECK_NEAR(m.losses.term[HMOE_PP], 1.5, 1e-14, 0);
    hmoe_get_usage(&m, 0, &usage);
    CHECK(usage.share[0] == 1 && usage.share[1] == 1 && usage.share[2] == 0);
    CHECK(usage.width == 4 && usage.compute[0] == 0 && usage.compute[1] == 1);
    CHECK_INT(usage.dead, 1);
    /* attention, norms, router: 4 C C + 2 C + E C; final norm and embedding row, head; 3 C 4 */
    CHECK(hmoe_activated(&m) == 4 * 64 + 16 + 24 + 16 + 11 * 8 + 3 * 8 * 4);
    /* the same tokens through a dense model of expert 1 with W2 halved */
    c.E = c.K = 1, c.H[0] = 4;
    small_create(&plain, &c, 1);
    for (size_t i = 0, k; i < plain.tensor_count; i++) {
        hmoe_tensor *to = &plain.tensors[i];
        char *dot, name[HMOE_NAME_SIZE];
        strcpy(name, to->name);
        if ((dot = strstr(name, "experts.0.")) != NULL) dot[8] = '1';
        for (k = 0; strcmp(m.tensors[k].name, name); k++) { }
        for (size_t n = 0; n < (size_t)to->rows * to->cols; n++)
            plain.params[to->offset + n] = m.params[m.tensors[k].offset + n]
                                           * (strstr(name, "w2") ? 0.5 : 1);
    }
    CHECK_INT(hmoe_forward(&plain, HMOE_TRAIN, tokens, tokens, 1, 3), HMOE_OK);
    CHECK_NEAR(m.losses.ce, plain.losses.ce, 1e-14, 0);
    hmoe_free(&plain);
    hmoe_free(&m);
}

/* Everything chosen is null: the layer adds nothing, and nothing divides by its work. */
static void nothing_but_null_experts_chosen(void) {
    static const int device[3] = { 0, 0, 1 };
    int tokens[3] = { 1, 2, 3 };
    hmoe_config c = small_config();
    hmoe_device of[2], uneven;
    hmoe_model m;
    hmoe_usage usage;
    c.E = 3, c.L = 1, c.H[0] = c.H[1] = 0, c.H[2] = 4;
    small_create(&m, &c, 1);
    spread_weights(&m, 0.3, 0);
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 1, 3), HMOE_OK);
    for (int i = 0; i < 3 * c.C; i++) CHECK(m.layers[1].x[i] == m.layers[0].x2[i]);
    CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
    hmoe_get_usage(&m, 0, &usage);
    CHECK(usage.width == 0 && usage.compute[2] == 0 && m.losses.term[HMOE_PP] == 0);
    uneven = hmoe_get_devices(&m, device, 2, of);
    CHECK(uneven.tokens == 2 && uneven.work == 0 && uneven.params == 2);
    hmoe_free(&m);
}

/* ---- Files. */

static char *path(const char *name) {
    static char dir[40], full[100];
    if (!*dir) {
        strcpy(dir, SMALL_TMP "hmoe-test-steering-XXXXXX");
        if (!mkdtemp(dir)) { puts("no temporary directory"); exit(2); }
    }
    sprintf(full, "%s%s%s", dir, *name ? "/" : "", name);
    return full;
}

static void load_damaged(const hmoe_model *from, const char *tensor, hmoe_real value,
                         const char *says) {
    hmoe_model m, back = *from;
    memset(&m, 0, sizeof m);
    for (size_t i = 0; i < back.tensor_count; i++)
        if (strstr(back.tensors[i].name, tensor)) {
            hmoe_real *x = back.params + back.tensors[i].offset, was = *x;
            *x = value;
            CHECK_INT(hmoe_save(&back, path(""), 1), HMOE_OK);
            *x = was;
            for (int training = 0; training < 2; training++) {
                CHECK_INT(hmoe_load(&m, path(""), 1, training), HMOE_BAD_FILE);
                if (!CHECK(strstr(m.message, tensor) && strstr(m.message, says)))
                    printf("   said: %s\n", m.message);
            }
            return;
        }
    CHECK(!"there is such a tensor");
}

static void state_in_files(void) {
    static const char *const files[] = { "config.json", "model.safetensors",
                                         "training.safetensors" };
    hmoe_config c = small_config();
    hmoe_model m, back;
    c.routing = HMOE_TOP_P;
    steer(&c, 11);
    small_create(&m, &c, 1);
    spread_weights(&m, 0.3, 0.7);
    CHECK_INT(hmoe_save(&m, path(""), 1), HMOE_OK);
    memset(&back, 0, sizeof back);
    CHECK_INT(hmoe_load(&back, path(""), 1, 1), HMOE_OK);
    CHECK(back.config.balance == HMOE_BALANCE_WORK && back.config.balance_rate == 0.01
          && back.config.budget == 0.4 && back.config.H[1] == 0);
    CHECK(!memcmp(back.params, m.params, m.param_count * sizeof *m.params));
    hmoe_free(&back);
    load_damaged(&m, "e_score_correction_bias", NAN, "finite");
    load_damaged(&m, "e_score_correction_bias", INFINITY, "finite");
    load_damaged(&m, "block_sparse_moe.top_p", NAN, "above 0");
    load_damaged(&m, "block_sparse_moe.top_p", 0, "above 0");
    load_damaged(&m, "block_sparse_moe.top_p", 1.5, "above 0");
    hmoe_free(&m);
    for (int i = 0; i < 3; i++) CHECK(!remove(path(files[i])));
    CHECK(!rmdir(path("")));
}

/* A Mixtral has no b: with b = 0 the export computes the same, with another b it is refused. */
static void export_to_mixtral(void) {
    static const char *const files[] = { "config.json", "model.safetensors" };
    int tokens[5] = { 1, 2, 3, 4, 5 };
    hmoe_config c = small_config();
    hmoe_model m, back;
    size_t params;
    double *b;
    steer(&c, 3);                                  /* a null expert, and tokens balanced */
    small_create(&m, &c, 1);
    spread_weights(&m, 0.3, 0.7);
    for (int l = 0; l < c.L; l++) memset(m.params + m.layers[l].bias, 0, c.E * sizeof *m.params);
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens, tokens, 1, 5), HMOE_OK);
    CHECK_INT(hmoe_export_mixtral(&m, path(""), &params), HMOE_OK);
    memset(&back, 0, sizeof back);
    CHECK_INT(hmoe_load(&back, path(""), 1, 0), HMOE_OK);
    CHECK(back.config.balance == HMOE_BALANCE_OFF && back.config.H[1] == 7);
    CHECK_INT(hmoe_forward(&back, HMOE_EVALUATE, tokens, tokens, 1, 5), HMOE_OK);
    CHECK_NEAR(back.losses.ce, m.losses.ce, 1e-6, 0);              /* files hold floats */
    hmoe_free(&back);
    for (int i = 0; i < 2; i++) CHECK(!remove(path(files[i])));
    b = m.params + m.layers[1].bias;
    b[2] = 0.125;
    CHECK_INT(hmoe_export_mixtral(&m, path(""), &params), HMOE_BAD_ARGUMENT);
    CHECK(strstr(m.message, "bias") && strstr(m.message, "0.125") && strstr(m.message, "expert 2"));
    CHECK(access(path(files[0]), F_OK) != 0);
    hmoe_free(&m);
    rmdir(path(""));
}

int main(void) {
    threads(TEST_THREADS);
    TEST(bias_orders_and_p_weighs);
    TEST(bias_under_top_p);
    TEST(bias_takes_what_nobody_wants);
    TEST(bias_updates);
    TEST(bias_steers_a_model);
    TEST(budget_updates);
    TEST(budget_steers_a_model);
    TEST(null_expert);
    TEST(nothing_but_null_experts_chosen);
    TEST(state_in_files);
    TEST(export_to_mixtral);
    return test_summary("steering");
}
