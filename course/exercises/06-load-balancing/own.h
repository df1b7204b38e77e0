/* Makes a router collapse. config: 8 experts, Top-2, every coefficient of the losses 0. Change what
   you like of it, but E, so that in the end at least half the experts of a layer get less than 1 %
   of the tokens each. */
static void my_collapse(hmoe_config *config);

/* Cures it. config: as my_collapse left it. Add what keeps each expert of every layer at a quarter
   of an even share of the tokens, or more, and makes the cross-entropy lower than it was by at
   least 0.05. What made the router collapse must stay. */
static void my_cure(hmoe_config *config);
