/* Your function pairs the first expert with the last. Pair the widest with the narrowest, at any
   index: sort the experts by width first. */
hmoe_status hmoe_place_experts(int *device, const int *H, int E, int D, hmoe_placement placement,
                               char *message) {
    int by_width[HMOE_MAX_EXPERTS], pairs = placement == HMOE_PAIRS;
    if (E < 1 || E > HMOE_MAX_EXPERTS || D < 1 || D > E || E % (D << pairs))
        return HMOE__BAD(message, "%d experts on %d devices", E, D);
    for (int e = 0, at; e < E; by_width[at] = e++)
        for (at = e; at && H[0] < 0; at--) by_width[at] = by_width[at - 1];
    for (int i = 0; i < E; i++)
        if (pairs) device[by_width[i]] = (i < E / 2 ? i : E - 1 - i) % D;
        else device[i] = i / (E / D);
    return HMOE_OK;
}
