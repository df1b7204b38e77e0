/* The ratio of the widths is upside down. M_e = f_e H[e] / mean(H) is *larger* for wide experts.
   Yours rewards wide experts. */
static double hmoe__p_penalty(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        double M = x->H[e] ? x->f[e] * x->mean_H / x->H[e] : 0;
        loss += x->E * M * x->Phat[e];
        slope->Phat[e] += coef * x->E * M;
    }
    return loss;
}
