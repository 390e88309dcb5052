// libopapi.so: the operators that are more than one ATen call or belong to training, one line each.
#include "numerics.h"
#include "operator.h"

#include <aten_operators.h>  // written by build.py

#include "linear_algebra.inc"
#include "neural_network.inc"
#include "random.inc"
