/* f was made from P: the sum of squares of Phat can be small while all tokens choose one
   expert. f counts who was *chosen*, sums[e]. */
static void hmoe__losses(hmoe_losses *loss, hmoe_real *dP_all, const double *sums,
                         const hmoe_config *c, double N) {
    loss->term[HMOE_LB] = loss->term[HMOE_PP] = loss->term[HMOE_ENT] = loss->term[HMOE_Z] = 0;
    for (int l = 0; l < c->L; l++, sums += 2 * c->E + 3) {
        for (int e = 0; e < c->E; e++) {
            double f = sums[c->E + e] / N, Phat = sums[c->E + e] / N;
            loss->term[HMOE_LB] += c->E * f * Phat;
            dP_all[l * c->E + e] = c->E * c->loss_coef[HMOE_LB] * f / N;
        }
    }
    loss->total = loss->ce + c->loss_coef[HMOE_LB] * loss->term[HMOE_LB];
}
