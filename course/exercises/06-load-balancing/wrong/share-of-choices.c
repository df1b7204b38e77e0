/* Your function divides f by its sum. f_e is the share of the *tokens* that chose expert e. Under
   Top-K the sum of f is K, not 1. */
static double hmoe__load_balancing(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    double all = 0;
    for (int e = 0; e < x->E; e++) all += x->f[e];
    for (int e = 0; e < x->E; e++) {
        loss += x->E * x->f[e] / all * x->Phat[e];
        slope->Phat[e] += coef * x->E * x->f[e] / all;
    }
    return loss;
}
