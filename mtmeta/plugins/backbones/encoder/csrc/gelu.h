/* The coefficients of gelu and its derivative (Hendrycks & Gimpel 2016). */

#pragma once

/* The normal distribution's function at x less 1/2, and gelu's derivative less 1/2: x P(x^2) / Q(x^2) up to EDGE, found by
   weighted least squares; within 3e-7. Beyond EDGE the difference to 1/2 is smaller than that. */
#define EDGE 5.6f
static const float FUNCTION[2][6] = {
    {3.98942222e-01f, 3.43739570e-02f, 4.70711596e-03f, 1.73827372e-04f, 6.35623146e-06f, 2.21460975e-08f},
    {1.00000000e+00f, 2.52828448e-01f, 2.89388264e-02f, 1.91284678e-03f, 7.50936989e-05f, 1.18021284e-06f}};
static const float SLOPE[2][6] = {
    {7.97885345e-01f, -3.09749843e-02f, 1.42260487e-02f, 1.97582839e-05f, 3.58992759e-05f, 1.92166433e-07f},
    {1.00000000e+00f, 2.94520046e-01f, 4.09838759e-02f, 3.52265244e-03f, 1.92054106e-04f, 8.92813999e-06f}};
