/* f was made from P: the sum of squares of Phat can be small while all tokens choose one
   expert. f counts who was *chosen*, sums[e]. */
static void hmoe__losses(hmoe_losses *loss, hmoe_real *dP_all, const double *sums,
                         const hmoe_config *c, double N) {
    loss->lb = loss->pp = loss->ent = loss->z = 0;
    for (int l = 0; l < c->L; l++, sums += 2 * c->E + 3) {
        for (int e = 0; e < c->E; e++) {
            double f = sums[c->E + e] / N, Phat = sums[c->E + e] / N;
            loss->lb += c->E * f * Phat;
            dP_all[l * c->E + e] = c->E * c->lb_coef * f / N;
        }
    }
    loss->total = loss->ce + c->lb_coef * loss->lb;
}
