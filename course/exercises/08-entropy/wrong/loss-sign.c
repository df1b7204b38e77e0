/* Your loss has the sign that HMoE prints: it falls if the entropy grows. Top-P then takes more
   and more experts. L_ent is + E times the mean entropy. */
static double hmoe__entropy_loss(const hmoe_means *x, double coef, hmoe_means *slope) {
    slope->entropy -= coef * x->E;
    return -x->E * x->entropy;
}
