/* devices.h - prints the work of each device, if the experts were on several devices (MoDSE,
   section 3.2): generate --devices. */
#ifndef DEVICES_H
#define DEVICES_H

#include "cli.h"
#include "extra/parallel/hmoe_placement.h"

static inline void devices_show_placement(const hmoe_model *m, int D, hmoe_placement placement,
                                          const char *name) {
    const hmoe_config *c = &m->config;
    int device[HMOE_MAX_EXPERTS] = { 0 };
    char why[HMOE_MESSAGE_SIZE];
    hmoe_device of[HMOE_MAX_EXPERTS];
    if (hmoe_place_experts(device, c->H, c->E, D, placement, why)) {
        printf("%s: %s\n", name, why);
        return;
    }
    hmoe_device uneven = hmoe_get_devices(m, device, D, of);
    printf("%s: largest over mean: parameters %.6f tokens %.6f work %.6f\n", name, uneven.params,
           uneven.tokens, uneven.work);
    for (int d = 0; d < D; d++) {
        printf("  device %d: %.0f parameters, %.0f tokens, %.0f tokens * width; experts", d,
               of[d].params, of[d].tokens, of[d].work);
        for (int e = 0; e < c->E; e++)
            if (device[e] == d) printf(" %d", e);
        putchar('\n');
    }
}

/* Since hmoe_reset_usage. */
static inline void devices_show(const hmoe_model *m, int D) {
    devices_show_placement(m, D, HMOE_PAIRS, "in pairs");
    devices_show_placement(m, D, HMOE_CONTIGUOUS, "contiguous");
}

#endif
