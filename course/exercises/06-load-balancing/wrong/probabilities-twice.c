/* Phat stands in place of f. f_e counts the tokens that *chose* expert e: all tokens can choose
   one expert while the sum of the squares of Phat is still small. */
static double hmoe__load_balancing(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        loss += x->E * x->Phat[e] * x->Phat[e];
        slope->Phat[e] += coef * x->E * x->Phat[e];
    }
    return loss;
}
