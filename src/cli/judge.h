#pragma once
// Runs the programs of HumanEval and HumanEval-X in the sandbox.
#include <functional>
#include <span>
#include <string>

#include "eval/task.h"

namespace conclave {

/// The judge of `conclave eval`. Throws unsupported when this machine has no sandbox, naming what it lacks. A program passes when it ends with
/// code 0; in Python and JavaScript it must also have come to its last line. The judge itself throws unsupported for a Python program that fails
/// for want of numpy, which the data sets count on.
Judge make_judge(std::function<bool()> cancelled);

}  // namespace conclave
