// libopapi.so: the operators of a forward pass, one line each.
#include "operator.h"

#include <aten_operators.h>  // written by build.py

#include "elementwise.inc"
#include "reductions.inc"
#include "tensors.inc"
