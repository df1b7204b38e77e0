/* The penalty is in the loss, but not in dP_all: it is reported, and pushes nobody. */
static void hmoe__losses(hmoe_losses *loss, hmoe_real *dP_all, const double *sums,
                         const hmoe_config *c, double N) {
    double mean_H = 0;
    for (int e = 0; e < c->E; e++) mean_H += (double)c->H[e] / c->E;
    loss->lb = loss->pp = loss->ent = loss->z = 0;
    for (int l = 0; l < c->L; l++, sums += 2 * c->E + 3) {
        for (int e = 0; e < c->E; e++) {
            double f = sums[e] / N, Phat = sums[c->E + e] / N, M = f * c->H[e] / mean_H;
            loss->lb += c->E * f * Phat;
            loss->pp += c->E * M * Phat;
            dP_all[l * c->E + e] = c->E * (c->lb_coef * f) / N;
        }
        loss->ent += c->E * sums[2 * c->E] / N;
        loss->z += sums[2 * c->E + 1] / N;
    }
    loss->total = loss->ce + c->lb_coef * loss->lb + c->pp_coef * loss->pp
                  + c->ent_coef * loss->ent + c->z_coef * loss->z;
}
