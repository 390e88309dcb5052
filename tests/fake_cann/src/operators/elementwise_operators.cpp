// libopapi.so, first half: element by element, reductions, tensors. One line per operator, in the
// .inc files; two halves, so that two cores compile them at once.
#include "helpers.h"
#include "operator.h"

#include <elementwise_operators_aten.h>  // written by build.py

#include "binary.inc"
#include "tensors.inc"
#include "unary.inc"
