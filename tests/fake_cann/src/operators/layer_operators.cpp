// libopapi.so, second half: reductions, indexing, layers, random numbers, training.
#include "helpers.h"
#include "operator.h"

#include <layer_operators_aten.h>  // written by build.py

#include "backward.inc"
#include "indexing.inc"
#include "linear_algebra.inc"
#include "neural_network.inc"
#include "optimizers.inc"
#include "random.inc"
#include "reductions.inc"
