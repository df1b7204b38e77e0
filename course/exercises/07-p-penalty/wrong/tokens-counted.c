/* M contains no width. This is load balancing again: it makes the numbers of tokens equal. The
   P-Penalty counts work: M_e = f_e H[e] / mean(H). */
static double hmoe__p_penalty(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        double M = x->f[e];
        loss += x->E * M * x->Phat[e];
        slope->Phat[e] += coef * x->E * M;
    }
    return loss;
}
