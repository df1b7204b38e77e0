/* Your function divides H[e] by the sum of all widths. Divide by their mean: your M is too small
   by the factor E. */
static double hmoe__p_penalty(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        double M = x->f[e] * x->H[e] / (x->mean_H * x->E);
        loss += x->E * M * x->Phat[e];
        slope->Phat[e] += coef * x->E * M;
    }
    return loss;
}
