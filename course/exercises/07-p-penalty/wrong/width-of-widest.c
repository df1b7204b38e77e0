/* Your function divides H[e] by the largest H. Divide by mean(H). With the largest, equal widths
   also give load balancing, but unequal widths give a weaker loss. */
static double hmoe__p_penalty(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    int widest = 0;
    for (int e = 0; e < x->E; e++) widest = x->H[e] > widest ? x->H[e] : widest;
    for (int e = 0; e < x->E; e++) {
        double M = x->f[e] * x->H[e] / widest;
        loss += x->E * M * x->Phat[e];
        slope->Phat[e] += coef * x->E * M;
    }
    return loss;
}
