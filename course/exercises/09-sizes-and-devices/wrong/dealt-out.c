/* Your function places single experts in turn, the widest first. Device 0 then always gets the
   wider of two. Place whole pairs in turn. */
hmoe_status hmoe_place_experts(int *device, const int *H, int E, int D, hmoe_placement placement,
                               char *message) {
    int by_width[HMOE_MAX_EXPERTS], pairs = placement == HMOE_PAIRS;
    if (E < 1 || E > HMOE_MAX_EXPERTS || D < 1 || D > E || E % (D << pairs))
        return HMOE__BAD(message, "%d experts on %d devices", E, D);
    for (int e = 0, at; e < E; by_width[at] = e++)
        for (at = e; at && H[e] > H[by_width[at - 1]]; at--) by_width[at] = by_width[at - 1];
    for (int i = 0; i < E; i++)
        if (pairs) device[by_width[i]] = i % D;
        else device[i] = i / (E / D);
    return HMOE_OK;
}
