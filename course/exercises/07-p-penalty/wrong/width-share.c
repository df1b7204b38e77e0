/* H[e] was divided by the sum of all widths, where their mean belongs: it is smaller by a
   factor E. */
static void hmoe__losses(hmoe_losses *loss, hmoe_real *dP_all, const double *sums,
                         const hmoe_config *c, double N) {
    double mean_H = 0;
    for (int e = 0; e < c->E; e++) mean_H += c->H[e];
    loss->term[HMOE_LB] = loss->term[HMOE_PP] = loss->term[HMOE_ENT] = loss->term[HMOE_Z] = 0;
    for (int l = 0; l < c->L; l++, sums += 2 * c->E + 3) {
        for (int e = 0; e < c->E; e++) {
            double f = sums[e] / N, Phat = sums[c->E + e] / N, M = f * c->H[e] / mean_H;
            loss->term[HMOE_LB] += c->E * f * Phat;
            loss->term[HMOE_PP] += c->E * M * Phat;
            dP_all[l * c->E + e] = c->E * (c->loss_coef[HMOE_LB] * f + c->loss_coef[HMOE_PP] * M) / N;
        }
        loss->term[HMOE_ENT] += c->E * sums[2 * c->E] / N;
        loss->term[HMOE_Z] += sums[2 * c->E + 1] / N;
    }
    loss->total = loss->ce + c->loss_coef[HMOE_LB] * loss->term[HMOE_LB] + c->loss_coef[HMOE_PP] * loss->term[HMOE_PP]
                  + c->loss_coef[HMOE_ENT] * loss->term[HMOE_ENT] + c->loss_coef[HMOE_Z] * loss->term[HMOE_Z];
}
