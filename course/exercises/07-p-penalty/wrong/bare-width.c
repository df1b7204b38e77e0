/* M was made with the bare width H[e], as HMoE prints it. Divided by mean(H), equal widths give
   load balancing, as its text says they should, and the coefficient keeps its meaning when the
   model grows. */
static void hmoe__losses(hmoe_losses *loss, hmoe_real *dP_all, const double *sums,
                         const hmoe_config *c, double N) {
    loss->lb = loss->pp = loss->ent = loss->z = 0;
    for (int l = 0; l < c->L; l++, sums += 2 * c->E + 3) {
        for (int e = 0; e < c->E; e++) {
            double f = sums[e] / N, Phat = sums[c->E + e] / N, M = f * c->H[e];
            loss->lb += c->E * f * Phat;
            loss->pp += c->E * M * Phat;
            dP_all[l * c->E + e] = c->E * (c->lb_coef * f + c->pp_coef * M) / N;
        }
        loss->ent += c->E * sums[2 * c->E] / N;
        loss->z += sums[2 * c->E + 1] / N;
    }
    loss->total = loss->ce + c->lb_coef * loss->lb + c->pp_coef * loss->pp
                  + c->ent_coef * loss->ent + c->z_coef * loss->z;
}
