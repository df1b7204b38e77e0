/* hmoe_placement.h - which device holds which expert (MoDSE section 3.2), and how even the work of
   the devices is. Include it after hmoe.h, in the same way. */
#ifndef HMOE_PLACEMENT_H
#define HMOE_PLACEMENT_H

#include "hmoe.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hmoe_placement { HMOE_PAIRS, HMOE_CONTIGUOUS, HMOE_GIVEN } hmoe_placement;

/* Places E experts on D devices: device[e] receives 0 .. D-1. HMOE_PAIRS (MoDSE section 3.2; also
   appendix D of HMoE's EMNLP version, not of its first arXiv version): the widest expert with the
   narrowest, the next with the next, and so on. A device holds whole pairs, so E must be a multiple
   of 2 D. HMOE_CONTIGUOUS: E / D neighbours on each device.
   HMOE_GIVEN: device[] is only checked. */
hmoe_status hmoe_place_experts(int *device, const int *H, int E, int D, hmoe_placement placement,
                               char *message);

/* Load of each of D devices if expert e is on device[e]: sums over all layers since
   hmoe_reset_usage. Returns the largest load divided by the mean load, of each of the three: 1 is
   even. If there is no load at all it is 0. */
typedef struct hmoe_device {
    double params;                    /* parameters of its experts */
    double tokens;                    /* tokens that chose its experts */
    double work;                      /* the same, times the expert's width */
} hmoe_device;
hmoe_device hmoe_get_devices(const hmoe_model *m, const int *device, int D, hmoe_device *of);

#ifdef __cplusplus
}
#endif

#endif /* HMOE_PLACEMENT_H */

#ifdef HMOE_IMPLEMENTATION
#ifndef HMOE_PLACEMENT_IMPLEMENTED
#define HMOE_PLACEMENT_IMPLEMENTED

hmoe_status hmoe_place_experts(int *device, const int *H, int E, int D, hmoe_placement placement,
                               char *message) {
    int by_width[HMOE_MAX_EXPERTS], pairs = placement == HMOE_PAIRS;
    for (int e = 0; placement == HMOE_GIVEN && e < E; e++)
        if (device[e] < 0 || device[e] >= D)
            return HMOE__BAD(message, "expert %d of %d is on device %d: must be from 0 to %d", e,
                             E, device[e], D - 1);
    if (placement == HMOE_GIVEN) return HMOE_OK;
    if (E < 1 || E > HMOE_MAX_EXPERTS || D < 1 || D > E || E % (D << pairs))
        return HMOE__BAD(message, "%d experts on %d devices: %s each, so a multiple of %.0f", E, D,
                         pairs ? "whole pairs" : "equally many", (1.0 + pairs) * D);
    for (int e = 0, at; e < E; by_width[at] = e++)   /* the widest first */
        for (at = e; at && H[e] > H[by_width[at - 1]]; at--) by_width[at] = by_width[at - 1];
    for (int i = 0; i < E; i++)
        if (pairs) device[by_width[i]] = (i < E / 2 ? i : E - 1 - i) % D;
        else device[i] = i / (E / D);
    return HMOE_OK;
}

hmoe_device hmoe_get_devices(const hmoe_model *m, const int *device, int D, hmoe_device *of) {
    const hmoe_config *c = &m->config;
    hmoe_device sum = { 0, 0, 0 }, most = { 0, 0, 0 };
    memset(of, 0, (size_t)D * sizeof *of);
    for (int l = 0; l < c->L; l++) {
        hmoe_usage usage;
        hmoe_get_usage(m, l, &usage);
        for (int e = 0; e < c->E; e++) {
            double tokens = usage.share[e] * (double)usage.tokens;
            of[device[e]].params += 3.0 * c->C * c->H[e];
            of[device[e]].tokens += tokens;
            of[device[e]].work += tokens * c->H[e];
        }
    }
    for (int d = 0; d < D; d++) {
        sum.params += of[d].params, most.params = fmax(most.params, of[d].params);
        sum.tokens += of[d].tokens, most.tokens = fmax(most.tokens, of[d].tokens);
        sum.work += of[d].work, most.work = fmax(most.work, of[d].work);
    }
    if (sum.tokens > 0) most.tokens *= D / sum.tokens;
    if (sum.work > 0) most.work *= D / sum.work;   /* null experts do none */
    most.params *= D / sum.params;
    return most;
}

#endif /* HMOE_PLACEMENT_IMPLEMENTED */
#endif /* HMOE_IMPLEMENTATION */
