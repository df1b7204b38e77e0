/* The loss contains M, but its slope contains only f. The derivative of E M_e Phat_e with respect
   to Phat_e is E M_e. */
static double hmoe__p_penalty(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        double M = x->f[e] * x->H[e] / x->mean_H;
        loss += x->E * M * x->Phat[e];
        slope->Phat[e] += coef * x->E * x->f[e];
    }
    return loss;
}
