/* Returns the number of parameters of a model with this configuration. noisy_gating is 0.
   hmoe__list_tensors lists all tensors; compute their number without it. */
static double my_parameters(const hmoe_config *config);

/* Chooses the widths H[0 .. E-1] of the experts. config: all other fields are set; E is 4 or 8. The
   model must have at most `budget` parameters, and at least 95 % of that number. The widest expert
   must be at least twice as wide as the narrowest. Pair the widest expert with the narrowest, the
   second widest with the second narrowest, and so on: all pairs must have the same total width. */
static void my_widths(hmoe_config *config, double budget);
