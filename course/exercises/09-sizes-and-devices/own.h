/* How many parameters has a model of this configuration? (No noisy gating.) hmoe__list_tensors
   lists them all; predict their number without it. */
static double my_parameters(const hmoe_config *config);

/* Chooses the widths H[0 .. E-1] of the experts. config: everything else is set, E is 4 or 8. The
   model must have at most `budget` parameters, and at least 95 % of that; the widest expert must be
   at least twice as wide as the narrowest; and the widest and the narrowest, the second widest and
   the second narrowest, and so on, must be as wide together: all devices can then hold the same. */
static void my_widths(hmoe_config *config, double budget);
